"""`ngd inspect --backend torch`: the numbers of arrays, and modules that only PyTorch has."""

import json

import numpy as np
import pytest
import torch

from ngd_core.lab import inspection, weights
from ngd_core.lab.cli import main
from ngd_core.lab.inspect import NUMBERS, PAGE
from ngd_core.lab.methods import METHODS
from ngd_core.lab.torch_inspect import of_module
from ngd_core.testing import assert_close

EXAMPLES, CLASSES = 10, 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set.npz"
    rng = np.random.default_rng(0)
    images, labels = rng.random((20, 6, 5)), np.arange(20) % CLASSES
    np.savez(path, x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    return path


def seen(source, out, *more):
    words = ["inspect", "--data", source, "--examples", EXAMPLES, "--damping", 0.01, "--out", out]
    assert main([str(word) for word in (*words, *more)]) == 0
    assert (out / PAGE).stat().st_size > 10_000
    return inspection.from_json(json.loads((out / NUMBERS).read_text()))


@pytest.fixture(scope="module")
def both(source, tmp_path_factory):
    """One network on arrays and as a module, both with the module's trained weights."""
    home = tmp_path_factory.mktemp("both")
    words = "compare --backend torch --models cnn --methods kfac --grid 0.3 --steps 4 --save"
    words = [*words.split(), "--batch-size", "10", "--agreement", "0", "--data", str(source)]
    assert main([*words, "--out", str(home / "compare")]) == 0
    file = home / "compare" / "cnn-kfac.safetensors"
    return tuple(
        seen(source, home / name, "--backend", name, "--weights", file)
        for name in ("numpy", "torch")
    )


def test_layers_of_a_module_are_those_of_the_arrays(both):
    arrays, module = both
    assert list(module.layers) == list(arrays.layers)
    size = EXAMPLES * CLASSES
    for name, layer in arrays.layers.items():
        got = module.layers[name]
        assert got.parameters == layer.parameters
        assert_close(got.information, layer.information, size=size)
        assert_close(got.units, layer.units, size=size)
        largest = layer.eigenvalues[0]
        assert len(got.eigenvalues) == len(layer.eigenvalues)
        gap = np.abs(np.subtract(got.eigenvalues, layer.eigenvalues)).max()
        assert gap <= 1e-12 * largest
        assert_close(got.effective_dimension, layer.effective_dimension, size=size, kappa=1e3)
    assert_close(module.loss, arrays.loss, size=size)
    assert_close(module.dimensions, arrays.dimensions, size=size, kappa=1e6)


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in ("fngd", "tridiagonal")]
)
def test_an_optimizer_agrees_as_its_method_does(both, method):
    """FNGD's optimizer takes its coefficients from one batch alone, its method from the last."""
    arrays, module = (found.methods[METHODS[method].title] for found in both)
    assert module.damping == arrays.damping
    assert module.covered == arrays.covered
    assert_close(module.decrease, arrays.decrease, size=100, kappa=1e4)
    assert_close(module.cosine, arrays.cosine, size=100, kappa=1e4)


def test_a_method_that_modules_cannot_have_is_left_out(both):
    beside = both[1].methods[METHODS["tridiagonal"].title]
    assert "TridiagonalKFAC" in beside.refused
    assert beside.decrease is None


@pytest.fixture(scope="module")
def transformer(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("transformer") / "out"
    return seen(source, out, "--model", "transformer", "--backend", "torch")


def test_every_parameter_of_a_module_is_in_one_layer(transformer):
    layers = transformer.layers
    assert {"position", "embedding", "blocks.0.attention.qkv", "blocks.1.norm2", "head"} <= set(
        layers
    )
    assert sum(layer.parameters for layer in layers.values()) == transformer.all.parameters
    total = sum(layer.information for layer in layers.values())
    assert_close(total, transformer.all.information, size=1000)
    for layer in layers.values():
        assert_close(sum(layer.units), layer.information, size=layer.parameters)
    assert len(layers["position"].units) == 6
    assert len(layers["blocks.0.attention.qkv"].units) == 96


def test_what_has_no_curvature_is_told_with_the_reason(transformer):
    kfac, sngd = (transformer.methods[METHODS[name].title] for name in ("kfac", "sngd"))
    total = transformer.all.parameters
    assert list(kfac.uncovered) == ["position"]
    assert kfac.covered == total - transformer.layers["position"].parameters
    norms = sum(layer.parameters for name, layer in transformer.layers.items() if "norm" in name)
    assert sngd.covered == kfac.covered - norms
    assert 0 < kfac.decrease < 1


def test_units_of_a_module_are_those_of_the_dense_fisher():
    """Per-example gradients by plain autograd, one at a time."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)
    ).double()
    x, y = torch.randn(5, 3).double(), torch.tensor([0, 1, 1, 0, 1])
    subject = of_module(module, x, y, 0.1)
    want = {name: torch.zeros(p.shape[0]).double() for name, p in module.named_parameters()}
    for row in x:
        p = torch.softmax(module(row), 0).detach()
        for label in range(2):
            loss = -torch.log_softmax(module(row), 0)[label]
            slopes = torch.autograd.grad(loss, module.parameters())
            for (name, _), slope in zip(module.named_parameters(), slopes, strict=True):
                squares = (slope.detach() ** 2).reshape(slope.shape[0], -1).sum(1)
                want[name] += p[label] * squares / len(x)
    for spec, units in subject.units.items():
        total = want[f"{spec.name}.weight"] + want[f"{spec.name}.bias"]
        assert_close(units, total, size=20)


def test_weights_of_a_state_dict_are_read(source, tmp_path, transformer):
    """As safetensors writes them, or torch after a training of one's own."""
    from safetensors.torch import save_file

    from ngd_core.lab import torch_models

    module = torch_models.fresh("transformer", (1, 6, 5), CLASSES, 0)
    with torch.no_grad():
        module.head.bias += 1.0  # softmax does not see it
    path = tmp_path / "mine.safetensors"
    save_file(module.state_dict(), path)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    loaded = weights.load(str(path), shapes)
    assert all((loaded[name] == p.detach().numpy()).all() for name, p in module.named_parameters())
    words = ["--model", "transformer", "--backend", "torch", "--weights", path]
    found = seen(source, tmp_path / "out", *words)
    assert_close(found.loss, transformer.loss, size=100, kappa=1e8)
    assert_close(found.all.information, transformer.all.information, size=100, kappa=1e8)
