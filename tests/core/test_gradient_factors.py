"""K-FAC's direction from the rows of a record: the usual one, whatever the gradient is."""

import numpy as np
import pytest
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import KFAC, Hyper, LayerRecord, LayerSpec, factors, reference
from ngd_core.inversion import EAGER
from ngd_core.methods.cost import layer_cost
from ngd_core.testing import assert_close

FC = LayerSpec("fc", "dense", 9, 8)
SEQ = LayerSpec("seq", "dense", 7, 10, bias=False)
SPECS = (FC, SEQ)
METHODS = {
    name: KFAC(factored_gradient=True, ops=ops)
    for name, ops in {"pure": KFAC.ops, "eager": EAGER}.items()
}


def batch(r, n):
    return {
        FC: LayerRecord(r.standard_normal((n, 9)), r.standard_normal((n, 8))),
        SEQ: LayerRecord(r.standard_normal((n, 2, 7)), r.standard_normal((n, 2, 10))),
    }


def product(spec, record):
    """Gradient ``[W b]`` of the mean loss."""
    a = record.a.reshape(-1, spec.in_features)
    g = record.g.reshape(-1, spec.out_features)
    a = np.hstack([a, np.ones((len(a), 1))]) if spec.bias else a
    return g.T @ a / len(record.a)


HYPER = Hyper(0.1)


def learnt(method, records):
    """State with the statistics of some records."""
    state = method.init(SPECS, records[FC].a)
    return method.refresh(method.accumulate(state, records, HYPER), HYPER)[0]


def directed(method, records, grads, given):
    """Directions with the statistics of some records and the rows of others."""
    return method.direction(learnt(method, records), grads, given, HYPER)


@law(seed=seeds, n=st.sampled_from([1, 2]), own_bias=st.booleans(), dtype=dtypes)
def test_the_direction_from_rows_is_the_dense_damped_solve(backend, seed, n, own_bias, dtype):
    """Statistics are of other gradients than those that the rows make, as with sampled labels.

    The bias may have any gradient of its own.
    """
    r = rng(seed)
    statistics, given = batch(r, 30), batch(r, n)
    grads = {spec: product(spec, record) for spec, record in given.items()}
    if own_bias:
        grads[FC][:, -1] = r.standard_normal(8)
    method = METHODS["pure"]
    found = backend.call(
        lambda *args, xp: method.direction(*args, HYPER, xp=xp),
        *(backend.tree(tree, dtype) for tree in (learnt(method, statistics), grads, given)),
    )
    directions, info = map(backend.numpy, found)
    for spec in SPECS:
        A, G = factors.kronecker_factors(spec, statistics[spec])
        kappa = np.linalg.cond(reference.damped(A, G, 0.1, "pi"))
        want = reference.direction(grads[spec], A, G, 0.1, "pi")
        assert_close(directions[spec], want, dtype=dtype, size=20, kappa=kappa)
        assert info[spec].measures["factored"] == 1
        inner = np.sum(want * grads[spec])
        assert_close(info[spec].measures["inner"], inner, dtype=dtype, size=20, kappa=kappa)


CHANGES = {
    "clipped a little": lambda grad, _: (1 - 1e-6) * grad,
    "a penalty in the loss": lambda grad, r: grad + 1e-6 * r.standard_normal(grad.shape),
    "two batches": lambda grad, r: grad + r.standard_normal(grad.shape),
    "one number": lambda grad, _: grad + 1e-6 * (np.arange(grad.size) == 7).reshape(grad.shape),
    "not finite": lambda grad, _: grad / (np.arange(grad.size) != 7).reshape(grad.shape),
    "nothing": lambda grad, _: 0 * grad,
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("ops", METHODS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_gradient_that_is_no_product_goes_the_usual_way(change, ops):
    for seed in range(5):
        r = rng(seed)
        statistics, given = batch(r, 30), batch(r, 2)
        grads = {s: CHANGES[change](product(s, record), r) for s, record in given.items()}
        found, info = directed(METHODS[ops], statistics, grads, given)
        usual, plain = directed(KFAC(ops=METHODS[ops].ops), statistics, grads, {})
        for spec in SPECS:
            assert info[spec].measures["factored"] == 0
            assert info[spec].code == plain[spec].code
            assert np.array_equal(found[spec], usual[spec])


def single(records, scale=1.0):
    """Records in float32, their gradients scaled."""
    return {
        spec: LayerRecord(record.a.astype("float32"), (scale * record.g).astype("float32"))
        for spec, record in records.items()
    }


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e25])
def test_numbers_of_any_size_give_the_usual_direction(scale):
    """Also where squares of the gradient are lost or overflow."""
    r = rng(0)
    statistics, given = single(batch(r, 30)), single(batch(r, 2), scale)
    grads = {spec: product(spec, record).astype("float32") for spec, record in given.items()}
    found, info = directed(METHODS["eager"], statistics, grads, given)
    usual, _ = directed(KFAC(), statistics, grads, {})
    for spec in SPECS:
        assert info[spec].measures["factored"] == 1
        assert_close(found[spec] / scale, usual[spec] / scale, dtype="float32", size=20, kappa=50)


def test_a_small_penalty_is_seen_in_float32():
    """A dead input, whose damped inverse is large, has no gradient but the penalty's."""
    spec, r = LayerSpec("fc", "dense", 64, 64, bias=False), rng(0)
    a, g, w = (r.standard_normal(shape).astype("float32") for shape in ((8, 64), (8, 64), (64, 64)))
    a[:, 0] = 0
    record, method, hyper = LayerRecord(a, g), METHODS["eager"], Hyper(1e-3)
    state = method.accumulate(method.init([spec], a), {spec: record}, hyper)
    state, _ = method.refresh(state, hyper)
    for penalty, factored in ((0.0, 1), (1e-4, 0)):
        grads = {spec: g.T @ a / np.float32(8) + np.float32(penalty) * w}
        _, info = method.direction(state, grads, {spec: record}, hyper)
        assert info[spec].measures["factored"] == factored


@pytest.mark.parametrize("case", ["of another dtype", "several vectors", "more rows than pay"])
def test_records_that_cannot_give_the_direction_are_left_aside(case):
    r = rng(0)
    statistics, given = batch(r, 30), batch(r, 30 if case == "more rows than pay" else 2)
    grads = {spec: product(spec, record) for spec, record in given.items()}
    if case == "of another dtype":
        given = {
            spec: record._replace(a=record.a.astype("float32")) for spec, record in given.items()
        }
    if case == "several vectors":
        given = {spec: record._replace(g=record.g[None]) for spec, record in given.items()}
    found, info = directed(METHODS["eager"], statistics, grads, given)
    usual, plain = directed(KFAC(ops=EAGER), statistics, grads, {})
    for spec in SPECS:
        assert np.array_equal(found[spec], usual[spec])
        assert info[spec].measures["factored"] == 0
        assert "factored" not in plain[spec].measures


@pytest.mark.parametrize("rows", [1, 3, 4, 30])
@pytest.mark.parametrize("spec", SPECS)
def test_the_rows_are_used_where_they_cost_less(spec, rows):
    usual = layer_cost(KFAC(), spec, examples=rows).direction
    found = layer_cost(METHODS["eager"], spec, examples=rows)
    made = METHODS["eager"].factors_gradient(spec, rows)
    r, c, bias = spec.rows, spec.columns, spec.bias
    of_rows = rows * (c - bias) * c + (rows + bias) * (r * r + r * c)
    assert made == (of_rows < usual)
    assert (found.direction, found.weighting) == ((0, of_rows) if made else (usual, 0))
    assert not KFAC().factors_gradient(spec, rows)


def test_a_split_that_is_no_product_is_refused():
    with pytest.raises(ValueError, match="whose inverse is no product of two"):
        KFAC(damping_split="exact", factored_gradient=True)
