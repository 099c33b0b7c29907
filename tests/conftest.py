"""Strictness of the test run: 64-bit JAX without silent promotion; what it compiled is kept."""

import os
import sys
from pathlib import Path

import pytest
from harness import cuda

os.environ.setdefault("JAX_PLATFORMS", "cpu" if not os.environ.get("NGD_GPU") else "cuda,cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")

# one folder a worker: JAX may read an entry that another process has not written to its end
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
CACHE = Path(__file__).parents[1] / ".jax_cache" / WORKER
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Executables of one module serve no other, and gigabytes of them would pile up."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def pytest_markeval_namespace():
    """Names for conditions of marks that are given as strings."""
    return {"cuda": cuda}
