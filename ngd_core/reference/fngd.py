"""FNGD by definition: dense damped solves in recording epochs, looked-up coefficients after.

U has one column per example, the gradient of its own loss with respect to a layer's parameters.
The empirical Fisher of the mean loss is ``F = U U^T / n``, the mean gradient ``gbar = U 1 / n``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double, require_shape

__all__ = [
    "embedding_example_gradients",
    "example_gradients",
    "fngd_coefficients",
    "fngd_damping",
    "fngd_direction",
    "fngd_directions",
    "norm_scale_example_gradients",
]

Share: TypeAlias = Literal["position", "iteration", "sample"]
Batch: TypeAlias = tuple[Sequence[int], ArrayLike]


def example_gradients(a: ArrayLike, g: ArrayLike, bias: bool = True) -> Array:
    """Gradients of each example's loss with respect to ``[W b]``, by loops.

    Parameters
    ----------
    a : array of shape (N, T, I)
        Inputs (for a convolution its patches) of N examples at T positions, no bias column.
    g : array of shape (N, T, O)
        Gradients of each example's own loss at the layer's outputs.
    bias : bool
        Whether a coordinate 1 is appended to the inputs.

    Returns
    -------
    array of shape (O * (I + bias), N), float64
        One column per example, the block flattened row-major.

    Examples
    --------
    >>> from ngd_core.reference import example_gradients
    >>> example_gradients([[[1.0], [2.0]]], [[[3.0], [4.0]]])
    array([[11.],
           [ 7.]])
    """
    a, g = double(a), double(g)
    columns = []
    for n in range(a.shape[0]):
        u = np.zeros((g.shape[2], a.shape[2] + bias))
        for t in range(a.shape[1]):
            x = np.append(a[n, t], 1.0) if bias else a[n, t]
            u += np.outer(g[n, t], x)
        columns.append(u.reshape(-1))
    return np.stack(columns, axis=1)


def embedding_example_gradients(tokens: ArrayLike, g: ArrayLike, vocabulary: int) -> Array:
    """Gradients of each example's loss with respect to an embedding's table, by loops.

    Parameters
    ----------
    tokens : array of integers, shape (N, T)
        Rows of the table that were looked up.
    g : array of shape (N, T, O)
        Gradients at the looked-up rows.
    vocabulary : int
        Rows of the table.

    Returns
    -------
    array of shape (vocabulary * O, N), float64
        One column per example.

    Examples
    --------
    >>> from ngd_core.reference import embedding_example_gradients
    >>> embedding_example_gradients([[1, 1]], [[[3.0], [4.0]]], 2)
    array([[0.],
           [7.]])
    """
    index, g = np.asarray(tokens), double(g)
    columns = []
    for n in range(g.shape[0]):
        u = np.zeros((vocabulary, g.shape[2]))
        for t in range(g.shape[1]):
            u[index[n, t]] += g[n, t]
        columns.append(u.reshape(-1))
    return np.stack(columns, axis=1)


def norm_scale_example_gradients(normalised: ArrayLike, g: ArrayLike, bias: bool = True) -> Array:
    """Gradients of each example's loss with respect to ``[scale shift]``, by loops.

    Parameters
    ----------
    normalised : array of shape (N, T, features)
        What the scale multiplies.
    g : array of shape (N, T, features)
        Gradients at the output.
    bias : bool
        Whether there is a shift.

    Returns
    -------
    array of shape (features * (1 + bias), N), float64
        One column per example.

    Examples
    --------
    >>> from ngd_core.reference import norm_scale_example_gradients
    >>> norm_scale_example_gradients([[[2.0]]], [[[3.0]]])
    array([[6.],
           [3.]])
    """
    x, g = double(normalised), double(g)
    columns = []
    for n in range(g.shape[0]):
        u = np.zeros((g.shape[2], 1 + bias))
        for t in range(g.shape[1]):
            for i in range(g.shape[2]):
                u[i, 0] += x[n, t, i] * g[n, t, i]
                if bias:
                    u[i, 1] += g[n, t, i]
        columns.append(u.reshape(-1))
    return np.stack(columns, axis=1)


def fngd_damping(
    U: ArrayLike,
    damping: float,
    mode: Literal["relative", "absolute"] = "relative",
    floor: float = 1e-8,
) -> float:
    """Damping lambda of one layer and batch.

    Parameters
    ----------
    U : array of shape (P, n)
        Per-example gradients.
    damping : float
        Lambda, or its ratio to the mean eigenvalue of ``U^T U / n``.
    mode : "relative" or "absolute"
        Which of them.
    floor : float
        Smallest value returned.

    Returns
    -------
    float
        Lambda.

    Examples
    --------
    >>> from ngd_core.reference import fngd_damping
    >>> fngd_damping([[1.0, 0.0], [0.0, 3.0]], 2.0)
    5.0
    """
    U = double(U)
    if mode == "relative":
        n = U.shape[1]
        damping = damping * float(np.mean(np.linalg.eigvalsh(U.T @ U / n)))
    return max(floor, damping)


def fngd_direction(U: ArrayLike, damping: float) -> Array:
    """Natural gradient ``(lambda I + U U^T / n)^-1 gbar`` by the P x P matrix.

    Parameters
    ----------
    U : array of shape (P, n)
        Per-example gradients.
    damping : float
        Lambda.

    Returns
    -------
    array of shape (P,), float64
        Direction.

    Examples
    --------
    >>> from ngd_core.reference import fngd_direction
    >>> fngd_direction([[1.0, 0.0], [0.0, 2.0]], 0.5)
    array([0.5, 0.4])
    """
    U = double(U)
    P, n = U.shape
    fisher: Array = np.zeros((P, P))
    for i in range(n):
        fisher += np.outer(U[:, i], U[:, i]) / n
    return np.linalg.solve(fisher + damping * np.eye(P), np.mean(U, axis=1))


def fngd_coefficients(
    U: ArrayLike, damping: float, form: Literal["solve", "woodbury"] = "solve"
) -> Array:
    """Coefficients c of the natural gradient ``U c``.

    Parameters
    ----------
    U : array of shape (P, n)
        Per-example gradients.
    damping : float
        Lambda.
    form : "solve" or "woodbury"
        ``(n lambda I + K)^-1 1``, or the same as the identity is usually printed,
        ``(1 - (n lambda I + K)^-1 K 1) / (n lambda)``, with ``K = U^T U``.

    Returns
    -------
    array of shape (n,), float64
        Coefficients.

    Examples
    --------
    >>> from ngd_core.reference import fngd_coefficients
    >>> fngd_coefficients([[1.0, 0.0], [0.0, 2.0]], 0.5)
    array([0.5, 0.2])
    """
    U = double(U)
    n = U.shape[1]
    K, one = U.T @ U, np.ones(n)
    M = n * damping * np.eye(n) + K
    right = one if form == "solve" else K @ one
    solved: Array = np.linalg.solve(M, right)
    return solved if form == "solve" else (one - solved) / (n * damping)


def fngd_directions(
    epochs: Sequence[Sequence[Batch]],
    damping: float,
    *,
    share: Share = "position",
    damping_mode: Literal["relative", "absolute"] = "relative",
    gain: Literal["unit", "natural"] = "unit",
    refresh_epochs: int | None = None,
) -> list[list[Array]]:
    """Directions of one layer over whole epochs.

    In a recording epoch they are ``(lambda I + F)^-1 gbar``, or lambda times that, by dense
    solves. In later ones each example's gradient is weighted by a recorded coefficient: the mean
    over full batches at its position, that at its position in the same iteration, or its own. A
    coefficient from a batch of m examples used in a batch of n is multiplied by ``m / n``.

    Parameters
    ----------
    epochs : sequence of sequences of (indices, U)
        Batches by epoch and iteration: numbers of the examples in the data set, and their
        gradients as columns, shape (P, n). The first batch is a full one.
    damping : float
        As in `fngd_damping`.
    share : "position", "iteration" or "sample"
        Which coefficient is used again.
    damping_mode : "relative" or "absolute"
        As in `fngd_damping`.
    gain : "unit" or "natural"
        Whether directions are multiplied by the lambda of the batch of their coefficients.
    refresh_epochs : int or None
        Record in every so-many-th epoch rather than in the first alone.

    Returns
    -------
    list of lists of arrays of shape (P,), float64
        Directions by epoch and iteration.

    Raises
    ------
    ValueError
        If a batch does not have one gradient per index.

    Examples
    --------
    >>> from ngd_core.reference import fngd_directions
    >>> first, later = [([0], [[1.0]])], [([0], [[3.0]])]
    >>> fngd_directions([first, later], 1.0, damping_mode="absolute", gain="natural")
    [[array([0.5])], [array([1.5])]]
    """
    full = len(epochs[0][0][0])
    places: dict[object, float] = {}
    directions: list[list[Array]] = []
    for e, epoch in enumerate(epochs):
        recording = e == 0 or (refresh_epochs is not None and e % refresh_epochs == 0)
        sums: dict[int, list[float]] = {}
        directions.append([])
        for k, (indices, gradients) in enumerate(epoch):
            U = double(gradients)
            n = len(indices)
            require_shape("gradients", U, (U.shape[0], n))
            keys = [
                {"position": m, "iteration": (k, m), "sample": indices[m]}[share] for m in range(n)
            ]
            if not recording:
                directions[-1].append(U @ np.array([places[key] / n for key in keys]))
                continue
            lam = fngd_damping(U, damping, damping_mode)
            factor = lam if gain == "unit" else 1.0
            directions[-1].append(factor * fngd_direction(U, lam))
            c = factor * fngd_coefficients(U, lam)
            for m, key in enumerate(keys):
                if share != "position":
                    places[key] = n * c[m]
                elif n == full:
                    sums.setdefault(m, []).append(n * c[m])
        places |= {m: sum(values) / len(values) for m, values in sums.items()}
    return directions
