"""Projective K-FAC by definition: every inverse a full matrix, every average a weighted sum.

The published method (Kaul and Lall 2023) is known to us from its authors' code alone. With c = 0
`lifted_inverse` is what that code applies; the values of c otherwise, and the damping, are choices
of this library.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double, require_shape
from ngd_core.reference.kronecker import kron

__all__ = [
    "dominant_eigenvectors",
    "followed_inverse",
    "lifted_inverse",
    "projective_direction",
    "weighted_average",
]


def dominant_eigenvectors(M: ArrayLike, rank: int) -> Array:
    """Eigenvectors of the largest eigenvalues.

    Parameters
    ----------
    M : array of shape (d, d)
        Symmetric matrix.
    rank : int
        How many.

    Returns
    -------
    array of shape (d, rank), float64
        Orthonormal columns, the largest eigenvalue's first.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import dominant_eigenvectors
    >>> np.abs(dominant_eigenvectors([[1.0, 0.0], [0.0, 2.0]], 1))
    array([[0.],
           [1.]])
    """
    values, vectors = np.linalg.eigh(double(M))
    order = np.argsort(values)[::-1]
    return vectors[:, order[:rank]]


def lifted_inverse(M: ArrayLike, basis: ArrayLike, damping: float, outside: float) -> Array:
    """Inverse of a damped matrix within a basis, c on the rest, as a full matrix.

    ``P (P^T M P + damping I)^-1 P^T + c (I - P P^T)``.

    Parameters
    ----------
    M : array of shape (d, d)
        Positive semi-definite matrix.
    basis : array of shape (d, r)
        Orthonormal columns P.
    damping : float
        Added to the diagonal within the basis.
    outside : float
        The factor c.

    Returns
    -------
    array of shape (d, d), float64
        Replacement for ``(M + damping I)^-1``.

    Examples
    --------
    >>> from ngd_core.reference import lifted_inverse
    >>> lifted_inverse([[3.0, 0.0], [0.0, 1.0]], [[1.0], [0.0]], damping=1.0, outside=0.5)
    array([[0.25, 0.  ],
           [0.  , 0.5 ]])
    """
    M, P = double(M), double(basis)
    d, r = P.shape
    require_shape("M", M, (d, d))
    inside = np.linalg.inv(P.T @ M @ P + damping * np.eye(r))
    lifted: Array = P @ inside @ P.T + outside * (np.eye(d) - P @ P.T)
    return lifted


def weighted_average(
    batches: Sequence[ArrayLike], counts: Sequence[int], decays: Sequence[float]
) -> Array:
    """Average of batch means, ``sum_k w_k S_k / sum_k w_k``, older batches discounted.

    Parameters
    ----------
    batches : sequence of arrays of one shape
        Means ``S_k``, the oldest first.
    counts : sequence of int
        Examples in each.
    decays : sequence of float
        What was kept of all older ones when each came; the first one's has no effect.

    Returns
    -------
    array, float64
        With ``w_k = counts_k decay_{k+1} ... decay_K``.

    Examples
    --------
    >>> from ngd_core.reference import weighted_average
    >>> weighted_average([[1.0], [4.0]], [4, 4], [0.5, 0.5])
    array([3.])
    """
    weights = [count * np.prod(decays[k + 1 :]) for k, count in enumerate(counts)]
    total = np.zeros_like(double(batches[0]))
    for weight, batch in zip(weights, batches, strict=True):
        total += weight * double(batch)
    mean: Array = total / np.sum(weights)
    return mean


def followed_inverse(
    C: ArrayLike, damping: float, batches: Sequence[ArrayLike], alpha: float
) -> Array:
    """Inverse that the recursion must have after some batches, from its closed form.

    ``(C_k + alpha^k damping I)^-1`` where ``C_k = alpha C_{k-1} + (1 - alpha) S_k``.

    Parameters
    ----------
    C : array of shape (n, n)
        Average when the inverse was last made anew.
    damping : float
        Added to it then.
    batches : sequence of arrays of shape (n, n)
        Second moments ``S_k`` of the batches since.
    alpha : float
        Weight that each batch leaves to the older ones.

    Returns
    -------
    array of shape (n, n), float64
        Inverse.

    Examples
    --------
    >>> from ngd_core.reference import followed_inverse
    >>> followed_inverse([[4.0]], 1.0, [[[2.0]]], alpha=0.5)
    array([[0.28571429]])
    """
    C = double(C)
    for batch in batches:
        C = alpha * C + (1 - alpha) * double(batch)
    return np.linalg.inv(C + alpha ** len(batches) * damping * np.eye(len(C)))


def projective_direction(
    block_gradient: ArrayLike,
    A: ArrayLike,
    G: ArrayLike,
    damping: float,
    basis_a: ArrayLike | None = None,
    basis_g: ArrayLike | None = None,
    complement: bool = True,
) -> Array:
    """Preconditioned gradient of one block, by the product of the two full inverses.

    The damping is split by ``pi = sqrt((tr A / dim A) / (tr G / dim G))``, as in `damped`. On what
    a basis leaves out acts ``c = 1 / (delta + tau)``, delta the factor's damping and tau the mean
    of its eigenvalues there, or c = 0.

    Parameters
    ----------
    block_gradient : array of shape (rows, columns)
        Gradient of the mean loss.
    A : array of shape (columns, columns)
        Input factor.
    G : array of shape (rows, rows)
        Output-gradient factor.
    damping : float
        Added to the Fisher of the mean loss.
    basis_a, basis_g : array of orthonormal columns, or None
        Bases of A and of G; None for a factor that is inverted as it is.
    complement : bool
        Whether c is ``1 / (delta + tau)`` or 0.

    Returns
    -------
    array of shape (rows, columns), float64
        The parameters change by minus a learning rate times this.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> from ngd_core.reference import projective_direction
    >>> projective_direction([[9.0]], [[4.0]], [[1.0]], damping=1.0)
    array([[1.]])
    """
    V, A, G = double(block_gradient), double(A), double(G)
    require_shape("A", A, (V.shape[1], V.shape[1]))
    require_shape("G", G, (V.shape[0], V.shape[0]))
    mean_a, mean_g = np.trace(A) / len(A), np.trace(G) / len(G)
    pi = np.sqrt(mean_a / mean_g) if mean_a > 0 and mean_g > 0 else 1.0
    inverse_a = _inverse(A, basis_a, pi * np.sqrt(damping), complement)
    inverse_g = _inverse(G, basis_g, np.sqrt(damping) / pi, complement)
    return (kron(inverse_g, inverse_a) @ V.reshape(-1)).reshape(V.shape)


def _inverse(M: Array, basis: ArrayLike | None, damping: float, complement: bool) -> Array:
    if basis is None:
        return np.linalg.inv(M + damping * np.eye(len(M)))
    P = double(basis)
    d, r = P.shape
    rest = np.eye(d) - P @ P.T
    tail = np.trace(rest @ M @ rest) / (d - r)
    return lifted_inverse(M, P, damping, 1 / (damping + tail) if complement else 0.0)
