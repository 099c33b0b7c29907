"""Inverses through Cholesky factors, by matrix products where the standard has no solver."""

from __future__ import annotations

from ngd_core import _xp
from ngd_core._typing import Array, Namespace

__all__ = ["spd_inverse", "triangular_inverse"]

BLOCK = 64


def triangular_inverse(lower: Array, *, xp: Namespace) -> Array:
    """Inverse of lower triangular matrices, by halves.

    ``[[P, 0], [Q, R]]^-1 = [[P^-1, 0], [-R^-1 Q P^-1, R^-1]]``: all but the blocks of 64 on the
    diagonal is matrix products. The standard has no triangular solver, and general solves with
    a triangular matrix cost more than not factorising at all.

    Parameters
    ----------
    lower : array, shape (..., n, n)
        Lower triangular matrices with a non-zero diagonal; the upper part must be zero.
    xp : namespace
        Array namespace.

    Returns
    -------
    array, shape (..., n, n)
        Inverses, lower triangular up to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> triangular_inverse(np.asarray([[2.0, 0.0], [2.0, 1.0]]), xp=np)
    array([[ 0.5,  0. ],
           [-1. ,  1. ]])
    """
    n = lower.shape[-1]
    if n <= BLOCK:
        return xp.linalg.inv(lower)
    half = n // 2
    first = triangular_inverse(lower[..., :half, :half], xp=xp)
    second = triangular_inverse(lower[..., half:, half:], xp=xp)
    corner = -(second @ (lower[..., half:, :half] @ first))
    zero = _xp.zeros((*lower.shape[:-2], half, n - half), like=lower, xp=xp)
    top = xp.concat([first, zero], axis=-1)
    return xp.concat([top, xp.concat([corner, second], axis=-1)], axis=-2)


def spd_inverse(m: Array, *, xp: Namespace) -> Array:
    """Inverse of symmetric positive definite matrices, ``L^-T L^-1`` with ``m = L L^T``.

    Parameters
    ----------
    m : array, shape (..., n, n)
        Matrices that are safely positive definite (see `ngd_core.inversion.damped_inverse`): what
        a library does with others differs (an exception, NaN, or garbage).
    xp : namespace
        Array namespace.

    Returns
    -------
    array, shape (..., n, n)
        Symmetric inverses.

    Examples
    --------
    >>> import numpy as np
    >>> spd_inverse(np.asarray([[4.0]]), xp=np)
    array([[0.25]])
    """
    inverse = triangular_inverse(xp.linalg.cholesky(m), xp=xp)
    return inverse.mT @ inverse
