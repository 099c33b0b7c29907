"""What single layers, initial parameters and wrong arguments do."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from core.networks import ACTIVATIONS, data, run, some
from harness import Backend, dtypes, law, rng, seeds

from ngd_core import Conv2dGeometry, LayerRecord, LayerSpec, nn
from ngd_core.testing.assertions import assert_close


def first_params(model, seed=0):
    return data(model, (), 1, seed)[0]


def one_of_each(groups=1):
    """A model with every parametric layer, nested."""
    branch = nn.Sequential(nn.Conv2d("b", 4, 4, 3, padding=1, groups=groups), nn.Tanh())
    head = nn.Sequential(nn.LayerNorm("n", 4), nn.Dense("d", 4, 2, bias=False, sharing="reduce"))
    return nn.Sequential(
        nn.Conv2d("a", 2, 4, 2), nn.Residual(branch), nn.Sequential(nn.GlobalAvgPool2d(), head)
    )


def test_specs_and_shapes_follow_the_order_of_the_layers():
    model = one_of_each(groups=2)
    assert nn.specs(model) == (
        LayerSpec("a", "conv2d", 2, 4, geometry=Conv2dGeometry(2)),
        LayerSpec("b", "conv2d", 4, 4, geometry=Conv2dGeometry(3, padding=1, groups=2)),
        LayerSpec("d", "dense", 4, 2, bias=False, sharing="reduce"),
    )
    assert nn.shapes(model) == {"a": (4, 9), "b": (2, 2, 19), "n": (4, 2), "d": (2, 4)}
    assert hash(model) == hash(one_of_each(groups=2))
    assert model != one_of_each()


@law(dtype=dtypes, gain=some(2**0.5, 1.0), seed=seeds)
def test_initial_weights_are_he_uniform(backend, dtype, gain, seed):
    model = one_of_each(groups=2)
    u = {name: rng(seed).random(shape) for name, shape in nn.shapes(model).items()}
    got = backend.call(partial(nn.init, model, gain=gain), backend.tree(u, dtype))
    assert {str(block.dtype).rpartition(".")[2] for block in got.values()} == {dtype}
    got = backend.numpy(got)
    for name, fan_in in (("a", 2 * 4), ("b", 2 * 9)):
        assert_close(
            got[name][..., :-1],
            (2 * u[name] - 1)[..., :-1] * gain * (3 / fan_in) ** 0.5,
            dtype=dtype,
        )
        np.testing.assert_array_equal(got[name][..., -1], 0)
    assert_close(got["d"], (2 * u["d"] - 1) * gain * (3 / 4) ** 0.5, dtype=dtype)
    np.testing.assert_array_equal(got["n"], [[1, 0]] * 4)


def test_initial_weights_keep_the_second_moment_through_relu():
    """He et al. (2015): with gain sqrt(2), E[x^2] of ReLU layers neither grows nor vanishes."""
    layers = [part for i in range(8) for part in (nn.Dense(f"{i}", 256, 256), nn.ReLU())]
    model, r = nn.Sequential(*layers), rng(0)
    params = nn.init(model, {name: r.random(s) for name, s in nn.shapes(model).items()})
    x = np.maximum(r.standard_normal((64, 256)), 0)
    ratio = np.mean(nn.predict(model, params, x) ** 2) / np.mean(x**2)
    assert 0.5 < ratio < 2


def test_without_parameters_there_is_nothing_to_initialise():
    assert nn.init(nn.Sequential(nn.ReLU()), {}) == {}
    assert nn.specs(nn.Tanh()) == ()


@pytest.mark.parametrize("library", ["numpy", "strict", "torch", "jax"])
def test_the_namespace_is_found_from_the_arrays(library):
    backend, model = Backend(library), one_of_each()
    params, x, draw = data(model, (2, 3, 3), 3, 0)
    params, x, g = backend.tree((params, x, draw((3, 2))))
    outputs, tape = nn.forward(model, params, x)
    result = nn.backward(model, params, tape, g, grads=False)
    assert result.grads == {}
    assert list(result.records) == list(nn.specs(model))
    assert result.input.shape == (3, 2, 3, 3)
    np.testing.assert_array_equal(
        backend.numpy(nn.predict(model, params, x)), backend.numpy(outputs)
    )


def test_layers_alone_are_models():
    model, x = nn.Dense("d", 3, 2), np.ones((4, 3))
    params = first_params(model)
    outputs, tape = nn.forward(model, params, x)
    result = nn.backward(model, params, tape, outputs)
    assert_close(outputs, x @ params["d"][:, :-1].T + params["d"][:, -1])
    assert isinstance(result.records[model.spec], LayerRecord)


@law(dtype=dtypes)
def test_ties_in_a_window_go_to_the_first_in_row_major_order(backend, dtype):
    model, x = nn.MaxPool2d(2), np.array([[[[1.0, 3.0], [3.0, 3.0]]]])
    _, _, result = run(backend, model, *backend.tree(({}, x, np.full((1, 1, 1, 1), 5.0)), dtype))
    np.testing.assert_array_equal(backend.numpy(result.input), [[[[0, 5], [0, 0]]]])


@law(layer=some(nn.Sigmoid(), nn.Tanh(), nn.ReLU()), dtype=dtypes)
def test_activations_are_finite_at_large_inputs(backend, layer, dtype):
    """Without a floating-point warning on the way, which the test run turns into an error."""
    x = np.array([[-1e30, -100.0, 0.0, 100.0, 1e30]])
    outputs, _, result = run(backend, layer, *backend.tree(({}, x, np.ones_like(x)), dtype))
    wanted = {
        nn.Sigmoid: ([0, np.exp(-100.0), 0.5, 1, 1], [0, np.exp(-100.0), 0.25, 0, 0]),
        nn.Tanh: ([-1, -1, 0, 1, 1], [0, 0, 1, 0, 0]),
        nn.ReLU: ([0, 0, 0, 100, 1e30], [0, 0, 0, 1, 1]),
    }[type(layer)]
    np.testing.assert_allclose(backend.numpy(outputs)[0], wanted[0], rtol=1e-5, atol=1e-40)
    np.testing.assert_allclose(backend.numpy(result.input)[0], wanted[1], rtol=1e-5, atol=1e-40)


def test_nan_is_not_hidden():
    x = np.array([[np.nan, 1.0]])
    for layer in ACTIVATIONS:
        assert np.isnan(nn.predict(layer, {}, x)[0, 0])
    assert np.isnan(nn.predict(nn.MaxPool2d((1, 2)), {}, x[None, None])).all()


def test_gelu_is_close_to_its_exact_form():
    from math import erf

    x = np.linspace(-6, 6, 1001)
    exact = x * (1 + np.array([erf(v / 2**0.5) for v in x])) / 2
    assert np.max(np.abs(nn.predict(nn.GELU(), {}, x[None, :])[0] - exact)) < 5e-4


DENSE = nn.Dense("fc", 3, 2)


def call_forward(model, x, **changed):
    params = {**first_params(model), **changed}
    return nn.forward(model, {k: v for k, v in params.items() if v is not None}, x)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (DENSE, (4, 5), r"Layer 'fc' got an input of shape \(4, 5\); expected \(N, \.\.\., 3\)"),
        (DENSE, (3,), r"Layer 'fc' got an input of shape \(3,\)"),
        (nn.Conv2d("c", 2, 2, 3), (4, 3, 5, 5), r"Layer 'c' got .*\(N, 2, height, width\)"),
        (nn.Conv2d("c", 2, 2, 3), (2, 5, 5), r"Layer 'c' got an input of shape \(2, 5, 5\)"),
        (nn.Conv2d("c", 2, 2, 3), (1, 2, 2, 5), r"smaller than the kernel"),
        (nn.LayerNorm("ln", 3), (4, 2), r"Layer 'ln' got .*\(N, \.\.\., 3\)"),
        (nn.MaxPool2d(2), (4, 4), r"MaxPool2d got .*\(N, channels, height, width\)"),
        (nn.AvgPool2d(2), (4, 4, 4), r"AvgPool2d got an input of shape \(4, 4, 4\)"),
        (nn.GlobalAvgPool2d(), (4, 4), r"GlobalAvgPool2d got an input of shape \(4, 4\)"),
        (nn.Residual(DENSE), (4, 3), r"Residual got .*\(4, 3\) and its inner layer gave \(4, 2\)"),
    ],
)
def test_an_input_that_does_not_fit_names_the_layer(model, shape, message):
    with pytest.raises(ValueError, match=message):
        call_forward(model, np.ones(shape))


def test_wrong_parameters_are_named():
    x = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"params has no block 'fc'; expected .* each of 'fc'"):
        call_forward(DENSE, x, fc=None)
    with pytest.raises(ValueError, match=r"params\['fc'\] has shape \(2, 3\); expected \(2, 4\)"):
        call_forward(DENSE, x, fc=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"uniforms\['fc'\] has shape \(2,\); expected \(2, 4\)"):
        nn.init(DENSE, {"fc": np.ones(2)})


def test_arrays_must_be_floating_and_of_one_library_and_dtype():
    import torch

    with pytest.raises(TypeError, match=r"x has dtype int64; expected a real floating dtype"):
        call_forward(DENSE, np.ones((4, 3), dtype=np.int64))
    with pytest.raises(TypeError, match=r"several libraries were mixed: x is a torch Tensor"):
        call_forward(DENSE, torch.ones(4, 3))
    with pytest.raises(TypeError, match=r"x has dtype float32 and params\['fc'\] float64"):
        call_forward(DENSE, np.ones((4, 3), np.float32))
    with pytest.raises(TypeError, match=r"x is a builtins list"):
        call_forward(DENSE, [[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("shape", [(4, 3), (2,), (1, 1, 4, 2), (2, 3, 2), (4, 2, 1)])
def test_output_gradients_have_the_shape_of_the_outputs(shape):
    params = first_params(DENSE)
    _, tape = nn.forward(DENSE, params, np.ones((4, 3)))
    with pytest.raises(
        ValueError, match=r"g has shape .*; expected \(4, 2\), the shape of the out"
    ):
        nn.backward(DENSE, params, tape, np.ones(shape))


def test_models_that_cannot_be_are_refused_when_made():
    with pytest.raises(ValueError, match=r"layer names 'fc' occur more than once"):
        nn.Sequential(DENSE, nn.Residual(nn.Sequential(nn.ReLU(), nn.LayerNorm("fc", 2))))
    with pytest.raises(TypeError, match=r"Sequential got \[Dense.*each an argument of its own"):
        nn.Sequential([DENSE])
    with pytest.raises(TypeError, match=r"Residual got <class .*ReLU'>; expected layers such as"):
        nn.Residual(nn.ReLU)
    with pytest.raises(ValueError, match=r"groups must divide"):
        nn.Conv2d("c", 3, 4, 3, groups=2)
    with pytest.raises(ValueError, match=r"kernel_size is 0"):
        nn.MaxPool2d(0)
