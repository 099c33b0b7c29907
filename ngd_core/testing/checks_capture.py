"""Level "capture": records of a pass through an adapter's own model.

Each check is a function of a `BackendUnderTest` with a ``capture`` and plain values; its docstring
states the law.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ngd_core import LayerRecord, LayerSpec, factors, nn
from ngd_core.testing.assertions import assert_close
from ngd_core.testing.problems import Problem, problem
from ngd_core.testing.protocol import BackendUnderTest

__all__ = ["CHECKS"]


def _captured(backend: BackendUnderTest, given: Problem) -> dict[LayerSpec, Any]:
    """Records by the specs of the problem's model, in float64."""
    assert backend.capture is not None
    found = backend.capture(given)
    specs = {spec.name: spec for spec in nn.specs(given.model)}
    missing = set(specs) - set(found)
    assert not missing, f"there is no record of the layers {sorted(missing)}"
    return {spec: LayerRecord(*backend.numpy(tuple(found[n])[:2])) for n, spec in specs.items()}


def _one_vector(spec: LayerSpec, record: Any) -> Any:
    """Gradients without the axis of vectors, of which there is one."""
    several = factors.several_vectors(spec, record)
    assert not several or len(record.g) == 1, "several vectors for the empirical Fisher"
    return record.g[0] if several else record.g


def records_give_the_gradient(
    backend: BackendUnderTest, network: str, examples: int, seed: int
) -> None:
    """``dW = (1/N) sum_n g_n^T [a_n 1]``: records give the gradient of the mean loss, bias last."""
    given = problem(network, examples, seed)  # type: ignore[arg-type]
    want = given.gradients()
    for spec, record in _captured(backend, given).items():
        got = np.asarray(factors.mean_gradient(spec, record))
        options: dict[str, Any] = {"dtype": backend.dtypes[-1], "size": 64 * examples}
        assert_close(got, want[spec.name], **options)


def records_are_of_each_example(
    backend: BackendUnderTest, network: str, examples: int, seed: int
) -> None:
    """Each example has its own gradient, not divided by N, whatever the loss averages."""
    given = problem(network, examples, seed)  # type: ignore[arg-type]
    want = given.example_gradients()
    for spec, record in _captured(backend, given).items():
        count = record.a.shape[0]
        assert count == examples, f"layer '{spec.name}' has {count} examples, not {examples}"
        got = np.asarray(factors.per_example_gradients(spec, record))
        got = got.reshape(want[spec.name].shape)
        assert_close(got, want[spec.name], dtype=backend.dtypes[-1], size=64)


def records_have_the_true_factors(
    backend: BackendUnderTest, network: str, examples: int, seed: int
) -> None:
    """``A`` and ``G`` of the records are those of the empirical Fisher, positions included."""
    given = problem(network, examples, seed)  # type: ignore[arg-type]
    want = given.factors("empirical")
    for spec, record in _captured(backend, given).items():
        for got, factor in zip(
            factors.kronecker_factors(spec, record), want[spec.name], strict=True
        ):
            assert_close(np.asarray(got), factor, dtype=backend.dtypes[-1], size=64 * examples)


def duplicates_are_recorded_twice(
    backend: BackendUnderTest, network: str, examples: int, seed: int
) -> None:
    """A batch written twice has the same records twice: nothing was divided by its length."""
    given = problem(network, examples, seed)  # type: ignore[arg-type]
    one = _captured(backend, given)
    two = _captured(backend, given.take(np.tile(np.arange(examples), 2)))
    for spec, record in one.items():
        g, more = _one_vector(spec, record), _one_vector(spec, two[spec])
        for got, want in ((two[spec].a, record.a), (more, g)):
            assert len(got) == 2 * len(want), "a batch of twice the length has other records"
            for half in (got[: len(want)], got[len(want) :]):
                assert_close(half, want, dtype=backend.dtypes[-1], size=64)


def capture_repeats(backend: BackendUnderTest, network: str, examples: int, seed: int) -> None:
    """A second capture gives the first one's records, without what the first one left."""
    given = problem(network, examples, seed)  # type: ignore[arg-type]
    one, other = (_captured(backend, given) for _ in range(2))
    for spec, record in one.items():
        assert_close(other[spec].a, record.a, dtype=backend.dtypes[-1])
        assert_close(other[spec].g, record.g, dtype=backend.dtypes[-1])


def records_are_detached(backend: BackendUnderTest, network: str, examples: int, seed: int) -> None:
    """Arrays of records are data: they keep no graph of the computation that made them alive."""
    assert backend.capture is not None
    given = problem(network, examples, seed)  # type: ignore[arg-type]
    for name, record in backend.capture(given).items():
        for part in ("a", "g"):
            graph = getattr(getattr(record, part), "requires_grad", False)
            assert not graph, f"{part} of layer '{name}' holds on to its graph"


CHECKS = (
    records_give_the_gradient,
    records_are_of_each_example,
    records_have_the_true_factors,
    duplicates_are_recorded_twice,
    capture_repeats,
    records_are_detached,
)
"""The checks of this level."""
