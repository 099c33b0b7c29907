"""Tensors of a state by their paths: of dicts, tuples and NamedTuples within each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ngd_core.state import flatten, mapped

__all__ = ["is_stand_in", "leaves", "rebuilt", "stand_in"]


def stand_in(x: torch.Tensor) -> torch.Tensor:
    """One number in place of a tensor that is kept elsewhere, of its shape and type."""
    return x.new_zeros(()).expand(x.shape)


def is_stand_in(x: torch.Tensor) -> bool:
    """Tell whether a tensor is nothing but one number."""
    return x.ndim > 0 and not any(x.stride())


def leaves(tree: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """Tensors of a state with their paths."""
    return flatten(tree).items()


def rebuilt(tree: Any, f: Callable[..., Any]) -> Any:
    """Build the same structure of other tensors, ``f(path, tensor)``."""
    return mapped(f, tree)
