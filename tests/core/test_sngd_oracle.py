"""SNGD's oracle, judged by closed forms, SciPy and the theorem of sngd_fngd.md 1.2."""

import numpy as np
import pytest
import scipy.linalg
from core.sngd_cases import CONV, FC, ORACLE, N, batch
from harness import rng, spd

from ngd_core import LayerRecord, LayerSpec, factors, reference
from ngd_core.testing import assert_close, assert_far


def test_local_fisher_is_a_weighted_second_moment():
    r = rng(0)
    a, z = r.standard_normal((4, 3, 2)), r.standard_normal((4, 3, 5))
    x = np.concatenate([a, np.ones((4, 3, 1))], axis=2).reshape(12, 3)
    assert_close(reference.local_fisher(a), np.cov(x.T, bias=True) + np.outer(x.mean(0), x.mean(0)))
    s = 1 / (1 + np.exp(-z.reshape(12, 5)))
    expected = np.einsum("nj,np,nq->jpq", s**2, x, x) / 12
    assert_close(reference.local_fisher(a, z), expected)


@pytest.mark.parametrize("relu", [(), ("conv",), ("conv", "head")])
def test_local_fishers_of_a_network_are_those_of_its_records(relu):
    """Grouped convolution with padding, ReLU, dense head: every layer's metric from one pass."""
    r = rng(1)
    head = LayerSpec("head", "dense", 16, 2)
    network = reference.Network(
        (
            ORACLE[CONV],
            reference.Layer("relu"),
            reference.Layer("flatten"),
            reference.Layer("dense", "head", in_features=16, out_features=2),
        )
    )
    params = {name: r.standard_normal(shape) for name, shape in network.block_shapes.items()}
    x, inputs, outputs = batch(r, [CONV])[CONV].a, {}, {}
    network.forward(params, x, record=inputs, outputs=outputs)
    found = reference.local_fishers(network, params, x, relu)
    assert list(found) == ["conv", "head"]
    for spec in (CONV, head):
        z = outputs[spec.name]
        record = LayerRecord(inputs[spec.name], np.zeros_like(z), z)
        metric = factors.relu_fisher if spec.name in relu else factors.linear_fisher
        assert_close(found[spec.name], metric(spec, record), size=N * 4)


@pytest.mark.parametrize("mode", ["relative", "absolute", "trace"])
def test_local_direction_inverts_each_matrix(mode):
    """Rows, groups, and the units of the damping, against plain inverses."""
    r = rng(2)
    V, G = r.standard_normal((2, 3, 4)), np.stack([[spd(r, 4, 10.0)] * 3, [spd(r, 4, 5.0)] * 3])
    got = reference.local_direction(V, G, 0.3, mode)
    for k in range(2):
        trace = np.trace(G[k, 0])
        eps = {"relative": 0.3 * trace / 4, "absolute": 0.3, "trace": 0.3 * trace}[mode]
        expected = V[k] @ np.linalg.inv(G[k, 0] + eps * np.eye(4))
        assert_close(got[k], expected, size=4, kappa=20)
        assert_close(reference.local_direction(V[k], G[k, 0], 0.3, mode), expected, kappa=80)


def test_symmetric_power_is_scipys():
    M = spd(rng(3), 5, 100.0)
    assert_close(reference.symmetric_power(M, 0.5), scipy.linalg.sqrtm(M), size=5, kappa=10)
    inverse = reference.symmetric_power(M, -0.5)
    assert_close(inverse @ M @ inverse, np.eye(5), size=5, kappa=100)


def natural_descent(gradient, w, metrics, steps, lr, momentum):
    """Steps of the natural gradient at the weights, with heavy ball there."""
    M, m, path = np.eye(w.shape[1]), np.zeros_like(w), []
    for k in range(steps):
        M = metrics.get(k, M)
        m = momentum * m + np.linalg.solve(M, gradient(w, k).T).T
        w = w - lr * m
        path.append(w)
    return path


@pytest.mark.parametrize("seed", range(5))
def test_descent_through_the_layer_is_natural_descent_if_all_is_carried(seed):
    """1.2: equal to rounding over 30 steps with 6 refreshes; far off if anything is left behind."""
    r = rng(seed)
    H, start = spd(r, 4, 3.0), r.standard_normal((2, 4))
    metrics = {k: spd(r, 4, 30.0) + 0.2 * np.eye(4) for k in range(0, 30, 5)}

    def gradient(w, k):
        return np.tanh(w @ H)

    arguments = gradient, start, metrics, 30, 0.02, 0.9
    expected = natural_descent(*arguments)
    for got, wanted in zip(reference.reconstructed_descent(*arguments), expected, strict=True):
        assert_close(got, wanted, scale=float(np.abs(start).max()), size=30, kappa=100)
    for carried in (("weights",), ("momentum",), ()):
        path = reference.reconstructed_descent(*arguments, reproject=carried)
        assert_far(path[-1], expected[-1], least=0.05)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: reference.local_fisher(np.ones((2, 3))), r"a has shape \(2, 3\); expected"),
        (
            lambda: reference.local_fisher(np.ones((2, 1, 3)), np.ones((2, 2, 1))),
            r"z has shape \(2, 2, 1\); expected \(2, 1, O\)",
        ),
        (lambda: reference.local_damping(np.eye(2), -1.0), "damping is -1.0; expected"),
        (lambda: reference.local_damping(np.eye(2), 1.0, "mean"), "mode is 'mean'; expected"),
        (
            lambda: reference.local_direction(np.ones(3), np.eye(3), 1.0),
            r"block_gradient has shape \(3,\); expected",
        ),
        (
            lambda: reference.local_direction(np.ones(FC.block_shape), np.eye(3), 1.0),
            r"G has shape \(3, 3\); expected \(4, 4\)",
        ),
        (
            lambda: reference.local_direction(np.ones(FC.block_shape), np.ones((3, 4, 4)), 1.0),
            r"G has shape \(3, 4, 4\); expected \(2, 4, 4\)",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
