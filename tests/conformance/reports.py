"""The reports kept in docs/reports, and the tables that docs/conformance.md makes of them.

``python -m conformance.reports NAME ...``, in tests, runs the suite on these subjects, of `KEPT`,
and writes their reports; without a name it only writes the tables anew, and says what is stale.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from conformance import foreign

from ngd_core.testing import Report, check_backend, find_backend
from ngd_core.testing.protocol import Subject
from ngd_core.testing.runner import LEVELS, Outcome

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reports"
PAGE = ROOT / "docs" / "conformance.md"


class Kept(NamedTuple):
    """How a report is made: of what, with which packages, and by which options of the suite."""

    subject: Callable[[], Subject]
    packages: tuple[str, ...]
    options: Mapping[str, Any] = {"profile": "quick"}


ONCE = {"profile": "quick", "max_examples": 1}
KEPT = {
    "numpy": Kept(lambda: find_backend("numpy"), ("numpy",)),
    "strict": Kept(lambda: find_backend("strict"), ("array-api-strict",)),
    "torch": Kept(lambda: find_backend("torch"), ("torch",)),
    "jax": Kept(lambda: find_backend("jax"), ("jax",)),
    "ndonnx": Kept(foreign.ndonnx, ("ndonnx",), {**ONCE, "levels": ("ops", "factors")}),
    "dask": Kept(foreign.dask, ("dask", "array-api-compat"), ONCE),
    "asdfghjkl": Kept(foreign.asdfghjkl, ("asdfghjkl", "torch")),
}
OWN = ("numpy", "strict", "torch", "jax")


def make(name: str, folder: Path = FOLDER) -> None:
    """Run the suite on one subject, and write its report with the versions that it is of."""
    kept = KEPT[name]
    report = check_backend(kept.subject(), **kept.options, progress=lambda c: print(c.name))
    versions = {package: version(package).partition("+")[0] for package in kept.packages}
    said = {"versions": versions, **json.loads(report.json())}
    (folder / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n")
    print(report.summary())


def read(name: str, folder: Path = FOLDER) -> tuple[Report, dict[str, str]]:
    """A kept report, and the versions that it is of."""
    said = json.loads((folder / f"{name}.json").read_text())
    outcomes = tuple(Outcome(**outcome) for outcome in said["outcomes"])
    return Report(said["subject"], said["profile"], outcomes, said["strict"]), said["versions"]


def table(names: Iterable[str], folder: Path = FOLDER) -> str:
    """A row for each backend: versions, level reached, and checks passed of each level."""
    rows = [("backend", "level reached", *LEVELS), ("---",) * (2 + len(LEVELS))]
    for name in names:
        report, versions = read(name, folder)
        of = ", ".join(f"`{package}` {number}" for package, number in versions.items())
        counts = [
            "{} of {}".format(*report.passed(level)) if level in report.levels else ""
            for level in LEVELS
        ]
        rows.append((of, report.reached or "none", *counts))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def outcomes(name: str, folder: Path = FOLDER) -> str:
    """The summary of a report, and a line for each check."""
    report, _ = read(name, folder)
    wide = max(len(o.name) for o in report.outcomes)
    lines = [report.summary(), "", *(f"{o.name:{wide}} {o.status}" for o in report.outcomes)]
    return "\n".join(["```console", *lines, "```"])


def blocks(folder: Path = FOLDER) -> dict[str, str]:
    """Parts of the page that the reports say, by name."""
    return {
        "own": table(OWN, folder),
        "asdfghjkl": outcomes("asdfghjkl", folder),
        "foreign": table(("ndonnx", "dask"), folder),
    }


def filled(page: str, parts: Mapping[str, str]) -> str:
    """The page with the parts between ``<!-- report NAME -->`` and ``<!-- end -->``."""
    for name, text in parts.items():
        pattern = rf"(<!-- report {name} -->\n).*?(\n<!-- end -->)"
        page, count = re.subn(pattern, lambda m, t=text: m[1] + t + m[2], page, flags=re.DOTALL)
        if count != 1:
            msg = f"the page has {count} places for the report {name!r}, expected one"
            raise ValueError(msg)
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    for chosen in parser.parse_args().names:
        make(chosen)
    PAGE.write_text(filled(PAGE.read_text(), blocks()))
