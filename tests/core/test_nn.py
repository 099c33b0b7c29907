"""Layers with hand-written backward passes, against differences and three other sources."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from harness import EXAMPLES, Backend, dtypes, law, rng, seeds, tree_map
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ngd_core import Conv2dGeometry, nn, reference
from ngd_core.factors.patches import fold, patches
from ngd_core.testing.assertions import assert_close

SMOOTH = (nn.Tanh(), nn.Sigmoid(), nn.GELU())
ACTIVATIONS = (nn.ReLU(), *SMOOTH)
NUMPY = Backend("numpy")
close = partial(assert_close, size=64)

# ------------------------------------------------------------------------------------ structure


@st.composite
def geometries(draw):
    """A kernel with every option, and an input at least as large as it."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(pair)
    edge = st.tuples(st.integers(0, 2), st.integers(0, 2))
    padding = draw(st.one_of(st.sampled_from(["valid", "same"]), st.tuples(edge, edge)))
    groups = draw(st.integers(1, 3))
    size = tuple(
        d * (k - 1) + 1 + draw(st.integers(0, 4)) for k, d in zip(kernel, dilation, strict=True)
    )
    return Conv2dGeometry(kernel, stride, dilation, padding, groups), size


def conv(name, c_in, c_out, geometry, bias=True):
    g = geometry
    options = (g.kernel_size, g.stride, g.dilation, g.padding, g.groups)
    return nn.Conv2d(name, c_in, c_out, *options, bias=bias)


@st.composite
def image_models(draw, smooth=False):
    """Convolutions, pools, a residual branch and a head; with the input's shape."""
    geometry, size = draw(geometries())
    c_in = geometry.groups * draw(st.integers(1, 2))
    c_mid = geometry.groups * draw(st.integers(1, 2))
    height, width = geometry.output_size(*size)
    layers = [conv("first", c_in, c_mid, geometry, draw(st.booleans()))]
    act = st.sampled_from(SMOOTH if smooth else ACTIVATIONS)
    layers.append(draw(act))
    if draw(st.booleans()):
        pool = nn.AvgPool2d if smooth else draw(st.sampled_from((nn.MaxPool2d, nn.AvgPool2d)))
        window = draw(st.integers(1, min(height, 3))), draw(st.integers(1, min(width, 3)))
        stride = draw(st.one_of(st.none(), st.integers(1, 2)))
        layers.append(pool(window, stride))
        height, width = layers[-1].geometry.output_size(height, width)
    if draw(st.booleans()):
        inner = nn.Conv2d("inner", c_mid, c_mid, (3, 2), padding="same")
        layers.append(nn.Residual(nn.Sequential(inner, draw(act))))
    if draw(st.booleans()):
        layers += [nn.GlobalAvgPool2d(), nn.Dense("head", c_mid, 2)]
    else:
        features = c_mid * height * width
        layers += [nn.Flatten(), nn.LayerNorm("norm", features, 0.1), nn.Dense("head", features, 3)]
    return nn.Sequential(*layers), (c_in, *size)


@st.composite
def dense_models(draw, smooth=False):
    """Affine maps with up to two axes of positions, nested chains; with the input's shape."""
    positions = draw(st.lists(st.integers(1, 3), max_size=2))
    f_in, f = draw(st.integers(1, 4)), draw(st.integers(3, 5))
    act = st.sampled_from(SMOOTH if smooth else ACTIVATIONS)
    branch = nn.Sequential(nn.LayerNorm("norm", f, 0.1), nn.Dense("inner", f, f), draw(act))
    layers = [nn.Dense("first", f_in, f, bias=draw(st.booleans())), draw(act), nn.Residual(branch)]
    tail = nn.Sequential(nn.Flatten(), draw(act)) if draw(st.booleans()) else draw(act)
    return nn.Sequential(nn.Sequential(*layers), tail), (*positions, f_in)


models = st.one_of(image_models(), dense_models())
smooth_models = st.one_of(image_models(smooth=True), dense_models(smooth=True))
batches = st.integers(1, 3)


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


@law(case=geometries(), n=batches, width=st.integers(1, 2), dtype=dtypes, seed=seeds)
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
    lead=st.lists(st.integers(1, 3), max_size=2),
    width=st.integers(1, 2),
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


@law(case=models, n=batches, m=st.integers(0, 3), dtype=dtypes, seed=seeds)
def test_passes_equal_torch_autograd_and_the_oracle(backend, case, n, m, dtype, seed):
    """One forward and one backward pass, the latter with m vectors (0: without that axis)."""
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


def numpy_law(examples, **strategies):
    """A law on NumPy alone, with so many examples."""
    return lambda f: settings(
        max_examples=examples, deadline=None, derandomize=True, database=None
    )(given(**strategies)(f))


@numpy_law(EXAMPLES, case=smooth_models, n=batches, seed=seeds)
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


@numpy_law(max(2, EXAMPLES // 6), case=models, n=batches, seed=seeds)
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
