"""K-FAC and KFC by definition: factors by loops, the Kronecker product formed, then solved.

Convention. A block is ``[W b]`` of shape (rows, columns), flattened row-major, so the block of the
Fisher is approximated by ``G (x) A`` (`kron`): G over rows, A over columns. Scale: F is that of
the mean loss, g is the gradient of an example's own loss. With T shared positions, "expand" uses

``A = (1/(N T)) sum_{n,t} x x^T``  and  ``G = (1/N) sum_{m,n,t} g g^T``.

KFC (Grosse and Martens 2016, theorem 2) writes the same product with the sum over positions in the
input factor, ``Omega = (1/N) sum_{n,t} x x^T``, and the mean in the other,
``Gamma = (1/(N T)) sum_{m,n,t} g g^T``: the factor T stands in G here. Factored damping with the
trace-norm pi does not see where it stands.

With columns of a root of the loss Hessian as back-propagated vectors the product is the exact
block of the Fisher in these cases (the tests of this module hold all of them):

======================================================================== ====== ======
block                                                                    expand reduce
======================================================================== ====== ======
dense layer of any network without shared positions, one datum           exact  exact
dense layer of a deep linear network without positions, Gaussian loss    exact  exact
last convolution, Gaussian loss at every position                        exact  no
convolution before linear 1x1 convolutions, Gaussian loss everywhere     exact  no
convolution before linear 3x3 convolutions, Gaussian loss everywhere     no     no
last convolution before sum or mean pooling, Gaussian loss               no     exact
convolution before linear 1x1 convolutions, then pooling                 no     exact
convolution before a linear 3x3 one, circular padding, then pooling      no     exact
the same with zero padding or none                                       no     no
one datum with several positions, non-linear                             no     no
======================================================================== ====== ======
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference import derivatives
from ngd_core.reference._arrays import Array, double
from ngd_core.reference.images import conv_patches
from ngd_core.reference.network import Layer, Network

__all__ = ["canonical_record", "kfac_factors", "kronecker_factors"]

Sharing: TypeAlias = Literal["expand", "reduce"]


def kronecker_factors(
    a: ArrayLike, g: ArrayLike, bias: bool = True, sharing: Sharing = "expand"
) -> tuple[Array, Array]:
    """Build factors A and G of one layer, ``G (x) A`` approximating its block of the Fisher.

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


def canonical_record(layer: Layer, a: ArrayLike, g: ArrayLike) -> list[tuple[Array, Array]]:
    """Bring a layer's own layouts to those that `kronecker_factors` takes.

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

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, canonical_record
    >>> fc = Layer("dense", "fc", in_features=3, out_features=2)
    >>> [(a, g)] = canonical_record(fc, np.ones((4, 3)), np.ones((1, 4, 2)))
    >>> a.shape, g.shape
    ((4, 1, 3), (1, 4, 1, 2))
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
    """Build factors A and G of every dense and convolutional layer of a network.

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
