"""EKFAC: the Fisher's diagonal in K-FAC's basis, against the dense definition and its identities.

Eigenvectors are never compared: laws take the basis that the method chose, and what it applies.
"""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from core.compilers import compiler_of, hypers
from core.networks import oracle_layers
from harness import BACKENDS, dtypes, law, rng, seeds, tree_map
from hypothesis import strategies as st

from ngd_core import (
    EKFAC,
    KFAC,
    Conv2dGeometry,
    DenseNGD,
    Hyper,
    LayerRecord,
    LayerSpec,
    factors,
    losses,
    nn,
    reference,
)
from ngd_core.factors import eigen
from ngd_core.methods import ekfac as module
from ngd_core.testing import assert_close, assert_far

FC = LayerSpec("fc", "dense", 3, 2)
SEQ = LayerSpec("seq", "dense", 2, 3, bias=False, sharing="reduce")
CONV = LayerSpec("conv", "conv2d", 4, 6, geometry=Conv2dGeometry(2, padding="same", groups=2))
SPECS = (FC, SEQ, CONV)
METHOD = EKFAC()
NUMPY = BACKENDS[0]


def traced(backend):
    """Whether a law's steps are compiled, which costs seconds: only some laws are."""
    return backend.variant in ("jit", "compile")


def affordable(backend):
    """All layers; fewer where every shape is compiled."""
    return (FC,) if backend.library == "jax" or traced(backend) else SPECS


def batch(r, n, specs=SPECS, vectors=1):
    """Records in which inputs and gradients of an example are large together."""
    shapes = {
        FC: ((3,), (2,)),
        SEQ: ((4, 2), (4, 3)),
        CONV: ((4, 3, 3), (6, 3, 3)),
    }
    made = {}
    for spec in specs:
        a, g = shapes[spec]
        size = 2.0 ** r.uniform(-1.5, 1.0, n)
        made[spec] = LayerRecord(
            r.standard_normal((n, *a)) * size.reshape(n, *(1 for _ in a)),
            r.standard_normal((vectors, n, *g)) * size.reshape(n, *(1 for _ in g)),
        )
    return made


def gradients(r, specs=SPECS):
    return {spec: r.standard_normal(spec.block_shape) for spec in specs}


def run(state, before, seen, grads, hyper, *, method=METHOD, xp):
    """Statistics, a basis, one batch that is seen in it and nothing else, a direction."""
    for record in before:
        state = method.accumulate(state, record, hyper, xp=xp)
    state, refreshed = method.refresh(state, hyper, xp=xp)
    if seen is not None:
        state = method.accumulate(state, seen, hyper._replace(decay=0.0), xp=xp)
    directions, info = method.direction(state, grads, {}, hyper, xp=xp)
    return state, directions, refreshed, info


def step(backend, before, seen, grads, hyper, dtype="float64", state=None, method=METHOD):
    if state is None:
        state = method.init(list(grads), backend.array(np.zeros(()), dtype))
    out = backend.call(
        run, state, *backend.tree(([*before], seen, grads), dtype), hyper, method=method
    )
    return tuple(backend.numpy(part) for part in out)


# the dense side -----------------------------------------------------------------------------


def canonical(spec, record):
    """The record in the oracle's layout, a pair for each group."""
    sizes = {"bias": spec.bias}
    if spec.geometry is None:
        sizes |= {"in_features": spec.in_features, "out_features": spec.out_features}
    else:
        g = spec.geometry
        sizes |= {"in_channels": spec.in_features, "out_channels": spec.out_features}
        sizes |= {"padding": g.pads(*record.a.shape[2:])}
        sizes |= {k: getattr(g, k) for k in ("kernel_size", "stride", "dilation", "groups")}
    layer = reference.Layer(spec.kind, spec.name, **sizes)
    g = record.g if record.g.ndim > record.a.ndim else record.g[None]
    return reference.canonical_record(layer, record.a, g)


def fishers(spec, record):
    """Exact blocks of a batch, one a group."""
    return [reference.block_fisher(a, g, spec.bias) for a, g in canonical(spec, record)]


def kfac_factors(spec, record):
    return [
        reference.kronecker_factors(a, g, spec.bias, spec.sharing)
        for a, g in canonical(spec, record)
    ]


def members(spec, layer):
    """``(S, Q_A, Q_G)`` of each group, float64."""
    parts = [np.asarray(x, np.float64) for x in (layer.scales, layer.a_basis, layer.g_basis)]
    return list(zip(*parts, strict=True)) if spec.stack else [tuple(parts)]


def approximations(spec, layer):
    """``Q diag(S) Q^T`` of each group."""
    return [reference.ekfac_fisher(*member) for member in members(spec, layer)]


def check_directions(state, directions, info, grads, damping, dtype="float64"):
    """(Q diag(S) Q^T + lambda I)^-1 vec(grad) with every matrix formed."""
    for spec, grad in grads.items():
        parts = members(spec, state.layers[spec])
        blocks = grad.reshape(len(parts), spec.rows, spec.columns)
        solved = [
            reference.ekfac_direction(V, *p, damping) for V, p in zip(blocks, parts, strict=True)
        ]
        wanted = np.stack(solved).reshape(spec.block_shape)
        kappa = 1 + max(S.max() for S, _, _ in parts) / damping
        assert_close(directions[spec], wanted, dtype=dtype, size=spec.columns, kappa=kappa)
        assert str(directions[spec].dtype) == dtype
        assert int(info[spec].code) == 0
        inner = np.sum(wanted * grad)
        assert_close(info[spec].measures["inner"], inner, dtype=dtype, size=20, kappa=kappa)


# what S is ----------------------------------------------------------------------------------


@law(seed=seeds, n=st.sampled_from([5, 1]), vectors=st.sampled_from([2, 1]), dtype=dtypes)
def test_scales_are_the_diagonal_of_the_fisher_in_the_basis(backend, seed, n, vectors, dtype):
    """S = diag(Q^T F Q) of the batch seen in the basis, by exact per-example gradients.

    Also where the basis comes from reduced factors; the trace of Q diag(S) Q^T is that of F.
    """
    specs, r = SPECS, rng(seed)
    if backend.library == "jax" or traced(backend):  # one shape: with positions and without
        n, vectors, specs = 5, 2, (FC, CONV)
    before, seen, grads = batch(r, 6, specs), batch(r, n, specs, vectors), gradients(r, specs)
    start = METHOD.init(specs, backend.array(np.zeros(()), dtype))
    state, directions, refreshed, info = step(
        backend, [before], seen, grads, Hyper(0.5, 0.9), dtype, start
    )
    assert described(state) == described(backend.numpy(start))
    check_directions(state, directions, info, grads, 0.5, dtype)
    for spec in specs:
        assert int(refreshed[spec].code) == 0
        exact = fishers(spec, seen[spec])
        for F, (S, Q_A, Q_G) in zip(exact, members(spec, state.layers[spec]), strict=True):
            wanted = reference.basis_diagonal(F, Q_A, Q_G)
            assert_close(S, wanted, dtype=dtype, size=spec.columns)
            assert_close(np.sum(S), np.trace(F), dtype=dtype, size=spec.columns)
            assert np.all(S >= 0)


@law(seed=seeds, dtype=dtypes)
def test_the_basis_diagonalises_the_averaged_factors(backend, seed, dtype):
    """Q_A^T A Q_A and Q_G^T G Q_G are diagonal, Q orthogonal; A and G averaged as for K-FAC."""
    if traced(backend):
        return
    r, counts, hyper, specs = rng(seed), [4, 2], Hyper(0.1, 0.7), affordable(backend)
    records = [batch(r, n, specs) for n in counts]
    state, *_ = step(backend, records, None, gradients(r, specs), hyper, dtype)
    for spec in specs:
        pairs = [kfac_factors(spec, record[spec]) for record in records]
        for k, (_, Q_A, Q_G) in enumerate(members(spec, state.layers[spec])):
            for i, Q in enumerate((Q_A, Q_G)):
                M = reference.weighted_average([p[k][i] for p in pairs], counts, [0.7, 0.7])
                inside = Q.T @ M @ Q
                assert_close(Q.T @ Q, np.eye(len(Q)), dtype=dtype, size=len(Q))
                assert_close(inside, np.diag(np.diag(inside)), dtype=dtype, size=len(Q))


def test_scales_are_averaged_like_the_factors():
    """From K-FAC's eigenvalues at the first refresh on, with the examples behind them as weight."""
    r, counts = rng(0), [6, 2, 3]
    first, *later = (batch(r, n) for n in counts)
    hyper, decay = Hyper(0.1, 0.6), 0.6
    state = METHOD.accumulate(METHOD.init(SPECS, np.zeros(())), first, hyper)
    state, _ = METHOD.refresh(state, hyper)
    for record in later:
        state = METHOD.accumulate(state, record, hyper)
    for spec in SPECS:
        for k, (S, Q_A, Q_G) in enumerate(members(spec, state.layers[spec])):
            A, G = kfac_factors(spec, first[spec])[k]
            history = [reference.basis_diagonal(reference.kron(G, A), Q_A, Q_G)]
            history += [
                reference.basis_diagonal(fishers(spec, x[spec])[k], Q_A, Q_G) for x in later
            ]
            wanted = reference.weighted_average(history, counts, [decay] * 3)
            assert_close(S, wanted, size=spec.columns)
            assert_far(history[1], history[0], least=0.1)


def test_gradients_are_summed_over_positions_before_they_are_squared():
    """Squares of each location's own gradient are another number, and so are those of means."""
    spec = LayerSpec("seq", "dense", 2, 3)
    r = rng(1)
    record = LayerRecord(r.standard_normal((5, 4, 2)), r.standard_normal((5, 4, 3)))
    canonical = factors.rows(spec, record)
    S = factors.eigen_scales(canonical, np.eye(3), np.eye(3), bias=True, xp=np)
    x = np.concatenate([record.a, np.ones((5, 4, 1))], axis=-1)
    located = record.g[..., :, None] * x[..., None, :]
    assert_close(S, np.mean(np.sum(located, axis=1) ** 2, axis=0), size=4)
    reduced = np.sum(record.g, axis=1)[:, :, None] * np.mean(x, axis=1)[:, None, :]
    for wrong in (np.sum(located**2, axis=1), reduced**2):
        assert_far(S, np.mean(wrong, axis=0), least=0.2)


@pytest.mark.parametrize("held", [1, 2, 3, 100])
def test_pieces_of_a_batch_change_nothing(monkeypatch, held):
    """Formed one example at a time, two, or all; the last piece may be smaller."""
    r = rng(2)
    record = batch(r, 5, [CONV], vectors=2)[CONV]
    canonical = factors.rows(CONV, record)
    bases = (r.standard_normal((2, 9, 9)), r.standard_normal((2, 3, 3)))
    wanted = factors.eigen_scales(canonical, *bases, bias=True, xp=np)
    monkeypatch.setattr(eigen, "LARGEST", held * 2 * 2 * 3 * 9)
    assert eigen.piece(5, 2 * 2 * 3 * 9) == held
    got = factors.eigen_scales(canonical, *bases, bias=True, xp=np)
    assert_close(got, wanted, size=9)


def test_a_batch_is_cut_into_few_pieces():
    for examples in (1, 31, 32, 33, 512):
        size = eigen.piece(examples, 2**40)
        assert size >= 1
        assert -(-examples // size) <= 32
    assert eigen.piece(512, 2**12) == 64


# how good it is -----------------------------------------------------------------------------


def distances(spec, record, dtype="float64"):
    """``(F, F_EKFAC, F_KFAC)`` of each group, one batch in the basis of its own factors."""
    records = {spec: record}
    state, *_ = step(
        NUMPY, [records], records, {spec: np.zeros(spec.block_shape)}, Hyper(0.1), dtype
    )
    found = approximations(spec, state.layers[spec])
    exact, factored = fishers(spec, record), kfac_factors(spec, record)
    return [
        (F, E, reference.kron(G, A)) for F, E, (A, G) in zip(exact, found, factored, strict=True)
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("seed", range(5))
def test_pythagoras_and_never_worse_than_kfac(seed, spec, dtype):
    """|F - F_KFAC|^2 = |F - F_EKFAC|^2 + |F_EKFAC - F_KFAC|^2 in Frobenius norm."""
    record = batch(rng(seed), 8, [spec])[spec]
    for F, E, K in distances(spec, record, dtype):
        sides = [np.linalg.norm(x) ** 2 for x in (F - K, F - E, E - K)]
        assert_close(sides[1] + sides[2], sides[0], dtype=dtype, size=len(F))
        assert sides[1] < sides[0]
        assert_far(E, K, least=0.1)
        assert_close(np.trace(E), np.trace(F), dtype=dtype, size=len(F))


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_it_is_closer_to_the_exact_fisher_of_a_network(likelihood):
    """Of the oracle, by complex steps: its diagonal is S, and K-FAC is farther from it."""
    r = rng(3)
    model = nn.Sequential(
        nn.Conv2d("conv", 2, 2, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dense("fc", 8, 3),
        nn.Tanh(),
        nn.Dense("head", 3, 3),
    )
    params = {name: r.standard_normal(shape) for name, shape in nn.shapes(model).items()}
    x = r.standard_normal((6, 2, 3, 3))
    outputs, tape = nn.forward(model, params, x)
    vectors = losses.fisher_vectors("exact", losses.get(likelihood), outputs)
    records = nn.backward(model, params, tape, vectors, grads=False).records
    specs = {spec.name: spec for spec in nn.specs(model)}
    grads = {spec: np.zeros(spec.block_shape) for spec in records}
    state, *_ = step(NUMPY, [records], records, grads, Hyper(0.1))
    network = reference.Network(oracle_layers(model, {specs["conv"]: x.shape}))
    oracle = reference.ekfac_factors(network, params, x, vectors)
    exact = reference.exact_fisher(network, params, x, likelihood)
    for name, F in reference.diagonal_blocks(exact, network).items():
        spec = specs[name]
        [(S, Q_A, Q_G)] = members(spec, state.layers[spec])
        assert_close(S, reference.basis_diagonal(F, Q_A, Q_G), size=len(F))
        [(A, G)] = kfac_factors(spec, records[spec])
        E, K = reference.ekfac_fisher(S, Q_A, Q_G), reference.kron(G, A)
        # whole matrices: where eigenvalues are equal this Fisher is the same in any basis
        assert_close(E, reference.ekfac_fisher(*oracle[name]), size=len(F))
        if name == "head" and likelihood == "gaussian":
            assert_close(E, F, size=len(F))
            assert_close(K, F, size=len(F))
        else:
            assert np.linalg.norm(F - E) < 0.97 * np.linalg.norm(F - K)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_groups_and_reduced_factors_of_a_network_follow_the_oracle(sharing):
    """From inputs to the approximation, without a look at the basis of the method."""
    r = rng(20)
    model = nn.Sequential(nn.Conv2d("conv", 4, 6, 2, groups=2), nn.Tanh(), nn.GlobalAvgPool2d())
    params = {name: r.standard_normal(shape) for name, shape in nn.shapes(model).items()}
    x = r.standard_normal((12, 4, 4, 3))
    outputs, tape = nn.forward(model, params, x)
    vectors = losses.fisher_vectors("exact", losses.categorical, outputs)
    [(spec, record)] = nn.backward(model, params, tape, vectors, grads=False).records.items()
    network = reference.Network(oracle_layers(model, {spec: x.shape}))
    oracle = reference.ekfac_factors(network, params, x, vectors, sharing)["conv"]
    spec = replace(spec, sharing=sharing)
    records, grads = {spec: record}, {spec: r.standard_normal(spec.block_shape)}
    state, directions, *_ = step(NUMPY, [records], records, grads, Hyper(0.1))
    for E, *member in zip(approximations(spec, state.layers[spec]), *oracle, strict=True):
        assert_close(E, reference.ekfac_fisher(*member), size=17)
    wanted = reference.ekfac_direction(grads[spec], *oracle, 0.1)
    assert_close(directions[spec], wanted, size=17, kappa=1e2)


@law(seed=seeds, log_damping=st.integers(-2, 1), decay=st.sampled_from([0.9, 0.0]), dtype=dtypes)
def test_direction_is_the_dense_damped_solve(backend, seed, log_damping, decay, dtype):
    """Before a batch was seen in the basis and after; compiled in the law of the scales."""
    if traced(backend):
        return
    r, damping, specs = rng(seed), 10.0**log_damping, affordable(backend)
    before, seen, grads = batch(r, 6, specs), batch(r, 5, specs), gradients(r, specs)
    for later in (None, seen):
        state, directions, _, info = step(
            backend, [before, before], later, grads, Hyper(damping, decay), dtype
        )
        check_directions(state, directions, info, grads, damping, dtype)


# where it is another method -----------------------------------------------------------------


@law(seed=seeds, dtype=dtypes)
def test_a_first_step_is_that_of_kfac_with_exact_damping(backend, seed, dtype):
    """Until a batch is seen in the basis; from then on it is not."""
    if traced(backend):
        return
    r, specs = rng(seed), affordable(backend)
    before, grads, hyper = batch(r, 6, specs), gradients(r, specs), Hyper(1.0, 0.9)
    _, directions, *_ = step(backend, [before], None, grads, hyper, dtype)
    kfac = KFAC("exact")
    state = kfac.init(specs, np.zeros(()))
    _, wanted, *_ = run(state, [before], None, grads, hyper, method=kfac, xp=np)
    for spec in specs:
        kappa = 1 + max(
            np.linalg.norm(reference.kron(G, A), 2) for A, G in kfac_factors(spec, before[spec])
        )
        assert_close(directions[spec], wanted[spec], dtype=dtype, size=9, kappa=kappa)
        if backend.name == "numpy":
            _, later, *_ = step(backend, [before], before, grads, hyper, dtype)
            assert_far(later[spec], wanted[spec], least=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(3))
def test_one_datum_without_positions_is_exact(seed, dtype):
    """As K-FAC is then: all three methods solve with the same matrix."""
    r, hyper = rng(seed), Hyper(0.3)
    record, grads = batch(r, 1, [FC]), gradients(r, [FC])
    _, directions, *_ = step(NUMPY, [record], record, grads, hyper, dtype)
    [F] = fishers(FC, record[FC])
    kappa = 1 + np.linalg.norm(F, 2) / 0.3
    for method in (KFAC("exact"), DenseNGD()):
        state = method.init([FC], np.zeros(()))
        _, wanted, *_ = run(state, [record], None, grads, hyper, method=method, xp=np)
        assert_close(directions[FC], wanted[FC], dtype=dtype, size=8, kappa=kappa)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_1x1_convolution_at_one_position_is_a_dense_layer(groups):
    """And each group is a layer of its own."""
    r, hyper = rng(4), Hyper(0.1)
    conv = LayerSpec("conv", "conv2d", 4, 6, geometry=Conv2dGeometry(1, groups=groups))
    dense = LayerSpec("dense", "dense", 4 // groups, 6 // groups)
    before, seen = (
        LayerRecord(r.standard_normal((n, 4, 1, 1)), r.standard_normal((n, 6, 1, 1)))
        for n in (6, 5)
    )
    grad = r.standard_normal((groups, dense.rows, dense.columns))
    _, got, *_ = step(
        NUMPY, [{conv: before}], {conv: seen}, {conv: grad.reshape(conv.block_shape)}, hyper
    )
    for k in range(groups):
        parts = [
            LayerRecord(
                x.a[:, 4 // groups * k : 4 // groups * (k + 1), 0, 0],
                x.g[:, 6 // groups * k : 6 // groups * (k + 1), 0, 0],
            )
            for x in (before, seen)
        ]
        _, wanted, *_ = step(NUMPY, [{dense: parts[0]}], {dense: parts[1]}, {dense: grad[k]}, hyper)
        member = got[conv].reshape(grad.shape)[k]
        assert_close(member, wanted[dense], size=5, kappa=1e3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_diagonal_fisher_is_exact(dtype):
    """Whatever its entries; K-FAC knows only those that are products."""
    spec = LayerSpec("fc", "dense", 3, 2, bias=False)
    sizes = np.asarray([[1.0, 2.0, 5.0], [4.0, 0.5, 3.0]])
    o, d = (x.reshape(-1) for x in np.indices((2, 3)))
    record = LayerRecord(np.eye(3)[d] * sizes[o, d, None], np.eye(2)[o] * sizes[o, d, None])
    [(F, E, K)] = distances(spec, record, dtype)
    assert_close(F, np.diag(sizes.reshape(-1) ** 4 / 6))
    assert_close(E, F, dtype=dtype, size=6)
    assert_far(K, F, least=0.3)


# a new basis --------------------------------------------------------------------------------


@law(seed=seeds, dtype=dtypes)
def test_a_new_basis_keeps_the_diagonal_and_the_trace(backend, seed, dtype):
    """S' = diag(Q'^T (Q diag(S) Q^T) Q') at every refresh but the first; its sum is that of S."""
    if traced(backend):
        return
    r, specs = rng(seed), (CONV,) if backend.library == "jax" else SPECS
    before, seen, later = batch(r, 6, specs), batch(r, 5, specs), batch(r, 4, specs)
    grads = gradients(r, specs)

    def whole(state, before, seen, later, grads, *, xp):
        old, *_ = run(state, [before], seen, grads, Hyper(0.1, 0.9), xp=xp)
        old = METHOD.accumulate(old, later, Hyper(0.1, 0.5), xp=xp)
        return old, METHOD.refresh(old, Hyper(0.1), xp=xp)[0]

    start = METHOD.init(specs, backend.array(np.zeros(()), dtype))
    args = backend.tree((before, seen, later, grads), dtype)
    old, new = backend.numpy(backend.call(whole, start, *args))
    for spec in specs:
        pairs = zip(*(members(spec, state.layers[spec]) for state in (old, new)), strict=True)
        for was, (S, Q_A, Q_G) in pairs:
            wanted = reference.basis_diagonal(reference.ekfac_fisher(*was), Q_A, Q_G)
            assert_close(S, wanted, dtype=dtype, size=spec.columns)
            assert_close(np.sum(S), np.sum(was[0]), dtype=dtype, size=spec.columns)
            assert_far(np.sort(S, axis=None), np.sort(was[0], axis=None), least=1e-3)


@law(seed=seeds, groups=st.sampled_from([3, 1]), dtype=dtypes)
def test_scales_in_another_basis_are_the_diagonal_there(backend, seed, groups, dtype):
    """For any two orthogonal bases; and back in its own basis S is S."""
    r, rows, columns = rng(seed), 3, 4
    S = np.exp(r.standard_normal((groups, rows, columns)))
    old, new = (
        [np.linalg.qr(r.standard_normal((groups, n, n)))[0] for n in (columns, rows)]
        for _ in range(2)
    )
    got, own = (
        backend.numpy(
            backend.call(factors.rebase_scales, *backend.tree((S, tuple(old), tuple(other)), dtype))
        )
        for other in (new, old)
    )
    assert_close(own, S, dtype=dtype, size=4)
    for k in range(groups):
        F = reference.ekfac_fisher(S[k], old[0][k], old[1][k])
        wanted = reference.basis_diagonal(F, new[0][k], new[1][k])
        assert_close(got[k], wanted, dtype=dtype, size=4)
        assert_close(np.sum(got[k]), np.sum(S[k]), dtype=dtype, size=12)


def test_a_refresh_without_new_statistics_changes_nothing():
    r, hyper, grads = rng(5), Hyper(0.1), gradients(rng(6))
    state, *_ = step(NUMPY, [batch(r, 6)], batch(r, 5), grads, hyper)
    directions = []
    for _ in range(3):
        directions.append(METHOD.direction(state, grads, {}, hyper)[0])
        state, _ = METHOD.refresh(state, hyper)
    stale, fresh, again = directions
    for spec in SPECS:
        assert_close(again[spec], fresh[spec], size=9, kappa=1e2)
        assert_far(fresh[spec], stale[spec], least=1e-3)


# scale --------------------------------------------------------------------------------------


@law(seed=seeds, dtype=dtypes)
def test_a_step_does_not_depend_on_how_the_batch_comes(backend, seed, dtype):
    """Twice, in another order, in micro-batches of 1, 2 and 3 (the first with the decay)."""
    if traced(backend):
        return
    r, hyper, specs = rng(seed), Hyper(1.0, 0.9), affordable(backend)
    first, joint, grads = batch(r, 4, specs), batch(r, 6, specs), gradients(r, specs)

    def part(records, index):
        return {s: LayerRecord(x.a[index], x.g[:, index]) for s, x in records.items()}

    def direction(before, parts):
        state = METHOD.init(specs, backend.array(np.zeros(()), dtype))
        for record in before:
            state = METHOD.accumulate(state, backend.tree(record, dtype), hyper)
        state, _ = METHOD.refresh(state, hyper)
        for k, record in enumerate(parts):
            decay = 1.0 if k else hyper.decay
            state = METHOD.accumulate(state, backend.tree(record, dtype), Hyper(1.0, decay))
        state, _ = METHOD.refresh(state, hyper)
        return backend.numpy(METHOD.direction(state, backend.tree(grads, dtype), {}, hyper)[0])

    twice = np.tile(np.arange(6), 2)
    double_first = part(first, np.tile(np.arange(4), 2))
    wanted = direction([first], [joint])
    shapes = {
        "twice": ([double_first], [part(joint, twice)]),
        "order": ([part(first, np.asarray([2, 0, 3, 1]))], [part(joint, r.permutation(6))]),
        "parts": ([first], [part(joint, i) for i in ([0], [1, 2], [3, 4, 5])]),
    }
    for before, parts in shapes.values():
        got = direction(before, parts)
        for spec in specs:
            # the largest eigenvalue over the damping, which is the condition of the solve
            assert_close(got[spec], wanted[spec], dtype=dtype, size=9, kappa=1e3)


@pytest.mark.parametrize("log_scale", [-6, 6])
def test_a_scaled_loss_with_scaled_damping_gives_the_same_direction(log_scale):
    """F -> k F, g -> k g and lambda -> k lambda: what is left of a sum instead of a mean."""
    k, r = 2.0**log_scale, rng(7)
    before, seen, grads = batch(r, 6), batch(r, 5), gradients(r)

    def scaled(records):
        return {s: LayerRecord(x.a, k**0.5 * x.g) for s, x in records.items()}

    _, wanted, *_ = step(NUMPY, [before], seen, grads, Hyper(0.1))
    _, got, *_ = step(
        NUMPY,
        [scaled(before)],
        scaled(seen),
        {spec: k * grad for spec, grad in grads.items()},
        Hyper(k * 0.1),
    )
    for spec in SPECS:
        assert_close(got[spec], wanted[spec], size=9, kappa=1e3)


def test_vectors_are_summed():
    """0.6 g and 0.8 g back-propagated are as good as g."""
    r, hyper = rng(8), Hyper(0.1)
    before, seen, grads = batch(r, 6), batch(r, 5), gradients(r)
    doubled = {s: LayerRecord(x.a, np.concatenate([0.6 * x.g, 0.8 * x.g])) for s, x in seen.items()}
    _, wanted, *_ = step(NUMPY, [before], seen, grads, hyper)
    _, got, *_ = step(NUMPY, [before], doubled, grads, hyper)
    for spec in SPECS:
        assert_close(got[spec], wanted[spec], size=9, kappa=1e3)


# damping ------------------------------------------------------------------------------------


def test_the_damping_is_that_of_the_step():
    """Not of the last refresh: one basis, any damping, as a number or as an array."""
    r, grads = rng(9), gradients(rng(10))
    state, *_ = step(NUMPY, [batch(r, 6)], batch(r, 5), grads, Hyper(0.1))
    for damping in (0.01, 3.0, np.asarray(0.7)):
        directions, info = METHOD.direction(state, grads, {}, Hyper(damping))
        check_directions(state, directions, info, grads, float(damping))


@law(seed=seeds, bad=st.sampled_from([np.nan, np.inf, -1.0]), dtype=dtypes)
def test_a_hostile_damping_is_replaced_by_that_of_the_last_refresh(backend, seed, bad, dtype):
    """Code 3; a refresh with such a damping keeps basis and scales."""
    if traced(backend):
        return
    r, hyper = rng(seed), Hyper(0.1, 0.9)
    before, seen, grads = batch(r, 6, [FC]), batch(r, 5, [FC]), gradients(r, [FC])
    state = METHOD.init([FC], backend.array(np.zeros(()), dtype))
    args = backend.tree(([before], seen, grads), dtype)
    state, wanted, *_ = backend.call(run, state, *args, hyper)
    hostile = Hyper(backend.array(np.asarray(bad), dtype), 0.9)
    directions, info = backend.call(METHOD.direction, state, args[2], {}, hostile)
    assert int(info[FC].code) == 3
    assert np.array_equal(backend.numpy(directions[FC]), backend.numpy(wanted[FC]))
    kept, infos = backend.call(METHOD.refresh, state, hostile)
    assert int(infos[FC].code) == 3
    assert_same(backend.numpy(kept), backend.numpy(state))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("damping", [0.0, 1e-30])
def test_a_damping_below_rounding_is_raised(dtype, damping):
    """To 10 eps tr(F), which keeps S + lambda above 0 for a singular Fisher: code 1."""
    record, grads = batch(rng(11), 1, [FC]), gradients(rng(12), [FC])
    state, directions, _, info = step(NUMPY, [record], record, grads, Hyper(damping), dtype)
    [(S, Q_A, Q_G)] = members(FC, state.layers[FC])
    floor = 10 * np.finfo(dtype).eps * np.sum(S)
    # by the definition, without the dense matrix, whose condition number is 1 / (10 eps)
    wanted = Q_G @ (Q_G.T @ grads[FC] @ Q_A / (S + floor)) @ Q_A.T
    assert int(info[FC].code) == 1
    assert_close(directions[FC], wanted, dtype=dtype, size=8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_large_damping_leaves_the_gradient(dtype):
    """lambda u -> grad: plain descent with the rate over lambda."""
    r, damping, grads = rng(13), 1e18, gradients(rng(14))
    _, directions, *_ = step(NUMPY, [batch(r, 6)], batch(r, 5), grads, Hyper(damping), dtype)
    for spec in SPECS:
        assert_close(damping * directions[spec], grads[spec], dtype=dtype, size=9)


# failures -----------------------------------------------------------------------------------


def leaves(tree):
    if isinstance(tree, dict):
        return [x for key in sorted(tree) for x in [key, *leaves(tree[key])]]
    if isinstance(tree, (tuple, list)):
        return [x for value in tree for x in leaves(value)]
    return [tree]


def arrays(tree):
    return [x for x in leaves(tree) if hasattr(x, "dtype")]


def described(tree):
    return [(x.shape, str(x.dtype)) if hasattr(x, "dtype") else x for x in leaves(tree)]


def assert_same(got, wanted):
    for x, y in zip(arrays(got), arrays(wanted), strict=True):
        assert np.array_equal(x, y, equal_nan=True)


@law(
    seed=seeds,
    bad=st.sampled_from([np.nan, np.inf, 1e30]),
    where=st.sampled_from("ag"),
    dtype=dtypes,
)
def test_a_non_finite_batch_is_refused_and_counted(backend, seed, bad, where, dtype):
    """Before and after the basis is known; all averages stay."""
    if traced(backend):
        return
    if bad == 1e30 and dtype == "float64":
        bad = 1e300
    r, hyper, specs = rng(seed), Hyper(0.1, 0.9), [FC]
    good, record = batch(r, 4, specs), batch(r, 3, specs)[FC]
    broken = {"a": np.array(record.a), "g": np.array(record.g)}
    broken[where][..., 1, 1] = bad
    poison = {FC: LayerRecord(**broken)}

    def whole(state, good, poison, *, xp):
        state = METHOD.accumulate(state, good, hyper, xp=xp)
        bad_first = METHOD.accumulate(state, poison, hyper, xp=xp)
        states = [METHOD.refresh(x, hyper, xp=xp)[0] for x in (state, bad_first)]
        return states, METHOD.accumulate(states[1], poison, hyper, xp=xp)

    state = METHOD.init(specs, backend.array(np.zeros(()), dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's word about such data
        out = backend.call(whole, state, *backend.tree((good, poison), dtype))
    (clean, once), twice = backend.numpy(out)
    for state, count in ((once, 1), (twice, 2)):
        assert int(state.layers[FC].rejected) == count
        assert_same(
            state.layers[FC]._replace(rejected=np.asarray(0)),
            clean.layers[FC]._replace(rejected=np.asarray(0)),
        )
    _, refreshed = METHOD.refresh(twice, hyper)
    assert float(refreshed[FC].measures["rejected"]) == 2
    assert_close(refreshed[FC].measures["weight"], 4.0, dtype=dtype)


def test_scales_that_overflow_refuse_the_batch():
    """In float32, where both factors are finite and their product is not."""
    a, g = np.full((2, 3), 3e12, np.float32), np.full((2, 2), 1e12, np.float32)
    state = METHOD.init([FC], np.zeros((), np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        state = METHOD.accumulate(state, {FC: LayerRecord(a, g)}, Hyper())
    assert np.all(np.isfinite(factors.kronecker_factors(FC, LayerRecord(a, g))[0]))
    assert int(state.layers[FC].rejected) == 1
    assert float(state.layers[FC].weight) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_decay_is_refused_and_counted(bad):
    r, grads, hyper = rng(15), gradients(rng(16), [FC]), Hyper(0.1)
    state, wanted, *_ = step(NUMPY, [batch(r, 4, [FC])], batch(r, 4, [FC]), grads, hyper)
    state = METHOD.accumulate(state, batch(r, 3, [FC]), Hyper(0.1, np.asarray(bad)))
    got, _ = METHOD.direction(state, grads, {}, hyper)
    assert int(state.layers[FC].rejected) == 1
    assert np.array_equal(got[FC], wanted[FC])


@law(seed=seeds, bad=st.sampled_from([np.nan, np.inf, -np.inf]), dtype=dtypes)
def test_a_non_finite_gradient_gives_a_zero_direction(backend, seed, bad, dtype):
    if traced(backend):
        return
    r, grads = rng(seed), gradients(rng(seed), [FC, SEQ])
    grads[FC][0, 0] = bad
    record = batch(r, 4, [FC, SEQ])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        _, directions, _, info = step(backend, [record], None, grads, Hyper(0.1), dtype)
    assert int(info[FC].code) == 5
    assert np.all(directions[FC] == 0)
    assert float(info[FC].measures["inner"]) == 0
    assert int(info[SEQ].code) == 0
    assert np.any(directions[SEQ] != 0)


@law(seed=seeds, dtype=dtypes)
def test_without_statistics_the_direction_is_the_gradient(backend, seed, dtype):
    """Before any batch, after a refresh that had nothing, and before a refresh: code 4."""
    if traced(backend):
        return
    r, specs = rng(seed), affordable(backend)
    grads, records = backend.tree((gradients(r, specs), batch(r, 4, specs)), dtype)
    state = METHOD.init(specs, backend.array(np.zeros(()), dtype))
    refreshed, infos = backend.call(METHOD.refresh, state, Hyper())
    seen = backend.call(METHOD.accumulate, state, records, Hyper())
    for current in (state, refreshed, seen):
        directions, info = backend.call(METHOD.direction, current, grads, {}, Hyper())
        for spec in specs:
            assert np.array_equal(backend.numpy(directions[spec]), backend.numpy(grads[spec]))
            assert int(info[spec].code) == int(infos[spec].code) == 4


@pytest.mark.parametrize("what", ["a", "g"])
def test_a_failed_refresh_keeps_the_last_basis_and_scales(what):
    """Code 3, for averages that were spoilt from outside; other layers go on."""
    r, hyper, grads = rng(17), Hyper(0.1), gradients(rng(18))
    state, wanted, *_ = step(NUMPY, [batch(r, 6)], batch(r, 5), grads, hyper)
    layer = state.layers[FC]
    spoilt = layer._replace(**{what: np.full_like(getattr(layer, what), np.nan)})
    kept, info = METHOD.refresh(module.EKFACState({**state.layers, FC: spoilt}), hyper)
    directions, found = METHOD.direction(kept, grads, {}, hyper)
    assert [int(info[spec].code) for spec in SPECS] == [3, 0, 0]
    assert int(found[FC].code) == 0
    assert_same(kept.layers[FC], spoilt)
    assert np.array_equal(directions[FC], wanted[FC])
    assert_far(directions[SEQ], wanted[SEQ], least=1e-3)


def test_spoilt_scales_give_a_zero_direction():
    """There is nothing good to keep: code 3 from the refresh, 5 from the direction."""
    grads, hyper = gradients(rng(18), [FC]), Hyper(0.1)
    state, *_ = step(NUMPY, [batch(rng(17), 6, [FC])], None, grads, hyper)
    layer = state.layers[FC]
    spoilt = layer._replace(scales=np.full_like(layer.scales, np.nan))
    kept, info = METHOD.refresh(module.EKFACState({FC: spoilt}), hyper)
    directions, found = METHOD.direction(kept, grads, {}, hyper)
    assert int(info[FC].code) == 3
    assert int(found[FC].code) == 5
    assert np.all(directions[FC] == 0)


def test_the_code_of_a_layer_is_that_of_its_worst_group():
    """One group sees no input and is not damped: there is nothing to divide by."""
    spec = LayerSpec("conv", "conv2d", 2, 2, False, geometry=Conv2dGeometry(1, groups=2))
    a = rng(0).standard_normal((3, 2, 2, 2))
    a[:, 0] = 0
    record = {spec: LayerRecord(a, rng(1).standard_normal((3, 2, 2, 2)))}
    grads = {spec: np.ones(spec.block_shape)}
    _, u, refreshed, info = step(NUMPY, [record], record, grads, Hyper(0.0))
    assert int(refreshed[spec].code) == 0
    assert int(info[spec].code) == 4
    assert u[spec][0, 0, 0] == 1
    assert u[spec][1, 0, 0] != 1


SPECIAL = {
    "zero inputs": (np.zeros((4, 3)), np.ones((4, 2))),
    "zero gradients": (np.ones((4, 3)), np.zeros((4, 2))),
    "zero": (np.zeros((4, 3)), np.zeros((4, 2))),
    "rank one": (np.ones((4, 3)), np.ones((4, 2))),
    "one example": (np.asarray([[1.0, 2.0, 3.0]]), np.asarray([[1.0, -1.0]])),
    "dead unit": (np.diag([1.0, 0.0, 2.0]), np.asarray([[1.0, 0.0]] * 3)),
    "tiny": (1e-15 * np.ones((4, 3)), 1e-15 * np.ones((4, 2))),
    "huge": (1e9 * np.ones((4, 3)), 1e9 * np.ones((4, 2))),
}


@law(
    case=st.sampled_from(sorted(SPECIAL)),
    damping=st.sampled_from([0.0, 1e-3]),
    bias=st.booleans(),
)
def test_degenerate_batches_give_finite_directions(backend, case, damping, bias):
    """In float32, undamped and damped, and never a direction against the gradient."""
    if traced(backend):
        return
    spec = LayerSpec("fc", "dense", 3, 2, bias)
    record, grads = {spec: LayerRecord(*SPECIAL[case])}, {spec: np.ones(spec.block_shape)}
    for seen in (None, record):
        _, directions, refreshed, info = step(
            backend, [record], seen, grads, Hyper(damping, 0.9), "float32"
        )
        u = directions[spec]
        assert np.isfinite(u).all()
        assert float(info[spec].measures["inner"]) >= 0
        assert int(refreshed[spec].code) == 0
        assert int(info[spec].code) in (0, 1, 4)
        empty = case == "zero" or case == "zero gradients" or (case == "zero inputs" and not bias)
        if empty:
            wanted = grads[spec] / damping if damping else grads[spec]
            assert_close(u, wanted, dtype="float32")
            assert int(info[spec].code) == (0 if damping else 4)


def test_one_by_one_factors():
    """A scalar layer: g / (mean of a^2 h^2 + lambda), where K-FAC has the product of two means."""
    spec = LayerSpec("scalar", "dense", 1, 1, bias=False)
    record = {spec: LayerRecord(np.asarray([[3.0], [1.0]]), np.asarray([[0.5], [2.0]]))}
    _, u, *_ = step(NUMPY, [record], record, {spec: np.ones((1, 1))}, Hyper(0.25))
    assert_close(u[spec], [[1 / ((2.25 + 4.0) / 2 + 0.25)]])


def test_a_direction_beyond_the_gradients_dtype_is_zero():
    """Code 5: 1 / damping is finite in the state's float64, not in the gradient's float32."""
    record = {FC: LayerRecord(np.zeros((2, 3)), np.zeros((2, 2)))}
    state = METHOD.accumulate(METHOD.init([FC], np.zeros(())), record, Hyper())
    state, _ = METHOD.refresh(state, Hyper())
    grad = {FC: np.ones(FC.block_shape, np.float32)}
    directions, info = METHOD.direction(state, grad, {}, Hyper(1e-45))
    assert directions[FC].dtype == np.float32
    assert np.all(directions[FC] == 0)
    assert int(info[FC].code) == 5


# options, compilation, mistakes -------------------------------------------------------------


@pytest.mark.parametrize("solve", ["float32", "float64"])
def test_the_solve_dtype_reaches_the_eigendecomposition(monkeypatch, solve):
    seen = []

    def look(m, *, dtype, xp):
        seen.append(dtype)
        return original(m, dtype=dtype, xp=xp)

    original = module.safe_eigh
    monkeypatch.setattr(module, "safe_eigh", look)
    method = EKFAC(solve_dtype=solve)
    state = method.accumulate(method.init([FC], np.zeros(())), batch(rng(0), 3, [FC]), Hyper())
    state, _ = method.refresh(state, Hyper())
    assert seen == [solve, solve]
    assert state.layers[FC].a_basis.dtype == np.float64


@pytest.mark.parametrize("record_dtype", ["float32", "float64"])
def test_records_are_taken_in_the_dtype_of_the_state(record_dtype):
    for like in ("float32", "float64"):
        state = METHOD.init([FC], np.zeros((), like))
        record = NUMPY.tree(batch(rng(0), 3, [FC]), record_dtype)
        state = METHOD.accumulate(state, record, Hyper())
        assert {str(x.dtype) for x in state.layers[FC][:4]} == {like}


@pytest.mark.parametrize("compiler", ["jax", "torch"])
def test_changing_hyper_parameters_compile_nothing(compiler):
    """Damping and decay are leaves: one compilation for twelve values."""
    r = rng(0)
    records, grads = batch(r, 3, [FC]), gradients(r, [FC])
    xp, array, compiled, count = compiler_of(compiler)
    state = METHOD.init([FC], array(np.zeros(())))

    def whole(state, records, grads, hyper):
        state = METHOD.accumulate(state, records, hyper, xp=xp)
        state, _ = METHOD.refresh(state, hyper, xp=xp)
        return state, METHOD.direction(state, grads, {}, hyper, xp=xp)

    f = compiled(whole)
    for hyper in hypers(array):
        state, _ = f(state, tree_map(array, records), tree_map(array, grads), hyper)
    assert count() == 1


STATE = METHOD.init([FC], np.zeros(()))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: EKFAC(solve_dtype="float16"), ValueError, "solve_dtype is 'float16'"),
        (lambda: EKFAC(damping_split="pi"), TypeError, "damping_split"),
        (lambda: METHOD.init([], np.zeros(())), ValueError, "specs is empty"),
        (lambda: METHOD.init([FC], np.zeros((), int)), TypeError, "like has dtype int64"),
        (lambda: METHOD.refresh(STATE, Hyper(-1.0)), ValueError, "damping is -1.0; expected"),
        (
            lambda: METHOD.direction(STATE, gradients(rng(0), [FC]), {}, Hyper(-1.0)),
            ValueError,
            "damping is -1.0; expected",
        ),
        (
            lambda: METHOD.accumulate(STATE, batch(rng(0), 2, [FC]), Hyper(decay=2.0)),
            ValueError,
            "decay is 2.0; expected a number between 0 and 1",
        ),
        (
            lambda: METHOD.accumulate(STATE, batch(rng(0), 2, [SEQ]), Hyper()),
            ValueError,
            "records holds the layer 'seq', which the state was not made for",
        ),
        (
            lambda: METHOD.direction(STATE, {FC: np.ones((2, 3))}, {}, Hyper()),
            ValueError,
            r"gradient of 'fc' has shape \(2, 3\); expected \(2, 4\)",
        ),
        (
            lambda: reference.ekfac_direction(np.ones(3), 1, 1, 1, 1.0),
            ValueError,
            "block_gradient has shape",
        ),
        (
            lambda: reference.ekfac_direction([[1.0]], [[1.0]], [[1.0]], [[1.0]], -1.0),
            ValueError,
            "damping is -1.0",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
