"""The state of SNGD: its structure, what is refused, what it falls back to, mistakes."""

import warnings

import numpy as np
import pytest
from core.compilers import compiler_of, hypers
from core.sngd_cases import (
    CONV,
    FC,
    METHODS,
    SEQ,
    SPECS,
    N,
    batch,
    gradients,
    law_over,
    one_step,
    run,
    traced,
    varied,
)
from harness import dtypes, rng, seeds, tree_map

from ngd_core import SNGD, Hyper, LayerRecord, reference
from ngd_core.inversion import EAGER
from ngd_core.testing import assert_close


def leaves(tree):
    if isinstance(tree, dict):
        return [x for key in sorted(tree) for x in [key, *leaves(tree[key])]]
    if isinstance(tree, (tuple, list)):
        return [x for value in tree for x in leaves(value)]
    return [tree]


def described(tree):
    return [(x.shape, str(x.dtype)) if hasattr(x, "dtype") else x for x in leaves(tree)]


@law_over({"name": METHODS}, seed=seeds, dtype=dtypes)
def test_state_keeps_its_structure_and_inputs_stay(backend, seed, name, dtype):
    """Shapes, dtypes and keys of the state are stable; arguments are not written to."""
    if traced(backend):
        return
    r, method = rng(seed), METHODS[name]
    specs = [CONV] if backend.library == "jax" else SPECS
    kept = [backend.tree(batch(r, specs), dtype), backend.tree(gradients(r, specs), dtype)]
    state = method.init(specs, backend.array(np.zeros(()), dtype))
    before = [
        np.array(x) if hasattr(x, "dtype") else x for x in leaves(backend.numpy([state, kept]))
    ]
    after, *_ = backend.call(
        lambda *args, xp: run(method, *args, xp=xp), state, [kept[0]], kept[1], Hyper(0.1, 0.9)
    )
    assert described(backend.numpy(after)) == described(backend.numpy(state))
    for x, y in zip(before, leaves(backend.numpy([state, kept])), strict=True):
        assert np.array_equal(x, y) if hasattr(x, "dtype") else x == y


@law_over({"name": METHODS, "bad": [np.nan, np.inf, 1e300]}, seed=seeds, dtype=dtypes)
def test_a_non_finite_batch_is_refused_and_counted(backend, seed, name, bad, dtype):
    """Its directions are those of the good batch alone, the identity's share included."""
    bad = min(bad, 1e30) if dtype == "float32" else bad
    r, hyper = rng(seed), Hyper(0.1, 0.9)
    method = varied(name, start="identity")
    specs = [FC] if traced(backend) else [FC, SEQ]
    good, grads, poison = batch(r, specs), gradients(r, specs), batch(r, specs)
    a = np.array(poison[FC].a)
    a[1, 1] = bad
    poison[FC] = poison[FC]._replace(a=a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's word about such data
        _, wanted, _, _ = one_step(backend, method, [good], grads, hyper, dtype)
        state, got, refreshed, info = one_step(backend, method, [good, poison], grads, hyper, dtype)
    assert float(refreshed[FC].measures["rejected"]) == 1
    assert all(float(refreshed[spec].measures["rejected"]) == 0 for spec in specs[1:])
    assert int(info[FC].code) == 0
    assert_close(got[FC], wanted[FC], dtype=dtype)
    for x in leaves(backend.numpy(state)):
        assert not hasattr(x, "dtype") or np.isfinite(x).all()


@pytest.mark.parametrize("bad", ["decay", "cast"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_turns_non_finite_on_its_way_into_the_state_is_refused(name, bad):
    """By a hostile decay, or by the cast of a finite float64 statistic to the state's float32."""
    r, method = rng(0), varied(name, start="identity")
    good = {FC: batch(r)[FC]}
    state = method.accumulate(method.init([FC], np.zeros((), np.float32)), good, Hyper(0.1, 0.9))
    poison = {FC: good[FC]._replace(a=1e25 * good[FC].a)} if bad == "cast" else good
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        after = method.accumulate(
            state, poison, Hyper(0.1, np.asarray(np.nan) if bad == "decay" else 0.9)
        )
    assert int(after.layers[FC].rejected) == 1
    for x, y in zip(leaves(state.layers[FC]), leaves(after.layers[FC]), strict=True):
        assert np.array_equal(x, y) or y is after.layers[FC].rejected


@law_over({"name": METHODS, "bad": [np.nan, np.inf, -np.inf]}, seed=seeds, dtype=dtypes)
def test_a_non_finite_gradient_gives_a_zero_direction(backend, seed, name, bad, dtype):
    if traced(backend):
        return
    r, method = rng(seed), METHODS[name]
    records, grads = batch(r, [FC, SEQ]), gradients(r, [FC, SEQ])
    grads[FC][0, 0] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        _, directions, _, info = one_step(backend, method, [records], grads, Hyper(0.1, 0.9), dtype)
    assert (int(info[FC].code), int(info[SEQ].code)) == (5, 0)
    assert np.all(directions[FC] == 0)
    assert float(info[FC].measures["inner"]) == 0
    assert np.any(directions[SEQ] != 0)


@law_over({"name": METHODS}, seed=seeds, dtype=dtypes)
def test_a_failed_refresh_keeps_the_last_good_inverse(backend, seed, name, dtype):
    """Code 3, and directions stay what they were."""
    r, method, hyper = rng(seed), METHODS[name], Hyper(0.1, 0.9)
    records, grads = batch(r, [FC]), gradients(r, [FC])
    state, wanted, _, _ = one_step(backend, method, [records], grads, hyper, dtype)
    hostile = Hyper(backend.array(np.asarray(np.nan), dtype), 0.9)
    _, got, infos, info = backend.numpy(
        backend.call(
            lambda *args, xp: run(method, *args, xp=xp),
            state,
            [],
            backend.tree(grads, dtype),
            hostile,
        )
    )
    assert (int(infos[FC].code), int(info[FC].code)) == (3, 0)
    assert np.array_equal(got[FC], wanted[FC])


@law_over({"mode": ["direct", "literal"]}, seed=seeds, dtype=dtypes)
def test_a_dead_output_falls_back_alone(backend, seed, mode, dtype):
    """s(z)^2 = 0 throughout: that row keeps the identity (code 4), the other is preconditioned."""
    if traced(backend):
        return
    r = rng(seed)
    record = batch(r, [FC])[FC]
    record = record._replace(z=np.c_[np.full(N, -1e4), record.z[:, 1]])
    grads = {FC: r.standard_normal(FC.block_shape)}
    method = SNGD("relu", mode)
    _, directions, refreshed, info = one_step(
        backend, method, [{FC: record}], grads, Hyper(0.1), dtype
    )
    assert int(refreshed[FC].code) == int(info[FC].code) == 4
    G = reference.local_fisher(record.a[:, None], record.z[:, None, 1:])
    alone = reference.local_direction(grads[FC][1:], G, 0.1)
    assert_close(directions[FC][0], grads[FC][0], dtype=dtype)
    assert_close(directions[FC][1:], alone, dtype=dtype, size=4, kappa=100)


SPECIAL = {
    "zero": np.zeros((4, 3)),
    "rank one": np.ones((4, 3)),
    "one example": np.asarray([[1.0, 2.0, 3.0]]),
    "dead inputs": np.diag([1.0, 0.0, 2.0]),
    "twice the same": np.c_[np.arange(4.0), np.arange(4.0), np.ones(4)],
    "tiny": 1e-15 * np.ones((4, 3)),
    "huge": 1e9 * np.ones((4, 3)),
}


@law_over({"case": SPECIAL, "name": METHODS, "damping": [1e-3, 0.0]})
def test_degenerate_batches_give_finite_directions(backend, case, name, damping):
    """In float32, undamped and damped, and never a direction against the gradient."""
    if traced(backend):
        return
    a, method = SPECIAL[case], METHODS[name]
    record = LayerRecord(a, np.ones((len(a), 2)), np.ones((len(a), 2)))
    grads = {FC: rng(0).standard_normal(FC.block_shape)}
    _, directions, refreshed, info = one_step(
        backend, method, [{FC: record}], grads, Hyper(damping, 0.9), "float32"
    )
    assert np.isfinite(directions[FC]).all()
    assert float(info[FC].measures["inner"]) > 0
    code = int(refreshed[FC].code)
    assert code == 0 if damping > 0 and method.root == "eigh" else code in (0, 1, 4)


def test_half_precision_gradients_keep_their_dtype():
    """bfloat16 and float16 parameters: state in float32, directions and coordinates in theirs."""
    import array_api_compat.torch as xp
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        method = SNGD(mode="literal")
        state = method.init([FC], torch.zeros((), dtype=dtype), xp=xp)
        record = LayerRecord(*(torch.ones((4, k), dtype=dtype) for k in (3, 2)))
        state = method.accumulate(state, {FC: record}, Hyper(), xp=xp)
        state, _ = method.refresh(state, Hyper(), xp=xp)
        blocks = {FC: torch.ones(FC.block_shape, dtype=dtype)}
        directions, info = method.direction(state, blocks, {}, Hyper(), xp=xp)
        assert state.layers[FC].fisher.dtype == torch.float32
        assert info[FC].measures["inner"].dtype == torch.float32
        assert directions[FC].dtype == method.weights(state, blocks, xp=xp)[FC].dtype == dtype


@law_over({"name": METHODS}, seed=seeds)
def test_eager_operations_change_nothing(backend, seed, name):
    if traced(backend):
        return
    r = rng(seed)
    records, grads = batch(r, [FC]), gradients(r, [FC])
    states = []
    for ops in (SNGD().ops, EAGER):
        method = varied(name, solve_dtype="float32", ops=ops)
        state, *_ = one_step(backend, method, [records], grads, Hyper(0.1), "float32")
        states.append(leaves(backend.numpy(state)))
    for x, y in zip(*states, strict=True):
        assert np.array_equal(x, y) if hasattr(x, "dtype") else x == y


@pytest.mark.parametrize("compiler", ["jax", "torch"])
def test_changing_hyper_parameters_compile_nothing(compiler):
    """Damping and decay are leaves: one compilation for six values."""
    method, r = SNGD("relu", "literal"), rng(0)
    records, grads = batch(r, [FC]), gradients(r, [FC])
    xp, array, compiled, count = compiler_of(compiler)

    def whole(state, records, grads, hyper):
        return run(method, state, [records], grads, hyper, xp=xp)[:2]

    f, state = compiled(whole), method.init([FC], array(np.zeros(())))
    for hyper in hypers(array, 6):
        state, _ = f(state, tree_map(array, records), tree_map(array, grads), hyper)
    assert count() == 1


GRAD = {FC: np.ones(FC.block_shape)}
STATE = SNGD().init([FC], np.zeros(()))
RELU = SNGD("relu").init([FC], np.zeros(()))
RECORD = LayerRecord(np.ones((4, 3)), np.ones((4, 2)))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: SNGD("tanh"), ValueError, "metric is 'tanh'; expected one of 'linear', 'relu'"),
        (lambda: SNGD(mode="both"), ValueError, "mode is 'both'; expected one of"),
        (lambda: SNGD(root="schur"), ValueError, "root is 'schur'; expected one of 'eigh'"),
        (lambda: SNGD(root="nystrom"), ValueError, "rank is None with root 'nystrom'"),
        (lambda: SNGD(rank=3), ValueError, "rank is 3 with root 'eigh'"),
        (lambda: SNGD(damping_mode="mean"), ValueError, "damping_mode is 'mean'; expected"),
        (lambda: SNGD(start="zero"), ValueError, "start is 'zero'; expected one of"),
        (lambda: SNGD(solve_dtype="half"), ValueError, "solve_dtype is 'half'"),
        (lambda: SNGD(damping=1), TypeError, "damping"),
        (
            lambda: SNGD(linear_layers=("fc",)),
            ValueError,
            r"linear_layers is \('fc',\), but all layers are linear already",
        ),
        (
            lambda: SNGD("relu", linear_layers=("head",)).init([FC], np.zeros(())),
            ValueError,
            "linear_layers is 'head'; expected one of 'fc'",
        ),
        (lambda: SNGD().init([], np.zeros(())), ValueError, "specs is empty"),
        (lambda: SNGD().init([FC], np.zeros((), int)), TypeError, "like has dtype int64"),
        (lambda: SNGD().refresh(STATE, Hyper(-1.0)), ValueError, "damping is -1.0; expected"),
        (
            lambda: SNGD().accumulate(STATE, {FC: RECORD}, Hyper(decay=2.0)),
            ValueError,
            "decay is 2.0; expected a number between 0 and 1",
        ),
        (
            lambda: SNGD().accumulate(STATE, {SEQ: RECORD}, Hyper()),
            ValueError,
            "records holds the layer 'seq', which the state was not made for",
        ),
        (
            lambda: SNGD("relu").accumulate(RELU, {FC: RECORD}, Hyper()),
            ValueError,
            "The record of layer 'fc' has no z, which the ReLU metric needs; record",
        ),
        (
            lambda: SNGD("relu").accumulate(
                RELU, {FC: RECORD._replace(z=np.ones((4, 3)))}, Hyper()
            ),
            ValueError,
            r"z has shape \(4, 3\); expected \(4, 2\): the outputs of layer 'fc'",
        ),
        (
            lambda: SNGD().direction(STATE, {FC: np.ones((2, 3))}, {}, Hyper()),
            ValueError,
            r"gradient of 'fc' has shape \(2, 3\); expected \(2, 4\)",
        ),
        (
            lambda: SNGD().weights(STATE, GRAD),
            ValueError,
            "SNGD has mode='direct', which trains the weights themselves",
        ),
        (
            lambda: SNGD().reproject(STATE, STATE, GRAD),
            ValueError,
            "use mode='literal'",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_mixed_libraries_get_one_clear_sentence():
    import torch

    with pytest.raises(TypeError, match="Arrays of several libraries were mixed: the state is a"):
        SNGD().direction(STATE, {FC: torch.ones(FC.block_shape)}, {}, Hyper())
    record = LayerRecord(torch.ones((4, 3)), torch.ones((4, 2)))
    with pytest.raises(TypeError, match="convert them to one library first"):
        SNGD().accumulate(STATE, {FC: record}, Hyper())
