"""docs/support.md is what the adapters do."""

import importlib

import jax
import jax.numpy as jnp
import ngd_cupy
import ngd_jax
import ngd_torch
import numpy as np
import optax
import pytest
import torch
from ngd_torch._layers import RULES
from support.table import BACKENDS, LAYERS, METHODS, PAGE, page
from torch import nn

import ngd_core
from ngd_core import Conv2dGeometry, LayerSpec
from ngd_core import nn as core_nn
from ngd_core.nn.model import leaves
from ngd_core.types import KINDS

SPECS = {
    "dense": LayerSpec("fc", "dense", 2, 2),
    "conv2d": LayerSpec("conv", "conv2d", 1, 1, geometry=Conv2dGeometry(1)),
    "embedding": LayerSpec("table", "embedding", 3, 2, bias=False),
    "scale": LayerSpec("norm", "scale", 2, 2),
}
NETWORKS = {
    "dense": core_nn.Dense("fc", 2, 2),
    "conv2d": core_nn.Conv2d("conv", 1, 1, 1),
}
MODULES = {
    "Linear": lambda: nn.Linear(2, 2),
    "Embedding": lambda: nn.Embedding(3, 2),
    "LayerNorm": lambda: nn.LayerNorm(2),
    "RMSNorm": lambda: nn.RMSNorm(2),
    "GroupNorm": lambda: nn.GroupNorm(1, 2),
    "MultiheadAttention": lambda: nn.MultiheadAttention(2, 1),
} | {name: lambda name=name: getattr(nn, name)(2, 2) for name in ("LSTM", "GRU", "RNN")}
MODULES |= {n: lambda n=n: getattr(nn, n)(2, 2) for n in ("LSTMCell", "GRUCell", "RNNCell")}
MODULES |= {
    f"{n}{k}d": lambda n=n, k=k: getattr(nn, f"{n}{k}d")(2, 2, 1)
    for n in ("Conv", "ConvTranspose")
    for k in (1, 2, 3)
}
MODULES |= {
    f"{n}{k}d": lambda n=n, k=k: getattr(nn, f"{n}{k}d")(2, affine=True)
    for n in ("BatchNorm", "InstanceNorm")
    for k in (1, 2, 3)
}
WITHOUT = {"SyncBatchNorm"}
"""Has a rule that says why it has no curvature."""
PARAMS = {
    "gather": jnp.ones((5, 4)),
    "conv_general_dilated": jnp.ones((3, 4, 4)),
    "mul": jnp.ones(4),
    "dot_general": jnp.ones((24, 2)),
}
TOKENS = jnp.zeros((3, 6), int)


class Four(nn.Module):
    """A network with a layer of each kind."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv2d = nn.Embedding(5, 4), nn.Conv1d(4, 4, 3, padding=1)
        self.scale, self.dense = nn.LayerNorm(4), nn.Linear(24, 2)

    def forward(self, tokens):
        x = self.conv2d(self.embedding(tokens).mT).mT
        return self.dense(torch.tanh(self.scale(x)).flatten(1))


def loss(p, tokens):
    x = p["gather"][tokens]
    x = jax.lax.conv_general_dilated(
        x, p["conv_general_dilated"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    x = (x - x.mean(-1, keepdims=True)) * p["mul"]
    return jnp.mean((jnp.tanh(x).reshape(len(x), -1) @ p["dot_general"]) ** 2)


@pytest.fixture(scope="module")
def traced():
    return ngd_jax.report(loss, PARAMS, TOKENS)


def offered(entry, backend):
    return {kind for kind in KINDS if backend in entry.backends(kind)}


def test_the_page_is_the_statement():
    assert PAGE.read_text() == page(), "run make acceptance"


@pytest.mark.parametrize("title", METHODS)
def test_the_names_exist_and_make_the_method(title):
    entry = METHODS[title]
    for name in entry.names.values():
        module, _, attribute = name.partition(".")
        assert callable(getattr(importlib.import_module(module), attribute))
    assert "NumPy" in entry.names
    assert entry.names["NumPy"] == f"ngd_core.{type(entry.method).__name__}"


def taken_or_refused(make, kind, offered):
    if kind in offered:
        assert make() is not None
    else:
        with pytest.raises(ValueError, match=f"is of kind '{kind}'"):
            make()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("title", METHODS)
def test_the_core_takes_what_the_page_says(title, kind):
    method = METHODS[title].method
    taken_or_refused(
        lambda: method.init([SPECS[kind]], np.zeros(())), kind, offered(METHODS[title], "NumPy")
    )


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("title", METHODS)
def test_networks_of_the_core_are_taken_or_refused_as_the_page_says(title, kind):
    model = core_nn.Sequential(NETWORKS[kind])
    params = {name: np.ones(shape) for name, shape in core_nn.shapes(model).items()}
    taken_or_refused(
        lambda: ngd_cupy.NaturalGradient(model, params, METHODS[title].method, lr=0.1),
        kind,
        offered(METHODS[title], "CuPy"),
    )


@pytest.mark.parametrize("title", METHODS)
def test_a_step_in_pytorch_has_curvature_where_the_page_says(title):
    torch.manual_seed(0)
    model, entry = Four(), METHODS[title]

    def made():
        return ngd_torch.NaturalGradient(
            model, entry.method, lr=0.1, factor_every=1, inverse_every=1
        )

    if "PyTorch" not in entry.names:
        with pytest.raises(ValueError, match="layers"):
            made()
        return
    with made() as optimizer:
        outputs = model(torch.randint(5, (4, 6)))
        nn.functional.cross_entropy(outputs, torch.tensor([0, 1, 1, 0])).backward()
        optimizer.step()
        assert set(optimizer.stats) == offered(entry, "PyTorch")
        assert {layer["code"] for layer in optimizer.stats.values()} == {0}


@pytest.mark.parametrize("title", METHODS)
def test_jax_has_curvature_where_the_page_says(title, traced):
    entry, kinds = METHODS[title], {layer.spec.name: layer.spec.kind for layer in traced.layers}

    def made():
        return ngd_jax.precondition(traced, entry.method, steps_per_epoch=2).init(PARAMS)

    if "JAX" not in entry.names:
        with pytest.raises(ValueError, match="layers"):
            made()
        return
    arrays = ngd_core.state.flatten(optax.tree.get(made(), "curvature"))
    assert {kinds[name.split("/")[1]] for name in arrays} == offered(entry, "JAX")


def test_layers_are_of_the_kinds_that_the_page_says(traced):
    assert {layer.spec.name: layer.spec.kind for layer in traced.layers} == {
        operation: kind for kind, (operation,) in LAYERS["JAX"].items()
    }
    assert {type(leaf).__name__ for layer in NETWORKS.values() for leaf in leaves(layer)} == {
        name for names in LAYERS["CuPy"].values() for name in names
    }
    stated = {name: kind for kind, names in LAYERS["PyTorch"].items() for name in names}
    assert set(stated) == {module.__name__ for module in RULES} - WITHOUT == set(MODULES)
    for name, kind in stated.items():
        with ngd_torch.KFAC(nn.Sequential(MODULES[name]()), lr=0.1) as optimizer:
            assert {layer.spec.kind for layer in optimizer.curvature.layers} == {kind}, name


def test_a_norm_of_the_core_has_no_layer_to_precondition():
    assert core_nn.specs(core_nn.Sequential(core_nn.LayerNorm("norm", 2))) == ()


def test_no_backend_is_left_out():
    assert set(LAYERS) == set(BACKENDS)
    assert all(set(names) <= set(KINDS) for names in LAYERS.values())
