"""First states on the devices of their parameters, so that a first step compiles for all."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["placed"]


def placed(tree: Any, like: Any) -> Any:
    """Put arrays on all devices of a parameter; those of its shape are split as it is.

    Parameters
    ----------
    tree : pytree of arrays
        On any one device.
    like : array
        Parameter; if it is on one device, or traced, nothing changes.

    Returns
    -------
    pytree of arrays
        The same values. Through the host, as devices of other processes take none directly.
    """
    sharding = getattr(like, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return tree
    whole = NamedSharding(sharding.mesh, PartitionSpec())

    def put(x: Any) -> Any:
        numbers, to = np.asarray(x), sharding if x.shape == like.shape else whole
        return jax.make_array_from_callback(x.shape, to, lambda index: numbers[index])

    return jax.tree.map(put, tree)
