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


def _clear_pure(x: Array, least: Array, *, xp: Namespace) -> Array:
    return xp.where(xp.abs(x) < least, _xp.zeros((), like=x, xp=xp), x)


def _mix_pure(x: Array, y: Array, share: Array, *, xp: Namespace) -> Array:
    return _xp.mix(x, y, share, xp=xp)


def _square_pure(x: Array, *, xp: Namespace) -> Array:
    flat = xp.reshape(_xp.astype(x, _xp.widest(x.dtype, xp=xp), xp=xp), (-1,))
    return flat @ flat


def _divide_pure(x: Array, by: Array, *, xp: Namespace) -> Array:
    return _xp.astype(_xp.astype(x, by.dtype, xp=xp) / by, x.dtype, xp=xp)


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
    clear : callable
        ``clear(x, least, *, xp)``: `x` with 0 in place of magnitudes below `least`, an array that
        broadcasts with it; at `least` either will do.
    mix : callable
        ``mix(x, y, share, *, xp)``: ``(1 - share) x + share y`` with the 0-d array `share` of their
        dtype, in [0, 1]; finite where both are.
    square : callable
        ``square(x, *, xp)``: sum of the squares, 0-d and of float64 where the library has it. No
        square of a smaller dtype's number overflows or is lost, nor do the digits of a long sum.
    divide : callable
        ``divide(x, by, *, xp)``: `x` by the 0-d array `by`, which may be of a larger dtype and
        outside the range of x's; in the dtype of `x`, computed in that of `by`.
    warm : bool
        Whether `spd_inverse` also takes the keyword ``start``, the last inverse or the identity.
    eager : bool
        Whether `cond` looks at its condition at once, so that a choice between a cheap and a dear
        way costs no more than the one taken: under tracing both would be compiled.
    """

    spd_inverse: Callable[..., Array] = _spd_inverse_pure
    cond: Callable[..., Any] = _cond_pure
    select: Callable[..., Array] = _select_pure
    within: Callable[..., Array] = _within_pure
    clear: Callable[..., Array] = _clear_pure
    mix: Callable[..., Array] = _mix_pure
    square: Callable[..., Array] = _square_pure
    divide: Callable[..., Array] = _divide_pure
    warm: bool = False
    eager: bool = False


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

EAGER = Ops(cond=_cond_eager, eager=True)
"""For libraries that execute at once on the host (NumPy): fallbacks are computed only if needed."""
