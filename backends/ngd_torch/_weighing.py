"""Weights of the examples in a gradient, asked for in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["Weigh", "per_row"]

Weigh = Callable[[int], torch.Tensor]
"""Weights of the rows of an input, given their number."""


def per_row(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One value a row of x, beside its other axes."""
    return v.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
