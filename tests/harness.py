"""Array libraries under test, and the decorator that holds a law over all of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ngd_core.testing.protocol import tree_map

PROFILES = {"quick": 5, "default": 24, "deep": 1000}
EXAMPLES = PROFILES[os.environ.get("NGD_PROFILE", "default")]
DTYPES = ("float32", "float64")

dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31 - 1)


@dataclass(frozen=True)
class Backend:
    """An array library, a device, and a way to call a function of the core."""

    name: str
    share: float = 1.0

    def __str__(self) -> str:
        return self.name

    @property
    def library(self) -> str:
        return self.name.partition(":")[0]

    @property
    def variant(self) -> str:
        return self.name.partition(":")[2]

    @functools.cached_property
    def xp(self) -> Any:
        if self.library == "numpy":
            import array_api_compat.numpy as xp
        elif self.library == "strict":
            import array_api_strict as xp
        elif self.library == "torch":
            import array_api_compat.torch as xp
        elif self.library == "cupy":
            import array_api_compat.cupy as xp
        else:
            import jax.numpy as xp
        return xp

    def array(self, x: Any, dtype: str | None = None) -> Any:
        """NumPy values as an array of this library; floats are cast to `dtype`."""
        x = np.array(x)
        if dtype is not None and np.isdtype(x.dtype, "real floating"):
            x = x.astype(dtype)
        if self.library == "numpy":
            if self.variant == "readonly":
                x.flags.writeable = False
            return x
        if self.library == "strict":
            device = self.xp.Device("device1") if self.variant == "device1" else None
            return self.xp.asarray(x, device=device)
        if self.library == "torch":
            return self.xp.asarray(x, device="cuda" if self.variant == "cuda" else "cpu")
        if self.variant == "cuda":
            import jax

            return jax.device_put(x, jax.devices("cuda")[0])
        return self.xp.asarray(x)

    def tree(self, tree: Any, dtype: str | None = None) -> Any:
        """Every NumPy array in the tree as an array of this library."""
        return tree_map(lambda x: self.array(x, dtype), tree)

    def numpy(self, tree: Any) -> Any:
        """Every array in the tree as a NumPy array, after a look at where it lives."""
        return tree_map(self._numpy, tree)

    def _numpy(self, x: Any) -> np.ndarray:
        if self.library == "strict":
            wanted = self.xp.Device("device1" if self.variant == "device1" else "CPU_DEVICE")
            assert x.device == wanted, f"result on {x.device}, expected {wanted}"
            return np.asarray(self.xp.asarray(x, device=self.xp.Device("CPU_DEVICE")))
        if self.library == "torch":
            assert type(x).__module__ == "torch", f"{type(x)} from torch input"
            return x.detach().cpu().numpy()
        if self.library == "cupy":
            return x.get()
        if self.library == "jax":
            assert "jax" in type(x).__module__, f"{type(x)} from jax input"
        else:
            assert isinstance(x, (np.ndarray, np.generic)), f"{type(x)} from numpy input"
        return np.asarray(x)

    def call(self, f: Callable[..., Any], *args: Any, **static: Any) -> Any:
        """``f(*args, **static, xp=xp)``, compiled if the variant says so."""
        bound = functools.partial(f, **static, xp=self.xp)
        if self.name == "jax:jit":
            import jax

            return jax.jit(lambda *a: bound(*a))(*args)
        if self.name == "torch:compile":
            import torch

            torch._dynamo.reset()
            return torch.compile(
                lambda *a: bound(*a), fullgraph=True, backend="aot_eager", dynamic=False
            )(*args)
        return bound(*args)


@functools.cache
def cuda(module: str) -> bool:
    """Whether `module` finds an NVIDIA GPU; conftest.py names it for conditions of marks."""
    try:
        if module == "cupy":
            import cupy

            return bool(cupy.cuda.runtime.getDeviceCount())
        if module == "jax":
            import jax

            return bool(jax.devices("cuda"))
        import torch

        return bool(torch.cuda.is_available())
    except Exception:
        return False


def _gpu(backend: Backend, module: str) -> Any:
    # as a string: torch is imported when such a test is about to run, not when it is collected
    skip = pytest.mark.skipif(f"not cuda({module!r})", reason=f"no NVIDIA GPU with {module}")
    return pytest.param(backend, marks=[pytest.mark.gpu, skip], id=str(backend))


BACKENDS = [
    Backend("numpy"),
    Backend("numpy:readonly", 0.5),
    Backend("strict", 0.5),
    Backend("strict:device1", 0.25),
    Backend("torch", 0.5),
    Backend("torch:compile", 0.08),
    Backend("jax", 0.15),
    Backend("jax:jit", 0.08),
]
GPU_BACKENDS = [
    _gpu(Backend("cupy"), "cupy"),
    _gpu(Backend("torch:cuda", 0.5), "torch"),
    _gpu(Backend("jax:cuda", 0.15), "jax"),
]

over_backends = pytest.mark.parametrize(
    "backend", [*(pytest.param(b, id=str(b)) for b in BACKENDS), *GPU_BACKENDS]
)


def law(**strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hold ``f(backend, **drawn)`` over every backend, with as many examples as it can bear."""

    def decorate(f: Callable[..., None]) -> Callable[..., None]:
        def test(backend: Backend) -> None:
            @settings(
                max_examples=max(2, round(EXAMPLES * backend.share)),
                deadline=None,
                derandomize=True,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.explicit, Phase.generate, Phase.shrink),
            )
            @given(**strategies)
            def check(**drawn: Any) -> None:
                f(backend, **drawn)

            check()

        test.__name__, test.__doc__, test.__module__ = f.__name__, f.__doc__, f.__module__
        return over_backends(test)

    return decorate


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def spd(generator: np.random.Generator, n: int, condition: float) -> np.ndarray:
    """Symmetric positive definite matrix with eigenvalues from 1 down to 1 / condition."""
    q, _ = np.linalg.qr(generator.standard_normal((n, n)))
    w = np.geomspace(1.0, 1.0 / condition, n) if n > 1 else np.ones(1)
    return (q * w) @ q.T
