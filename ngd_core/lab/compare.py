"""`ngd compare`: every method at every learning rate of its grid, and the best of each."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from functools import partial
from pathlib import Path

import numpy as np
import threadpoolctl

from ngd_core import nn
from ngd_core.lab import picture, report, results
from ngd_core.lab.arrays import BACKENDS, Arrays
from ngd_core.lab.data import Data, load
from ngd_core.lab.errors import UserError
from ngd_core.lab.methods import METHODS
from ngd_core.lab.models import MODELS
from ngd_core.lab.progress import Watch, watching
from ngd_core.lab.settings import Settings
from ngd_core.lab.train import Problem, trainer

__all__ = ["compare", "problem"]


def compare(settings: Settings, *, overwrite: bool = False) -> results.Comparison:
    """Train every model with every method, show the best of each, and write it down.

    Parameters
    ----------
    settings : Settings
        What to do.
    overwrite : bool
        Whether results in the folder may be replaced.

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
    arrays = BACKENDS[settings.backend]()
    data = load(settings.data, settings.limit)
    problems = {name: problem(name, data, arrays, settings) for name in settings.models}
    results.claim(folder, overwrite=overwrite)
    console = report.console()
    runs = len(problems) * sum(len(settings.grids[name]) for name in settings.methods)
    versions = {"python": platform.python_version()} | {
        package: importlib.metadata.version(package)
        for package in dict.fromkeys(("ngd-core", "numpy", settings.backend))
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
                method: _grid(name, method, task, arrays, settings, watch)
                for method in settings.methods
            }
            for name, task in problems.items()
        }
    comparison = results.Comparison(settings, versions, sizes, parameters, tuned)
    results.write_json(folder / results.RESULTS, results.as_json(comparison))
    results.write(folder / results.PICTURE, lambda path: picture.draw(comparison, path))
    report.closing(console, comparison)
    return comparison


def problem(name: str, data: Data, arrays: Arrays, settings: Settings) -> Problem:
    """Network, initial values, batches and noise, all drawn by NumPy from the seed.

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
        The same for every method and every library.

    Raises
    ------
    UserError
        If the model cannot take the data, or a batch is larger than the training set.
    """
    n, batch, steps = len(data.y_train), settings.batch_size, settings.steps
    if batch > n:
        msg = f"--batch-size {batch} is more than the {n} training examples; give at most {n}"
        raise UserError(msg)
    model = MODELS[name].build(data.x_train.shape[1:], data.classes)
    initial, order, noise = (
        np.random.default_rng(seed) for seed in np.random.SeedSequence(settings.seed).spawn(3)
    )
    uniforms = {
        key: arrays.array(initial.random(shape, dtype=np.float32))
        for key, shape in nn.shapes(model).items()
    }
    epochs = [order.permutation(n) for _ in range(math.ceil(steps * batch / n))]
    return Problem(
        model=model,
        params=nn.init(model, uniforms),
        train=(arrays.array(data.x_train), arrays.array(data.y_train)),
        test=(arrays.array(data.x_test), arrays.array(data.y_test)),
        order=np.concatenate(epochs)[: steps * batch].reshape(steps, batch).astype(np.int32),
        noise=noise.random((steps, batch), dtype=np.float32),
        evaluate_every=settings.evaluate_every,
    )


def _grid(
    model: str, method: str, task: Problem, arrays: Arrays, settings: Settings, watch: Watch
) -> results.Tuned:
    entry = METHODS[method]
    train = trainer(task, entry, settings.damping.get(method), arrays)
    runs = []
    for rate in settings.grids[method]:
        name = f"{model} {entry.title} lr {rate:g}"
        run = train(rate, partial(watch.at, name))
        watch.end(f"{name}: {report.outcome(run, settings.target)}")
        runs.append(run)
    return results.tune(runs, settings.target)
