"""Training loss over steps and over seconds, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogFormatterSciNotation

from ngd_core.lab.methods import METHODS
from ngd_core.lab.models import MODELS
from ngd_core.lab.results import Comparison, Tuned

__all__ = ["draw"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
"""Colours that colour-blind people can tell apart (Okabe and Ito), and dashes for print."""

FEW = 4
"""Methods whose names have room inside the panels."""


class Look(NamedTuple):
    """Colour and dashes of a method."""

    color: str
    linestyle: Any


def draw(comparison: Comparison, path: Path) -> None:
    """Draw each method at its best learning rate: a row a model, over steps and over seconds.

    Parameters
    ----------
    comparison : Comparison
        What was seen.
    path : Path
        File to write, a PNG whatever its name.
    """
    tuned, settings = comparison.tuned, comparison.settings
    looks = {
        method: Look(COLOURS[i % len(COLOURS)], STYLES[(i + i // len(COLOURS)) % len(STYLES)])
        for i, method in enumerate(settings.methods)
    }
    beside = len(settings.methods) > FEW
    figure = Figure(
        figsize=(18 if beside else 12, 0.9 + 4.6 * len(tuned)),
        layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12),
    )
    rows = figure.subplots(len(tuned), 2, sharey="row", squeeze=False)
    for (left, right), (model, methods) in zip(rows, tuned.items(), strict=True):
        title = MODELS[model].title
        _panel(left, methods, looks, settings.target, seconds=False, beside=beside)
        left.set_title(f"{title}: loss after so many steps", loc="left", fontsize=13)
        left.set(xlabel="training steps", ylabel="loss on the training set (log scale)")
        _panel(right, methods, looks, settings.target, seconds=True, beside=beside)
        right.set_title("The same runs: loss after so many seconds", loc="left", fontsize=13)
        right.set(xlabel="seconds of training")
    figure.suptitle(
        f"Training on {Path(settings.data).name}: which method brings the loss to "
        f"{settings.target:g} first?",
        fontsize=16,
        fontweight="bold",
    )
    figure.supxlabel(
        f"{settings.backend} {settings.holds}, {settings.batch_size} examples a step, each method "
        "at the best learning rate of its grid, all from the same start on the same batches;\n"
        "the clock runs during training steps only",
        fontsize=10,
        color="0.3",
    )
    figure.savefig(path, format="png", dpi=110)


def _panel(
    axes: Any,
    methods: dict[str, Tuned],
    looks: dict[str, Look],
    target: float,
    *,
    seconds: bool,
    beside: bool,
) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(0, 0)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    axes.axhline(target, color="0.3", linewidth=1, zorder=1)
    for method, tuned in methods.items():
        run, look = tuned.best, looks[method]
        x = run.seconds if seconds else run.steps
        index = run.reached(target)
        if index is None:
            arrival = "diverges" if run.diverged else "not reached"
        else:
            arrival = f"{x[index]:.2f} s" if seconds else f"{x[index]} steps"
            axes.plot(x[index], run.losses[index], "o", color=look.color, markersize=9, zorder=3)
        label = f"{METHODS[method].title}: {arrival}"
        axes.plot(x, run.losses, label=label, linewidth=2.4, zorder=2, **look._asdict())
    axes.set_xlim(left=0)
    axes.legend(
        loc="upper left" if beside else "upper right",
        bbox_to_anchor=(1, 1) if beside else None,
        title=f"reaches {target:g} (the dot) after",
        title_fontsize=12,
        fontsize=12,
        alignment="left",
        framealpha=0.85,
        edgecolor="none",
        handlelength=3,
    )
    axes.annotate(
        f"target {target:g}",
        (1, target),
        (0, -4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="top",
        color="0.3",
    )
