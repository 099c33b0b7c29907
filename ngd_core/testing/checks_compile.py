"""Level "compile": the core under the library's compiler.

Each check is a function of a `BackendUnderTest` with a ``compile`` and plain values; its docstring
states the law. Compiled code cannot look at values: the table of operations is the backend's where
that can be traced, so give one without ``EAGER.cond``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ngd_core import Hyper, factors
from ngd_core.testing.assertions import assert_close
from ngd_core.testing.checks_methods import METHODS, step
from ngd_core.testing.problems import LAYERS, blocks, records
from ngd_core.testing.protocol import BackendUnderTest, tree_map

__all__ = ["CHECKS"]


def factors_compile(
    backend: BackendUnderTest, dtype: str, layer: str, examples: int, seed: int
) -> None:
    """Compiled factors are those computed at once."""
    spec, xp = LAYERS[layer], backend.xp
    record = backend.array(records((layer,), examples, seed)[spec], dtype)

    def both(a: Any, g: Any) -> Any:
        return factors.kronecker_factors(spec, record._replace(a=a, g=g), xp=xp)

    assert backend.compile is not None
    pairs = zip(backend.compile(both)(record.a, record.g), both(record.a, record.g), strict=True)
    for got, want in pairs:
        assert_close(backend.numpy(got), backend.numpy(want), dtype=dtype, size=8 * examples)


def steps_compile(backend: BackendUnderTest, dtype: str, method: str, seed: int) -> None:
    """A whole compiled step, statistics, refresh and direction, is the one computed at once."""
    compiled, arguments = _step(backend, dtype, method, seed)
    hyper = _hyper(backend, dtype, 0.1)
    eager = _plain(backend, method)(*arguments, hyper)
    made = backend.numpy(compiled(*arguments, hyper))
    want = backend.numpy(eager)
    scale = max(float(np.abs(u).max()) for u in want)
    for got, u in zip(made, want, strict=True):
        assert got.dtype == u.dtype
        assert_close(got, u, dtype=dtype, size=64, kappa=1e3, scale=scale)


def hypers_compile_nothing(backend: BackendUnderTest, dtype: str, seed: int) -> None:
    """Other dampings and decays give other steps out of the same compiled program."""
    compiled, arguments = _step(backend, dtype, "kfac", seed)
    plain = _plain(backend, "kfac")
    for damping in (0.1, 0.2, 0.5, 1.0):
        hyper = _hyper(backend, dtype, damping)
        pairs = zip(
            backend.numpy(compiled(*arguments, hyper)),
            backend.numpy(plain(*arguments, hyper)),
            strict=True,
        )
        for got, want in pairs:
            assert_close(got, want, dtype=dtype, size=64, kappa=1e3)
    if backend.compilations is not None:
        times = backend.compilations(compiled)
        assert times == 1, f"four dampings were compiled {times} times"


def _hyper(backend: BackendUnderTest, dtype: str, damping: float) -> Hyper:
    return Hyper(backend.array(damping, dtype), backend.array(0.9, dtype))


def _plain(backend: BackendUnderTest, method: str) -> Any:
    make, _ = METHODS[method]
    made, xp = make(backend.table, 3), backend.xp

    def run(state: Any, batch: Any, grads: Any, hyper: Hyper) -> Any:
        _, directions, _, _ = step(made, state, [batch], grads, hyper, xp=xp)
        return tuple(directions[spec] for spec in sorted(directions))

    return run


def _step(backend: BackendUnderTest, dtype: str, method: str, seed: int) -> tuple[Any, Any]:
    make, _ = METHODS[method]
    made, names = make(backend.table, 3), ("fc",)
    batch, grads = records(names, 3, seed), blocks(names, seed)
    state = made.init(list(grads), backend.array(0.0, dtype), xp=backend.xp)
    assert backend.compile is not None
    compiled = backend.compile(_plain(backend, method))
    return compiled, (state, *tree_map(lambda x: backend.array(x, dtype), (batch, grads)))


CHECKS = (factors_compile, steps_compile, hypers_compile_nothing)
"""The checks of this level."""
