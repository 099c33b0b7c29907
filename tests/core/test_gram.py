"""Gram matrices of per-example gradients equal U^T U, U formed by loops."""

import numpy as np
import pytest
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import Conv2dGeometry, LayerRecord, LayerSpec, factors, reference
from ngd_core.testing import assert_close, assert_far

N = 4
GEOMETRIES = {
    "plain": Conv2dGeometry(2),
    "stride and padding": Conv2dGeometry((3, 2), stride=(2, 1), padding=((1, 0), (0, 2))),
    "groups": Conv2dGeometry(2, padding="same", groups=2),
    "one pixel": Conv2dGeometry((4, 3)),
}


def dense_case(seed, positions, bias):
    r = rng(seed)
    spec = LayerSpec("fc", "dense", 3, 2, bias)
    a, g = r.standard_normal((N, *positions, 3)), r.standard_normal((N, *positions, 2))
    return spec, LayerRecord(a, g), [(a.reshape(N, -1, 3), g.reshape(N, -1, 2))]


def conv_case(seed, name, bias):
    r, geometry = rng(seed), GEOMETRIES[name]
    k = geometry.groups
    spec = LayerSpec("conv", "conv2d", 2 * k, 3 * k, bias, geometry=geometry)
    a = r.standard_normal((N, 2 * k, 4, 3))
    g = r.standard_normal((N, 3 * k, *geometry.output_size(4, 3)))
    options = geometry.kernel_size, geometry.stride, geometry.dilation, geometry.pads(4, 3), k
    x = reference.conv_patches(a, *options)
    x, y = x[None] if k == 1 else x, np.swapaxes(g.reshape(N, k, 3, -1), 2, 3)
    return spec, LayerRecord(a, g), [(x[i], y[:, i]) for i in range(k)]


cases = st.one_of(
    st.builds(dense_case, seeds, st.sampled_from([(), (3,), (2, 2)]), st.booleans()),
    st.builds(conv_case, seeds, st.sampled_from(sorted(GEOMETRIES)), st.booleans()),
)


def gradient_matrix(spec, oracle):
    """U: one column an example, groups below one another."""
    return np.concatenate([reference.example_gradients(x, y, spec.bias) for x, y in oracle])


@law(case=cases, dtype=dtypes)
def test_gram_by_either_route_is_the_gradients_own(backend, case, dtype):
    """2.9 #3, dense, bias, sequence, convolution (stride, padding, groups): K = U^T U."""
    spec, record, oracle = case
    U = gradient_matrix(spec, oracle)

    def both(r, *, xp):
        routes = ("positions", "explicit")
        return tuple(factors.gram(spec, r, route=route, xp=xp) for route in routes)

    for K in backend.call(both, backend.tree(record, dtype)):
        assert str(K.dtype).endswith(dtype)
        assert_close(backend.numpy(K), U.T @ U, dtype=dtype, size=len(U) * 9)


def test_gram_of_several_vectors_pairs_all_of_them():
    """Vector by vector, as in the Gram duality of the exact Fisher."""
    r = rng(0)
    for spec, record, oracle in (dense_case(0, (3,), True), conv_case(0, "groups", True)):
        second = r.standard_normal(record.g.shape)
        both = record._replace(g=np.stack([record.g, second]))
        u = factors.per_example_gradients(spec, both).reshape(2 * N, -1)
        for route in ("positions", "explicit"):
            K = factors.gram(spec, both, route=route)
            assert_close(K, u @ u.T, size=100)
            U = gradient_matrix(spec, oracle)
            assert_close(K[:N, :N], U.T @ U, size=100)


def test_the_oracle_of_these_tests_is_the_complex_step_derivative():
    """The loops over positions give the derivative of each example's loss in a whole network."""
    r = rng(1)
    conv = {"in_channels": 2, "out_channels": 4, "kernel_size": (2, 2), "groups": 2}
    network = reference.Network(
        (
            reference.Layer("conv2d", "conv", **conv, stride=(1, 2), padding=((1, 0), (0, 1))),
            reference.Layer("tanh"),
            reference.Layer("flatten"),
            reference.Layer("layer_norm", "norm", features=24),
            reference.Layer("dense", "fc", in_features=24, out_features=3),
        )
    )
    params = {name: r.standard_normal(shape) for name, shape in network.block_shapes.items()}
    x, labels = r.standard_normal((N, 2, 3, 4)), np.asarray([0, 2, 1, 1])
    exact = reference.loss_gradients(network, params, x, "categorical", labels)
    inputs = {}
    outputs = network.forward(params, x, record=inputs)
    vectors = reference.loss_gradient("categorical", outputs, labels)[None]
    g = reference.output_gradients(network, params, x, vectors)
    for name in ("conv", "fc"):
        layer = network.parametric[name]
        pairs = reference.canonical_record(layer, inputs[name], g[name])
        U = np.concatenate([reference.example_gradients(a, y[0]) for a, y in pairs])
        assert_close(U.T, exact[:, network.slices[name]], size=1000)
    h = inputs["norm"]
    deviation = np.sqrt(h.var(axis=1, keepdims=True) + 1e-5)
    xhat = (h - h.mean(axis=1, keepdims=True)) / deviation
    U = reference.norm_scale_example_gradients(xhat[:, None], g["norm"][0][:, None])
    assert_close(U.T, exact[:, network.slices["norm"]], size=1000)


@law(seed=seeds, positions=st.sampled_from([(), (3,), (2, 2)]), dtype=dtypes)
def test_gram_of_an_embedding(backend, seed, positions, dtype):
    """2.9 #3, embedding: rows of the table that two examples share."""
    r = rng(seed)
    tokens, g = r.integers(0, 3, (N, *positions)), r.standard_normal((N, *positions, 2))
    U = reference.embedding_example_gradients(tokens.reshape(N, -1), g.reshape(N, -1, 2), 3)
    K = backend.call(factors.embedding_gram, backend.array(tokens), backend.array(g, dtype))
    assert str(K.dtype).endswith(dtype)
    assert_close(backend.numpy(K), U.T @ U, dtype=dtype, size=16)


@law(seed=seeds, positions=st.sampled_from([(), (3,), (2, 2)]), bias=st.booleans(), dtype=dtypes)
def test_gram_of_a_norm_scale(backend, seed, positions, bias, dtype):
    """2.9 #3, LayerNorm: scale and shift."""
    r = rng(seed)
    x, g = r.standard_normal((N, *positions, 3)), r.standard_normal((N, *positions, 3))
    U = reference.norm_scale_example_gradients(x.reshape(N, -1, 3), g.reshape(N, -1, 3), bias)
    K = backend.call(
        factors.norm_scale_gram, backend.array(x, dtype), backend.array(g, dtype), bias=bias
    )
    assert str(K.dtype).endswith(dtype)
    assert_close(backend.numpy(K), U.T @ U, dtype=dtype, size=24)


def test_the_two_shortcuts_in_use_elsewhere_are_not_exact():
    """Section 2.3: positions as further features, and positions summed first."""
    spec, record, oracle = dense_case(3, (3,), False)
    a, g = record.a, record.g
    U = gradient_matrix(spec, oracle)
    flat = (a.reshape(N, -1) @ a.reshape(N, -1).T) * (g.reshape(N, -1) @ g.reshape(N, -1).T) / 3
    summed = (a.sum(1) @ a.sum(1).T) * (g.sum(1) @ g.sum(1).T)
    assert_far(flat, U.T @ U, least=0.2)
    assert_far(summed, U.T @ U, least=0.2)


@pytest.mark.parametrize("outputs", [1, 8, 64])
def test_the_route_is_the_cheaper_one_by_the_rule(outputs):
    """Section 2.3: positions where T^2 (D + O) < D O, and always for T = 1."""
    geometry = Conv2dGeometry(3, groups=2)
    spec = LayerSpec("conv", "conv2d", 16, 2 * outputs, geometry=geometry)
    d, o = 8 * 9 + 1, outputs
    for t in range(1, 12):
        wanted = "positions" if t == 1 or t**2 * (d + o) < d * o else "explicit"
        assert factors.gram_route(spec, t) == wanted
    assert factors.gram_route(spec, 11) == "explicit"


def test_the_rule_decides_what_is_computed(monkeypatch):
    """No per-example gradient is formed on the positions route."""
    from importlib import import_module

    def refuse(*_, **__):
        message = "formed"
        raise AssertionError(message)

    monkeypatch.setattr(import_module("ngd_core.factors.gram"), "per_example_gradients", refuse)
    wide = LayerSpec("wide", "dense", 32, 32)
    for shape in ((2,), (2, 3)):
        record = LayerRecord(np.ones((*shape, 32)), np.ones((*shape, 32)))
        assert factors.gram(wide, record).shape == (2, 2)
    with pytest.raises(AssertionError, match="formed"):
        factors.gram(wide, LayerRecord(np.ones((2, 9, 32)), np.ones((2, 9, 32))))


ONES = np.ones((2, 3))
INDEX = np.zeros(2, int)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: factors.gram(
                LayerSpec("fc", "dense", 3, 3), LayerRecord(ONES, ONES), route="x"
            ),
            ValueError,
            "route is 'x'; expected one of",
        ),
        (
            lambda: factors.embedding_gram(ONES[:, 0], ONES),
            TypeError,
            "tokens has dtype float64; expected an integer dtype",
        ),
        (
            lambda: factors.embedding_gram(INDEX, INDEX[:, None]),
            TypeError,
            "g has dtype int64; expected a real floating",
        ),
        (
            lambda: factors.embedding_gram(INDEX[:1], ONES),
            ValueError,
            r"tokens has shape \(1,\); expected \(2,\)",
        ),
        (
            lambda: factors.norm_scale_gram(ONES, ONES[:, :2]),
            ValueError,
            r"normalised has shape \(2, 3\); expected \(2, 2\)",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
