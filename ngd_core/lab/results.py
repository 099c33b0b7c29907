"""What a comparison found, and its form in results.json."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ngd_core.lab.errors import UserError
from ngd_core.lab.methods import METHODS
from ngd_core.lab.settings import Settings, command
from ngd_core.lab.train import Coverage, Meeting, Run

__all__ = [
    "PICTURE",
    "RESULTS",
    "Comparison",
    "Tuned",
    "as_json",
    "claim",
    "tune",
    "write",
    "write_json",
]

RESULTS, PICTURE = "results.json", "compare.png"
FORMAT = 1


class Tuned(NamedTuple):
    """One method on one network: the run at its best learning rate, all runs, and meetings."""

    best: Run
    runs: tuple[Run, ...]
    meetings: tuple[Meeting, ...] = ()

    def at_edge(self, target: float) -> bool:
        """Whether a learning rate beyond the grid might need fewer steps.

        The best is the first or the last of several, and its neighbour was slower.
        """
        runs = sorted(self.runs, key=lambda run: run.rate)
        ends = ((runs[0], runs[1]), (runs[-1], runs[-2])) if len(runs) > 1 else ()
        return any(
            self.best is edge and not _steps(neighbour, target) <= _steps(edge, target) < math.inf
            for edge, neighbour in ends
        )


class Comparison(NamedTuple):
    """All that was seen.

    Parameters
    ----------
    settings : Settings
        What was asked for.
    versions : dict of str to str
        Of Python and of the libraries at work.
    sizes : dict of str to int
        Numbers of training examples, of test examples and of classes.
    parameters : dict of str to int
        Number of parameters of each model.
    tuned : dict of str to dict of str to Tuned
        By model, then by method.
    coverage : dict of str to dict of str to Coverage
        By module, then by method, of those that look at layers.
    refused : dict of str to dict of str to str
        By model, then by method: the sentence that says why it is left out.
    """

    settings: Settings
    versions: dict[str, str]
    sizes: dict[str, int]
    parameters: dict[str, int]
    tuned: dict[str, dict[str, Tuned]]
    coverage: dict[str, dict[str, Coverage]]
    refused: dict[str, dict[str, str]]


def tune(runs: Sequence[Run], target: float) -> Tuned:
    """Choose the run with the fewest steps to the target.

    Of equals, and if none gets there, the one with the lowest last loss.

    Parameters
    ----------
    runs : sequence of Run
        One for each learning rate.
    target : float
        Training loss to reach.

    Returns
    -------
    Tuned
        The best, and all.

    Examples
    --------
    >>> slow = Run(0.1, [0, 5, 10], [2.0, 0.5, 0.1], [0.0, 1.0, 2.0], 0.9)
    >>> fast = Run(0.3, [0, 5, 10], [2.0, 0.1, 0.2], [0.0, 1.0, 2.0], 0.9)
    >>> tune([slow, fast], target=0.1).best.rate
    0.3
    """

    def rank(run: Run) -> tuple[float, float]:
        return _steps(run, target), math.inf if run.diverged else run.losses[-1]

    return Tuned(min(runs, key=rank), tuple(runs))


def _steps(run: Run, target: float) -> float:
    index = run.reached(target)
    return math.inf if index is None else run.steps[index]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Comparison as plain values; all that may differ between two equal runs is in `seconds...`.

    Parameters
    ----------
    comparison : Comparison
        What was seen.

    Returns
    -------
    dict
        For `json.dump`; a loss that is not finite is None.
    """
    settings = comparison.settings
    return {
        "format": FORMAT,
        "command": command(settings),
        "settings": asdict(settings),
        "methods": {
            name: {"title": METHODS[name].title, "fixed": METHODS[name].note}
            for name in settings.methods
        },
        "versions": comparison.versions,
        "data": comparison.sizes,
        "parameters": comparison.parameters,
        "coverage": {
            model: {method: found._asdict() for method, found in methods.items()}
            for model, methods in comparison.coverage.items()
        },
        "refused": comparison.refused,
        "results": {
            model: {method: _tuned(tuned, settings.target) for method, tuned in methods.items()}
            for model, methods in comparison.tuned.items()
        },
    }


def _tuned(tuned: Tuned, target: float) -> dict[str, Any]:
    return {
        "best": _run(tuned.best, target),
        "best_at_edge_of_grid": tuned.at_edge(target),
        "grid": [_run(run, target) for run in tuned.runs],
        "agreement": [
            {name: _finite(value) for name, value in meeting._asdict().items()}
            for meeting in tuned.meetings
        ],
    }


def _run(run: Run, target: float) -> dict[str, Any]:
    index = run.reached(target)
    return {
        "learning_rate": run.rate,
        "steps_to_target": None if index is None else run.steps[index],
        "seconds_to_target": None if index is None else run.seconds[index],
        "final_train_loss": _finite(run.losses[-1]),
        "test_accuracy": run.accuracy,
        "diverged": run.diverged,
        "steps": run.steps,
        "train_loss": [_finite(loss) for loss in run.losses],
        "seconds": run.seconds,
    }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def claim(folder: Path, *, overwrite: bool, name: str = RESULTS, what: str = "comparison") -> None:
    """Make the folder for the results, before anything is computed.

    Parameters
    ----------
    folder : Path
        Where.
    overwrite : bool
        Whether results that are there may be replaced.
    name, what : str
        File that tells whether there are some, and what they are of.

    Raises
    ------
    UserError
        If it cannot be written to, or holds results that are not to be replaced.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        msg = f"The folder '{folder}' cannot be used for results: {error.strerror}"
        raise UserError(msg) from None
    if not overwrite and (folder / name).exists():
        msg = (
            f"The folder '{folder}' holds the results of an earlier {what}; "
            "give another --out, or --overwrite to replace them"
        )
        raise UserError(msg)


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a file under another name and put it in place at once.

    Raises
    ------
    UserError
        If the file system refuses; what was there before is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fill(part)
        os.replace(part, path)
    except OSError as error:
        msg = f"The file '{path}' cannot be written: {error.strerror}"
        raise UserError(msg) from None
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write plain values as JSON, whole or not at all."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write(path, lambda part: part.write_text(text, encoding="utf-8"))
