"""What a person sees while runs go on: a bar on a terminal, elsewhere a line for each run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Watch", "watching"]


class Watch(NamedTuple):
    """What a series of runs tells.

    Parameters
    ----------
    at : callable
        ``at(name, step, loss)``: a run has got so far.
    end : callable
        ``end(summary)``: it has ended, and how.
    """

    at: Callable[[str, int, float], None]
    end: Callable[[str], None]


@contextmanager
def watching(console: Console, runs: int, steps: int) -> Iterator[Watch]:
    """Show how far `runs` runs of `steps` steps have got.

    Parameters
    ----------
    console : Console
        Where; a bar if it is a terminal, plain lines if not.
    runs, steps : int
        Number of runs, and steps of each.

    Yields
    ------
    Watch
        To be told.
    """
    if not console.is_terminal:
        count = iter(range(1, runs + 1))
        yield Watch(
            at=lambda name, step, loss: None,  # noqa: ARG005
            end=lambda summary: console.print(f"[{next(count)}/{runs}] {summary}", markup=False),
        )
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=runs * steps)
        ended = 0

        def at(name: str, step: int, loss: float) -> None:
            text = f"{name}  step {step:>4}/{steps}  loss {loss:8.2g}"
            bar.update(task, completed=ended * steps + step, description=text)

        def end(summary: str) -> None:
            nonlocal ended
            ended += 1
            bar.update(task, completed=ended * steps)

        yield Watch(at, end)
