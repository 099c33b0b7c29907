"""Curvature from one framework's training goes on in another's, over files."""

import functools

import jax
import jax.numpy as jnp
import ngd_cupy
import ngd_jax
import ngd_torch
import numpy as np
import optax
import pytest
import torch
from jax import lax
from torch.nn import functional

import ngd_core
from ngd_core import nn, state
from ngd_core.testing import assert_close

N, BEFORE, AFTER, EPOCH = 12, 4, 4, 3
COMMON = {"factor_every": 2, "inverse_every": 3, "momentum": 0.0}
HALVES = {"rank": 0.5, "sides": "both"}
KINDS = {
    "kfac": ("KFAC", "kfac", {**COMMON, "damping_split": "exact"}, "exact"),
    "ekfac": ("EKFAC", "ekfac", COMMON, "exact"),
    "sngd": ("SNGD", "sngd", COMMON, "empirical"),
    "projective": ("ProjectiveKFAC", "projective_kfac", {**COMMON, **HALVES}, "exact"),
    "fngd": ("FNGD", "fngd", {"batch_size": N, "momentum": 0.0}, "empirical"),
}
NAMES = {
    "torch": ("0", "3"),
    "jax": ("conv/kernel", "out/kernel"),
    "numpy": ("conv", "out"),
}
MODEL = nn.Sequential(nn.Conv2d("conv", 2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Dense("out", 12, 3))


def data(k):
    r = np.random.default_rng(k)
    return r.standard_normal((N, 2, 3, 3)), r.integers(0, 3, N)


def start():
    """Blocks [W b] of the two layers."""
    r = np.random.default_rng(0)
    return [0.4 * r.standard_normal(spec.block_shape) for spec in nn.specs(MODEL)]


class Torch:
    """A real module; layers are called by their modules' numbers."""

    def __init__(self, kind, blocks):
        maker, _, options, fisher = KINDS[kind]
        self.kind, self.model = (
            kind,
            torch.nn.Sequential(
                torch.nn.Conv2d(2, 3, 2),
                torch.nn.Tanh(),
                torch.nn.Flatten(),
                torch.nn.Linear(12, 3),
            ).double(),
        )
        with torch.no_grad():
            for layer, block in zip((self.model[0], self.model[3]), blocks, strict=True):
                layer.weight.copy_(torch.asarray(block[:, :-1]).reshape(layer.weight.shape))
                layer.bias.copy_(torch.asarray(block[:, -1]))
        options = options if kind == "fngd" else {**options, "fisher": fisher}
        self.optimizer = getattr(ngd_torch, maker)(self.model, 0.1, **options)

    def step(self, k):
        x, y = map(torch.asarray, data(k))
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()
        if self.kind == "fngd" and k % EPOCH == EPOCH - 1:
            self.optimizer.epoch_end()

    def blocks(self):
        return [
            torch.column_stack([layer.weight.flatten(1), layer.bias]).detach().numpy()
            for layer in (self.model[0], self.model[3])
        ]

    def save(self, path):
        ngd_torch.save_curvature(path, self.optimizer)

    def load(self, path, names):
        ngd_torch.load_curvature(path, self.optimizer, names=names)


class Numpy:
    """The adapter for CuPy, at work on NumPy arrays."""

    def __init__(self, kind, blocks):
        maker, _, options, fisher = KINDS[kind]
        params = dict(zip(NAMES["numpy"], blocks, strict=True))
        self.kind = kind
        self.optimizer = getattr(ngd_cupy, maker)(MODEL, params, 0.1, **options, fisher=fisher)

    def step(self, k):
        self.optimizer.step(*data(k))
        if self.kind == "fngd" and k % EPOCH == EPOCH - 1:
            self.optimizer.epoch_end()

    def blocks(self):
        return list(self.optimizer.params.values())

    def save(self, path):
        optimizer = self.optimizer
        counts = {name: str(getattr(optimizer, name)) for name in ("steps", "epochs")}
        state.save(path, state.flatten(optimizer.curvature), method=optimizer.method, **counts)

    def load(self, path, names):
        optimizer = self.optimizer
        found = state.load(path, method=optimizer.method)
        optimizer.curvature = state.unflatten(optimizer.curvature, found.arrays, names=names)
        optimizer.steps = int(found.notes["steps"])
        optimizer.epochs = int(found.notes["epochs"])


def loss_fn(p, x, y):
    h = lax.conv_general_dilated(
        x, p["conv"]["kernel"], (1, 1), "VALID", dimension_numbers=("NCHW", "HWIO", "NCHW")
    )
    h = jnp.tanh(h + p["conv"]["bias"][:, None, None])
    z = jnp.reshape(h, (len(x), -1)) @ p["out"]["kernel"] + p["out"]["bias"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)
    return -jnp.mean(chosen), z


@functools.cache
def traced(kind):
    """Optimizer and compiled step, one for all tests of a method."""
    _, maker, options, fisher = KINDS[kind]
    options = {**options, "steps_per_epoch": EPOCH} if kind == "fngd" else options
    params = shaped(start())
    layers = ngd_jax.report(loss_fn, params, *map(jnp.asarray, data(0)))
    optimizer = getattr(ngd_jax, maker)(layers, 0.1, **options)
    value_and_grad = ngd_jax.value_and_grad(loss_fn, has_aux=True, fisher=fisher)

    @jax.jit
    def step(params, memory, x, y):
        _, grads, records = value_and_grad(params, x, y)
        updates, memory = optimizer.update(grads, memory, params, records=records)
        return optax.apply_updates(params, updates), memory

    return optimizer, step


def shaped(blocks):
    """Kernels as Flax lays them out: (height, width, in, out) and (in, out)."""
    conv, out = (jnp.asarray(block) for block in blocks)
    return {
        "conv": {
            "kernel": jnp.transpose(jnp.reshape(conv[:, :-1], (3, 2, 2, 2)), (2, 3, 1, 0)),
            "bias": conv[:, -1],
        },
        "out": {"kernel": out[:, :-1].T, "bias": out[:, -1]},
    }


class Jax:
    """A loss with kernels in the layout of Flax; layers are called by paths."""

    def __init__(self, kind, blocks):
        self.kind, (self.optimizer, self.stepper) = kind, traced(kind)
        self.params = shaped(blocks)
        self.memory = self.optimizer.init(self.params)

    def step(self, k):
        x, y = map(jnp.asarray, data(k))
        self.params, self.memory = self.stepper(self.params, self.memory, x, y)

    def blocks(self):
        conv, out = self.params["conv"], self.params["out"]
        kernel = np.transpose(np.asarray(conv["kernel"]), (3, 2, 0, 1)).reshape(3, -1)
        return [
            np.column_stack([kernel, conv["bias"]]),
            np.column_stack([np.asarray(out["kernel"]).T, out["bias"]]),
        ]

    def method(self):
        maker, _, options, _ = KINDS[self.kind]
        own = {k: v for k, v in options.items() if k in ("damping_split", "batch_size", "rank")}
        return getattr(ngd_core, maker)(**own)

    def save(self, path):
        arrays = state.flatten(optax.tree.get(self.memory, "curvature"))
        steps = int(self.memory[0].count)
        counts = {"steps": str(steps), "epochs": str(steps // EPOCH)}
        state.save(path, arrays, method=self.method(), **counts)

    def load(self, path, names):
        found = state.load(path, method=self.method())
        fresh = optax.tree.get(self.memory, "curvature")
        self.memory = optax.tree.set(
            self.memory,
            curvature=state.unflatten(fresh, found.arrays, names=names),
            count=jnp.asarray(int(found.notes["steps"]), jnp.int32),
        )


FRAMEWORKS = {"torch": Torch, "jax": Jax, "numpy": Numpy}


@functools.cache
def whole(kind):
    """Parameters in the middle and at the end of a training that PyTorch does alone."""
    run, found = Torch(kind, start()), []
    for k in range(BEFORE + AFTER):
        if k == BEFORE:
            found.append(run.blocks())
        run.step(k)
    return *found, run.blocks()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", FRAMEWORKS)
def test_training_goes_on_in_every_other_framework(tmp_path, source, kind):
    """Begun in one, ended in another: steps with and without new statistics and inverses."""
    middle, end = whole(kind)
    first = FRAMEWORKS[source](kind, start())
    for k in range(BEFORE):
        first.step(k)
    for got, want in zip(first.blocks(), middle, strict=True):
        assert_close(got, want, size=100, kappa=1e4)
    first.save(tmp_path / "file")
    for target, framework in FRAMEWORKS.items():
        second = framework(kind, first.blocks())
        names = dict(zip(NAMES[target], NAMES[source], strict=True))
        second.load(tmp_path / "file", names)
        for k in range(BEFORE, BEFORE + AFTER):
            second.step(k)
        for got, want in zip(second.blocks(), end, strict=True):
            assert_close(got, want, size=100, kappa=1e4)
    # a state of its own would have led elsewhere
    alone = FRAMEWORKS[source](kind, first.blocks())
    for k in range(BEFORE, BEFORE + AFTER):
        alone.step(k)
    assert not np.allclose(alone.blocks()[1], end[1], rtol=1e-6)


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    """Another method, names that are not given, no place in the schedule, a damaged file."""
    path, kfac = tmp_path / "file", Torch("kfac", start())
    kfac.step(0)
    kfac.save(path)
    before = kfac.optimizer.state_dict()["curvature"]
    with pytest.raises(ValueError, match="is of KFAC, expected EKFAC"):
        Torch("ekfac", start()).load(path, {})
    with pytest.raises(ValueError, match=r"'layers/0/.*has no place for"):
        Numpy("kfac", start()).load(path, {})
    found = state.load(path)
    arrays = {name: 2.0 * x for name, x in found.arrays.items()}
    state.save(path, arrays, method=kfac.optimizer.curvature.method, steps="7")
    with pytest.raises(ValueError, match="has no note 'epochs'"):
        kfac.load(path, {})
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="is damaged"):
        kfac.load(path, {})
    after = kfac.optimizer.state_dict()["curvature"]
    assert after["steps"] == before["steps"] == 1
    for name, x in before["arrays"].items():
        assert torch.equal(after["arrays"][name], x)
