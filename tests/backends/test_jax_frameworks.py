"""Models of Equinox, Flax linen and Flax nnx as they come, and one device as four."""

import subprocess
import sys
from pathlib import Path

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import ngd_jax
import numpy as np
import pytest
from backends.jax_cases import N, normal, square, tokens
from flax import nnx

from ngd_core import factors
from ngd_core.testing import assert_close


def equinox_mlp():
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, x, y):
        return square(jax.vmap(eqx.combine(params, static))(x), y)

    covered = {
        "layers/0/weight": "layers/0/bias",
        "layers/1/weight": "layers/1/bias",
    }
    return loss, params, (normal(N, 3), normal(N, 2)), covered, set()


def equinox_cnn():
    keys = jax.random.split(jax.random.key(0))
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 3, 3, stride=2, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(3, 2, key=keys[1]),
        ]
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, x, y):
        return square(jax.vmap(eqx.combine(params, static))(x), y)

    covered = {"layers/0/weight": "layers/0/bias", "layers/4/weight": "layers/4/bias"}
    return loss, params, (normal(N, 2, 4, 4), normal(N, 2)), covered, set()


class Block(linen.Module):
    """A transformer's block before its norm, with an embedding in front."""

    @linen.compact
    def __call__(self, t):
        h = linen.Embed(6, 4)(t)
        u = linen.LayerNorm()(h)
        h = h + linen.MultiHeadDotProductAttention(num_heads=2)(u, u)
        u = linen.LayerNorm()(h)
        return h + linen.Dense(4)(linen.gelu(linen.Dense(6)(u)))


def linen_block():
    model, t = Block(), tokens(N, 3)
    params = jax.jit(model.init)(jax.random.key(0), t)["params"]
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)

    def loss(params, t, y):
        return square(model.apply({"params": params}, t), y)

    attention = "MultiHeadDotProductAttention_0"
    covered = {
        f"{name}/kernel": f"{name}/bias"
        for name in (
            "Dense_0",
            "Dense_1",
            *(f"{attention}/{x}" for x in ("query", "key", "value", "out")),
        )
    }
    covered |= {f"LayerNorm_{k}/scale": f"LayerNorm_{k}/bias" for k in (0, 1)}
    return loss, params, (t, normal(N, 3, 4)), {**covered, "Embed_0/embedding": None}, set()


def equinox_norms():
    """Norms over features, root mean squares, and groups of channels."""
    model = eqx.nn.Sequential(
        [
            eqx.nn.LayerNorm((4,)),
            eqx.nn.RMSNorm((4,), use_bias=False),
            eqx.nn.Lambda(lambda x: jnp.reshape(jnp.tanh(x), (2, 2))),
            eqx.nn.GroupNorm(1, 2),
        ]
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)
    params = jax.tree.map(lambda x: normal(*x.shape), params)

    def loss(params, x, y):
        return square(jax.vmap(eqx.combine(params, static))(x), y)

    covered = {
        "layers/0/weight": "layers/0/bias",
        "layers/1/weight": None,
        "layers/3/weight": "layers/3/bias",
    }
    return loss, params, (normal(N, 4), normal(N, 2, 2)), covered, set()


def nnx_mlp():
    class MLP(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Linear(3, 4, rngs=rngs)
            self.two = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.two(nnx.tanh(self.one(x)))

    graph, params = nnx.split(MLP(nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)

    def loss(params, x, y):
        return square(nnx.merge(graph, params)(x), y)

    covered = {"one/kernel": "one/bias", "two/kernel": "two/bias"}
    return loss, params, (normal(N, 3), normal(N, 2)), covered, set()


MODELS = {f.__name__: f for f in (equinox_mlp, equinox_cnn, equinox_norms, linen_block, nnx_mlp)}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_found_as_they_are(name):
    """Each layer with its bias, and records that give each example's gradient."""
    loss, params, batch, covered, rest = MODELS[name]()
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    with jax.numpy_dtype_promotion("standard"):
        report = ngd_jax.report(loss, params, *batch)
        found = {layer.parameters[0]: (*layer.parameters, None)[1] for layer in report.layers}
        assert {_plain(k): _plain(v) for k, v in found.items()} == covered
        assert {_plain(path) for path in report.uncovered} == rest

        @jax.jit
        def both(params, *batch):
            def one(*example):
                return jax.grad(loss)(params, *(x[None] for x in example))

            return ngd_jax.value_and_grad(loss)(params, *batch)[2], jax.vmap(one)(*batch)

        records, examples = both(params, *batch)
    leaves = jax.tree_util.tree_flatten_with_path(examples)[0]
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    for layer in report.layers:
        each = factors.per_example_gradients(layer.spec, records[layer.spec.name])[0]
        want = jax.vmap(layer.block)(flat)
        assert_close(np.asarray(each), np.asarray(want), size=10_000)


def _plain(path):
    return None if path is None else path.removesuffix("/value").removesuffix("/raw_value")


def test_four_devices_take_the_steps_of_one():
    """Batch and parameters over four host devices; inverses, each made on one of them."""
    script = Path(__file__).with_name("jax_devices.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["dealt", *METHODS]


METHODS = ["kfac", "ekfac", "sngd", "fngd", "projective", "sofim", "precondition"]
