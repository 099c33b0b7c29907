"""Who may import whom, as data, and the functions that read a source tree against it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch", "jax", "jaxlib", "optax", "cupy", "cupyx"}
ARRAY_API = {"array_api_compat", "array_api_extra"}

GROUND = {"_xp", "_typing"}
CHECKED = GROUND | {"_checks", "types"}
FACTORED = CHECKED | {"factors", "inversion"}
STEPPED = FACTORED | {"reconstruction", "weighting", "rank_one", "losses", "step"}
CORE = STEPPED | {"methods", "nn", "analysis", "state", "operators"}

# A unit is a module or a package right under ngd_core; "" is ngd_core/__init__.py itself.
# Each may import itself, and of ngd_core only these units:
UNITS = {
    "_typing": set(),
    "_xp": {"_typing"},
    "_checks": GROUND,
    "types": GROUND | {"_checks"},
    "factors": CHECKED,
    "inversion": CHECKED,
    "reconstruction": FACTORED,
    "weighting": FACTORED,
    "rank_one": FACTORED,
    "losses": FACTORED,
    "step": FACTORED,
    "methods": STEPPED,
    "nn": STEPPED,
    "analysis": STEPPED | {"methods"},
    "state": GROUND,
    "operators": STEPPED | {"methods", "analysis"},
    "": CORE,
    "reference": set(),
    "testing": CORE | {"", "reference"},
    "lab": CORE | {"", "reference", "testing"},
}
# Adapters, and libraries over a framework, that the lab trains models with.
USED = {"ngd_torch", "ngd_jax", "optax", "equinox", "flax"}
# ... and besides the standard library only these packages:
SUBJECTS = {"torch", "jax", "cupy", "ngd_torch", "ngd_jax"}
PACKAGES = {
    "_xp": ARRAY_API,
    "reference": {"numpy"},
    "state": {"numpy", "safetensors"},
    "testing": {"numpy", "hypothesis", "pytest", "array_api_strict"} | SUBJECTS,
    "lab": {"numpy", "rich", "matplotlib", "sklearn", "threadpoolctl"} | FRAMEWORKS | USED,
}
# A unit that loads these inside functions only, when asked to use them.
LAZY = {
    "lab": FRAMEWORKS | USED,
    "testing": SUBJECTS | {"array_api_strict"},
    "state": {"numpy", "safetensors"},
    "ngd_torch": {"rich"},
}
# ... but for these, which the unit itself loads inside functions only:
EAGER = {
    "ngd_core.lab.jax_models": {"jax", "equinox", "flax"},
    "ngd_core.lab.jax_train": {"jax", "optax", "ngd_jax"},
    "ngd_core.lab.torch_inspect": {"torch", "ngd_torch"},
    "ngd_core.lab.torch_models": {"torch"},
    "ngd_core.lab.torch_train": {"torch", "ngd_torch"},
}
COMPUTED = "a computed name"
# Adapters import the core as a whole, never each other.
ADAPTERS = {
    "ngd_torch": {"torch"},
    "ngd_jax": {"jax", "jaxlib", "optax"},
    "ngd_cupy": {"cupy", "cupyx", "rich"},
}


def sources(root: Path = ROOT) -> Iterator[tuple[str, Path]]:
    """Dotted name and path of every module of the shipped packages under a source tree."""
    for folder in (root / "ngd_core", *((root / "backends" / name) for name in ADAPTERS)):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(tree: ast.Module, package: str) -> Iterator[tuple[ast.AST, str]]:
    """Every import statement with the dotted name of what it loads, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join((above if node.level else []) + ([node.module] if node.module else []))
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _is_dynamic(node):
            argument = node.args[0] if node.args else None
            constant = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            yield node, argument.value if constant else COMPUTED


def _is_dynamic(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in ("import_module", "__import__")


def _unit(name: str, units: Iterable[str]) -> str:
    """Unit of a dotted name within ngd_core; a plain attribute belongs to the package itself."""
    second = (*name.split("."), "")[1]
    return second if second in units else ""


def violations(root: Path = ROOT) -> list[str]:
    """Imports that break the rules, one message each, naming file, line and rule."""
    found = []
    for module, path in sources(root):
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        tree = ast.parse(path.read_text())
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for node in ast.walk(function)
        }
        for node, name in imported(tree, package):
            fault = _fault(module, name, top_level=id(node) not in inside)
            if fault:
                found.append(f"{path.relative_to(root)}:{node.lineno}: imports {name}; {fault}")
        if module.startswith("ngd_core.") and module.split(".")[1] not in UNITS:
            found.append(
                f"{path.relative_to(root)}:1: {module} is in no layer; "
                "give it one in tests/arch/imports.py."
            )
    return found


def _fault(module: str, name: str, *, top_level: bool) -> str | None:
    top, target = module.split(".")[0], name.split(".")[0]
    if target in sys.stdlib_module_names or (target == top and target in ADAPTERS):
        return None
    if top in ADAPTERS:
        if target == "ngd_core":
            unit = _unit(name, UNITS)
            return None if unit in CORE or unit == "" else f"nothing imports {unit}."
        lazy = LAZY.get(top, set())
        if target in lazy:
            late = f"{top} loads {target} inside functions only, when asked to use it."
            return late if top_level else None
        allowed = ADAPTERS[top] | {"numpy"}
        return None if target in allowed else f"{top} may import ngd_core, {_names(allowed)}."
    if target in ARRAY_API and module != "ngd_core._xp":
        return "only ngd_core/_xp.py may import array_api_compat and array_api_extra."
    unit = _unit(module, UNITS)
    if top_level and module not in EAGER and name.startswith(tuple(EAGER)):
        return f"ngd_core.{unit} loads {name} inside functions only, when asked to use it."
    if target == "ngd_core":
        other = _unit(name, UNITS)
        allowed = UNITS[unit] | {unit}
        here = f"ngd_core.{unit}" if unit else "ngd_core"
        return None if other in allowed else f"{here} may import of ngd_core: {_names(allowed)}."
    if target == COMPUTED and unit in LAZY and not top_level:
        return None
    allowed = PACKAGES.get(unit, set())
    if target not in allowed:
        wanted = _names(allowed) if allowed else "the standard library and ngd_core alone"
        return f"ngd_core.{unit} may import {wanted}."
    if top_level and target in LAZY.get(unit, set()) - EAGER.get(module, set()):
        return f"ngd_core.{unit} loads {target} inside functions only, when asked to use it."
    return None


def _names(allowed: Iterable[str]) -> str:
    return ", ".join(sorted(name or "ngd_core itself" for name in allowed)) or "nothing"


def loaded(modules: Iterable[str], forbidden: Iterable[str], *paths: Path) -> set[str]:
    """Forbidden packages that a fresh interpreter holds after it imported the modules."""
    code = (
        "import importlib, sys\n"
        f"sys.path[:0] = {[str(path) for path in paths]!r}\n"
        f"for name in {list(modules)!r}:\n"
        "    importlib.import_module(name)\n"
        f"print(*sorted(set({sorted(forbidden)!r}) & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise AssertionError(run.stderr)
    return set(run.stdout.split())
