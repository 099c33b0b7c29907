"""PyTorch's own factorisations for the core's table of operations."""

from __future__ import annotations

import torch

from ngd_core._typing import Array, Namespace
from ngd_core.inversion import EAGER, PURE, Ops

__all__ = ["NATIVE", "mix_in_place"]


def _spd_inverse(m: Array, *, xp: Namespace) -> Array:
    lower, info = torch.linalg.cholesky_ex(m)
    inverse = torch.cholesky_inverse(lower)
    ok = info == 0
    nan = inverse.new_tensor(torch.nan)
    return _select(ok if ok.ndim == 0 else ok[..., None, None], inverse, nan)


def _select(pred: Array, x: Array, other: Array, *, xp: Namespace | None = None) -> Array:
    if pred.ndim == 0 and _on_host(pred) and bool(pred):
        return x
    return torch.where(pred, x, other)


def _on_host(x: torch.Tensor) -> bool:
    """Tell whether a look at a number waits for nothing."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _within(x: Array, limit: float, *, axis: tuple[int, ...] | None = None, xp: Namespace) -> Array:
    """Least and largest, which cost a tenth of a mask of all numbers; for all of them a sum first.

    A sum that is finite has none in it that is not.
    """
    if not x.numel():
        return PURE.within(x, limit, axis=axis, xp=xp)
    every = axis is None and limit >= torch.finfo(x.dtype).max
    if every and _on_host(x) and bool(torch.isfinite(total := x.sum())):
        return torch.isfinite(total)
    axis = tuple(range(x.ndim)) if axis is None else axis
    return (torch.amin(x, axis) >= -limit) & (torch.amax(x, axis) <= limit)


def _clear(x: Array, least: Array, *, xp: Namespace) -> Array:
    """In one pass where the bound is a single number on the host; ``where`` takes five times it."""
    if least.numel() == 1 and _on_host(least):
        return torch.nn.functional.hardshrink(x, float(least))
    return PURE.clear(x, least, xp=xp)


def _mix(x: Array, y: Array, share: Array, *, xp: Namespace) -> Array:
    """One product and one product added."""
    if not (_on_host(x) and _on_host(share)):
        return PURE.mix(x, y, share, xp=xp)
    return torch.mul(x, float(1 - share)).add_(y, alpha=float(share))


def mix_in_place(x: Array, y: Array, share: Array, *, xp: Namespace) -> Array:
    """Average in the memory of x, where new memory takes as long as all the arithmetic."""
    if not (_on_host(x) and _on_host(share)):
        return x.copy_(PURE.mix(x, y, share, xp=xp))
    return x.mul_(float(1 - share)).add_(y, alpha=float(share))


BLOCK = 256
"""Numbers whose squares are added in float32, a few to each lane of a processor."""
SQUARES = 2.0**-80, 2.0**120
"""Sums of float32 squares in which none was too large, and those too small do not count."""


def _square(x: Array, *, xp: Namespace) -> Array:
    """Norms of blocks in float32, added as squares in float64; all in float64 out of range."""
    if x.dtype != torch.float32 or not _on_host(x) or x.numel() < BLOCK:
        return PURE.square(x, xp=xp)
    flat = x.reshape(-1)
    whole = flat.numel() // BLOCK * BLOCK
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, BLOCK), dim=1)
    square = PURE.square(norms, xp=xp) + PURE.square(flat[whole:], xp=xp)
    return square if SQUARES[0] <= float(square) <= SQUARES[1] else PURE.square(x, xp=xp)


DIVISORS = 2.0**-100, 2.0**100
"""Divisors that are nothing special in float32, nor are their reciprocals."""


def _divide(x: Array, by: Array, *, xp: Namespace) -> Array:
    """One pass, by a number of the dtype of x where that has it."""
    if x.dtype == torch.float32 and _on_host(x) and _on_host(by):
        number = float(by)
        if DIVISORS[0] <= abs(number) <= DIVISORS[1]:
            return x / number
    return PURE.divide(x, by, xp=xp)


NATIVE = Ops(
    spd_inverse=_spd_inverse,
    cond=EAGER.cond,
    select=_select,
    within=_within,
    clear=_clear,
    eager=True,
    mix=_mix,
    square=_square,
    divide=_divide,
)
"""``cholesky_ex`` and ``cholesky_inverse``, without a host synchronisation of their own; a look at
a single condition in place of ``where``, which goes through all numbers, where that waits for none;
sums of squares and quotients of float32 numbers without a copy of them in float64.

``cond`` looks at its condition, so this table is for eager execution; under ``torch.compile`` use
`ngd_core.inversion.PURE`.
"""
