"""How do time and memory of a step grow? Each optimizer of ngd_torch along five axes.

CPU time of one thread that a step takes beyond the network's own passes, against the size, and the
multiply-adds that `report` counts for it; both fitted by a line in log-log. Bytes that the C
library hands out for the optimizer's state stand beside those that `report` tells. Writes
docs/benchmarks/growth.json, and the tables and the picture made of it. Minutes.
"""

import ctypes
import gc
import json
import os
import platform
import time
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import ngd_torch
import numpy as np
import pytest
import torch
from bench_torch_memory import allocated
from rich.console import Console
from torch import nn
from torch.nn import functional
from torch_contender import Transformer

mpl.use("Agg")
from matplotlib import pyplot as plt

OUT = Path(__file__).parents[2] / "docs" / "benchmarks"
CYCLE, BLOCKS = 10, 3
OFTEN = {"factor_every": 5, "inverse_every": CYCLE}
METHODS = {
    "K-FAC": lambda m, **o: ngd_torch.KFAC(m, 1e-4, **OFTEN, **o),
    "EKFAC": lambda m, **o: ngd_torch.EKFAC(m, 1e-4, **OFTEN, **o),
    "projective K-FAC": lambda m, **o: ngd_torch.ProjectiveKFAC(m, 1e-4, **OFTEN, **o),
    "SNGD": lambda m, **o: ngd_torch.SNGD(m, 1e-4, **OFTEN, **o),
    "FNGD, later epochs": lambda m, **_: ngd_torch.FNGD(m, 1e-4, batch_size=m.examples),
    "SOFIM": lambda m, **_: ngd_torch.SOFIM(m, 1e-4, rho=1.0),
}


def mlp(width=256, depth=2, batch=128):
    sizes = (width,) * (depth + 1)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(batch, width), (batch,), 10


def cnn(side):
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    return network, torch.randn(16, 3, side, side), (16,), 10


def transformer(length):
    network = Transformer(size=32, features=64, length=length)
    return network, torch.randint(0, 32, (8, length)), (8, length), 32


AXES = {
    "width": (lambda n: mlp(width=n), (128, 256, 512, 1024)),
    "depth": (lambda n: mlp(depth=n), (2, 4, 8, 16)),
    "batch": (lambda n: mlp(batch=n), (64, 256, 1024, 4096)),
    "sequence length": (transformer, (16, 32, 64, 128)),
    "side of the image": (cnn, (8, 16, 32, 64)),
}


def own_passes(network, x, y):
    network.zero_grad()
    functional.cross_entropy(network(x).flatten(0, -2), y.flatten()).backward()


def cpu_time(step):
    """Seconds a step: the fastest of blocks of a whole cycle."""
    blocks = []
    for _ in range(BLOCKS):
        start = time.process_time()
        for _ in range(CYCLE):
            step()
        blocks.append((time.process_time() - start) / CYCLE)
    return min(blocks)


def held():
    """Bytes handed out by the C library, what it merely keeps given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return allocated()


def point(make, size, method):
    """Seconds beyond the network's own, multiply-adds, and bytes of the state, at one size."""
    torch.manual_seed(0)
    network, x, labels, classes = make(size)
    y = torch.randint(0, classes, labels)
    network.examples = len(x)
    own_passes(network, x, y)
    options = {"examples": "positions", "class_axis": -1} if y.ndim > 1 else {}

    def begun():
        optimizer = METHODS[method](network, **options)
        for k in range(3):
            own_passes(network, x, y)
            optimizer.step()
            if k == 1 and isinstance(optimizer, ngd_torch.FNGD):
                optimizer.epoch_end()
        return optimizer

    getattr(begun(), "close", bool)()  # what libraries make at their first use of a size, and keep
    before = held()
    optimizer = begun()
    kept = held() - before

    def step():
        own_passes(network, x, y)
        optimizer.step()

    whole = cpu_time(step)
    alone = cpu_time(lambda: own_passes(network, x, y))
    told = optimizer.report() if hasattr(optimizer, "report") else None  # SOFIM has no layers
    return {
        "size": size,
        "seconds": whole - alone,
        "own": alone,
        "multiply_adds": told.cost()[0] if told else 0,
        "bytes": kept,
        "told": told.bytes if told else None,
    }


def exponent(points, key):
    """Slope in log-log by least squares; None where something is not positive."""
    values = np.asarray([p[key] for p in points], dtype=float)
    if not (values > 0).all():
        return None
    return float(np.polyfit(np.log([p["size"] for p in points]), np.log(values), 1)[0])


def growth_table(results):
    """Markdown: exponents of the time, and of the multiply-adds."""
    lines = ["| | " + " | ".join(results) + " |", "| --- " * (len(results) + 1) + "|"]
    for method in METHODS:
        cells = []
        for axis in results:
            found = [exponent(results[axis][method], key) for key in ("seconds", "multiply_adds")]
            cells.append(", ".join("-" if e is None else f"{e:.2f}" for e in found))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def by_told(point):
    """Bytes of the state as measured, by those that `report` tells."""
    return point["bytes"] / point["told"] if point["told"] else 1.0


def memory_table(results):
    """Markdown: bytes of the state as measured, by those that `report` tells: the range."""
    lines = ["| | " + " | ".join(results) + " |", "| --- " * (len(results) + 1) + "|"]
    for method in METHODS:
        if method == "SOFIM":
            continue
        ratios = [[by_told(p) for p in results[axis][method]] for axis in results]
        cells = (f"{min(r):.2f} to {max(r):.2f}" for r in ratios)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(results, path):
    """Milliseconds against size, an axis a panel, one scale for all."""
    shape = {"figsize": (14, 3.4), "sharey": True, "squeeze": False}
    figure, (panels,) = plt.subplots(1, len(results), **shape)
    for panel, (axis, rows) in zip(panels, results.items(), strict=True):
        for method, points in rows.items():
            sizes = [p["size"] for p in points]
            panel.loglog(sizes, [1e3 * max(p["seconds"], 1e-6) for p in points], ".-", label=method)
        panel.loglog(sizes, [1e3 * p["own"] for p in points], "k--", label="the network's own")
        panel.set_xticks(sizes, [str(n) for n in sizes], minor=False)
        panel.minorticks_off()
        panel.set_xlabel(axis)
    panels[0].set_ylabel("milliseconds a step")
    names = panels[0].get_legend_handles_labels()
    figure.legend(*names, loc="upper center", ncols=6, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.9))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def test_growth():
    torch.set_num_threads(1)
    chosen = os.environ.get("NGD_AXES")
    axes = [name for name in AXES if chosen is None or name in chosen.split(",")]
    about = {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread used",
        "schedule": OFTEN,
    }
    OUT.mkdir(exist_ok=True)
    results = {}
    for axis in axes:
        make, sizes = AXES[axis]
        results[axis] = {m: [point(make, size, m) for size in sizes] for m in METHODS}
        text = json.dumps({"about": about, "results": results}, indent=1)
        (OUT / "growth.json").write_text(text + "\n")
    tables = growth_table(results), memory_table(results)
    for name, table in zip(("growth", "growth-memory"), tables, strict=True):
        (OUT / f"{name}.md").write_text(table)
        Console(width=120).print(table)
    picture(results, OUT / "growth.png")
    off = {
        (axis, method, p["size"]): round(by_told(p), 2)
        for axis, rows in results.items()
        for method, points in rows.items()
        for p in points
        if not 0.9 < by_told(p) < 1.1
    }
    if off:
        pytest.fail(f"report() tells bytes that are off by more than a tenth: {off}")
