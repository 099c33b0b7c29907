"""Embeddings and elementwise scales: factors, gradients and every method against the definition."""

import tracemalloc
import warnings

import numpy as np
import pytest
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import (
    EKFAC,
    FNGD,
    KFAC,
    SNGD,
    Conv2dGeometry,
    DenseNGD,
    Hyper,
    LayerRecord,
    LayerSpec,
    ProjectiveKFAC,
    TridiagonalKFAC,
    factors,
    inversion,
    reference,
    weighting,
)
from ngd_core.testing import assert_close, assert_far
from ngd_core.types import KINDS

V, O, F = 5, 3, 4  # noqa: E741
EMBEDDING = LayerSpec("tokens", "embedding", V, O, bias=False)
SCALE = LayerSpec("norm", "scale", F, F)
PLAIN = LayerSpec("rms", "scale", F, F, bias=False)
SPECS = (EMBEDDING, SCALE, PLAIN)
TOKENS = ("int8", "uint8", "int16", "int32", "int64")
positions = st.sampled_from([(), (3,), (2, 2)])
vectors = st.sampled_from([None, 1, 2])
splits = st.sampled_from(["pi", "exact"])


def record_of(spec, r, n, t=(), m=None, kind="int64"):
    """Tokens or normalised inputs, and gradients of m vectors (None: without that axis)."""
    g = r.standard_normal((*(() if m is None else (m,)), n, *t, spec.out_features))
    if spec.kind == "embedding":
        # the last token is in no batch
        return LayerRecord(r.integers(0, max(spec.in_features - 1, 1), (n, *t)).astype(kind), g)
    x = r.standard_normal((n, *t, spec.in_features))
    return LayerRecord(x, g)


def batch(r, n, t=(), m=None):
    return {spec: record_of(spec, r, n, t, m) for spec in SPECS}


def canonical(spec, record, m):
    """Inputs (N, T, ...) and gradients (M, N, T, outputs) as the oracle takes them."""
    n = record.a.shape[0]
    shape = (n, -1) if spec.kind == "embedding" else (n, -1, spec.in_features)
    g = record.g[None] if m is None else record.g
    return record.a.reshape(shape), g.reshape(len(g), n, -1, spec.out_features)


def oracle_factors(spec, record, m):
    x, g = canonical(spec, record, m)
    if spec.kind == "embedding":
        return reference.embedding_factors(x, g, spec.in_features)
    return reference.scale_factors(x, g, spec.bias)


def oracle_gradients(spec, record, m):
    """One row a vector and example, flattened in the order of the block."""
    x, g = canonical(spec, record, m)
    if spec.kind == "embedding":
        x = reference.one_hot(x, spec.in_features)
        parts = [reference.example_gradients(x, y, bias=False) for y in g]
    else:
        parts = [reference.norm_scale_example_gradients(x, y, spec.bias) for y in g]
    return np.concatenate(parts, axis=1).T


def oracle_direction(spec, grad, A, G, damping, split):
    """A scale has the exact damping whatever the split."""
    split = "exact" if spec.kind == "scale" else split
    return reference.direction(grad, A, G, damping, split)


def condition(spec, A, G, damping, split):
    if spec.kind == "scale":
        pairs = zip(A, G, strict=True)
        return max(np.linalg.cond(reference.damped(a, g, damping, "exact")) for a, g in pairs)
    return np.linalg.cond(reference.damped(A, G, damping, split))


def compiles(backend):
    """Whether every new shape costs a compilation, so that few shapes should be drawn."""
    return backend.library == "jax" or backend.variant == "compile"


def run(method, state, records, grads, hyper, *, xp):
    for record in records:
        state = method.accumulate(state, record, hyper, xp=xp)
    state, refreshed = method.refresh(state, hyper, xp=xp)
    directions, info = method.direction(state, grads, {}, hyper, xp=xp)
    return directions, refreshed, info


def step(backend, method, records, grads, hyper, dtype):
    state = method.init(list(grads), backend.array(np.zeros(()), dtype))
    records, grads = [backend.tree(x, dtype) for x in records], backend.tree(grads, dtype)
    return backend.numpy(
        backend.call(lambda *args, xp: run(method, *args, xp=xp), state, records, grads, hyper)
    )


# --- the block and its layout


def test_a_block_is_the_table_transposed_and_joins_and_splits():
    """W times one-hot is the looked-up row; a scale's block holds [w b] feature by feature."""
    r = rng(0)
    table = r.standard_normal((V, O))
    block = factors.join(EMBEDDING, table)
    assert block.shape == EMBEDDING.block_shape == (O, V)
    for token in range(V):
        assert np.array_equal(block @ reference.one_hot(token, V), table[token])
    weight, bias = factors.split(EMBEDDING, block)
    assert np.array_equal(weight, table)
    assert bias is None
    w, b = r.standard_normal(F), r.standard_normal(F)
    block = factors.join(SCALE, w, b)
    assert block.shape == SCALE.block_shape == (F, 1, 2)
    assert np.array_equal(block[:, 0, 0], w)
    assert np.array_equal(block[:, 0, 1], b)
    for x, y in zip(factors.split(SCALE, block), (w, b), strict=True):
        assert np.array_equal(x, y)
    assert factors.join(PLAIN, w).shape == PLAIN.block_shape == (F, 1, 1)
    assert factors.split(PLAIN, factors.join(PLAIN, w))[1] is None
    one = LayerSpec("one", "scale", 1, 1)
    assert one.stack == (1,)
    assert one.block_shape == (1, 1, 2)


# --- gradients and Gram matrices


@law(seed=seeds, spec=st.sampled_from(SPECS), t=positions, m=vectors, dtype=dtypes)
def test_gradients_and_gram_are_those_of_the_loops(backend, seed, spec, t, m, dtype):
    """Per-example gradients, their mean, a weighted sum, and K = U U^T by either route."""
    if compiles(backend):
        spec, t, m = EMBEDDING, (3,), 2
    r, n = rng(seed), 3
    record, weights = record_of(spec, r, n, t, m), r.standard_normal(n)
    U = oracle_gradients(spec, record, m)

    def everything(record, weights, *, xp):
        grams = [
            factors.gram(spec, record, route=route, xp=xp)
            for route in ("positions", "explicit", None)
        ]
        return (
            factors.per_example_gradients(spec, record, xp=xp),
            factors.mean_gradient(spec, record, xp=xp),
            weighting.weighted_gradient(spec, record, weights, xp=xp),
            *grams,
        )

    arrays = backend.tree(record, dtype), backend.array(weights, dtype)
    out = backend.call(everything, *arrays)
    assert all(str(x.dtype).endswith(dtype) for x in out)
    u, mean, weighted, *grams = backend.numpy(out)
    assert u.shape == (m or 1, n, *spec.block_shape)
    assert_close(u.reshape(U.shape), U, dtype=dtype, size=4)
    size = 4 * (m or 1) * n
    assert_close(mean.reshape(-1), U.sum(axis=0) / n, dtype=dtype, size=size)
    assert_close(weighted.reshape(-1), np.tile(weights, m or 1) @ U, dtype=dtype, size=size)
    for K in grams:
        assert_close(K, U @ U.T, dtype=dtype, size=16 * spec.out_features)


@law(seed=seeds, t=positions, m=vectors, dtype=dtypes)
def test_the_gram_of_an_embedding_takes_vectors_without_the_table(backend, seed, t, m, dtype):
    record = record_of(EMBEDDING, rng(seed), 3, t, m)
    U = oracle_gradients(EMBEDDING, record, m)
    K = backend.call(
        factors.embedding_gram, backend.array(record.a), backend.array(record.g, dtype)
    )
    assert_close(backend.numpy(K), U @ U.T, dtype=dtype, size=16 * O)


def test_the_route_follows_the_cost():
    """Comparing tokens costs nothing: T^2 < V. A scale's gradients are as small as its inputs."""
    wide = LayerSpec("tokens", "embedding", 100, 2, bias=False)
    routes = [factors.gram_route(wide, t) for t in (1, 9, 10, 11)]
    assert routes == ["positions", "positions", "explicit", "explicit"]
    assert factors.gram_route(LayerSpec("one", "embedding", 1, 2, bias=False), 1) == "positions"
    assert {factors.gram_route(SCALE, t) for t in (1, 7)} == {"explicit"}


# --- factors


@law(
    seed=seeds,
    spec=st.sampled_from(SPECS),
    n=st.sampled_from([1, 4]),
    t=positions,
    m=vectors,
    kind=st.sampled_from(TOKENS),
    dtype=dtypes,
)
def test_factors_equal_the_loops(backend, seed, spec, n, t, m, kind, dtype):
    """Frequencies are the diagonal of the one-hot second moment; a scale's A its exact blocks."""
    if compiles(backend):
        n, t, m, dtype = 4, (3,), 2, "float64"
    record = record_of(spec, rng(seed), n, t, m, kind)
    A, G = oracle_factors(spec, record, m)
    got = backend.call(of_batch, backend.tree(record, dtype), spec=spec)
    assert all(str(x.dtype).endswith(dtype) for x in got)
    a, g = backend.numpy(got)
    assert (a.shape, g.shape) == factors.factor_shapes(spec)
    if spec.kind == "embedding":
        assert np.array_equal(A, np.diag(np.diag(A)))
        A = np.diag(A)
    assert_close(a, A, dtype=dtype, size=16)
    assert_close(g, G, dtype=dtype, size=16)


def of_batch(record, *, spec, xp):
    return factors.kronecker_factors(spec, record, xp=xp)


def test_which_factors_are_exact():
    """A scale's with any sharing; an embedding's for one datum, and not for two."""
    r = rng(0)
    record = record_of(SCALE, r, 3, (4,), 2)
    x, g = canonical(SCALE, record, 2)
    whole = reference.scale_fisher(x, g)
    for sharing in ("expand", "reduce"):
        spec = LayerSpec("norm", "scale", F, F, sharing=sharing)
        A, G = factors.kronecker_factors(spec, record)
        assert np.array_equal(G, np.ones((F, 1, 1)))
        for f in range(F):
            assert_close(A[f], whole[2 * f : 2 * f + 2, 2 * f : 2 * f + 2], size=24)
    one = record_of(EMBEDDING, r, 1)
    U = oracle_gradients(EMBEDDING, one, None)
    A, G = factors.kronecker_factors(EMBEDDING, one)
    assert_close(reference.kron(G, np.diag(A)), U.T @ U, size=O)
    two = record_of(EMBEDDING, r, 2)._replace(a=np.asarray([0, 1]))
    U = oracle_gradients(EMBEDDING, two, None)
    A, G = factors.kronecker_factors(EMBEDDING, two)
    assert_far(reference.kron(G, np.diag(A)), U.T @ U / 2, least=0.1)


@law(kind=st.sampled_from(TOKENS), dtype=dtypes)
def test_tokens_outside_of_the_vocabulary_count_as_no_input(backend, kind, dtype):
    """In no frequency, a zero one-hot row, and no inner product, with one another neither."""
    outside = V + 3 if kind == "uint8" else -1
    tokens = np.asarray([[0, V], [outside, V], [0, outside]]).astype(kind)
    record = LayerRecord(tokens, rng(0).standard_normal((3, 2, O)))
    A, _ = backend.call(of_batch, backend.tree(record, dtype), spec=EMBEDDING)
    assert_close(backend.numpy(A), np.asarray([2.0, 0, 0, 0, 0]) / 6, dtype=dtype)

    def both(record, *, xp):
        grams = [factors.gram(EMBEDDING, record, route=k, xp=xp) for k in ("positions", "explicit")]
        return factors.per_example_gradients(EMBEDDING, record, xp=xp), *grams

    u, *grams = backend.numpy(backend.call(both, backend.tree(record, dtype)))
    x = reference.one_hot(tokens, V)
    assert np.array_equal(x.sum(axis=-1), [[1, 0], [0, 0], [1, 0]])
    U = reference.example_gradients(x, record.g, bias=False)
    assert_close(u.reshape(3, -1), U.T, dtype=dtype)
    for K in grams:
        assert_close(K, U.T @ U, dtype=dtype, size=O)


def test_narrow_tokens_reach_into_a_wide_vocabulary():
    """Bytes count and compare with tokens that no byte holds."""
    wide = LayerSpec("tokens", "embedding", 300, O, bias=False)
    for kind, last in (("int8", 127), ("uint8", 255)):
        tokens = np.asarray([[last, 0], [last, last]], kind)
        wanted = np.zeros(300)
        wanted[[0, last]] = 0.25, 0.75
        got = factors.token_frequencies(tokens, 300, dtype=np.float64)
        assert np.array_equal(got, wanted)
        record = LayerRecord(tokens, np.ones((2, 2, O)))
        x, _ = factors.rows(wide, record)
        assert np.array_equal(x, reference.one_hot(tokens, 300))
        assert np.array_equal(factors.kronecker_factors(wide, record)[0], wanted)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("route", ["positions", "explicit"])
def test_a_gram_in_float64_is_that_of_the_record_cast_first(spec, route):
    record = record_of(spec, rng(0), 4, (3,), 2)
    coarse = LayerRecord(*(x.astype("f4") if x.dtype == "f8" else x for x in record[:2]))
    fine = LayerRecord(*(x.astype("f8") if x.dtype == "f4" else x for x in coarse[:2]))
    K = factors.gram(spec, coarse, route=route, dtype=np.float64)
    assert K.dtype == np.float64
    assert_close(K, factors.gram(spec, fine, route=route), size=24)


def test_neither_one_hot_rows_nor_a_matrix_of_the_vocabulary_is_formed():
    """Peak memory of factors, refresh and direction is a few times the table's."""
    spec = LayerSpec("tokens", "embedding", 50_000, 2, bias=False)
    r = rng(0)
    record = LayerRecord(r.integers(0, 50_000, (8, 64)), r.standard_normal((8, 64, 2)))
    grads, hyper = {spec: np.ones(spec.block_shape)}, Hyper(0.1)
    table = 8 * 50_000 * 2
    for split in ("pi", "exact"):
        method = KFAC(split)
        state = method.init([spec], np.zeros(()))
        tracemalloc.start()
        run(method, state, [{spec: record}], grads, hyper, xp=None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20 * table  # one-hot rows of the batch would be 256 tables


# --- directions


@law(
    seed=seeds,
    n=st.sampled_from([1, 5]),
    t=st.sampled_from([(), (3,)]),
    log_damping=st.integers(-2, 1),
    split=splits,
    dtype=dtypes,
)
def test_direction_is_the_dense_damped_solve(backend, seed, n, t, log_damping, split, dtype):
    """(G (x) A damped)^-1 vec(grad) with the Kronecker product formed, for both splits."""
    specs = SPECS
    if compiles(backend):
        specs, n, t, dtype = SPECS[:2], 5, (3,), "float32"
    r, damping = rng(seed), 10.0**log_damping
    records = {spec: record_of(spec, r, n, t) for spec in specs}
    grads = {spec: r.standard_normal(spec.block_shape) for spec in specs}
    directions, refreshed, info = step(
        backend, KFAC(split), [records], grads, Hyper(damping, 0.95), dtype
    )
    for spec in specs:
        A, G = oracle_factors(spec, records[spec], None)
        wanted = oracle_direction(spec, grads[spec], A, G, damping, split)
        kappa = condition(spec, A, G, damping, split)
        assert_close(directions[spec], wanted, dtype=dtype, size=16, kappa=kappa)
        assert str(directions[spec].dtype) == dtype
        assert int(refreshed[spec].code) == int(info[spec].code) == 0
        inner = np.sum(wanted * grads[spec])
        assert_close(info[spec].measures["inner"], inner, dtype=dtype, size=20, kappa=kappa)


@pytest.mark.parametrize("split", ["pi", "exact"])
def test_an_embedding_is_the_dense_layer_of_its_one_hot_inputs(split):
    """Tokens or one-hot rows, the same directions, with several batches and vectors."""
    r, hyper = rng(0), Hyper(0.1, 0.9)
    dense = LayerSpec("dense", "dense", V, O, bias=False)
    grad = r.standard_normal(EMBEDDING.block_shape)
    out = {}
    records = [record_of(EMBEDDING, r, n, (3,), 2) for n in (2, 4)]
    for spec in (EMBEDDING, dense):
        method = KFAC(split)
        state = method.init([spec], np.zeros(()))
        for record in records:
            a = record.a if spec is EMBEDDING else reference.one_hot(record.a, V)
            state = method.accumulate(state, {spec: record._replace(a=a)}, hyper)
        state, _ = method.refresh(state, hyper)
        out[spec] = method.direction(state, {spec: grad}, {}, hyper)[0][spec]
    assert_close(out[EMBEDDING], out[dense], kappa=1e3)


def test_a_token_that_was_never_seen_is_damped_alone():
    """Its frequency is 0: its column of the direction is the gradient's over the damping."""
    r, damping = rng(0), 0.1
    record = record_of(EMBEDDING, r, 6)
    assert V - 1 not in record.a
    grad = {EMBEDDING: r.standard_normal((O, V))}
    _, G = oracle_factors(EMBEDDING, record, None)
    method = KFAC("exact")
    state = method.accumulate(method.init([EMBEDDING], np.zeros(())), {EMBEDDING: record}, Hyper())
    state, _ = method.refresh(state, Hyper(damping))
    u, _ = method.direction(state, grad, {}, Hyper())
    assert_close(u[EMBEDDING][:, -1], grad[EMBEDDING][:, -1] / damping, kappa=100)
    assert np.all(factors.mean_gradient(EMBEDDING, record)[:, -1] == 0)
    seen = G * np.mean(record.a == 0) + damping * np.eye(O)
    assert_close(u[EMBEDDING][:, 0], np.linalg.solve(seen, grad[EMBEDDING][:, 0]), kappa=100)


METHODS = {
    "kfac pi": KFAC(),
    "kfac exact": KFAC(damping_split="exact"),
    "dense layer": DenseNGD("layer"),
    "dense full": DenseNGD(),
}


@law(seed=seeds, name=st.sampled_from(sorted(METHODS)), dtype=dtypes)
def test_steps_do_not_depend_on_how_the_batch_comes(backend, seed, name, dtype):
    """Duplicated, permuted, or in micro-batches: the scale contract."""
    if compiles(backend):
        return
    r, method, n = rng(seed), METHODS[name], 6
    joint = batch(r, n, (2,), 2)
    grads = {spec: r.standard_normal(spec.block_shape) for spec in SPECS}

    def part(index):
        return {s: LayerRecord(x.a[index], x.g[:, index]) for s, x in joint.items()}

    wanted, *_ = step(backend, method, [joint], grads, Hyper(0.1, 1.0), dtype)
    for records in (
        [part(np.tile(np.arange(n), 2))],
        [part(r.permutation(n))],
        [part(slice(0, 1)), part(slice(1, 3)), part(slice(3, 6))],
    ):
        got, *_ = step(backend, method, records, grads, Hyper(0.1, 1.0), dtype)
        for spec in SPECS:
            assert_close(got[spec], wanted[spec], dtype=dtype, size=16, kappa=1e3)


@law(seed=seeds, t=st.sampled_from([(), (3,)]), log_damping=st.integers(-2, 1), dtype=dtypes)
def test_dense_directions_are_the_dense_damped_solve(backend, seed, t, log_damping, dtype):
    """All layers in one matrix, and one matrix a layer, from gradients by loops."""
    if backend.variant in ("jit", "compile"):
        return
    if compiles(backend):
        t, dtype = (3,), "float64"
    r, damping, n = rng(seed), 10.0**log_damping, 4
    records = batch(r, n, t)
    grads = {spec: r.standard_normal(spec.block_shape) for spec in SPECS}
    U = np.concatenate([oracle_gradients(s, records[s], None) for s in SPECS], axis=1)
    owner = np.repeat(np.arange(len(SPECS)), [grads[s].size for s in SPECS])
    flat = np.concatenate([grads[s].reshape(-1) for s in SPECS])
    for blocks in ("full",) if compiles(backend) else ("full", "layer"):
        fisher = U.T @ U / n
        if blocks == "layer":
            fisher = np.where(owner[:, None] == owner, fisher, 0.0)
        directions, *_ = step(backend, DenseNGD(blocks), [records], grads, Hyper(damping), dtype)
        got = np.concatenate([directions[s].reshape(-1) for s in SPECS])
        kappa = np.linalg.eigvalsh(fisher).max() / damping + 1
        wanted = reference.solve(fisher, flat, damping)
        assert_close(got, wanted, dtype=dtype, size=len(flat), kappa=kappa)


@law(seed=seeds, t=st.sampled_from([(), (3,)]), log_damping=st.integers(-2, 1), dtype=dtypes)
def test_ekfac_is_exact_for_each_feature_of_a_scale(backend, seed, t, log_damping, dtype):
    """Its basis diagonalises the exact block, and its scales are the block's eigenvalues."""
    if compiles(backend):
        t = (3,)
    r, damping, n = rng(seed), 10.0**log_damping, 4
    records = {spec: record_of(spec, r, n, t) for spec in (SCALE, PLAIN)}
    grads = {spec: r.standard_normal(spec.block_shape) for spec in records}
    directions, *_ = step(backend, EKFAC(), [records], grads, Hyper(damping), dtype)
    for spec in records:
        A, G = oracle_factors(spec, records[spec], None)
        wanted = oracle_direction(spec, grads[spec], A, G, damping, "exact")
        kappa = condition(spec, A, G, damping, "exact")
        assert_close(directions[spec], wanted, dtype=dtype, size=16, kappa=kappa)


@law(seed=seeds, t=st.sampled_from([(), (3,)]), log_damping=st.integers(-1, 1), dtype=dtypes)
def test_fngd_is_the_dense_damped_solve_of_each_layer(backend, seed, t, log_damping, dtype):
    """(lambda I + U^T U / n)^-1 times the mean gradient, from the Gram matrices alone."""
    if backend.variant in ("jit", "compile"):
        return
    specs = SPECS
    if compiles(backend):
        specs, t, dtype = SPECS[:1], (3,), "float64"
    r, damping, n = rng(seed), 10.0**log_damping, 4
    records, hyper = {spec: record_of(spec, r, n, t) for spec in specs}, Hyper(damping)
    method = FNGD(batch_size=n, damping_mode="absolute", gain="natural")
    gradients = {s: oracle_gradients(s, records[s], None) for s in specs}
    grads = {s: gradients[s].mean(axis=0).reshape(s.block_shape) for s in specs}

    def whole(state, records, grads, *, xp):
        state = method.accumulate(state, records, hyper, xp=xp)
        return method.direction(state, grads, records, hyper, xp=xp)[0]

    state = method.init(specs, backend.array(np.zeros(()), dtype))
    out = backend.numpy(
        backend.call(whole, state, backend.tree(records, dtype), backend.tree(grads, dtype))
    )
    for spec, U in gradients.items():
        wanted = reference.solve(U.T @ U / n, grads[spec].reshape(-1), damping)
        kappa = np.linalg.eigvalsh(U.T @ U / n).max() / damping + 1
        assert_close(out[spec].reshape(-1), wanted, dtype=dtype, size=16, kappa=kappa)


# --- degenerate and hostile input


ONE = LayerSpec("one", "embedding", 1, 2, bias=False)
SINGLE = LayerSpec("single", "scale", 1, 1)
DEGENERATE = {
    "single token": (ONE, np.zeros((3, 2), int), rng(0).standard_normal((3, 2, 2))),
    "single feature": (SINGLE, np.ones((3, 1)), rng(0).standard_normal((3, 1))),
    "one example": (EMBEDDING, np.asarray([2]), rng(0).standard_normal((1, O))),
    "the same token": (EMBEDDING, np.full((4, 2), 3), rng(0).standard_normal((4, 2, O))),
    "no gradient, tokens": (EMBEDDING, np.zeros((2, 2), int), np.zeros((2, 2, O))),
    "no gradient, scale": (SCALE, np.ones((2, F)), np.zeros((2, F))),
    "no input, scale": (SCALE, np.zeros((2, F)), rng(0).standard_normal((2, F))),
    "all tokens outside": (EMBEDDING, np.full((2, 2), V), rng(0).standard_normal((2, 2, O))),
}


@law(
    case=st.sampled_from(sorted(DEGENERATE)),
    damping=st.sampled_from([0.0, 0.1]),
    name=st.sampled_from(sorted(METHODS)),
    dtype=dtypes,
)
def test_degenerate_batches_give_finite_directions(backend, case, damping, name, dtype):
    """Right where there is damping; without it a code says what was done, and nothing is wild."""
    if compiles(backend):
        case, name = ("no gradient, tokens", "no input, scale")[case > "o"], "kfac pi"
    if backend.variant in ("jit", "compile"):
        return
    spec, a, g = DEGENERATE[case]
    grad, record = rng(1).standard_normal(spec.block_shape), LayerRecord(a, g)
    out = step(backend, METHODS[name], [{spec: record}], {spec: grad}, Hyper(damping, 0.9), dtype)
    directions, refreshed, info = (x[spec] for x in out)
    assert np.isfinite(directions).all()
    assert float(info.measures["inner"]) >= 0
    assert int(refreshed.code) in ((0,) if damping else (0, 1, 4))
    if damping and name.startswith("kfac"):
        A, G = oracle_factors(spec, record, None)
        wanted = oracle_direction(spec, grad, A, G, damping, name.split()[1])
        assert_close(directions, wanted, dtype=dtype, size=16, kappa=1e3)
    elif damping:
        outside = case == "all tokens outside"
        U = np.zeros((2, grad.size)) if outside else oracle_gradients(spec, record, None)
        wanted = reference.solve(U.T @ U / len(a), grad.reshape(-1), damping)
        assert_close(directions.reshape(-1), wanted, dtype=dtype, size=16, kappa=1e3)


@law(seed=seeds, spec=st.sampled_from(SPECS), split=splits, dtype=dtypes)
def test_a_bad_batch_is_refused_and_a_bad_refresh_keeps_the_last(backend, seed, spec, split, dtype):
    if compiles(backend):
        return
    r, method, hyper = rng(seed), KFAC(split), Hyper(0.1, 0.9)
    grads = backend.tree({spec: r.standard_normal(spec.block_shape)}, dtype)
    good, bad = record_of(spec, r, 3), record_of(spec, r, 3)
    bad.g[1, 1] = np.nan

    def refreshed(state, hyper):
        state, info = backend.call(method.refresh, state, hyper)
        u, told = backend.call(method.direction, state, grads, {}, hyper)
        return state, (int(info[spec].code), int(told[spec].code)), backend.numpy(u[spec])

    state = method.init([spec], backend.array(np.zeros(()), dtype))
    state, codes, u = refreshed(state, hyper)
    assert codes == (4, 4)
    assert np.array_equal(u, backend.numpy(grads[spec]))
    state = backend.call(method.accumulate, state, {spec: backend.tree(good, dtype)}, hyper)
    state, codes, wanted = refreshed(state, hyper)
    assert codes == (0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's word about such data
        state = backend.call(method.accumulate, state, {spec: backend.tree(bad, dtype)}, hyper)
        assert int(state.layers[spec].rejected) == 1
        state, codes, u = refreshed(state, hyper)
        assert codes == (0, 0)
        assert np.array_equal(u, wanted)
        state, codes, u = refreshed(state, Hyper(backend.array(np.asarray(np.nan), dtype)))
    assert codes == (3, 0)
    assert np.array_equal(u, wanted)


# --- diagonal factors

DIAGONALS = {
    "plain": [0.5, 1.0, 0.1],
    "zeros": [0.0, 0.2, 0.0],
    "all zero": [0.0, 0.0, 0.0],
    "nan": [1.0, np.nan, 1.0],
    "inf": [1.0, np.inf, 1.0],
    "huge": [1e30, 1e29, 0.0],
    "tiny": [1e-30, 1e-30, 0.0],
    "tiniest": [1e-36, 2e-36, 3e-36],
    "negative": [1.0, -1.0, 1.0],
}


@law(
    damping=st.sampled_from([0.0, 1e-12, 1e-30, 0.1, -0.1, np.nan, np.inf]),
    good=st.booleans(),
    dtype=dtypes,
)
def test_a_diagonal_is_inverted_by_the_rules_of_the_matrix(backend, damping, good, dtype):
    """Inverse, goodness and code of `diagonal_inverse` are those of `damped_inverse`."""

    def both(diagonal, matrix, damping, old, old_matrix, good, *, xp):
        return (
            inversion.diagonal_inverse(diagonal, damping, old, good, xp=xp),
            inversion.damped_inverse(matrix, damping, old_matrix, good, xp=xp),
        )

    m, good = np.asarray(list(DIAGONALS.values())), np.full(len(DIAGONALS), good)
    old, axes = np.tile([2.0, 3.0, 4.0], (len(m), 1)), np.eye(3)
    matrix = np.where(axes > 0, m[:, None, :], 0.0)
    floats = [backend.array(x, dtype) for x in (m, matrix, np.asarray(damping))]
    floats += [backend.array(x, dtype) for x in (old, old[:, None, :] * axes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        one, other = backend.numpy(backend.call(both, *floats, backend.array(good)))
    for k in range(len(m)):
        assert_close(one[0][k], np.diag(other[0][k]), dtype=dtype, size=3)
    assert np.array_equal(one[1], other[1])
    assert np.array_equal(one[2], other[2])


@law(
    seed=seeds,
    case=st.sampled_from(sorted(DIAGONALS)),
    damping=st.sampled_from([0.0, 1e-12, 0.1]),
    split=splits,
    dtype=dtypes,
)
def test_a_diagonal_factor_refreshes_and_applies_as_its_matrix(
    backend, seed, case, damping, split, dtype
):
    """Codes and directions, from the identity and once more from a good inverse."""
    if backend.variant in ("jit", "compile"):
        return
    if compiles(backend):
        split = "pi"
    r, m = rng(seed), np.asarray(DIAGONALS[case])
    G, V_ = r.standard_normal((2, 5)), r.standard_normal((2, 3))
    G = G @ G.T
    results = []
    for diagonal in (True, False):
        A = [backend.array(x if diagonal else np.diag(x), dtype) for x in (m, np.ones(3), m)]
        G_b, V_b = backend.array(G, dtype), backend.array(V_, dtype)
        inverse = inversion.identity_inverse(
            split, (), 3, 2, diagonal=diagonal, like=V_b, xp=backend.xp
        )
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for k, lam in enumerate((damping, 0.5, damping)):
                inverse, code = backend.call(inversion.refresh_inverse, inverse, A[k], G_b, lam)
                u, good = backend.call(inversion.apply_inverse, inverse, V_b)
                seen.append((int(code), bool(good), backend.numpy(u)))
        results.append(seen)
    for (code, good, u), (code_m, good_m, u_m) in zip(*results, strict=True):
        assert (code, good) == (code_m, good_m)
        scale = float(np.max(np.abs(u_m)))
        assert_close(u, u_m, dtype=dtype, size=3, kappa=1e4, scale=scale)


def test_a_diagonal_shares_the_damping_by_its_trace():
    a = np.asarray([0.1, 0.0, 0.5])
    G = np.diag([2.0, 4.0])
    for x, y in zip(
        inversion.factored_damping(a, G, 0.3),
        inversion.factored_damping(np.diag(a), G, 0.3),
        strict=True,
    ):
        assert_close(x, y)
    values, vectors, ok = inversion.diagonal_spectrum(np.asarray([[1.0, -1e-9], [np.nan, 1.0]]))
    assert values.tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert vectors.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert ok.tolist() == [True, False]


# --- one sentence for a mistake


def accumulate(spec, a, g):
    method = KFAC()
    return method.accumulate(method.init([spec], np.zeros(())), {spec: LayerRecord(a, g)}, Hyper())


IDS = np.zeros((2, 3), int)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: LayerSpec("t", "embedding", 5, 3),
            ValueError,
            "Layer 't' is an embedding, which has no bias; pass bias=False",
        ),
        (
            lambda: LayerSpec("t", "embedding", 5, 3, bias=False, sharing="reduce"),
            ValueError,
            "Layer 't' is an embedding with sharing 'reduce'; .* use 'expand'",
        ),
        (
            lambda: LayerSpec("n", "scale", 5, 3),
            ValueError,
            "Layer 'n' is a scale of 5 inputs and 3 outputs; .* give the same number",
        ),
        (lambda: LayerSpec("n", "lookup", 5, 3), ValueError, "kind is 'lookup'; expected one of"),
        (lambda: LayerSpec("n", "scale", 0, 0), ValueError, "Layer 'n' has 0 inputs"),
        (
            lambda: accumulate(EMBEDDING, IDS.astype(float), np.ones((2, 3, O))),
            TypeError,
            "layer 'tokens': the tokens a has dtype float64; expected an integer dtype",
        ),
        (
            lambda: accumulate(EMBEDDING, IDS, np.ones((2, 3, O), int)),
            TypeError,
            "layer 'tokens': g has dtype int64; expected a real floating",
        ),
        (
            lambda: accumulate(EMBEDDING, np.asarray(1), np.ones(O)),
            ValueError,
            r"layer 'tokens': the tokens a has shape \(\); expected at least 1",
        ),
        (
            lambda: accumulate(EMBEDDING, IDS, np.ones((2, O))),
            ValueError,
            r"layer 'tokens': g has shape \(2, 3\); expected \(2, 3, 3\), or one more",
        ),
        (
            lambda: accumulate(EMBEDDING, np.zeros((0, 3), int), np.ones((0, 3, O))),
            ValueError,
            "the batch is empty",
        ),
        (
            lambda: accumulate(SCALE, np.ones((2, F), int), np.ones((2, F))),
            TypeError,
            "layer 'norm': a has dtype int64; expected a real floating",
        ),
        (
            lambda: accumulate(SCALE, np.ones((2, F + 1)), np.ones((2, F))),
            ValueError,
            r"layer 'norm': a has shape \(2, 5\) with 5 features; expected 4",
        ),
        (
            lambda: factors.join(EMBEDDING, np.ones((O, V))),
            ValueError,
            r"weight has shape \(3, 5\); expected \(5, 3\)",
        ),
        (
            lambda: factors.join(SCALE, np.ones((F, 1)), np.ones(F)),
            ValueError,
            r"weight has shape \(4, 1\); expected \(4,\)",
        ),
        (
            lambda: SNGD().init([SCALE], np.zeros(())),
            ValueError,
            "Layer 'norm' is of kind 'scale', for which SNGD has no local Fisher layer; leave it",
        ),
        (
            lambda: SNGD().init([EMBEDDING], np.zeros(())),
            ValueError,
            "'embedding', for which SNGD .* its gradient is then used as it is",
        ),
        (
            lambda: EKFAC().init([EMBEDDING], np.zeros(())),
            ValueError,
            "'embedding', whose vocabulary is too wide for a basis in EKFAC; leave it out",
        ),
        (
            lambda: ProjectiveKFAC(rank=1).init([EMBEDDING], np.zeros(())),
            ValueError,
            "'embedding', whose factors ProjectiveKFAC cannot project or follow; leave it out",
        ),
        (
            lambda: ProjectiveKFAC(rank=1).init([SCALE], np.zeros(())),
            ValueError,
            "'scale', whose factors ProjectiveKFAC cannot project or follow; leave it out",
        ),
        (
            lambda: FNGD(batch_size=2).accumulate(
                FNGD(batch_size=2).init([EMBEDDING], np.zeros(())),
                {EMBEDDING: LayerRecord(IDS, np.ones((4, 2, 3, O)))},
                Hyper(),
            ),
            ValueError,
            "4 back-propagated vectors; FNGD weights the gradients of the training loss",
        ),
        (
            lambda: factors.embedding_gram(np.asarray(0), np.ones((2, O))),
            ValueError,
            r"tokens has shape \(\); expected at least 1 axes",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


# --- which method takes which


CONV = LayerSpec("conv", "conv2d", 1, 1, geometry=Conv2dGeometry(1))
ONE_EACH = {spec.kind: spec for spec in (LayerSpec("fc", "dense", 2, 2), CONV, EMBEDDING, SCALE)}
EACH_METHOD = (
    EKFAC(),
    FNGD(batch_size=2),
    KFAC(),
    SNGD(),
    DenseNGD(),
    ProjectiveKFAC(rank=1),
    TridiagonalKFAC(),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", EACH_METHOD, ids=lambda method: type(method).__name__)
def test_a_method_takes_the_kinds_it_names_and_no_others(method, kind):
    spec = ONE_EACH[kind]
    if kind in method.kinds:
        assert method.init([spec], np.zeros(())) is not None
    else:
        with pytest.raises(ValueError, match=f"is of kind '{kind}'"):
            method.init([spec], np.zeros(()))
