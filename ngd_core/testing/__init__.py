"""Assertions by which the laws of this library are held."""

from ngd_core.testing.assertions import assert_close, assert_far, tolerance

__all__ = ["assert_close", "assert_far", "tolerance"]
