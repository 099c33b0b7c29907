"""K-FAC as a method: dense damped solve, state, failures, and one sentence for a mistake."""

import warnings

import numpy as np
import pytest
from core.compilers import compiler_of, hypers
from harness import dtypes, law, rng, seeds, tree_map
from hypothesis import strategies as st

from ngd_core import (
    KFAC,
    Conv2dGeometry,
    DenseNGD,
    Hyper,
    LayerRecord,
    LayerSpec,
    factors,
    reference,
)
from ngd_core.inversion import EAGER, PURE, Ops
from ngd_core.testing import assert_close

FC = LayerSpec("fc", "dense", 3, 2)
SEQ = LayerSpec("seq", "dense", 2, 3, bias=False, sharing="reduce")
CONV = LayerSpec("conv", "conv2d", 4, 6, geometry=Conv2dGeometry(2, padding="same", groups=2))
SPECS = (FC, SEQ, CONV)
splits = st.sampled_from(["pi", "exact"])
METHODS = {
    "kfac pi": KFAC(),
    "kfac exact": KFAC(damping_split="exact"),
    "dense full": DenseNGD(),
    "dense layer": DenseNGD("layer"),
}
methods = st.sampled_from(sorted(METHODS))


def batch(r, n):
    return {
        FC: LayerRecord(r.standard_normal((n, 3)), r.standard_normal((n, 2))),
        SEQ: LayerRecord(r.standard_normal((n, 4, 2)), r.standard_normal((n, 4, 3))),
        CONV: LayerRecord(r.standard_normal((n, 4, 3, 3)), r.standard_normal((n, 6, 3, 3))),
    }


def gradients(r):
    return {spec: r.standard_normal(spec.block_shape) for spec in SPECS}


def run(method, state, records, grads, hyper, *, xp):
    """One whole step of a method; traced as one function where the backend compiles."""
    for record in records:
        state = method.accumulate(state, record, hyper, xp=xp)
    state, refreshed = method.refresh(state, hyper, xp=xp)
    directions, info = method.direction(state, grads, {}, hyper, xp=xp)
    return state, directions, refreshed, info


def step(backend, method, records, grads, hyper, dtype, state=None):
    if state is None:
        state = method.init(SPECS, backend.array(np.zeros(()), dtype))
    out = backend.call(
        lambda *args, xp: run(method, *args, xp=xp),
        state,
        [backend.tree(record, dtype) for record in records],
        backend.tree(grads, dtype),
        hyper,
    )
    return out[0], *(backend.numpy(part) for part in out[1:])


@law(
    seed=seeds,
    n=st.sampled_from([1, 5]),
    log_damping=st.integers(-2, 1),
    split=splits,
    dtype=dtypes,
)
def test_direction_is_the_dense_damped_solve(backend, seed, n, log_damping, split, dtype):
    """(G (x) A damped)^-1 vec(grad) with the Kronecker product formed, for both splits."""
    r, damping = rng(seed), 10.0**log_damping
    records, grads = batch(r, n), gradients(r)
    method = KFAC(damping_split=split)
    _, directions, refreshed, info = step(
        backend, method, [records], grads, Hyper(damping, 0.95), dtype
    )
    for spec in SPECS:
        A, G = factors.kronecker_factors(spec, records[spec])
        stack = A.shape[0] if spec.stack else 1
        parts = zip(
            grads[spec].reshape(stack, spec.rows, spec.columns),
            A.reshape(stack, *A.shape[-2:]),
            G.reshape(stack, *G.shape[-2:]),
            strict=True,
        )
        expected, kappa = [], 1.0
        for grad, A_k, G_k in parts:
            expected.append(reference.direction(grad, A_k, G_k, damping, split))
            kappa = max(kappa, np.linalg.cond(reference.damped(A_k, G_k, damping, split)))
        expected = np.stack(expected).reshape(spec.block_shape)
        assert_close(directions[spec], expected, dtype=dtype, size=spec.columns, kappa=kappa)
        assert str(directions[spec].dtype) == dtype
        assert int(refreshed[spec].code) == int(info[spec].code) == 0
        inner = np.sum(expected * grads[spec])
        assert_close(info[spec].measures["inner"], inner, dtype=dtype, size=20, kappa=kappa)


@law(seed=seeds, n=st.sampled_from([1, 4]), log_damping=st.integers(-2, 1), dtype=dtypes)
def test_dense_direction_is_the_dense_damped_solve(backend, seed, n, log_damping, dtype):
    r, damping = rng(seed), 10.0**log_damping
    records, grads = batch(r, n), gradients(r)
    u = np.concatenate(
        [factors.per_example_gradients(s, records[s])[0].reshape(n, -1) for s in SPECS], axis=1
    )
    for blocks in ("full", "layer"):
        _, directions, _, _ = step(
            backend, DenseNGD(blocks), [records], grads, Hyper(damping, 0.95), dtype
        )
        fisher = u.T @ u / n
        sizes = [grads[s].size for s in SPECS]
        if blocks == "layer":
            owner = np.repeat(np.arange(3), sizes)
            fisher = np.where(owner[:, None] == owner, fisher, 0.0)
        flat = np.concatenate([grads[s].reshape(-1) for s in SPECS])
        expected = reference.solve(fisher, flat, damping)
        got = np.concatenate([directions[s].reshape(-1) for s in SPECS])
        kappa = np.linalg.eigvalsh(fisher).max() / damping + 1
        assert_close(got, expected, dtype=dtype, size=len(flat), kappa=kappa)


@law(seed=seeds, name=methods, dtype=dtypes)
def test_state_keeps_its_structure_and_inputs_stay(backend, seed, name, dtype):
    """Shapes, dtypes and keys of the state are stable over steps; arguments are not written to."""
    r, method = rng(seed), METHODS[name]
    records, grads, hyper = batch(r, 3), gradients(r), Hyper(0.1, 0.9)
    state = method.init(SPECS, backend.array(np.zeros(()), dtype))
    kept = [backend.tree(records, dtype), backend.tree(grads, dtype)]
    before = [backend.numpy(state), backend.numpy(kept)]
    before = backend_copy(before)
    after, *_ = backend.call(
        lambda *args, xp: run(method, *args, xp=xp), state, [kept[0]], kept[1], hyper
    )
    assert described(backend.numpy(after)) == described(backend.numpy(state))
    same(before, [backend.numpy(state), backend.numpy(kept)])


def leaves(tree):
    if isinstance(tree, dict):
        return [x for key in sorted(tree) for x in [key, *leaves(tree[key])]]
    if isinstance(tree, (tuple, list)):
        return [x for value in tree for x in leaves(value)]
    return [tree]


def described(tree):
    return [(x.shape, str(x.dtype)) if hasattr(x, "dtype") else x for x in leaves(tree)]


def backend_copy(tree):
    return [np.array(x) if hasattr(x, "dtype") else x for x in leaves(tree)]


def same(copied, tree):
    for x, y in zip(copied, leaves(tree), strict=True):
        assert np.array_equal(x, y) if hasattr(x, "dtype") else x == y


@law(
    seed=seeds,
    name=methods,
    bad=st.sampled_from([np.nan, np.inf, 1e30]),
    where=st.sampled_from("ag"),
    dtype=dtypes,
)
def test_a_non_finite_batch_is_refused_and_counted(backend, seed, name, bad, where, dtype):
    """Its directions are those of the good batches alone."""
    if bad == 1e30 and dtype == "float64":
        bad = 1e300
    r, method, hyper = rng(seed), METHODS[name], Hyper(0.1, 0.9)
    good, grads, poison = batch(r, 3), gradients(r), batch(r, 3)
    record = poison[FC]
    broken = np.array(getattr(record, where))
    broken[1, 1] = bad
    poison[FC] = record._replace(**{where: broken})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's word about such data
        _, wanted, _, _ = step(backend, method, [good], grads, hyper, dtype)
        state, directions, refreshed, info = step(
            backend, method, [good, poison, good], grads, hyper, dtype
        )
    assert float(refreshed[FC].measures["rejected"]) == 1
    assert_close(refreshed[FC].measures["weight"], 3 * 0.9 + 3, dtype=dtype)
    assert int(info[FC].code) == 0
    if name != "dense full":
        assert_close(directions[FC], wanted[FC], dtype=dtype)
    for x in leaves(backend.numpy(state)):
        assert not hasattr(x, "dtype") or np.isfinite(x).all()


@law(seed=seeds, name=methods, bad=st.sampled_from([np.nan, np.inf]), dtype=dtypes)
def test_a_non_finite_decay_is_refused_and_counted(backend, seed, name, bad, dtype):
    r, method = rng(seed), METHODS[name]
    good, other, grads = only_fc(batch(r, 3)), only_fc(batch(r, 3)), only_fc(gradients(r))
    state = method.init([FC], backend.array(np.zeros(()), dtype))
    state, wanted, _, _ = step(backend, method, [good], grads, Hyper(0.1, 0.9), dtype, state=state)
    hostile = Hyper(0.1, backend.array(np.asarray(bad), dtype))
    _, directions, refreshed, _ = step(backend, method, [other], grads, hostile, dtype, state=state)
    assert float(refreshed[FC].measures["rejected"]) == 1
    assert_close(directions[FC], wanted[FC], dtype=dtype)


@law(seed=seeds, name=methods)
def test_records_are_taken_in_the_dtype_of_the_state(backend, seed, name):
    """Factors of a coarser dtype would not be definite enough, of a finer one not finite."""
    r, method, hyper = rng(seed), METHODS[name], Hyper(0.0, 0.9)
    row = {FC: LayerRecord(r.random((1, 3)) + 0.5, r.random((1, 2)) + 0.5)}
    grad = {FC: np.ones(FC.block_shape)}
    for record_dtype, like in (("float32", "float64"), ("float64", "float32")):
        state = method.init([FC], backend.array(np.zeros(()), like))
        state, directions, refreshed, _ = step(
            backend, method, [row], grad, hyper, record_dtype, state=state
        )
        assert np.isfinite(directions[FC]).all()
        assert int(refreshed[FC].code) == 1
        if record_dtype == "float64":
            large = {FC: LayerRecord(1e25 * row[FC].a, 1e25 * row[FC].g)}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                state, _, refreshed, _ = step(
                    backend, method, [large], grad, hyper, record_dtype, state=state
                )
            assert float(refreshed[FC].measures["rejected"]) == 1
            assert all(np.isfinite(x).all() for x in leaves(backend.numpy(state)) if is_array(x))


def is_array(x):
    return hasattr(x, "dtype")


def only_fc(layers):
    return {FC: layers[FC]}


@law(seed=seeds, name=methods, larger=st.sampled_from([1e4, 1e8]), dtype=dtypes)
def test_decay_zero_forgets_everything(backend, seed, name, larger, dtype):
    """The direction is that of the last batch alone, also after one of another size."""
    r, method, hyper = rng(seed), METHODS[name], Hyper(0.1, 0.0)
    state = method.init([FC], backend.array(np.zeros(()), dtype))
    last, grads = only_fc(batch(r, 3)), only_fc(gradients(r))
    first = {FC: LayerRecord(larger * last[FC].a[::-1], larger * last[FC].g)}
    _, wanted, _, _ = step(backend, method, [last], grads, hyper, dtype, state=state)
    _, directions, _, _ = step(backend, method, [first, last], grads, hyper, dtype, state=state)
    assert_close(directions[FC], wanted[FC], dtype=dtype)


@law(seed=seeds, name=methods)
def test_thousands_of_alike_examples_are_ordinary(backend, seed, name):
    """An image's background in float32, without damping: definite enough to factorise."""
    r, method, n = rng(seed), METHODS[name], 5000
    records = {
        FC: LayerRecord(
            np.broadcast_to(r.random(3) + 0.5, (n, 3)), np.broadcast_to(r.random(2) + 0.5, (n, 2))
        )
    }
    state = method.init([FC], backend.array(np.zeros(()), "float32"))
    grad = {FC: r.standard_normal(FC.block_shape)}
    _, directions, refreshed, info = step(
        backend, method, [records], grad, Hyper(0.0, 0.9), "float32", state=state
    )
    assert int(refreshed[FC].code) == 1
    assert np.isfinite(directions[FC]).all()
    assert float(info[FC].measures["inner"]) > 0


@law(name=methods)
def test_a_direction_beyond_the_gradients_dtype_is_zero(backend, name):
    """Code 5: 1 / damping is finite in the state's float64, not in the gradient's float32."""
    method = METHODS[name]
    record = {FC: LayerRecord(np.zeros((2, 3)), np.zeros((2, 2)))}
    grad = backend.tree({FC: np.ones(FC.block_shape)}, "float32")
    for damping, code, wanted in ((1e-45, 5, 0.0), (1e-3, 0, 1000.0)):
        state = method.init([FC], backend.array(np.zeros(()), "float64"))
        state = backend.call(method.accumulate, state, backend.tree(record), Hyper(damping))
        state, _ = backend.call(method.refresh, state, Hyper(damping))
        directions, info = backend.call(method.direction, state, grad, {}, Hyper(damping))
        u = backend.numpy(directions[FC])
        assert u.dtype == np.float32
        assert_close(u, np.full(FC.block_shape, wanted), dtype="float32")
        assert int(info[FC].code) == code


@law(seed=seeds, name=methods, bad=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]), dtype=dtypes)
def test_a_non_finite_gradient_gives_a_zero_direction(backend, seed, name, bad, dtype):
    """Or one whose product with its direction is not finite."""
    bad = 1e300 if bad == 1e30 and dtype == "float64" else bad
    r, method, hyper = rng(seed), METHODS[name], Hyper(0.1, 0.9)
    records, grads = batch(r, 3), gradients(r)
    grads[FC][0, 0] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        _, directions, _, info = step(backend, method, [records], grads, hyper, dtype)
    assert int(info[FC].code) == 5
    assert np.all(directions[FC] == 0)
    assert float(info[FC].measures["inner"]) == 0
    if name != "dense full":
        assert int(info[SEQ].code) == 0
        assert np.any(directions[SEQ] != 0)


@law(seed=seeds, name=methods, dtype=dtypes)
def test_without_statistics_the_direction_is_the_gradient(backend, seed, name, dtype):
    """Before any batch, before any refresh, and after a refresh that had nothing: code 4."""
    r, method = rng(seed), METHODS[name]
    grads = backend.tree(gradients(r), dtype)
    state = method.init(SPECS, backend.array(np.zeros(()), dtype))
    refreshed, infos = backend.call(method.refresh, state, Hyper())
    for current in (state, refreshed):
        directions, info = backend.call(method.direction, current, grads, {}, Hyper())
        for spec in SPECS:
            assert np.array_equal(backend.numpy(directions[spec]), backend.numpy(grads[spec]))
            assert int(info[spec].code) == int(infos[spec].code) == 4


@law(seed=seeds, split=splits, dtype=dtypes)
def test_a_failed_refresh_keeps_the_last_good_inverse(backend, seed, split, dtype):
    """Code 3, and directions stay what they were."""
    r, method, hyper = rng(seed), KFAC(damping_split=split), Hyper(0.1, 0.9)
    records, grads = batch(r, 3), gradients(r)
    state, wanted, _, _ = step(backend, method, [records], grads, hyper, dtype)
    hostile = Hyper(backend.array(np.asarray(np.nan), dtype), 0.9)
    state, infos = backend.call(method.refresh, state, hostile)
    directions, info = backend.call(
        method.direction, state, backend.tree(grads, dtype), {}, hostile
    )
    for spec in SPECS:
        assert int(infos[spec].code) == 3
        assert int(info[spec].code) == 0
        assert np.array_equal(backend.numpy(directions[spec]), wanted[spec])


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


@law(case=st.sampled_from(sorted(SPECIAL)), name=methods, damping=st.sampled_from([0.0, 1e-3]))
def test_degenerate_batches_give_finite_directions(backend, case, name, damping):
    """In float32, undamped and damped, and never a direction against the gradient."""
    a, g = SPECIAL[case]
    method = METHODS[name]
    state = method.init([FC], backend.array(np.zeros(()), "float32"))
    grad = {FC: rng(0).standard_normal(FC.block_shape)}
    state, directions, refreshed, info = backend.call(
        lambda *args, xp: run(method, *args, xp=xp),
        state,
        [{FC: LayerRecord(backend.array(a, "float32"), backend.array(g, "float32"))}],
        backend.tree(grad, "float32"),
        Hyper(damping, 0.9),
    )
    u = backend.numpy(directions[FC])
    assert np.isfinite(u).all()
    assert float(info[FC].measures["inner"]) >= 0
    code = int(refreshed[FC].code)
    assert code in (0, 1, 4)
    if damping > 0 and case in ("zero", "zero inputs", "zero gradients") and name != "kfac pi":
        expected = grad[FC] / damping if case != "zero inputs" else None
        if expected is not None:
            assert_close(u, expected, dtype="float32", size=10)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_vectors_are_summed_and_micro_batches_count_by_their_examples(name):
    """Vectors 0.6 g and 0.8 g are as good as g; parts of 1, 2 and 3 examples as all 6."""
    r, method, hyper = rng(0), METHODS[name], Hyper(0.1, 0.9)
    before, joint, grads = batch(r, 4), batch(r, 6), gradients(r)
    parts = [
        {
            s: LayerRecord(x.a[i:j], np.stack([0.6 * x.g[i:j], 0.8 * x.g[i:j]]))
            for s, x in joint.items()
        }
        for i, j in ((0, 1), (1, 3), (3, 6))
    ]

    def direction(records, decays):
        state = method.init(SPECS, np.zeros(()))
        for record, decay in zip(records, decays, strict=True):
            state = method.accumulate(state, record, Hyper(0.1, decay))
        return method.direction(method.refresh(state, hyper)[0], grads, {}, hyper)[0]

    got = direction([before, *parts], [0.9, 0.9, 1.0, 1.0])
    wanted = direction([before, joint], [0.9, 0.9])
    for spec in SPECS:
        assert_close(got[spec], wanted[spec], kappa=1e3)


@pytest.mark.parametrize("name", ["dense layer", "kfac exact", "kfac pi"])
def test_a_layer_without_a_record_keeps_its_average(name):
    """Its direction is that of before, the other's that of after."""
    r, method, hyper = rng(0), METHODS[name], Hyper(0.1, 0.9)
    first, second, grads = batch(r, 4), batch(r, 4), gradients(r)
    state = method.accumulate(method.init(SPECS, np.zeros(())), first, hyper)
    some = method.accumulate(state, {FC: second[FC]}, hyper)
    both = method.accumulate(state, second, hyper)
    kept, part, whole = (
        method.direction(method.refresh(s, hyper)[0], grads, {}, hyper)[0]
        for s in (state, some, both)
    )
    for spec in SPECS:
        wanted, other = (whole, kept) if spec == FC else (kept, whole)
        assert np.array_equal(part[spec], wanted[spec])
        assert not np.array_equal(part[spec], other[spec])


@pytest.mark.parametrize("split", ["pi", "exact"])
def test_the_code_of_a_layer_is_that_of_its_worst_group(split):
    """One group of a convolution sees no input and is not damped: nothing to invert there."""
    spec = LayerSpec("conv", "conv2d", 2, 2, False, geometry=Conv2dGeometry(1, groups=2))
    a = rng(0).standard_normal((3, 2, 2, 2))
    a[:, 0] = 0
    record = {spec: LayerRecord(a, rng(1).standard_normal((3, 2, 2, 2)))}
    method, hyper = KFAC(split), Hyper(0.0)
    state = method.accumulate(method.init([spec], np.zeros(())), record, hyper)
    state, refreshed = method.refresh(state, hyper)
    u, info = method.direction(state, {spec: np.ones(spec.block_shape)}, {}, hyper)
    assert int(refreshed[spec].code) == int(info[spec].code) == 4
    assert u[spec][0, 0, 0] == 1
    assert u[spec][1, 0, 0] != 1


@pytest.mark.parametrize("solve", ["float32", "float64"])
@pytest.mark.parametrize("make", [KFAC, DenseNGD])
def test_options_reach_the_factorisation(make, solve):
    seen = []

    def look(m, *, xp):
        seen.append(str(m.dtype))
        return PURE.spd_inverse(m, xp=xp)

    method = make(solve_dtype=solve, ops=Ops(spd_inverse=look, cond=EAGER.cond))
    state = method.init([FC], np.zeros((), np.float32))
    state = method.accumulate(state, only_fc(batch(rng(0), 3)), Hyper())
    method.refresh(state, Hyper())
    assert set(seen) == {solve}


def test_one_by_one_factors():
    """A scalar layer: the direction is g / (a^2 h^2 + lambda)."""
    spec = LayerSpec("scalar", "dense", 1, 1, bias=False)
    record = {spec: LayerRecord(np.asarray([[3.0]]), np.asarray([[0.5]]))}
    for method in (KFAC(damping_split="exact"), DenseNGD()):
        state = method.accumulate(method.init([spec], np.zeros(())), record, Hyper())
        state, _ = method.refresh(state, Hyper(0.25))
        u, _ = method.direction(state, {spec: np.ones((1, 1))}, {}, Hyper())
        assert_close(u[spec], [[1 / (2.25 + 0.25)]])


@law(seed=seeds, log_scale=st.integers(-3, 3), split=splits)
def test_eager_operations_change_nothing(backend, seed, log_scale, split):
    if backend.variant in ("jit", "compile"):
        return
    r = rng(seed)
    records, grads = batch(r, 3), gradients(r)
    hyper = Hyper(10.0**log_scale, 0.9)
    outs = [
        step(
            backend, KFAC(split, solve_dtype="float32", ops=ops), [records], grads, hyper, "float32"
        )
        for ops in (KFAC().ops, EAGER)
    ]
    states = [leaves(backend.numpy(out[0])) for out in outs]
    for x, y in zip(*states, strict=True):
        assert np.array_equal(x, y) if hasattr(x, "dtype") else x == y


@pytest.mark.parametrize(
    ("compiler", "split"),
    [
        pytest.param("jax", "pi", id="jax"),
        pytest.param("torch", "pi", id="torch"),
        pytest.param("torch", "exact", id="torch exact"),
    ],
)
def test_changing_hyper_parameters_compile_nothing(compiler, split):
    """Damping and decay are leaves: one compilation for twelve values."""
    method = KFAC(split)
    r = rng(0)
    records, grads = {FC: batch(r, 3)[FC]}, {FC: gradients(r)[FC]}
    xp, array, compiled, count = compiler_of(compiler)
    state = method.init([FC], array(np.zeros(())))

    def whole(state, records, grads, hyper):
        return run(method, state, [records], grads, hyper, xp=xp)[:2]

    f = compiled(whole)
    for hyper in hypers(array):
        state, _ = f(state, tree_map(array, records), tree_map(array, grads), hyper)
    assert count() == 1


def other_size():
    """As many vectors times examples as a batch of 2, but two vectors of one example."""
    return {SEQ: LayerRecord(np.ones((1, 4, 2)), np.ones((2, 1, 4, 3)))}


GRAD = {FC: np.ones(FC.block_shape)}
STATE = KFAC().init([FC], np.zeros(()))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: KFAC(damping_split="half"),
            ValueError,
            "damping_split is 'half'; expected one of",
        ),
        (lambda: KFAC(solve_dtype="float16"), ValueError, "solve_dtype is 'float16'"),
        (lambda: KFAC(dampin=1), TypeError, "dampin"),
        (lambda: DenseNGD("rows"), ValueError, "blocks is 'rows'; expected one of"),
        (lambda: KFAC().init([], np.zeros(())), ValueError, "specs is empty"),
        (lambda: KFAC().init([FC, FC], np.zeros(())), ValueError, r"\['fc'\] come more than once"),
        (lambda: KFAC().init([FC], np.zeros((), int)), TypeError, "like has dtype int64"),
        (lambda: KFAC().init([FC], 0.0), TypeError, "like is a builtins float"),
        (lambda: KFAC().refresh(STATE, Hyper(-1.0)), ValueError, "damping is -1.0; expected"),
        (
            lambda: KFAC().accumulate(STATE, {FC: batch(rng(0), 2)[FC]}, Hyper(decay=2.0)),
            ValueError,
            "decay is 2.0; expected a number between 0 and 1",
        ),
        (
            lambda: KFAC().accumulate(STATE, {SEQ: batch(rng(0), 2)[SEQ]}, Hyper()),
            ValueError,
            "records holds the layer 'seq', which the state was not made for",
        ),
        (
            lambda: KFAC().direction(STATE, {FC: np.ones((2, 3))}, {}, Hyper()),
            ValueError,
            r"gradient of 'fc' has shape \(2, 3\); expected \(2, 4\)",
        ),
        (
            lambda: KFAC().direction(STATE, {FC: np.ones((2, 4), int)}, {}, Hyper()),
            TypeError,
            "gradient of 'fc' has dtype int64",
        ),
        (
            lambda: DenseNGD().direction(DenseNGD().init(SPECS, np.zeros(())), GRAD, {}, Hyper()),
            ValueError,
            "'seq'",
        ),
        (
            lambda: DenseNGD().accumulate(
                DenseNGD().init(SPECS, np.zeros(())), {FC: batch(rng(0), 2)[FC]}, Hyper()
            ),
            ValueError,
            r"records lack the layers \['seq', 'conv'\]",
        ),
        (
            lambda: DenseNGD().accumulate(
                DenseNGD().init(SPECS, np.zeros(())), batch(rng(0), 2) | other_size(), Hyper()
            ),
            ValueError,
            r"differ in their numbers .* \{'fc': \(1, 2\), 'seq': \(2, 1\), 'conv': \(1, 2\)\}",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_mixed_libraries_get_one_clear_sentence():
    import torch

    with pytest.raises(TypeError, match="Arrays of several libraries were mixed: the state is a"):
        KFAC().direction(STATE, {FC: torch.ones(FC.block_shape)}, {}, Hyper())
    record = LayerRecord(torch.ones((2, 3)), torch.ones((2, 2)))
    with pytest.raises(TypeError, match="convert them to one library first"):
        KFAC().accumulate(STATE, {FC: record}, Hyper())
