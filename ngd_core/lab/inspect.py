"""`ngd inspect`: the Fisher information of a model on some examples, as tables and as a page."""

from __future__ import annotations

import copy
import importlib.metadata
import platform
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ngd_core.analysis import LIMIT
from ngd_core.lab import inspection, report, results, weights
from ngd_core.lab.arrays import BACKENDS
from ngd_core.lab.compare import network
from ngd_core.lab.data import Data, load
from ngd_core.lab.errors import UserError
from ngd_core.lab.inspection import About, Inspection
from ngd_core.lab.models import MODELS
from ngd_core.lab.page import covered, page, share
from ngd_core.lab.subject import Subject, of_network
from ngd_core.lab.svg import number

__all__ = ["NUMBERS", "PAGE", "Inspect", "command", "inspect", "subject"]

NUMBERS, PAGE = "inspect.json", "index.html"
NAME_WIDTH = 22
"""Least width for long names of layers, in characters."""


@dataclass(frozen=True)
class Inspect:
    """What `ngd inspect` was asked for, every default filled in.

    Parameters
    ----------
    model : str
        A key of `models.MODELS`.
    data : str
        "digits" or the path of an .npz file.
    weights : str or None
        Path of a safetensors file; None for initial values.
    backend : str
        "numpy" or "torch".
    examples : int
        Of the training set, the first so many.
    damping : float
        Added to the Fisher.
    seed : int
        Of initial values.
    threads : int
        Of linear algebra.
    out : str
        Folder for inspect.json and index.html.
    """

    model: str
    data: str
    weights: str | None
    backend: str
    examples: int
    damping: float
    seed: int
    threads: int
    out: str


def command(settings: Inspect) -> str:
    """Shell command that repeats an inspection, no default left open."""
    words = ["ngd", "inspect", "--model", settings.model, "--data", settings.data]
    if settings.weights is not None:
        words += ["--weights", settings.weights]
    words += ["--backend", settings.backend, "--examples", str(settings.examples)]
    words += ["--damping", repr(settings.damping), "--seed", str(settings.seed)]
    words += ["--threads", str(settings.threads), "--out", settings.out, "--overwrite"]
    return shlex.join(words)


def inspect(settings: Inspect, *, overwrite: bool = False) -> Inspection:
    """Look at a model, show tables, and write the numbers and the page.

    Parameters
    ----------
    settings : Inspect
        What to do.
    overwrite : bool
        Whether results in the folder may be replaced.

    Returns
    -------
    Inspection
        What was seen; inspect.json and index.html in ``settings.out`` are made of it.

    Raises
    ------
    UserError
        If the model, the data, the weights or the folder cannot be used as asked.
    """
    data = load(settings.data)
    packages = dict.fromkeys(("ngd-core", "numpy", settings.backend))
    with np.errstate(all="ignore"), threadpoolctl.threadpool_limits(settings.threads):
        made = subject(settings, data)
        about = About(
            command(settings),
            settings.model,
            MODELS[settings.model].title,
            MODELS[settings.model].note,
            settings.data,
            settings.backend,
            settings.weights,
            settings.seed,
            settings.examples,
            data.classes,
            settings.damping,
            {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in packages},
        )
        folder = Path(settings.out)
        results.claim(folder, overwrite=overwrite, name=NUMBERS, what="inspection")
        console = report.console()
        with console.status("Fisher information, spectra, agreement"):
            found = inspection.look(about, made)
    results.write_json(folder / NUMBERS, inspection.as_json(found))
    text = page(found)
    results.write(folder / PAGE, lambda part: part.write_text(text, encoding="utf-8"))
    _show(console, found, settings)
    return found


def subject(settings: Inspect, data: Data) -> Subject:
    """Make what is looked at: the model with its weights on the examples, in float64.

    Parameters
    ----------
    settings : Inspect
        What to do.
    data : Data
        Data set.

    Returns
    -------
    Subject
        For `inspection.look`.

    Raises
    ------
    UserError
        If the model cannot take the data, the weights are not of this model, there are not so many
        examples, or the loss on them is not finite.
    """
    model, examples, n = MODELS[settings.model], settings.examples, len(data.y_train)
    if model.build is None and settings.backend not in model.backends:
        msg = f"The model '{settings.model}' is a module; give --backend torch"
        raise UserError(msg)
    if examples > n:
        msg = f"--examples {examples} is more than the {n} training examples; give at most {n}"
        raise UserError(msg)
    if examples * data.classes > LIMIT:
        msg = (
            f"--examples {examples} of {data.classes} classes are {examples * data.classes} rows "
            f"of the exact Fisher; give at most {LIMIT // data.classes}, for {LIMIT} rows"
        )
        raise UserError(msg)
    arrays = BACKENDS[settings.backend]()
    net, params = network(settings.model, data, arrays, settings.backend, settings.seed)
    core = None if model.build is None else model.build(data.x_train.shape[1:], data.classes)
    values = params if settings.backend == "torch" else weights.named(net, params)
    if settings.weights is not None:
        shapes = {name: tuple(x.shape) for name, x in values.items()}
        values = weights.load(settings.weights, shapes, core)
    x, y = data.x_train[:examples].astype(np.float64), data.y_train[:examples]
    made = _made(settings, net, values, x, y)
    if not np.isfinite(made.loss):
        msg = (
            f"The loss on these examples is {made.loss}, not a finite number; give other --weights"
        )
        raise UserError(msg)
    return made


def _made(settings: Inspect, net: Any, values: Any, x: Any, y: Any) -> Subject:
    if settings.backend == "torch":
        import torch

        from ngd_core.lab import torch_inspect

        module = copy.deepcopy(net).double()
        if settings.weights is not None:
            torch_inspect.fill(module, values)
        return torch_inspect.of_module(module, torch.asarray(x), torch.asarray(y), settings.damping)
    blocks = weights.blocks(net, {name: v.astype(np.float64) for name, v in values.items()})
    return of_network(net, blocks, x, y, settings.damping)


def _show(shown: Console, found: Inspection, settings: Inspect) -> None:
    about = found.about
    source = f"seed {about.seed}" if about.weights is None else about.weights
    rows = {
        "model": f"{about.title}, {found.all.parameters:,} parameters, {source}",
        "data": f"{about.data}: the first {about.examples} training examples, mean loss "
        f"{number(found.loss)}, {100 * found.accuracy:.1f} % right",
        "Fisher": f"exact, of the mean loss, in float64; damping {about.damping:g}",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, words in rows.items():
        table.add_row(name, words)
    shown.print(table)
    shown.print()
    shown.print(_layers(found))
    shown.print(_methods(found))
    for title, beside in found.methods.items():
        if beside.refused is not None:
            shown.print(f"{title} is left out: {beside.refused}.", markup=False)
    folder = Path(settings.out)
    shown.print(f"Page: {folder / PAGE}", soft_wrap=True, markup=False)
    shown.print(f"Numbers: {folder / NUMBERS}", soft_wrap=True, markup=False)
    shown.print("Again:", about.command, soft_wrap=True, markup=False)


def _layers(found: Inspection) -> Table:
    heading = "Fisher information by layer"
    table = Table(title=heading, title_justify="left", box=SIMPLE, pad_edge=False)
    widest = max(map(len, found.layers))
    table.add_column("layer", overflow="fold", min_width=min(widest, NAME_WIDTH))
    for name in (
        "parameters",
        "information",
        "share",
        "least\nunit",
        "most\ninformed",
        "effective\ndimension",
        "largest\neigenvalue",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    total = found.all.information
    for name, layer in [*found.layers.items(), ("all", found.all)]:
        units = layer.units
        table.add_row(
            name,
            f"{layer.parameters:,}",
            number(layer.information),
            share(layer.information, total),
            number(min(units)) if units else "",
            number(max(units)) if units else "",
            number(layer.effective_dimension),
            number(layer.eigenvalues[0]),
        )
    return table


def _methods(found: Inspection) -> Table:
    heading = "Methods beside the exact natural gradient"
    table = Table(title=heading, title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in ("damping", "decrease", "cosine", "relative error"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("curvature for")
    for title, beside in found.methods.items():
        if beside.decrease is None or beside.cosine is None:
            continue
        exact = title in (inspection.EXACT, inspection.BLOCKS)
        table.add_row(
            title,
            "none" if beside.damping is None else f"{beside.damping:g}",
            f"{100 * beside.decrease:.1f} %",
            f"{beside.cosine:.3f}",
            "" if beside.relative_error is None else number(beside.relative_error),
            "" if exact else covered(beside, found.all.parameters),
        )
    table.caption = "decrease: share of the exact one's, at the best step size"
    table.caption_justify = "left"
    return table
