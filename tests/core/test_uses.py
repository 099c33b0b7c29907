"""Several uses of one layer as one record, and a table that is an output layer too."""

import numpy as np
import pytest
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import (
    FNGD,
    KFAC,
    Conv2dGeometry,
    DenseNGD,
    Hyper,
    LayerRecord,
    LayerSpec,
    analysis,
    factors,
    reference,
    weighting,
)
from ngd_core.testing import assert_close, assert_far

N, V, E = 3, 5, 2
TABLE = LayerSpec("table", "embedding", V, E, bias=False)
PLAIN = LayerSpec("conv", "conv2d", 2, 3, geometry=Conv2dGeometry(2, padding=1))
GROUPS = LayerSpec(
    "conv", "conv2d", 4, 6, bias=False, geometry=Conv2dGeometry((2, 1), dilation=2, groups=2)
)
REDUCED = LayerSpec(
    "conv", "conv2d", 2, 2, sharing="reduce", geometry=Conv2dGeometry(2, padding="same", groups=2)
)
CONVS = (PLAIN, GROUPS, REDUCED)
DENSE = LayerSpec("fc", "dense", 3, 2)
SCALE = LayerSpec("norm", "scale", 4, 4)
vectors = st.sampled_from([None, 1, 2])


def lead(m):
    return () if m is None else (m,)


def use_of(spec, r, m, t=2):
    if spec.kind == "conv2d":
        a = r.standard_normal((N, spec.in_features, 3, 2 + t))
        size = spec.geometry.output_size(3, 2 + t)
        return LayerRecord(a, r.standard_normal((*lead(m), N, spec.out_features, *size)))
    g = r.standard_normal((*lead(m), N, t, spec.out_features))
    if spec.kind == "embedding":
        return LayerRecord(r.integers(0, V, (N, t)), g)
    return LayerRecord(r.standard_normal((N, t, spec.in_features)), g)


def output_use(r, m, t=2):
    """The table as output layer: inputs (N, t, E), gradients (N, t, V)."""
    return LayerRecord(r.standard_normal((N, t, E)), r.standard_normal((*lead(m), N, t, V)))


def parts(spec, record, *, xp):
    """All that is made of a record."""
    return (
        factors.per_example_gradients(spec, record, xp=xp),
        factors.mean_gradient(spec, record, xp=xp),
        *factors.kronecker_factors(spec, record, xp=xp),
        factors.gram(spec, record, xp=xp),
    )


@law(seed=seeds, spec=st.sampled_from(CONVS), m=vectors, dtype=dtypes)
def test_rows_of_a_convolution_are_as_good_as_its_images(backend, seed, spec, m, dtype):
    record = backend.tree(use_of(spec, rng(seed), m), dtype)
    rows = backend.call(lambda record, *, xp: factors.unfolded(spec, record, xp=xp), record)
    want = backend.numpy(backend.call(lambda r, *, xp: parts(spec, r, xp=xp), record))
    got = backend.numpy(backend.call(lambda r, *, xp: parts(spec, r, xp=xp), rows))
    assert rows.a.ndim == 3
    assert factors.unfolded(spec, rows, xp=backend.xp) is rows
    for x, y in zip(got, want, strict=True):
        assert_close(x, y, dtype=dtype, size=100)


KINDS = (*CONVS, DENSE, SCALE, TABLE)


@law(seed=seeds, spec=st.sampled_from(KINDS), m=vectors, dtype=dtypes)
def test_the_gradient_of_an_example_is_the_sum_over_uses(backend, seed, spec, m, dtype):
    r = rng(seed)
    uses = [use_of(spec, r, m, t) for t in (2, 1)]
    joined = backend.call(
        lambda *uses, xp: parts(spec, factors.joined(spec, uses, xp=xp), xp=xp),
        *(backend.tree(use, dtype) for use in uses),
    )
    u, mean, _, _, gram = backend.numpy(joined)
    want = sum(factors.per_example_gradients(spec, use) for use in uses)
    assert_close(u, want, dtype=dtype, size=100)
    assert_close(mean, want.sum(axis=0).mean(axis=0), dtype=dtype, size=100)
    flat = want.reshape(want.shape[0] * N, -1)
    assert_close(gram, flat @ flat.T, dtype=dtype, size=100)


def test_factors_of_several_uses_are_those_of_all_positions():
    r = rng(0)
    uses = [use_of(PLAIN, r, None, t) for t in (2, 1)]
    rows = [factors.unfolded(PLAIN, use) for use in uses]
    dense = LayerSpec("rows", "dense", PLAIN.columns - 1, 3)
    record = LayerRecord(*(np.concatenate([row[k] for row in rows], axis=1) for k in (0, 1)))
    got = factors.kronecker_factors(PLAIN, factors.joined(PLAIN, uses))
    for x, y in zip(got, factors.kronecker_factors(dense, record), strict=True):
        assert_close(x, y)
    assert factors.joined(PLAIN, uses[:1]) is uses[0]


# --- a table that is looked up and an output layer


def tied(r, m=None, t=(3, 2)):
    return factors.joined(TABLE, [use_of(TABLE, r, m, t[0]), output_use(r, m, t[1])])


def tied_gradients(record, m):
    """Loops over vectors, examples and positions, in the layout (E, V)."""
    g, y = (x if m else x[None] for x in (record.g, record.tied.g))
    u = np.zeros((m or 1, N, E, V))
    for k in range(m or 1):
        for n in range(N):
            for t, token in enumerate(record.a[n]):
                u[k, n, :, token] += g[k, n, t]
            for t, h in enumerate(record.tied.a[n]):
                u[k, n] += np.outer(h, y[k, n, t])
    return u


@law(seed=seeds, m=vectors, dtype=dtypes)
def test_gradients_of_a_tied_table_are_exact(backend, seed, m, dtype):
    record = tied(rng(seed), m)
    U = tied_gradients(record, m)
    weights = np.arange(1.0, 1 + N)

    def everything(record, weights, *, xp):
        grams = [factors.gram(TABLE, record, route=r, xp=xp) for r in ("positions", "explicit")]
        return (
            factors.per_example_gradients(TABLE, record, xp=xp),
            factors.mean_gradient(TABLE, record, xp=xp),
            weighting.weighted_gradient(TABLE, record, weights, xp=xp),
            *grams,
        )

    out = backend.call(everything, backend.tree(record, dtype), backend.array(weights, dtype))
    u, mean, weighted, *grams = backend.numpy(out)
    assert_close(u, U, dtype=dtype, size=20)
    assert_close(mean, U.sum(axis=0).mean(axis=0), dtype=dtype, size=50)
    assert_close(weighted, np.einsum("n,mnev->ev", weights, U), dtype=dtype, size=50)
    flat = U.reshape(-1, E * V)
    for K in grams:
        assert_close(K, flat @ flat.T, dtype=dtype, size=200)


@law(seed=seeds, m=vectors, dtype=dtypes)
def test_the_joint_fisher_of_a_tied_table_is_exact(backend, seed, m, dtype):
    """Its product counts the uses as output layer, as its inner products do."""
    r = rng(seed)
    record, v, damping = tied(r, m), r.standard_normal((E, V)), 0.5
    U = tied_gradients(record, m).reshape(-1, E * V)
    F = U.T @ U / N

    def solved(record, v, *, xp):
        records, v = {TABLE: record}, {TABLE: v}
        u = analysis.natural_gradient(records, v, damping, xp=xp)
        return factors.fisher_product(records, v, xp=xp)[TABLE], u[TABLE]

    out = backend.call(solved, backend.tree(record, dtype), backend.array(v, dtype))
    product, u = backend.numpy(out)
    assert_close(product.reshape(-1), F @ v.reshape(-1), dtype=dtype, size=200)
    kappa = np.linalg.norm(F, 2) / damping + 1
    exact = np.linalg.solve(F + damping * np.eye(E * V), v.reshape(-1))
    assert_close(u.reshape(-1), exact, dtype=dtype, size=200, kappa=kappa)


def sides(record):
    """Factors of each use alone: of the look-ups, and of the output layer, by the plain kinds."""
    dense = LayerSpec("out", "dense", E, V, bias=False)
    H, S = factors.kronecker_factors(dense, record.tied)
    return factors.kronecker_factors(TABLE, record._replace(tied=None)), (np.diagonal(S), H)


@law(seed=seeds, m=vectors, dtype=dtypes)
def test_a_tied_block_has_the_partial_traces_of_the_sum_of_its_uses(backend, seed, m, dtype):
    """In the direction of the sum; of its trace; positive semi-definite."""
    record = tied(rng(seed), m)
    A, G = backend.numpy(
        backend.call(
            lambda r, *, xp: factors.kronecker_factors(TABLE, r, xp=xp), backend.tree(record, dtype)
        )
    )
    F = sum(np.einsum("ij,kl->ikjl", g, np.diag(a)) for a, g in sides(record))
    over_tokens, over_features = np.einsum("ikjk->ij", F), np.einsum("ikil->kl", F)
    whole = np.trace(over_tokens)
    assert A.shape == (V,)
    assert_close(A.sum() * np.trace(G), whole, dtype=dtype, size=100)
    assert_close(G / np.trace(G), over_tokens / whole, dtype=dtype, size=100)
    assert_close(A / A.sum(), np.diagonal(over_features) / whole, dtype=dtype, size=100)
    assert (A >= 0).all()
    assert np.linalg.eigvalsh(np.asarray(G, np.float64)).min() >= -1e-6 * np.trace(G)


def test_a_tied_block_is_that_of_the_use_that_there_is():
    r = rng(1)
    look_up, out = use_of(TABLE, r, None), output_use(r, None)
    look_up.a[0, 0] = -1  # padding: the frequencies sum to less than 1
    idle = out._replace(g=np.zeros_like(out.g))
    got = factors.kronecker_factors(TABLE, factors.joined(TABLE, [look_up, idle]))
    for x, y in zip(got, factors.kronecker_factors(TABLE, look_up), strict=True):
        assert_close(x, y, size=10)
    alone = factors.joined(TABLE, [out])
    A, G = factors.kronecker_factors(TABLE, alone)
    H, S = factors.kronecker_factors(LayerSpec("out", "dense", E, V, bias=False), out)
    assert_close(np.multiply.outer(A, G), np.multiply.outer(np.diagonal(S), H), size=10)
    assert_close(tied_gradients(alone, None), factors.per_example_gradients(TABLE, alone))
    assert_close(A.sum(), 1.0, size=V)


def test_a_tied_block_without_any_gradient_is_zero():
    record = tied(rng(2))
    record = record._replace(g=0 * record.g, tied=record.tied._replace(g=0 * record.tied.g))
    A, G = factors.kronecker_factors(TABLE, record)
    assert_close(A, factors.kronecker_factors(TABLE, record._replace(tied=None))[0])
    assert (G == 0).all()


def test_an_infinite_gradient_of_a_tied_table_is_refused():
    record, method = tied(rng(2)), KFAC()
    record.tied.g[0, 0, 0] = np.inf
    with np.errstate(all="ignore"):
        state = method.accumulate(
            method.init([TABLE], np.zeros(())), {TABLE: record}, Hyper(damping=0.1)
        )
    assert int(state.layers[TABLE].rejected) == 1
    assert float(state.layers[TABLE].weight) == 0


def test_methods_on_a_tied_table():
    """FNGD and the dense method are exact; K-FAC is the solve with the product above."""
    r, hyper = rng(3), Hyper(damping=0.3, decay=0.0)
    record, grad = tied(r), r.standard_normal((E, V))
    u = tied_gradients(record, None)[0].reshape(N, -1)
    exact = np.linalg.solve(u.T @ u / N + 0.3 * np.eye(E * V), grad.reshape(-1)).reshape(E, V)
    method = DenseNGD()
    state = method.accumulate(method.init([TABLE], grad), {TABLE: record}, hyper)
    state, _ = method.refresh(state, hyper)
    got = method.direction(state, {TABLE: grad}, {}, hyper)[0][TABLE]
    assert_close(got, exact, size=100, kappa=1e3)
    method = FNGD(batch_size=N, damping_mode="absolute", gain="natural")
    state = method.accumulate(method.init([TABLE], grad), {TABLE: record}, hyper)
    mean = u.mean(axis=0).reshape(E, V)
    got = method.direction(state, {TABLE: mean}, {TABLE: record}, hyper)[0][TABLE]
    want = np.linalg.solve(u.T @ u / N + 0.3 * np.eye(E * V), mean.reshape(-1)).reshape(E, V)
    assert_close(got, want, size=100, kappa=1e3)
    method = KFAC(damping_split="exact")
    state = method.accumulate(method.init([TABLE], grad), {TABLE: record}, hyper)
    state, _ = method.refresh(state, hyper)
    got = method.direction(state, {TABLE: grad}, {}, hyper)[0][TABLE]
    A, G = factors.kronecker_factors(TABLE, record)
    assert_close(got, reference.direction(grad, np.diag(A), G, 0.3, "exact"), size=100, kappa=1e3)
    assert_far(got, exact, least=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"a": np.ones((N, 2, E + 1))}, "with 3 features"),
        ({"g": np.ones((N, 2, V + 1))}, "g has shape"),
        ({"a": np.ones((2, 2, E)), "g": np.ones((2, 2, V))}, "expected those of one pass"),
        ({"g": np.ones((2, N, 2, V))}, "expected those of one pass"),
    ],
)
def test_a_tied_record_that_does_not_fit(change, sentence):
    record = tied(rng(4))
    record = record._replace(tied=record.tied._replace(**change))
    with pytest.raises(ValueError, match=sentence):
        factors.kronecker_factors(TABLE, record)


def test_rows_that_fit_no_kernel():
    with pytest.raises(ValueError, match=r"with 2\.25 features; expected 2"):
        factors.rows(PLAIN, LayerRecord(np.ones((N, 4, 9)), np.ones((N, 4, 3))))
    with pytest.raises(ValueError, match="g has shape"):
        factors.rows(PLAIN, LayerRecord(np.ones((N, 4, 8)), np.ones((N, 3, 3))))
