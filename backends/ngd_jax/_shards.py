"""A `shard_map` in a loss: how it splits the examples, and the same with more in and out.

Its body sees a shard of the examples. Records are put together of what all shards read, so they
are those of the whole batch, in the sharding of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import PartitionSpec

from ngd_jax._sites import Path, Refused, Site

__all__ = ["called", "divided", "parts", "whole"]


def divided(
    eqn: Any, twin: Any, data: Sequence[bool], leaves: Sequence[bool]
) -> tuple[str, ...] | Refused:
    """Find the mesh axes over which a shard_map splits the examples, and nothing else.

    Parameters
    ----------
    eqn, twin : equations
        The shard_map, for the batch and for twice as many examples.
    data, leaves : sequence of bool
        Which operands depend on the batch, and which are parameters.

    Returns
    -------
    tuple of str or Refused
        Names of the axes, the slowest first.
    """
    p = eqn.params
    over = {name for name in _manual(p) if p["mesh"].shape[name] > 1}
    found: set[tuple[str, ...]] = set()
    for k, spec in enumerate(p["in_specs"]):
        if leaves[k] and any(over.intersection(names) for names in _names(spec)):
            return Refused("shard_map, which splits parameters")
        shapes = [tuple(e.invars[k].aval.shape) for e in (eqn, twin)]
        for axis, names in enumerate(_names(spec)):
            if data[k] and names and shapes[0][axis] != shapes[1][axis]:
                found.add(names)
    if len(found) != 1:
        return Refused("shard_map, which does not split the examples in one way")
    (names,) = found
    if over - set(names):
        return Refused("shard_map, over mesh axes that do not split the examples")
    return names


def _manual(p: Mapping[str, Any]) -> Any:
    """Mesh axes that a shard_map takes, whose name in JAX 0.10.0 was another."""
    return p["newly_manual_axes"] if "newly_manual_axes" in p else p["manual_axes"]


def _names(spec: Any) -> list[tuple[str, ...]]:
    return [() if x is None else (x,) if isinstance(x, str) else tuple(x) for x in spec]


def parts(eqn: Any, names: Sequence[str]) -> int:
    """Into how many shards these axes of the mesh split."""
    return math.prod(eqn.params["mesh"].shape[name] for name in names)


def whole(site: Site, names: tuple[str, ...], shards: int) -> Site:
    """Site of the whole batch, from that of one shard."""
    (example,) = site.outputs[1]
    shape = tuple(n * shards if k == example else n for k, n in enumerate(site.shape))
    return replace(site, shape=shape, split=names)


def called(
    eqn: Any,
    body: Callable[..., Any],
    inputs: Sequence[Any],
    sites: Mapping[Path, Site],
    perturbations: Mapping[Path, Any],
) -> Any:
    """Call a shard_map whose body takes perturbations too, and gives what its sites read.

    Parameters
    ----------
    eqn : equation
        The shard_map.
    body : callable
        ``body(arguments, perturbations)``, which gives results and arrays by path, of a shard.
    inputs : sequence of arrays
        Operands.
    sites : mapping of Path to Site
        Of the whole function.
    perturbations : mapping of Path to array
        Of the sites in the body, for all shards.

    Returns
    -------
    results : list of arrays
        Of the equation.
    read : dict of Path to array
        Of all shards.
    """
    p = eqn.params

    def spec(path: Path, axes: Any) -> Any:
        outside = len(sites[path].shape) - perturbations[path].ndim  # scans around the shard_map
        return PartitionSpec(*[None] * (axes[1][0] - outside), sites[path].split)

    given = {path: spec(path, sites[path].outputs) for path in perturbations}
    taken = {path: spec(path, sites[path].inputs) for path in perturbations}
    mapped = jax.shard_map(
        body,
        mesh=p["mesh"],
        in_specs=(list(p["in_specs"]), given),
        out_specs=(list(p["out_specs"]), taken),
        axis_names=_manual(p),
        check_vma=p["check_vma"],
    )
    return mapped(list(inputs), dict(perturbations))
