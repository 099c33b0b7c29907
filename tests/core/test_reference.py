"""The oracle is judged by SciPy, closed forms, enumeration and theorems, not by the core."""

import ast
import itertools
import pathlib
import sys

import numpy as np
import pytest
import scipy.signal
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

from ngd_core import reference as ref
from ngd_core.reference import Layer, Network

LIKELIHOODS = ("categorical", "bernoulli", "gaussian")


def generator(seed=0):
    return np.random.default_rng(seed)


def random_params(network, rng, scale=0.7):
    return {
        name: scale * rng.standard_normal(shape) for name, shape in network.block_shapes.items()
    }


def random_targets(likelihood, outputs, rng):
    if likelihood == "categorical":
        return rng.integers(0, outputs.shape[-1], outputs.shape[:-1])
    if likelihood == "bernoulli":
        return rng.integers(0, 2, outputs.shape).astype(float)
    return rng.standard_normal(outputs.shape)


def all_labels(likelihood, shape, classes):
    """Every target array, of a categorical or Bernoulli likelihood, for these outputs."""
    values, places = (classes, shape[:-1]) if likelihood == "categorical" else (2, shape)
    for labels in itertools.product(range(values), repeat=int(np.prod(places))):
        yield np.array(labels).reshape(places)


def probability(likelihood, outputs, targets):
    return np.exp(-np.sum(ref.loss_value(likelihood, outputs, targets)))


def relative_error(approximation, exact):
    return np.linalg.norm(approximation - exact) / np.linalg.norm(exact)


def central_differences(f, theta, step=1e-5):
    columns = []
    for place in np.ndindex(theta.shape):
        up, down = theta.copy(), theta.copy()
        up[place] += step
        down[place] -= step
        columns.append((f(up) - f(down)) / (2 * step))
    stacked = np.stack(columns, axis=-1)
    return stacked.reshape(*stacked.shape[:-1], *theta.shape)


def kfac_block(factors, name):
    A, G = factors[name]
    return ref.kron(G, A)


# independence ------------------------------------------------------------------------------


def test_imports_nothing_but_numpy_and_the_standard_library():
    modules = sorted(pathlib.Path(ref.__file__).parent.glob("*.py"))
    assert len(modules) >= 8
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"relative import in {path.name}"
                names = [node.module]
            else:
                continue
            for name in names:
                own = name == "ngd_core.reference" or name.startswith("ngd_core.reference.")
                top = name.partition(".")[0]
                assert own or top == "numpy" or top in sys.stdlib_module_names, (path.name, name)


def test_every_public_name_is_documented():
    for name in ref.__all__:
        assert getattr(ref, name).__doc__, name


# layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(3,), (2, 4), (2, 3, 2)])
def test_dense(lead, bias):
    rng = generator(1)
    x, block = rng.standard_normal((*lead, 5)), rng.standard_normal((3, 5 + bias))
    expected = x @ block[:, :5].T + (block[:, 5] if bias else 0.0)
    assert_allclose(ref.dense(x, block, bias=bias), expected, rtol=1e-13)


CONVOLUTIONS = [
    {"kernel_size": (3, 3)},
    {"kernel_size": (1, 1)},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": ((1, 0), (2, 1))},
    {"kernel_size": (3, 2), "dilation": (1, 2), "padding": ((0, 2), (1, 3)), "bias": False},
    {"kernel_size": (2, 2), "stride": (3, 2), "dilation": (2, 1), "groups": 2},
    {"kernel_size": (3, 1), "padding": ((1, 1), (0, 0)), "groups": 4, "bias": False},
]


def scipy_conv2d(x, kernel, shift, stride, dilation, padding, groups):
    """Correlation of the padded image with the dilated kernel, then every stride-th value."""
    out_channels, own, kh, kw = kernel.shape
    spread = np.zeros((out_channels, own, dilation[0] * (kh - 1) + 1, dilation[1] * (kw - 1) + 1))
    spread[:, :, :: dilation[0], :: dilation[1]] = kernel
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    maps = []
    for image in x:
        for o in range(out_channels):
            first = own * (o // (out_channels // groups))
            full = sum(
                scipy.signal.correlate2d(image[first + c], spread[o, c], mode="valid")
                for c in range(own)
            )
            maps.append(full[:: stride[0], :: stride[1]] + shift[o])
    return np.stack(maps).reshape(len(x), out_channels, *maps[0].shape)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d_equals_scipy_and_patches_times_kernel(case):
    rng = generator(2)
    case = {
        "stride": (1, 1),
        "dilation": (1, 1),
        "padding": ((0, 0), (0, 0)),
        "groups": 1,
        "bias": True,
    } | case
    bias, groups, (kh, kw) = case.pop("bias"), case["groups"], case["kernel_size"]
    x = rng.standard_normal((2, 4, 6, 7))
    kernel = rng.standard_normal((8, 4 // groups, kh, kw))
    shift = rng.standard_normal(8) if bias else np.zeros(8)
    block = kernel.reshape(8, -1)
    block = np.concatenate([block, shift[:, None]], axis=1) if bias else block
    block = block.reshape(groups, 8 // groups, -1) if groups > 1 else block

    z = ref.conv2d(x, block, bias=bias, **case)
    plain = {key: value for key, value in case.items() if key != "kernel_size"}
    assert_allclose(z, scipy_conv2d(x, kernel, shift, **plain), rtol=1e-12, atol=1e-13)

    patches = ref.conv_patches(x, **case)
    assert patches.ndim == (3 if groups == 1 else 4)
    patches = patches[None] if groups == 1 else patches
    weights = block.reshape(groups, 8 // groups, -1)[:, :, : patches.shape[-1]]
    for k in range(groups):
        own = slice(k * 8 // groups, (k + 1) * 8 // groups)
        product = np.swapaxes(patches[k] @ weights[k].T + shift[own], 1, 2)
        assert_allclose(product.reshape(z[:, own].shape), z[:, own], rtol=1e-12, atol=1e-13)


def test_complex_conv2d_is_linear():
    rng = generator(3)
    x = rng.standard_normal((2, 2, 4, 4)) + 1j * rng.standard_normal((2, 2, 4, 4))
    block = rng.standard_normal((3, 18))
    z = ref.conv2d(x, block, (3, 3), bias=False)
    assert z.dtype == np.complex128
    assert_allclose(z.real, ref.conv2d(x.real, block, (3, 3), bias=False), rtol=1e-12)
    assert_allclose(z.imag, ref.conv2d(x.imag, block, (3, 3), bias=False), rtol=1e-12)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 2)])
@pytest.mark.parametrize("stride", [None, (1, 1), (2, 1), (3, 3)])
def test_pooling(kernel, stride):
    x = generator(4).standard_normal((2, 3, 6, 7))
    step = kernel if stride is None else stride
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    windows = windows[:, :, :: step[0], :: step[1]]
    assert_array_equal(ref.max_pool2d(x, kernel, stride), windows.max(axis=(4, 5)))
    assert_allclose(ref.avg_pool2d(x, kernel, stride), windows.mean(axis=(4, 5)), atol=1e-14)
    assert_allclose(ref.global_avg_pool2d(x), x.mean(axis=(2, 3)), atol=1e-14)


def test_max_pool_of_equal_values_takes_the_first():
    x = np.ones((1, 1, 2, 2))
    derivative = ref.jacobian(lambda t: ref.max_pool2d(t, (2, 2)), x)
    assert_array_equal(derivative.reshape(2, 2), [[1.0, 0.0], [0.0, 0.0]])


def test_layer_norm():
    rng = generator(5)
    x, block = rng.standard_normal((2, 3, 6)), rng.standard_normal((6, 2))
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    assert_allclose(ref.layer_norm(x, block), standard * block[:, 0] + block[:, 1], rtol=1e-12)


def test_activations_and_their_derivatives():
    x = np.array([-800.0, -30.0, -2.0, -0.3, 0.0, 0.4, 2.5, 30.0, 800.0])
    p = scipy.special.expit(x)
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    gelu_slope = 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2)
    for f, value, slope in [
        (ref.relu, np.maximum(x, 0), (x > 0).astype(float)),
        (ref.tanh, np.tanh(x), 1 - np.tanh(x) ** 2),
        (ref.sigmoid, p, p * (1 - p)),
        (ref.gelu, 0.5 * x * (1 + t), gelu_slope),
    ]:
        assert_allclose(f(x), value, rtol=1e-14, atol=1e-300)
        assert_allclose(ref.jacobian(f, x), np.diag(slope), rtol=1e-13, atol=1e-14)


def test_flatten_is_row_major():
    x = np.arange(24.0).reshape(2, 3, 2, 2)
    assert_array_equal(ref.flatten(x), [np.arange(12.0), np.arange(12.0, 24.0)])


# networks and derivatives ------------------------------------------------------------------


def mixed_network():
    """One layer of nearly every kind, with a nested residual branch."""
    inner = Layer("residual", branch=[Layer("dense", "r2", in_features=6, out_features=6)])
    branch = [Layer("dense", "r1", in_features=6, out_features=6), Layer("sigmoid"), inner]
    return Network(
        (
            Layer(
                "conv2d",
                "c1",
                in_channels=2,
                out_channels=4,
                kernel_size=(2, 3),
                stride=(1, 2),
                padding=((1, 0), (1, 2)),
                groups=2,
            ),
            Layer("gelu"),
            Layer("avg_pool2d", kernel_size=(2, 1), stride=(1, 1)),
            Layer("conv2d", "c2", in_channels=4, out_channels=3, kernel_size=(2, 2), bias=False),
            Layer("max_pool2d", kernel_size=(1, 2), stride=(1, 1)),
            Layer("flatten"),
            Layer("layer_norm", "norm", features=6),
            Layer("residual", branch=branch),
            Layer("tanh"),
            Layer("dense", "out", in_features=6, out_features=3),
            Layer("relu"),
        )
    )


def mixed_problem():
    network, rng = mixed_network(), generator(6)
    return network, random_params(network, rng), rng.standard_normal((2, 2, 4, 5))


def test_parameter_vector_round_trip_and_order():
    network, params, _ = mixed_problem()
    theta = network.flatten(params)
    assert theta.shape == (network.size,)
    assert list(network.block_shapes) == ["c1", "c2", "norm", "r1", "r2", "out"]
    assert network.block_shapes["c1"] == (2, 2, 7)
    assert_array_equal(theta, np.concatenate([params[k].ravel() for k in network.block_shapes]))
    back = network.unflatten(theta)
    for name, block in params.items():
        assert_array_equal(back[name], block)
        assert_array_equal(theta[network.slices[name]], block.ravel())


def test_residual_records_and_offsets():
    rng = generator(7)
    network = Network(
        (Layer("residual", branch=(Layer("dense", "a", in_features=3, out_features=3),)),)
    )
    params, x = random_params(network, rng), rng.standard_normal((2, 3))
    record, outputs = {}, {}
    offset = rng.standard_normal((2, 3))
    f = network.forward(params, x, offsets={"a": offset}, record=record, outputs=outputs)
    inner = ref.dense(x, params["a"]) + offset
    assert_allclose(f, x + inner, rtol=1e-14)
    assert_array_equal(record["a"], x)
    assert_array_equal(outputs["a"], inner)


def test_jacobians_equal_central_differences():
    network, params, x = mixed_problem()
    assert np.all(np.abs(network.forward(params, x)) > 1e-2), "on a kink, or a dead output"
    theta = network.flatten(params)

    def f(t):
        return network.forward(network.unflatten(t), x)

    assert_allclose(
        ref.parameter_jacobians(network, params, x), central_differences(f, theta), atol=1e-8
    )
    jacobians = ref.output_jacobians(network, params, x)
    assert list(jacobians) == list(network.block_shapes)
    for name, derivative in jacobians.items():

        def moved(offset, name=name):
            return network.forward(params, x, offsets={name: offset})

        expected = central_differences(moved, np.zeros(derivative.shape[2:]))
        assert_allclose(derivative, expected, atol=1e-8)


def test_jacobian_of_a_linear_network_in_closed_form():
    rng = generator(8)
    network = Network(
        (
            Layer("dense", "a", in_features=3, out_features=2),
            Layer("dense", "b", in_features=2, out_features=2, bias=False),
        )
    )
    params, x = random_params(network, rng), rng.standard_normal((4, 3))
    J = ref.parameter_jacobians(network, params, x)
    assert J.shape == (4, 2, 12)
    for n in range(4):
        homogeneous = np.append(x[n], 1.0)
        first = np.kron(params["b"], homogeneous)
        second = np.kron(np.eye(2), params["a"] @ homogeneous)
        assert_allclose(J[n], np.concatenate([first, second], axis=1), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_output_gradients_and_inputs_give_the_loss_gradients(likelihood):
    """Per example and layer: gradient of the block = sum over positions of g [a; 1]^T."""
    network, params, x = mixed_problem()
    rng = generator(9)
    f = network.forward(params, x)
    y = random_targets(likelihood, f, rng)
    record = {}
    network.forward(params, x, record=record)
    vectors = ref.loss_gradient(likelihood, f, y)[None]
    g = ref.output_gradients(network, params, x, vectors)
    gradients = ref.loss_gradients(network, params, x, likelihood, y)
    assert_allclose(
        ref.mean_loss_gradient(network, params, x, likelihood, y), gradients.mean(axis=0)
    )
    seen = 0
    for name, layer in network.parametric.items():
        if layer.kind == "layer_norm":
            continue
        blocks = []
        for a_own, g_own in ref.canonical_record(layer, record[name], g[name]):
            if layer.options["bias"]:
                a_own = np.concatenate([a_own, np.ones((*a_own.shape[:2], 1))], axis=2)
            blocks.append(np.swapaxes(g_own[0], 1, 2) @ a_own)
        expected = gradients[:, network.slices[name]]
        actual = np.stack(blocks, axis=1).reshape(expected.shape)
        assert np.linalg.norm(expected) > 1e-3, name
        assert_allclose(actual, expected, atol=1e-13)
        seen += 1
    assert seen == 5


# losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 3)])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_value_gradient_and_hessian(likelihood, shape):
    rng = generator(10)
    f = 3 * rng.standard_normal(shape)
    y = random_targets(likelihood, f, rng)
    if likelihood == "categorical":
        picked = np.take_along_axis(f, y[..., None], -1)[..., 0]
        terms = scipy.special.logsumexp(f, axis=-1) - picked
    elif likelihood == "bernoulli":
        terms = -scipy.special.log_expit(np.where(y == 1, f, -f))
    else:
        terms = 0.5 * (f - y) ** 2
    value = ref.loss_value(likelihood, f, y)
    assert value.shape == (shape[0],)
    assert_allclose(value, terms.reshape(shape[0], -1).sum(axis=1), rtol=1e-12)

    slope = ref.jacobian(lambda t: ref.loss_value(likelihood, t, y), f)
    curvature = ref.jacobian(lambda t: ref.loss_gradient(likelihood, t, y), f)
    gradient, hessian = ref.loss_gradient(likelihood, f, y), ref.loss_hessian(likelihood, f)
    root = ref.loss_hessian_root(likelihood, f).reshape(hessian.shape[1], shape[0], -1)
    curvature = curvature.reshape(shape[0], root.shape[2], *root.shape[1:])
    for n in range(shape[0]):
        assert_allclose(slope[n, n], gradient[n], atol=1e-14)
        assert_allclose(curvature[n, :, n], hessian[n], atol=1e-14)
        assert_allclose(root[:, n].T @ root[:, n], hessian[n], atol=1e-14)


def test_softmax_hessian_has_the_closed_form_root():
    f = generator(11).standard_normal((3, 4))
    p = scipy.special.softmax(f, axis=-1)
    for n, hessian in enumerate(ref.loss_hessian("categorical", f)):
        S = np.diag(np.sqrt(p[n])) - np.outer(p[n], np.sqrt(p[n]))
        assert_allclose(S @ S.T, hessian, atol=1e-15)


def test_losses_of_large_logits_are_finite():
    f = np.array([[1000.0, -1000.0]])
    assert_allclose(ref.loss_value("categorical", f, [1]), [2000.0])
    assert_allclose(ref.loss_value("bernoulli", f, [[0.0, 1.0]]), [2000.0])
    assert_array_equal(ref.loss_gradient("categorical", f, [1]), [[1.0, -1.0]])


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_loss_hessian_is_the_covariance_of_the_gradient(likelihood):
    f = generator(12).standard_normal((1, 2, 3))
    mean, moment, mass = np.zeros(6), np.zeros((6, 6)), 0.0
    for y in all_labels(likelihood, f.shape, 3):
        weight = probability(likelihood, f, y)
        gradient = ref.loss_gradient(likelihood, f, y).ravel()
        mass += weight
        mean += weight * gradient
        moment += weight * np.outer(gradient, gradient)
    assert_allclose(mass, 1.0, rtol=1e-13)
    assert_allclose(mean, 0.0, atol=1e-14)
    assert_allclose(moment, ref.loss_hessian(likelihood, f)[0], atol=1e-14)


def test_samples_invert_the_distribution_function():
    logits = np.log([0.2, 0.5, 0.3])
    noise = np.array([0.0, 0.1999, 0.2001, 0.6999, 0.7001, 1 - 2**-53])
    labels = ref.sample_targets("categorical", np.tile(logits, (6, 1)), noise)
    assert_array_equal(labels, [0, 0, 1, 1, 2, 2])
    assert labels.dtype == np.int64
    halves = ref.sample_targets("categorical", np.zeros((2, 2)), np.array([0.49, 0.5]))
    assert_array_equal(halves, [0, 1])
    zeros = np.zeros((1, 3))
    assert_array_equal(
        ref.sample_targets("bernoulli", zeros, np.array([[0.0, 0.4999, 0.5]])), [[1.0, 1.0, 0.0]]
    )
    assert_array_equal(ref.sample_targets("gaussian", zeros + 2, zeros - 0.5), zeros + 1.5)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_samples_at_equidistant_noise_have_the_models_frequencies(likelihood):
    count = 2000
    noise = (np.arange(count) + 0.5) / count
    f = generator(13).standard_normal((1, 3))
    if likelihood == "categorical":
        y = ref.sample_targets(likelihood, np.tile(f, (count, 1)), noise)
        expected = scipy.special.softmax(f[0])
        frequencies = np.bincount(y, minlength=3) / count
    else:
        y = ref.sample_targets(likelihood, np.tile(f, (count, 1)), np.tile(noise[:, None], (1, 3)))
        expected, frequencies = scipy.special.expit(f[0]), y.mean(axis=0)
    assert_allclose(frequencies, expected, atol=1.5 / count)


# dense Fisher ------------------------------------------------------------------------------


def small_network(bias=True):
    return Network(
        (
            Layer("dense", "a", in_features=2, out_features=3, bias=bias),
            Layer("tanh"),
            Layer("dense", "b", in_features=3, out_features=3, bias=bias),
        )
    )


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_exact_fisher_is_the_expectation_over_all_labels(likelihood):
    """Weighted by probability, the empirical Fishers of all label arrays add up to the exact."""
    network, rng = small_network(), generator(14)
    params, x = random_params(network, rng), rng.standard_normal((1, 2, 2))
    f = network.forward(params, x)
    total = np.zeros((network.size, network.size))
    for y in all_labels(likelihood, f.shape, 3):
        fisher = ref.empirical_fisher(network, params, x, likelihood, y)
        total += probability(likelihood, f, y) * fisher
    assert_allclose(total, ref.exact_fisher(network, params, x, likelihood), atol=1e-13)


def test_exact_fisher_adds_examples_up():
    network, rng = small_network(), generator(15)
    params, x = random_params(network, rng), rng.standard_normal((3, 2))
    single = [ref.exact_fisher(network, params, x[n : n + 1], "categorical") for n in range(3)]
    whole = ref.exact_fisher(network, params, x, "categorical")
    assert_allclose(whole, sum(single) / 3, atol=1e-15)
    twice = ref.exact_fisher(network, params, np.concatenate([x, x]), "categorical")
    assert_allclose(twice, whole, atol=1e-15)


def test_exact_gaussian_fisher_is_the_hessian_of_a_linear_model():
    rng = generator(16)
    network = Network((Layer("dense", "a", in_features=2, out_features=2),))
    params, x = random_params(network, rng), rng.standard_normal((4, 2))
    y = rng.standard_normal((4, 2))

    def slope(theta):
        f = network.forward(network.unflatten(theta), x)
        inputs = np.concatenate([x, np.ones((4, 1))], axis=1)
        return ((f - y).T @ inputs / 4).ravel()

    hessian = ref.jacobian(slope, network.flatten(params))
    assert_allclose(ref.exact_fisher(network, params, x, "gaussian"), hessian, atol=1e-14)


def test_monte_carlo_over_samples_in_exact_proportion_is_exact():
    """With probabilities 1/4, 1/4, 1/2 the labels 0, 1, 2, 2 are an exhaustive sample."""
    rng = generator(17)
    network = Network((Layer("dense", "a", in_features=2, out_features=3),))
    params = {"a": np.array([[0, 0, np.log(0.25)], [0, 0, np.log(0.25)], [0, 0, np.log(0.5)]])}
    x = rng.standard_normal((3, 2))
    samples = [np.full(3, label) for label in (0, 1, 2, 2)]
    exact = ref.exact_fisher(network, params, x, "categorical")
    sampled = ref.monte_carlo_fisher(network, params, x, "categorical", samples)
    assert_allclose(sampled, exact, atol=1e-15)
    assert (
        relative_error(
            ref.monte_carlo_fisher(network, params, x, "categorical", samples[:3]), exact
        )
        > 1e-2
    )


def test_monte_carlo_fisher_of_a_gaussian_approaches_the_exact():
    network, rng = small_network(), generator(18)
    params, x = random_params(network, rng), rng.standard_normal((2, 2))
    f = network.forward(params, x)
    samples = [ref.sample_targets("gaussian", f, rng.standard_normal(f.shape)) for _ in range(400)]
    J = ref.parameter_jacobians(network, params, x)
    gradients = [J[n].T @ (f - y)[n] for y in samples for n in range(2)]
    sampled = ref.second_moment(gradients)
    exact = ref.exact_fisher(network, params, x, "gaussian")
    assert relative_error(sampled, exact) < 0.2
    few = ref.monte_carlo_fisher(network, params, x, "gaussian", samples[:2])
    assert_allclose(few, ref.second_moment(gradients[:4]), atol=1e-13)


def test_blocks_solve_and_natural_gradient():
    network, rng = small_network(), generator(19)
    params, x = random_params(network, rng), rng.standard_normal((4, 2))
    y = rng.integers(0, 3, 4)
    samples = [rng.integers(0, 3, 4) for _ in range(3)]
    gradient = ref.mean_loss_gradient(network, params, x, "categorical", y)
    fishers = {
        "exact": ref.exact_fisher(network, params, x, "categorical"),
        "mc": ref.monte_carlo_fisher(network, params, x, "categorical", samples),
        "empirical": ref.empirical_fisher(network, params, x, "categorical", y),
    }
    for kind, F in fishers.items():
        given = {"kind": kind, "samples": samples if kind == "mc" else None}
        whole = ref.natural_gradient(network, params, x, y, "categorical", 0.1, **given)
        u = network.flatten(whole)
        assert_allclose(F @ u + 0.1 * u, gradient, atol=1e-14)
        assert_allclose(ref.solve(F, gradient, 0.1), u, atol=1e-14)
        split = ref.natural_gradient(
            network, params, x, y, "categorical", 0.1, blockwise=True, **given
        )
        blocks = ref.diagonal_blocks(F, network)
        assert [len(block) for block in blocks.values()] == [9, 12]
        assert_array_equal(blocks["b"], F[9:, 9:])
        for name, block in blocks.items():
            v = split[name].ravel()
            assert_allclose(block @ v + 0.1 * v, gradient[network.slices[name]], atol=1e-14)


# Kronecker factors: definitions ------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_factors_against_matrix_formulas(bias):
    rng = generator(20)
    N, T, M = 3, 4, 2
    a, g = rng.standard_normal((N, T, 2)), rng.standard_normal((M, N, T, 3))
    x = np.concatenate([a, np.ones((N, T, 1))], axis=2) if bias else a
    A, G = ref.kronecker_factors(a, g, bias, "expand")
    rows = x.reshape(N * T, -1)
    assert_allclose(A, rows.T @ rows / (N * T), atol=1e-15)
    flat = g.reshape(M * N * T, -1)
    assert_allclose(G, flat.T @ flat / N, atol=1e-14)
    omega = sum(x[n].T @ x[n] for n in range(N)) / N
    gamma = G / T
    assert_allclose(ref.kron(G, A), np.kron(gamma, omega), atol=1e-14)

    A, G = ref.kronecker_factors(a, g, bias, "reduce")
    mean, total = x.mean(axis=1), g.sum(axis=2).reshape(M * N, -1)
    assert_allclose(A, mean.T @ mean / N, atol=1e-15)
    assert_allclose(G, total.T @ total / N, atol=1e-14)


def test_one_position_makes_expand_and_reduce_equal():
    rng = generator(21)
    a, g = rng.standard_normal((3, 1, 2)), rng.standard_normal((2, 3, 1, 3))
    for one, other in zip(
        ref.kronecker_factors(a, g, True, "expand"),
        ref.kronecker_factors(a, g, True, "reduce"),
        strict=True,
    ):
        assert_allclose(one, other, atol=1e-15)


@pytest.mark.parametrize(("T1", "T2"), [(4, 4), (3, 5)])
def test_constant_activations_count_overlapping_positions(T1, T2):
    """For a = 1 the input factor is the table of beta in theorem 1 of KFC."""
    patches = ref.conv_patches(np.ones((1, 1, T1, T2)), (3, 3), padding=((1, 1), (1, 1)))
    A, _ = ref.kronecker_factors(patches, np.zeros((1, 1, T1 * T2, 1)))
    offsets = list(itertools.product((-1, 0, 1), repeat=2))

    def beta(*deltas):
        count = 1
        for k, size in enumerate((T1, T2)):
            steps = [delta[k] for delta in deltas]
            count *= size - max(*steps, 0) + min(*steps, 0)
        return count

    expected = np.array([[beta(d, e) for e in (*offsets, (0, 0))] for d in (*offsets, (0, 0))])
    assert expected[-1, -1] == T1 * T2
    assert expected[0, -1] == (T1 - 1) * (T2 - 1)
    assert_allclose(T1 * T2 * A, expected, atol=1e-12)


def test_kron_is_row_major():
    rng = generator(22)
    G, A, V = (rng.standard_normal(s) for s in ((2, 2), (3, 3), (2, 3)))
    assert_array_equal(ref.kron(G, A), np.kron(G, A))
    assert_allclose(ref.kron(G, A) @ V.ravel(), (G @ V @ A.T).ravel(), atol=1e-14)


def factor_pair(rng):
    x, g = rng.standard_normal((5, 3)), rng.standard_normal((7, 2))
    return x.T @ x / 5, g.T @ g


def test_damped_and_direction_against_factored_formulas():
    rng = generator(23)
    A, G = factor_pair(rng)
    V, damping = rng.standard_normal((2, 3)), 0.3
    dA, QA = np.linalg.eigh(A)
    dG, QG = np.linalg.eigh(G)
    exact = QG @ ((QG.T @ V @ QA) / (np.outer(dG, dA) + damping)) @ QA.T
    assert_allclose(ref.direction(V, A, G, damping, "exact"), exact, atol=1e-13)
    pi = np.sqrt((np.trace(A) / 3) / (np.trace(G) / 2))
    left = np.linalg.inv(G + np.sqrt(damping) / pi * np.eye(2))
    right = np.linalg.inv(A + np.sqrt(damping) * pi * np.eye(3))
    assert_allclose(ref.direction(V, A, G, damping, "pi"), left @ V @ right, atol=1e-13)

    residual = ref.damped(A, G, damping, "pi") - ref.damped(A, G, damping, "exact")
    assert np.linalg.eigvalsh(residual).min() > 0
    assert_allclose(
        np.trace(residual), 2 * np.sqrt(damping * np.trace(A) * np.trace(G) * 3 * 2), rtol=1e-13
    )
    for c in (1e-3, 7.0):
        for split in ("pi", "exact"):
            assert_allclose(
                ref.damped(c * A, G / c, damping, split), ref.damped(A, G, damping, split)
            )


@pytest.mark.parametrize("zero", ["A", "G", "both"])
def test_a_zero_factor_leaves_plain_damping(zero):
    A, G = factor_pair(generator(24))
    A = A * 0 if zero != "G" else A
    G = G * 0 if zero != "A" else G
    V = np.ones((2, 3))
    for split in ("pi", "exact"):
        assert_allclose(ref.damped(A, G, 0.25, split), 0.25 * np.eye(6), atol=1e-16)
        assert_allclose(ref.direction(V, A, G, 0.25, split), 4 * V, rtol=1e-14)


def test_direction_of_groups_is_one_by_one():
    rng = generator(25)
    pairs = [factor_pair(rng), factor_pair(rng)]
    A, G = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
    V = rng.standard_normal((2, 2, 3))
    both = ref.direction(V, A, G, 0.1)
    for k in range(2):
        assert_array_equal(both[k], ref.direction(V[k], A[k], G[k], 0.1))


# exactness theorems ------------------------------------------------------------------------


def multilayer(activation, bias):
    widths = (5, 4, 4, 2)
    chain = []
    for k in range(3):
        sizes = {"in_features": widths[k], "out_features": widths[k + 1]}
        chain += [Layer("dense", f"d{k}", bias=bias, **sizes), Layer(activation)]
    return Network(tuple(chain))


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
def test_one_datum_makes_kfac_exact(activation, likelihood, bias, copies):
    """Case T1: one datum or copies of it, no sharing, every Fisher, any activation."""
    network, rng = multilayer(activation, bias), generator(26)
    params = random_params(network, rng)
    x = np.tile(rng.standard_normal((1, 5)), (copies, 1))
    f = network.forward(params, x)
    y = np.concatenate([random_targets(likelihood, f[:1], rng)] * copies)
    samples = [np.concatenate([random_targets(likelihood, f[:1], rng)] * copies) for _ in range(3)]
    for kind, targets, F in [
        ("exact", None, ref.exact_fisher(network, params, x, likelihood)),
        ("mc", samples, ref.monte_carlo_fisher(network, params, x, likelihood, samples)),
        ("empirical", y, ref.empirical_fisher(network, params, x, likelihood, y)),
    ]:
        vectors = ref.backpropagated_vectors(likelihood, f, kind, targets)
        factors = ref.kfac_factors(network, params, x, vectors)
        for name, block in ref.diagonal_blocks(F, network).items():
            assert np.linalg.norm(block) > 1e-8, "dead network"
            assert_allclose(kfac_block(factors, name), block, atol=1e-12 * np.abs(block).max())


def test_two_data_make_kfac_inexact():
    network, rng = multilayer("tanh", True), generator(27)
    params, x = random_params(network, rng), rng.standard_normal((2, 5))
    vectors = ref.backpropagated_vectors("gaussian", network.forward(params, x))
    factors = ref.kfac_factors(network, params, x, vectors)
    blocks = ref.diagonal_blocks(ref.exact_fisher(network, params, x, "gaussian"), network)
    assert relative_error(kfac_block(factors, "d0"), blocks["d0"]) > 0.05


@pytest.mark.parametrize("positions", [(), (5,)])
@pytest.mark.parametrize("bias", [True, False])
def test_deep_linear_network_makes_kfac_exact(bias, positions):
    """Case T2: Gaussian loss, arbitrary data, positions independent; not for the empirical."""
    widths, rng = (4, 3, 3, 2), generator(28)
    network = Network(
        tuple(
            Layer("dense", f"d{k}", in_features=widths[k], out_features=widths[k + 1], bias=bias)
            for k in range(3)
        )
    )
    params, x = random_params(network, rng), rng.standard_normal((6, *positions, 4))
    f = network.forward(params, x)
    y = f + rng.standard_normal(f.shape)
    factors = ref.kfac_factors(network, params, x, ref.backpropagated_vectors("gaussian", f))
    exact = ref.diagonal_blocks(ref.exact_fisher(network, params, x, "gaussian"), network)
    vectors = ref.backpropagated_vectors("gaussian", f, "empirical", y)
    empirical_factors = ref.kfac_factors(network, params, x, vectors)
    empirical = ref.empirical_fisher(network, params, x, "gaussian", y)
    for name, block in exact.items():
        assert_allclose(kfac_block(factors, name), block, atol=1e-12 * np.abs(block).max())
    for name, block in ref.diagonal_blocks(empirical, network).items():
        assert relative_error(kfac_block(empirical_factors, name), block) > 0.1


def test_pooling_in_the_middle():
    """Case T4: after the pooling expand = reduce = exact, before it only reduce."""
    rng = generator(29)
    network = Network(
        (
            Layer("conv2d", "c0", in_channels=3, out_channels=2, kernel_size=(1, 1)),
            Layer("conv2d", "c1", in_channels=2, out_channels=3, kernel_size=(1, 1)),
            Layer("global_avg_pool2d"),
            Layer("dense", "d0", in_features=3, out_features=3),
            Layer("dense", "d1", in_features=3, out_features=2),
        )
    )
    params, x = random_params(network, rng), rng.standard_normal((4, 3, 1, 5))
    vectors = ref.backpropagated_vectors("gaussian", network.forward(params, x))
    expand = ref.kfac_factors(network, params, x, vectors, "expand")
    reduce = ref.kfac_factors(network, params, x, vectors, "reduce")
    blocks = ref.diagonal_blocks(ref.exact_fisher(network, params, x, "gaussian"), network)
    for name, block in blocks.items():
        assert relative_error(kfac_block(reduce, name), block) < 1e-12
        if name.startswith("d"):
            assert relative_error(kfac_block(expand, name), block) < 1e-12
        else:
            assert relative_error(kfac_block(expand, name), block) > 0.1
            assert_allclose(5 * expand[name][1], reduce[name][1], atol=1e-13)


def conv(name, channels, outputs, size, pad, bias=True):
    return Layer(
        "conv2d",
        name,
        in_channels=channels,
        out_channels=outputs,
        kernel_size=(size, size),
        padding=((pad, pad), (pad, pad)),
        bias=bias,
    )


POOL = Layer("global_avg_pool2d")
TANH = Layer("tanh")
FRONT = (conv("front", 2, 2, 3, 1), TANH)

CONV_TABLE = {
    # network, N, block tested, is expand exact, is reduce exact
    "anything, last conv, loss everywhere": ((*FRONT, conv("k", 2, 2, 3, 1)), 4, True, False),
    "conv, linear 1x1, loss everywhere": (
        (conv("k", 2, 2, 3, 1), conv("back", 2, 2, 1, 0)),
        4,
        True,
        False,
    ),
    "conv, linear 3x3, loss everywhere": (
        (conv("k", 2, 2, 3, 1), conv("back", 2, 2, 3, 1)),
        4,
        False,
        False,
    ),
    "anything, last conv, pool": ((*FRONT, conv("k", 2, 2, 3, 1), POOL), 4, False, True),
    "conv, linear 1x1, pool": (
        (conv("k", 2, 2, 3, 1), conv("back", 2, 2, 1, 0), POOL),
        4,
        False,
        True,
    ),
    "conv, linear 3x3 zero padding, pool": (
        (conv("k", 2, 2, 3, 1), conv("back", 2, 2, 3, 1), POOL),
        4,
        False,
        False,
    ),
    "conv, linear 3x3 no padding, pool": (
        (conv("k", 2, 2, 2, 0), conv("back", 2, 2, 3, 0), POOL),
        4,
        False,
        False,
    ),
    "one datum, several positions, tanh": (
        (conv("k", 2, 2, 3, 1), TANH, conv("back", 2, 2, 3, 1), TANH, POOL),
        1,
        False,
        False,
    ),
    "one datum, one position, tanh": (
        (conv("k", 2, 2, 4, 0), TANH, conv("back", 2, 2, 1, 0), TANH, POOL),
        1,
        True,
        True,
    ),
}


def assert_exact(error, exact):
    if exact:
        assert error < 1e-12
    else:
        assert error > 0.1


@pytest.mark.parametrize("case", CONV_TABLE)
def test_convolution_exactness_table(case):
    chain, count, *expected = CONV_TABLE[case]
    network, rng = Network(chain), generator(30)
    params, x = random_params(network, rng), rng.standard_normal((count, 2, 4, 4))
    J = ref.parameter_jacobians(network, params, x)[:, :, network.slices["k"]]
    f = network.forward(params, x)
    block = ref.gauss_newton(J, ref.loss_hessian("gaussian", f))
    vectors = ref.backpropagated_vectors("gaussian", f)
    for sharing, exact in zip(("expand", "reduce"), expected, strict=True):
        factors = ref.kfac_factors(network, params, x, vectors, sharing)
        assert_exact(relative_error(kfac_block(factors, "k"), block), exact)


def test_reduce_is_exact_with_circular_padding_before_pooling():
    rng = generator(31)
    x = rng.standard_normal((4, 2, 4, 4))
    first, second = rng.standard_normal((2, 19)), rng.standard_normal((2, 19))
    padding = ((1, 1), (1, 1))

    def outputs(block, offset):
        z = ref.conv2d(x, block, (3, 3), padding=padding) + offset
        wrapped = np.pad(z, ((0, 0), (0, 0), *padding), mode="wrap")
        return 16 * ref.global_avg_pool2d(ref.conv2d(wrapped, second, (3, 3)))

    J = ref.jacobian(lambda block: outputs(block, 0.0), first).reshape(4, 2, -1)
    block = ref.gauss_newton(J, np.tile(np.eye(2), (4, 1, 1)))
    g = ref.jacobian(lambda offset: outputs(first, offset), np.zeros((2, 4, 4)))
    g = np.moveaxis(g, 1, 0).reshape(2, 4, 2, 16).swapaxes(2, 3)
    patches = ref.conv_patches(x, (3, 3), padding=padding)
    for sharing, exact in (("expand", False), ("reduce", True)):
        A, G = ref.kronecker_factors(patches, g, True, sharing)
        assert_exact(relative_error(ref.kron(G, A), block), exact)


def test_grouped_convolution_blocks_are_exact_one_by_one():
    """Each group's block, loss everywhere: KFC is exact for the last convolution."""
    network = Network(
        (
            Layer(
                "conv2d",
                "k",
                in_channels=4,
                out_channels=4,
                kernel_size=(2, 2),
                stride=(2, 1),
                groups=2,
            ),
        )
    )
    rng = generator(32)
    params, x = random_params(network, rng), rng.standard_normal((3, 4, 4, 3))
    F = ref.exact_fisher(network, params, x, "gaussian")
    vectors = ref.backpropagated_vectors("gaussian", network.forward(params, x))
    A, G = ref.kfac_factors(network, params, x, vectors)["k"]
    assert A.shape == (2, 9, 9)
    assert G.shape == (2, 2, 2)
    for k in range(2):
        own = slice(18 * k, 18 * (k + 1))
        assert_allclose(ref.kron(G[k], A[k]), F[own, own], atol=1e-12)


def test_factors_and_fisher_share_the_scale_law():
    """Copies of the batch change neither the factors nor the Fisher (F is of the mean loss)."""
    network, rng = small_network(), generator(33)
    params, x = random_params(network, rng), rng.standard_normal((3, 2))
    results = []
    for data in (x, np.concatenate([x, x, x])):
        f = network.forward(params, data)
        vectors = ref.backpropagated_vectors("categorical", f)
        results.append(ref.kfac_factors(network, params, data, vectors))
    for name, pair in results[0].items():
        for one, other in zip(pair, results[1][name], strict=True):
            assert_allclose(one, other, atol=1e-14)


def test_kfac_in_expectation_of_sampled_labels():
    """Sampled labels in exact proportion give the factor G of the exact Fisher."""
    network = Network((Layer("dense", "a", in_features=2, out_features=3),))
    params = {"a": np.array([[0, 0, np.log(0.25)], [0, 0, np.log(0.25)], [0, 0, np.log(0.5)]])}
    x = generator(34).standard_normal((3, 2))
    f = network.forward(params, x)
    samples = [np.full(3, label) for label in (0, 1, 2, 2)]
    pairs = [
        ref.kfac_factors(
            network, params, x, ref.backpropagated_vectors("categorical", f, kind, targets)
        )["a"]
        for kind, targets in (("exact", None), ("mc", samples))
    ]
    assert_allclose(pairs[0][1], pairs[1][1], atol=1e-15)


# wrong input -------------------------------------------------------------------------------


FC = {"in_features": 2, "out_features": 2}
ONES = np.ones((1, 2))
CONV_PARAMS = {"c": np.ones((1, 1))}


def conv_network():
    options = {"in_channels": 1, "out_channels": 1, "kernel_size": (1, 1), "bias": False}
    return Network((Layer("conv2d", "c", **options),))


CONV = conv_network(), CONV_PARAMS


def test_layers_without_kronecker_factors_are_left_out():
    network = Network((Layer("dense", "a", **FC), Layer("layer_norm", "n", features=2)))
    params = network.unflatten(np.ones(network.size))
    vectors = ref.backpropagated_vectors("gaussian", network.forward(params, ONES), "exact")
    assert list(ref.kfac_factors(network, params, ONES, vectors)) == ["a"]
    assert list(ref.local_fishers(network, params, ONES)) == ["a"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ref.dense(np.ones((2, 3)), np.ones((2, 3))), "block has shape"),
        (lambda: ref.conv2d(np.ones((2, 3, 4)), np.ones((2, 3)), (1, 1)), "expected images"),
        (lambda: ref.conv2d(np.ones((1, 3, 2, 2)), np.ones((2, 4)), (1, 1), groups=2), "groups"),
        (lambda: ref.conv2d(np.ones((1, 1, 2, 2)), np.ones((1, 10)), (3, 3)), "larger than"),
        (lambda: ref.layer_norm(np.ones((1, 3)), np.ones((2, 3))), "block has shape"),
        (lambda: Layer("linear", "a"), "kind is 'linear'"),
        (lambda: Layer("dense", "a", in_features=2), "lacks \\['out_features'\\]"),
        (lambda: Layer("dense", "a", inputs=2, **FC), "unknown options \\['inputs'\\]"),
        (lambda: Layer("dense", **FC), "needs a name"),
        (lambda: Layer("residual"), "only 'residual'"),
        (lambda: Layer("relu", branch=[Layer("tanh")]), "only 'residual'"),
        (lambda: Network((Layer("dense", "a", **FC), Layer("dense", "a", **FC))), "more than once"),
        (lambda: small_network().forward({}, np.ones((1, 2))), "params names"),
        (lambda: small_network().unflatten(np.ones(3)), "theta has shape"),
        (
            lambda: small_network().forward(
                small_network().unflatten(np.ones(21)), np.ones((1, 2)), {"c": np.ones(3)}
            ),
            r"offsets names \['c'\]; the layers with parameters are \['a', 'b'\]",
        ),
        (lambda: conv_network().forward(CONV_PARAMS, np.ones((1, 2))), "expected \\(N, 1, height"),
        (lambda: ref.monte_carlo_fisher(*CONV, [[1.0]], "gaussian", []), "samples is empty"),
        (
            lambda: ref.natural_gradient(*CONV, [[1.0]], [[1.0]], "gaussian", 1.0, "mc"),
            "kind is 'mc' with samples missing",
        ),
        (
            lambda: ref.natural_gradient(
                *CONV, [[1.0]], [[1.0]], "gaussian", 1.0, "exact", [[[1.0]]]
            ),
            "kind is 'exact' with samples given",
        ),
        (
            lambda: ref.conv2d(np.ones((1, 3, 2, 2)), np.ones((2, 1, 2)), (1, 1), groups=2),
            "3 channels in 2 groups; the groups must divide",
        ),
        (
            lambda: ref.canonical_record(Layer("layer_norm", "n", features=2), ONES, ONES[None]),
            "is of kind 'layer_norm'; expected 'dense' or 'conv2d'",
        ),
        (lambda: ref.direction(np.ones(3), np.eye(3), np.eye(1), 1.0), "expected \\(rows, columns"),
        (lambda: ref.loss_value("poisson", np.ones((1, 2)), [0]), "likelihood is 'poisson'"),
        (lambda: ref.loss_value("categorical", np.ones((1, 2)), [2]), "integer labels from 0 to 1"),
        (lambda: ref.loss_value("categorical", np.ones((1, 2)), [0.0]), "integer labels"),
        (lambda: ref.loss_value("gaussian", np.ones((1, 2)), [0.0]), "targets has shape"),
        (lambda: ref.sample_targets("bernoulli", np.ones((1, 2)), [0.5]), "noise has shape"),
        (lambda: ref.backpropagated_vectors("gaussian", np.ones((1, 2)), "type2"), "kind is"),
        (lambda: ref.backpropagated_vectors("gaussian", np.ones((1, 2)), "mc"), "needs a sequence"),
        (lambda: ref.solve(np.eye(2), np.ones(2), -1.0), "damping is -1.0"),
        (lambda: ref.damped(np.eye(2), np.eye(2), float("nan")), "damping is nan"),
        (lambda: ref.damped(np.eye(2), np.eye(2), 1.0, "trace"), "split is 'trace'"),
        (lambda: ref.direction(np.ones((2, 3)), np.eye(2), np.eye(2), 1.0), "A has shape"),
        (lambda: ref.kronecker_factors(np.ones((2, 3)), np.ones((2, 3))), "expected \\(N, T, I\\)"),
        (
            lambda: ref.kronecker_factors(np.ones((1, 1, 1)), np.ones((1, 1, 1, 1)), True, "sum"),
            "sharing is 'sum'",
        ),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
