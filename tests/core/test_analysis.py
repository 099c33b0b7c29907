"""Fisher information without the matrix equals that of the matrix, formed by the oracle."""

import numpy as np
import pytest
from core.analysis_cases import (
    FC,
    PIXEL,
    SEQ,
    SETS,
    WIDE,
    P,
    batch,
    blocks,
    cut,
    fisher,
    flat,
    gradients,
    layer_gradients,
    sizes,
    slow,
)
from harness import dtypes, law, seeds, tree_map
from hypothesis import strategies as st

from ngd_core import LayerRecord, analysis, reference
from ngd_core.analysis import duality
from ngd_core.analysis import marginals as marginals_module
from ngd_core.testing import assert_close, assert_far

sets = st.sampled_from(["kinds", "wide", "more"])
dampings = st.sampled_from([0.1, 1e-3, 10.0])


def kappa_of(F, damping, dtype):
    """Condition of the damped Fisher; 1 in float32, where all but the result is float64."""
    return 1.0 + np.linalg.eigvalsh(F)[-1] / damping if dtype == "float64" else 1.0


# trace and diagonal -------------------------------------------------------------------------


NAMES = ("diagonal", "example_norms", "trace", "unit_information", "layer_traces")


def marginals(records, *, names=NAMES, xp):
    return tuple(getattr(analysis, name)(records, xp=xp) for name in names)


@law(seed=seeds, which=sets, size=sizes, dtype=dtypes)
def test_trace_and_diagonal_are_those_of_the_dense_fisher(backend, seed, which, size, dtype):
    """diag F, its row sums, per-example norms and traces, for every kind of layer."""
    specs = SETS[which]
    records = batch(seed, *size, dtype, specs)
    names = NAMES[: 3 if slow(backend) else 5]  # the last two add up what the first two give
    got = backend.numpy(backend.call(marginals, backend.tree(records, dtype), names=names))
    diagonal, norms, total = got[:3]
    units, traces = got[3:] or (None, None)
    F = fisher(records)
    expected = cut(np.diag(F), specs)
    for spec in specs:
        u = layer_gradients(spec, records[spec])
        per_example = np.asarray([np.sum(u[:, n] ** 2) for n in range(u.shape[1])])
        pairs = [(diagonal[spec], expected[spec]), (norms[spec], per_example)]
        if units:
            by_unit = expected[spec].reshape(spec.out_features, -1).sum(axis=1)
            pairs += [(units[spec], by_unit), (traces[spec], np.sum(expected[spec]))]
        for x, wanted in pairs:
            assert str(x.dtype) == dtype
            assert_close(x, wanted, dtype=dtype, size=4)
    assert_close(total, np.trace(F), dtype=dtype, size=4)


def test_unit_information_is_that_of_each_unit():
    """E[g_i^2 |x|^2] for one position, from the definition."""
    records = batch(3, None, 5)
    a, g, *_ = records[FC]
    x = np.concatenate([a, np.ones((5, 1))], axis=1)
    wanted = [np.mean(g[:, i] ** 2 * np.sum(x**2, axis=1)) for i in range(2)]
    assert_close(analysis.unit_information(records)[FC], wanted, size=4)


@pytest.mark.parametrize("entries", [1, 100])
def test_examples_come_in_chunks_of_any_size(monkeypatch, entries):
    """The sums do not depend on how many examples' gradients are held at once."""
    for which in SETS:
        records = batch(5, 2, 7, specs=SETS[which])
        expected = marginals(records, xp=np)
        monkeypatch.setattr(marginals_module, "CHUNK", entries)
        got = marginals(records, xp=np)
        monkeypatch.undo()
        flattened = [[], []]
        for values, tree in zip(flattened, (expected, got), strict=True):
            tree_map(lambda x, values=values: values.append(np.ravel(x)), tree)
        assert_close(np.concatenate(flattened[1]), np.concatenate(flattened[0]), size=10)


def test_no_gradient_is_formed_where_an_example_has_one_position(monkeypatch):
    """Memory of the dense case: that of the inputs, not of N gradients."""
    seen = []
    original = marginals_module._chunks
    monkeypatch.setattr(marginals_module, "_chunks", lambda *a: seen.append(a) or original(*a))
    marginals(batch(0, 2, 4, specs=(FC,)), xp=np)
    assert seen == []
    marginals(batch(0, 2, 4, specs=(SEQ,)), xp=np)
    assert seen != []


# Gram duality -------------------------------------------------------------------------------


def spectrum(records, damping, *, parameters, xp):
    values = analysis.eigenvalues(records, xp=xp)
    return (
        values,
        analysis.frobenius_norm(records, xp=xp),
        analysis.log_determinant(values, damping, parameters=parameters, xp=xp),
        analysis.effective_dimension(values, damping, xp=xp),
        analysis.fisher_gram(records, xp=xp),
    )


@law(
    seed=seeds,
    size=st.sampled_from([(2, 3), (3, 12), (None, 4), (1, 1)]),
    damping=dampings,
    dtype=dtypes,
)
def test_the_gram_matrix_has_the_spectrum_of_the_fisher(backend, seed, size, damping, dtype):
    """Eigenvalues, trace, Frobenius norm, logdet, effective dimension; MN below and above P."""
    size = (2, 3) if slow(backend) else size
    records = batch(seed, *size, dtype)
    F = fisher(records)
    p, rows = P, (size[0] or 1) * size[1]
    out = backend.call(spectrum, backend.tree(records, dtype), damping, parameters=p)
    values, norm, logdet, dimension, K = backend.numpy(out)
    count = min(rows, p)
    expected = np.linalg.eigvalsh(F)[::-1]
    assert values.shape == (count,)
    assert str(values.dtype) == str(norm.dtype) == str(logdet.dtype) == dtype
    assert_close(values, expected[:count], dtype=dtype, size=4)
    assert_close(np.zeros(p - count), expected[count:], size=p, scale=expected[0])
    assert K.shape == (rows, rows)
    J = gradients(records).reshape(rows, p) / size[1] ** 0.5
    assert_close(K, J @ J.T, dtype=dtype, size=p)
    assert_close(np.trace(K), np.trace(F), dtype=dtype, size=p)
    assert_close(norm, np.linalg.norm(F), dtype=dtype, size=p)
    tolerance = {"dtype": dtype, "size": p, "kappa": kappa_of(F, damping, dtype)}
    assert_close(logdet, reference.log_determinant(F, damping), **tolerance)
    assert_close(dimension, reference.effective_dimension(F, damping), **tolerance)


def test_more_rows_than_parameters_add_no_directions():
    """MN > P: a Gram matrix's further eigenvalues are rounding, and damping must not count them."""
    records = batch(1, 3, 40, specs=(FC,))
    F, damping = fisher(records), 1e-13
    values = analysis.eigenvalues(records)
    assert values.shape == (8,)
    assert np.min(values) > 1e-3
    logdet = analysis.log_determinant(values, damping, parameters=8)
    assert_close(logdet, reference.log_determinant(F, damping), size=8)
    assert_close(analysis.effective_dimension(values, damping), 8.0, size=8)
    K = analysis.fisher_gram(records)
    naive = (8 - 120) * np.log(damping) + np.linalg.slogdet(K + damping * np.eye(120))[1]
    assert_far(logdet, naive, least=1e-4)


def test_the_smaller_array_is_formed_on_the_way(monkeypatch):
    """Pairs of positions (M N T)^2, or gradients M N p."""
    routes = {}
    original = duality.gram

    def watched(spec, record, *, route, xp):
        routes[spec] = route
        return original(spec, record, route=route, xp=xp)

    monkeypatch.setattr(duality, "gram", watched)
    for n, wide in ((4, "positions"), (40, "explicit")):  # 8^2 and 80^2 pairs, 288 and 2880
        records = batch(0, None, n, specs=(FC, WIDE, PIXEL))
        K = analysis.fisher_gram(records)
        J = gradients(records).reshape(n, -1)
        assert_close(K, J @ J.T / n, size=100)
        assert routes == {FC: "positions", WIDE: wide, PIXEL: "positions"}


def test_the_condition_number():
    values = np.asarray([8.0, 2.0, 1.0])
    assert float(analysis.condition_number(values)) == 8.0
    assert float(analysis.condition_number(values, 1.0)) == 4.5
    assert float(analysis.condition_number(np.zeros(2))) == float("inf")
    assert float(analysis.condition_number(np.asarray([1.0, 0.0]), 0.5)) == 3.0


@law(seed=seeds, size=st.sampled_from([(2, 3), (3, 12)]), damping=dampings, dtype=dtypes)
def test_natural_gradient_is_the_dense_solve(backend, seed, size, damping, dtype):
    """(F + lambda I)^-1 v of all layers together; in float32 only the result is rounded."""
    size = (2, 3) if slow(backend) else size
    records, v = batch(seed, *size, dtype), blocks(seed, dtype)
    got = backend.call(
        analysis.natural_gradient, backend.tree(records, dtype), backend.tree(v, dtype), damping
    )
    got, F = backend.numpy(got), fisher(records)
    assert {str(x.dtype) for x in got.values()} == {dtype}
    expected = reference.solve(F, flat(v), damping)
    assert_close(flat(got), expected, dtype=dtype, size=P, kappa=kappa_of(F, damping, dtype))


@pytest.mark.parametrize("size", [(None, 4), (3, 12)])
def test_small_dampings_keep_a_small_residual_after_one_correction(size):
    """The gradient in the range of J^T, float32: v - F u - lambda u, with and without."""
    records = batch(2, *size, "float32")
    F = fisher(records)
    mean = gradients(records).sum(axis=0).mean(axis=0)
    damping = 1e-3 * np.linalg.eigvalsh(F)[-1]
    records, v = ({s: tree_map(np.float32, x) for s, x in m.items()} for m in (records, cut(mean)))
    residuals = {}
    for refinements in (0, 1):
        u = analysis.natural_gradient(records, v, damping, dtype="float32", refinements=refinements)
        rest = flat(v) - F @ flat(u) - damping * flat(u)
        residuals[refinements] = np.linalg.norm(rest) / np.linalg.norm(flat(v))
    assert residuals[1] < 50 * 1.2e-7
    assert residuals[0] > 10 * residuals[1]


def test_float32_records_are_solved_in_float64():
    """A damping of a millionth: digits that float32 loses, unless it is asked for."""
    records = batch(3, 2, 3, "float32")
    F = fisher(records)
    damping = 1e-6 * np.linalg.eigvalsh(F)[-1]
    v = tree_map(np.float32, cut(gradients(records).sum(axis=0).mean(axis=0)))
    exact = reference.solve(F, flat(v), damping)
    records = tree_map(np.float32, records)
    got = flat(analysis.natural_gradient(records, v, damping))
    assert_close(got, exact, dtype="float32")
    lost = flat(analysis.natural_gradient(records, v, damping, dtype="float32"))
    assert_far(lost, exact, least=1e-3)
    agreed = analysis.agreement(cut(exact), v, records, damping)
    assert_close(np.asarray(agreed), [1.0, 0.0, 1.0], dtype="float32")


@pytest.mark.parametrize("which", ["kinds", "more"])
def test_numbers_do_not_depend_on_how_the_batch_comes(which):
    """Every example twice, examples in another order, layers in another order."""
    specs = SETS[which]
    records, v = batch(9, 2, 4, specs=specs), blocks(9, specs=specs)
    values = analysis.eigenvalues(records)
    exact = analysis.natural_gradient(records, v, 0.1)
    for index in ([0, 1, 2, 3, 0, 1, 2, 3], [2, 0, 3, 1]):
        others = {
            s: LayerRecord(records[s].a[index], records[s].g[:, index]) for s in reversed(specs)
        }
        assert_close(analysis.trace(others), analysis.trace(records), size=8)
        norm = analysis.frobenius_norm(records)
        assert_close(analysis.frobenius_norm(others), norm, size=8)
        got = analysis.eigenvalues(others)
        assert_close(got[: len(values)], values, size=16)
        logdet = analysis.log_determinant(values, 0.1, parameters=50)
        assert_close(analysis.log_determinant(got, 0.1, parameters=50), logdet, size=100)
        u = analysis.natural_gradient(others, v, 0.1)
        assert_close(flat(u, specs), flat(exact, specs), size=16, kappa=1 + float(values[0]) / 0.1)
        for got, wanted in zip(
            marginals(others, names=("diagonal", "unit_information"), xp=np),
            marginals(records, names=("diagonal", "unit_information"), xp=np),
            strict=True,
        ):
            for spec in specs:
                assert_close(got[spec], wanted[spec], size=8)
