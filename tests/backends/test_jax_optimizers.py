"""Optax transformations: the core's directions, ngd_torch's steps, one compilation, states."""

import functools

import jax
import jax.numpy as jnp
import ngd_jax
import ngd_torch
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import torch
from jax import lax
from torch import nn
from torch.nn import functional

import ngd_core
from ngd_core import Hyper, reference
from ngd_core.testing import assert_close, assert_far

N = 24
COMMON = {"factor_every": 2, "inverse_every": 3, "weight_decay": 0.02}
MAKERS = {
    "kfac": (ngd_jax.kfac, ngd_torch.KFAC, "exact", {**COMMON, "damping_split": "exact"}),
    "ekfac": (ngd_jax.ekfac, ngd_torch.EKFAC, "exact", COMMON),
    "sngd": (ngd_jax.sngd, ngd_torch.SNGD, "empirical", COMMON),
    "projective": (ngd_jax.projective_kfac, ngd_torch.ProjectiveKFAC, "exact", COMMON),
    "fngd": (ngd_jax.fngd, ngd_torch.FNGD, "empirical", {"batch_size": N}),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)
    ).double()


def weights(model):
    return {name: jnp.asarray(p.detach().numpy().copy()) for name, p in model.named_parameters()}


def predict(p, x):
    h = lax.conv_general_dilated(x, p["0.weight"], (1, 1), "VALID") + p["0.bias"][:, None, None]
    h = jnp.tanh(jnp.reshape(jnp.tanh(h), (len(x), -1)) @ p["3.weight"].T + p["3.bias"])
    return h @ p["5.weight"].T + p["5.bias"]


def loss_fn(p, x, y):
    z = predict(p, x)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)
    return -jnp.mean(chosen), z


def data(k=0):
    r = np.random.default_rng(k)
    return r.standard_normal((N, 1, 3, 3)), r.integers(0, 3, N)


START = weights(network())
LAYERS = ngd_jax.report(loss_fn, START, *map(jnp.asarray, data()))
EMPIRICAL = jax.jit(ngd_jax.value_and_grad(loss_fn, has_aux=True))
EXACT = jax.jit(ngd_jax.value_and_grad(loss_fn, has_aux=True, fisher="exact"))


def small(p, x, y):
    """One layer, where the number of layers plays no part and compiling them takes time."""
    z = jnp.reshape(x, (len(x), -1)) @ p["w"] + p["b"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)
    return -jnp.mean(chosen), z


SMALL = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((9, 3))), "b": jnp.ones(3)}
ONE = ngd_jax.report(small, SMALL, *map(jnp.asarray, data()))
OF_ONE = jax.jit(ngd_jax.value_and_grad(small, has_aux=True))
GRADS = {"empirical": EMPIRICAL, "exact": EXACT, "small": OF_ONE}


@functools.cache
def stepper(optimizer):
    """Jitted update, and a list with an entry for each time it was traced."""
    traces = []

    def step(params, state, grads, records):
        traces.append(1)
        updates, state = optimizer.update(grads, state, params, records=records)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)), traces


@functools.cache
def optimizer_of(name):
    make, _, _, options = MAKERS[name]
    extra = {"steps_per_epoch": 3} if name == "fngd" else {}
    return make(LAYERS, 0.1, **options, **extra)


def copied(tree):
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def run(optimizer, steps, kind="empirical", params=START, state=None, first=0):
    step, traces = stepper(optimizer)
    params = copied(params)
    state = optimizer.init(params) if state is None else copied(state)
    for k in range(first, first + steps):
        _, grads, records = GRADS[kind](params, *map(jnp.asarray, data(k)))
        params, state = step(params, state, grads, records)
    assert len(traces) == 1
    return params, state


def close(got, want, **size):
    for name, x in want.items():
        assert_close(np.asarray(got[name]), np.asarray(x), **size)


@pytest.mark.parametrize("name", MAKERS)
def test_steps_are_those_of_the_torch_adapter(name):
    """Seven steps over two refreshes on other batches, with momentum, decay and clip."""
    _, twin, kind, options = MAKERS[name]
    model = network()
    optimizer = twin(model, 0.1, **{**options, **({"fisher": kind} if name != "fngd" else {})})
    for k in range(7):
        x, y = map(torch.from_numpy, data(k))
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if name == "fngd" and k % 3 == 2:
            optimizer.epoch_end()
    params, state = run(optimizer_of(name), 7, kind)
    close(params, weights(model), size=1000, kappa=100)
    assert set(state[0].codes) == {"0.weight", "3.weight", "5.weight"}
    moved = max(float(jnp.max(jnp.abs(params[k] - START[k]))) for k in START)
    assert moved > 1e-2


@pytest.mark.parametrize("share", ["iteration", "sample"])
def test_fngd_shares_by_iteration_and_by_sample(share):
    """Coefficients of an epoch's two batches, found again in another order of the examples."""
    sizes = {"dataset_size": 2 * N} if share == "sample" else {"batch_size": N}
    optimizer = ngd_jax.precondition(
        ONE,
        method := ngd_core.FNGD(
            share=share, iterations=2 if share == "iteration" else None, gain="natural", **sizes
        ),
        damping=0.5,
        steps_per_epoch=2,
    )
    spec, hyper = ONE.layers[0].spec, Hyper(damping=0.5)
    everything = [np.concatenate(parts) for parts in zip(data(0), data(1), strict=True)]
    update = jax.jit(optimizer.update)
    state, by_hand = optimizer.init(SMALL), method.init([spec], np.zeros(()))
    for k, rows in enumerate(np.random.default_rng(0).permuted([range(2 * N)] * 2, axis=1)):
        for place, part in enumerate(np.split(rows, 2)):
            _, grads, records = OF_ONE(SMALL, *(jnp.asarray(x[part]) for x in everything))
            index = part if share == "sample" else np.asarray(place)
            got, state = update(grads, state, records=records, index=jnp.asarray(part))
            seen = {spec: jax.tree.map(np.asarray, records["w"])}
            if k == 0:
                by_hand = method.accumulate(by_hand, seen, hyper, index=index)
            elif place == 0:
                by_hand, _ = method.refresh(by_hand, hyper)
            block = {spec: np.asarray(ONE.layers[0].block(grads))}
            want = method.direction(by_hand, block, seen, hyper, index=index)[0][spec]
            assert_close(np.asarray(ONE.layers[0].block(got)), want, size=100, kappa=100)
            assert_far(want, block[spec], least=1e-2)
    made = ngd_jax.fngd(ONE, 0.1, share=share, steps_per_epoch=2, **sizes).init(SMALL)[0]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, state)


def test_sofim_takes_the_steps_of_the_torch_adapter():
    model = network()
    options = {"rho": 0.5, "beta": 0.8, "weight_decay": 0.1}
    twin, optimizer = ngd_torch.SOFIM(model, 0.2, **options), ngd_jax.sofim(0.2, **options)
    for k in range(4):
        x, y = map(torch.from_numpy, data(k))
        twin.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        twin.step()
    close(run(optimizer, 4)[0], weights(model), size=1000)


def test_sofim_is_its_definition():
    optimizer = ngd_jax.sofim(0.2, rho=0.5, beta=0.8, weight_decay=0.1)
    step, traces = stepper(optimizer)
    params = copied(START)
    state = optimizer.init(params)
    gradients = []
    for k in range(4):
        _, grads, _ = EMPIRICAL(params, *map(jnp.asarray, data(k)))
        gradients.append(np.concatenate([np.asarray(grads[n]).reshape(-1) for n in START]))
        before = np.concatenate([np.asarray(params[n]).reshape(-1) for n in START])
        params, state = step(params, state, grads, {})
        u = reference.sofim_direction(reference.sofim_moment(gradients, 0.8), 0.5)
        after = np.concatenate([np.asarray(params[n]).reshape(-1) for n in START])
        assert_close(after, 0.98 * before - 0.2 * u, size=100)
    assert len(traces) == 1


@pytest.mark.parametrize("early", [True, False])
def test_directions_are_the_methods_own(early):
    """`precondition` is init, accumulate, refresh and direction of the core, called by hand."""
    method = ngd_core.KFAC()
    optimizer = ngd_jax.precondition(
        ONE, method, damping=0.02, decay=0.7, factor_every=2, inverse_every=3, early=early
    )
    state, update = optimizer.init(SMALL), jax.jit(optimizer.update)
    by_hand = method.init([layer.spec for layer in ONE.layers], SMALL["b"])
    hyper = Hyper(damping=0.02, decay=0.7)
    accumulate, refresh, direct = map(jax.jit, (_strings(method.accumulate), *_rest(method)))
    for k in range(4):
        _, grads, records = OF_ONE(SMALL, *map(jnp.asarray, data(k)))
        if ngd_core.step.due(k, 2, early=early):
            by_hand = accumulate(by_hand, records, hyper)
        if ngd_core.step.due(k, 3, early=early):
            by_hand = refresh(by_hand, hyper)
        blocks = {layer.spec: layer.block(grads) for layer in ONE.layers}
        want = direct(by_hand, blocks, hyper)
        got, state = update(grads, state, records=records)
        for layer in ONE.layers:
            block = layer.block(got)
            assert_close(np.asarray(block), np.asarray(want[layer.spec]), size=100, kappa=100)


def _strings(accumulate):
    specs = {layer.spec.name: layer.spec for layer in ONE.layers}
    return lambda state, records, hyper: accumulate(
        state, {specs[name]: record for name, record in records.items()}, hyper
    )


def _rest(method):
    return (
        lambda state, hyper: method.refresh(state, hyper)[0],
        lambda state, blocks, hyper: method.direction(state, blocks, {}, hyper)[0],
    )


@pytest.mark.parametrize(("name", "fisher"), [("kfac", "exact"), ("fngd", "empirical")])
def test_deferred_records_take_the_same_steps(name, fisher):
    """And are computed in the branch of statistics alone, for a method that has one."""
    make = {"kfac": ngd_jax.kfac, "fngd": ngd_jax.fngd}[name]
    options = {"batch_size": N, "steps_per_epoch": 2} if name == "fngd" else {"factor_every": 3}
    optimizer = make(ONE, 0.1, **options)

    def stepper(deferred):
        both = ngd_jax.value_and_grad(small, has_aux=True, fisher=fisher, deferred=deferred)

        def step(params, state, x, y):
            _, grads, records = both(params, x, y)
            updates, state = optimizer.update(grads, state, params, records=records)
            return optax.apply_updates(params, updates), state

        return step

    found = []
    for deferred in (False, True):
        step, at = jax.jit(stepper(deferred)), (SMALL, optimizer.init(SMALL))
        for k in range(5):
            at = step(*at, *map(jnp.asarray, data(k)))
        found.append(jax.tree.leaves(at))
    for now, later in zip(*found, strict=True):
        assert_close(np.asarray(later), np.asarray(now), size=1000)
    if name == "kfac":
        closed = (jax.make_jaxpr(stepper(k))(*at, *map(jnp.asarray, data())) for k in (0, 1))
        now, later = ([eqn.primitive.name for eqn in one.jaxpr.eqns] for one in closed)
        assert later.count("dot_general") < now.count("dot_general")


def test_schedules_compile_once_and_are_followed():
    """Rate and damping that change in each of 50 steps, by injection and by hand; traced once."""

    def rates(k):
        return 0.1 * 0.9 ** jnp.asarray(k, jnp.float64)

    def dampings(k):
        return 0.01 / (1 + jnp.asarray(k, jnp.float64))

    options = {"factor_every": 1, "inverse_every": 1, "decay": 0.5}
    injected = optax.inject_hyperparams(ngd_jax.sngd)(
        ONE, learning_rate=rates, damping=dampings, **options
    )
    direct = ngd_jax.sngd(ONE, rates, damping=dampings, **options)
    got, state = run(injected, 50, "small", SMALL)
    close(got, run(direct, 50, "small", SMALL)[0], size=1000, kappa=100)
    assert_close(np.asarray(state.hyperparams["damping"]), np.asarray(dampings(49)))
    fixed, _ = run(ngd_jax.sngd(ONE, rates, damping=0.01, **options), 50, "small", SMALL)
    assert not jnp.allclose(fixed["w"], got["w"], rtol=1e-3)


def test_the_clip_follows_the_rate():
    """Twice the rate, half the direction, where the bound is reached."""

    def rates(k):
        return 0.1 * 2.0 ** jnp.asarray(k, jnp.float64)

    optimizer = ngd_jax.precondition(
        ONE, ngd_core.SNGD(), damping=1e-2, kl_clip=1e-6, learning_rate=rates
    )
    _, grads, records = OF_ONE(SMALL, *map(jnp.asarray, data()))
    update = jax.jit(optimizer.update)
    first, state = update(grads, optimizer.init(SMALL), records=records)
    second, _ = update(grads, state, records=records)
    close(second, {name: d / 2 for name, d in first.items()}, size=10)


@pytest.mark.parametrize("name", MAKERS)
def test_a_stored_state_goes_on_bit_by_bit(name, tmp_path):
    """Stored by Orbax in the middle of an inverse interval and restored."""
    kind, optimizer = MAKERS[name][2], optimizer_of(name)
    params, state = run(optimizer, 4, kind)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", (params, state))
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(lambda: (params, state))
        restored = checkpointer.restore(tmp_path / "state", shapes)
    stored = copied((params, state))
    want, _ = run(optimizer, 3, kind, params, state, first=4)
    got, _ = run(optimizer, 3, kind, *restored, first=4)
    assert all(
        jnp.array_equal(x, y)
        for x, y in zip(*map(jax.tree.leaves, (stored, restored)), strict=True)
    )
    assert all(jnp.array_equal(got[n], want[n]) for n in want)


def test_masks_leave_a_layer_of_its_weight():
    """Biases go to SGD by `multi_transform`: the weights' blocks are those without a bias."""
    labels = {name: name for name in SMALL}
    options = {"factor_every": 1, "inverse_every": 1, "kl_clip": None}
    split = optax.multi_transform(
        {"w": ngd_jax.kfac(ONE, 0.1, **options), "b": optax.sgd(0.5)}, labels
    )
    got, _ = run(split, 1, "small", SMALL)
    _, grads, records = OF_ONE(SMALL, *map(jnp.asarray, data()))
    for layer in ONE.layers:
        spec = ngd_core.LayerSpec(
            layer.spec.name,
            layer.spec.kind,
            layer.spec.in_features,
            layer.spec.out_features,
            bias=False,
            geometry=layer.spec.geometry,
        )
        method, weight = ngd_core.KFAC(), layer.parameters[0]
        block = ngd_core.factors.join(spec, layer.weight.of(grads[weight])[0])

        @jax.jit
        def by_hand(record, block, spec=spec, method=method):
            state = method.accumulate(method.init([spec], block), {spec: record}, Hyper())
            state, _ = method.refresh(state, Hyper())
            return method.direction(state, {spec: block}, {}, Hyper())[0][spec]

        want = layer.weight.of(SMALL[weight])[0] - 0.1 * by_hand(records[spec.name], block)
        assert_close(
            np.asarray(layer.weight.of(got[weight])[0]), np.asarray(want), size=100, kappa=100
        )
        bias = layer.parameters[1]
        assert_close(np.asarray(got[bias]), np.asarray(SMALL[bias] - 0.5 * grads[bias]))


def test_before_adam_with_a_clip_and_steps_without_records():
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        ngd_jax.precondition(ONE, ngd_core.SNGD(), damping=1e-2, factor_every=1),
        optax.adam(1e-2),
    )
    params, state, values = SMALL, optimizer.init(SMALL), []
    update = jax.jit(optimizer.update)
    for k in range(6):
        (value, _), grads, records = OF_ONE(params, *map(jnp.asarray, data()))
        seen = state[1].curvature.layers
        with jax.numpy_dtype_promotion("standard"):  # Adam asks for it
            updates, state = update(grads, state, params, records=records if k < 2 else None)
        same = jax.tree.map(jnp.array_equal, seen, state[1].curvature.layers)
        assert all(map(bool, jax.tree.leaves(same))) == (k >= 2)
        params, values = optax.apply_updates(params, updates), [*values, float(value)]
    assert values[-1] < values[0]


def told(p, t):
    """Tokens, a scale behind a norm, and the table again as output layer."""
    h = jnp.mean(p["table"][t], 1)
    h = h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 0.1) * p["scale"] + p["shift"]
    return -jnp.mean(jax.nn.log_softmax(h @ p["table"].T)[:, 0])


@pytest.mark.parametrize("name", ["kfac", "ekfac", "fngd", "sngd"])
def test_methods_take_the_layers_of_their_kinds(name):
    """Directions are the core's for the same records; what a method does not take is kept."""
    r = np.random.default_rng(0)
    sizes = {"table": (5, 3), "scale": (3,), "shift": (3,)}
    p = {n: jnp.asarray(r.standard_normal(size)) for n, size in sizes.items()}
    t = jnp.asarray(r.integers(0, 5, (6, 2)))
    layers = ngd_jax.report(told, p, t)
    method = {
        "kfac": ngd_core.KFAC(),
        "ekfac": ngd_core.EKFAC(),
        "fngd": ngd_core.FNGD(batch_size=6),
        "sngd": ngd_core.SNGD(),
    }[name]
    every = {"steps_per_epoch": 1} if name == "fngd" else {"factor_every": 1}
    optimizer = ngd_jax.precondition(layers, method, kl_clip=None, damping=0.1, **every)
    if name == "sngd":
        with pytest.raises(ValueError, match="No parameter here"):
            optimizer.init(p)
        return

    @jax.jit
    def both(p):
        _, grads, records = ngd_jax.value_and_grad(told)(p, t)
        chosen = {x.spec: x for x in layers.layers if x.spec.kind in method.kinds}
        found = {spec: records[spec.name] for spec in chosen}
        blocks = {spec: x.block(grads) for spec, x in chosen.items()}
        hyper = Hyper(damping=0.1)
        state = method.accumulate(method.init(list(chosen), p["scale"]), found, hyper)
        if name != "fngd":
            state = method.refresh(state, hyper)[0]
        by_hand = method.direction(state, blocks, found, hyper)[0]
        got = optimizer.update(grads, optimizer.init(p), records=records)[0]
        pairs = {x.spec.name: (x.block(got), by_hand[spec]) for spec, x in chosen.items()}
        return pairs, got, grads

    pairs, got, grads = both(p)
    assert set(pairs) == ({"scale"} if name == "ekfac" else {"scale", "table"})
    for one, other in pairs.values():
        assert_close(np.asarray(one), np.asarray(other), size=100, kappa=100)
    for n in p:
        assert jnp.array_equal(got[n], grads[n]) == (name == "ekfac" and n == "table")


def test_a_batch_that_is_not_finite_moves_nothing():
    optimizer = ngd_jax.precondition(ONE, ngd_core.SNGD())
    params, state = run(optimizer, 2, "small", SMALL)
    _, grads, records = OF_ONE(params, jnp.asarray(data()[0]) * jnp.nan, jnp.asarray(data()[1]))
    before = copied(params)
    params, state = stepper(optimizer)[0](params, state, grads, records)
    assert all(jnp.array_equal(params[n], before[n]) for n in before)
    assert {int(code) for code in state.codes.values()} == {5}


def test_half_precision_keeps_factors_in_float32():
    p = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.zeros(2, jnp.bfloat16)}

    def loss(p, x):
        return jnp.mean((x @ p["w"] + p["b"]).astype(jnp.float32) ** 2)

    x = jnp.eye(3, dtype=jnp.bfloat16)
    optimizer = ngd_jax.kfac(ngd_jax.report(loss, p, x), 0.1, momentum=0.0)
    _, grads, records = jax.jit(ngd_jax.value_and_grad(loss))(p, x)
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(p), p, records=records)
    assert {u.dtype for u in updates.values()} == {jnp.dtype(jnp.bfloat16)}
    assert state[0].curvature.layers["w"].a.dtype == jnp.float32
    assert all(jnp.all(jnp.isfinite(u.astype(jnp.float32))) for u in updates.values())


DIVIDED = {"w": jnp.ones((2, 2)), "s": jnp.ones(2)}


def divided(p, x):
    return jnp.mean((x @ p["w"]) / p["s"])


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: ngd_jax.kfac(LAYERS, -1.0), ["learning_rate is -1.0"]),
        (lambda: ngd_jax.kfac(LAYERS, 0.1, momentum=1.0), ["momentum is 1.0"]),
        (lambda: ngd_jax.kfac(LAYERS, 0.1, weight_decay=-1.0), ["weight_decay is -1.0"]),
        (lambda: ngd_jax.kfac(LAYERS, 0.1, kl_clip=0.0), ["kl_clip is 0.0"]),
        (lambda: ngd_jax.kfac(LAYERS, 0.1, factor_every=0), ["factor_every is 0"]),
        (lambda: ngd_jax.kfac(LAYERS, 0.1, uncovered="skip"), ["'skip'", "'error'"]),
        (lambda: ngd_jax.kfac(LAYERS, 0.1, damping_split="half"), ["'half'", "'exact'"]),
        (lambda: ngd_jax.sofim(0.1, rho=0.0), ["rho is 0"]),
        (
            lambda: ngd_jax.precondition(LAYERS, ngd_core.FNGD(batch_size=N)),
            ["steps_per_epoch is missing"],
        ),
        (lambda: ngd_jax.fngd(LAYERS, 0.1, steps_per_epoch=2), ["batch_size is missing"]),
        (
            lambda: ngd_jax.fngd(LAYERS, 0.1, share="sample", steps_per_epoch=2),
            ["dataset_size is missing"],
        ),
        (
            lambda: ngd_jax.fngd(
                LAYERS, 0.1, share="iteration", batch_size=N, steps_per_epoch=jnp.asarray(2)
            ),
            ["steps_per_epoch is", "expected an integer", "share='iteration'"],
        ),
        (
            lambda: (
                o := ngd_jax.fngd(ONE, 0.1, share="sample", dataset_size=N, steps_per_epoch=1)
            ).update(
                SMALL, o.init(SMALL), SMALL, records=OF_ONE(SMALL, *map(jnp.asarray, data()))[2]
            ),
            ["index is missing", "share='sample'"],
        ),
        (
            lambda: ngd_jax.precondition(LAYERS, ngd_core.TridiagonalKFAC()),
            ["TridiagonalKFAC looks at all layers", "use KFAC"],
        ),
        (lambda: ngd_jax.kfac(LAYERS, 0.1).init(DIVIDED), ["No parameter here", "report"]),
        (
            lambda: ngd_jax.kfac(
                ngd_jax.report(divided, DIVIDED, jnp.ones((3, 2))), 0.1, uncovered="error"
            ).init(DIVIDED),
            ["1 parameters", "'s'", "used by div"],
        ),
        (
            lambda: ngd_jax.kfac(LAYERS, 0.1).update(
                START, ngd_jax.kfac(LAYERS, 0.1).init(START), START, records={}
            ),
            ["no record of layer '0.weight'"],
        ),
        (
            lambda: (o := ngd_jax.fngd(LAYERS, 0.1, batch_size=N, steps_per_epoch=2)).update(
                START, o.init(START), START
            ),
            ["records= is missing"],
        ),
    ],
)
def test_a_mistake_gets_one_sentence(make, parts):
    with pytest.raises(ValueError, match=parts[0]) as raised:
        make()
    for part in parts:
        assert part in str(raised.value)


def test_inverses_are_split_over_a_mesh_or_not():
    with pytest.raises(TypeError, match=r"inverse_mesh is 4; expected a jax\.sharding\.Mesh"):
        ngd_jax.kfac(LAYERS, 0.1, inverse_mesh=4)
    mesh = jax.sharding.Mesh(jax.devices(), "d")
    weighting = ngd_core.FNGD(batch_size=N)
    with pytest.raises(ValueError, match="FNGD keeps no inverses"):
        ngd_jax.precondition(LAYERS, weighting, steps_per_epoch=2, inverse_mesh=mesh)


def test_a_state_starts_on_the_devices_of_its_parameters():
    mesh = jax.sharding.Mesh(jax.devices(), "d")
    rows, whole = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (["d"], [])
    )
    params = jax.device_put(START, rows)
    for x in jax.tree.leaves(ngd_jax.precondition(LAYERS, ngd_core.KFAC()).init(params)):
        assert x.sharding == whole
    (state, _) = ngd_jax.sofim(0.1, rho=1.0).init(params)
    for tensor in state.tensors.values():
        assert tensor.moment.sharding == rows
        assert tensor.weight.sharding == whole
