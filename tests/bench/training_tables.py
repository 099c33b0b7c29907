"""Tables and pictures of `bench_training`, made of its JSON files.

``python tests/bench/training_tables.py FILE.json ...`` makes those of files that are there.
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

__all__ = ["draw", "reached", "rivals", "table"]

PEERS = {"SGD, Nesterov": "0.0", "AdamW": "0.5", "SOAP": "#D62728", "Shampoo": "#E79A9B"}
"""What others made is dashed."""
OURS = {
    "KFAC": "#0B4FA8",
    "EKFAC": "#1FA187",
    "ProjectiveKFAC": "#56B4E9",
    "SNGD": "#E69F00",
    "FNGD": "#8C564B",
    "SOFIM": "#B6A800",
    "KFAC, quadratic": "#7B2CBF",
    "KFAC, every step": "#F06EAA",
    "exact NGD": "#4A4A00",
    "KFAC, defaults": "#76C043",
    "KFAC, early": "#1B7F3B",
}
HEADROOM = 0.08
"""Share of the horizon at which the median of the curves is near the panels' upper end."""


def reached(run, target):
    """Steps and seconds of the first look at which the loss was at most the target, or None."""
    for k, loss in enumerate(run["losses"]):
        if loss <= target:
            return run["steps"][k], run["seconds"][k]
    return None


def by_contender(found):
    runs = {name: [] for name in (*PEERS, *OURS)}
    for run in found["runs"]:
        runs.setdefault(run["contender"], []).append(run)
    return {name: own for name, own in runs.items() if own}


def plain(settings):
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())


def at(runs, target):
    """Median steps and seconds over seeds; how many reached it, if not all did."""
    found = [reached(run, target) for run in runs]
    there = [pair for pair in found if pair]
    if 2 * len(there) <= len(runs):
        return "not reached" if not there else f"{len(there)} of {len(runs)}"
    steps, seconds = (np.median([pair[k] if pair else np.inf for pair in found]) for k in (0, 1))
    note = "" if len(there) == len(runs) else f" ({len(there)} of {len(runs)})"
    return f"{steps:g}, {seconds:.3g} s{note}"


def table(found):
    """Markdown: settings chosen, milliseconds a step, the way to each target, the last loss."""
    targets, horizon = found["about"]["targets"], found["about"]["horizon"]
    head = ["contender", "settings chosen", "ms a step"]
    head += [f"to {target:g}" for target in targets]
    head += [f"at step {horizon}", "lowest", "last"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name, runs in by_contender(found).items():
        cost = np.median([1e3 * run["seconds"][-1] / max(1, run["steps"][-1]) for run in runs])
        middle = [
            run["losses"][run["steps"].index(horizon)] if horizon in run["steps"] else np.inf
            for run in runs
        ]
        cells = [name, plain(runs[0]["settings"]), f"{cost:.3g}"]
        cells += [at(runs, target) for target in targets]
        cells.append(f"{np.median(middle):.3g}")
        cells.append(f"{np.median([np.nanmin(run['losses']) for run in runs]):.3g}")
        last = [run["losses"][-1] for run in runs]
        cells.append(
            f"{min(last):.3g} to {max(last):.3g}, step {max(run['steps'][-1] for run in runs)}"
        )
        lines.append("| " + " | ".join(cells) + " |")
    missing = found["about"]["missing"]
    note = f"\nLeft out, not installed: {', '.join(missing)}.\n" if missing else ""
    return "\n".join(lines) + "\n" + note


def middle(runs):
    """Steps, and over seeds the median seconds and the lowest, median and highest loss there."""
    count = min(len(run["steps"]) for run in runs)
    losses = np.asarray([run["losses"][:count] for run in runs])
    seconds = np.median([run["seconds"][:count] for run in runs], axis=0)
    return (
        np.asarray(runs[0]["steps"][:count]),
        seconds,
        losses.min(0),
        np.median(losses, 0),
        losses.max(0),
    )


def rivals(found):
    """Markdown: the way of each contender to where its rivals ended, beside the rivals' own.

    An end is the median over seeds of a run's last three looks; who broke off has none.
    """
    runs = by_contender(found)
    ends = {
        name: float(np.median([np.mean(run["losses"][-3:]) for run in runs[name]]))
        for name in PEERS
        if name in runs and all(run["steps"][-1] == run["asked"] for run in runs[name])
    }
    spent = {
        name: [np.median([run[key][-1] for run in runs[name]]) for key in ("steps", "seconds")]
        for name in ends
    }
    head = ["contender"] + [
        f"to {ends[name]:.3g}, the end of {name} ({spent[name][0]:g} steps, {spent[name][1]:.3g} s)"
        for name in ends
    ]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name, own in runs.items():
        cells = [name] + ["" if peer == name else at(own, ends[peer]) for peer in ends]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(found, path):
    """Loss over steps and over seconds: medians over seeds in a band from lowest to highest."""
    about = found["about"]
    curves = {name: middle(runs) for name, runs in by_contender(found).items()}
    horizon = about["horizon"]
    figure = Figure(figsize=(14, 6.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    ends = []
    for name, (steps, seconds, least, median, most) in curves.items():
        style = "--" if name in PEERS else "-"
        colour = PEERS.get(name) or OURS.get(name, "0.7")
        last = int(np.searchsorted(steps, horizon, side="right")) - 1
        ends.append(seconds[last])
        for axes, x in zip(panels, (steps, seconds), strict=True):
            axes.fill_between(x, least, most, color=colour, alpha=0.13, linewidth=0)
            axes.plot(x, median, style, color=colour, linewidth=2.2, label=name)
    tops = [
        median[np.searchsorted(steps, HEADROOM * horizon)]
        for steps, _, _, median, _ in curves.values()
        if steps[-1] >= HEADROOM * horizon
    ]
    top = 1.25 * float(np.median(tops))
    bottoms = [np.nanmin(median) for *_, median, _ in curves.values()]
    panels[0].set_yscale("log")
    low = max(0.95 * min(bottoms), 1e-4)
    panels[0].set_ylim(low, top)
    panels[0].set_xlim(0, horizon)
    panels[1].set_xlim(0, 1.25 * np.median(ends))
    panels[0].set_xlabel("training steps", fontsize=13)
    panels[1].set_xlabel("CPU seconds of one thread, training alone", fontsize=13)
    panels[0].set_ylabel("training loss of fixed examples (log scale)", fontsize=13)
    for axes in panels:
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if top < 12 * min(bottoms) else NullFormatter())
        axes.tick_params(labelsize=11, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.93", which="both")
        for target in (x for x in about["targets"] if low <= x <= top):
            axes.axhline(target, color="0.45", linewidth=0.8, zorder=0)
            axes.annotate(
                f"{target:g}",
                (1, target),
                (0, 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                color="0.35",
            )
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=7, fontsize=12, frameon=False)
    figure.suptitle(f"{about['task']}; batches of {about['batch']}", fontsize=14)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        source = Path(name)
        found = json.loads(source.read_text())
        source.with_suffix(".md").write_text(table(found) + "\n" + rivals(found))
        draw(found, source.with_suffix(".png"))
