"""First-order rules and clipping, against plain loops and PyTorch's optimizers."""

import numpy as np
import pytest
import torch
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import Info, step
from ngd_core.testing import assert_close


def torch_path(make, params, gradients):
    tensors = {key: torch.tensor(value, requires_grad=True) for key, value in params.items()}
    optimizer = make(list(tensors.values()))
    for grads in gradients:
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[key])
        optimizer.step()
    return {key: tensor.detach().numpy() for key, tensor in tensors.items()}


def problem(seed):
    r = rng(seed)
    params = {"w": r.standard_normal((2, 3)), "b": r.standard_normal(2)}
    return params, [{k: r.standard_normal(v.shape) for k, v in params.items()} for _ in range(4)]


@law(seed=seeds, decay=st.sampled_from([0.0, 0.9]), nesterov=st.booleans())
def test_momentum_equals_torch_sgd(backend, seed, decay, nesterov):
    params, gradients = problem(seed)
    nesterov = nesterov and decay > 0
    expected = torch_path(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=decay, nesterov=nesterov), params, gradients
    )

    def run(params, gradients, *, xp):
        velocity = step.momentum_init(params, xp=xp)
        for grads in gradients:
            steps, velocity = step.momentum(velocity, grads, decay=decay, nesterov=nesterov)
            params = step.sgd(params, steps, 0.1)
        return params

    got = backend.numpy(backend.call(run, backend.tree(params), backend.tree(gradients)))
    for key, value in expected.items():
        assert_close(got[key], value, size=4)


@law(seed=seeds, betas=st.sampled_from([(0.9, 0.999), (0.0, 0.5)]))
def test_adam_equals_torch(backend, seed, betas):
    params, gradients = problem(seed)
    expected = torch_path(lambda p: torch.optim.Adam(p, lr=0.1, betas=betas), params, gradients)

    def run(params, gradients, *, xp):
        state = step.adam_init(params, xp=xp)
        for grads in gradients:
            steps, state = step.adam(state, grads, betas=betas, xp=xp)
            params = step.sgd(params, steps, 0.1)
        return params

    got = backend.numpy(backend.call(run, backend.tree(params), backend.tree(gradients)))
    for key, value in expected.items():
        assert_close(got[key], value, size=10)


def test_parameters_without_a_step_stay():
    params = {"w": np.ones(2), "b": np.ones(1)}
    moved = step.sgd(params, {"w": np.ones(2)}, 0.5)
    assert moved["b"] is params["b"]
    assert_close(moved["w"], [0.5, 0.5])


@law(seed=seeds)
def test_what_gets_no_direction_keeps_its_state(backend, seed):
    """A layer that is left out of a step is still there in the next, as it was."""
    params, gradients = problem(seed)

    def run(params, gradients, *, xp):
        first, second = gradients[0], {"w": gradients[1]["w"]}
        _, velocity = step.momentum(step.momentum_init(params, xp=xp), first, xp=xp)
        steps, later = step.momentum(velocity, second, xp=xp)
        _, state = step.adam(step.adam_init(params, xp=xp), first, xp=xp)
        adam_steps, after = step.adam(state, second, xp=xp)
        return velocity, steps, later, state, adam_steps, after

    arrays = backend.tree(params), backend.tree(gradients)
    velocity, steps, later, state, adam_steps, after = backend.numpy(backend.call(run, *arrays))
    assert sorted(steps) == sorted(adam_steps) == ["w"]
    assert np.array_equal(later["b"], velocity["b"])
    for old, new in ((state.first, after.first), (state.second, after.second)):
        assert np.array_equal(new["b"], old["b"])
        assert not np.array_equal(new["w"], old["w"])


@law(seed=seeds)
def test_scalars_given_as_arrays_change_no_dtype(backend, seed):
    """float64 step sizes and decays, as leaves of a compiled step, and float32 parameters."""
    params, gradients = problem(seed)

    def run(params, grads, lr, decay, *, xp):
        steps, velocity = step.momentum(
            step.momentum_init(params, xp=xp), grads, decay=decay, nesterov=True, xp=xp
        )
        adam_steps, state = step.adam(
            step.adam_init(params, xp=xp), grads, betas=(decay, decay), xp=xp
        )
        inner = xp.sum(grads["b"] * grads["b"])
        scale = step.kl_clip_scale({"b": Info(inner, {"inner": inner})}, lr, lr, xp=xp)
        moved = step.sgd(params, steps, lr, xp=xp)
        return moved, steps, velocity, adam_steps, state.first, state.second, {"scale": scale}

    out = backend.call(
        run,
        backend.tree(params, "float32"),
        backend.tree(gradients[0], "float32"),
        backend.array(np.asarray(0.1)),
        backend.array(np.asarray(0.9)),
    )
    for part in backend.numpy(out):
        assert {str(x.dtype) for x in part.values()} == {"float32"}
    assert_close(backend.numpy(out)[1]["w"], 1.9 * gradients[0]["w"], dtype="float32")


def test_adam_in_half_precision_counts_and_divides_in_float32():
    """float16 stops counting at 2048 and has no 1e-8; a constant gradient's step is its sign."""
    params = {"w": np.ones(3, np.float16)}
    grads = {"w": np.asarray([1e-3, -2.0, 0.0], np.float16)}
    state = step.adam_init(params)._replace(count=np.asarray(5000.0, np.float32))
    state = state._replace(first={"w": 1 * grads["w"].astype(np.float32)})
    state = state._replace(second={"w": grads["w"].astype(np.float32) ** 2})
    steps, state = step.adam(state, grads)
    assert steps["w"].dtype == np.float16
    assert_close(steps["w"], [1.0, -1.0, 0.0], dtype="float16")
    assert float(state.count) == 5001.0


@law(seed=seeds, n=st.integers(1, 5), log_bound=st.integers(-4, 4), dtype=dtypes)
def test_constraint_bounds_the_quadratic(backend, seed, n, log_bound, dtype):
    """The scaled step's quadratic is the smaller of the step's own and the bound."""
    root = rng(seed).standard_normal((n, n))
    v = rng(seed + 1).standard_normal(n)
    quadratic, bound = float(v @ (root @ root.T) @ v), 10.0**log_bound
    scale = backend.numpy(
        backend.call(
            lambda q, *, xp: step.constraint_scale(q, bound, xp=xp),
            backend.array(np.asarray(quadratic), dtype),
        )
    )
    assert str(scale.dtype) == dtype
    assert_close(scale**2 * quadratic, min(quadratic, bound), dtype=dtype, size=4)


@law(quadratic=st.sampled_from([0.0, -1.0, np.nan]))
def test_constraint_leaves_a_meaningless_quadratic_alone(backend, quadratic):
    scale = backend.call(
        lambda q, *, xp: step.constraint_scale(q, 1.0, xp=xp), backend.array(np.asarray(quadratic))
    )
    assert float(backend.numpy(scale)) == 1.0


@law(seed=seeds, layers=st.integers(1, 3), lr=st.sampled_from([0.1, 1.0]))
def test_kl_clip_is_the_constraint_on_the_sum_over_layers(backend, seed, layers, lr):
    inner = rng(seed).random(layers) + 0.1
    info = {
        str(k): Info(backend.array(np.asarray(0)), {"inner": backend.array(np.asarray(x))})
        for k, x in enumerate(inner)
    }
    scale = backend.call(lambda i, *, xp: step.kl_clip_scale(i, lr, 1e-2, xp=xp), info)
    assert_close(backend.numpy(scale), min(1.0, (1e-2 / (lr**2 * inner.sum())) ** 0.5), size=4)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: step.constraint_scale(np.asarray(1.0), 0.0),
            "bound is 0.0; expected a number > 0",
        ),
        (lambda: step.kl_clip_scale({}, 1.0, -1.0), "clip is -1.0; expected a number > 0"),
        (lambda: step.kl_clip_scale({}, 1.0, 1.0), "info is empty"),
        (lambda: step.momentum({}, {}, decay=1.5), "decay is 1.5; expected a number between"),
        (
            lambda: step.adam(step.adam_init({"w": np.ones(1)}), {"b": np.ones(1)}),
            "gradient 'b' has no entry in the state",
        ),
        (
            lambda: step.momentum({"w": np.ones(1)}, {"b": np.ones(1)}),
            "direction 'b' has no entry in the velocity",
        ),
        (
            lambda: step.sgd({"w": np.ones(1)}, {"b": np.ones(1)}, 0.1),
            "step 'b' has no entry in the parameters",
        ),
        (lambda: step.momentum_init({}), "parameter is empty"),
        (
            lambda: step.adam(step.adam_init({"w": np.ones(1)}), {"w": np.ones(1)}, betas=(0.9, 2)),
            "beta_2 is 2; expected a number between 0 and 1",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("every", [1, 2, 3, 10, 64, 100])
def test_due_at_multiples_and_early_at_powers_of_four_below_the_interval(every):
    multiples = {k for k in range(250) if k % every == 0}
    early = {4**j for j in range(8) if 4**j < every}
    for so, expected in ((False, multiples), (True, multiples | early)):
        one_by_one = {k for k in range(250) if step.due(k, every, early=so)}
        together = np.flatnonzero(step.due(np.arange(250), every, early=so))
        assert one_by_one == expected
        assert set(together.tolist()) == expected
