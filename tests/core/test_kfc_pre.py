"""KFC-pre, averaged iterates and weight decay, against the algorithm as printed."""

import math

import numpy as np
import pytest
from core.eager import eager_law
from harness import BACKENDS, dtypes, law, rng, seeds, spd
from hypothesis import strategies as st

from ngd_core import reference, step
from ngd_core.testing import assert_close, assert_far

NUMPY = BACKENDS[0]
SHAPES = {"w": (2, 2), "b": (3,)}
SIZE, STEPS = 7, 5


def blocks(vector):
    return {"w": vector[:4].reshape(2, 2), "b": vector[4:]}


def flat(mapping, xp=np):
    return xp.concat([xp.reshape(mapping[key], (-1,)) for key in SHAPES])


def system(seed):
    """A quadratic loss, a Fisher, a preconditioner and a start."""
    r = rng(seed)
    A, F, M = spd(r, SIZE, 10.0), spd(r, SIZE, 10.0), spd(r, SIZE, 5.0)
    return A, F, M, *r.standard_normal((2, SIZE))


def run(arrays, *, steps, lr, weight_decay, xp, **rest):
    """Parameters, averages and infos of some steps."""
    A, F, inverse, right, start = arrays
    params = {"w": xp.reshape(start[:4], (2, 2)), "b": start[4:]}
    state, path, means, infos = step.kfc_pre_init(params, xp=xp), [], [], []
    for _ in range(steps):
        g = A @ flat(params, xp) - right
        g = {"w": xp.reshape(g[:4], (2, 2)), "b": g[4:]}
        g = inverse @ flat(step.coupled_weight_decay(g, params, weight_decay, xp=xp), xp)
        u = {"w": xp.reshape(g[:4], (2, 2)), "b": g[4:]}
        params, state, info = step.kfc_pre(
            state, params, u, g @ F @ g, lr, weight_decay=weight_decay, **rest, xp=xp
        )
        path.append(flat(params, xp))
        means.append(flat(state.average, xp))
        infos.append(info)
    return path, means, infos, state


def both(backend, seed, dtype="float64", **options):
    """The core's path and the oracle's."""
    A, F, M, right, start = system(seed)
    arrays = backend.tree((A, F, np.linalg.inv(M), right, start), dtype)
    options = {"steps": STEPS, "lr": 0.7, "weight_decay": 0.2} | options
    path, means, infos, state = backend.numpy(backend.call(run, arrays, **options))
    assert {str(x.dtype) for x in (*path, *means, *infos[0])} == {dtype}
    wanted = reference.kfc_pre_path(start, lambda x: A @ x - right, F, M, **options)
    return (np.stack(path), np.stack(means)), wanted, infos, state


@law(
    seed=seeds,
    clip=st.sampled_from([0.3, 1e-3, 1e6]),
    momentum=st.sampled_from([0.9, 0.0]),
    averaging=st.sampled_from([0.5, 0.99]),
    dtype=dtypes,
)
def test_the_path_is_that_of_the_printed_algorithm(backend, seed, clip, momentum, averaging, dtype):
    """Algorithm 1, clipped early on, always or never; iterates and averages of every step."""
    options = {"clip": clip, "momentum": momentum, "averaging": averaging}
    got, wanted, infos, _ = both(backend, seed, dtype, **options)
    for ours, theirs in zip(got, wanted, strict=True):
        assert_close(ours, theirs, dtype=dtype, size=SIZE, kappa=50)
    clipped = [float(info.scale) < 1 for info in infos]
    if clip != 0.3:
        assert clipped == [clip < 1] * STEPS


@eager_law(seed=seeds, clip=st.sampled_from([1e-2, 0.3]))
def test_the_clip_bounds_the_step_before_momentum_not_after(backend, seed, clip):
    """nu is that of the step with its size in it, scale^2 nu is at most C; p may be longer."""
    _, _, infos, state = both(backend, seed, clip=clip, momentum=0.9)
    A, F, M, right, start = system(seed)
    g = np.linalg.solve(M, A @ start - right + 0.2 * start)
    nu = 0.7**2 * (g @ F @ g + 0.2 * g @ g)
    assert_close(infos[0].quadratic, nu, size=SIZE, kappa=50)
    for info in infos:
        assert info.scale**2 * info.quadratic <= clip * (1 + 1e-12)
    if clip == 1e-2:
        p = flat(state.velocity)
        assert p @ F @ p + 0.2 * p @ p > 4 * clip


def test_a_clip_after_momentum_leads_elsewhere():
    A, F, M, right, start = system(0)
    _, (wanted, _), _, _ = both(NUMPY, 0, clip=1e-2)
    theta, p, path = start, np.zeros(SIZE), []
    for _ in range(STEPS):
        p = 0.9 * p - 0.7 * np.linalg.solve(M, A @ theta - right + 0.2 * theta)
        p = p * min(1.0, math.sqrt(1e-2 / (p @ F @ p + 0.2 * p @ p)))
        theta = theta + p
        path.append(theta)
    assert_close(path[0], wanted[0], size=SIZE, kappa=50)
    assert_far(path[-1], wanted[-1], least=1e-2)


@eager_law(seed=seeds, what=st.sampled_from(["gradient", "nu"]))
def test_weight_decay_is_in_the_gradient_and_in_nu(backend, seed, what):
    """Left out of either, the path is measurably another."""
    (path, _), (wanted, _), infos, _ = both(backend, seed, clip=0.05, weight_decay=0.5)
    assert_close(path, wanted, size=SIZE, kappa=50)
    A, F, M, right, start = system(seed)
    if what == "gradient":
        options = {"lr": 0.7, "clip": 0.05, "steps": STEPS}
        without, _ = reference.kfc_pre_path(start, lambda x: A @ x - right, F, M, **options)
        assert_far(without, wanted, least=1e-3)
    else:
        g = np.linalg.solve(M, A @ start - right + 0.5 * start)
        assert_far(infos[0].quadratic, 0.49 * g @ F @ g, least=1e-2)


@eager_law(seed=seeds, dtype=dtypes)
def test_unclipped_unpreconditioned_it_is_sgd_exactly(backend, seed, dtype):
    """mu = 0, xi = 0, F_hat = I: bit for bit, and the average is the last iterate."""
    r = rng(seed)
    params, grads = (backend.tree(blocks(r.standard_normal(SIZE)), dtype) for _ in range(2))

    def both_ways(params, grads, *, xp):
        state = step.kfc_pre_init(params, xp=xp)
        curvature = xp.sum(grads["b"] ** 2)
        moved, state, _ = step.kfc_pre(
            state, params, grads, curvature, 0.3, momentum=0.0, averaging=0.0, clip=1e6, xp=xp
        )
        return moved, state.average, step.sgd(params, grads, 0.3, xp=xp)

    moved, average, plain = backend.numpy(backend.call(both_ways, params, grads))
    for key in SHAPES:
        assert np.array_equal(moved[key], plain[key])
        assert np.array_equal(average[key], moved[key])


@eager_law(seed=seeds, decay=st.sampled_from([0.9, 0.0, 1.0]), dtype=dtypes)
def test_the_average_of_iterates_is_the_weighted_sum(backend, seed, decay, dtype):
    """theta_bar_0 = theta_0 keeps xi^k: there is no correction for the start."""
    iterates = rng(seed).standard_normal((4, SIZE))

    def run(iterates, decay, *, xp):
        average = step.iterate_average_init(iterates[0], xp=xp)
        for params in iterates[1:]:
            average = step.iterate_average(average, params, decay, xp=xp)
        return average

    arrays = backend.tree([blocks(x) for x in iterates], dtype)
    average = backend.numpy(backend.call(run, arrays, backend.array(np.asarray(decay))))
    assert {str(x.dtype) for x in average.values()} == {dtype}
    assert_close(flat(average), reference.iterate_average(iterates, decay), dtype=dtype, size=8)


def test_the_average_is_a_copy_in_float32_at_least_and_keeps_what_is_left_out():
    params = {"w": np.ones(2, np.float16), "b": np.ones(1)}
    average = step.iterate_average_init(params)
    assert average["w"].dtype == np.float32
    params["b"][0] = 5.0
    assert average["b"][0] == 1.0
    moved = step.iterate_average(average, {"w": np.full(2, 1.001, np.float16)}, 0.99)
    assert moved["b"] is average["b"]
    assert moved["w"].dtype == np.float32
    assert np.all(moved["w"] > 1)


@eager_law(timescale=st.sampled_from([1.0, 390.0]), dtype=dtypes)
def test_the_decay_of_a_timescale(backend, timescale, dtype):
    array = backend.array(np.asarray(timescale), dtype)
    got = backend.numpy(backend.call(step.averaging_decay, array))
    assert str(got.dtype) == dtype
    assert_close(got, math.exp(-1 / timescale), dtype=dtype)
    assert_close(step.averaging_decay(timescale), math.exp(-1 / timescale))


@eager_law(seed=seeds, dtype=dtypes)
def test_weight_decay_coupled_and_decoupled(backend, seed, dtype):
    """grad + eta theta, and (1 - lr eta) theta; equal for plain SGD, scalars change no dtype."""
    r = rng(seed)
    pair = [blocks(r.standard_normal(SIZE)) for _ in range(2)]

    def run(params, grads, eta, *, xp):
        coupled = step.coupled_weight_decay(grads, params, eta, xp=xp)
        one = step.sgd(params, coupled, 0.1, xp=xp)
        return coupled, one, step.sgd(step.decoupled_weight_decay(params, 0.1, eta), grads, 0.1)

    eta = backend.array(np.asarray(0.4))
    coupled, one, two = backend.numpy(backend.call(run, *backend.tree(pair, dtype), eta))
    assert {str(x.dtype) for part in (coupled, one, two) for x in part.values()} == {dtype}
    theta, g = (flat(x) for x in pair)
    for got, wanted in ((coupled, g + 0.4 * theta), (one, theta - 0.1 * (g + 0.4 * theta))):
        assert_close(flat(got), wanted, dtype=dtype, size=4)
    assert_close(flat(two), flat(one), dtype=dtype, size=4)


def test_inputs_stay_and_what_has_no_direction_moves_no_more():
    params, u = blocks(np.arange(7.0)), {"b": np.ones(3)}
    state = step.kfc_pre_init(params)
    before = {key: p.copy() for key, p in params.items()}
    moved, later, _ = step.kfc_pre(state, params, u, np.asarray(1.0), 0.1)
    assert moved["w"] is params["w"]
    for key, p in params.items():
        assert np.array_equal(p, before[key])
        assert not np.any(state.velocity[key])
    assert_close(later.velocity["b"], -0.1 * np.ones(3), size=4)


def call(**changes):
    params = {"w": np.ones(2)}
    options = {"directions": {"w": np.ones(2)}, "curvature": np.asarray(1.0), "lr": 0.1} | changes
    return step.kfc_pre(step.kfc_pre_init(params), params, **options)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"curvature": np.ones((1, 1))},
            ValueError,
            r"curvature has shape \(1, 1\); expected \(\)",
        ),
        ({"curvature": 1.0}, TypeError, "curvature is a builtins float"),
        ({"directions": {"b": np.ones(2)}}, ValueError, "direction 'b' has no entry in the param"),
        ({"directions": {"w": np.ones(3)}}, ValueError, r"direction 'w' has shape \(3,\)"),
        ({"clip": 0.0}, ValueError, "bound is 0.0; expected a number > 0"),
        ({"momentum": 1.5}, ValueError, "decay is 1.5; expected a number between"),
        ({"averaging": -0.5}, ValueError, "decay is -0.5; expected a number between"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay is -1.0; expected a number >= 0"),
    ],
)
def test_mistakes_get_one_clear_sentence(changes, error, sentence):
    with pytest.raises(error, match=sentence):
        call(**changes)


def test_further_mistakes_get_one_clear_sentence():
    one = {"w": np.ones(1)}
    with pytest.raises(ValueError, match=r"timescale is 0\.0; expected a number > 0"):
        step.averaging_decay(0.0)
    with pytest.raises(ValueError, match="parameter 'b' has no entry in the average"):
        step.iterate_average(one, {"b": np.ones(1)})
    with pytest.raises(ValueError, match=r"parameter 'w' has shape \(2,\); expected \(1,\)"):
        step.iterate_average(one, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="gradient 'b' has no entry in the parameters"):
        step.coupled_weight_decay({"b": np.ones(1)}, one, 0.1)
    with pytest.raises(ValueError, match=r"coefficient is -0\.1; expected a number >= 0"):
        step.decoupled_weight_decay(one, 0.1, -0.1)
