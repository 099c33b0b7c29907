"""Strictness of the test run: 64-bit JAX without silent promotion; what it compiled is kept."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu" if not os.environ.get("NGD_GPU") else "cuda,cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
