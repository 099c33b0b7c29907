"""Binding of the core to jax."""
