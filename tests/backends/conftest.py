"""Programs of these tests run for a moment and are compiled once."""

import sys

import pytest


@pytest.fixture(scope="module", autouse=True)
def _compiled_quickly():
    """JAX leaves out most optimizations, which take longer than what they save here."""
    if "jax" not in sys.modules:
        yield
        return
    config = sys.modules["jax"].config
    before = config.read("jax_disable_most_optimizations")
    config.update("jax_disable_most_optimizations", True)
    yield
    config.update("jax_disable_most_optimizations", before)
