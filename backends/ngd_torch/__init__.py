"""Binding of the core to PyTorch: so far its native operations."""

from ngd_torch._ops import NATIVE

__all__ = ["NATIVE"]
