"""The suite from a shell, from pytest, and on the libraries that are shipped here."""

import json
import os
import subprocess
import sys

import pytest
from arch.imports import ROOT, loaded

from ngd_core import testing
from ngd_core.lab.cli import main
from ngd_core.testing import check_backend, find_backend, parametrize_with_checks
from ngd_core.testing.torch_subject import preconditioned

QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@QUIET
@parametrize_with_checks([find_backend("strict")], max_examples=2)
def test_the_strict_library_passes_on_its_second_device(backend, check):
    check(backend)


@parametrize_with_checks([find_backend("torch")], max_examples=2)
def test_torch_passes(backend, check):
    check(backend)


@pytest.fixture
def quickly_compiled():
    """JAX leaves out most optimizations, which take longer than what they save here."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("level", ["capture", "compile"])
def test_jax_passes(level):
    """One example a law, compiling is dear; tests/core holds the other levels over JAX."""
    report = check_backend(find_backend("jax"), levels=[level], max_examples=1)
    assert report.ok, str(report)


def test_the_adapters_own_kfac_passes_as_a_preconditioner():
    """`ngd_torch.KFAC` behind nothing but a module and a loss, in the units of the mean loss."""
    import ngd_torch

    import ngd_core
    from ngd_core.testing import PreconditionerUnderTest

    def direction(problem):
        def run(model, loss):
            preconditioner = ngd_torch.Preconditioner(
                model,
                ngd_core.KFAC("exact"),
                damping=problem.damping,
                fisher="empirical",
                likelihood="gaussian",
            )
            loss().backward()
            preconditioner.step()
            preconditioner.close()

        return preconditioned(problem, run)

    report = check_backend(PreconditionerUnderTest("ngd_torch", direction), max_examples=3)
    assert report.ok, str(report)


def test_the_command_shows_a_table_and_writes_the_report(capsys, tmp_path):
    words = ["check", "--backend", "numpy", "--levels", "ops", "--json", str(tmp_path / "r.json")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "spd_inverse_inverts" in shown
    assert "numpy: level reached: ops (ops 11/11)" in shown
    assert json.loads((tmp_path / "r.json").read_text())["reached"] == "ops"


def test_the_command_fails_with_a_counter_example(capsys, monkeypatch):
    from conformance import wrong

    broken = wrong.BACKENDS["cond_takes_the_branch"](None)
    monkeypatch.setattr(testing, "find_backend", lambda _: broken)
    assert main(["check", "--backend", "numpy", "--levels", "ops"]) == 1
    shown = capsys.readouterr().out
    assert "cond_takes_the_branch(subject, dtype='float32')" in shown
    assert "level reached: none" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--backend", "nunpy"], "Unknown backend 'nunpy'; did you mean numpy?"),
        (["--backend", "numpy", "--levels", "op"], "unknown level 'op'; did you mean ops?"),
        (["--backend", "numpy", "--profile", "fast"], "unknown profile 'fast'"),
        (["--backend", "numpy", "--json", "no/where.json"], "folder of --json, no, does not exist"),
        ([], "--backend is missing; name one of cupy, jax, numpy"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(capsys, words, sentence):
    assert main(["check", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_what_is_not_installed_is_named_with_how_to_install_it(capsys, monkeypatch):
    def missing(name):
        msg = "No module named 'cupy'"
        raise ModuleNotFoundError(msg)

    monkeypatch.setattr(testing, "find_backend", missing)
    assert main(["check", "--backend", "cupy"]) == 2
    said = capsys.readouterr().err
    assert "No module named 'cupy'; install it with: pip install 'ngd-core[cupy]'." in said


def plugin(*words, folder):
    """A pytest of its own, away from this project's settings."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "ngd_core.testing.plugin"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "--pyargs", "ngd_core.testing", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
    )


def test_the_plugin_runs_the_suite_without_a_test_file(tmp_path):
    late = tmp_path / "expected.json"
    late.write_text('{"cond_takes_the_branch": "was broken once"}')
    options = ["--ngd-backend", "numpy", "--ngd-level", "ops", "--ngd-max-examples", "2"]
    good = plugin(*options, folder=tmp_path)
    assert good.returncode == 0, good.stdout
    assert "11 passed" in good.stdout
    strict = plugin(*options, "--ngd-expected-failures", str(late), folder=tmp_path)
    assert strict.returncode == 1
    assert "XPASS(strict)" in strict.stdout


def test_the_plugin_asks_for_a_backend(tmp_path):
    nameless = plugin(folder=tmp_path)
    assert nameless.returncode != 0
    assert "Name a backend: --ngd-backend NAME" in nameless.stdout + nameless.stderr


def test_hypothesis_and_pytest_are_loaded_when_used():
    assert (
        loaded(["ngd_core", "ngd_core.testing"], {"hypothesis", "pytest", "torch"}, ROOT) == set()
    )
