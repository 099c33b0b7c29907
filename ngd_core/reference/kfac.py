"""K-FAC and KFC by definition: factors by loops, the Kronecker product formed, then solved.

Convention. A block is ``[W b]`` of shape (rows, columns), flattened row-major, so the block of the
Fisher is approximated by ``G (x) A`` (`kron`): G over rows, A over columns. Scale: F is that of
the mean loss, g is the gradient of an example's own loss. With T shared positions, "expand" uses

``A = (1/(N T)) sum_{n,t} x x^T``  and  ``G = (1/N) sum_{m,n,t} g g^T``.

KFC (Grosse and Martens 2016, theorem 2) writes the same product with the sum over positions in the
input factor, ``Omega = (1/N) sum_{n,t} x x^T``, and the mean in the other,
``Gamma = (1/(N T)) sum_{m,n,t} g g^T``: the factor T stands in G here. Factored damping with the
trace-norm pi does not see where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference import derivatives
from ngd_core.reference.layers import (
    NO_PADDING,
    Array,
    Padding,
    Pair,
    double,
    group_channels,
    output_size,
    require_images,
    require_shape,
)
from ngd_core.reference.network import Layer, Network

__all__ = [
    "canonical_record",
    "conv_patches",
    "damped",
    "direction",
    "kfac_factors",
    "kron",
    "kronecker_factors",
]

Sharing: TypeAlias = Literal["expand", "reduce"]
Split: TypeAlias = Literal["exact", "pi"]


def kronecker_factors(
    a: ArrayLike, g: ArrayLike, bias: bool = True, sharing: Sharing = "expand"
) -> tuple[Array, Array]:
    """Factors A and G of one layer, ``G (x) A`` approximating its block of the Fisher.

    "expand" (KFC; Eschenhagen et al. 2023), every position a row of its own:

    ``A = (1/(N T)) sum_{n,t} x_nt x_nt^T,    G = (1/N) sum_{m,n,t} g_mnt g_mnt^T``

    "reduce", positions first put together, inputs averaged and gradients summed:

    ``A = (1/N) sum_n xbar_n xbar_n^T,    G = (1/N) sum_{m,n} (sum_t g_mnt) (sum_t g_mnt)^T``

    where ``xbar_n = (1/T) sum_t x_nt``. With a bias x is ``[a; 1]``, so the last entry of xbar is
    1. For T = 1 both are K-FAC (Martens and Grosse 2015).

    Parameters
    ----------
    a : array of shape (N, T, I)
        Inputs (for a convolution its patches) of N examples at T positions, no bias column.
    g : array of shape (M, N, T, O)
        M back-propagated vectors per example at the layer's outputs, not divided by N. They are
        summed over M: give columns of a root of the loss Hessian, or samples over sqrt(M).
    bias : bool
        Whether a coordinate 1 is appended to the inputs.
    sharing : "expand" or "reduce"
        Treatment of positions.

    Returns
    -------
    A : array of shape (I + bias, I + bias), float64
        Input factor.
    G : array of shape (O, O), float64
        Output-gradient factor.

    Raises
    ------
    ValueError
        If shapes do not fit or `sharing` is unknown.

    Examples
    --------
    >>> from ngd_core.reference import kronecker_factors
    >>> A, G = kronecker_factors([[[1.0], [3.0]]], [[[[2.0], [1.0]]]], sharing="expand")
    >>> A, G
    (array([[5., 2.],
           [2., 1.]]), array([[5.]]))
    >>> kronecker_factors([[[1.0], [3.0]]], [[[[2.0], [1.0]]]], sharing="reduce")
    (array([[4., 2.],
           [2., 1.]]), array([[9.]]))
    """
    a, g = double(a), double(g)
    if sharing not in ("expand", "reduce"):
        msg = f"sharing is {sharing!r}; expected 'expand' or 'reduce'."
        raise ValueError(msg)
    if a.ndim != 3 or g.ndim != 4 or g.shape[1:3] != a.shape[:2]:
        msg = f"a has shape {a.shape} and g {g.shape}; expected (N, T, I) and (M, N, T, O)."
        raise ValueError(msg)
    n_vectors, n_examples, positions, outputs = g.shape
    columns = a.shape[2] + bias
    A, G = np.zeros((columns, columns)), np.zeros((outputs, outputs))
    for n in range(n_examples):
        inputs = [np.append(a[n, t], 1.0) if bias else a[n, t] for t in range(positions)]
        if sharing == "expand":
            for x in inputs:
                A += np.outer(x, x) / (n_examples * positions)
            for m in range(n_vectors):
                for t in range(positions):
                    G += np.outer(g[m, n, t], g[m, n, t]) / n_examples
        else:
            mean = np.sum(inputs, axis=0) / positions
            A += np.outer(mean, mean) / n_examples
            for m in range(n_vectors):
                total = np.sum(g[m, n], axis=0)
                G += np.outer(total, total) / n_examples
    return A, G


def conv_patches(
    x: ArrayLike,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    padding: Padding = NO_PADDING,
    groups: int = 1,
) -> Array:
    """Receptive fields of a convolution, one row per output position.

    Parameters
    ----------
    x : array of shape (N, channels, height, width)
        Images.
    kernel_size, stride, dilation : (int, int)
        (height, width).
    padding : ((top, bottom), (left, right))
        Zeros around the image.
    groups : int
        Number of channel groups.

    Returns
    -------
    array of shape (N, T, D), or (groups, N, T, D) for groups > 1
        T output positions, row-major; D = ``channels / groups * kh * kw`` columns in the order
        (channel, kernel row, kernel column). No bias column. ``patches @ W.T`` is the convolution.

    Raises
    ------
    ValueError
        As in `conv2d`.

    Examples
    --------
    >>> from ngd_core.reference import conv_patches
    >>> conv_patches([[[[1.0, 2.0, 3.0]]]], kernel_size=(1, 2))
    array([[[1., 2.],
            [2., 3.]]])
    """
    x = double(x)
    require_images(x)
    n_images, channels, height, width = x.shape
    own = group_channels(channels, groups)
    kh, kw = kernel_size
    rows, columns = output_size((height, width), kernel_size, stride, dilation, padding)
    patches = np.zeros((groups, n_images, rows * columns, own * kh * kw), x.dtype)
    for group in range(groups):
        for n in range(n_images):
            for p in range(rows):
                for q in range(columns):
                    for c in range(own):
                        for i in range(kh):
                            for j in range(kw):
                                r = p * stride[0] + i * dilation[0] - padding[0][0]
                                s = q * stride[1] + j * dilation[1] - padding[1][0]
                                if 0 <= r < height and 0 <= s < width:
                                    column = c * kh * kw + i * kw + j
                                    patches[group, n, p * columns + q, column] = x[
                                        n, group * own + c, r, s
                                    ]
    return patches[0] if groups == 1 else patches


def canonical_record(layer: Layer, a: ArrayLike, g: ArrayLike) -> list[tuple[Array, Array]]:
    """Layouts that `kronecker_factors` takes, from a layer's own layouts.

    Parameters
    ----------
    layer : Layer
        Dense or conv2d.
    a : array of shape (N, ..., in_features) or (N, in_channels, height, width)
        Inputs of the layer.
    g : array of shape (M, N, ..., out_features) or (M, N, out_channels, height, width)
        Back-propagated vectors at its outputs.

    Returns
    -------
    list of (array of shape (N, T, I), array of shape (M, N, T, O))
        One pair for each group of channels; a dense layer has one.

    Raises
    ------
    ValueError
        If the layer is of another kind.
    """
    a, g = double(a), double(g)
    if layer.kind not in ("dense", "conv2d"):
        msg = f"Layer {layer.name!r} is of kind {layer.kind!r}; expected 'dense' or 'conv2d'."
        raise ValueError(msg)
    n_vectors, n_examples = g.shape[:2]
    if layer.kind == "dense":
        positions = math.prod(a.shape[1:-1])
        return [
            (
                a.reshape(n_examples, positions, a.shape[-1]),
                g.reshape(n_vectors, n_examples, positions, g.shape[-1]),
            )
        ]
    o = layer.options
    groups, rows = o["groups"], o["out_channels"] // o["groups"]
    geometry = (o["kernel_size"], o["stride"], o["dilation"], o["padding"], groups)
    patches = conv_patches(a, *geometry)
    patches = patches[None] if groups == 1 else patches
    maps = g.reshape(n_vectors, n_examples, groups, rows, -1)
    return [(patches[k], np.swapaxes(maps[:, :, k], 2, 3)) for k in range(groups)]


def kfac_factors(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    vectors: ArrayLike,
    sharing: Sharing = "expand",
) -> dict[str, tuple[Array, Array]]:
    """Factors A and G of every dense and convolutional layer of a network.

    Parameters
    ----------
    network : Network
        Description of the layers.
    params : mapping of str to array
        Blocks by name.
    x : array of shape (N, ...)
        Inputs.
    vectors : array of shape (M, N, *outputs of one example)
        As in `output_gradients`; `backpropagated_vectors` makes them.
    sharing : "expand" or "reduce"
        As in `kronecker_factors`.

    Returns
    -------
    dict of str to (A, G)
        A of shape (columns, columns) and G of shape (rows, rows), where the block has shape
        (rows, columns); both with a leading groups axis if the block has one. Other layers with
        parameters (layer_norm) are left out.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, kfac_factors
    >>> network = Network((Layer("dense", "fc", in_features=1, out_features=1),))
    >>> kfac_factors(network, {"fc": np.zeros((1, 2))}, [[3.0]], vectors=[[[2.0]]])["fc"]
    (array([[9., 3.],
           [3., 1.]]), array([[4.]]))
    """
    inputs: dict[str, Array] = {}
    network.forward(params, x, record=inputs)
    gradients = derivatives.output_gradients(network, params, x, vectors)
    factors = {}
    for name, layer in network.parametric.items():
        if layer.kind not in ("dense", "conv2d"):
            continue
        records = canonical_record(layer, inputs[name], gradients[name])
        bias = layer.options["bias"]
        pairs = [kronecker_factors(a, g, bias, sharing) for a, g in records]
        A, G = np.stack([A for A, _ in pairs]), np.stack([G for _, G in pairs])
        factors[name] = (A, G) if len(pairs) > 1 else (A[0], G[0])
    return factors


def kron(G: ArrayLike, A: ArrayLike) -> Array:
    """Kronecker product ``G (x) A``, entry by entry.

    ``K[i p + k, j q + m] = G[i, j] A[k, m]`` with A of shape (p, q), so that for row-major vec
    ``K vec(V) = vec(G V A^T)``.

    Parameters
    ----------
    G, A : array of two axes
        Factors.

    Returns
    -------
    array of shape (rows of G times rows of A, columns of G times columns of A), float64
        The product.

    Examples
    --------
    >>> from ngd_core.reference import kron
    >>> kron([[1.0, 2.0]], [[1.0, 3.0]])
    array([[1., 3., 2., 6.]])
    """
    G, A = double(G), double(A)
    p, q = A.shape
    product = np.zeros((G.shape[0] * p, G.shape[1] * q))
    for i in range(G.shape[0]):
        for j in range(G.shape[1]):
            for k in range(p):
                for m in range(q):
                    product[i * p + k, j * q + m] = G[i, j] * A[k, m]
    return product


def damped(A: ArrayLike, G: ArrayLike, damping: float, split: Split = "pi") -> Array:
    """Damped approximation of the block of the Fisher, as a dense matrix.

    "exact": ``G (x) A + damping I``.

    "pi": ``(G + sqrt(damping)/pi I) (x) (A + pi sqrt(damping) I)`` with
    ``pi = sqrt((tr A / dim A) / (tr G / dim G))`` (Martens and Grosse 2015, section 6.3 of the
    preprint arXiv:1503.05671).

    If a trace is zero, so is its factor and its pi has no value; both damped factors are then
    replaced by ``sqrt(damping) I``, whose product ``damping I`` is what "exact" gives.

    Parameters
    ----------
    A : array of shape (columns, columns)
        Input factor.
    G : array of shape (rows, rows)
        Output-gradient factor.
    damping : float
        Added to the Fisher of the mean loss.
    split : "exact" or "pi"
        How it is added.

    Returns
    -------
    array of shape (rows * columns, rows * columns), float64
        Acting on row-major flattened blocks.

    Raises
    ------
    ValueError
        If the damping is negative or `split` is unknown.

    Examples
    --------
    >>> from ngd_core.reference import damped
    >>> damped([[4.0]], [[1.0]], damping=1.0, split="exact")
    array([[5.]])
    >>> damped([[4.0]], [[1.0]], damping=1.0, split="pi")
    array([[9.]])
    """
    A, G = double(A), double(G)
    if not damping >= 0:
        msg = f"damping is {damping}; expected a number >= 0."
        raise ValueError(msg)
    if split not in ("exact", "pi"):
        msg = f"split is {split!r}; expected 'exact' or 'pi'."
        raise ValueError(msg)
    if split == "exact":
        return kron(G, A) + damping * np.eye(len(G) * len(A))
    root = np.sqrt(damping)
    mean_a, mean_g = np.trace(A) / len(A), np.trace(G) / len(G)
    if mean_a == 0 or mean_g == 0:
        return kron(root * np.eye(len(G)), root * np.eye(len(A)))
    pi = np.sqrt(mean_a / mean_g)
    return kron(G + root / pi * np.eye(len(G)), A + pi * root * np.eye(len(A)))


def direction(
    block_gradient: ArrayLike,
    A: ArrayLike,
    G: ArrayLike,
    damping: float,
    split: Split = "pi",
) -> Array:
    """Preconditioned gradient of one block, by solving with the matrix of `damped`.

    Parameters
    ----------
    block_gradient : array of shape (rows, columns) or (groups, rows, columns)
        Gradient of the mean loss.
    A : array of shape (columns, columns), with a leading groups axis if the gradient has one
        Input factor.
    G : array of shape (rows, rows), with a leading groups axis if the gradient has one
        Output-gradient factor.
    damping : float
        Added to the Fisher of the mean loss.
    split : "exact" or "pi"
        As in `damped`; each group has its own pi.

    Returns
    -------
    array of the shape of `block_gradient`, float64
        The parameters change by minus a learning rate times this.

    Raises
    ------
    ValueError
        As in `damped`, or if shapes do not fit.
    numpy.linalg.LinAlgError
        If the damped matrix is exactly singular.

    Examples
    --------
    >>> from ngd_core.reference import direction
    >>> direction([[10.0]], [[4.0]], [[1.0]], damping=1.0, split="exact")
    array([[2.]])
    """
    V, A, G = double(block_gradient), double(A), double(G)
    if V.ndim == 3:
        require_shape("A", A, (V.shape[0], V.shape[2], V.shape[2]))
        require_shape("G", G, (V.shape[0], V.shape[1], V.shape[1]))
        groups = range(len(V))
        return np.stack([direction(V[k], A[k], G[k], damping, split) for k in groups])
    if V.ndim != 2:
        msg = f"block_gradient has shape {V.shape}; expected (rows, columns), or groups of these."
        raise ValueError(msg)
    require_shape("A", A, (V.shape[1], V.shape[1]))
    require_shape("G", G, (V.shape[0], V.shape[0]))
    return np.linalg.solve(damped(A, G, damping, split), V.reshape(-1)).reshape(V.shape)
