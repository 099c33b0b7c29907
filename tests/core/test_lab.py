"""The `ngd` command: its errors, its results, the same run on every array library."""

import importlib
import io
import itertools
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ngd_core import nn, reference
from ngd_core.lab import report, results
from ngd_core.lab.arrays import BACKENDS
from ngd_core.lab.cli import main
from ngd_core.lab.errors import UserError, need
from ngd_core.lab.methods import METHODS
from ngd_core.lab.progress import watching
from ngd_core.lab.train import Problem, Run, trainer

TINY = (
    "compare --models mlp --methods kfac,sgd --steps 12 --batch-size 64 --limit 200 "
    "--evaluate-every 3 --grid kfac=0.3,1 --grid sgd=0.3 --seed 3"
)


def ngd(words, *more):
    """Run the command as a shell would hand it over."""
    return main([*shlex.split(words), *map(str, more)])


def loaded(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder, ticks = tmp_path_factory.mktemp("tiny"), itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        # a busy machine would squeeze the picture's curves over seconds
        patch.setattr(
            "ngd_core.lab.train.time", SimpleNamespace(perf_counter=lambda: 0.01 * next(ticks))
        )
        assert ngd(TINY, "--out", folder) == 0
    return folder


def arrays(**changes):
    rng = np.random.default_rng(0)
    made = {
        "x_train": rng.random((40, 5, 6)),
        "y_train": np.arange(40) % 3,
        "x_test": rng.random((9, 5, 6)),
        "y_test": np.arange(9) % 3,
    }
    return {name: x for name, x in (made | changes).items() if x is not None}


@pytest.fixture
def stored(tmp_path):
    def store(**changes):
        path = tmp_path / "set.npz"
        np.savez(path, **arrays(**changes))
        return path

    return store


# Mistakes


def said(capsys, words, *more):
    """The one sentence that a mistake gets."""
    assert ngd(words, *more) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ngd: ")
    assert err.count("\n") == 1
    assert err.endswith((".\n", "?\n"))
    assert err[5] == err[5].upper()
    return err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("comprae", ["command 'comprae'", "did you mean compare?"]),
        ("--version", ["option '--version'", "known: compare"]),
        ("compare --step 3", ["option '--step'", "did you mean --steps?"]),
        ("compare digits", ["argument 'digits'", "--data"]),
        ("compare --models mpl", ["--models", "model 'mpl'", "did you mean mlp?"]),
        ("compare --methods sgd,kfca", ["--methods", "method 'kfca'", "did you mean kfac?"]),
        (
            "compare --methods newton",
            ["method 'newton'", f"known: {', '.join(METHODS)}"],
        ),
        ("compare --backend numpi", ["--backend", "did you mean numpy?"]),
        ("compare --steps 0", ["--steps: '0' is not a whole number of at least 1"]),
        ("compare --steps 2.5", ["--steps: '2.5' is not a whole number of at least 1"]),
        ("compare --steps", ["--steps: expected one argument"]),
        ("compare --batch-size -4", ["--batch-size: '-4'"]),
        ("compare --batch-size 2000", ["--batch-size 2000", "1437 training examples"]),
        ("compare --limit 100", ["--batch-size 512", "100 training examples"]),
        ("compare --seed -1", ["--seed: '-1' is not a whole number of at least 0"]),
        ("compare --target -0.1", ["--target: '-0.1' is not a number above 0"]),
        ("compare --target nan", ["--target: 'nan' is not a number above 0"]),
        ("compare --evaluate-every none", ["--evaluate-every: 'none'"]),
        ("compare --grid sgd=0.1,fast", ["--grid: 'fast' is not a number above 0"]),
        ("compare --grid 0.1,-1", ["--grid: '-1' is not a number above 0"]),
        ("compare --grid sdg=0.1", ["--grid", "method 'sdg'", "did you mean sgd?"]),
        ("compare --methods sgd --grid adam=0.1", ["--grid names the method 'adam'"]),
        ("compare --damping -1", ["--damping: '-1' is not a number above 0"]),
        ("compare --damping kfac=0.1,0.2", ["--damping: '0.1,0.2' is not a number above 0"]),
        ("compare --methods tridiagonal", ["takes all layers of the model 'cnn'", "--models"]),
        ("compare --agreement -1", ["--agreement: '-1' is not a whole number of at least 0"]),
        ("compare --damping sgd=0.1", ["--damping names the method 'sgd'"]),
        ("compare --data mnist", ["no data set 'mnist'", "digits", ".npz", "x_train"]),
        ("compare --data nowhere/set.npz", ["no data set 'nowhere/set.npz'"]),
    ],
)
def test_a_mistake_gets_one_sentence(capsys, tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    err = said(capsys, words)
    for part in parts:
        assert part in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"y_test": None}, ["lacks y_test"]),
        ({"x_train": np.array([{}] * 40)}, ["cannot be read", "allow_pickle"]),
        ({"x_train": np.full((40, 5, 6), np.nan)}, ["x_train", "finite"]),
        ({"x_train": np.zeros(40)}, ["x_train", "(40,)"]),
        ({"x_train": np.zeros((40, 5, 6), complex)}, ["x_train", "complex128"]),
        ({"x_test": np.zeros((9, 6, 5))}, ["(5, 6) in x_train", "(6, 5) in x_test"]),
        ({"y_train": np.zeros(40)}, ["y_train", "float64", "class label"]),
        ({"y_train": np.arange(40) - 1}, ["y_train", "class label"]),
        ({"y_test": np.arange(8)}, ["y_test", "(8,)", "9 inputs"]),
        ({"x_test": np.zeros((0, 5, 6)), "y_test": np.zeros(0, int)}, ["x_test", "(0, 5, 6)"]),
        ({"x_train": np.zeros((40, 7)), "x_test": np.zeros((9, 7))}, ["needs images", "(7,)"]),
    ],
)
def test_a_bad_file_gets_one_sentence(capsys, tmp_path, stored, changes, parts):
    path = stored(**changes)
    err = said(capsys, "compare", "--data", path, "--batch-size", 4, "--out", tmp_path / "out")
    for part in parts:
        assert part in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_a_broken_file_gets_one_sentence(capsys, tmp_path, content):
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    assert "cannot be read" in said(capsys, "compare", "--data", path)


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("torch", "compare --backend torch", "torch"),
        ("jax", "compare --backend jax", "jax"),
        ("equinox", "compare --backend jax", "lab-jax"),
        ("flax", "compare --backend jax", "lab-jax"),
        ("sklearn", "compare", "lab"),
        ("rich", "compare", "lab"),
        ("matplotlib", "compare", "lab"),
    ],
)
def test_a_missing_library_gets_one_sentence(capsys, monkeypatch, tmp_path, module, words, extra):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    assert f"pip install 'ngd-core[{extra}]'" in said(capsys, words)


def test_a_library_that_lacks_another_is_not_called_missing(monkeypatch):
    def lacking(name):
        raise ModuleNotFoundError(name="other")

    monkeypatch.setattr(importlib, "import_module", lacking)
    with pytest.raises(ModuleNotFoundError):
        need("torch", "PyTorch", "torch")


def test_a_folder_that_may_not_be_written_gets_one_sentence(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be used for results: Permission denied" in said(
        capsys, TINY + f" --out {tmp_path}"
    )


def test_without_words_the_command_shows_its_help(capsys):
    assert main([]) == 0
    assert "compare" in capsys.readouterr().out


def test_results_are_not_replaced_unasked(capsys, tiny):
    before = (tiny / "results.json").read_bytes()
    err = said(capsys, TINY, "--out", tiny)
    assert "--overwrite" in err
    assert (tiny / "results.json").read_bytes() == before


def test_a_file_is_no_folder(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be used" in said(capsys, TINY, "--out", tmp_path / "file")
    assert "cannot be used" in said(capsys, TINY, "--out", tmp_path / "file" / "below")


def python(*words):
    return subprocess.run(
        [sys.executable, "-c", *words], capture_output=True, text=True, check=False, timeout=60
    )


COMMAND = "import sys; from ngd_core.lab.cli import main; sys.exit(main())"


def test_a_mistake_in_a_shell():
    done = python(COMMAND, "compare", "--data", "mnist")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ngd: There is no data set 'mnist'")
    assert "Traceback" not in done.stderr


def test_an_interrupt_leaves_quietly(capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ngd_core.lab.compare.compare", interrupted)
    assert ngd("compare") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_help_loads_no_library():
    lines = (
        "import sys; from ngd_core.lab.cli import main",
        "try: main(sys.argv[1:])",
        "except SystemExit as leave: assert leave.code == 0",
        "heavy = {'numpy', 'torch', 'jax', 'rich', 'matplotlib', 'sklearn'}",
        "print('loaded:', sorted(heavy & set(sys.modules)))",
    )
    for words in (["--help"], ["compare", "--help"], []):
        done = python("\n".join(lines), *words)
        assert done.returncode == 0, done.stderr
        assert "usage: ngd" in done.stdout
        assert "loaded: []" in done.stdout


# Results


def without_times(value):
    if isinstance(value, dict):
        return {
            key: without_times(item)
            for key, item in value.items()
            if not key.startswith("seconds") and key not in ("out", "command")
        }
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_two_runs_give_equal_numbers(tiny, tmp_path):
    assert ngd(TINY, "--out", tmp_path) == 0
    assert without_times(loaded(tmp_path)) == without_times(loaded(tiny))


def test_another_seed_gives_other_numbers(tiny, tmp_path):
    assert ngd(TINY, "--seed", 4, "--out", tmp_path) == 0
    one, two = (loaded(f)["results"]["mlp"]["sgd"]["best"] for f in (tmp_path, tiny))
    assert all(x != y for x, y in zip(one["train_loss"], two["train_loss"], strict=True))


def test_the_stored_command_repeats_the_run(tiny, tmp_path, capsys):
    copy = tmp_path / "results.json"
    first = loaded(tiny)
    words = shlex.split(first["command"])
    assert words[0] == "ngd"
    words[words.index("--out") + 1] = str(tmp_path)
    assert main(words[1:]) == 0
    assert without_times(json.loads(copy.read_text())) == without_times(first)
    assert shlex.join(words) in capsys.readouterr().out


def test_results_say_all(tiny):
    found = loaded(tiny)
    assert set(found) == {
        "format",
        "command",
        "settings",
        "methods",
        "versions",
        "data",
        "parameters",
        "coverage",
        "refused",
        "results",
    }
    settings = found["settings"]
    assert settings["grids"] == {"kfac": [0.3, 1.0], "sgd": [0.3]}
    assert settings["damping"] == {"kfac": METHODS["kfac"].damping}
    assert (settings["seed"], settings["steps"], settings["limit"]) == (3, 12, 200)
    assert set(found["versions"]) == {"python", "ngd-core", "numpy"}
    assert found["data"] == {"train": 200, "test": 200, "classes": 10}
    assert found["parameters"] == {"mlp": 65 * 64 + 2 * 65 * 64 + 65 * 10}
    assert set(found["results"]["mlp"]) == {"kfac", "sgd"}
    for method, tuned in found["results"]["mlp"].items():
        assert [run["learning_rate"] for run in tuned["grid"]] == settings["grids"][method]
        assert tuned["best"] in tuned["grid"]
        for run in tuned["grid"]:
            assert run["steps"] == [0, 3, 6, 9, 12]
            assert len(run["train_loss"]) == len(run["seconds"]) == 5
            assert run["seconds"] == sorted(run["seconds"])
            assert run["seconds"][0] == 0
            assert run["final_train_loss"] == run["train_loss"][-1] < run["train_loss"][0]
            assert 0 < run["test_accuracy"] < 1
            assert run["steps_to_target"] is None
            assert not run["diverged"]


def test_all_methods_start_alike(tiny):
    starts = {
        run["train_loss"][0]
        for tuned in loaded(tiny)["results"]["mlp"].values()
        for run in tuned["grid"]
    }
    assert len(starts) == 1


def test_divergence_is_recorded(tmp_path, capsys):
    words = "compare --models mlp-relu --methods sgd --steps 9 --batch-size 32 --limit 64"
    assert ngd(f"{words} --evaluate-every 2 --grid 1e30 --out", tmp_path) == 0
    run = loaded(tmp_path)["results"]["mlp-relu"]["sgd"]["best"]
    assert run["diverged"]
    assert run["final_train_loss"] is None
    assert run["steps"][-1] < 9
    assert "diverged" in capsys.readouterr().out


def test_images_from_a_file(tmp_path, stored):
    words = "compare --models cnn,mlp-relu --methods sgd --grid 0.1 --steps 3 --batch-size 10"
    assert ngd(words, "--data", stored(), "--out", tmp_path) == 0
    found = loaded(tmp_path)
    assert found["data"] == {"train": 40, "test": 9, "classes": 3}
    assert set(found["results"]) == {"cnn", "mlp-relu"}


NETWORK = reference.Network(
    (
        reference.Layer("dense", "one", in_features=3, out_features=4),
        reference.Layer("sigmoid"),
        reference.Layer("dense", "two", in_features=4, out_features=3),
    )
)
SHAPES = {"one": (4, 4), "two": (3, 5)}


def small_problem(steps):
    """Twenty examples in batches of six, so four steps until each has come."""
    rng = np.random.default_rng(5)
    return Problem(
        model=nn.Sequential(nn.Dense("one", 3, 4), nn.Sigmoid(), nn.Dense("two", 4, 3)),
        params={name: rng.standard_normal(shape) for name, shape in SHAPES.items()},
        train=(x := rng.standard_normal((20, 3)), y := np.arange(20) % 3),
        test=(x[:7], y[:7]),
        order=np.stack([rng.permutation(20)[:6] for _ in range(steps)]),
        noise=rng.random((steps, 6)),
        evaluate_every=1,
    )


def training_loss(params, task):
    x, y = task.train
    return reference.loss_value("categorical", NETWORK.forward(params, x), y).mean()


def mean_gradients(params, task, rows):
    x, y = (examples[rows] for examples in task.train)
    flat = reference.mean_loss_gradient(NETWORK, params, x, "categorical", y)
    return {"one": flat[:16].reshape(4, 4), "two": flat[16:].reshape(3, 5)}


def trained(method, task, rate, damping):
    ready = trainer(task, METHODS[method], damping, BACKENDS["numpy"]())
    return ready.run(rate, lambda *_: None)


def test_kfac_in_training_follows_the_oracle():
    """Two K-FAC steps by definition; the second with the first one's inverse."""
    task, rate, damping = small_problem(2), 0.7, 0.03
    run = trained("kfac", task, rate, damping)
    params, (x, y) = task.params, task.train
    velocity = {name: np.zeros_like(block) for name, block in params.items()}
    factors, curve = None, []
    for rows, uniform in zip(task.order, task.noise, strict=True):
        curve.append(training_loss(params, task))
        if factors is None:
            outputs = NETWORK.forward(params, x[rows])
            sampled = reference.sample_targets("categorical", outputs, uniform)
            vectors = reference.loss_gradient("categorical", outputs, sampled)[None]
            factors = reference.kfac_factors(NETWORK, params, x[rows], vectors)
        grads = mean_gradients(params, task, rows)
        natural = {
            name: reference.direction(grads[name], *factors[name], damping) for name in params
        }
        inner = sum(np.sum(natural[name] * grads[name]) for name in params)
        scale = min(1, np.sqrt(1e-3 / (rate**2 * inner)))
        velocity = {name: 0.9 * velocity[name] + scale * natural[name] for name in params}
        params = {name: params[name] - rate * velocity[name] for name in params}
    curve.append(training_loss(params, task))
    assert scale < 1
    np.testing.assert_allclose(run.losses, curve, rtol=1e-9)
    right = np.argmax(NETWORK.forward(params, x[:7]), axis=1) == y[:7]
    assert run.accuracy == np.mean(right)


def test_fngd_in_training_follows_the_oracle():
    """Coefficients recorded in the four steps of the first epoch, their mean used in three more."""
    task, rate, rho = small_problem(7), 0.3, 2.0
    run = trained("fngd", task, rate, rho)
    params = task.params
    velocity = {name: np.zeros_like(block) for name, block in params.items()}
    curve, seen = [], {name: [] for name in params}
    for rows in task.order:
        curve.append(training_loss(params, task))
        each = [mean_gradients(params, task, [row]) for row in rows]
        for name, shape in SHAPES.items():
            seen[name].append((rows, np.stack([g[name].ravel() for g in each], axis=1)))
            epochs = [part for part in (seen[name][:4], seen[name][4:]) if part]
            u = reference.fngd_directions(epochs, rho)[-1][-1].reshape(shape)
            velocity[name] = 0.9 * velocity[name] + u
        params = {name: params[name] - rate * velocity[name] for name in params}
    curve.append(training_loss(params, task))
    np.testing.assert_allclose(run.losses, curve, rtol=1e-9)


def test_sofim_in_training_follows_the_oracle():
    """Its own momentum and no other."""
    task, rate, rho = small_problem(4), 0.2, 0.05
    run = trained("sofim", task, rate, rho)
    params, gradients, curve = task.params, [], []
    for rows in task.order:
        curve.append(training_loss(params, task))
        grads = mean_gradients(params, task, rows)
        gradients.append(np.concatenate([grads[name].ravel() for name in SHAPES]))
        u = reference.sofim_direction(reference.sofim_moment(gradients, 0.9), rho)
        steps = {"one": u[:16].reshape(4, 4), "two": u[16:].reshape(3, 5)}
        params = {name: params[name] - rate * steps[name] for name in params}
    curve.append(training_loss(params, task))
    np.testing.assert_allclose(run.losses, curve, rtol=1e-9)


@pytest.mark.parametrize("method", ["sgd", "adam", "kfac"])
def test_directions_beside_the_exact_one_follow_the_oracle(method):
    """At the start and after a step, on a part of the next batch, with the dense exact Fisher."""
    task = replace(small_problem(2), probe=4)
    damping = METHODS[method].damping and 0.03
    ready = trainer(task, METHODS[method], damping, BACKENDS["numpy"]())
    start, rows = mean_gradients(task.params, task, task.order[0]), task.order[0]
    factors, x = None, task.train[0]
    if method == "kfac":
        outputs = NETWORK.forward(task.params, x[rows])
        sampled = reference.sample_targets("categorical", outputs, task.noise[0])
        vectors = reference.loss_gradient("categorical", outputs, sampled)[None]
        factors = reference.kfac_factors(NETWORK, task.params, x[rows], vectors)

    def direction(k, grads):
        if method == "sgd" or (method == "kfac" and k == 0):
            return grads
        if method == "adam":
            first = {n: 0.1 * g + (0.09 * start[n] if k else 0.0) for n, g in grads.items()}
            second = {
                n: 1e-3 * g**2 + (0.999e-3 * start[n] ** 2 if k else 0.0) for n, g in grads.items()
            }
            corrected = 1 - 0.9 ** (k + 1), 1 - 0.999 ** (k + 1)
            return {
                n: first[n] / corrected[0] / (np.sqrt(second[n] / corrected[1]) + 1e-8)
                for n in grads
            }
        return {n: reference.direction(g, *factors[n], damping) for n, g in grads.items()}

    rate = 0.01
    if method == "kfac":
        natural = {n: reference.direction(start[n], *factors[n], damping) for n in start}
        inner = sum(np.sum(natural[n] * start[n]) for n in start)
        step = {n: min(1, np.sqrt(1e-3 / (rate**2 * inner))) * u for n, u in natural.items()}
    else:
        step = direction(0, start)
    after_one = {n: p - rate * step[n] for n, p in task.params.items()}
    meetings = ready.meet(rate, [0, 1])
    assert [meeting.step for meeting in meetings] == [0, 1]
    for k, params in enumerate((task.params, after_one)):
        rows = task.order[k][:4]
        grads = mean_gradients(params, task, rows)
        flat, u = (
            np.concatenate([b[n].ravel() for n in SHAPES]) for b in (grads, direction(k, grads))
        )
        fisher = reference.exact_fisher(NETWORK, params, x[rows], "categorical")
        want = reference.agreement(fisher, u, flat, 1e-3)
        np.testing.assert_allclose(meetings[k][2:], want, rtol=1e-6)
        value = reference.loss_value(
            "categorical", NETWORK.forward(params, x[rows]), task.train[1][rows]
        )
        np.testing.assert_allclose(meetings[k].loss, value.mean(), rtol=1e-9)


def test_meetings_are_early_half_way_and_at_the_end(tiny):
    for tuned in loaded(tiny)["results"]["mlp"].values():
        assert [meeting["step"] for meeting in tuned["agreement"]] == [5, 6, 12]
        for meeting in tuned["agreement"]:
            assert 0 <= meeting["decrease"] <= 1
            assert -1 <= meeting["cosine"] <= 1


def test_a_method_is_left_out_where_it_does_not_take_the_layers(tmp_path, capsys):
    words = "compare --methods tridiagonal,sgd --grid 0.1 --steps 2 --batch-size 32 --limit 64"
    assert ngd(words, "--out", tmp_path) == 0
    found = loaded(tmp_path)["results"]
    assert list(found["cnn"]) == ["sgd"]
    assert list(found["mlp"]) == ["tridiagonal", "sgd"]
    sentence = "Tridiagonal K-FAC does not take all layers of this model."
    assert loaded(tmp_path)["refused"] == {"cnn": {"tridiagonal": sentence}, "mlp": {}}
    assert capsys.readouterr().out.count(sentence) == 1


def test_no_meetings_if_not_asked_for(tmp_path, capsys):
    assert ngd(TINY, "--agreement", 0, "--out", tmp_path) == 0
    assert all(not tuned["agreement"] for tuned in loaded(tmp_path)["results"]["mlp"].values())
    assert "beside the exact" not in capsys.readouterr().out


def test_kfac_needs_a_third_of_the_steps(tmp_path):
    words = "compare --methods kfac,sgd --grid kfac=1 --grid sgd=0.3,1 --steps 125"
    assert ngd(words, "--out", tmp_path) == 0
    for tuned in loaded(tmp_path)["results"].values():
        kfac, sgd = (tuned[method]["best"]["steps_to_target"] for method in ("kfac", "sgd"))
        assert 3 * kfac <= (sgd or 125)
        assert tuned["kfac"]["best"]["test_accuracy"] > 0.88


def run(rate, *losses):
    return Run(rate, list(range(len(losses))), list(losses), [0.0] * len(losses), 0.5)


@pytest.mark.parametrize(
    ("kfac", "sgd", "words"),
    [
        (
            (2, 0.05),
            (2, 1, 0.05),
            "K-FAC reaches 0.1 in 1 steps, SGD + momentum in 2 (0.50 times as many)",
        ),
        (
            (2, 0.05),
            (2, 1, 1),
            "K-FAC reaches 0.1 in 1 steps (0.00 s); SGD + momentum does not in 2 steps.",
        ),
        ((2, 1, 1), (2, 0.05), "K-FAC does not reach 0.1 in 2 steps."),
    ],
)
def test_the_verdict_says_who_got_there(kfac, sgd, words):
    tuned = {name: results.tune([run(1, *x)], 0.1) for name, x in (("kfac", kfac), ("sgd", sgd))}
    [sentence] = report.verdict(tuned, 0.1)
    assert sentence.startswith(words)


@pytest.mark.parametrize(
    ("runs", "best", "edge"),
    [
        ([run(1, 2, 0.1, 3), run(2, 2, 1, 0)], 1, True),
        ([run(1, 2, 0.1, 3), run(2, 2, 0.1, 1)], 2, False),
        ([run(1, 2, 1, 3), run(2, 2, 1, 2)], 2, True),
        ([run(1, 2, 1, 1), run(2, 2, 1, 0.1), run(3, 2, 1, 1)], 2, False),
        ([run(1, 2, float("nan")), run(2, 2, 9)], 2, True),
        ([run(1, 2, 0.1)], 1, False),
    ],
)
def test_the_best_learning_rate(runs, best, edge):
    tuned = results.tune(runs, target=0.1)
    assert tuned.best.rate == best
    assert tuned.at_edge(0.1) == edge


def test_a_failing_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fill(part):
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        results.write(path, fill)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


# What a person sees


def test_the_picture_shows_every_method(tiny):
    image = importlib.import_module("matplotlib.image").imread(tiny / "compare.png")
    height, width, _ = image.shape
    assert height > 400
    assert width > 1000
    picture = importlib.import_module("ngd_core.lab.picture")
    for colour in picture.COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        like = np.abs(image[..., :3] - rgb).max(axis=-1) < 0.02
        for half in (like[:, : width // 2], like[:, width // 2 :]):
            assert half.sum() > 200
    other = picture.COLOURS[2]
    rgb = [int(other[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    assert (np.abs(image[..., :3] - rgb).max(axis=-1) < 0.02).sum() == 0


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    assert ngd(TINY, "--out", tmp_path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    lines = out.splitlines()
    assert [line.split(" ")[0] for line in lines if line.startswith("[")] == [
        "[1/3]",
        "[2/3]",
        "[3/3]",
    ]
    for text in (
        "damping 0.001",
        "best of 0.3, 1",
        "seed 3",
        "K-FAC does not reach 0.002",
        "beside the exact natural gradient",
        "half way",
    ):
        assert text in out
    for column in ("learning rate", "steps to", "seconds to", "final train", "test accuracy"):
        assert column in out
    assert "not reached" in out
    assert lines[-1] == "Again: " + loaded(tmp_path)["command"]


def test_a_bar_on_a_terminal():
    console = importlib.import_module("rich.console").Console(
        file=io.StringIO(), force_terminal=True, width=120, legacy_windows=False
    )
    with watching(console, runs=2, steps=10) as watch:
        watch.at("mlp K-FAC lr 1", 5, 0.25)
        watch.end("target not reached")
        watch.at("mlp SGD lr 1", 10, 0.125)
    shown = console.file.getvalue()
    assert "mlp SGD lr 1" in shown
    assert "100%" in shown
    assert "target not reached" not in shown
