"""Strictness of the test run: 64-bit JAX without silent promotion, one thread for torch."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu" if not os.environ.get("NGD_GPU") else "cuda,cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
