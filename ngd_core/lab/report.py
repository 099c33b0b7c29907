"""Settings and results as tables in the terminal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ngd_core.lab.methods import METHODS
from ngd_core.lab.models import MODELS
from ngd_core.lab.results import PICTURE, RESULTS, Comparison, Tuned
from ngd_core.lab.settings import Settings, command
from ngd_core.lab.train import EXACT_DAMPING, Coverage, Run

__all__ = ["closing", "console", "opening", "outcome", "verdict"]

PLAIN_WIDTH = 110


def console() -> Console:
    """Console on the standard output, wide enough for the tables where that is no terminal."""
    shown = Console(highlight=False)
    return shown if shown.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def opening(
    shown: Console,
    settings: Settings,
    versions: dict[str, str],
    sizes: dict[str, int],
    parameters: dict[str, int],
) -> None:
    """Show what is about to be done."""
    examples = f"{sizes['train']} training and {sizes['test']} test examples"
    often = f"measured every {settings.evaluate_every} steps off the clock"
    rows = {
        "data": f"{settings.data}: {examples}, {sizes['classes']} classes",
        settings.holds: f"{settings.backend} {versions[settings.backend]}, float32",
        "runs": f"{settings.steps} steps of {settings.batch_size} examples, no weight decay, seed "
        f"{settings.seed}; the same start and batches for all",
        "target": f"training loss {settings.target:g}, {often}",
    }
    rows |= {name: f"{MODELS[name].note}; {n:,} parameters" for name, n in parameters.items()}
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, text in rows.items():
        table.add_row(name, text)
    for name in settings.methods:
        damping = f"; damping {settings.damping[name]:g}" if name in settings.damping else ""
        rates = ", ".join(f"{rate:g}" for rate in settings.grids[name])
        note = f"{METHODS[name].note}{damping}; learning rate the best of {rates}"
        table.add_row(METHODS[name].title, note)
    shown.print(table)
    shown.print()


def closing(shown: Console, comparison: Comparison) -> None:
    """Show what was seen, one table a model, and where it is written."""
    settings = comparison.settings
    for model, methods in comparison.tuned.items():
        shown.print(_table(MODELS[model].title, methods, settings.target))
        if any(tuned.meetings for tuned in methods.values()):
            shown.print(_agreement(MODELS[model].title, methods, settings.probe))
        for line in verdict(methods, settings.target):
            shown.print(line)
        for line in (*_covered(comparison.coverage[model]), *comparison.refused[model].values()):
            shown.print(line, markup=False)
        shown.print()
    folder = Path(settings.out)
    shown.print(f"Picture: {folder / PICTURE}", soft_wrap=True, markup=False)
    shown.print(f"Numbers: {folder / RESULTS}", soft_wrap=True, markup=False)
    shown.print("Again:", command(settings), soft_wrap=True, markup=False)


def _table(title: str, methods: dict[str, Tuned], target: float) -> Table:
    table = Table(
        title=f"{title}: each method at its best learning rate", title_justify="left", box=SIMPLE
    )
    table.add_column("method", no_wrap=True)
    for name in (
        "learning rate",
        f"steps to {target:g}",
        f"seconds to {target:g}",
        "ms a step",
        "final train loss",
        "test accuracy",
    ):
        table.add_column(name, justify="right")
    for method, tuned in methods.items():
        run = tuned.best
        index = run.reached(target)
        table.add_row(
            METHODS[method].title,
            f"{run.rate:g}{' *' if tuned.at_edge(target) else ''}",
            "not reached" if index is None else str(run.steps[index]),
            "not reached" if index is None else f"{run.seconds[index]:.2f}",
            f"{1000 * run.seconds[-1] / run.steps[-1]:.1f}",
            "diverged" if run.diverged else f"{run.losses[-1]:.2g}",
            f"{100 * run.accuracy:.1f} %",
        )
    if any(tuned.at_edge(target) for tuned in methods.values()):
        table.caption = "* at the edge of the grid: a wider --grid may do better"
    return table


def _agreement(title: str, methods: dict[str, Tuned], examples: int) -> Table:
    heading = f"{title}: directions beside the exact natural gradient"
    table = Table(title=heading, title_justify="left", box=SIMPLE)
    table.add_column("method", no_wrap=True)
    for point in ("early", "half way", "at the end"):
        for k, number in enumerate(("step", "decrease", "cos")):
            above = "" if k else point
            table.add_column(f"{above}\n{number}", justify="right", no_wrap=True)
    for method, tuned in methods.items():
        cells = [
            text
            for meeting in tuned.meetings
            for text in (
                str(meeting.step),
                f"{100 * max(meeting.decrease, 0.0):.2g} %",
                f"{meeting.cosine:.2f}",
            )
        ]
        table.add_row(METHODS[method].title, *cells)
    table.caption = (
        "decrease: share of the exact direction's, at the best step size; cos: of the angle to it; "
        f"for {examples} examples, the exact Fisher and damping {EXACT_DAMPING:g}"
    )
    return table


def _covered(coverage: dict[str, Coverage]) -> list[str]:
    """Which methods know which part of a module's parameters, a sentence a part."""
    parts: dict[str, list[str]] = {}
    for method, found in coverage.items():
        counted = Counter(found.uncovered.values())
        why = ", ".join(f"{reason} ({n})" for reason, n in counted.items())
        rest = f"; other tensors follow their gradients: {why}" if why else ""
        text = f"curvature for {found.numbers:,} of {found.total:,} numbers{rest}."
        parts.setdefault(text, []).append(METHODS[method].title)
    return [f"{', '.join(titles)}: {text}" for text, titles in parts.items()]


def outcome(run: Run, target: float) -> str:
    """How a run ended, in a few words."""
    if run.diverged:
        return f"diverged before step {run.steps[-1]}"
    index = run.reached(target)
    reached = "target not reached" if index is None else f"target after {run.steps[index]} steps"
    return f"{reached}, final loss {run.losses[-1]:.2g}"


def verdict(methods: dict[str, Tuned], target: float) -> list[str]:
    """Natural-gradient methods against the others in steps and in seconds, a sentence a pair.

    Parameters
    ----------
    methods : dict of str to Tuned
        Results on one model.
    target : float
        Training loss to reach.

    Returns
    -------
    list of str
        Sentences.
    """
    pairs = [
        _pair(natural, methods[natural].best, plain, methods[plain].best, target)
        for natural in methods
        if METHODS[natural].curvature is not None
        for plain in methods
        if METHODS[plain].curvature is None
    ]
    return list(dict.fromkeys(pairs))


def _pair(name: str, run: Run, other_name: str, other: Run, target: float) -> str:
    title, other_title = METHODS[name].title, METHODS[other_name].title
    index, other_index = run.reached(target), other.reached(target)
    if index is None:
        return f"{title} does not reach {target:g} in {run.steps[-1]} steps."
    took = f"{title} reaches {target:g} in {run.steps[index]} steps"
    time = f"{run.seconds[index]:.2f} s"
    if other_index is None:
        return f"{took} ({time}); {other_title} does not in {other.steps[-1]} steps."
    ratio = run.steps[index] / max(1, other.steps[other_index])
    return (
        f"{took}, {other_title} in {other.steps[other_index]} ({ratio:.2f} times as many); "
        f"in seconds {run.seconds[index]:.2f} against {other.seconds[other_index]:.2f}."
    )
