"""SNGD by definition: local Fisher matrices by loops, dense solves, training through ``w'``.

Convention. A block is ``[W b]`` of shape (rows, columns), flattened row-major. Under the linear
metric its Fisher is ``I (x) G``, with one G for all rows; under the ReLU metric a block diagonal
of one ``G_j`` for each row. Means are over examples and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double, require_shape
from ngd_core.reference.kfac import canonical_record
from ngd_core.reference.network import Network

__all__ = [
    "local_damping",
    "local_direction",
    "local_fisher",
    "local_fishers",
    "moving_average",
    "reconstructed_descent",
    "symmetric_power",
]

DampingMode: TypeAlias = Literal["relative", "absolute", "trace"]


def local_fisher(a: ArrayLike, z: ArrayLike | None = None, bias: bool = True) -> Array:
    """Local Fisher matrix of one layer.

    Linear, without `z`: ``G = (1/(N T)) sum_{n,t} x x^T``.

    ReLU, for each output j: ``G_j = (1/(N T)) sum_{n,t} s(z_j)^2 x x^T`` with the logistic
    sigmoid s, the slope of a smoothed ReLU.

    Parameters
    ----------
    a : array of shape (N, T, I)
        Inputs (for a convolution its patches) of N examples at T positions, no bias column.
    z : array of shape (N, T, O), optional
        Outputs of the layer.
    bias : bool
        Whether x is ``[a; 1]`` or a.

    Returns
    -------
    array of shape (I + bias, I + bias) or (O, I + bias, I + bias), float64
        G, or all ``G_j``.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> from ngd_core.reference import local_fisher
    >>> local_fisher([[[1.0]], [[3.0]]])
    array([[5., 2.],
           [2., 1.]])
    >>> local_fisher([[[2.0]]], z=[[[0.0]]], bias=False)
    array([[[1.]]])
    """
    a = double(a)
    if a.ndim != 3:
        msg = f"a has shape {a.shape}; expected (N, T, I)."
        raise ValueError(msg)
    examples, positions, inputs = a.shape
    columns = inputs + bias
    if z is None:
        slopes = np.ones((examples, positions, 1))
    else:
        z = double(z)
        if z.ndim != 3 or z.shape[:2] != a.shape[:2]:
            msg = f"z has shape {z.shape}; expected ({examples}, {positions}, O)."
            raise ValueError(msg)
        slopes = np.reciprocal(1.0 + np.exp(-z))
    G = np.zeros((slopes.shape[2], columns, columns))
    for n in range(examples):
        for t in range(positions):
            x = np.append(a[n, t], 1.0) if bias else a[n, t]
            for j in range(len(G)):
                G[j] += slopes[n, t, j] ** 2 * np.outer(x, x) / (examples * positions)
    return G[0] if z is None else G


def local_fishers(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    relu: Collection[str] = (),
) -> dict[str, Array]:
    """Local Fisher matrices of every dense and convolutional layer of a network.

    Parameters
    ----------
    network : Network
        Description of the layers.
    params : mapping of str to array
        Blocks by name.
    x : array of shape (N, ...)
        Inputs.
    relu : collection of str
        Names of the layers that take the ReLU metric.

    Returns
    -------
    dict of str to array
        As `local_fisher`; with a leading groups axis if the block has one.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network, local_fishers
    >>> network = Network((Layer("dense", "fc", in_features=1, out_features=1),))
    >>> local_fishers(network, {"fc": np.zeros((1, 2))}, [[3.0]])["fc"]
    array([[9., 3.],
           [3., 1.]])
    """
    inputs: dict[str, Array] = {}
    outputs: dict[str, Array] = {}
    network.forward(params, x, record=inputs, outputs=outputs)
    found = {}
    for name, layer in network.parametric.items():
        if layer.kind not in ("dense", "conv2d"):
            continue
        parts = [
            local_fisher(a, z[0] if name in relu else None, layer.options["bias"])
            for a, z in canonical_record(layer, inputs[name], outputs[name][None])
        ]
        found[name] = np.stack(parts) if len(parts) > 1 else parts[0]
    return found


def local_damping(G: ArrayLike, damping: float, mode: DampingMode = "relative") -> float:
    """Compute eps, which is added to the diagonal of one local Fisher matrix.

    "relative": ``damping tr(G) / dim``; "absolute": ``damping``; "trace": ``damping tr(G)``.

    Parameters
    ----------
    G : array of shape (d, d)
        Matrix.
    damping : float
        Damping in the units of the mode.
    mode : "relative", "absolute" or "trace"
        Its units.

    Returns
    -------
    float
        eps.

    Raises
    ------
    ValueError
        If the damping is negative or the mode unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import local_damping
    >>> [local_damping(3 * np.eye(2), 0.5, mode) for mode in ("relative", "absolute", "trace")]
    [1.5, 0.5, 3.0]
    """
    G = double(G)
    if not damping >= 0:
        msg = f"damping is {damping}; expected a number >= 0."
        raise ValueError(msg)
    units = {"relative": np.trace(G) / len(G), "absolute": 1.0, "trace": np.trace(G)}
    if mode not in units:
        msg = f"mode is {mode!r}; expected one of {list(units)}."
        raise ValueError(msg)
    return float(damping * units[mode])


def local_direction(
    block_gradient: ArrayLike,
    G: ArrayLike,
    damping: float,
    mode: DampingMode = "relative",
) -> Array:
    """Solve with the dense Fisher of a block, ``I (x) (G + eps I)`` or the diagonal of such.

    Parameters
    ----------
    block_gradient : array of shape (rows, columns) or (groups, rows, columns)
        Gradient of the mean loss.
    G : array of shape (columns, columns) or (rows, columns, columns)
        Linear or ReLU local Fisher matrices; with a leading groups axis if the gradient has one.
    damping : float
        Damping in the units of the mode.
    mode : "relative", "absolute" or "trace"
        As in `local_damping`; each matrix has its own eps.

    Returns
    -------
    array of the shape of `block_gradient`, float64
        The weights change by minus a learning rate times this.

    Raises
    ------
    ValueError
        As in `local_damping`, or if shapes do not fit.
    numpy.linalg.LinAlgError
        If the damped matrix is exactly singular.

    Examples
    --------
    >>> from ngd_core.reference import local_direction
    >>> local_direction([[10.0]], [[4.0]], damping=1.0, mode="absolute")
    array([[2.]])
    """
    V, G = double(block_gradient), double(G)
    if V.ndim == 3:
        return np.stack([local_direction(V[k], G[k], damping, mode) for k in range(len(V))])
    if V.ndim != 2:
        msg = f"block_gradient has shape {V.shape}; expected (rows, columns), or groups of these."
        raise ValueError(msg)
    rows, columns = V.shape
    if G.ndim == 2:
        require_shape("G", G, (columns, columns))
        G = np.stack([G] * rows)
    require_shape("G", G, (rows, columns, columns))
    fisher = np.zeros((rows * columns, rows * columns))
    for j in range(rows):
        place = slice(j * columns, (j + 1) * columns)
        fisher[place, place] = G[j] + local_damping(G[j], damping, mode) * np.eye(columns)
    return np.linalg.solve(fisher, V.reshape(-1)).reshape(V.shape)


def symmetric_power(M: ArrayLike, p: float) -> Array:
    """Power of a symmetric positive definite matrix by its eigenvalues.

    Parameters
    ----------
    M : array of shape (d, d)
        Matrix.
    p : float
        Power.

    Returns
    -------
    array of shape (d, d), float64
        ``M^p``.

    Examples
    --------
    >>> from ngd_core.reference import symmetric_power
    >>> symmetric_power([[4.0, 0.0], [0.0, 9.0]], 0.5)
    array([[2., 0.],
           [0., 3.]])
    """
    values, vectors = np.linalg.eigh(double(M))
    total = np.zeros((len(values), len(values)))
    for k, value in enumerate(values):
        total += value**p * np.outer(vectors[:, k], vectors[:, k])
    return total


def moving_average(
    batches: Sequence[ArrayLike], decay: float, start: ArrayLike | None = None
) -> Array:
    """Exponential moving average of the matrices of batches of equal size.

    Without a start, ``sum_k decay^(t-k) G_k / sum_k decay^(t-k)``. With one, the recursion
    ``G <- decay G + (1 - decay) G_k`` from there.

    Parameters
    ----------
    batches : sequence of arrays of one shape
        ``G_1, ..., G_t``.
    decay : float
        Weight kept by older matrices.
    start : array of that shape, optional
        ``G_0``.

    Returns
    -------
    array of that shape, float64
        ``G_t``.

    Examples
    --------
    >>> from ngd_core.reference import moving_average
    >>> moving_average([[1.0], [4.0]], 0.5), moving_average([[1.0], [4.0]], 0.5, start=[2.0])
    (array([3.]), array([2.75]))
    """
    matrices = [double(G) for G in batches]
    if start is not None:
        G = double(start)
        for batch in matrices:
            G = decay * G + (1 - decay) * batch
        return G
    weights = [decay ** (len(matrices) - 1 - k) for k in range(len(matrices))]
    weighted = [w * G for w, G in zip(weights, matrices, strict=True)]
    total: Array = np.sum(weighted, axis=0) / sum(weights)
    return total


def reconstructed_descent(
    gradient: Callable[[Array, int], ArrayLike],
    weights: ArrayLike,
    metrics: Mapping[int, ArrayLike],
    steps: int,
    lr: float,
    momentum: float = 0.0,
    reproject: Collection[str] = ("weights", "momentum"),
) -> list[Array]:
    """Train a block through a local Fisher layer: gradient descent on ``w' = w M^(1/2)``.

    Parameters
    ----------
    gradient : callable
        ``gradient(w, k)``: of the loss at the weights w in step k.
    weights : array of shape (rows, columns)
        Where to start.
    metrics : mapping of int to array of shape (columns, columns)
        Damped metric M that comes into force before step k; the identity until the first.
    steps : int
        Steps.
    lr : float
        Step size.
    momentum : float
        Heavy-ball coefficient, of a buffer beside ``w'``.
    reproject : collection of "weights", "momentum"
        What is carried over when the metric changes; what is not keeps its entries.

    Returns
    -------
    list of arrays of shape (rows, columns)
        Weights after each step.

    Examples
    --------
    >>> from ngd_core.reference import reconstructed_descent
    >>> reconstructed_descent(lambda w, k: [[6.0]], [[1.0]], {0: [[4.0]]}, steps=1, lr=1.0)
    [array([[-0.5]])]
    """
    inner = double(weights)
    buffer = np.zeros_like(inner)
    inverse = np.eye(inner.shape[1])
    path = []
    for k in range(steps):
        if k in metrics:
            new = symmetric_power(metrics[k], 0.5)
            if "weights" in reproject:
                inner = inner @ inverse @ new
            if "momentum" in reproject:
                buffer = buffer @ inverse @ new
            inverse = symmetric_power(metrics[k], -0.5)
        grad = double(gradient(inner @ inverse, k)) @ inverse
        buffer = momentum * buffer + grad
        inner = inner - lr * buffer
        path.append(inner @ inverse)
    return path
