"""What public docstrings must hold: numpydoc's rules, an example a function, true output."""

from __future__ import annotations

import doctest
import importlib
import inspect
import sys
import tomllib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from arch.imports import ROOT
from arch.names import read

COMPLETENESS = {"PR01", "RT01"}


def public(modules: list[str]) -> Iterator[tuple[str, Any]]:
    """Dotted name and object of each public function, class and method, at its home only."""
    for name in modules:
        module = importlib.import_module(name)
        for key in getattr(module, "__all__", ()):
            item = getattr(module, key)
            if (inspect.isclass(item) or inspect.isfunction(item)) and item.__module__ == name:
                yield f"{name}.{key}", item
                if inspect.isclass(item):
                    yield from ((f"{name}.{key}.{m}", value) for m, value in _methods(item))


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself; no fields that hold functions."""
    for key, value in vars(cls).items():
        code = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if inspect.isfunction(code) and code.__name__ == key and not key.startswith("_"):
            yield key, value


def missing(items: Iterator[tuple[str, Any]]) -> list[str]:
    """Public things without a docstring, and functions without an example."""
    found = []
    for name, item in items:
        text = inspect.getdoc(item) or ""
        if not text:
            found.append(f"{name} has no docstring.")
        elif inspect.isfunction(item) and "." not in item.__qualname__ and not _shows(text):
            found.append(f"{name} has no Examples section.")
    return found


def _shows(text: str) -> bool:
    return ">>>" in text.partition("\nExamples\n--------\n")[2]


def run_examples(module: ModuleType) -> tuple[int, str]:
    """Number of examples in a module's docstrings, and the report of those that fail."""
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(test, out=report.append)
    return runner.summarize(verbose=False).attempted, "".join(report)


def numpydoc_faults(items: Iterator[tuple[str, Any]]) -> list[str]:
    """Findings of numpydoc's validation, by the checks that pyproject.toml names."""
    from numpydoc.validate import validate

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    checks = set(settings["tool"]["numpydoc_validation"]["checks"])
    found = []
    for name, item in items:
        if getattr(item, "_is_protocol", False):  # its signature is typing's, not its own
            continue
        report = validate(name)
        waived = COMPLETENESS if _is_brief(item) else set()
        path = str(report["file"]).removeprefix(f"{ROOT}/")
        found += [
            f"{path}:{report['file_line']}: {name}: {code} {text}"
            for code, text in report["errors"]
            if code in checks - waived
        ]
    return found


def _is_brief(item: Any) -> bool:
    """Tell whether it is a method with one paragraph; sections, once begun, are complete."""
    is_method = "." in getattr(item, "__qualname__", "")
    return is_method and "\n\n" not in (inspect.getdoc(item) or "")


def core_modules() -> list[str]:
    """Public modules of the core that hold code."""
    return [name for name in read() if name.split(".")[0] == "ngd_core"]


if __name__ == "__main__":
    sys.exit("\n".join(numpydoc_faults(public(core_modules()))) or 0)
