"""`ngd compare --backend torch`: modules train as the core's networks do, and as PyTorch says."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from ngd_core import nn, reference
from ngd_core.lab import torch_models, torch_train
from ngd_core.lab.arrays import BACKENDS
from ngd_core.lab.cli import main
from ngd_core.lab.methods import METHODS
from ngd_core.lab.train import EXACT_DAMPING, Problem, trainer
from ngd_core.testing import assert_close, assert_far

ARRAYS = BACKENDS["torch"]()
EXAMPLES, BATCH, SEED = 20, 6, 7
TAKEN = [name for name in METHODS if name != "tridiagonal"]
LAYERED = ["kfac", "ekfac", "sngd", "projective"]
RATES = {"sofim": 0.3, "sngd": 0.03, "adam": 0.01}


def ngd(words, *more):
    """Run the command as a shell would hand it over."""
    return main([*shlex.split(words), *map(str, more)])


def loaded(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


NETWORK = nn.Sequential(
    nn.Conv2d("conv1", 2, 4, 3, stride=2, padding="same"),
    nn.ReLU(),
    nn.Conv2d("conv2", 4, 4, (2, 3), dilation=(1, 2), padding=((1, 0), (2, 2)), groups=2),
    nn.Sigmoid(),
    nn.Conv2d("conv3", 4, 3, 2, padding="same", bias=False),
    nn.Flatten(),
    nn.Dense("dense1", 18, 5, bias=False),
    nn.Sigmoid(),
    nn.Dense("dense2", 5, 3),
)
"""On 5x4 images, so that "same" puts zeros on one side of an axis and on both of the other."""


SMALL = nn.Sequential(
    nn.Conv2d("conv", 2, 2, 2, stride=3, padding="same"),
    nn.Sigmoid(),
    nn.Flatten(),
    nn.Dense("dense", 8, 3),
)
"""With factors of full rank in a batch of 18; EKFAC's basis of a null space is rounding's."""


def problem(model, params, steps, shape, batch=BATCH):
    """Twenty examples in batches of six; labels sampled with what the adapter would draw."""
    rng = np.random.default_rng(1)
    draws = torch.Generator().manual_seed(SEED)
    return Problem(
        model=model,
        params=params,
        train=(
            x := ARRAYS.array(rng.standard_normal((EXAMPLES, *shape))),
            y := ARRAYS.array((np.arange(EXAMPLES) % 3).astype("int32")),
        ),
        test=(x[:7], y[:7]),
        order=np.stack([rng.permutation(EXAMPLES)[:batch] for _ in range(steps)]).astype("int32"),
        noise=np.stack([torch.rand(1, batch, generator=draws)[0].numpy() for _ in range(steps)]),
        evaluate_every=1,
        probe=4,
        seed=SEED,
    )


def both(steps, method="sgd"):
    """The same problem for the core's network and for a module."""
    network = {"ekfac": SMALL}.get(method, NETWORK)
    rng = np.random.default_rng(0)
    uniforms = {n: ARRAYS.array(rng.random(shape)) for n, shape in nn.shapes(network).items()}
    params = nn.init(network, uniforms)
    core = problem(network, params, steps, (2, 5, 4), 18 if method == "ekfac" else BATCH)
    return core, replace(core, model=torch_models.as_module(network, params))


def damping(method):
    return METHODS[method].damping and max(METHODS[method].damping, 0.03)


def made_by(make, task, method):
    return make(task, METHODS[method], damping(method), ARRAYS)


# The same numbers as the core's network


@pytest.mark.parametrize("method", TAKEN)
def test_a_module_trains_as_the_core_network_does(method):
    """Eight steps: two refreshes, and for FNGD four steps with stored coefficients."""
    core, module = both(8, method)
    rate, seen = RATES.get(method, 0.1), []
    want = made_by(trainer, core, method).run(rate, lambda *_: None)
    got = made_by(torch_train.trainer, module, method).run(rate, lambda *at: seen.append(at))
    assert got.steps == want.steps == list(range(9))
    assert_close(got.losses, want.losses, size=EXAMPLES * 18, kappa=1e3)
    assert_far(want.losses[1:], want.losses[:-1], least=1e-3)
    assert got.accuracy == want.accuracy
    assert seen == list(zip(got.steps[1:], got.losses[1:], strict=True))


@pytest.mark.parametrize("method", [*LAYERED, "fngd", "sgd", "adam"])
def test_a_modules_directions_are_beside_the_exact_one_as_the_cores(method):
    """Neither statistics nor inverses take the examples of the comparison in."""
    core, module = both(7, method)
    rate, points = RATES.get(method, 0.1), [5, 6, 7] if method == "fngd" else [1, 3, 7]
    want = made_by(trainer, core, method).meet(rate, points)
    got = made_by(torch_train.trainer, module, method).meet(rate, points)
    assert [meeting.step for meeting in got] == points
    assert_close(got, want, size=EXAMPLES * 18, kappa=1e5)


def test_a_modules_values_are_copies():
    core, module = both(2)
    before = {name: block.clone() for name, block in core.params.items()}
    made_by(torch_train.trainer, module, "sgd").run(0.1, lambda *_: None)
    with torch.no_grad():
        for p in module.model.parameters():
            p.zero_()
    assert all(torch.equal(before[name], block) for name, block in core.params.items())


# A module's own ways


def moody():
    """Each a part that is not the same in training as otherwise."""
    torch.manual_seed(0)
    parts = [torch.nn.Flatten(), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 4)]
    return torch.nn.Sequential(*parts, torch.nn.Dropout(0.5), torch.nn.Linear(4, 3)).double()


@pytest.mark.parametrize("method", ["kfac", "sgd"])
def test_modules_train_in_training_mode_and_are_measured_out_of_it(method):
    task = problem(moody(), {}, 3, (2, 3))
    before = {name: x.clone() for name, x in task.model.state_dict().items()}
    ready = made_by(torch_train.trainer, task, method)
    torch.manual_seed(3)
    run = ready.run(0.1, lambda *_: None)
    after = task.model.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())

    def losses(seed):
        """SGD by hand."""
        torch.manual_seed(seed)
        model, x, y = moody(), task.train[0], task.train[1].long()
        torch.manual_seed(seed)
        rule = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for rows in (*task.order, None):
            model.eval()
            yield float(functional.cross_entropy(model(x), y).detach())
            if rows is not None:
                model.train()
                rule.zero_grad()
                functional.cross_entropy(model(x[rows]), y[rows]).backward()
                rule.step()

    by_hand = list(losses(3))
    assert_close(run.losses[0], by_hand[0], size=EXAMPLES)
    if method == "sgd":
        assert_close(run.losses, by_hand, size=EXAMPLES)


def test_a_run_is_repeated_to_the_bit():
    _, module = both(6)
    ready = made_by(torch_train.trainer, module, "kfac")
    first, _, again = ready.run(0.1, print), ready.meet(0.1, [3]), ready.run(0.1, print)
    assert first.losses == again.losses
    other = made_by(torch_train.trainer, replace(module, seed=SEED + 1), "kfac")
    assert other.run(0.1, print).losses != first.losses


def test_the_exact_gradient_of_a_transformer_is_autograds(monkeypatch):
    """The dense Fisher of all parameters from one backward pass an output."""
    for name, value in (("FEATURES", 4), ("HEADS", 2), ("DEPTH", 1)):
        monkeypatch.setattr(torch_models, name, value)
    model = torch_models.fresh("transformer", (1, 3, 4), 3, seed=2).double()
    task = problem(model, {}, 1, (1, 3, 4))
    rows = task.order[0][:4]
    [meeting] = made_by(torch_train.trainer, task, "sgd").meet(0.1, [0])
    x, y = task.train[0][rows], task.train[1][rows].long()
    params = list(model.parameters())

    def flat(value):
        parts = torch.autograd.grad(value, params, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in parts]).numpy()

    outputs, fisher = model(x), 0.0
    loss = functional.cross_entropy(outputs, y)
    for scores in outputs:
        slopes = np.stack([flat(score) for score in scores])
        p = torch.softmax(scores.detach(), dim=0).numpy()
        fisher = fisher + slopes.T @ (np.diag(p) - np.outer(p, p)) @ slopes / len(rows)
    gradient = flat(loss)
    want = reference.agreement(fisher, gradient, gradient, EXACT_DAMPING)
    assert_close(meeting[2:], want, size=gradient.size, kappa=1e4)
    assert_close(meeting.loss, float(loss.detach()), size=len(rows))


def test_sofim_is_compared_with_the_examples_in_its_momentum():
    """At the first step the momentum is the gradient alone, so it points as SGD does."""
    _, module = both(2)
    [one], [two] = (
        made_by(torch_train.trainer, module, method).meet(0.1, [0]) for method in ("sofim", "sgd")
    )
    assert_close(one.cosine, two.cosine, size=EXAMPLES * 18)
    assert_far(one.relative_error, two.relative_error, least=1e-3)


def test_initial_values_come_from_the_seed_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    for name in torch_models.MODULES:
        one, two, other = (torch_models.fresh(name, (1, 4, 4), 3, seed) for seed in (5, 5, 6))
        pairs = list(zip(one.parameters(), two.parameters(), other.parameters(), strict=True))
        assert all(torch.equal(p, q) for p, q, _ in pairs)
        assert not all(torch.equal(p, r) for p, _, r in pairs)
    assert torch.equal(before, torch.random.get_rng_state())


def test_examples_of_a_batch_do_not_meet():
    """So each has a gradient of its own."""
    x = torch.randn(4, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    for name in torch_models.MODULES:
        model = torch_models.fresh(name, (2, 5, 6), 3, seed=1)
        assert model(x).shape == (4, 3)
        assert_close(model(x)[2:].detach(), model(x[2:]).detach(), dtype="float32", size=60)
        assert_far(model(x)[2].detach(), model(x)[3].detach(), least=1e-3)


# The command


WORDS = (
    f"compare --backend torch --models resnet,transformer --methods {','.join(METHODS)} "
    "--steps 3 --batch-size 24 --limit 48 --evaluate-every 2 --grid 0.01 --agreement 0"
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    before = torch.random.get_rng_state(), torch.get_num_threads()
    assert ngd(WORDS, "--out", folder) == 0
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == torch.get_num_threads()
    return folder


def test_every_method_trains_both_models(compared):
    found = loaded(compared)
    assert (compared / "compare.png").stat().st_size > 50_000
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["results"]) == {"resnet", "transformer"}
    for methods in found["results"].values():
        assert list(methods) == TAKEN
        starts = set()
        for tuned in methods.values():
            run = tuned["best"]
            assert run["steps"] == [0, 2, 3]
            assert None not in run["train_loss"]
            assert run["train_loss"][0] != run["train_loss"][-1]
            assert run["seconds"][-1] > 0
            starts.add(run["train_loss"][0])
        assert len(starts) == 1


def test_the_results_say_what_has_curvature(compared):
    found = loaded(compared)
    assert set(found["coverage"]["resnet"]) == {*LAYERED, "fngd"}
    for model, ungraspable in (("resnet", set()), ("transformer", {"position"})):
        shapes = dict(torch_models.fresh(model, (1, 8, 8), 10, 0).named_parameters())
        total = found["parameters"][model]
        assert total == sum(p.numel() for p in shapes.values())
        norms = {name for name in shapes if "norm" in name or name in ("1.weight", "1.bias")}
        for method, wanted in (
            ("kfac", ungraspable),
            ("ekfac", ungraspable),
            ("fngd", ungraspable),
            ("sngd", ungraspable | norms),
            ("projective", ungraspable | norms),
        ):
            cover = found["coverage"][model][method]
            assert set(cover["uncovered"]) == wanted
            assert cover["total"] == total
            assert total - cover["numbers"] == sum(shapes[name].numel() for name in wanted)
        assert set(found["refused"][model]) == {"tridiagonal"}
        assert found["refused"][model]["tridiagonal"].startswith("Tridiagonal K-FAC is left out: ")


def test_what_is_shown(capsys, tmp_path):
    words = WORDS.replace(",".join(METHODS), "kfac,sngd,tridiagonal,sgd").replace("resnet,", "")
    assert ngd(words.replace("--agreement 0", "--agreement 6"), "--out", tmp_path) == 0
    for tuned in loaded(tmp_path)["results"]["transformer"].values():
        assert [meeting["step"] for meeting in tuned["agreement"]] == [1, 3]
        assert all(0 < meeting["decrease"] <= 1 for meeting in tuned["agreement"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"modules torch {torch.__version__}, float32" in shown
    assert (
        "K-FAC: curvature for 17,770 of 18,026 numbers; other tensors follow their gradients: "
        "no rule for Transformer (1)."
    ) in shown
    assert "the kind 'scale' (10)." in shown
    assert "Tridiagonal K-FAC is left out: TridiagonalKFAC looks at all layers" in shown
    for heading in ("each method at its best", "directions beside the exact natural gradient"):
        assert f"Transformer encoder: {heading}" in shown


def test_modules_of_the_cores_networks_give_numpys_curves(tmp_path):
    """Those methods that sample no labels; the noise of the others is each library's own."""
    words = (
        "compare --models cnn,mlp-relu --methods sngd,fngd,sofim,sgd,adam --steps 6 --limit 200 "
        "--batch-size 64 --evaluate-every 2 --agreement 0 --grid 0.1 --grid adam=0.01 "
        "--grid sngd=0.01"
    )
    for backend in ("numpy", "torch"):
        assert ngd(words, "--backend", backend, "--out", tmp_path / backend) == 0
    one, two = (loaded(tmp_path / backend) for backend in ("numpy", "torch"))
    assert one["parameters"] == two["parameters"]
    for model, methods in one["results"].items():
        for method, tuned in methods.items():
            other = two["results"][model][method]["best"]
            want = tuned["best"]["train_loss"]
            assert len(set(want)) == 4
            assert_close(other["train_loss"], want, dtype="float32", size=64, kappa=1e2)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--models cnn,resnet", ["model 'resnet' is a module; give --backend torch, or"]),
        ("--models transformer", ["'transformer' is a module; give --backend torch or jax"]),
        (
            "--models mlp --methods tridiagonal --backend torch",
            ["None of these methods takes all layers of the model 'mlp'", "--methods"],
        ),
        ("--backend torch --models resnet --data {flat}", ["residual net needs images", "(7,)"]),
        ("--backend torch --models transformer --data {flat}", ["transformer net needs images"]),
    ],
)
def test_a_mistake_gets_one_sentence(capsys, tmp_path, words, parts):
    flat, out = tmp_path / "flat.npz", tmp_path / "out"
    y = np.arange(40) % 3
    np.savez(flat, x_train=np.zeros((40, 7)), y_train=y, x_test=np.zeros((40, 7)), y_test=y)
    assert ngd(f"compare {words} --batch-size 8".format(flat=flat), "--out", out) == 2
    shown, err = capsys.readouterr()
    assert shown == ""
    assert err.startswith("ngd: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert not out.exists()
