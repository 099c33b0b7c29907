"""The script for a GPU runs to its end without one, so that a GPU is not lost to a typo."""

import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path

import jax
import ngd_jax
import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("gpu.py")
METHODS = ("kfac", "ekfac", "sngd", "fngd", "sofim", "projective")


@pytest.fixture(autouse=True)
def _as_the_script_runs():
    """JAX promotes as by default, for optax.adam; without optimizations it compiles sooner."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


# JAX compiles each method for seconds: those whose paths through the script differ
@pytest.mark.parametrize(
    ("name", "methods"),
    [("torch", METHODS), ("cupy", METHODS), ("jax", ("kfac", "sofim"))],
)
def test_every_contender_is_timed_in_a_rehearsal(gpu, name, methods):
    found = gpu.report(gpu.TINY, [name], list(methods), False, None)
    assert gpu.errors(found) == []
    assert found["rehearsal"]
    assert found["packages"]["numpy"] == np.__version__
    own = found["frameworks"][name]
    assert "perf_counter" in own["clock"]
    assert set(own["steps"]) == {"sgd", "adam", *methods}
    for times in own["steps"].values():
        assert 0 < times["ms"][0] <= times["ms"][1] <= times["ms"][2]
    assert own["steps"]["sgd"]["ratio_to_sgd"] == [1.0, 1.0, 1.0]
    assert {"pure", "inv"} < set(own["inverses"])
    for by_dtype in own["inverses"].values():
        for dtype in ("float32", "float64"):
            assert all(each["residual"] < 1e-3 for each in by_dtype[dtype].values())
    assert own["inverses"]["pure"]["shows_indefinite"] is True
    assert own["inverses"]["inv"]["shows_indefinite"] is False


def test_every_method_has_its_optimizer_and_options_in_jax(gpu):
    assert tuple(gpu.METHODS) == METHODS
    for name, (_, maker, *_) in gpu.METHODS.items():
        options = gpu.options_of(name, gpu.TINY)
        assert set(options) <= set(inspect.signature(getattr(ngd_jax, maker)).parameters)


def test_a_failure_is_written_down_and_the_rest_is_run(gpu):
    def broken(problem, sizes):
        msg = "no such kernel"
        raise RuntimeError(msg)

    framework = gpu.with_cupy(False)
    framework = framework._replace(contenders={**framework.contenders, "adam": broken})
    found = gpu.steps_of(framework, ["sofim"], gpu.TINY)
    assert "no such kernel" in found["adam"]["error"]
    assert found["sofim"]["ms"][1] > 0
    assert gpu.errors({"cupy": {"steps": found}}) == ["/cupy/steps/adam"]


def script(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


def test_the_script_runs_the_laws_and_writes_its_file(tmp_path):
    out = tmp_path / "gpu.json"
    tests = "tests/backends/test_cupy_ops.py"
    done = script("--device", "cpu", "--frameworks", "cupy", "--tests", tests, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "0 failures" in done.stdout
    found = json.loads(out.read_text())
    assert found["laws"]["exit_status"] == 0
    outcomes = found["laws"]["cupy"]
    assert sum(outcomes.values()) > 30
    assert set(outcomes) <= {"skipped", "passed"}


def test_without_a_gpu_it_says_so_in_one_sentence(gpu, monkeypatch):
    def none(_):
        msg = "No module named 'cupy'"
        raise ImportError(msg)

    monkeypatch.setattr(gpu, "FRAMEWORKS", {"cupy": none, "torch": none})
    with pytest.raises(SystemExit, match="No NVIDIA GPU that cupy or torch can use") as raised:
        gpu.report(gpu.TINY, ["cupy", "torch"], [], True, None)
    assert "--device cpu" in str(raised.value)
    assert str(raised.value).count("\n") == 0
