"""Binding of the core to cupy."""
