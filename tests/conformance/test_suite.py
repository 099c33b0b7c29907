"""The suite itself: right subjects pass, and for each check there is a wrong one that it fails."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from conformance import wrong

from ngd_core.inversion import Ops
from ngd_core.testing import (
    BackendUnderTest,
    PreconditionerUnderTest,
    check_backend,
    checks_of,
    discovery,
    find_backend,
    known_backends,
    parametrize_with_checks,
    runner,
)

NUMPY = find_backend("numpy")
COMPILING = replace(NUMPY, compile=lambda f: f, compilations=lambda _: 1)
EXACT = wrong.preconditioner(wrong.exact, "exact")
ALL = {check.name: check for check in checks_of(COMPILING, max_examples=8)}
THEIRS = {check.name: check for check in checks_of(EXACT, max_examples=8)}
QUIET = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@QUIET
@parametrize_with_checks([COMPILING], max_examples=4)
def test_numpy_passes(backend, check):
    check(backend)


@parametrize_with_checks([EXACT], max_examples=4)
def test_the_oracle_passes_as_a_preconditioner(backend, check):
    check(backend)


@QUIET
@pytest.mark.parametrize("name", ALL)
def test_a_wrong_backend_fails(name, monkeypatch):
    subject = wrong.BACKENDS[name](monkeypatch)
    with pytest.raises(Exception, match=r"(?s).*") as caught:
        ALL[name](subject)
    law, code = caught.value.__notes__[-2:]
    assert law.startswith(f"Law {name}: ")
    assert f"{name}(subject" in code


@pytest.mark.parametrize("name", THEIRS)
def test_a_wrong_preconditioner_fails(name):
    subject = wrong.preconditioner(wrong.PRECONDITIONERS[name])
    with pytest.raises(AssertionError):
        THEIRS[name](subject)


def test_a_report_has_no_warnings_of_numbers_that_are_not_finite_on_purpose():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_backend(NUMPY, levels=["ops", "methods"], max_examples=4)
    assert [str(warning.message) for warning in caught] == []


def test_every_check_has_its_wrong_subject():
    assert set(wrong.BACKENDS) == set(ALL)
    assert set(wrong.PRECONDITIONERS) == set(THEIRS)
    for check in (*ALL.values(), *THEIRS.values()):
        assert check.law.endswith("."), f"{check.name} states no law"
        assert check.level in runner.LEVELS


def broken(source=""):
    return replace(wrong.BACKENDS["spd_inverse_inverts"](None), source=source)


def broken_from_two(source=""):
    """Inverts numbers well, and matrices not."""

    def inverse(m, **_):
        return (1.01 if m.shape[-1] > 1 else 1.0) * np.linalg.inv(m)

    return replace(NUMPY, ops=Ops(inverse), source=source)


def test_a_counter_example_is_shrunk_and_runs():
    """The code of a report raises the failure that it reports; sizes are the smallest."""
    source = "from conformance.test_suite import broken_from_two\nsubject = broken_from_two()"
    report = check_backend(broken_from_two(source), levels=["ops"], profile="quick")
    [failed] = [o for o in report.outcomes if o.name == "spd_inverse_inverts"]
    assert failed.status == "failed"
    for part in ("dtype=", "n=2", "stack=1", "condition=1.0", "seed=0"):
        assert part in failed.code
    with pytest.raises(AssertionError, match="relative error") as caught:
        exec(failed.code, {})
    assert f"AssertionError: {caught.value}" in failed.error
    assert failed.code in str(report)


def test_a_counter_example_without_a_source_says_what_to_bind():
    report = check_backend(broken(), levels=["ops"], max_examples=2)
    [code] = [o.code for o in report.outcomes if o.name == "spd_inverse_inverts"]
    assert code.startswith("# subject = the object named 'numpy'")
    with pytest.raises(AssertionError, match="relative error"):
        exec(code, {"subject": broken()})


def test_a_report_says_how_far_it_went():
    report = check_backend(broken(), levels=["ops", "factors"], max_examples=2)
    assert not report.ok
    assert report.reached is None
    assert report.summary().startswith("numpy: level reached: none (ops 8/11, factors 7/7)")
    good = check_backend(NUMPY, levels=["ops", "factors"], max_examples=1)
    assert good.ok
    assert good.reached == "factors"
    data = json.loads(good.json())
    assert data["reached"] == "factors"
    assert data["ok"] is True
    assert [o["name"] for o in data["outcomes"]] == [o.name for o in good.outcomes]


def test_expected_failures_are_strict_and_known():
    names = ("spd_inverse_inverts", "spd_inverse_is_the_pure_twin")
    expected = dict.fromkeys((*names, "damped_inverse_survives_anything"), "scaled")
    options = {"levels": ["ops"], "max_examples": 2}
    report = check_backend(broken(), expected_failures=expected, **options)
    assert report.ok
    assert report.reached is None
    assert "failed, as expected: scaled" in str(report)
    late = check_backend(NUMPY, expected_failures={"cond_takes_the_branch": "old"}, **options)
    assert not late.ok
    assert "it passed, though a failure was expected: old" in str(late)
    lenient = check_backend(
        NUMPY, expected_failures={"cond_takes_the_branch": "old"}, strict=False, **options
    )
    assert lenient.ok
    for call in (check_backend, lambda s, **k: parametrize_with_checks([s], **k)):
        with pytest.raises(ValueError, match="names 'typo', which is no check of numpy"):
            call(NUMPY, expected_failures={"typo": "?"})


def test_levels_that_are_not_offered_are_not_run():
    assert {check.level for check in checks_of(BackendUnderTest("bare", np))} == {
        "ops",
        "factors",
        "methods",
    }
    assert {check.level for check in checks_of(EXACT)} == {"methods"}
    assert checks_of(NUMPY, profile="deep")[0].examples == 1000


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: checks_of(NUMPY, profile="slow"), "profile is 'slow'; expected one of quick"),
        (lambda: checks_of(NUMPY, levels=["op"]), "level is 'op'; expected one of ops"),
        (lambda: BackendUnderTest("x", np, dtypes=("float16",)), "dtypes is"),
        (lambda: BackendUnderTest("x", np, share=0.0), "share is 0.0"),
        (lambda: find_backend("nmpy"), "backend is 'nmpy'; expected one of cupy, jax, numpy"),
    ],
)
def test_mistakes_get_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


class Point:
    """An entry point of an installed package."""

    name, value = "mine", "my_package:backend"

    def __init__(self, gives):
        self.gives = gives

    def load(self):
        return self.gives


def test_installed_packages_are_discovered(monkeypatch):
    mine = BackendUnderTest("mine", NUMPY.xp)
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [Point(lambda: mine)])
    assert "mine" in known_backends()
    assert find_backend("mine") is mine
    assert "find_backend('mine')" in mine.source
    monkeypatch.setattr(discovery, "entry_points", lambda **_: [Point(3)])
    with pytest.raises(TypeError, match="my_package:backend gives a int; expected"):
        find_backend("mine")


def test_a_scale_error_is_measured():
    """The dense law says by which powers of N the curvature is off."""
    subject = wrong.preconditioner(wrong.scaled)
    report = check_backend(subject, profile="quick")
    failed = {o.name: o for o in report.outcomes if o.status == "failed"}
    assert set(failed) == {"direction_is_the_dense_damped_solve", "direction_forgets_duplicates"}
    said = failed["direction_is_the_dense_damped_solve"].error
    assert "layer 'first': the curvature is N^-2 times the Fisher of the mean loss" in said
    assert "layer 'last': the curvature is N^-2 times" in said


def test_a_backend_looks_where_its_results_live():
    strict = find_backend("strict")
    here = strict.array([1.0])
    assert strict.numpy(here).tolist() == [1.0]
    there = strict.xp.asarray([1.0])
    with pytest.raises(AssertionError, match="result on"):
        strict.numpy(there)
    with pytest.raises(AssertionError, match="of numpy from arrays of array_api_strict"):
        strict.numpy(np.ones(1))


def test_the_list_of_functions_is_what_the_core_calls():
    """`FUNCTIONS` names every attribute of a namespace that the sources of the core read."""
    import ast

    from arch.imports import sources

    from ngd_core.testing.checks_ops import FUNCTIONS

    called = set()
    for name, path in sources():
        unit = (*name.split("."), "")[1]
        if name.split(".")[0] != "ngd_core" or unit in ("testing", "lab", "reference"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                if text.startswith("xp.") and "(" not in text:
                    called.add(text.removeprefix("xp."))
    dtypes = {"bool", "float32", "float64", "int32", "int64", "linalg"}
    assert {n for n in called - dtypes if not n.endswith(".eps")} == set(FUNCTIONS)


def test_a_preconditioner_has_one_dtype():
    assert PreconditionerUnderTest("x", wrong.exact, dtype="float32").dtypes == ("float32",)
