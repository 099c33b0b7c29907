"""FNGD as a method: whole epochs by the definition, what later epochs cost, and what goes wrong."""

import warnings

import numpy as np
import pytest
from core.compilers import compiler_of
from harness import dtypes, law, rng, seeds, tree_map
from hypothesis import strategies as st

from ngd_core import FNGD, Hyper, LayerRecord, LayerSpec, factors, reference
from ngd_core.inversion import Ops
from ngd_core.testing import assert_close, assert_far

FC = LayerSpec("fc", "dense", 3, 2)
SEQ = LayerSpec("seq", "dense", 2, 3, bias=False)
SPECS = (FC, SEQ)
BATCH, DATA = 3, 8
SIZES = {"batch_size": BATCH, "iterations": 3, "dataset_size": DATA}
shares = st.sampled_from(["position", "iteration", "sample"])
gains = st.sampled_from(["unit", "natural"])
modes = st.sampled_from(["relative", "absolute"])


def make(share="position", **options):
    return FNGD(share=share, **{**SIZES, **options})


def batch(r, n):
    return {
        FC: LayerRecord(r.standard_normal((n, 3)), r.standard_normal((n, 2))),
        SEQ: LayerRecord(r.standard_normal((n, 2, 2)), r.standard_normal((n, 2, 3))),
    }


def gradients(records):
    return {spec: factors.mean_gradient(spec, record) for spec, record in records.items()}


def matrix(spec, record):
    n = len(record.a)
    a, g = (x.reshape(n, -1, x.shape[-1]) for x in (record.a, record.g))
    return reference.example_gradients(a, g, spec.bias)


def index_of(share, k, indices):
    return {"position": None, "iteration": np.asarray(k), "sample": np.asarray(indices)}[share]


def epoch_of(r, share, order, specs=SPECS):
    """Batches of an epoch, the last one short: index, records, gradients."""
    batches = []
    for k in range(3):
        indices = order[k * BATCH : (k + 1) * BATCH]
        records = {spec: record for spec, record in batch(r, len(indices)).items() if spec in specs}
        batches.append((index_of(share, k, indices), records, gradients(records)))
    return batches


def one_step(method, state, batch, hyper, recording, *, xp):
    index, records, grads = batch
    if recording:
        state = method.accumulate(state, records, hyper, index=index, xp=xp)
    directions, info = method.direction(state, grads, records, hyper, index=index, xp=xp)
    return state, directions, info


def train(method, state, epochs, hyper, *, xp):
    """Epochs of a method; traced as one function where the backend compiles."""
    found, infos = [], []
    for number, epoch in enumerate(epochs):
        for step in epoch:
            state, directions, _ = one_step(
                method, state, step, hyper, method.recording(number), xp=xp
            )
            found.append(directions)
        state, info = method.refresh(state, hyper, xp=xp)
        infos.append(info)
    return state, found, infos


def trained(backend, method, epochs, damping, dtype, *, compiled=False):
    """State, directions and reports; as one compiled function where that is what is tested."""
    state = method.init(list(epochs[0][0][1]), backend.array(np.zeros(()), dtype))
    hyper = Hyper(backend.array(np.asarray(damping), dtype))
    arguments = state, backend.tree(epochs, dtype), hyper
    if compiled:
        return backend.numpy(
            backend.call(lambda *args, xp: train(method, *args, xp=xp), *arguments)
        )
    return backend.numpy(train(method, *arguments, xp=backend.xp))


def by_definition(epochs, orders, spec, damping, method):
    batches = [
        [
            (order[k * BATCH : (k + 1) * BATCH].tolist(), matrix(spec, records[spec]))
            for k, (_, records, _) in enumerate(epoch)
        ]
        for epoch, order in zip(epochs, orders, strict=True)
    ]
    options = {
        "share": method.share,
        "damping_mode": method.damping_mode,
        "gain": method.gain,
        "refresh_epochs": method.refresh_epochs,
    }
    return [d for epoch in reference.fngd_directions(batches, damping, **options) for d in epoch]


@law(
    seed=seeds,
    share=shares,
    gain=gains,
    mode=modes,
    damping=st.sampled_from([0.3, 10.0]),
    dtype=dtypes,
)
def test_epochs_are_those_of_the_definition(backend, seed, share, gain, mode, damping, dtype):
    """Section 2.6: exact steps in the first epoch, shared coefficients in the second."""
    r = rng(seed)
    orders = [r.permutation(DATA), r.permutation(DATA)]
    epochs = [epoch_of(r, share, order) for order in orders]
    method = make(share, gain=gain, damping_mode=mode)
    _, found, infos = trained(backend, method, epochs, damping, dtype, compiled=True)
    for spec in SPECS:
        expected = by_definition(epochs, orders, spec, damping, method)
        for got, wanted in zip(found, expected, strict=True):
            assert str(got[spec].dtype) == dtype
            scale = max(float(np.abs(wanted).max()), 0.05)
            wanted = wanted.reshape(spec.block_shape)
            assert_close(got[spec], wanted, dtype=dtype, size=20, kappa=100, scale=scale)
        assert int(infos[1][spec].code) == 0
        known = BATCH if share == "position" else DATA
        assert float(infos[1][spec].measures["known"]) == known


@pytest.mark.parametrize("share", ["position", "iteration", "sample"])
def test_recording_again_by_the_definition(share):
    """2.8 #15: every other epoch records anew; short batches still take part in no mean."""
    r = rng(0)
    orders = [r.permutation(DATA) for _ in range(4)]
    epochs = [epoch_of(r, share, order) for order in orders]
    method = make(share, refresh_epochs=2)
    assert [method.recording(e) for e in range(4)] == [True, False, True, False]
    assert [make(share).recording(e) for e in range(3)] == [True, False, False]
    state = method.init(SPECS, np.zeros(()))
    _, found, _ = train(method, state, epochs, Hyper(2.0), xp=np)
    for spec in SPECS:
        expected = by_definition(epochs, orders, spec, 2.0, method)
        for got, wanted in zip(found, expected, strict=True):
            assert_close(got[spec].reshape(-1), wanted, size=20, kappa=100)


@law(seed=seeds, gain=gains, dtype=dtypes)
def test_the_first_epoch_is_the_same_in_all_modes(backend, seed, gain, dtype):
    """2.9 #12: exact natural-gradient steps of each layer, however coefficients are shared."""
    r = rng(seed)
    _, records, grads = epoch_of(r, "position", np.arange(DATA), [FC])[2]
    U = matrix(FC, records[FC])
    exact = reference.fngd_direction(U, 0.5) * (0.5 if gain == "unit" else 1.0)
    for share in ("position", "iteration", "sample"):
        step = (index_of(share, 2, [6, 1]), records, grads)
        method = make(share, gain=gain, damping_mode="absolute")
        _, [found], _ = trained(backend, method, [[step]], 0.5, dtype)
        assert_close(
            found[FC].reshape(-1), exact, dtype=dtype, size=20, kappa=100, scale=np.abs(U).max()
        )


@law(seed=seeds, gain=gains, dtype=dtypes)
def test_with_fixed_batches_sample_is_iteration(backend, seed, gain, dtype):
    """2.9 #12: the same examples in the same places share the same coefficients."""
    runs = []
    for share in ("sample", "iteration"):
        r = rng(seed)
        first, second = (epoch_of(r, share, np.arange(DATA), [FC]) for _ in range(2))
        epochs = [first[1:], second[1:]]
        runs.append(trained(backend, make(share, gain=gain), epochs, 2.0, dtype)[1])
    for one, two in zip(*runs, strict=True):
        assert np.array_equal(one[FC], two[FC])
    exact = reference.fngd_direction(matrix(FC, second[2][1][FC]), 0.5)
    assert_far(runs[0][3][FC].reshape(-1), exact, least=1e-3)


@law(seed=seeds, share=shares, n=st.sampled_from([BATCH, 2]), dtype=dtypes)
def test_constant_coefficients_are_sgd_exactly(backend, seed, share, n, dtype):
    """2.9 #11: c = 1/n, as before any record, gives the mean gradient bit for bit; code 4."""
    r, method = rng(seed), make(share)
    records = backend.tree(batch(r, n), dtype)

    def both(state, records, index, *, xp):
        grads = {s: factors.mean_gradient(s, record, xp=xp) for s, record in records.items()}
        state, refreshed = method.refresh(state, Hyper(), xp=xp)
        return (
            grads,
            method.direction(state, grads, records, Hyper(), index=index, xp=xp),
            refreshed,
        )

    state = method.init(SPECS, backend.array(np.zeros(()), dtype))
    index = backend.tree(index_of(share, 1, np.arange(n)))
    grads, (directions, info), refreshed = backend.numpy(backend.call(both, state, records, index))
    for spec in SPECS:
        assert np.array_equal(grads[spec], directions[spec])
        assert int(info[spec].code) == int(refreshed[spec].code) == 4
        assert float(info[spec].measures["missing"]) == n
        assert float(refreshed[spec].measures["gain"]) == 1


@law(seed=seeds, mode=modes, dtype=dtypes)
def test_large_damping_is_sgd(backend, seed, mode, dtype):
    """2.9 #8 through the method: the unit gain gives the mean gradient as lam grows."""
    r = rng(seed)
    epoch = [epoch_of(r, "position", np.arange(DATA))[0]]
    _, [got], _ = trained(backend, make(damping_mode=mode), [epoch], 1e25, dtype)
    for spec, grad in epoch[0][2].items():
        assert_close(got[spec], grad, dtype=dtype, size=20)


@law(seed=seeds, dtype=dtypes)
def test_a_layer_has_its_own_coefficients(backend, seed, dtype):
    """2.9 #11: what one layer records changes no other layer's direction."""
    r, method = rng(seed), make()
    first, second = (epoch_of(r, "position", np.arange(DATA))[0] for _ in range(2))
    _, [one], _ = trained(backend, method, [[first]], 1.0, dtype)
    for own, other in ((FC, SEQ), (SEQ, FC)):
        changed = (None, *({**first[k], other: second[k][other]} for k in (1, 2)))
        _, [two], _ = trained(backend, method, [[changed]], 1.0, dtype)
        assert np.array_equal(one[own], two[own])
        assert_far(one[other], two[other], least=0.1)


def test_without_float64_everything_is_float32(monkeypatch):
    """As in JAX by default: the exact step to float32's precision."""
    monkeypatch.setattr("ngd_core._xp.double", lambda **_: None)
    records = tree_map(lambda x: x.astype(np.float32), batch(rng(0), 3))
    method = make(damping_mode="absolute", gain="natural")
    state = method.init(SPECS, np.zeros((), np.float32))
    step = (None, records, gradients(records))
    _, directions, _ = one_step(method, state, step, Hyper(0.5), recording=True, xp=np)
    for spec in SPECS:
        exact = reference.fngd_direction(matrix(spec, records[spec]), 0.5)
        assert directions[spec].dtype == np.float32
        assert_close(directions[spec].reshape(-1), exact, dtype="float32", size=20, kappa=50)


class Guarded:
    """A namespace whose linear algebra counts, or is out of bounds."""

    def __init__(self, xp):
        self.xp, self.used = xp, []

    def __getattr__(self, name):
        if name == "linalg":
            self.used.append(name)
        return getattr(self.xp, name)


@pytest.mark.parametrize("share", ["position", "iteration", "sample"])
def test_after_the_first_epoch_nothing_is_factorised(share):
    """Section 2.1: one batched factorisation a recording step; none, and no linalg, later."""
    inverted = []

    def spd_inverse(m, *, xp):
        inverted.append(m.shape)
        return xp.linalg.inv(m)

    r, method = rng(0), make(share, ops=Ops(spd_inverse=spd_inverse))
    order = np.arange(DATA)
    state, xp = method.init(SPECS, np.zeros(())), Guarded(np)
    for step in epoch_of(r, share, order):
        state, _, _ = one_step(method, state, step, Hyper(10.0), recording=True, xp=xp)
    state, _ = method.refresh(state, Hyper(10.0), xp=xp)
    assert inverted == [(2, 3, 3), (2, 3, 3), (2, 2, 2)]
    assert xp.used
    xp.used.clear()
    for number in range(1, 4):
        for step in epoch_of(r, share, order):
            one_step(method, state, step, Hyper(10.0), method.recording(number), xp=xp)
        state, _ = method.refresh(state, Hyper(10.0), xp=xp)
    assert len(inverted) == 3
    assert xp.used == []


def test_the_compiled_step_of_later_epochs_holds_no_factorisation():
    """In the jaxpr of a step, where nothing can hide."""
    import jax
    import jax.numpy as jnp

    method = make("sample")
    step = tree_map(jnp.asarray, epoch_of(rng(0), "sample", np.arange(DATA))[0])
    state = method.init(SPECS, jnp.zeros(()))
    text = [
        str(
            jax.make_jaxpr(
                lambda state, step, on=on: one_step(method, state, step, Hyper(1.0), on, xp=jnp)
            )(state, step)
        )
        for on in (True, False)
    ]
    words = ("cholesky", "triangular_solve", "lu[", "eigh", "qr", "svd")
    assert [any(word in t for word in words) for t in text] == [True, False]


def test_weights_of_a_layer_are_those_of_its_direction():
    """Also of a short batch, and of examples without a coefficient."""
    r, spec = rng(0), LayerSpec("fc", "dense", 3, 2)
    hyper, method = Hyper(damping=2.0), FNGD(share="sample", dataset_size=8)
    state = method.init([spec], like=np.zeros(()))
    records = [LayerRecord(r.normal(size=(n, 3)), r.normal(size=(n, 2))) for n in (5, 3)]
    state = method.accumulate(state, {spec: records[0]}, hyper, index=np.arange(5))
    state, _ = method.refresh(state, hyper)
    index = np.asarray([7, 1, 4])
    grads = {spec: np.ones(spec.block_shape)}
    want, _ = method.direction(state, grads, {spec: records[1]}, hyper, index=index)
    weights, found = method.weights(state, spec, 3, index=index)
    assert found.tolist() == [False, True, True]
    assert_close(factors.weighted_gradient(spec, records[1], weights) / 3, want[spec], size=3)
    with pytest.raises(ValueError, match="was not made for"):
        method.weights(state, LayerSpec("other", "dense", 3, 2), 3, index=index)


@law(seed=seeds, share=shares, dtype=dtypes)
def test_a_refused_batch_is_counted_and_not_recorded(backend, seed, share, dtype):
    """2.10: a non-finite batch, and one of zero gradients: zero directions, other layers go on."""
    r, method = rng(seed), make(share)
    good, broken, zero = epoch_of(r, share, np.arange(DATA))
    a = broken[1][FC].a.copy()
    a[1, 1] = np.nan
    broken[1][FC] = broken[1][FC]._replace(a=a)
    zero[1][SEQ] = zero[1][SEQ]._replace(g=np.zeros_like(zero[1][SEQ].g))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's word about such data
        epochs = [[good, broken, zero], [good]]
        state, found, infos = trained(backend, method, epochs, 5.0, dtype)
    assert np.all(found[1][FC] == 0)
    assert np.any(found[1][SEQ] != 0)
    assert np.all(found[2][SEQ] == 0)
    for spec, number in ((FC, 5), (SEQ, 6)):
        assert float(infos[0][spec].measures["rejected"]) == 1
        wanted = BATCH if share == "position" else number
        assert float(infos[0][spec].measures["known"]) == wanted
    assert_close(found[3][FC], found[0][FC], dtype=dtype, size=10)
    if share == "position":
        assert_far(found[3][SEQ], found[0][SEQ], least=1e-6)
    else:
        assert_close(found[3][SEQ], found[0][SEQ], dtype=dtype, size=10)
    for x in leaves(state):
        assert not hasattr(x, "dtype") or np.isfinite(x).all()


def leaves(tree):
    if isinstance(tree, dict):
        return [x for key in sorted(tree) for x in [key, *leaves(tree[key])]]
    if isinstance(tree, (tuple, list)):
        return [x for value in tree for x in leaves(value)]
    return [tree]


def described(tree):
    return [(x.shape, str(x.dtype)) if hasattr(x, "dtype") else x for x in leaves(tree)]


@law(seed=seeds, share=shares, dtype=dtypes)
def test_state_keeps_its_structure_and_inputs_stay(backend, seed, share, dtype):
    """Shapes, dtypes and keys of the state are stable over steps; arguments are not written to."""
    method = make(share)
    step = backend.tree(epoch_of(rng(seed), share, np.arange(DATA), [FC])[0], dtype)
    state = method.init([FC], backend.array(np.zeros(()), dtype))
    before = [np.array(x) for x in leaves(backend.numpy([step, state])) if hasattr(x, "dtype")]

    def whole(state, step, *, xp):
        after, _, _ = one_step(method, state, step, Hyper(1.0), recording=True, xp=xp)
        return after, method.refresh(after, Hyper(1.0), xp=xp)[0]

    for after in backend.call(whole, state, step):
        assert described(backend.numpy(after)) == described(backend.numpy(state))
    kept = [x for x in leaves(backend.numpy([step, state])) if hasattr(x, "dtype")]
    assert all(np.array_equal(x, y) for x, y in zip(before, kept, strict=True))


@law(seed=seeds, bad=st.sampled_from([np.nan, np.inf]), dtype=dtypes)
def test_a_non_finite_gradient_gives_a_zero_direction(backend, seed, bad, dtype):
    method = make(guard=True)
    _, records, grads = epoch_of(rng(seed), "position", np.arange(DATA))[0]
    grads[FC][0, 0] = bad

    def step(state, records, grads, *, xp):
        return one_step(method, state, (None, records, grads), Hyper(1.0), recording=True, xp=xp)[
            1:
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        directions, info = backend.numpy(
            backend.call(
                step,
                method.init(SPECS, backend.array(np.zeros(()), dtype)),
                backend.tree(records, dtype),
                backend.tree(grads, dtype),
            )
        )
    assert int(info[FC].code) == 5
    assert np.all(directions[FC] == 0)
    assert float(info[FC].measures["inner"]) == 0
    assert int(info[SEQ].code) == 0
    assert float(info[SEQ].measures["inner"]) > 0
    assert float(info[SEQ].measures["missing"]) == 0


def records_of(*parts):
    return {
        spec: LayerRecord(*(np.concatenate([part[spec][i] for part in parts]) for i in (0, 1)))
        for spec in SPECS
    }


def exact_steps(mode, damping, *batches):
    """Directions of recording steps, one for each of the batches."""
    method, found = FNGD(batch_size=99, damping_mode=mode, gain="natural"), []
    for records in batches:
        state = method.init(SPECS, np.zeros(()))
        step = (None, records, gradients(records))
        found.append(one_step(method, state, step, Hyper(damping), recording=True, xp=np)[1])
    return found


def test_the_scale_contract_and_where_it_ends():
    """Permuted or doubled batches give the same step; micro-batches, and relative damping, not."""
    r = rng(0)
    one, two = batch(r, 3), batch(r, 3)
    both = records_of(one, two)
    swapped, twice = records_of(two, one), records_of(both, both)
    plain, permuted, doubled, first, second = exact_steps(
        "absolute", 0.3, both, swapped, twice, one, two
    )
    for spec in SPECS:
        assert_close(permuted[spec], plain[spec], size=20, kappa=100)
        assert_close(doubled[spec], plain[spec], size=20, kappa=100)
        assert_far((first[spec] + second[spec]) / 2, plain[spec], least=0.05)
    plain, doubled = exact_steps("relative", 2.0, both, twice)
    [corrected] = exact_steps("relative", 4.0, twice)
    for spec in SPECS:
        assert_far(doubled[spec], plain[spec], least=0.1)
        assert_close(corrected[spec], plain[spec], size=20, kappa=100)


@law(seed=seeds, guard=st.booleans(), dtype=dtypes)
def test_the_guard_takes_the_gradient_where_stale_weights_ascend(backend, seed, guard, dtype):
    """2.8 #9: counted; what replaces the direction is the gradient times the mean weight."""
    method, r = make(guard=guard, damping_mode="absolute"), rng(seed)
    scale = r.uniform(0.5, 2.0)
    g = np.asarray([[1.0, 0.0], [10.0, 0.0], [10.0, 0.0]])
    first = (None, {FC: LayerRecord(np.eye(3), g)}, {FC: np.zeros((2, 4))})
    g = scale * np.asarray([[-9.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    records = {FC: LayerRecord(np.ones((3, 3)), g)}
    second = (None, records, gradients(records))

    def steps(state, steps, *, xp):
        state, _, _ = one_step(method, state, steps[0], Hyper(0.1), recording=True, xp=xp)
        state, closed = method.refresh(state, Hyper(0.1), xp=xp)
        return *one_step(method, state, steps[1], Hyper(0.1), recording=False, xp=xp)[1:], closed

    directions, info, closed = backend.numpy(
        backend.call(
            steps,
            method.init([FC], backend.array(np.zeros(()), dtype)),
            backend.tree([first, second], dtype),
        )
    )
    assert float(info[FC].measures["guarded"]) == float(guard)
    assert (float(info[FC].measures["inner"]) > 0) is guard
    if guard:
        gain = float(closed[FC].measures["gain"])
        assert 0 < gain < 1
        assert_close(directions[FC], gain * second[2][FC], dtype=dtype, size=20)


def test_by_position_the_weights_become_one_gain():
    """2.5: reshuffled, their spread falls as 1/sqrt(iterations); what stays is n mean(c)."""
    r, spread = rng(0), {}
    for number in (1, 400):
        method = make(damping_mode="absolute")
        state = method.init([FC], np.zeros(()))
        for _ in range(number):
            state = method.accumulate(state, {FC: batch(r, BATCH)[FC]}, Hyper(1.0))
        state, info = method.refresh(state, Hyper())
        weights = state.layers[FC].table.weights
        spread[number] = np.std(weights) / np.mean(weights)
        assert_close(weights.mean(), info[FC].measures["gain"])
    assert spread[1] > 0.05
    assert spread[400] < 0.2 * spread[1]


def test_gram_matrices_of_float32_records_are_float64():
    """2.8 #11: two examples that are told apart by 2^-26 of their inner product."""
    spec = LayerSpec("fc", "dense", 2, 1, bias=False)
    a, damping = np.asarray([[1.0, 0.0], [1.0, 2.0**-13]]), 1e-8
    method = FNGD(batch_size=2, damping_mode="absolute", gain="natural")
    record = LayerRecord(a.astype(np.float32), np.ones((2, 1), np.float32))
    state = method.init([spec], np.zeros((), np.float32))
    state = method.accumulate(state, {spec: record}, Hyper(damping))
    expected = 2 * np.linalg.solve(a @ a.T + 2 * damping * np.eye(2), np.ones(2))
    assert_close(state.layers[spec].table.weights, expected, dtype="float32")


def test_negative_coefficients_are_kept_unless_clipped():
    """2.8 #8."""
    for seed in range(50):
        records = batch(rng(seed), 3)
        grads = gradients(records)
        states = []
        for clip in (False, True):
            method = make(clip_negative=clip, damping_mode="absolute", gain="natural")
            state = method.init(SPECS, np.zeros(()))
            state, _, _ = one_step(method, state, (None, records, grads), Hyper(1e-3), True, xp=np)
            states.append(state.layers[FC].table.weights)
        if states[0].min() < 0:
            assert np.array_equal(states[1], np.maximum(states[0], 0))
            return
    message = "no batch has a negative coefficient"
    raise AssertionError(message)


def test_examples_without_a_coefficient_get_the_mean_weight():
    """A sample that the recording epoch left out."""
    method, r = make("sample"), rng(0)
    first = epoch_of(r, "sample", np.arange(DATA))[0]
    state, _, _ = one_step(
        method, method.init(SPECS, np.zeros(())), first, Hyper(1.0), recording=True, xp=np
    )
    state, closed = method.refresh(state, Hyper(1.0))
    records = batch(r, 2)
    directions, info = method.direction(
        state, gradients(records), records, Hyper(), index=np.asarray([1, 7])
    )
    for spec in SPECS:
        table = state.layers[spec].table.weights
        mean = table[:3].mean()
        assert_close(float(closed[spec].measures["gain"]), mean)
        U = matrix(spec, records[spec])
        assert_close(directions[spec].reshape(-1), (U @ [table[1], mean]) / 2, size=20)
        assert float(info[spec].measures["missing"]) == 1
        assert int(info[spec].code) == 0


def test_the_damping_in_force_is_reported_where_it_was_raised():
    """Duplicates with hardly any damping: the singular system is made safe, code 1."""
    method = make(damping_mode="absolute", floor=1e-30)
    records = {FC: LayerRecord(np.ones((3, 3)), np.ones((3, 2)))}
    state = method.init([FC], np.zeros(()))
    step = (None, records, gradients(records))
    state, directions, info = one_step(method, state, step, Hyper(1e-25), True, xp=np)
    assert np.isfinite(directions[FC]).all()
    assert int(info[FC].code) == 0
    state, closed = method.refresh(state, Hyper())
    assert int(closed[FC].code) == 1
    assert int(method.refresh(state, Hyper())[1][FC].code) == 0


@pytest.mark.parametrize("compiler", ["jax", "torch"])
def test_indices_and_damping_compile_nothing(compiler):
    """One compilation of the recording step and one of the later ones, for twelve of each."""
    method = make("iteration")
    xp, array, compiled, count = compiler_of(compiler)

    def record(state, step, hyper):
        return one_step(method, state, step, hyper, recording=True, xp=xp)[:2]

    def reuse(state, step, hyper):
        return one_step(method, state, step, hyper, recording=False, xp=xp)[:2]

    state = method.init(SPECS, array(np.zeros(())))
    _, records, grads = epoch_of(rng(0), "iteration", np.arange(DATA))[0]
    functions = compiled(record), compiled(reuse)
    for f in functions:
        for k in range(12):
            step = tree_map(array, (np.asarray(k), records, grads))
            state, _ = f(state, step, Hyper(array(np.asarray(0.1 * (k + 1)))))
    assert count() == 2


METHOD = make()
STATE = METHOD.init([FC], np.zeros(()))
RECORDS = {FC: batch(rng(0), 2)[FC]}
GRADS = gradients(RECORDS)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: FNGD(), ValueError, "batch_size is missing; share='position' keeps a table"),
        (lambda: FNGD("iteration", batch_size=2), ValueError, "iterations is missing"),
        (lambda: FNGD("sample", batch_size=2), ValueError, "dataset_size is missing"),
        (lambda: FNGD("rows", batch_size=2), ValueError, "share is 'rows'; expected one of"),
        (lambda: FNGD(batch_size=0), ValueError, "batch_size is 0; expected an integer >= 1"),
        (lambda: make(refresh_epochs=0.5), ValueError, "refresh_epochs is 0.5; expected an int"),
        (
            lambda: make(gain="half"),
            ValueError,
            "gain is 'half'; expected one of 'unit', 'natural'",
        ),
        (lambda: make(damping_mode="trace"), ValueError, "damping_mode is 'trace'"),
        (lambda: make(floor=0.0), ValueError, "floor is 0.0; expected a number > 0"),
        (lambda: make(solve_dtype="float16"), ValueError, "solve_dtype is 'float16'"),
        (lambda: METHOD.init([], np.zeros(())), ValueError, "specs is empty"),
        (lambda: METHOD.init([FC], np.zeros((), int)), TypeError, "like has dtype int64"),
        (
            lambda: METHOD.accumulate(STATE, RECORDS, Hyper(-1.0)),
            ValueError,
            "damping is -1.0; expected",
        ),
        (
            lambda: METHOD.accumulate(STATE, batch(rng(0), 2), Hyper()),
            ValueError,
            "records holds the layer 'seq', which the state was not made for",
        ),
        (
            lambda: METHOD.accumulate(
                STATE, {FC: LayerRecord(np.ones((2, 3), int), np.ones((2, 2)))}, Hyper()
            ),
            TypeError,
            "layer 'fc': a has dtype int64",
        ),
        (
            lambda: METHOD.accumulate(
                STATE, {FC: LayerRecord(np.ones((2, 3)), np.ones((4, 2, 2)))}, Hyper()
            ),
            ValueError,
            "4 back-propagated vectors; FNGD weights the gradients of the training loss",
        ),
        (
            lambda: METHOD.accumulate(STATE, {FC: batch(rng(0), 4)[FC]}, Hyper()),
            ValueError,
            "4 examples, but batch_size is 3",
        ),
        (
            lambda: make().accumulate(
                make().init(SPECS, np.zeros(())),
                {FC: batch(rng(0), 2)[FC], SEQ: batch(rng(0), 3)[SEQ]},
                Hyper(),
            ),
            ValueError,
            r"records hold \[2, 3\] examples",
        ),
        (
            lambda: METHOD.direction(STATE, GRADS, {}, Hyper()),
            ValueError,
            r"records lack the layers \['fc'\]",
        ),
        (
            lambda: METHOD.direction(STATE, {FC: np.ones((2, 3))}, RECORDS, Hyper()),
            ValueError,
            r"gradient of 'fc' has shape \(2, 3\); expected \(2, 4\)",
        ),
        (
            lambda: make("sample").direction(
                make("sample").init([FC], np.zeros(())), GRADS, RECORDS, Hyper()
            ),
            ValueError,
            "index is missing; share='sample' needs the examples' indices",
        ),
        (
            lambda: make("iteration").accumulate(
                make("iteration").init([FC], np.zeros(())), RECORDS, Hyper(), index=1
            ),
            TypeError,
            "index is a builtins int; expected an array of an integer dtype",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_mixed_libraries_get_one_clear_sentence():
    import torch

    record = {FC: LayerRecord(torch.ones((2, 3)), torch.ones((2, 2)))}
    for call in (
        lambda: METHOD.accumulate(STATE, record, Hyper()),
        lambda: METHOD.direction(STATE, GRADS, record, Hyper()),
    ):
        with pytest.raises(TypeError, match="convert them to one library first"):
            call()


def test_nothing_asked_is_nothing_done():
    assert METHOD.accumulate(STATE, {}, Hyper()) is STATE
    assert METHOD.direction(STATE, {}, {}, Hyper()) == ({}, {})


def test_the_gram_matrix_is_formed_in_the_dtype_of_the_solve():
    """Of float32 records, and yet right to float32 where its own rounding would be amplified."""
    r, n, damping = rng(0), 3, 1e-8
    spec = LayerSpec("fc", "dense", 4, 1, bias=False)
    a = (1.0 + 1e-3 * r.standard_normal((n, 4))).astype("f4")
    record = {spec: LayerRecord(a, np.ones((n, 1), "f4"))}
    method = FNGD(batch_size=n, damping_mode="absolute", gain="natural")
    state = method.accumulate(method.init([spec], np.zeros((), "f4")), record, Hyper(damping))
    c = state.layers[spec].table.weights / n
    U = a.astype("f8").T
    wanted = np.linalg.solve(U.T @ U + n * damping * np.eye(n), np.ones(n))
    assert_close(c, wanted, dtype="float32", size=10)
