"""The few operations for which a library may have something faster than the standard.

`PURE` runs on any Array API namespace and under any tracer. A table with other entries changes
speed only: each entry must equal its pure twin, and a law holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ngd_core import _xp
from ngd_core._typing import Array, DType, Namespace
from ngd_core.inversion import triangular

__all__ = ["EAGER", "PURE", "Ops"]

Thunk = Callable[[], tuple[Array, ...]]


def _spd_inverse_pure(m: Array, *, xp: Namespace) -> Array:
    return triangular.spd_inverse(m, xp=xp)


def _cond_pure(pred: Array, true: Thunk, false: Thunk, *, xp: Namespace) -> tuple[Array, ...]:
    pairs = zip(true(), false(), strict=True)
    return tuple(xp.where(pred, x, y) for x, y in pairs)


def _cond_eager(pred: Array, true: Thunk, false: Thunk, *, xp: Namespace) -> tuple[Array, ...]:
    return true() if bool(pred) else false()


def _within_pure(
    x: Array, limit: float, *, axis: tuple[int, ...] | None = None, xp: Namespace
) -> Array:
    return xp.all(xp.abs(x) <= limit, axis=axis)


def _select_pure(pred: Array, x: Array, other: Array, *, xp: Namespace) -> Array:
    return xp.where(pred, x, other)


def _blend_pure(old: Array, new: Array, share: Array, *, xp: Namespace) -> Array:
    return _xp.blend(old, new, share, xp=xp)


@dataclass(frozen=True)
class Ops:
    """Replaceable operations.

    Parameters
    ----------
    spd_inverse : callable
        ``spd_inverse(m, *, xp) -> inverse`` of a stack of symmetric positive definite matrices,
        shape ``(..., n, n)``. It must not raise: a matrix it cannot invert comes back non-finite.
    cond : callable
        ``cond(pred, true, false, *, xp)``: the tuple of arrays that ``true()`` or ``false()``
        returns, chosen by the 0-d boolean array `pred`. The pure twin computes both; `EAGER`
        looks at `pred`, which costs a host synchronisation and cannot be traced.
    select : callable
        ``select(pred, x, other, *, xp)``: `x` where `pred`, otherwise `other`, which may have
        fewer axes; the result may be `x` itself. An array library that holds its numbers on the
        host need not go through them where `pred` is a single value.
    within : callable
        ``within(x, limit, *, axis=None, xp)``: whether all magnitudes along the axes, or all there
        are, are at most `limit`; NaN is not.
    blend : callable
        ``blend(old, new, share, *, xp)``: ``(1 - share) old + share new``, the share a 0-d array
        in [0, 1]; not finite where an operand is not, but for one with a share of 0.
    warm : bool
        Whether `spd_inverse` also takes the keyword ``start``, the last inverse or the identity.
    """

    spd_inverse: Callable[..., Array] = _spd_inverse_pure
    cond: Callable[..., Any] = _cond_pure
    select: Callable[..., Array] = _select_pure
    within: Callable[..., Array] = _within_pure
    blend: Callable[..., Array] = _blend_pure
    warm: bool = False


def all_finite(x: Array, *, axis: tuple[int, ...] | None = None, ops: Ops, xp: Namespace) -> Array:
    """Tell whether all elements are finite, along some axes or of all."""
    return ops.within(x, float(xp.finfo(x.dtype).max), axis=axis, xp=xp)


def all_fit(
    x: Array, dtype: DType, *, axis: tuple[int, ...] | None = None, ops: Ops, xp: Namespace
) -> Array:
    """Tell whether all elements are finite, and stay so when cast to `dtype`."""
    limit = min(float(xp.finfo(kind).max) for kind in (x.dtype, dtype))
    return ops.within(x, limit, axis=axis, xp=xp)


PURE = Ops()
"""Nothing but the standard; traceable."""

EAGER = Ops(cond=_cond_eager)
"""For libraries that execute at once on the host (NumPy): fallbacks are computed only if needed."""
