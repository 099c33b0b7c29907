"""What a mutant is, and where the catalogue of them lies."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CATALOGUE = Path(__file__).parent / "catalogue"


class Mutant(NamedTuple):
    """A plausible mistake in one file of the library, and the test that must fail of it."""

    name: str
    file: str
    old: str
    new: str
    catcher: str


def catalogue() -> dict[str, tuple[Mutant, ...]]:
    """Mutants by the stem of their file in `CATALOGUE`."""
    stems = sorted(path.stem for path in CATALOGUE.glob("*.py"))
    return {stem: importlib.import_module(f"mutants.catalogue.{stem}").MUTANTS for stem in stems}


def faults(mutant: Mutant, root: Path = ROOT) -> list[str]:
    """What makes an entry stale, one sentence each."""
    found = []
    path = root / mutant.file
    times = path.read_text().count(mutant.old) if path.is_file() else 0
    if times != 1:
        found.append(f"{mutant.name}: old text is {times} times in {mutant.file}, not once.")
    if mutant.new == mutant.old:
        found.append(f"{mutant.name}: new text is the old.")
    file, _, node = mutant.catcher.partition("::")
    test, _, case = node.partition("[")
    path = root / file
    functions = ast.parse(path.read_text()).body if path.is_file() else []
    same = [f for f in functions if isinstance(f, ast.FunctionDef) and f.name == test]
    if not same:
        found.append(f"{mutant.name}: there is no test {mutant.catcher}.")
    elif bool(case) != _has_cases(same[0]) or (case and not case.endswith("]")):
        found.append(f"{mutant.name}: {mutant.catcher} names no single case of a test.")
    return found


def _has_cases(test: ast.FunctionDef) -> bool:
    decorators = " ".join(map(ast.unparse, test.decorator_list))
    return any(word in decorators for word in ("law", "over_backends", "parametrize"))
