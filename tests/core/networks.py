"""Drawn models, and the same networks by torch, by JAX and by the oracle."""

from __future__ import annotations

from functools import partial

import numpy as np
from harness import Backend, rng
from hypothesis import strategies as st

from ngd_core import Conv2dGeometry, nn, reference

NUMPY = Backend("numpy")
SMOOTH = (nn.Tanh(), nn.Sigmoid(), nn.GELU())
ACTIVATIONS = (nn.ReLU(), *SMOOTH)
POOLS = (nn.MaxPool2d, nn.AvgPool2d)


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
    tail = draw(st.one_of(some(nn.Flatten()), act))
    return nn.Sequential(nn.Sequential(*body), tail), (*positions, f_in)


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
            return total / float(np.prod(window))
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
