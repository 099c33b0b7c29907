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
TAKEN = [name for name in METHODS if name != "tridiagonal"]
RATES = {"sofim": 0.3, "sngd": 0.03, "adam": 0.01}
SMALL = nn.Sequential(
    nn.Conv2d("conv", 2, 2, 2, stride=3, padding="same"),
    nn.Sigmoid(),
    nn.Flatten(),
    nn.Dense("dense", 8, 3),
)
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
    x, y = rng.standard_normal((EXAMPLES, 2, 5, 4)), (np.arange(EXAMPLES) % 3).astype("int32")
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


@pytest.mark.parametrize("method", TAKEN)
def test_a_module_trains_as_the_core_network_does(method):
    """Over two refreshes, for FNGD with stored coefficients; the step is compiled once."""
    core, module = both()
    entry, rate, traces = METHODS[method], RATES.get(method, 0.1), []
    damping = entry.damping and max(entry.damping, 0.03)
    one = trainer(core, entry, damping, NUMPY)
    two = jax_train.trainer(module, entry, damping, counting(traces))
    want = one.run(rate, lambda *_: None)
    assert two.run(0.5 * rate, lambda *_: None).losses[1] != want.losses[1]
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
    words = shlex.split(
        "compare --steps 3 --batch-size 24 --limit 48 --evaluate-every 2 --grid 0.1 --agreement 4"
    )
    models = "--models", "mlp,transformer", "--methods", "kfac,tridiagonal,sgd"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "mlp", Model("Small", "one hidden layer", small))
        for name, value in (("FEATURES", 4), ("HEADS", 2), ("DEPTH", 1)):
            patch.setattr(jax_models, name, value)
        with jax.numpy_dtype_promotion("standard"):
            assert main([*words, "--backend", "jax", *models, "--out", str(folder / "jax")]) == 0
        numpy = "--models", "mlp", "--methods", "sgd", "--out", str(folder / "numpy")
        assert main([*words, *numpy]) == 0
    return [json.loads((folder / name / "results.json").read_text()) for name in ("jax", "numpy")]


def test_the_command_trains_modules(compared):
    found, on_numpy = compared
    assert {"jax", "equinox", "flax"} <= set(found["versions"])
    curves = [one["results"]["mlp"]["sgd"]["best"]["train_loss"] for one in (found, on_numpy)]
    assert_close(*curves, dtype="float32", size=64, kappa=1e2)
    for methods in found["results"].values():
        assert list(methods) == ["kfac", "sgd"]
        for tuned in methods.values():
            assert None not in tuned["best"]["train_loss"]
            assert tuned["best"]["train_loss"][0] != tuned["best"]["train_loss"][-1]
            assert [meeting["step"] for meeting in tuned["agreement"]] == [1, 3]
            assert all(0 < meeting["decrease"] <= 1 for meeting in tuned["agreement"])


def test_the_results_say_what_has_curvature(compared):
    found = compared[0]
    cover = found["coverage"]["transformer"]["kfac"]
    assert cover["uncovered"] == {"position": "used by add"}
    assert cover["total"] - cover["numbers"] == 8 * 4
    assert cover["total"] == found["parameters"]["transformer"]
    assert found["coverage"]["mlp"]["kfac"]["uncovered"] == {}
    refused = found["refused"]["transformer"]["tridiagonal"]
    assert refused.startswith("Tridiagonal K-FAC is left out: TridiagonalKFAC looks at all layers")


def test_a_kind_that_a_method_lacks_is_named():
    class Scaled(eqx.Module):
        norm: eqx.nn.LayerNorm
        out: eqx.nn.Linear

        def __call__(self, x):
            return self.out(self.norm(jnp.ravel(x)))

    model = Scaled(eqx.nn.LayerNorm(40), eqx.nn.Linear(40, 3, key=jax.random.key(0)))
    module = jax_models.Module(lambda p, x: jax.vmap(p)(x), model)
    task = replace(both()[1], model=module, params=jax_models.parameters(module))
    found = jax_train.coverage(task, METHODS["projective"], 0.1, ARRAYS)
    why = "the method has nothing for the kind 'scale'"
    assert found == (123, 203, dict.fromkeys(("norm/weight", "norm/bias"), why))
    assert jax_train.coverage(task, METHODS["kfac"], 0.1, ARRAYS).uncovered == {}
    assert jax_train.coverage(task, METHODS["sgd"], None, ARRAYS) is None


def test_a_model_of_another_library_gets_one_sentence(capsys, tmp_path):
    words = ["compare", "--backend", "jax", "--models", "resnet", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "'resnet' is a module; give --backend torch, or choose" in capsys.readouterr().err
