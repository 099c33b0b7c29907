"""``ngd check``: the conformance suite on a named backend, with progress and a table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ngd_core.lab.errors import UserError, need, unknown

__all__ = ["OPTIONS", "run"]

PACKAGES = {
    "strict": "array-api-strict",
    **{name: f"ngd-core[{name}]" for name in ("torch", "jax", "cupy")},
}
STYLES = {"passed": "green", "failed": "red", "expected": "yellow", "unexpected": "red"}


def run(arguments: argparse.Namespace) -> int:
    """Check a backend; print a table, and for each failure a counter-example that runs.

    Parameters
    ----------
    arguments : argparse.Namespace
        Of `OPTIONS`.

    Returns
    -------
    int
        0 if every law holds, otherwise 1.

    Raises
    ------
    UserError
        For an unknown backend, one that is not installed, or a bad file.
    """
    need("rich", "rich", "checks")
    need("hypothesis", "Hypothesis", "checks")
    from rich.console import Console

    from ngd_core import testing

    name = arguments.backend
    known = testing.known_backends()
    if name is None:
        msg = f"--backend is missing; name one of {', '.join(known)}"
        raise UserError(msg)
    if name not in known:
        raise UserError(unknown("backend", name, known))
    out = Path(arguments.json) if arguments.json else None
    if out is not None and not out.parent.is_dir():
        msg = f"the folder of --json, {out.parent}, does not exist; make it first"
        raise UserError(msg)
    try:
        subject = testing.find_backend(name)
    except ImportError as error:
        how = f"; install it with: pip install '{PACKAGES[name]}'" if name in PACKAGES else ""
        msg = f"backend '{name}' cannot be loaded: {error}{how}"
        raise UserError(msg) from None
    shown = Console(highlight=False)
    report = _checked(subject, arguments, shown)
    _show(report, shown)
    if out is not None:
        out.write_text(report.json() + "\n")
        shown.print(f"Report: {out}", soft_wrap=True, markup=False)
    return 0 if report.ok else 1


def _checked(subject: Any, arguments: argparse.Namespace, shown: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ngd_core import testing

    options = {"profile": arguments.profile, "levels": arguments.levels}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task("", total=len(testing.checks_of(subject, **options)))
        started: list[str] = []

        def progress(check: Any) -> None:
            bar.update(task, completed=len(started), description=f"{check.level}: {check.name}")
            started.append(check.name)

        return testing.check_backend(subject, progress=progress, **options)


def _show(report: Any, shown: Any) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    for column in ("level", "law", "status"):
        table.add_column(column, no_wrap=column == "level")
    table.add_column("seconds", justify="right")
    for outcome in report.outcomes:
        status = f"[{STYLES[outcome.status]}]{outcome.status}[/]"
        table.add_row(outcome.level, outcome.name, status, f"{outcome.seconds:.1f}")
    shown.print(table)
    for outcome in report.outcomes:
        if outcome.status == "failed":
            shown.print(f"{outcome.name}: {outcome.law}", style="red", markup=False)
            shown.print(outcome.error, markup=False)
            shown.print(f"\n{outcome.code}\n", markup=False, soft_wrap=True)
    shown.print(report.summary(), markup=False)


def _profile(text: str) -> str:
    known = ("quick", "default", "deep")
    if text not in known:
        raise argparse.ArgumentTypeError(unknown("profile", text, known))
    return text


def _levels(text: str) -> tuple[str, ...]:
    known = ("ops", "factors", "methods", "capture", "compile")
    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(unknown("level", word, known))
    return words


OPTIONS: dict[str, dict[str, Any]] = {
    "--backend": {
        "metavar": "NAME",
        "help": "numpy, strict, torch, jax, cupy, or one that an installed package registers",
    },
    "--profile": {
        "type": _profile,
        "default": "quick",
        "help": "quick, default or deep: 15, 60 or 1,000 examples a law (default: quick)",
    },
    "--levels": {
        "type": _levels,
        "metavar": "NAMES",
        "help": "of ops,factors,methods,capture,compile (default: all that it offers)",
    },
    "--json": {"metavar": "FILE", "help": "write the report there too"},
}
"""Options of the command."""
