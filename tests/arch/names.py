"""The inventory of public names; ``python -m arch.names`` writes it anew."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

from arch.imports import ROOT, sources

INVENTORY = Path(__file__).with_name("public_names.json")


def is_public(module: str) -> bool:
    """Tell whether people may import it: no underscore, and not a part of the ngd command."""
    return "._" not in module and not module.startswith("ngd_core.lab")


def read(root: Path = ROOT) -> dict[str, list[str] | None]:
    """``__all__`` of each public module that holds more than a docstring; None if it has none."""
    names: dict[str, list[str] | None] = {}
    for module, path in sources(root):
        tree = ast.parse(path.read_text())
        if is_public(module) and len(tree.body) > (ast.get_docstring(tree) is not None):
            names[module] = _exported(tree)
    return names


def _exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    return None


def faults(names: dict[str, list[str] | None], inventory: dict[str, list[str]]) -> list[str]:
    """Missing ``__all__``, names that do not exist, and differences from the inventory."""
    found = []
    for module, exported in names.items():
        if exported is None:
            found.append(f"{module} has no __all__.")
            continue
        content = importlib.import_module(module)
        found += [
            f"{module}.__all__ names {n}, which is not there."
            for n in exported
            if not hasattr(content, n)
        ]
        known = inventory.get(module, [])
        found += [f"{module}.{n} is not in the inventory." for n in exported if n not in known]
        found += [f"{module}.{n} is gone." for n in known if n not in exported]
    return found + [f"{module} is gone." for module in inventory if module not in names]


def inventory() -> dict[str, list[str]]:
    """The checked-in inventory."""
    return json.loads(INVENTORY.read_text())


if __name__ == "__main__":
    INVENTORY.write_text(json.dumps(read(), indent=1) + "\n")
