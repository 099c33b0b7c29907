"""Binding of the core to torch."""
