"""Habits that make a test worthless: a dropped comparison, a skip without a reason to be there."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from arch.imports import ROOT

COMPARISONS = {"allclose", "isclose", "array_equal", "array_equiv"}
ESCAPES = {"skip", "skipif", "xfail", "importorskip"}
# a third party's expected failures are what the suite is told about them, not a test of ours
OTHERS = {"ngd_core/testing/runner.py": {"xfail"}}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def dropped_comparisons(tree: ast.Module) -> Iterator[int]:
    """Lines whose statement is a comparison and nothing else."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Expr):
            node: ast.AST = statement.value
            while isinstance(node, (ast.Call, ast.Attribute)):
                if isinstance(node, ast.Call):
                    node = node.func
                    if _last_name(node) in COMPARISONS:
                        yield statement.lineno
                else:
                    node = node.value


def escapes(tree: ast.Module, words: set[str] = ESCAPES) -> Iterator[int]:
    """Lines that skip or excuse a test outside a function that marks it as one for a GPU."""
    for top in tree.body:
        lines = [node.lineno for node in ast.walk(top) if _is_pytest(node, words)]
        if not (isinstance(top, FUNCTIONS) and any(_is_pytest(n, {"gpu"}) for n in ast.walk(top))):
            yield from lines


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _is_pytest(node: ast.AST, names: set[str]) -> bool:
    """Tell whether a node reads ``pytest.name`` or ``pytest.mark.name``."""
    if isinstance(node, ast.ImportFrom) and node.module == "pytest":
        return any(alias.name in names for alias in node.names)
    return (
        isinstance(node, ast.Attribute)
        and node.attr in names
        and ast.unparse(node.value) in ("pytest", "pytest.mark")
    )


def faults(root: Path = ROOT) -> list[str]:
    """Bad habits in the tests and the conformance suite of a source tree, one message each."""
    found = []
    for folder in (root / "tests", root / "ngd_core" / "testing"):
        for path in sorted(folder.rglob("*.py")):
            tree, name = ast.parse(path.read_text()), path.relative_to(root)
            found += [
                f"{name}:{line}: the answer of this comparison is dropped; assert it, or use "
                "ngd_core.testing.assert_close."
                for line in dropped_comparisons(tree)
            ]
            found += [
                f"{name}:{line}: skips or excuses a test that is not marked gpu; nothing else is "
                "ever skipped."
                for line in escapes(tree, ESCAPES - OTHERS.get(name.as_posix(), set()))
            ]
    return found


if __name__ == "__main__":
    sys.exit("\n".join(faults()) or 0)
