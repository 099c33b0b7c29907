"""Refreshes split over the devices of a mesh, each layer on one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ngd_core import Hyper, Method
from ngd_core.methods.dealt import dealt
from ngd_jax._stacks import NUMPY

__all__ = ["refreshed"]


def refreshed(method: Method, state: Any, hyper: Hyper, mesh: Mesh | None) -> Any:
    """State with new inverses, each of which one device makes and all others are sent.

    Parameters
    ----------
    method : Method
        Its refresh takes layers one by one.
    state : pytree
        Of the method, with `layers`.
    hyper : Hyper
        As the method takes it.
    mesh : Mesh or None
        Devices; None: each of them makes every inverse.

    Returns
    -------
    pytree
        State.
    """
    if mesh is None:
        return method.refresh(state, hyper, xp=NUMPY)[0]
    specs, names = list(state.layers), tuple(mesh.axis_names)
    whose = dealt(specs, mesh.size)

    def some(mine: Sequence[int], layers: Sequence[Any]) -> list[Any]:
        """Layers of which those that are mine are new."""
        part = type(state)({specs[k]: layers[k] for k in mine})
        new = method.refresh(part, hyper, xp=NUMPY)[0].layers if mine else {}
        return [new.get(spec, layer) for spec, layer in zip(specs, layers, strict=True)]

    def on_each(layers: list[Any]) -> list[Any]:
        made = _made(partial(some, range(len(specs))), layers)

        def on_one(device: int, layers: list[Any]) -> list[Any]:
            mine = [k for k, spec in enumerate(specs) if whose[spec] == device]
            new = [
                layer if k in mine else jax.tree.map(jnp.zeros_like, layer)
                for k, layer in enumerate(some(mine, layers))
            ]
            return [x for x, is_made in zip(jax.tree.leaves(new), made, strict=True) if is_made]

        devices = [partial(on_one, device) for device in range(mesh.size)]
        sums = iter(_summed(lax.switch(lax.axis_index(names), devices, layers), names))
        leaves, tree = jax.tree.flatten(layers)
        whole = [next(sums) if is_made else x for x, is_made in zip(leaves, made, strict=True)]
        return jax.tree.unflatten(tree, whole)  # type: ignore[no-any-return]

    everywhere = PartitionSpec()
    mapped = jax.shard_map(on_each, mesh=mesh, in_specs=everywhere, out_specs=everywhere)
    layers = mapped([state.layers[spec] for spec in specs])
    return type(state)(dict(zip(specs, layers, strict=True)))


def _made(refresh: Callable[[list[Any]], list[Any]], layers: list[Any]) -> list[bool]:
    """For each array whether a refresh makes it, and does not hand it on."""
    jaxpr = jax.make_jaxpr(refresh)(layers).jaxpr
    return [new is not old for old, new in zip(jaxpr.invars, jaxpr.outvars, strict=True)]


def _summed(arrays: Sequence[Any], names: tuple[str, ...]) -> list[Any]:
    numbers = [x.astype(jnp.int32) if x.dtype == bool else x for x in arrays]
    sums = lax.psum(numbers, names)
    return [x.astype(old.dtype) for x, old in zip(sums, arrays, strict=True)]
