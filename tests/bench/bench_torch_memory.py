"""Does memory grow over 20,000 steps? Each optimizer of ngd_torch on a small network.

Prints, and writes to demo/torch-memory.json with a picture beside it, the process' resident set and
what the C allocator has handed out, from 2,000 steps on. Batches are noise; a tenth of them is
not finite, and their steps are left out. Minutes.
"""

import ctypes
import gc
import json
from pathlib import Path

import matplotlib as mpl
import ngd_torch
import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional

import ngd_core

STEPS, EVERY, WARM, BATCH = 20_000, 500, 2_000, 8
OUT = Path(__file__).parents[2] / "demo"
OFTEN = {"factor_every": 5, "inverse_every": 20}
MAKERS = {
    "KFAC": lambda m: ngd_torch.KFAC(m, 0.01, **OFTEN),
    "EKFAC": lambda m: ngd_torch.EKFAC(m, 0.01, **OFTEN),
    "SNGD": lambda m: ngd_torch.SNGD(m, 0.01, **OFTEN),
    "FNGD": lambda m: ngd_torch.FNGD(m, 0.01, batch_size=BATCH),
    "ProjectiveKFAC": lambda m: ngd_torch.ProjectiveKFAC(m, 0.01, **OFTEN),
    "SOFIM": lambda m: ngd_torch.SOFIM(m, 0.01, rho=1.0),
    "Preconditioner": lambda m: ngd_torch.Preconditioner(m, ngd_core.KFAC(), **OFTEN),
}


FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd")
FIELDS += ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Info(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def allocated():
    """Bytes that the C library has handed out, mapped regions included; 0 where it cannot tell."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    mallinfo.restype = _Info
    info = mallinfo()
    return info.uordblks + info.hblkhd


def resident():
    """Resident set of this process in bytes; 0 where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * 4096


def run(name):
    """Samples ``(step, resident, allocated)``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    optimizer, samples = MAKERS[name](model), []
    for k in range(1, STEPS + 1):
        x = torch.randn(BATCH, 1, 6, 6)
        if k % 10 == 0:
            x[0] = float("nan")
        model.zero_grad()
        functional.cross_entropy(model(x), torch.randint(0, 10, (BATCH,))).backward()
        optimizer.step()
        if k % EVERY == 0:
            gc.collect()
            samples.append((k, resident(), allocated()))
    growth = [(samples[-1][k] - samples[WARM // EVERY - 1][k]) / 2**10 for k in (1, 2)]
    print(f"{name}: resident {growth[0]:+.0f} KiB, allocated {growth[1]:+.0f} KiB", flush=True)
    return samples


@pytest.mark.filterwarnings("ignore")
def test_memory():
    torch.set_num_threads(1)
    samples = {name: run(name) for name in MAKERS}
    OUT.mkdir(exist_ok=True)
    (OUT / "torch-memory.json").write_text(json.dumps(samples))
    table = Table("optimizer", "resident MiB", "growth KiB", "allocated MiB", "growth KiB")
    table.title = f"from step {WARM:,} to {STEPS:,}"
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name, rows in samples.items():
        warm = [row for row in rows if row[0] >= WARM]
        cells = [name]
        for column in (1, 2):
            first, last = warm[0][column], warm[-1][column]
            cells += [f"{last / 2**20:.1f}", f"{(last - first) / 2**10:+.0f}"]
        table.add_row(*cells)
        axes.plot(
            [row[0] for row in rows], [(row[1] - warm[0][1]) / 2**20 for row in rows], label=name
        )
    axes.set(xlabel="step", ylabel=f"resident set, MiB above step {WARM:,}")
    axes.legend()
    figure.savefig(OUT / "torch-memory.png", dpi=150)
    Console(width=100).print(table)
    for name, rows in samples.items():
        warm = [row for row in rows if row[0] >= WARM]
        assert warm[-1][2] - warm[0][2] < 2**18, name
        assert warm[-1][1] - warm[0][1] < 2**21, name
