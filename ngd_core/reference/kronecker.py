"""Kronecker-factored blocks as dense matrices: the product, its damping, the solve."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double, require_shape

__all__ = ["damped", "direction", "kron"]

Split: TypeAlias = Literal["exact", "pi"]


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
    ``pi = sqrt((tr A / dim A) / (tr G / dim G))`` (Martens and Grosse 2015).

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
