"""The table of constructs in docs/acceptance.md, from the tests; ``make acceptance`` writes it.

A row of constructs.json is a construct, what this library does with it in words, the tests that
hold that (``file::test``, or ``file::test[case]`` for the parametrised ones with that case), and
what other libraries did when they were probed. Rows with tests that did not pass say so.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "backends"
DATA = Path(__file__).with_name("constructs.json")
PAGE = ROOT / "docs" / "acceptance.md"
HEAD = """\
# Acceptance

Constructs on which libraries of this kind were seen to crash, to skip parameters, or to be silently
wrong, and what `ngd_torch` does with them. "Right" means equal to per-example autograd or to the
dense definition in float64, by the tests that stand behind the word. `make acceptance` runs these
tests and writes this page.

"""
PEERS = """\
## What other libraries did

{source}
"Ok" means that it ran and stayed finite, not that its numbers were compared; "not trained" that the
parameters never moved; "ignored" that they were left to the optimizer behind. A measurement says
what happened in one small case.

"""


def data() -> dict[str, Any]:
    """Rows, and where the peers' behaviour comes from."""
    return json.loads(DATA.read_text())


def page(content: Mapping[str, Any], failed: Collection[str] = ()) -> str:
    """Text of the page, if all tests pass but those that failed."""
    ours = ["| | construct | this library | tests |", "| --- | --- | --- | --- |"]
    peers = list(dict.fromkeys(name for row in content["rows"] for name in row["peers"]))
    probed = [(k, row) for k, row in enumerate(content["rows"], 1) if row["peers"]]
    theirs = [f"| | {' | '.join(peers)} |", "| --- |" + " --- |" * len(peers)]
    for k, row in enumerate(content["rows"], 1):
        bad = [test for test in row["tests"] if test in failed]
        said = f"FAILED: {', '.join(bad)}" if bad else row["ours"]
        tests = ", ".join(f"`{name}`" for name in _short(row["tests"]))
        ours.append(f"| {k} | {row['construct']} | {said} | {tests} |")
    for k, row in probed:
        cells = (row["peers"].get(peer, "not probed") for peer in peers)
        theirs.append(f"| {k} | {' | '.join(cells)} |")
    between = PEERS.format(source=content["source"])
    return HEAD + "\n".join(ours) + "\n\n" + between + "\n".join(theirs) + "\n"


def _short(tests: list[str]) -> list[str]:
    """Cases of one test together."""
    cases: dict[str, list[str]] = {}
    for test in tests:
        name, _, case = test.partition("[")
        cases.setdefault(name.partition("::")[2], []).extend([case[:-1]] if case else [])
    return [f"{name}[{'; '.join(some)}]" if some else name for name, some in cases.items()]


def faults(content: Mapping[str, Any], tests: Path = TESTS) -> list[str]:
    """Rows without a test, and tests or cases that do not exist."""
    found = []
    for row in content["rows"]:
        if not row["tests"]:
            found.append(f"{row['construct']}: no test stands behind it.")
        for test in row["tests"]:
            file, _, rest = test.partition("::")
            name, _, case = rest.partition("[")
            if not (tests / file).is_file():
                found.append(f"{test}: there is no file {file}.")
                continue
            tree = ast.parse((tests / file).read_text())
            nodes = list(ast.walk(tree))
            if not any(isinstance(n, ast.FunctionDef) and n.name == name for n in nodes):
                found.append(f"{test}: {file} has no {name}.")
            words = {n.value for n in nodes if isinstance(n, ast.Constant)}
            if case and case[:-1] not in words:
                found.append(f"{test}: {file} has no case {case[:-1]!r}.")
    return found


class Chosen:
    """Runs the tests that are named and notes which of them passed, in all their cases."""

    def __init__(self, tests: Collection[str]) -> None:
        self.outcomes: dict[str, list[bool]] = {test: [] for test in tests}

    def names(self, nodeid: str) -> list[str]:
        """Those of the named tests that a test of pytest's is a case of."""
        path, _, rest = nodeid.partition("::")
        name, _, case = rest.partition("[")
        found = []
        for test in self.outcomes:
            wanted, _, part = test.partition("[")
            parts = f"-{case[:-1]}-"
            if wanted == f"{Path(path).name}::{name}" and (not part or f"-{part[:-1]}-" in parts):
                found.append(test)
        return found

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep what is named."""
        items[:] = [item for item in items if self.names(item.nodeid)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note an outcome; a failure while setting up or tearing down is one, too."""
        if report.when == "call" or not report.passed:
            for test in self.names(report.nodeid):
                self.outcomes[test].append(report.passed)


def failed(tests: Collection[str], folder: Path = TESTS) -> list[str]:
    """Tests that did not run, or did not pass in every case."""
    chosen = Chosen(tests)
    files = sorted({str(folder / test.partition("::")[0]) for test in tests})
    pytest.main(["-q", "-p", "no:cacheprovider", *files], plugins=[chosen])
    return [test for test, outcomes in chosen.outcomes.items() if not outcomes or not all(outcomes)]


def main() -> int:
    """Run the tests and write the page."""
    content = data()
    missing = faults(content)
    if missing:
        print("\n".join(missing))
        return 1
    bad = failed(list(dict.fromkeys(test for row in content["rows"] for test in row["tests"])))
    PAGE.write_text(page(content, bad))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
