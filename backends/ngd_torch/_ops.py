"""PyTorch's own factorisations for the core's table of operations."""

from __future__ import annotations

import torch

from ngd_core._typing import Array, Namespace
from ngd_core.inversion import EAGER, PURE, Ops

__all__ = ["NATIVE"]


def _spd_inverse(m: Array, *, xp: Namespace) -> Array:
    lower, info = torch.linalg.cholesky_ex(m)
    inverse = torch.cholesky_inverse(lower)
    ok = info == 0
    nan = inverse.new_tensor(torch.nan)
    return _select(ok if ok.ndim == 0 else ok[..., None, None], inverse, nan)


def _select(pred: Array, x: Array, other: Array, *, xp: Namespace | None = None) -> Array:
    on_host = pred.ndim == 0 and pred.device.type == "cpu"
    if on_host and not torch.compiler.is_compiling() and bool(pred):
        return x
    return torch.where(pred, x, other)


def _within(x: Array, limit: float, *, axis: tuple[int, ...] | None = None, xp: Namespace) -> Array:
    """Least and largest, which cost a tenth of a mask of all numbers."""
    if not x.numel():
        return PURE.within(x, limit, axis=axis, xp=xp)
    axis = tuple(range(x.ndim)) if axis is None else axis
    return (torch.amin(x, axis) >= -limit) & (torch.amax(x, axis) <= limit)


def _blend(old: Array, new: Array, share: Array, *, xp: Namespace) -> Array:
    return torch.lerp(old, new, share)


NATIVE = Ops(
    spd_inverse=_spd_inverse, cond=EAGER.cond, select=_select, within=_within, blend=_blend
)
"""``cholesky_ex`` and ``cholesky_inverse``, without a host synchronisation of their own; a look at
a single condition in place of ``where``, which goes through all numbers, where that waits for
none; an average in one pass.

``cond`` looks at its condition, so this table is for eager execution; under ``torch.compile`` use
`ngd_core.inversion.PURE`.
"""
