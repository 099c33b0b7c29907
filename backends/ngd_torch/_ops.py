"""PyTorch's own factorisations for the core's table of operations."""

from __future__ import annotations

import torch

from ngd_core._typing import Array, Namespace
from ngd_core.inversion import EAGER, Ops

__all__ = ["NATIVE"]


def _spd_inverse(m: Array, *, xp: Namespace) -> Array:
    lower, info = torch.linalg.cholesky_ex(m)
    inverse = torch.cholesky_inverse(lower)
    return torch.where((info == 0)[..., None, None], inverse, torch.nan)


NATIVE = Ops(spd_inverse=_spd_inverse, cond=EAGER.cond)
"""``cholesky_ex`` and ``cholesky_inverse``, without a host synchronisation of their own.

``cond`` looks at its condition, so this table is for eager execution; under ``torch.compile`` use
`ngd_core.inversion.PURE`.
"""
