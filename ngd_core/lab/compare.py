"""`ngd compare`: every method at every learning rate of its grid, and the best of each."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import threadpoolctl

from ngd_core import nn
from ngd_core.lab import picture, report, results, train, weights
from ngd_core.lab.arrays import BACKENDS, Arrays
from ngd_core.lab.data import Data, load
from ngd_core.lab.errors import UserError, need
from ngd_core.lab.methods import METHODS
from ngd_core.lab.models import MODELS
from ngd_core.lab.progress import Watch, watching
from ngd_core.lab.settings import MODULES, Settings
from ngd_core.lab.train import Coverage, Params, Problem, Run

__all__ = ["compare", "network", "problem"]

T = TypeVar("T")
PACKAGES = {"jax": ("jax", "equinox", "flax")}
"""Packages of a backend, where it is not one of its own name."""

EARLY = 5
"""Steps before the first comparison with the exact natural gradient."""


def compare(
    settings: Settings, *, overwrite: bool = False, save: bool = False
) -> results.Comparison:
    """Train every model with every method, show the best of each, and write it down.

    Parameters
    ----------
    settings : Settings
        What to do.
    overwrite : bool
        Whether results in the folder may be replaced.
    save : bool
        Whether the weights that each method's best run ends with are written to the folder too.

    Returns
    -------
    Comparison
        What was seen; results.json and compare.png in ``settings.out`` are made of it.

    Raises
    ------
    UserError
        If the data, the library or the folder cannot be used as asked.
    """
    folder = Path(settings.out)
    kept: dict[str, dict[str, Any]] | None = None
    if save:
        _savable(settings)
        kept = {}
    arrays = BACKENDS[settings.backend]()
    data = load(settings.data, settings.limit)
    problems = {name: problem(name, data, arrays, settings) for name in settings.models}
    fits = {
        name: {method: _fit(task, method, arrays, settings) for method in settings.methods}
        for name, task in problems.items()
    }
    refused = {name: _only(str, fit) for name, fit in fits.items()}
    pairs = {name: _left(name, settings, refused[name]) for name in problems}
    results.claim(folder, overwrite=overwrite)
    console = report.console()
    runs = sum(len(settings.grids[method]) for methods in pairs.values() for method in methods)
    versions = {"python": platform.python_version()} | {
        package: importlib.metadata.version(package)
        for package in dict.fromkeys(
            ("ngd-core", "numpy", *PACKAGES.get(settings.backend, (settings.backend,)))
        )
    }
    parameters = {
        name: sum(math.prod(p.shape) for p in task.params.values())
        for name, task in problems.items()
    }
    sizes = {"train": len(data.y_train), "test": len(data.y_test), "classes": data.classes}
    report.opening(console, settings, versions, sizes, parameters)
    with (
        watching(console, runs, settings.steps) as watch,
        np.errstate(all="ignore"),
        threadpoolctl.threadpool_limits(settings.threads),
    ):
        tuned = {
            name: {
                method: _grid(name, method, task, arrays, settings, watch, kept)
                for method in pairs[name]
            }
            for name, task in problems.items()
        }
    coverage = {name: _only(Coverage, fit) for name, fit in fits.items()}
    comparison = results.Comparison(settings, versions, sizes, parameters, tuned, coverage, refused)
    results.write_json(folder / results.RESULTS, results.as_json(comparison))
    results.write(folder / results.PICTURE, lambda path: picture.draw(comparison, path))
    report.closing(console, comparison)
    for name, values in (kept or {}).items():
        path = folder / f"{name}{weights.SUFFIX}"
        weights.save(path, values, data=settings.data, run=name)
        console.print(f"Weights: {path}", soft_wrap=True, markup=False)
    return comparison


def problem(name: str, data: Data, arrays: Arrays, settings: Settings) -> Problem:
    """Network, initial values, batches and noise, from the seed.

    NumPy draws them all, but for the initial values of models that are modules only.

    Parameters
    ----------
    name : str
        A key of `models.MODELS`.
    data : Data
        Data set.
    arrays : Arrays
        Array library that is to hold it.
    settings : Settings
        Steps, batch size, seed and the like.

    Returns
    -------
    Problem
        The same for every method, and for every library that can hold the model.

    Raises
    ------
    UserError
        If the model cannot take the data or be had from the library, or a batch is larger than the
        training set.
    """
    n, batch, steps = len(data.y_train), settings.batch_size, settings.steps
    if batch > n:
        msg = f"--batch-size {batch} is more than the {n} training examples; give at most {n}"
        raise UserError(msg)
    order, noise = (
        np.random.default_rng(seed) for seed in np.random.SeedSequence(settings.seed).spawn(3)[1:]
    )
    model, params = network(name, data, arrays, settings.backend, settings.seed)
    epochs = [order.permutation(n) for _ in range(math.ceil(steps * batch / n))]
    return Problem(
        model=model,
        params=params,
        train=(arrays.array(data.x_train), arrays.array(data.y_train)),
        test=(arrays.array(data.x_test), arrays.array(data.y_test)),
        order=np.concatenate(epochs)[: steps * batch].reshape(steps, batch).astype(np.int32),
        noise=noise.random((steps, batch), dtype=np.float32),
        evaluate_every=settings.evaluate_every,
        probe=min(settings.probe, batch),
        seed=settings.seed,
    )


def network(name: str, data: Data, arrays: Arrays, backend: str, seed: int) -> tuple[Any, Params]:
    """Make a model and its initial values.

    Parameters
    ----------
    name : str
        A key of `models.MODELS`.
    data : Data
        Data set.
    arrays : Arrays
        Array library that is to hold it.
    backend : str
        Its name.
    seed : int
        Of the initial values.

    Returns
    -------
    tuple
        With PyTorch and JAX a module, otherwise a network of the core; and its values by name.

    Raises
    ------
    UserError
        If the model cannot take the data or be had from the library.
    """
    model, shape = MODELS[name], data.x_train.shape[1:]
    if model.build is None and backend not in model.backends:
        msg = (
            f"The model '{name}' is a module; give --backend {' or '.join(model.backends)}, or "
            "choose other --models"
        )
        raise UserError(msg)
    if model.build is not None:
        core = model.build(shape, data.classes)
        random = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
        uniforms = {
            key: random.random(shape, dtype=np.float32) for key, shape in nn.shapes(core).items()
        }
        params = {key: arrays.array(x) for key, x in nn.init(core, uniforms).items()}
        if backend not in MODULES:
            return core, params
    models = _models(backend)
    if model.build is None:
        module = models.fresh(name, shape, data.classes, seed)
    else:
        module = models.as_module(core, params)
    return module, models.parameters(module)


def _savable(settings: Settings) -> None:
    need("safetensors", "safetensors", "files")
    if settings.backend == "jax":
        msg = "--save writes the weights of numpy and torch alone; leave it out with --backend jax"
        raise UserError(msg)


def _models(backend: str) -> ModuleType:
    if backend == "jax":
        need("equinox", "Equinox", "lab-jax")
        need("flax", "Flax", "lab-jax")
        from ngd_core.lab import jax_models

        return jax_models
    from ngd_core.lab import torch_models

    return torch_models


def _train(backend: str) -> ModuleType:
    if backend == "jax":
        from ngd_core.lab import jax_train

        return jax_train
    from ngd_core.lab import torch_train

    return torch_train


def _grid(
    model: str,
    method: str,
    task: Problem,
    arrays: Arrays,
    settings: Settings,
    watch: Watch,
    kept: dict[str, dict[str, Any]] | None,
) -> results.Tuned:
    entry = METHODS[method]
    trainer = (_train(settings.backend) if settings.backend in MODULES else train).trainer
    ready = trainer(task, entry, settings.damping.get(method), arrays)
    runs = []
    for rate in settings.grids[method]:
        name = f"{model} {entry.title} lr {rate:g}"
        run = ready.run(rate, partial(watch.at, name))
        watch.end(f"{name}: {report.outcome(run, settings.target)}")
        runs.append(run)
    tuned = results.tune(runs, settings.target)
    if kept is not None and ready.weights is not None and not tuned.best.diverged:
        kept[f"{model}-{method}"] = ready.weights(tuned.best.rate)
    points = _points(tuned.best, settings.target)
    if not settings.probe or tuned.best.diverged:
        return tuned
    return tuned._replace(meetings=tuple(ready.meet(tuned.best.rate, points)))


def _fit(task: Problem, method: str, arrays: Arrays, settings: Settings) -> Coverage | str | None:
    """Tell what a method knows of a module, or in a sentence why it cannot train a model."""
    entry = METHODS[method]
    if settings.backend in MODULES:
        fit = _train(settings.backend).coverage(task, entry, settings.damping.get(method), arrays)
        return f"{entry.title} is left out: {fit}" if isinstance(fit, str) else fit
    if {spec.kind for spec in nn.specs(task.model)} <= set(entry.kinds):
        return None
    return f"{entry.title} does not take all layers of this model."


def _only(kind: type[T], fit: Mapping[str, Any]) -> dict[str, T]:
    return {method: found for method, found in fit.items() if isinstance(found, kind)}


def _left(name: str, settings: Settings, refused: Mapping[str, str]) -> list[str]:
    """Methods that train a model."""
    methods = [method for method in settings.methods if method not in refused]
    if not methods:
        msg = (
            f"None of these methods takes all layers of the model '{name}'; choose other --methods "
            "or --models"
        )
        raise UserError(msg)
    return methods


def _points(run: Run, target: float) -> list[int]:
    """Three points of a run: its beginning, the middle, and the target or the end."""
    index = run.reached(target)
    last = run.steps[-1 if index is None else index]
    return sorted({min(EARLY, last), max(last // 2, 1), max(last, 1)})
