"""Every public function shows an example, and every example is true."""

from __future__ import annotations

import importlib
import sys
import textwrap
from types import ModuleType

import pytest
from arch.docstrings import core_modules, missing, public, run_examples
from arch.imports import sources

MODULES = [name for name, _ in sources() if name.split(".")[0] == "ngd_core"]


def test_public_functions_show_an_example():
    assert missing(public(core_modules())) == []


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    _, report = run_examples(importlib.import_module(name))
    assert report == ""


@pytest.fixture
def bad_module(monkeypatch):
    """A module with a wrong example, a function without one, and a class without a docstring."""
    module = ModuleType("bad_module")
    monkeypatch.setitem(sys.modules, "bad_module", module)
    code = '''
        __all__ = ["Thing", "bare", "shown"]

        def shown():
            """Show one.

            Examples
            --------
            >>> shown()
            2
            """
            return 1

        def bare():
            """Show none, though the word Examples is here."""

        class Thing:
            def method(self):
                pass
    '''
    exec(textwrap.dedent(code), vars(module))
    return module


def test_missing_docstrings_and_examples_are_named(bad_module):
    assert missing(public(["bad_module"])) == [
        "bad_module.Thing has no docstring.",
        "bad_module.Thing.method has no docstring.",
        "bad_module.bare has no Examples section.",
    ]


def test_a_wrong_example_is_reported(bad_module):
    attempted, report = run_examples(bad_module)
    assert attempted == 1
    assert "Expected:\n    2\nGot:\n    1" in report
