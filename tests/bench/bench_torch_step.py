"""What does a step cost, in steps of SGD? Each optimizer of ngd_torch on five networks.

One process a contender, all of them alive, blocks of steps in turn; CPU time of one thread. The
ratio of two blocks of one round is taken, then medians and quartiles over rounds. Writes
docs/benchmarks/torch-step.json and the tables made of it after each network; networks that are not
run again (NGD_MODELS chooses) keep their rows. Half an hour on a quiet machine.
"""

import json
import multiprocessing
import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.torch_contender import MISSING, MODELS, OPTIMIZERS, serve
from rich.console import Console

OUT = Path(__file__).parents[2] / "docs" / "benchmarks"
ROUNDS, BLOCK = int(os.environ.get("NGD_ROUNDS", 5)), int(os.environ.get("NGD_BLOCK", 100))
FIRST = next(iter(OPTIMIZERS))


def measured(model):
    """Facts, blocks and memory of every contender on one network."""
    context = multiprocessing.get_context("spawn")
    pipes, found = {}, {}
    for name in OPTIMIZERS:
        pipes[name], far = context.Pipe()
        context.Process(target=serve, args=(far, model, name), daemon=True).start()
        facts = pipes[name].recv()
        if fault := facts.pop("fault"):
            print(f"{name} is left out on the {model}: {fault}")
            del pipes[name]
        else:
            found[name] = {"facts": facts, "blocks": []}
    for _ in range(ROUNDS):
        for name, pipe in pipes.items():
            pipe.send(BLOCK // 5 if "every" in name else BLOCK)
            found[name]["blocks"].append(pipe.recv())
    for name, pipe in pipes.items():
        pipe.send(None)
        found[name].update(pipe.recv())
    return found


def summary(found):
    """Ratios to SGD of the same round."""
    base = np.asarray([block["cpu"] for block in found[FIRST]["blocks"]])
    usual = np.median([block["walls"] for block in found[FIRST]["blocks"]])
    rows = {}
    for name, one in found.items():
        ratios = np.asarray([block["cpu"] for block in one["blocks"]]) / base
        walls = np.concatenate([block["walls"] for block in one["blocks"]])
        rows[name] = {
            "ratio": [float(q) for q in np.quantile(ratios, [0.25, 0.5, 0.75])],
            "milliseconds": 1e3 * float(np.median(ratios) * np.median(base)),
            "slow_step": float(np.quantile(walls, 0.99) / usual),
            "memory": one["memory"] / found[FIRST]["memory"],
            "counted": one["counted"],
            "loss": one["blocks"][-1]["loss"],
            **one["facts"],
        }
    return rows


def cost(row):
    """Median and quartiles, and what the multiply-adds alone would make of it."""
    low, middle, high = row["ratio"]
    counted = f", {row['counted']:.2f}" if row["counted"] else ""
    return f"**{middle:.2f}** ({low:.2f} to {high:.2f}){counted}"


def rest(row):
    """Highest memory, and the 99th percentile of a step, both in those of SGD."""
    return f"{row['memory']:.2f}, {row['slow_step']:.1f}"


def table(results, cell):
    """Markdown, a row a contender and a column a network."""
    lines = ["| | " + " | ".join(results) + " |", "| --- " * (len(results) + 1) + "|"]
    for name in OPTIMIZERS:
        cells = (cell(rows[name]) if name in rows else "cannot" for rows in results.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_steps():
    chosen = os.environ.get("NGD_MODELS")
    models = [m for m in MODELS if chosen is None or m.startswith(tuple(chosen.split(",")))]
    about = {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread used",
        "rounds": ROUNDS,
        "block": BLOCK,
        "missing": MISSING,
    }
    file = OUT / "torch-step.json"
    found = json.loads(file.read_text()) if file.exists() else {"about": {}, "results": {}}
    for name in MISSING:
        print(f"{name} is left out: its package is not installed (group peers)")
    OUT.mkdir(exist_ok=True)
    for model in models:
        found["about"][model] = about | {"load": os.getloadavg()[0]}
        found["results"][model] = summary(measured(model))
        results = {name: found["results"][name] for name in MODELS if name in found["results"]}
        file.write_text(json.dumps(found, indent=1) + "\n")
        (OUT / "torch-step.md").write_text(table(results, cost))
        (OUT / "torch-step-rest.md").write_text(table(results, rest))
    Console().print(table(results, cost), table(results, rest))
    for model in models:
        for name, row in results[model].items():
            if not np.isfinite(row["loss"]):
                pytest.fail(f"{name} on the {model}: the loss is {row['loss']}")
