"""Everything a comparison depends on, in one value, and the command line that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["MODULES", "Settings", "command"]

MODULES = ("torch", "jax")
"""Backends whose models are modules."""


@dataclass(frozen=True)
class Settings:
    """What `ngd compare` was asked for, every default filled in.

    Parameters
    ----------
    backend : str
        A key of `arrays.BACKENDS`.
    data : str
        "digits" or the path of an .npz file.
    models, methods : tuple of str
        Keys of `models.MODELS` and `methods.METHODS`.
    steps, batch_size : int
        Steps of each run, and examples a step.
    seed : int
        Of initial values, batch order and noise.
    evaluate_every : int
        Steps between two measurements of the training loss.
    target : float
        Training loss to reach.
    grids : mapping of str to tuple of float
        Learning rates tried, for each method.
    damping : mapping of str to float
        Damping, for each method that has one.
    out : str
        Folder for the results.
    probe : int
        Examples on which directions are compared with the exact natural gradient; 0 for none.
    limit : int, optional
        Largest number of training and of test examples.
    threads : int
        Threads of the libraries that NumPy and PyTorch compute with. Networks of this size gain
        little by a second one, and teams that wait for a core other programs use lose much.
    """

    backend: str
    data: str
    models: tuple[str, ...]
    methods: tuple[str, ...]
    steps: int
    batch_size: int
    seed: int
    evaluate_every: int
    target: float
    grids: Mapping[str, tuple[float, ...]]
    damping: Mapping[str, float]
    out: str
    probe: int = 64
    limit: int | None = None
    threads: int = 1

    @property
    def holds(self) -> str:
        """What the backend's models are made of."""
        return "modules" if self.backend in MODULES else "arrays"


def command(settings: Settings) -> str:
    """Shell command that repeats a comparison, no default left open."""
    words = ["ngd", "compare", "--backend", settings.backend, "--data", settings.data]
    words += ["--models", ",".join(settings.models), "--methods", ",".join(settings.methods)]
    words += ["--steps", str(settings.steps), "--batch-size", str(settings.batch_size)]
    words += ["--seed", str(settings.seed), "--evaluate-every", str(settings.evaluate_every)]
    words += ["--target", repr(settings.target), "--threads", str(settings.threads)]
    for method, rates in settings.grids.items():
        words += ["--grid", f"{method}={','.join(map(repr, rates))}"]
    for method, damping in settings.damping.items():
        words += ["--damping", f"{method}={damping!r}"]
    words += ["--agreement", str(settings.probe)]
    if settings.limit is not None:
        words += ["--limit", str(settings.limit)]
    return shlex.join([*words, "--out", settings.out, "--overwrite"])
