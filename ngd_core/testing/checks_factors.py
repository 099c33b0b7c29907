"""Level "factors": second moments, per-example gradients and averages of a batch.

Each check is a function of a `BackendUnderTest` and plain numbers; its docstring states the law.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ngd_core import factors
from ngd_core.testing.assertions import assert_close
from ngd_core.testing.problems import LAYERS, layer_oracle, records
from ngd_core.testing.protocol import BackendUnderTest

__all__ = ["CHECKS"]


def factors_are_the_loops(
    backend: BackendUnderTest, dtype: str, layer: str, examples: int, scale: float, seed: int
) -> None:
    """``A = E[a a^T]`` and ``G = E[g g^T]``, bias and positions included, equal the loops."""
    spec = LAYERS[layer]
    record = records((layer,), examples, seed, scale)[spec]
    found = factors.kronecker_factors(spec, backend.array(record, dtype), xp=backend.xp)
    groups = layer_oracle(spec, record)
    for i, got in enumerate(backend.numpy(found)):
        want = np.stack([group[i] for group in groups])
        want = want if spec.stack else want[0]
        assert str(got.dtype) == dtype, f"a factor has dtype {got.dtype}, not {dtype}"
        assert_close(got, want, dtype=dtype, size=8 * examples)


def factors_are_symmetric_and_semidefinite(
    backend: BackendUnderTest, dtype: str, layer: str, examples: int, seed: int
) -> None:
    """Factors are symmetric and have no eigenvalue below zero, to rounding."""
    spec = LAYERS[layer]
    record = records((layer,), examples, seed)[spec]
    for got in backend.numpy(
        factors.kronecker_factors(spec, backend.array(record, dtype), xp=backend.xp)
    ):
        assert_close(got, np.swapaxes(got, -1, -2), dtype=dtype, size=8 * examples)
        w = np.linalg.eigvalsh(got.astype(np.float64))
        low = np.minimum(w, 0.0)
        assert_close(low, np.zeros_like(w), dtype=dtype, size=8 * examples, scale=float(w.max()))


def factors_scale_with_the_loss(
    backend: BackendUnderTest, dtype: str, layer: str, examples: int, scale: float, seed: int
) -> None:
    """A loss times k leaves A and multiplies G by ``k^2``."""
    spec = LAYERS[layer]
    one, more = (
        backend.numpy(
            factors.kronecker_factors(
                spec,
                backend.array(records((layer,), examples, seed, k)[spec], dtype),
                xp=backend.xp,
            )
        )
        for k in (1.0, scale)
    )
    assert_close(more[0], one[0], dtype=dtype, size=8 * examples)
    want = scale**2 * one[1].astype(np.float64)
    assert_close(more[1], want, dtype=dtype, size=8 * examples)


def factors_forget_duplicates_and_order(
    backend: BackendUnderTest, dtype: str, layer: str, examples: int, copies: int, seed: int
) -> None:
    """A batch in another order, or each example several times, has the same factors."""
    spec = LAYERS[layer]
    record = records((layer,), examples, seed)[spec]
    index = np.random.default_rng(seed).permutation(np.repeat(np.arange(examples), copies))
    one, other = (
        backend.numpy(factors.kronecker_factors(spec, backend.array(r, dtype), xp=backend.xp))
        for r in (record, record._replace(a=record.a[index], g=record.g[index]))
    )
    for got, want in zip(other, one, strict=True):
        assert_close(got, want, dtype=dtype, size=8 * examples * copies)


def example_gradients_are_the_loops(
    backend: BackendUnderTest, dtype: str, layer: str, examples: int, seed: int
) -> None:
    """``u_n = sum_t g_nt [a_nt; 1]^T`` for each example, and their mean is the batch's gradient."""
    spec = LAYERS[layer]
    record = records((layer,), examples, seed)[spec]
    array = backend.array(record, dtype)
    each = backend.numpy(factors.per_example_gradients(spec, array, xp=backend.xp))[0]
    want = np.concatenate([U for _, _, U in layer_oracle(spec, record)], axis=1)
    assert_close(each.reshape(examples, -1), want, dtype=dtype, size=8)
    mean = backend.numpy(factors.mean_gradient(spec, array, xp=backend.xp))
    options: dict[str, Any] = {
        "dtype": dtype,
        "size": 8 * examples,
        "scale": float(np.max(np.abs(want))),
    }
    assert_close(mean.reshape(-1), want.mean(axis=0), **options)


def gram_is_that_of_the_gradients(
    backend: BackendUnderTest, dtype: str, layer: str, examples: int, seed: int
) -> None:
    """``K = U^T U``, by whichever route, without forming U where that is dearer."""
    spec = LAYERS[layer]
    record = records((layer,), examples, seed)[spec]
    got = backend.numpy(factors.gram(spec, backend.array(record, dtype), xp=backend.xp))
    U = np.concatenate([U for _, _, U in layer_oracle(spec, record)], axis=1)
    assert_close(got, U @ U.T, dtype=dtype, size=32)


def averages_of_the_same_batch_are_its_own(
    backend: BackendUnderTest, dtype: str, n: int, seed: int
) -> None:
    """Averaging the same matrix over and over gives that matrix, whatever the decay."""
    batch = backend.array(np.random.default_rng(seed).standard_normal((n, n)), dtype)
    mean, weight = backend.xp.zeros_like(batch), backend.array(0.0, dtype)
    for decay in (0.95, 0.5, 0.0):
        mean, weight = factors.average(mean, weight, batch, 4, decay, xp=backend.xp)
        assert_close(backend.numpy(mean), backend.numpy(batch), dtype=dtype)


CHECKS = (
    factors_are_the_loops,
    factors_are_symmetric_and_semidefinite,
    factors_scale_with_the_loss,
    factors_forget_duplicates_and_order,
    example_gradients_are_the_loops,
    gram_is_that_of_the_gradients,
    averages_of_the_same_batch_are_its_own,
)
"""The checks of this level."""
