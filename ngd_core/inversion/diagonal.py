"""Diagonal factors, kept as vectors: no matrix of their order is made, and nothing is factorised.

The second moment of one-hot inputs is of this kind (`ngd_core.factors.token_frequencies`). Beside a
matrix G, a factor A with one axis less is a diagonal; that is seen from shapes, which are static.
"""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.inversion.spd import FLOOR, fallback_code, mild_code

__all__ = ["diagonal_inverse", "diagonal_spectrum", "is_diagonal"]


def is_diagonal(A: Array, G: Array) -> bool:
    """Tell whether A is the diagonal of a factor, rather than a matrix as G is.

    Parameters
    ----------
    A : array, shape (..., d) or (..., d, d)
        Input factor, its inverse or its eigenvectors.
    G : array, shape (..., o, o)
        The output factor that goes with it.

    Returns
    -------
    bool
        Whether A has fewer axes than G.

    Examples
    --------
    >>> import numpy as np
    >>> is_diagonal(np.ones(3), np.eye(2)), is_diagonal(np.eye(3), np.eye(2))
    (True, False)
    """
    return bool(A.ndim < G.ndim)


def diagonal_inverse(
    m: Array,
    damping: Scalar,
    previous: Array,
    good: Array,
    *,
    xp: Namespace | None = None,
) -> tuple[Array, Array, Array]:
    """Inverse ``1 / (m + damping)`` of a diagonal, always finite.

    It is what `ngd_core.inversion.damped_inverse` makes of the matrix, by the same rules: the
    damping is raised to ``10 eps tr(m)`` if it is below, and where there is nothing to invert the
    previous inverse stays. Division needs no second try in float64.

    Parameters
    ----------
    m : array, shape (..., n)
        Diagonals, not negative.
    damping : float or array of shape () or (...)
        Added to `m`.
    previous : array, shape (..., n)
        Last good inverse, or ones.
    good : array of bool, shape (...)
        Whether `previous` is a good inverse.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    inverse : array, shape (..., n)
        In the dtype of `m`.
    good : array of bool, shape (...)
        Whether it is a good inverse, new or old.
    code : array of int32, shape (...)
        As in `ngd_core.types.CODE_MEANING`.

    Raises
    ------
    TypeError
        For mixed or integer arrays.
    ValueError
        If a Python `damping` is negative, or `previous` is of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> inverse, good, code = diagonal_inverse(
    ...     np.asarray([0.0, 0.5]), 0.5, np.ones(2), np.asarray(False)
    ... )
    >>> inverse, bool(good), int(code)
    (array([2., 1.]), True, 0)
    """
    xp = _checks.common_namespace(xp, m=m, previous=previous)
    _checks.floating(xp, m=m)
    _checks.rank(1, m=m)
    _checks.shape("previous", previous, tuple(m.shape), "that of m")
    _checks.nonnegative(damping=damping)
    tiny = float(xp.finfo(m.dtype).smallest_normal)
    one = _xp.ones((), like=m, xp=xp)
    damping = _xp.scalar(damping, like=m, xp=xp)
    floor = xp.sum(FLOOR * _xp.eps(m.dtype, xp=xp) * m, axis=-1)
    raised = damping < floor
    used = xp.where(raised, floor, damping)
    safe = m + used[..., None]
    usable = _xp.fits(safe, m.dtype, xp=xp) & (safe >= tiny)
    ok = (damping >= 0) & (used >= tiny) & xp.all(usable, axis=-1)
    vector = ok[..., None]
    inverse = xp.where(vector, 1 / xp.where(vector, safe, one), previous)
    code = mild_code(raised, xp=xp)
    return inverse, good | ok, fallback_code(ok, good, code, xp=xp)


def diagonal_spectrum(m: Array, *, xp: Namespace | None = None) -> tuple[Array, Array, Array]:
    """Eigenvalues of a diagonal, with the coordinate axes as its eigenvectors.

    Parameters
    ----------
    m : array, shape (..., n)
        Diagonals of positive semi-definite matrices.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    values : array, shape (..., n)
        `m` itself, in its own order, rounded up to 0 where it is negative.
    vectors : array, shape (..., n)
        Ones: the identity, as a diagonal.
    ok : array of bool, shape (...)
        False where `m` was not finite; values are 1 there.

    Raises
    ------
    TypeError
        For an integer array.

    Examples
    --------
    >>> import numpy as np
    >>> values, vectors, ok = diagonal_spectrum(np.asarray([2.0, 0.0]))
    >>> values, vectors, bool(ok)
    (array([2., 0.]), array([1., 1.]), True)
    """
    xp = _checks.common_namespace(xp, m=m)
    _checks.floating(xp, m=m)
    _checks.rank(1, m=m)
    zero, one = _xp.zeros((), like=m, xp=xp), _xp.ones(tuple(m.shape), like=m, xp=xp)
    ok = xp.all(xp.isfinite(m), axis=-1)
    return xp.where(ok[..., None], xp.maximum(m, zero), one), one, ok
