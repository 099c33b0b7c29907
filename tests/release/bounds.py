"""Constraints for an environment of the lowest, or the newest, versions that pyproject.toml allows.

``python -m release.bounds lowest --keep torch``, in tests, prints each lower bound as an exact
version; ``newest`` prints none. Packages to keep have the version of constraints.txt in both.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BOUND = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?>=(?P<version>[0-9][0-9a-z.]*)")


def requirements(project: Mapping[str, Any], groups: Iterable[str]) -> Iterator[str]:
    """What the library, each of its extras, and these groups require."""
    yield from project["project"]["dependencies"]
    for extra in project["project"]["optional-dependencies"].values():
        yield from extra
    for group in groups:
        yield from project["dependency-groups"][group]


def lowest(lines: Iterable[str]) -> dict[str, str]:
    """Lower bound by name; where there are several, the highest, which all allow.

    A requirement that is no plain lower bound is an error: there is nothing to test then.
    """
    found: dict[str, str] = {}
    for line in lines:
        match = BOUND.fullmatch(line.strip())
        if match is None:
            msg = f"{line!r} is no lower bound; expected name>=version"
            raise ValueError(msg)
        name, version = _normal(match["name"]), match["version"]
        found[name] = max(found.get(name, version), version, key=_order)
    return found


def pins(text: str) -> dict[str, str]:
    """Exact versions by name, of a file of constraints."""
    split = (line.split("==") for line in text.splitlines() if "==" in line)
    return {_normal(name): version.strip() for name, version in split}


def constraints(kind: str, keep: Iterable[str], root: Path = ROOT) -> list[str]:
    """Lines of a constraints file for one kind, "lowest" or "newest"."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    found = lowest(requirements(project, ["test"])) if kind == "lowest" else {}
    pinned = pins((root / "constraints.txt").read_text())
    found |= {name: pinned[name] for name in map(_normal, keep)}
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("lowest", "newest"))
    parser.add_argument("--keep", nargs="*", default=[], metavar="PACKAGE")
    arguments = parser.parse_args()
    print("\n".join(constraints(arguments.kind, arguments.keep)))
