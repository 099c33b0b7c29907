"""Projective K-FAC as a method: the dense definition, what inverses follow, failures, mistakes."""

import itertools
import warnings

import numpy as np
import pytest
from core.compilers import compiler_of, hypers
from core.eager import eager_law
from harness import BACKENDS, dtypes, law, rng, seeds, tree_map
from hypothesis import strategies as st

from ngd_core import (
    KFAC,
    BasisNoise,
    Conv2dGeometry,
    Hyper,
    LayerRecord,
    LayerSpec,
    ProjectiveKFAC,
    factors,
    reference,
)
from ngd_core.inversion import EAGER
from ngd_core.testing import assert_close, assert_far

FC = LayerSpec("fc", "dense", 6, 4)  # A of order 7, G of order 4
CONV = LayerSpec("conv", "conv2d", 4, 6, geometry=Conv2dGeometry(2, padding="same", groups=2))
BARE = LayerSpec("bare", "dense", 6, 4, bias=False)
SPECS = (FC, CONV)  # of CONV two groups, A of order 9 and G of order 3
BASES = ["top", "gaussian", "range"]
bases = st.sampled_from(BASES)


def affordable(backend):
    """Both layers; one where each shape or example is compiled, which costs seconds."""
    return (CONV,) if backend.library == "jax" or backend.variant == "compile" else SPECS


def batch(r, n, specs=SPECS):
    made = {
        FC: LayerRecord(r.standard_normal((n, 6)), r.standard_normal((n, 4))),
        CONV: LayerRecord(r.standard_normal((n, 4, 3, 3)), r.standard_normal((n, 6, 3, 3))),
    }
    return {spec: made[spec] for spec in specs}


def gradients(r, specs=SPECS):
    return {spec: r.standard_normal(spec.block_shape) for spec in specs}


def draws(method, r, specs=SPECS):
    """Noise as an adapter would draw it; None where the method wants none."""
    shapes = method.noise_shapes(specs)
    noise = {
        spec: BasisNoise(*(None if s is None else r.standard_normal(s) for s in pair))
        for spec, pair in shapes.items()
    }
    return noise if any(x is not None for pair in noise.values() for x in pair) else None


def start(backend, method, r, dtype, specs=SPECS):
    noise = draws(method, r, specs)
    noise = noise if noise is None else backend.tree(noise, dtype)
    return method.init(specs, backend.array(np.zeros(()), dtype), noise=noise, xp=backend.xp)


def run(method, state, records, grads, hyper, later=(), *, xp):
    """Batches, a refresh, more batches, a direction; one function where the backend compiles."""
    for record in records:
        state = method.accumulate(state, record, hyper, xp=xp)
    state, refreshed = method.refresh(state, hyper, xp=xp)
    for record in later:
        state = method.accumulate(state, record, hyper, xp=xp)
    directions, info = method.direction(state, grads, {}, hyper, xp=xp)
    return state, directions, refreshed, info


def step(backend, method, state, records, grads, hyper, dtype, later=()):
    out = backend.call(
        lambda *args, xp: run(method, *args, xp=xp),
        state,
        [backend.tree(record, dtype) for record in records],
        backend.tree(grads, dtype),
        hyper,
        [backend.tree(record, dtype) for record in later],
    )
    return tuple(backend.numpy(part) for part in out)


def average(spec, records, decay):
    """Factors by definition, as a list over the stack."""
    pairs = [factors.kronecker_factors(spec, record[spec]) for record in records]
    counts, decays = [record[spec].a.shape[0] for record in records], [decay] * len(records)
    A, G = (reference.weighted_average([pair[i] for pair in pairs], counts, decays) for i in (0, 1))
    return (A, G) if spec.stack else (A[None], G[None])


def basis_of(factor, k):
    """The basis of member k of a stack, in float64; None if there is none."""
    if not hasattr(factor, "basis"):
        return None
    P = factor.basis.astype(np.float64)
    return P[k] if P.ndim == 3 else P


def expected_direction(spec, layer, A, G, grad, damping, complement):
    blocks = grad.reshape(-1, spec.rows, spec.columns)
    made = [
        reference.projective_direction(
            block,
            A[k],
            G[k],
            damping,
            basis_of(layer.a, k),
            basis_of(layer.g, k),
            complement,
        )
        for k, block in enumerate(blocks)
    ]
    return np.stack(made).reshape(spec.block_shape)


@law(
    seed=seeds,
    basis=bases,
    complement=st.booleans(),
    damping=st.sampled_from([0.03, 1.0]),
    dtype=dtypes,
)
def test_direction_is_the_dense_definition(backend, seed, basis, complement, damping, dtype):
    """Two batches, averaged; every inverse formed by `reference` within the method's own bases.

    For "gaussian", which averages within its basis, this is also compress and average commute.
    """
    r, method = rng(seed), ProjectiveKFAC(0.5, basis, complement, min_size=3)
    specs = affordable(backend)
    records, grads = [batch(r, 8, specs), batch(r, 2, specs)], gradients(r, specs)
    state = start(backend, method, r, dtype, specs)
    state, directions, refreshed, info = step(
        backend, method, state, records, grads, Hyper(damping, 0.9), dtype
    )
    for spec in specs:
        layer, (A, G) = state.layers[spec], average(spec, records, 0.9)
        expected = expected_direction(spec, layer, A, G, grads[spec], damping, complement)
        kappa = max(
            np.linalg.cond(reference.damped(a, g, damping)) for a, g in zip(A, G, strict=True)
        )
        assert_close(directions[spec], expected, dtype=dtype, size=9, kappa=kappa)
        assert str(directions[spec].dtype) == dtype
        assert int(refreshed[spec].code) == int(info[spec].code) == 0
        measures = refreshed[spec].measures
        for m, factor, captured in ((A, layer.a, "captured_a"), (G, layer.g, "captured_g")):
            part = 1.0
            if hasattr(factor, "basis"):
                small = [basis_of(factor, k).T @ x @ basis_of(factor, k) for k, x in enumerate(m)]
                inside = sum(np.trace(x) for x in small)
                part = inside / sum(np.trace(x) for x in m)
                if basis == "top":
                    best = sum(np.linalg.eigvalsh(x)[-len(small[0]) :].sum() for x in m)
                    assert_close(inside, best, dtype=dtype, size=9)
            assert_close(measures[captured], part, dtype=dtype, size=20)


@eager_law(seed=seeds, damping=st.sampled_from([0.0, 0.1]), dtype=dtypes)
def test_with_all_columns_it_is_kfac_exactly(backend, seed, damping, dtype):
    """r = d, and factors below min_size: to the last bit, stale inverses and all."""
    r, specs = rng(seed), affordable(backend)
    records, grads, later = [batch(r, 8, specs)], gradients(r, specs), [batch(r, 2, specs)]
    hyper, like = Hyper(damping, 0.9), backend.array(np.zeros(()), dtype)
    wanted = step(backend, KFAC(), KFAC().init(specs, like), records, grads, hyper, dtype, later)
    for method in (ProjectiveKFAC(1.0, min_size=1), ProjectiveKFAC(2, "gaussian")):
        assert method.noise_shapes(specs) == dict.fromkeys(specs, (None, None))
        got = step(backend, method, method.init(specs, like), records, grads, hyper, dtype, later)
        for spec in specs:
            assert np.array_equal(got[1][spec], wanted[1][spec])
            assert int(got[2][spec].code) == int(wanted[2][spec].code)
            for name in ("rejected", "weight"):
                assert got[2][spec].measures[name] == wanted[2][spec].measures[name]


def kept(counts, decay):
    """alpha of every batch after the first, from the examples in each."""
    weight, alphas = counts[0], []
    for count in counts[1:]:
        alphas.append(decay * weight / (decay * weight + count))
        weight = decay * weight + count
    return alphas


def undamped(layer, A, G, damping):
    """Damping of each factor, and the two factors within their bases, member 0."""
    pi = np.sqrt(np.trace(A) / len(A) / (np.trace(G) / len(G)))
    small = [
        m if basis_of(f, 0) is None else basis_of(f, 0).T @ m @ basis_of(f, 0)
        for f, m in ((layer.a, A), (layer.g, G))
    ]
    return (pi * np.sqrt(damping), np.sqrt(damping) / pi), small


@law(seed=seeds, basis=bases, dtype=dtypes)
def test_inverses_follow_every_batch(backend, seed, basis, dtype):
    """K^-1 = C + delta prod(alpha) I for the present average C; `remaining` is prod(alpha)."""
    r, decay, damping = rng(seed), 0.9, 0.1
    method = ProjectiveKFAC(0.5, basis, recursive=True, min_size=4, halt_below=0.0)
    records, later = [batch(r, 8, [FC])], [batch(r, 1, [FC]), batch(r, 1, [FC])]
    grads, hyper = gradients(r, [FC]), Hyper(damping, decay)
    state = start(backend, method, r, dtype, [FC])
    state, _, _, info = step(backend, method, state, records, grads, hyper, dtype, later)
    layer = state.layers[FC]
    A, G = average(FC, records, decay)
    (for_a, for_g), _ = undamped(layer, A[0], G[0], damping)
    A, G = average(FC, records + later, decay)
    _, small = undamped(layer, A[0], G[0], damping)
    share = np.prod(kept([8, 1, 1], decay))
    inverses = (layer.a.inverse, layer.g.inverse)
    for inverse, C, delta in zip(inverses, small, (for_a, for_g), strict=True):
        exact = C + share * delta * np.eye(len(C))
        kappa = np.linalg.cond(exact) * 10
        assert_close(inverse.matrix, np.linalg.inv(exact), dtype=dtype, size=7, kappa=kappa)
        assert_close(inverse.share, share, dtype=dtype)
        assert bool(inverse.following)
    assert_close(info[FC].measures["remaining"], share, dtype=dtype)
    assert int(info[FC].code) == 0


@eager_law(seed=seeds, dtype=dtypes)
def test_micro_batches_are_the_joint_batch(backend, seed, dtype):
    """In averages, recursion and remaining damping, the later ones folded in with decay 1."""
    r, method = rng(seed), ProjectiveKFAC(3, "gaussian", recursive=True, min_size=4)
    first, joint, grads = batch(r, 8, [FC]), batch(r, 2, [FC]), gradients(r, [FC])
    parts = [{FC: LayerRecord(joint[FC].a[i : i + 1], joint[FC].g[i : i + 1])} for i in range(2)]
    state = start(backend, method, r, dtype, [FC])

    def whole(state, first, joint, parts, grads, *, xp):
        state, *_ = run(method, state, [first], grads, Hyper(0.1, 0.9), xp=xp)
        at_once = method.accumulate(state, joint, Hyper(0.1, 0.9), xp=xp)
        split = method.accumulate(state, parts[0], Hyper(0.1, 0.9), xp=xp)
        split = method.accumulate(split, parts[1], Hyper(0.1, 1.0), xp=xp)
        return at_once, split

    arrays = [backend.tree(x, dtype) for x in (first, joint, parts, grads)]
    at_once, split = backend.numpy(backend.call(whole, state, *arrays))
    for x, y in zip(leaves(at_once.layers[FC]), leaves(split.layers[FC]), strict=True):
        assert_close(x, y, dtype=dtype, size=9, kappa=1e3)
    assert bool(at_once.layers[FC].a.inverse.following)
    assert float(at_once.layers[FC].a.inverse.share) < 1


def state_of(method, records, later, damping=0.1, specs=(FC,)):
    r = rng(11)
    state = method.init(specs, np.zeros(()), noise=draws(method, r, specs))
    return run(method, state, records, gradients(r, specs), Hyper(damping, 0.9), later, xp=np)[0]


def test_auto_follows_only_where_it_pays():
    """Projected factors, up to about r / 3 samples; then it lags until the next refresh."""
    spec = LayerSpec(
        "wide", "dense", 59, 30, bias=False
    )  # A: r = 30; G of order 30 is not projected
    r = rng(0)

    def some(n):
        return {spec: LayerRecord(r.standard_normal((n, 59)), r.standard_normal((n, 30)))}

    def follows(recursive, *sizes):
        method = ProjectiveKFAC(30, recursive=recursive, min_size=31, halt_below=0.0)
        later = [some(n) for n in sizes]
        layer = state_of(method, [some(50)], later, specs=(spec,)).layers[spec]
        return bool(layer.a.inverse.following), bool(layer.g.inverse.following)

    assert follows("auto", 9) == (True, False)
    assert follows("auto", 10) == (False, False)
    assert follows("auto", 10, 2) == (False, False)
    assert follows(True, 10, 2) == (True, True)
    assert follows(True, 29) == (True, True)
    assert follows(True, 30) == (False, False)
    assert follows(False, 1) == (False, False)
    assert follows(False) == (True, True)


@pytest.mark.parametrize(("sharing", "samples"), [("expand", 6), ("reduce", 2)])
def test_a_sample_is_a_row_of_a_factor(sharing, samples):
    """N T of A and M N T of G, or N and M N where positions are put together first."""
    spec = LayerSpec("seq", "dense", 9, 9, bias=False, sharing=sharing)
    r = rng(0)

    def follows(order, vectors):
        method = ProjectiveKFAC(order, recursive=True, min_size=1, halt_below=0.0)
        records = [
            {spec: LayerRecord(r.standard_normal((n, 3, 9)), r.standard_normal((m, n, 3, 9)))}
            for n, m in ((8, 1), (2, vectors))
        ]
        layer = state_of(method, records[:1], records[1:], specs=(spec,)).layers[spec]
        return bool(layer.a.inverse.following), bool(layer.g.inverse.following)

    assert follows(samples, 1) == (False, False)
    assert follows(samples + 1, 1) == (True, True)
    assert follows(samples + 1, 2) == (True, False)


def test_a_refresh_gives_the_same_whether_inverses_followed_or_not():
    """Re-synchronisation: averages are the same, and so is what is made of them."""
    r = rng(1)
    records, later = [batch(r, 8, [FC])], [batch(r, 2, [FC])]
    states = [
        state_of(ProjectiveKFAC(3, recursive=recursive, min_size=4), records, later)
        for recursive in (True, False)
    ]
    followed, stale = (state.layers[FC].a.inverse.matrix for state in states)
    assert_far(followed, stale, least=1e-3)
    method = ProjectiveKFAC(3, min_size=4)
    renewed = [method.refresh(state, Hyper(0.1))[0].layers[FC] for state in states]
    for x, y in zip(leaves(renewed[0]), leaves(renewed[1]), strict=True):
        assert_close(x, y)
    assert float(renewed[0].a.inverse.share) == 1


def test_splitting_a_batch_that_is_too_large_to_follow_is_not_the_same():
    """What the docstring says of micro-batches: a small part follows where the whole cannot."""
    r = rng(2)
    first, joint = batch(r, 8, [FC]), batch(r, 4, [FC])
    parts = [{FC: LayerRecord(joint[FC].a[i::2], joint[FC].g[i::2])} for i in range(2)]
    method = ProjectiveKFAC(3, recursive=True, min_size=4, halt_below=0.0)
    at_once, split = state_of(method, [first], [joint]), state_of(method, [first], parts)
    a, b = at_once.layers[FC].a.inverse, split.layers[FC].a.inverse
    assert not bool(a.following)
    assert bool(b.following)
    assert_far(a.matrix, b.matrix, least=1e-3)


@eager_law(seed=seeds, basis=bases)
def test_bases_stay_if_told_to(backend, seed, basis):
    """rebase=False keeps P to the last bit and renews the inverses; not before there are any."""
    r, method, hyper = rng(seed), ProjectiveKFAC(3, basis, min_size=4), Hyper(0.1, 0.9)
    records, later, grads = batch(r, 8, [FC]), batch(r, 8, [FC]), gradients(r, [FC])
    state = start(backend, method, r, "float64", [FC])

    def whole(state, records, later, grads, *, xp):
        early = method.accumulate(state, records, hyper, xp=xp)
        unmade, info = method.refresh(early, hyper, rebase=False, xp=xp)
        untouched, _ = method.direction(unmade, grads, {}, hyper, xp=xp)
        made, _ = method.refresh(early, hyper, xp=xp)
        last = method.accumulate(made, later, hyper, xp=xp)
        same, _ = method.refresh(last, hyper, rebase=False, xp=xp)
        return info, untouched, made, same

    arrays = [backend.tree(x, "float64") for x in (records, later, grads)]
    info, untouched, made, same = backend.numpy(backend.call(whole, state, *arrays))
    assert int(info[FC].code) == 4
    assert np.array_equal(untouched[FC], grads[FC])
    A, G = average(FC, [records, later], 0.9)
    before, after = made.layers[FC], same.layers[FC]
    assert np.array_equal(before.a.basis, after.a.basis)
    (for_a, _), (C, _) = undamped(after, A[0], G[0], 0.1)
    exact = C + for_a * np.eye(3)
    assert_close(after.a.inverse.matrix, np.linalg.inv(exact), kappa=np.linalg.cond(exact))


@eager_law(seed=seeds, dtype=dtypes)
def test_new_noise_changes_a_gaussian_basis_and_keeps_the_trace(backend, seed, dtype):
    """C <- R C R^T + tau (I - R R^T), the model it had, seen from the new basis."""
    r, method, hyper = rng(seed), ProjectiveKFAC(3, "gaussian", min_size=4), Hyper(0.1, 0.9)
    records, noise = batch(r, 8, [FC]), draws(method, r, [FC])
    state = start(backend, method, r, dtype, [FC])

    def whole(state, records, noise, *, xp):
        before = method.accumulate(state, records, hyper, xp=xp)
        after, _ = method.refresh(before, hyper, noise=noise, xp=xp)
        return before, after

    arrays = [backend.tree(x, dtype) for x in (records, noise)]
    before, after = backend.numpy(backend.call(whole, state, *arrays))
    old, new = before.layers[FC].a, after.layers[FC].a
    assert_far(new.basis, old.basis, least=0.1)
    spread = noise[FC].a
    assert_close(new.basis @ (new.basis.T @ spread), spread, dtype=dtype, size=9)
    P, Q = old.basis.astype(np.float64), new.basis.astype(np.float64)
    tail = (old.trace - np.trace(old.moment)) / 4
    model = P @ old.moment @ P.T + tail * (np.eye(7) - P @ P.T)
    assert_close(new.moment, Q.T @ model @ Q, dtype=dtype, size=9)
    assert_close(np.trace(model), new.trace, dtype=dtype, size=9)
    (A,), _ = average(FC, [records], 0.9)
    assert_close(new.trace, np.trace(A), dtype=dtype, size=9)


@eager_law(seed=seeds)
def test_range_bases_go_on_to_the_dominant_one(backend, seed):
    """Refreshes of unchanged averages are subspace iteration; new noise starts it again."""
    r, method, hyper = rng(seed), ProjectiveKFAC(3, "range", min_size=5), Hyper(0.1, 0.9)
    columns = np.linalg.qr(np.c_[np.ones(8), r.standard_normal((8, 6))])[0][:, 1:] * np.sqrt(8)
    record = {FC: LayerRecord(columns * 2.0 ** -np.arange(6), np.ones((8, 4)))}  # 1, 1, 1/4, 1/16
    state = start(backend, method, r, "float64", [FC])
    state = method.accumulate(state, backend.tree(record, "float64"), hyper, xp=backend.xp)
    captured = []
    for _ in range(8):
        state, info = method.refresh(state, hyper, xp=backend.xp)
        captured.append(float(info[FC].measures["captured_a"]))
    (A,), _ = average(FC, [record], 0.9)
    best = np.linalg.eigvalsh(A)[-3:].sum() / np.trace(A)
    assert all(x <= y + 1e-12 for x, y in itertools.pairwise(captured))
    assert captured[-1] <= best + 1e-12
    assert_close(captured[-1], best, kappa=1e9)
    noise = backend.tree(draws(method, r, [FC]), "float64")
    state, info = method.refresh(state, hyper, noise=noise, xp=backend.xp)
    assert float(info[FC].measures["captured_a"]) < captured[-1]


@eager_law(seed=seeds, basis=bases, dtype=dtypes)
def test_without_complement_nothing_moves_outside_the_bases(backend, seed, basis, dtype):
    """3.7: c = 0 freezes what the bases leave out; <u, grad> = u^T F u >= 0."""
    r, method = rng(seed), ProjectiveKFAC(3, basis, complement=False, min_size=4)
    records, grads = batch(r, 8, [FC]), gradients(r, [FC])
    state = start(backend, method, r, dtype, [FC])
    state, directions, _, info = step(
        backend, method, state, [records], grads, Hyper(0.1, 0.9), dtype
    )
    layer, u = state.layers[FC], directions[FC].astype(np.float64)
    P_a, P_g = basis_of(layer.a, 0), basis_of(layer.g, 0)
    assert_close(P_g @ (P_g.T @ u @ P_a) @ P_a.T, u, dtype=dtype, size=9)
    A, G = average(FC, [records], 0.9)
    flat, damped = u.reshape(-1), reference.damped(A[0], G[0], 0.1)
    inner = float(info[FC].measures["inner"])
    assert inner > 0
    assert_close(flat @ damped @ flat, inner, dtype=dtype, size=30, kappa=np.linalg.cond(damped))


def leaves(tree):
    if isinstance(tree, dict):
        return [x for key in sorted(tree) for x in [key, *leaves(tree[key])]]
    if isinstance(tree, (tuple, list)):
        return [x for value in tree for x in leaves(value)]
    return [tree]


def described(tree):
    return [(x.shape, str(x.dtype)) if hasattr(x, "dtype") else x for x in leaves(tree)]


@eager_law(seed=seeds, basis=bases, dtype=dtypes)
def test_state_keeps_its_structure_and_inputs_stay(backend, seed, basis, dtype):
    r, method = rng(seed), ProjectiveKFAC(0.5, basis, recursive=True, min_size=4)
    records, grads, hyper = batch(r, 2), gradients(r), Hyper(0.1, 0.9)
    state = start(backend, method, r, dtype)
    given = [state, backend.tree(records, dtype), backend.tree(grads, dtype)]
    before = [np.array(x) if hasattr(x, "dtype") else x for x in leaves(backend.numpy(given))]
    after, *_ = backend.call(
        lambda *args, xp: run(method, *args, xp=xp), given[0], [given[1]], given[2], hyper, []
    )
    assert described(backend.numpy(after)) == described(backend.numpy(state))
    for x, y in zip(before, leaves(backend.numpy(given)), strict=True):
        assert np.array_equal(x, y) if hasattr(x, "dtype") else x == y


@eager_law(
    seed=seeds,
    basis=bases,
    bad=st.sampled_from([np.nan, np.inf, 1e30]),
    side=st.sampled_from("ag"),
    dtype=dtypes,
)
def test_a_non_finite_batch_is_refused_and_counted(backend, seed, basis, bad, side, dtype):
    """Its directions are those of the good batches alone, and inverses follow as if none was."""
    bad = 1e300 if bad == 1e30 and dtype == "float64" else bad
    r, hyper = rng(seed), Hyper(0.1, 0.9)
    method = ProjectiveKFAC(3, basis, recursive=True, min_size=5)
    good, grads, poison = batch(r, 8, [FC]), gradients(r, [FC]), batch(r, 2, [FC])
    broken = np.array(getattr(poison[FC], side))
    broken[1, 1] = bad
    poison = {FC: poison[FC]._replace(**{side: broken})}
    state = start(backend, method, r, dtype, [FC])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        _, wanted, _, _ = step(backend, method, state, [good], grads, hyper, dtype)
        state, got, refreshed, info = step(
            backend, method, state, [good, poison], grads, hyper, dtype, [poison]
        )
    assert float(refreshed[FC].measures["rejected"]) == 1
    assert int(state.layers[FC].rejected) == 2
    assert int(info[FC].code) == 0
    for factor in state.layers[FC][:2]:
        assert bool(factor.inverse.following)
        assert float(factor.inverse.share) == 1
    assert_close(got[FC], wanted[FC], dtype=dtype)
    for x in leaves(state):
        assert not hasattr(x, "dtype") or np.isfinite(x).all()


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_decay_is_refused_and_counted(basis, bad):
    r, method = rng(0), ProjectiveKFAC(3, basis, recursive=True, min_size=5)
    state = start(BACKENDS[0], method, r, "float64", [FC])
    state = method.accumulate(state, batch(r, 8, [FC]), Hyper(0.1, 0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        after = method.accumulate(state, batch(r, 2, [FC]), Hyper(0.1, np.asarray(bad)))
    assert int(after.layers[FC].rejected) == 1
    for x, y in zip(leaves(state.layers[FC]), leaves(after.layers[FC]), strict=True):
        assert np.array_equal(x, y) or y is after.layers[FC].rejected


@eager_law(seed=seeds, basis=bases, bad=st.sampled_from([np.nan, np.inf]), dtype=dtypes)
def test_a_non_finite_gradient_gives_a_zero_direction(backend, seed, basis, bad, dtype):
    r, method = rng(seed), ProjectiveKFAC(3, basis, min_size=4)
    records, grads = batch(r, 8), gradients(r)
    grads[FC][0, 0] = bad
    state = start(backend, method, r, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        _, directions, _, info = step(
            backend, method, state, [records], grads, Hyper(0.1, 0.9), dtype
        )
    assert (int(info[FC].code), int(info[CONV].code)) == (5, 0)
    assert np.all(directions[FC] == 0)
    assert np.any(directions[CONV] != 0)
    assert float(info[FC].measures["inner"]) == 0


@eager_law(seed=seeds, basis=bases, complement=st.booleans(), dtype=dtypes)
def test_without_statistics_it_is_sgd_exactly(backend, seed, basis, complement, dtype):
    """Before any refresh, and after one that had nothing: code 4 and the plain gradient."""
    r, method = rng(seed), ProjectiveKFAC(3, basis, complement, min_size=4)
    grads, state = gradients(r), start(backend, method, r, dtype)
    grads = backend.tree(grads, dtype)

    def whole(state, grads, *, xp):
        first = method.direction(state, grads, {}, Hyper(), xp=xp)
        state, infos = method.refresh(state, Hyper(), xp=xp)
        return first, method.direction(state, grads, {}, Hyper(), xp=xp), infos

    first, second, infos = backend.numpy(backend.call(whole, state, grads))
    for directions, info in (first, second):
        for spec in SPECS:
            assert np.array_equal(directions[spec], backend.numpy(grads[spec]))
            assert int(info[spec].code) == int(infos[spec].code) == 4


@eager_law(seed=seeds, basis=bases, dtype=dtypes)
def test_without_curvature_it_is_sgd_of_step_one_over_the_damping(backend, seed, basis, dtype):
    """No inputs, no gradients of examples: F = 0, and the direction is grad / lambda."""
    r, method, damping = rng(seed), ProjectiveKFAC(3, basis, min_size=4), 0.25
    grads, state = gradients(r, [BARE]), start(backend, method, r, dtype, [BARE])
    record = {BARE: LayerRecord(np.zeros((8, 6)), np.zeros((8, 4)))}
    _, directions, _, _ = step(backend, method, state, [record], grads, Hyper(damping, 0.9), dtype)
    assert_close(directions[BARE], grads[BARE] / damping, dtype=dtype, size=9)


@eager_law(seed=seeds, basis=bases, dtype=dtypes)
def test_a_failed_refresh_keeps_basis_and_inverse(backend, seed, basis, dtype):
    """Code 3; directions stay what they were, although the averages went on."""
    r, method, hyper = rng(seed), ProjectiveKFAC(3, basis, min_size=4), Hyper(0.1, 0.9)
    first, second, grads = batch(r, 8, [FC]), batch(r, 8, [FC]), gradients(r, [FC])
    noise = draws(method, r, [FC])
    state = start(backend, method, r, dtype, [FC])
    nan = backend.array(np.asarray(np.nan), dtype)

    def whole(state, first, second, grads, noise, nan, *, xp):
        state, before, _, _ = run(method, state, [first], grads, hyper, xp=xp)
        state = method.accumulate(state, second, hyper, xp=xp)
        failed, infos = method.refresh(state, Hyper(nan, 0.9), noise=noise, xp=xp)
        after, info = method.direction(failed, grads, {}, hyper, xp=xp)
        return state, failed, before, after, infos, info

    arrays = [backend.tree(x, dtype) for x in (first, second, grads, noise or {})]
    state, failed, before, after, infos, info = backend.numpy(
        backend.call(whole, state, *arrays, nan)
    )
    assert (int(infos[FC].code), int(info[FC].code)) == (3, 0)
    assert np.array_equal(before[FC], after[FC])
    for x, y in zip(leaves(state.layers[FC]), leaves(failed.layers[FC]), strict=True):
        assert np.array_equal(x, y)


@pytest.mark.parametrize("side", ["a", "g"])
def test_the_code_of_a_layer_is_that_of_its_worst_factor(side):
    r, method, hyper = rng(0), ProjectiveKFAC(3, min_size=4), Hyper(0.1)
    state = method.init([FC], np.zeros(()))
    state = method.accumulate(state, batch(r, 8, [FC]), hyper)
    state, infos = method.refresh(state, hyper)
    assert int(infos[FC].code) == 0
    layer = state.layers[FC]
    factor = getattr(layer, side)
    factor = factor._replace(moment=np.nan * factor.moment)
    state = state._replace(layers={FC: layer._replace(**{side: factor})})
    assert int(method.refresh(state, hyper)[1][FC].code) == 3


@eager_law(seed=seeds, dtype=dtypes)
def test_a_failed_recursion_keeps_the_last_good_inverse(backend, seed, dtype):
    """Code 3 in `direction`, the old direction, until the next refresh."""
    r, hyper = rng(seed), Hyper(0.1, 0.9)
    method = ProjectiveKFAC(3, recursive=True, min_size=4, halt_below=0.0)
    records, grads, later = batch(r, 8, [FC]), gradients(r, [FC]), batch(r, 1, [FC])
    state = start(backend, method, r, dtype, [FC])
    state, wanted, _, _ = step(backend, method, state, [records], grads, hyper, dtype)
    layer = state.layers[FC]
    q = np.linalg.qr(r.standard_normal((3, 3)))[0]
    broken = (q * np.asarray([-1e3, 1.0, 1.0])) @ q.T  # no inverse of any second moment
    inverse = layer.a.inverse._replace(matrix=broken)
    state = type(state)({FC: layer._replace(a=layer.a._replace(inverse=inverse))})

    def whole(state, later, grads, *, xp):
        old, _ = method.direction(state, grads, {}, hyper, xp=xp)
        after = method.accumulate(state, later, hyper, xp=xp)
        u, info = method.direction(after, grads, {}, hyper, xp=xp)
        renewed, _ = method.refresh(after, hyper, xp=xp)
        _, healed = method.direction(renewed, grads, {}, hyper, xp=xp)
        return after, old, u, info, healed

    arrays = backend.tree(state, dtype), backend.tree(later, dtype), backend.tree(grads, dtype)
    after, old, u, info, healed = backend.numpy(backend.call(whole, *arrays))
    assert (int(info[FC].code), int(healed[FC].code)) == (3, 0)
    assert not np.array_equal(wanted[FC], old[FC])
    assert bool(after.layers[FC].a.inverse.failed)
    assert bool(after.layers[FC].g.inverse.following)
    assert_close(after.layers[FC].a.inverse.matrix, broken, dtype=dtype)
    assert np.isfinite(u[FC]).all()


SPECIAL = {
    "zero inputs": (np.zeros((4, 6)), np.ones((4, 4))),
    "zero gradients": (np.ones((4, 6)), np.zeros((4, 4))),
    "zero": (np.zeros((4, 6)), np.zeros((4, 4))),
    "rank one": (np.ones((4, 6)), np.ones((4, 4))),
    "dead unit": (np.diag([1.0, 0.0, 2.0, 1.0, 1.0, 0.0]), np.tile([1.0, 0.0, 0.0, 2.0], (6, 1))),
    "tiny": (1e-9 * np.ones((4, 6)), 1e-9 * np.ones((4, 4))),
    "huge": (1e9 * np.ones((4, 6)), 1e9 * np.ones((4, 4))),
}


@eager_law(
    case=st.sampled_from(sorted(SPECIAL)),
    basis=bases,
    complement=st.booleans(),
    damping=st.sampled_from([0.0, 1e-3]),
)
def test_degenerate_batches_give_finite_directions(backend, case, basis, complement, damping):
    """In float32, undamped and damped, followed once; never a direction against the gradient."""
    a, g = SPECIAL[case]
    method = ProjectiveKFAC(3, basis, complement, recursive=True, min_size=4, halt_below=0.0)
    grads, record = gradients(rng(0), [FC]), {FC: LayerRecord(a, g)}
    later = {FC: LayerRecord(a[:1], g[:1])}
    state = start(backend, method, rng(1), "float32", [FC])
    state, directions, refreshed, info = step(
        backend, method, state, [record], grads, Hyper(damping, 0.9), "float32", [later]
    )
    assert all(np.isfinite(x).all() for x in leaves(state.layers[FC]))
    assert np.isfinite(directions[FC]).all()
    scale = np.linalg.norm(directions[FC].astype(np.float64)) * np.linalg.norm(grads[FC])
    assert float(info[FC].measures["inner"]) >= -1e-5 * scale
    assert int(refreshed[FC].code) in (0, 1, 4)


def test_gaussian_bases_keep_no_square_of_the_full_order():
    spec = LayerSpec("wide", "dense", 100, 80)
    method = ProjectiveKFAC(8, "gaussian")
    state = method.init([spec], np.zeros(()), noise=draws(method, rng(0), [spec]))
    state = method.accumulate(
        state, {spec: LayerRecord(np.ones((2, 100)), np.ones((2, 80)))}, Hyper()
    )
    assert max(x.size for x in leaves(state.layers[spec])) == 101 * 8


@pytest.mark.parametrize(
    ("rank", "d", "columns"),
    [(0.5, 9, 4), (0.95, 20, 19), (0.29, 100, 29), (1.0, 9, 9), (1, 9, 1), (3, 9, 3), (20, 9, 9)],
)
def test_ranks(rank, d, columns):
    assert ProjectiveKFAC(rank, min_size=1).rank_of(d) == columns
    assert ProjectiveKFAC(rank, min_size=d + 1).rank_of(d) == d
    inputs = ProjectiveKFAC(rank, min_size=1, sides="inputs")
    assert (inputs.rank_of(d, "a"), inputs.rank_of(d, "g")) == (columns, d)


@pytest.mark.parametrize("basis", ["top", "gaussian", "range"])
def test_with_the_inputs_side_alone_the_output_factor_is_kfacs(basis):
    """G whole, A in its basis, by a dense solve; noise is asked for where there is a basis."""
    r, spec = rng(0), LayerSpec("fc", "dense", 7, 6)
    method = ProjectiveKFAC(3, basis, sides="inputs", recursive=False, min_size=4)
    a, g = r.standard_normal((9, 7)), r.standard_normal((9, 6))
    shapes = method.noise_shapes([spec])[spec]
    assert shapes == ((None, None) if basis == "top" else ((8, 3), None))
    noise = {spec: BasisNoise(*(None if x is None else r.standard_normal(x) for x in shapes))}
    state = method.init([spec], np.zeros(()), noise=noise)
    hyper = Hyper(0.3)
    state = method.accumulate(state, {spec: LayerRecord(a, g)}, hyper)
    state, info = method.refresh(state, hyper)
    grad = r.standard_normal(spec.block_shape)
    got, _ = method.direction(state, {spec: grad}, {}, hyper)
    inputs = np.column_stack([a, np.ones(9)])
    A, G = inputs.T @ inputs / 9, g.T @ g / 9
    P = basis_of(state.layers[spec].a, 0)
    assert P.shape == (8, 3)
    want = reference.projective_direction(grad, A, G, 0.3, P, None, True)
    assert_close(got[spec], want, size=8, kappa=100)
    assert float(info[spec].measures["captured_g"]) == 1.0
    assert float(info[spec].measures["captured_a"]) < 1.0


def test_eager_operations_change_nothing():
    r = rng(0)
    records, later = [batch(r, 8)], [batch(r, 1)]
    states = [
        state_of(
            ProjectiveKFAC(0.5, recursive=True, min_size=4, solve_dtype="float32", ops=ops),
            records,
            later,
            specs=SPECS,
        )
        for ops in (ProjectiveKFAC(1).ops, EAGER)
    ]
    for x, y in zip(leaves(states[0].layers[FC]), leaves(states[1].layers[FC]), strict=True):
        assert np.array_equal(x, y)


@pytest.mark.parametrize("compiler", ["jax", "torch"])
def test_changing_hyper_parameters_compile_nothing(compiler):
    """Damping and decay are leaves: after two steps, in which layouts settle, none for ten."""
    r, method = rng(0), ProjectiveKFAC(3, recursive=True, min_size=4)
    records, grads = batch(r, 2, [FC]), gradients(r, [FC])
    xp, array, compiled, count = compiler_of(compiler)
    state = method.init([FC], array(np.zeros(())))
    f = compiled(lambda *args: run(method, *args, xp=xp)[:2])
    compilations = []
    for hyper in hypers(array):
        state, _ = f(state, [tree_map(array, records)], tree_map(array, grads), hyper)
        compilations.append(count())
    assert compilations[-1] == compilations[1] <= 2


TOP, RANDOM = ProjectiveKFAC(3, min_size=5), ProjectiveKFAC(3, "gaussian", min_size=5)
STATE = TOP.init([FC], np.zeros(()))
NOISE = {FC: BasisNoise(np.ones((7, 3)), None)}


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: ProjectiveKFAC(), TypeError, "rank"),
        (lambda: ProjectiveKFAC(0), ValueError, "rank is 0; expected an integer >= 1 or a"),
        (lambda: ProjectiveKFAC(1.5), ValueError, "rank is 1.5"),
        (lambda: ProjectiveKFAC(True), ValueError, "rank is True"),
        (lambda: ProjectiveKFAC(1, "bottom"), ValueError, "basis is 'bottom'; expected one of"),
        (lambda: ProjectiveKFAC(1, complement="yes"), ValueError, "complement is 'yes'"),
        (lambda: ProjectiveKFAC(1, recursive="often"), ValueError, "recursive is 'often'"),
        (lambda: ProjectiveKFAC(1, min_size=0), ValueError, "min_size is 0; expected"),
        (lambda: ProjectiveKFAC(1, halt_below=2.0), ValueError, "halt_below is 2.0"),
        (lambda: ProjectiveKFAC(1, sides="outputs"), ValueError, "sides is 'outputs'"),
        (lambda: ProjectiveKFAC(1, solve_dtype="float16"), ValueError, "solve_dtype is 'float16'"),
        (lambda: TOP.init([], np.zeros(())), ValueError, "specs is empty"),
        (lambda: TOP.init([FC], np.zeros((), int)), TypeError, "like has dtype int64"),
        (
            lambda: RANDOM.init([FC], np.zeros(())),
            ValueError,
            r"noise a of 'fc' is missing; expected standard normal draws of shape \(7, 3\)",
        ),
        (
            lambda: TOP.init([FC], np.zeros(()), noise=NOISE),
            ValueError,
            "noise a of 'fc' is given, but this factor has no random basis",
        ),
        (
            lambda: RANDOM.init([FC], np.zeros(()), noise={FC: BasisNoise(np.ones((7, 2)), None)}),
            ValueError,
            r"noise a of 'fc' has shape \(7, 2\); expected \(7, 3\)",
        ),
        (
            lambda: RANDOM.init([CONV], np.zeros(()), noise=NOISE),
            ValueError,
            "noise holds the layer 'fc', which the state was not made for",
        ),
        (
            lambda: RANDOM.refresh(
                RANDOM.init([FC], np.zeros(()), noise=NOISE), Hyper(), noise=NOISE, rebase=False
            ),
            ValueError,
            "noise is given, but rebase is False",
        ),
        (lambda: TOP.refresh(STATE, Hyper(-1.0)), ValueError, "damping is -1.0; expected"),
        (
            lambda: TOP.accumulate(STATE, batch(rng(0), 2), Hyper()),
            ValueError,
            "records holds the layer 'conv', which the state was not made for",
        ),
        (
            lambda: TOP.accumulate(STATE, batch(rng(0), 2, [FC]), Hyper(decay=2.0)),
            ValueError,
            "decay is 2.0; expected a number between 0 and 1",
        ),
        (
            lambda: TOP.direction(STATE, {FC: np.ones((4, 6))}, {}, Hyper()),
            ValueError,
            r"gradient of 'fc' has shape \(4, 6\); expected \(4, 7\)",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
