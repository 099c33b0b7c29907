"""Layers dealt out to workers that invert them, by what that costs."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from ngd_core.types import LayerSpec

__all__ = ["dealt"]


def dealt(specs: Iterable[LayerSpec], workers: int) -> dict[LayerSpec, int]:
    """Worker for each layer: the dearest first, each to the worker with least to do so far.

    Parameters
    ----------
    specs : iterable of LayerSpec
        Layers; their order plays no part.
    workers : int
        Number of workers.

    Returns
    -------
    dict of LayerSpec to int
        Worker, from 0, for each layer.

    Examples
    --------
    >>> from ngd_core import LayerSpec
    >>> specs = [LayerSpec(name, "dense", 3, k) for k, name in enumerate("abc", 1)]
    >>> [(spec.name, worker) for spec, worker in dealt(specs, 2).items()]
    [('c', 0), ('b', 1), ('a', 1)]
    """
    load = [(0, worker) for worker in range(workers)]
    whose = {}
    for spec in sorted(specs, key=lambda spec: (-_cost(spec), spec.name)):
        work, worker = heapq.heappop(load)
        whose[spec] = worker
        heapq.heappush(load, (work + _cost(spec), worker))
    return whose


def _cost(spec: LayerSpec) -> int:
    """Of inverting a layer's factors; an embedding's input factor is diagonal."""
    columns = spec.columns if spec.kind == "embedding" else spec.columns**3
    return math.prod(spec.stack) * (columns + spec.rows**3)
