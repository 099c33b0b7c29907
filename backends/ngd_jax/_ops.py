"""JAX's own factorisations and control flow for the core's table of operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl

from ngd_core._typing import Array, Namespace
from ngd_core.inversion import Ops
from ngd_jax._stacks import one_by_one

__all__ = ["NATIVE"]


@one_by_one
def _cho_inverse(m: Array) -> Array:
    identity = jnp.broadcast_to(jnp.eye(m.shape[-1], dtype=m.dtype), m.shape)
    return jsl.cho_solve((jnp.linalg.cholesky(m), True), identity)


def _spd_inverse(m: Array, *, xp: Namespace) -> Array:
    return _cho_inverse(m)


def _cond(pred: Array, true: Callable[[], Any], false: Callable[[], Any], *, xp: Namespace) -> Any:
    return jax.lax.cond(pred, true, false)


NATIVE = Ops(spd_inverse=_spd_inverse, cond=_cond)
"""``cho_solve``, and ``lax.cond``, which computes one branch only; traceable."""
