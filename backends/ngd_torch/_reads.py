"""Weights that a forward pass reads in other ways than by calling their layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["read_elsewhere"]


def read_elsewhere(
    outputs: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor], calls: Mapping[str, int]
) -> list[str]:
    """Names of weights that outputs depend on in more ways than their layers were called.

    Ways are edges of the outputs' graph, counted once through: a weight that is cast or turned
    first, or read in a segment that is compiled or recomputed, may show fewer, never more.
    """
    reads = _reads(outputs, {id(w): name for name, w in weights.items()})
    return sorted(name for name, count in reads.items() if count > calls.get(name, 0))


def _reads(outputs: Sequence[torch.Tensor], names: Mapping[int, str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    waiting: list[Any] = [out.grad_fn for out in outputs]
    known: set[Any] = set(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is None:
                continue
            name = names.get(id(getattr(node, "variable", None)))
            if name is not None:
                counts[name] = counts.get(name, 0) + 1
            elif node not in known:
                known.add(node)
                waiting.append(node)
    return counts
