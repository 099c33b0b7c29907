"""Forward and backward passes against torch, JAX, the oracle and central differences."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from core.networks import (
    NUMPY,
    data,
    dense_models,
    image_models,
    jax_apply,
    oracle_layers,
    run,
    some,
    torch_apply,
)
from harness import EXAMPLES, dtypes, law, seeds, tree_map
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ngd_core import nn, reference
from ngd_core.factors.patches import patches
from ngd_core.testing.assertions import assert_close

close = partial(assert_close, size=64)


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
        close(got, want, dtype=dtype, scale=max(scale, 1.0))
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
        scale = max(np.abs(want).max(), 1.0)  # the vectors' size: zero may be a difference of ones
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
    close(got, reference.jacobian(loss, np.zeros(4)), dtype=dtype, scale=max(scale, 1.0))


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
    h = 3e-4
    size = np.sum(np.abs(g)) + sum(map(abs, slopes))
    wide, narrow = (loss(2 * h) - loss(-2 * h)) / (4 * h), (loss(h) - loss(-h)) / (2 * h)
    close((4 * narrow - wide) / 3, slope, kappa=1e5, scale=size)


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
    close(result.input, by_x, scale=max(np.abs(by_x).max(), 1.0))
    for name, wanted in by_params.items():
        close(n * result.grads[name], wanted, scale=max(np.abs(wanted).max(), 1.0))
