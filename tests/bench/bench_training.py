"""Does it train faster? Every contender on every task, tuned with as many runs.

Each setting of a contender's grid runs once for few steps; the one with the lowest loss then runs
to the horizon with three seeds. One thread, CPU seconds of the steps alone. What a run found goes
to docs/benchmarks/training-TASK.json at once, and what is there is not run again.

NGD_DATA=FILE.npz gives pictures (otherwise scikit-learn's digits), NGD_TASKS=cnn,resnet some of
the tasks, NGD_SEEDS the repeats. Two hours of a quiet core.
"""

import json
import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from training_contender import CONTENDERS, run
from training_tables import draw, rivals, table
from training_tasks import TASKS

OUT = Path(__file__).parents[2] / "docs" / "benchmarks"
SEEDS = int(os.environ.get("NGD_SEEDS", 3))
DATA = os.environ.get("NGD_DATA", "digits")
CHOSEN = os.environ.get("NGD_TASKS", ",".join(TASKS)).split(",")


def stored(path, about):
    """What is in the file, if it is of the same task."""
    if not path.exists():
        return {"about": about, "tuning": [], "runs": []}
    found = json.loads(path.read_text())
    same = ("task", "short", "horizon", "batch")
    if [found["about"][key] for key in same] != [about[key] for key in same]:
        pytest.fail(f"{path} is of another task or horizon; move it away.")
    return {**found, "about": about}


def written(path, found):
    """One run a line, so that a change of one shows as one."""
    lines = [f' "about": {json.dumps(found["about"])}']
    for part in ("tuning", "runs"):
        rows = ",\n".join(f"  {json.dumps(row)}" for row in found[part])
        lines.append(f' "{part}": [\n{rows}\n ]')
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def score(one):
    """Mean of the last two losses of a run that tunes; infinite if it broke off."""
    value = float(np.mean(one["losses"][-2:]))
    return value if np.isfinite(value) and one["steps"][-1] == one["asked"] else np.inf


def settled(found, name, task, settings, seed, steps, part):
    """A run, made now unless it is stored."""
    row = {"contender": name, "settings": settings, "seed": seed, "asked": steps}
    for one in found[part]:
        if all(one[key] == value for key, value in row.items()):
            return one, False
    one = {**row, **run(CONTENDERS[name], task, settings, seed, steps)}
    found[part].append(one)
    return one, True


def trained(name, source, path, say):
    """Tune all, then run all with the first seed, all with the second, and so on."""
    task = TASKS[name](source)
    about = {
        "task": task.about,
        "data": Path(source).name,
        "batch": task.batch,
        "short": task.short,
        "horizon": task.horizon,
        "targets": list(task.targets),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, one thread of a shared machine, CPU seconds",
        "missing": [n for n, c in CONTENDERS.items() if c.needs is None],
    }
    found = stored(path, about)
    for contender in about["missing"]:
        say(f"{contender} is left out: its package is not installed")
    here = {
        n: c
        for n, c in CONTENDERS.items()
        if c.needs is not None and (c.only is None or name in c.only) and c.settings(task)
    }
    best = {}
    for contender, one in here.items():
        tried, times = [], task.longer if one.first_order else 1
        for settings in one.settings(task):
            row, new = settled(found, contender, task, settings, 0, times * task.short, "tuning")
            tried.append((score(row), settings))
            if new:
                written(path, found)
                say(f"{name}: {contender} {settings} {tried[-1][0]:.4g} {row['seconds'][-1]:.1f} s")
        best[contender] = min(tried, key=lambda pair: pair[0])[1]
    steps = {n: task.horizon * (task.longer if c.first_order else 1) for n, c in here.items()}
    found["runs"] = [
        row
        for row in found["runs"]
        if row["contender"] not in best
        or (row["settings"], row["asked"]) == (best[row["contender"]], steps[row["contender"]])
    ]
    for seed in range(1, SEEDS + 1):
        for contender in here:
            settings, count = best[contender], steps[contender]
            row, new = settled(found, contender, task, settings, seed, count, "runs")
            if new:
                written(path, found)
                say(
                    f"{name}: {contender} {seed} {row['losses'][-1]:.4g} {row['seconds'][-1]:.1f} s"
                )
    return found


@pytest.mark.parametrize("name", CHOSEN)
def test_training(name):
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # the plateau's tiny gradients take twice as long otherwise
    OUT.mkdir(exist_ok=True)
    console = Console(width=120)
    say = console.print if os.environ.get("NGD_QUIET") is None else lambda _: None
    if name == "autoencoder" and DATA == "digits":
        say("autoencoder: without NGD_DATA it would be digits-autoencoder once more")
        return
    found = trained(name, DATA, OUT / f"training-{name}.json", say)
    (OUT / f"training-{name}.md").write_text(table(found) + "\n" + rivals(found))
    draw(found, OUT / f"training-{name}.png")
    console.print(table(found))
    finals = {row["contender"]: row["losses"][-1] for row in found["runs"]}
    assert np.isfinite(list(finals.values())).any(), finals
