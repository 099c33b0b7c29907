"""The catalogue of mutants is whole and up to date; nothing is run here."""

import pytest
from mutants.mutant import Mutant, catalogue, faults

import ngd_core

STEPS = ("init", "accumulate", "refresh", "direction")
METHODS = [
    method
    for method in map(vars(ngd_core).get, ngd_core.__all__)
    if isinstance(method, type)
    and method is not ngd_core.Method
    and all(hasattr(method, step) for step in STEPS)
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_method_has_five_mutants(method):
    """In the file of the catalogue that is named as the method's module."""
    stem = method.__module__.rpartition(".")[2]
    assert len(catalogue().get(stem, ())) >= 5, f"tests/mutants/catalogue/{stem}.py"


def test_methods_are_found():
    assert ngd_core.KFAC in METHODS
    assert ngd_core.Hyper not in METHODS


@pytest.mark.parametrize("stem", sorted(catalogue()))
def test_entries_fit_the_sources(stem):
    mutants = catalogue()[stem]
    assert [fault for mutant in mutants for fault in faults(mutant)] == []
    names = [mutant.name for mutant in mutants]
    assert len(set(names)) == len(names), "two mutants of one name"
    edits = [(mutant.file, mutant.new, mutant.old) for mutant in mutants]
    assert len(set(edits)) == len(edits), "one mutant twice"


SOURCE = "a = 1\nb = 2\nc = 2\n"
TESTS = "@given()\ndef test_all(): ...\n\n@law()\ndef test_cases(backend): ...\n"
GOOD = Mutant("wrong number", "core.py", "a = 1", "a = 2", "test_core.py::test_all")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"old": "= 2"}, "old text is 2 times in core.py"),
        ({"old": "d = 1"}, "old text is 0 times in core.py"),
        ({"file": "gone.py"}, "old text is 0 times in gone.py"),
        ({"new": "a = 1"}, "new text is the old"),
        ({"catcher": "test_core.py::test_none"}, "there is no test"),
        ({"catcher": "test_gone.py::test_all"}, "there is no test"),
        ({"catcher": "test_core.py"}, "there is no test"),
        ({"catcher": "test_core.py::test_cases"}, "names no single case"),
        ({"catcher": "test_core.py::test_all[numpy]"}, "names no single case"),
        ({"catcher": "test_core.py::test_cases[numpy"}, "names no single case"),
    ],
)
def test_a_stale_entry_is_named(tmp_path, changes, sentence):
    (tmp_path / "core.py").write_text(SOURCE)
    (tmp_path / "test_core.py").write_text(TESTS)
    assert faults(GOOD, tmp_path) == []
    found = faults(GOOD._replace(**changes), tmp_path)
    assert len(found) == 1
    assert sentence in found[0]
