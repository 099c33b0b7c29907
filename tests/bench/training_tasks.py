"""What is trained in `bench_training`: data, a network, a loss, and the batches of a seed."""

import ast
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch_contender import Transformer, cnn, resnet

__all__ = ["TASKS", "Task", "batches"]

FULL = (1000, 500, 250, 30)
"""Units from pixels to code of the deep autoencoder."""
SMALL = (200, 100, 50, 12)
"""The same for pictures of 8 x 8."""
INCOMING = 15
"""Weights other than zero of a unit at the start (Martens 2010)."""
CHARACTERS, LENGTH, PIECES = 64, 32, 4_480


@dataclass(frozen=True)
class Task:
    """One problem.

    `rows` are the training examples (inputs and targets), `shown` those whose loss is recorded.
    """

    about: str
    make: Callable[[], nn.Module]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    rows: tuple[torch.Tensor, torch.Tensor]
    shown: tuple[torch.Tensor, torch.Tensor]
    batch: int
    options: dict[str, Any]
    short: int
    """Steps of a run that tunes."""
    horizon: int
    """Steps of a run that counts."""
    every: int
    """Steps between two looks at the loss."""
    targets: tuple[float, ...]
    deep: bool = False
    """Whether it is the transformer or the ResNet, which have grids of their own."""
    longer: int = 1
    """How many times the steps of others SGD and AdamW have, to tune and to count."""


def batches(task, seed):
    """Batches of reshuffled epochs, each with whether it is the last of its epoch."""
    stream = torch.Generator().manual_seed(seed)
    count = len(task.rows[0]) // task.batch
    while True:
        order = torch.randperm(len(task.rows[0]), generator=stream)
        for k in range(count):
            chosen = order[k * task.batch : (k + 1) * task.batch]
            yield task.rows[0][chosen], task.rows[1][chosen], k == count - 1


def bernoulli(logits, pixels):
    """Cross-entropy in nats summed over pixels, mean over examples."""
    summed = functional.binary_cross_entropy_with_logits(logits, pixels, reduction="sum")
    return summed / len(logits)


def categorical(logits, labels):
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def sparse(layer):
    """`INCOMING` standard normal weights a unit, all others and the biases zero."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        for row in layer.weight:
            chosen = torch.randperm(len(row))[:INCOMING]
            row[chosen] = torch.randn(len(chosen))


def autoencoder(pixels, hidden):
    """Sigmoid units, a linear code, logits of the pixels."""
    sizes = (pixels, *hidden, *hidden[-2::-1], pixels)
    layers = []
    for k, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        sparse(layers[-1])
        if k not in (len(hidden) - 1, len(sizes) - 2):
            layers.append(nn.Sigmoid())
    return nn.Sequential(*layers)


@cache
def pictures(source):
    """Pictures in [0, 1], shape (N, height, width), and labels."""
    if source == "digits":
        digits = load_digits()
        x, y = digits.images / 16, digits.target
    else:
        with np.load(source) as stored:
            x, y = stored["x_train"] / 255, stored["y_train"]
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))


def autoencoding(source):
    pixels = pictures(source)[0].flatten(1)
    small = source == "digits"
    hidden = SMALL if small else FULL
    names = "-".join(str(n) for n in (pixels.shape[1], *hidden))
    shown = pixels if small else pixels[:512]
    return Task(
        about=f"autoencoder {names} and back, sigmoid units, linear code, {len(pixels)} pictures",
        make=partial(autoencoder, pixels.shape[1], hidden),
        loss=bernoulli,
        rows=(pixels, pixels),
        shown=(shown, shown),
        batch=256 if small else 512,
        options={"likelihood": "bernoulli"},
        short=100 if small else 30,
        horizon=300 if small else 100,
        every=5,
        targets=(22.0, 20.0, 18.0, 16.0) if small else (130.0, 106.0, 90.0, 80.0),
        longer=4 if small else 3,
    )


def standardised(source, limit):
    x, y = (part[:limit] for part in pictures(source))
    return ((x - x.mean()) / x.std())[:, None], y


def classifying(source):
    x, y = standardised(source, 12_800)
    return Task(
        about=f"CNN, 3x3 convolutions 16-32-64, {len(x)} pictures of {x.shape[2]} x {x.shape[3]}",
        make=cnn,
        loss=categorical,
        rows=(x, y),
        shown=(x[:1280], y[:1280]),
        batch=128,
        options={},
        short=40,
        horizon=200,
        every=5,
        targets=(1.0, 0.3, 0.1, 0.05),
        longer=3,
    )


def residual(source):
    x, y = standardised(source, 5120)
    if x.shape[-1] > 16:
        x = functional.avg_pool2d(x, 2)
    x = x.expand(-1, 3, -1, -1)
    return Task(
        about=f"ResNet-18 of width 16, {len(x)} pictures of 3 x {x.shape[2]} x {x.shape[3]}",
        make=resnet,
        loss=categorical,
        rows=(x, y),
        shown=(x[:320], y[:320]),
        batch=64,
        options={},
        short=30,
        horizon=120,
        every=5,
        targets=(0.5, 0.2, 0.1, 0.05),
        deep=True,
        longer=2,
    )


@cache
def corpus(limit=2_000_000):
    """Documentation texts of NumPy's and PyTorch's sources, in the order of their paths."""
    found, size = [], 0
    for package in (np, torch):
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
            for node in ast.walk(tree):
                kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
                text = ast.get_docstring(node) if isinstance(node, kinds) else None
                if text:
                    found.append(text)
                    size += len(text)
            if size > limit:
                break
        if size > limit:
            break
    return "\n".join(found)[:limit]


def characters():
    text = corpus()
    common = [c for c, _ in sorted(Counter(text).items(), key=lambda kv: (-kv[1], kv[0]))]
    number = {c: k for k, c in enumerate(common[: CHARACTERS - 1])}
    coded = torch.tensor([number.get(c, CHARACTERS - 1) for c in text])
    whole = coded[: len(coded) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    whole = whole[:: len(whole) // PIECES][:PIECES]
    x, y = whole[:, :-1], whole[:, 1:]
    shown = slice(None, None, PIECES // 128)
    return Task(
        about=f"two-layer transformer, d {128}, {len(whole)} pieces of {LENGTH} characters",
        make=Transformer,
        loss=categorical,
        rows=(x, y),
        shown=(x[shown], y[shown]),
        batch=32,
        options={"examples": "positions", "class_axis": -1},
        short=60,
        horizon=300,
        every=10,
        targets=(2.5, 2.2, 2.0, 1.8),
        deep=True,
        longer=2,
    )


TASKS = {
    "digits-autoencoder": lambda _: autoencoding("digits"),
    "cnn": classifying,
    "autoencoder": autoencoding,
    "transformer": lambda _: characters(),
    "resnet": residual,
}
"""Tasks by name, made from the data source: "digits" or the path of an .npz file."""
