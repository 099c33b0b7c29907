"""`ngd compare --backend jax`: Equinox and Flax models train as the core's networks do."""

import json
import shlex
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ngd_core import nn
from ngd_core.lab import jax_models, jax_train
from ngd_core.lab.arrays import BACKENDS
from ngd_core.lab.cli import main
from ngd_core.lab.methods import METHODS
from ngd_core.lab.models import MODELS, Model
from ngd_core.lab.train import Problem, trainer
from ngd_core.testing import assert_close, assert_far

NUMPY, ARRAYS = BACKENDS["numpy"](), BACKENDS["jax"]()
EXAMPLES, BATCH, SEED, STEPS = 20, 18, 7, 7
PATHS = ["kfac", "sngd", "fngd", "sofim", "sgd", "adam"]
"""One method for each way of making an optimizer; the others are made as K-FAC is."""

RATES = {"sofim": 0.3, "sngd": 0.03, "adam": 0.01}
SMALL = nn.Sequential(nn.Flatten(), nn.Dense("dense", 8, 3))
GEOMETRY = nn.Sequential(
    nn.Conv2d("conv1", 2, 4, 3, stride=2, padding="same"),
    nn.ReLU(),
    nn.Conv2d("conv2", 4, 4, (2, 3), dilation=(1, 2), padding=((1, 0), (2, 2)), groups=2),
    nn.Conv2d("conv3", 4, 3, 2, padding="same", bias=False),
    nn.Flatten(),
    nn.Dense("dense1", 18, 5, bias=False),
)
"""On 5x4 images, so that "same" puts zeros on one side of an axis and on both of the other."""


@pytest.fixture(autouse=True)
def _promotion():
    """Flax and Optax ask for it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def values(network):
    rng = np.random.default_rng(0)
    return nn.init(network, {n: rng.random(shape) for n, shape in nn.shapes(network).items()})


def draws(k):
    """What `ngd_jax.value_and_grad` samples step k's labels with."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), k), 0)
    return np.asarray(jax.random.uniform(key, (1, BATCH), jnp.float64))[0]


def both():
    """The same problem for the core's network on NumPy and for an Equinox module."""
    rng, params = np.random.default_rng(1), values(SMALL)
    x, y = rng.standard_normal((EXAMPLES, 2, 2, 2)), (np.arange(EXAMPLES) % 3).astype("int32")
    core = Problem(
        model=SMALL,
        params=params,
        train=(x, y),
        test=(x[::-1], y),
        order=np.stack([rng.permutation(EXAMPLES)[:BATCH] for _ in range(STEPS)]).astype("int32"),
        noise=np.stack([draws(k) for k in range(STEPS)]),
        evaluate_every=1,
        probe=4,
        seed=SEED,
    )
    module = jax_models.as_module(SMALL, params)
    on_jax = (tuple(map(jnp.asarray, part)) for part in (core.train, core.test))
    return core, replace(
        core,
        model=module,
        params=jax_models.parameters(module),
        **dict(zip(("train", "test"), on_jax, strict=True)),
    )


def counting(traces):
    def compiled(f, static):
        def traced(*args):
            traces.append(f.__name__)
            return f(*args)

        return jax.jit(traced)

    return replace(ARRAYS, compile=compiled)


@pytest.mark.parametrize("method", PATHS)
def test_a_module_trains_as_the_core_network_does(method):
    """Over two refreshes, for FNGD with stored coefficients; the step is compiled once."""
    core, module = both()
    entry, rate, traces = METHODS[method], RATES.get(method, 0.1), []
    damping = entry.damping and max(entry.damping, 0.03)
    one = trainer(core, entry, damping, NUMPY)
    two = jax_train.trainer(module, entry, damping, counting(traces))
    want = one.run(rate, lambda *_: None)
    two.run(0.5 * rate, lambda *_: None)
    got = two.run(rate, lambda *_: None)
    assert got.steps == want.steps == list(range(STEPS + 1))
    assert_close(got.losses, want.losses, size=EXAMPLES * 18, kappa=1e3)
    assert_far(want.losses[1:], want.losses[:-1], least=1e-3)
    assert got.accuracy == want.accuracy
    points = [1, 3, STEPS]
    want, got = one.meet(rate, points), two.meet(rate, points)
    assert [meeting.step for meeting in got] == points
    if method == "sofim":  # it counts the examples of the comparison in
        assert_close([m.loss for m in got], [m.loss for m in want], size=EXAMPLES * 18, kappa=1e3)
    else:
        assert_close(got, want, size=EXAMPLES * 18, kappa=1e5)
    assert sorted(traces) == ["beside", "look_at", "step"]


def test_convolutions_read_where_the_cores_do():
    x, params = np.random.default_rng(2).standard_normal((3, 2, 5, 4)), values(GEOMETRY)
    module = jax_models.as_module(GEOMETRY, params)
    assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(module.params))
    got = jax.jit(module.apply)(module.params, jnp.asarray(x))
    assert_close(np.asarray(got), nn.predict(GEOMETRY, params, x), size=100)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A small network and a small encoder, by the command."""

    def small(shape, classes):
        one, two = nn.Dense("one", int(np.prod(shape)), 12), nn.Dense("two", 12, classes)
        return nn.Sequential(nn.Flatten(), one, nn.Sigmoid(), two)

    folder = tmp_path_factory.mktemp("compared")
    words = (
        "compare --steps 3 --batch-size 24 --limit 48 --evaluate-every 2 --grid 0.1 --agreement 0 "
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "mlp", Model("Small", "one hidden layer", small))
        for name, value in (("FEATURES", 4), ("HEADS", 2), ("DEPTH", 1)):
            patch.setattr(jax_models, name, value)
        runs = {
            "encoder": "--backend jax --models transformer --methods sofim,tridiagonal",
            "jax": "--backend jax --models mlp --methods sgd",
            "numpy": "--models mlp --methods sgd",
        }
        with jax.numpy_dtype_promotion("standard"):
            for name, more in runs.items():
                assert main([*shlex.split(words + more), "--out", str(folder / name)]) == 0
    return {name: json.loads((folder / name / "results.json").read_text()) for name in runs}


def test_the_command_trains_modules(compared):
    encoder, *one = (compared[name]["results"] for name in compared)
    loss = encoder["transformer"]["sofim"]["best"]["train_loss"]
    assert loss[-1] < loss[0] - 0.01
    curves = [found["mlp"]["sgd"]["best"]["train_loss"] for found in one]
    assert_close(*curves, dtype="float32", size=64, kappa=1e2)
    assert_far(curves[0][1:], curves[0][:-1], least=1e-3)


def test_the_results_say_what_was_used(compared):
    found = compared["encoder"]
    assert {"jax", "equinox", "flax"} <= set(found["versions"])
    assert found["versions"]["jax"] == jax.__version__
    refused = found["refused"]["transformer"]["tridiagonal"]
    assert refused.startswith("Tridiagonal K-FAC is left out: TridiagonalKFAC looks at all layers")


def test_an_encoder_has_curvature_but_for_its_positions():
    module = jax_models.fresh("transformer", (2, 2, 2), 3, seed=0)
    params = jax_models.parameters(module)
    task = replace(both()[1], model=module, params=params)
    cover = jax_train.coverage(task, METHODS["kfac"], 0.1, ARRAYS)
    assert cover.uncovered == {"position": "used by add"}
    assert cover.total - cover.numbers == params["position"].size == 2 * 32


def test_a_kind_that_a_method_lacks_is_named():
    class Scaled(eqx.Module):
        norm: eqx.nn.LayerNorm
        out: eqx.nn.Linear

        def __call__(self, x):
            return self.out(self.norm(jnp.ravel(x)))

    model = Scaled(eqx.nn.LayerNorm(8), eqx.nn.Linear(8, 3, key=jax.random.key(0)))
    module = jax_models.Module(lambda p, x: jax.vmap(p)(x), model)
    task = replace(both()[1], model=module, params=jax_models.parameters(module))
    found = jax_train.coverage(task, METHODS["projective"], 0.1, ARRAYS)
    why = "the method has nothing for the kind 'scale'"
    assert found == (27, 43, dict.fromkeys(("norm/weight", "norm/bias"), why))
    assert jax_train.coverage(task, METHODS["kfac"], 0.1, ARRAYS).uncovered == {}
    assert jax_train.coverage(task, METHODS["sgd"], None, ARRAYS) is None


def test_a_model_of_another_library_gets_one_sentence(capsys, tmp_path):
    words = ["compare", "--backend", "jax", "--models", "resnet", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "'resnet' is a module; give --backend torch, or choose" in capsys.readouterr().err
