"""Layers with hand-written backward passes, against differences and three other sources."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from harness import EXAMPLES, Backend, dtypes, law, rng, seeds, tree_map
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ngd_core import Conv2dGeometry, LayerRecord, LayerSpec, nn, reference
from ngd_core.factors.patches import fold, patches
from ngd_core.testing.assertions import assert_close

SMOOTH = (nn.Tanh(), nn.Sigmoid(), nn.GELU())
ACTIVATIONS = (nn.ReLU(), *SMOOTH)
POOLS = (nn.MaxPool2d, nn.AvgPool2d)
NUMPY = Backend("numpy")
close = partial(assert_close, size=64)

# ------------------------------------------------------------------------------------ structure


def some(*values):
    """One of the values; Hypothesis tries the first one first, so that is a telling one."""
    return st.sampled_from(values)


@st.composite
def geometries(draw):
    """A kernel with every option, and an input at least as large as it."""
    kernel = draw(some(2, 3, 1)), draw(some(3, 2, 1))
    stride = draw(some(2, 1, 3)), draw(some(1, 2, 3))
    dilation = draw(some(1, 2, 3)), draw(some(2, 1, 3))
    pads = st.tuples(some(0, 1, 2), some(2, 1, 0)), st.tuples(some(1, 0, 2), some(0, 1, 2))
    padding = draw(st.one_of(st.tuples(*pads), some("same", "valid")))
    least = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = least[0] + draw(some(3, 0, 1, 2, 4)), least[1] + draw(some(2, 0, 1, 3, 4))
    return Conv2dGeometry(kernel, stride, dilation, padding, draw(some(2, 1, 3))), size


def conv(name, c_in, c_out, geometry, bias=True):
    g = geometry
    options = (g.kernel_size, g.stride, g.dilation, g.padding, g.groups)
    return nn.Conv2d(name, c_in, c_out, *options, bias=bias)


@st.composite
def image_models(draw, smooth=False):
    """Convolution, pool, a residual branch and a head; with the input's shape."""
    geometry, size = draw(geometries())
    act, pools = (SMOOTH, POOLS[1:]) if smooth else (ACTIVATIONS, POOLS)
    c_in, c_mid = geometry.groups * draw(some(2, 1)), geometry.groups * draw(some(2, 1))
    height, width = geometry.output_size(*size)
    window = min(height, draw(some(2, 1, 3))), min(width, draw(some(3, 2, 1)))
    pool = draw(some(*pools))(window, draw(some(1, None, 2)))
    height, width = pool.geometry.output_size(height, width)
    branch = nn.Conv2d("inner", c_mid, c_mid, (2, 1), padding="same"), draw(some(*act))
    features = c_mid * height * width
    heads = (
        (nn.Flatten(), nn.LayerNorm("norm", features, 0.1), nn.Dense("head", features, 3)),
        (nn.GlobalAvgPool2d(), nn.Dense("head", c_mid, 2)),
    )
    first = conv("first", c_in, c_mid, geometry, draw(some(True, False)))
    body = first, draw(some(*act)), pool, nn.Residual(nn.Sequential(*branch))
    return nn.Sequential(nn.Sequential(*body), *draw(some(*heads))), (c_in, *size)


@st.composite
def dense_models(draw, smooth=False):
    """Affine maps with up to two axes of positions, nested chains; with the input's shape."""
    positions, f_in, f = draw(some((2,), (), (3, 2))), draw(some(2, 4, 1)), draw(some(4, 3, 5))
    act = some(*(SMOOTH if smooth else ACTIVATIONS))
    branch = nn.Sequential(nn.LayerNorm("norm", f, 0.1), nn.Dense("inner", f, f), draw(act))
    first = nn.Dense("first", f_in, f, bias=draw(some(True, False)))
    body = first, draw(act), nn.Residual(branch), nn.Residual(draw(act))
    return nn.Sequential(nn.Sequential(*body), draw(some(nn.Flatten(), nn.ReLU()))), (
        *positions,
        f_in,
    )


def data(model, shape, n, seed, dtype="float64"):
    """Parameters, inputs, and a function that draws more; float64, but rounded to `dtype`."""

    generator = rng(seed)

    def draw(shape):
        return generator.standard_normal(shape).astype(dtype).astype(np.float64)

    return {name: draw(s) for name, s in nn.shapes(model).items()}, draw((n, *shape)), draw


def run(backend, model, params, x, g):
    """One forward and one backward pass, each compiled for the variants that compile."""
    outputs, tape = backend.call(partial(nn.forward, model), params, x)
    return outputs, tape, backend.call(partial(nn.backward, model), params, tape, g)


# ------------------------------------------------------------------ the same networks elsewhere


def torch_conv(x, weight, bias, geometry):
    """The same convolution by torch; asymmetric padding as a step of its own."""
    import torch

    (top, bottom), (left, right) = geometry.pads(*x.shape[-2:])
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    return torch.nn.functional.conv2d(
        x, weight, bias, geometry.stride, 0, geometry.dilation, geometry.groups
    )


def split(block, layer):
    """Weights (convolution kernels in PyTorch layout) and bias of a block, in any library."""
    block = block.reshape(layer.out_channels if isinstance(layer, nn.Conv2d) else len(block), -1)
    weight, bias = (block[:, :-1], block[:, -1]) if layer.bias else (block, None)
    if isinstance(layer, nn.Conv2d):
        weight = weight.reshape(layer.out_channels, -1, *layer.geometry.kernel_size)
    return weight, bias


def torch_apply(layer, params, x, seen, margins):
    """The layer by torch.nn.functional.

    `seen` collects (input, output) of dense and convolutional layers, `margins` the distances of
    ReLU inputs from 0 and of the maxima of windows from the other values.
    """
    from torch.nn import functional

    match layer:
        case nn.Sequential():
            for part in layer.layers:
                x = torch_apply(part, params, x, seen, margins)
            return x
        case nn.Residual():
            return x + torch_apply(layer.inner, params, x, seen, margins)
        case nn.Dense() | nn.Conv2d():
            weight, bias = split(params[layer.name], layer)
            if isinstance(layer, nn.Dense):
                z = functional.linear(x, weight, bias)
            else:
                z = torch_conv(x, weight, bias, layer.geometry)
            seen[layer.spec] = (x, z)
            return z
        case nn.LayerNorm():
            scale, shift = params[layer.name].T
            return functional.layer_norm(x, (layer.features,), scale, shift, layer.eps)
        case nn.MaxPool2d():
            y = functional.max_pool2d(x, layer.size, layer.stride)
            taps = functional.unfold(x, layer.geometry.kernel_size, stride=layer.geometry.stride)
            margins.append(
                y.reshape(*x.shape[:2], 1, -1) - taps.reshape(*y.shape[:2], -1, y[0, 0].numel())
            )
            return y
        case nn.AvgPool2d():
            return functional.avg_pool2d(x, layer.size, layer.stride)
        case nn.GlobalAvgPool2d():
            return functional.adaptive_avg_pool2d(x, 1).flatten(1)
        case nn.Flatten():
            return x.flatten(1)
        case nn.GELU():
            return functional.gelu(x, approximate="tanh")
        case nn.ReLU():
            margins.append(x)
    return {nn.ReLU: functional.relu, nn.Tanh: functional.tanh, nn.Sigmoid: functional.sigmoid}[
        type(layer)
    ](x)


def jax_apply(layer, params, x):
    """The layer by jax.numpy, jax.nn and jax.lax, 'same' padding left to XLA."""
    import jax
    import jax.numpy as jnp

    match layer:
        case nn.Sequential():
            for part in layer.layers:
                x = jax_apply(part, params, x)
            return x
        case nn.Residual():
            return x + jax_apply(layer.inner, params, x)
        case nn.Dense():
            weight, bias = split(params[layer.name], layer)
            return x @ weight.T + (0.0 if bias is None else bias)
        case nn.Conv2d():
            weight, bias = split(params[layer.name], layer)
            g = layer.geometry
            padding = g.padding.upper() if isinstance(g.padding, str) else g.padding
            z = jax.lax.conv_general_dilated(
                x,
                weight,
                g.stride,
                padding,
                rhs_dilation=g.dilation,
                feature_group_count=g.groups,
                dimension_numbers=("NCHW", "OIHW", "NCHW"),
            )
            return z if bias is None else z + bias[:, None, None]
        case nn.LayerNorm():
            scale, shift = params[layer.name].T
            return jax.nn.standardize(x, epsilon=layer.eps) * scale + shift
        case nn.MaxPool2d() | nn.AvgPool2d():
            window = (1, 1, *layer.geometry.kernel_size)
            steps = (1, 1, *layer.geometry.stride)
            if isinstance(layer, nn.MaxPool2d):
                return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, steps, "VALID")
            total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, steps, "VALID")
            return total / np.prod(window)
        case nn.GlobalAvgPool2d():
            return jnp.mean(x, axis=(2, 3))
        case nn.Flatten():
            return x.reshape(len(x), -1)
        case nn.GELU():
            return jax.nn.gelu(x, approximate=True)
    return {nn.ReLU: jax.nn.relu, nn.Tanh: jnp.tanh, nn.Sigmoid: jax.nn.sigmoid}[type(layer)](x)


def oracle_layers(layer, inputs):
    """The layer for `ngd_core.reference`; `inputs` holds the shapes of convolutions' inputs."""
    match layer:
        case nn.Sequential():
            return [out for part in layer.layers for out in oracle_layers(part, inputs)]
        case nn.Residual():
            return [reference.Layer("residual", branch=oracle_layers(layer.inner, inputs))]
        case nn.Dense(name, f_in, f_out, bias):
            sizes = {"in_features": f_in, "out_features": f_out}
            return [reference.Layer("dense", name, **sizes, bias=bias)]
        case nn.Conv2d(name, c_in, c_out):
            g = layer.geometry
            return [
                reference.Layer(
                    "conv2d",
                    name,
                    in_channels=c_in,
                    out_channels=c_out,
                    kernel_size=g.kernel_size,
                    stride=g.stride,
                    dilation=g.dilation,
                    padding=g.pads(*inputs[layer.spec][2:]),
                    groups=g.groups,
                    bias=layer.bias,
                )
            ]
        case nn.LayerNorm(name, features, eps):
            return [reference.Layer("layer_norm", name, features=features, eps=eps)]
        case nn.MaxPool2d() | nn.AvgPool2d():
            kind = "max_pool2d" if isinstance(layer, nn.MaxPool2d) else "avg_pool2d"
            g = layer.geometry
            return [reference.Layer(kind, kernel_size=g.kernel_size, stride=g.stride)]
        case nn.GlobalAvgPool2d():
            return [reference.Layer("global_avg_pool2d")]
    return [reference.Layer(type(layer).__name__.lower())]


# --------------------------------------------------------------------------------------- patches


@law(case=geometries(), n=some(3, 2, 1), width=some(2, 1), dtype=dtypes, seed=seeds)
def test_patches_times_the_flat_kernel_is_the_convolution(backend, case, n, width, dtype, seed):
    import torch

    geometry, size = case
    g, r = geometry.groups, rng(seed)
    x = r.standard_normal((n, g * width, *size))
    kernel = r.standard_normal((2 * g, width, *geometry.kernel_size))
    got = backend.call(partial(patches, geometry=geometry), backend.array(x, dtype))
    rows = np.asarray(backend.numpy(got), np.float64)
    flat = kernel.reshape(*((g, 2, -1) if g > 1 else (2, -1)))
    if g > 1:
        out = (rows @ flat[:, None].swapaxes(-1, -2)).transpose(1, 0, 3, 2)
    else:
        out = (rows @ flat.T).transpose(0, 2, 1)
    want = torch_conv(torch.tensor(x), torch.tensor(kernel), None, geometry).numpy()
    assert str(got.dtype).endswith(dtype)
    scale = np.abs(x).max() * np.abs(kernel).max()
    assert_close(out.reshape(want.shape), want, dtype=dtype, size=flat.shape[-1], scale=scale)


@law(
    case=geometries(),
    lead=some((2,), (), (1, 3)),
    width=some(2, 1),
    dtype=dtypes,
    seed=seeds,
)
def test_fold_is_the_adjoint_of_patches(backend, case, lead, width, dtype, seed):
    geometry, size = case
    r = rng(seed)
    shape = (2, geometry.groups * width, *size)
    x = r.standard_normal(shape)
    read = patches(x, geometry, xp=NUMPY.xp)
    p = r.standard_normal((*lead, *read.shape))
    back = backend.call(
        partial(fold, geometry=geometry, height=size[0], width=size[1]), backend.array(p, dtype)
    )
    assert back.shape == (*lead, *shape)
    left = np.sum(read * p, axis=tuple(range(len(lead), p.ndim)))
    right = np.sum(x * backend.numpy(back), axis=tuple(range(len(lead), len(lead) + 4)))
    scale = max(np.linalg.norm(p) * np.linalg.norm(read), 1e-30)
    assert_close(right, left, dtype=dtype, size=4, scale=scale)


# --------------------------------------------------------------------------------------- passes


def arrays(tree):
    """Copies of all arrays in a tree of NumPy arrays, in order."""
    found = []
    tree_map(lambda x: found.append(np.copy(x)), tree)
    return found


def mean_gradient(spec, record):
    """``(1/N) sum_n g^T [a 1]`` over positions and vectors, from a record of NumPy arrays."""
    a, g = record.a, record.g[None] if record.g.ndim == record.a.ndim else record.g
    n = len(a)
    if spec.kind == "dense":
        a = a.reshape(1, n, -1, spec.in_features)
    else:
        a = patches(a, spec.geometry, xp=NUMPY.xp)
        a = a.reshape(spec.groups, n, -1, a.shape[-1])
        g = np.moveaxis(g.reshape(*g.shape[:3], -1), 2, 3)
    g = g.reshape(len(g), n, -1, spec.groups, spec.rows)
    if spec.bias:
        a = np.concatenate([a, np.ones((*a.shape[:-1], 1), a.dtype)], axis=-1)
    return (np.einsum("mntgo,gntd->god", g, a) / n).reshape(spec.block_shape)


batches = {"n": some(3, 2, 1), "dtype": dtypes, "seed": seeds}


@law(case=image_models(), m=some(2, 0, 1), **batches)
def test_passes_of_image_models(backend, case, m, n, dtype, seed):
    compare_passes(backend, case, m, n, dtype, seed)


@law(case=dense_models(), m=some(0, 2, 1), **batches)
def test_passes_of_dense_models(backend, case, m, n, dtype, seed):
    compare_passes(backend, case, m, n, dtype, seed)


def compare_passes(backend, case, m, n, dtype, seed):
    """A forward pass and a backward pass of m vectors (0: one without the axis M).

    Outputs, gradients, records and input gradients against torch, the oracle and each other.
    """
    import torch

    model, shape = case
    params, x, draw = data(model, shape, n, seed, dtype)
    partner = by_torch(model, *tree_map(torch.tensor, (params, x)), dtype)
    vectors = draw((*((m,) if m else ()), *partner.outputs.shape))

    mine = backend.tree((params, x, vectors), dtype)
    outputs, tape, result = run(backend, model, *mine)
    for array in (outputs, result.input, *result.grads.values()):
        assert str(array.dtype).endswith(dtype)
    tape, result = backend.numpy(tape), backend.numpy(result)
    for got, copy in zip(arrays(backend.numpy(mine)), arrays((params, x, vectors)), strict=True):
        np.testing.assert_array_equal(got, copy)

    close(backend.numpy(outputs), partner.outputs.detach(), dtype=dtype)
    compare_with_torch(partner, params, vectors, n, result, dtype)
    for spec, record in result.records.items():
        want, got = mean_gradient(spec, record), result.grads[spec.name]
        scale = np.linalg.norm(record.a) * np.linalg.norm(record.g)
        close(got, want, dtype=dtype, scale=max(scale, 1e-3))
    if m:
        vectors, at_input = vectors.sum(axis=0), result.input.sum(axis=0)
    else:
        at_input = result.input
    compare_with_oracle(model, params, x, vectors, result._replace(input=at_input), draw, dtype)


class Partner(NamedTuple):
    """A torch graph: its outputs, what to differentiate by, inputs of dense and conv layers."""

    outputs: Any
    sources: list
    inputs: dict


def by_torch(model, params, x, dtype):
    """Run torch, with ReLU and max-pooling inputs that rounding cannot move over a kink."""
    import torch

    seen, margins = {}, []
    sources = [array.requires_grad_() for array in (x, *params.values())]
    outputs = torch_apply(model, params, x, seen, margins)
    distances = [margin[margin != 0].abs().min() for margin in margins if torch.any(margin != 0)]
    assume(min(distances, default=1) > (1e-5 if dtype == "float32" else 1e-12))
    sources += [z for _, z in seen.values()]
    return Partner(outputs, sources, {spec: a.detach() for spec, (a, _) in seen.items()})


def compare_with_torch(partner, params, vectors, n, result, dtype):
    """Every gradient, and every record, entry by entry."""
    import torch

    rows = [
        torch.autograd.grad(partner.outputs, partner.sources, torch.tensor(v), retain_graph=True)
        for v in vectors.reshape(-1, *partner.outputs.shape)
    ]
    single = vectors.ndim == partner.outputs.ndim
    wanted = iter([np.stack(column) for column in zip(*rows, strict=True)])

    def compare(got, want, total=False):
        scale = max(np.abs(want).max(), 1e-3)
        want = want.sum(axis=0) / n if total else want[0] if single else want
        close(got, want, dtype=dtype, scale=scale)

    compare(result.input, next(wanted))
    assert set(result.grads) == set(params)
    for name in params:
        compare(result.grads[name], next(wanted), total=True)
    assert set(result.records) == set(partner.inputs)
    for spec, a in partner.inputs.items():
        record = result.records[spec]
        assert record.z is None
        close(record.a, a, dtype=dtype)
        compare(record.g, next(wanted))


def compare_with_oracle(model, params, x, g, result, draw, dtype):
    """Derivatives along two directions each of parameters and inputs, by the complex step."""
    inputs = {spec: record.a.shape for spec, record in result.records.items()}
    network = reference.Network(oracle_layers(model, inputs))
    assert network.block_shapes == nn.shapes(model)
    theta = network.flatten(params)
    along, inside = draw((2, network.size)), draw((2, *x.shape))

    def loss(t):
        moved = network.unflatten(theta + t[:2] @ along)
        return np.sum(g * network.forward(moved, x + np.tensordot(t[2:], inside, 1))) / len(x)

    flat, at_input = network.flatten(result.grads), result.input.astype(np.float64)
    got = [*(along @ flat), *(np.sum(v * at_input) / len(x) for v in inside)]
    norms = [np.linalg.norm(v) for v in (flat, along, at_input, inside)]
    scale = norms[0] * norms[1] + norms[2] * norms[3]
    close(got, reference.jacobian(loss, np.zeros(4)), dtype=dtype, scale=max(scale, 1e-3))


def models(**options):
    return st.one_of(image_models(**options), dense_models(**options))


def numpy_law(examples, **strategies):
    """A law on NumPy alone, with so many examples."""
    return lambda f: settings(
        max_examples=examples, deadline=None, derandomize=True, database=None
    )(given(**strategies)(f))


@numpy_law(EXAMPLES, case=models(smooth=True), n=some(3, 2, 1), seed=seeds)
def test_backward_equals_central_differences(case, n, seed):
    model, shape = case
    params, x, draw = data(model, shape, n, seed)
    outputs, tape = nn.forward(model, params, x)
    g = draw(outputs.shape)
    result = nn.backward(model, params, tape, g)
    at_params, at_x = {name: draw(block.shape) for name, block in params.items()}, draw(x.shape)

    def loss(step):
        moved = {name: block + step * at_params[name] for name, block in params.items()}
        return np.sum(g * nn.predict(model, moved, x + step * at_x)) / n

    slopes = [np.sum(at_params[name] * grad) for name, grad in result.grads.items()]
    slope = sum(slopes) + np.sum(at_x * result.input) / n
    h = 1e-5
    size = np.sum(np.abs(g)) + sum(map(abs, slopes))
    assert_close((loss(h) - loss(-h)) / (2 * h), slope, kappa=1e6, scale=size)


@numpy_law(max(2, EXAMPLES // 6), case=models(), n=some(3, 2, 1), seed=seeds)
def test_backward_equals_jax_grad(case, n, seed):
    import jax

    model, shape = case
    params, x, draw = data(model, shape, n, seed)
    outputs, tape = nn.forward(model, params, x)
    g = draw(outputs.shape)

    @jax.jit
    def both(params, x):
        return jax.vjp(lambda p, x: jax_apply(model, p, x), params, x)[1](g)

    wanted = jax_apply(model, params, x)
    by_params, by_x = both(params, x)
    result = nn.backward(model, params, tape, g)
    close(outputs, wanted)
    close(result.input, by_x, scale=max(np.abs(by_x).max(), 1e-3))
    for name, wanted in by_params.items():
        close(n * result.grads[name], wanted, scale=max(np.abs(wanted).max(), 1e-3))


# ------------------------------------------------------------------------------- single statements


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


# ------------------------------------------------------------------------------------------ errors

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
