"""Inverses through Cholesky factors, by matrix products where the standard has no solver."""

from __future__ import annotations

from ngd_core import _xp
from ngd_core._typing import Array, Namespace

__all__ = ["spd_inverse"]

BLOCK = 64
MARGIN = 4.0
"""Least eigenvalue of a block that is factorised, in units of ``eps * tr(m)``."""


def spd_inverse(m: Array, *, xp: Namespace) -> Array:
    """Inverse of symmetric positive definite matrices, ``L^-T L^-1`` with ``m = L L^T``.

    By halves, ``[[P, .], [Q, R]]`` with the Schur complement ``R - Q P^-1 Q^T``: all but the
    blocks of 64 on the diagonal is matrix products. The standard has no triangular solver, and
    its Cholesky raises in some libraries; a block's eigenvalues say beforehand if it would.

    Parameters
    ----------
    m : array, shape (..., n, n)
        Finite symmetric matrices.
    xp : namespace
        Array namespace.

    Returns
    -------
    array, shape (..., n, n)
        Symmetric inverses; NaN where a matrix is not safely positive definite, which is where its
        least eigenvalue is below some ``eps tr(m)``.

    Examples
    --------
    >>> import numpy as np
    >>> spd_inverse(np.asarray([[4.0]]), xp=np)
    array([[0.25]])
    """
    trace = xp.sum(xp.linalg.diagonal(m), axis=-1)
    root, ok = _inverse_root(m, MARGIN * _xp.eps(m.dtype, xp=xp) * trace, xp=xp)
    nan = _xp.full((), float("nan"), like=m, xp=xp)
    return xp.where(ok[..., None, None], root.mT @ root, nan)


def _inverse_root(m: Array, least: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Lower triangular ``L^-1``, and whether all blocks' eigenvalues are above `least`."""
    n = m.shape[-1]
    if n <= BLOCK:
        identity = _xp.eye(n, like=m, xp=xp)
        ok = xp.linalg.eigvalsh(m)[..., 0] > least
        return xp.linalg.inv(xp.linalg.cholesky(xp.where(ok[..., None, None], m, identity))), ok
    half = n // 2
    first, first_ok = _inverse_root(m[..., :half, :half], least, xp=xp)
    lower = m[..., half:, :half] @ first.mT
    second, second_ok = _inverse_root(m[..., half:, half:] - lower @ lower.mT, least, xp=xp)
    zero = _xp.zeros((*m.shape[:-2], half, n - half), like=m, xp=xp)
    top = xp.concat([first, zero], axis=-1)
    corner = -(second @ (lower @ first))
    root = xp.concat([top, xp.concat([corner, second], axis=-1)], axis=-2)
    return root, first_ok & second_ok
