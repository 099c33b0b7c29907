"""Binding of the core to JAX: so far its native operations."""

from ngd_jax._ops import NATIVE

__all__ = ["NATIVE"]
