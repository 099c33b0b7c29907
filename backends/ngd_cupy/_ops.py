"""CuPy's own factorisations for the core's table of operations, and whether they succeeded.

cuSOLVER reports a failed factorisation by a status code, which CuPy drops, because looking at it
would wait for the device: what a failed one has left comes back as if it were a Cholesky factor.
"""

from __future__ import annotations

from collections.abc import Callable

from ngd_core import _xp
from ngd_core._typing import Array, Namespace
from ngd_core.inversion import EAGER, Ops

__all__ = ["NATIVE", "cholesky_ops"]

SLACK = 4.0
"""Largest residual on a vector v, in units of ``(n+1) eps sqrt(m_ii) sum_j sqrt(m_jj) v_j``.

Rounding in the factorisation alone stays below 1 or so (Higham, Accuracy and Stability of
Numerical Algorithms, theorem 10.3); the rest is for the products that look at it [derived].
"""


def cholesky_ops(
    cholesky: Callable[[Array], Array], solve_lower: Callable[[Array, Array], Array]
) -> Ops:
    """Operations of a library whose Cholesky factorisation fails in silence.

    A factor L of m is taken only if its pivots are positive and ``L L^T v - m v`` is rounding, for
    one vector v without zeros: two matrix-vector products, and no wait for the device. The
    inverse is ``L^-T L^-1``.

    Parameters
    ----------
    cholesky : callable
        Of matrices, shape (..., n, n), to lower triangles; where one is not positive definite it
        may return anything of that shape.
    solve_lower : callable
        ``solve_lower(lower, b)``: X with ``lower X = b``, all of shape (..., n, n).

    Returns
    -------
    Ops
        With `EAGER`'s ``cond``, which looks at one number on the device.

    Examples
    --------
    >>> import numpy as np
    >>> ops = cholesky_ops(np.linalg.cholesky, np.linalg.solve)
    >>> ops.spd_inverse(np.asarray([[4.0]]), xp=np)
    array([[0.25]])
    """

    def spd_inverse(m: Array, *, xp: Namespace) -> Array:
        lower = cholesky(m)
        identity = _xp.eye(m.shape[-1], like=m, xp=xp)
        root = solve_lower(lower, xp.broadcast_to(identity, m.shape))
        ok = _is_root(lower, m, xp=xp)
        nan = _xp.full((), float("nan"), like=m, xp=xp)
        return xp.where(ok[..., None, None], root.mT @ root, nan)

    return Ops(spd_inverse=spd_inverse, cond=EAGER.cond, eager=True)


def _is_root(lower: Array, m: Array, *, xp: Namespace) -> Array:
    """Whether ``lower lower^T`` is m, as far as its pivots and one vector tell."""
    n = m.shape[-1]
    probe = 1.0 + xp.cos(_xp.arange(n, like=m, xp=xp))[:, None] / 2.0
    residual = xp.abs(lower @ (lower.mT @ probe) - m @ probe)
    diagonal = xp.linalg.diagonal(m)
    sizes = xp.sqrt(xp.maximum(diagonal, xp.zeros_like(diagonal)))[..., None]
    bound = SLACK * (n + 1) * _xp.eps(m.dtype, xp=xp) * sizes * (sizes.mT @ probe)
    pivots = xp.linalg.diagonal(lower)
    return xp.all(pivots > 0, axis=-1) & xp.all(residual <= bound, axis=(-2, -1))


def _cholesky(m: Array) -> Array:
    import cupy

    return cupy.linalg.cholesky(m)


def _solve_lower(lower: Array, b: Array) -> Array:
    from cupyx.scipy.linalg import solve_triangular

    return solve_triangular(lower, b, lower=True)


NATIVE = cholesky_ops(_cholesky, _solve_lower)
"""cuSOLVER's potrf and cuBLAS' trsm, in stacks too, checked; for arrays of CuPy alone.

The optimizers take the core's own `ngd_core.inversion.PURE` until a GPU has been measured; pass
``ngd_core.KFAC(ops=NATIVE)`` to `NaturalGradient` for this one.
"""
