"""A training loop: epochs in a random order, evaluation, checkpoints, progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ngd_core import nn
from ngd_core._typing import Array
from ngd_core._xp import asarray, index_dtype, namespace_of
from ngd_cupy._optimizers import NaturalGradient

__all__ = ["Epoch", "evaluate", "fit"]

CHUNK = 2048
Examples = tuple[Array, Array]


class Epoch(NamedTuple):
    """What an epoch left.

    Parameters
    ----------
    epoch : int
        Its number, from 1.
    loss : float
        Mean of the training losses, each before its step, over examples.
    test_loss : float or None
        Mean loss over the validation examples after it.
    accuracy : float or None
        Part of them classified rightly; None for other than categorical likelihoods.
    """

    epoch: int
    loss: float
    test_loss: float | None
    accuracy: float | None


def fit(
    optimizer: NaturalGradient,
    train: Examples,
    *,
    epochs: int,
    batch_size: int,
    validation: Examples | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    seed: int = 0,
) -> list[Epoch]:
    """Train for some epochs.

    The order of epoch k depends on `seed` and k alone, and nothing waits for the device within an
    epoch. A run that was broken off goes on from its checkpoint with the numbers it would have had.

    Parameters
    ----------
    optimizer : NaturalGradient
        To be stepped; its parameters are the result.
    train : tuple of array
        Inputs and targets, examples first, on the device of the parameters.
    epochs : int
        Epochs in all, those before the checkpoint counted.
    batch_size : int
        Examples a step; the last batch of an epoch may be shorter.
    validation : tuple of array, optional
        Inputs and targets to evaluate on after each epoch.
    checkpoint : path, optional
        Safetensors file, written after each epoch, whole or not at all.
    resume : bool
        Whether to go on from the checkpoint if it is there; without it such a file is an error.
    progress : bool
        Whether to show a bar (on a terminal) or a line an epoch; needs the package rich.
    seed : int
        Of the order of the examples.

    Returns
    -------
    list of Epoch
        One for each epoch trained now.

    Raises
    ------
    ValueError
        For sizes below 1, or inputs and targets of different lengths.
    FileExistsError
        If the checkpoint is there and `resume` is not set.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> from ngd_cupy import KFAC, fit
    >>> x = np.random.default_rng(0).standard_normal((64, 3))
    >>> y = (x[:, 0] > 0).astype(np.int64)
    >>> model = nn.Sequential(nn.Dense("fc", 3, 2))
    >>> optimizer = KFAC(model, {"fc": np.zeros((2, 4))}, lr=0.3, inverse_every=4)
    >>> history = fit(optimizer, (x, y), epochs=5, batch_size=16, validation=(x, y), progress=False)
    >>> history[-1].accuracy > 0.9
    True
    """
    x, y = train
    n = x.shape[0]
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            msg = f"{name} is {value!r}; expected an integer >= 1."
            raise ValueError(msg)
    if n == 0 or y.shape[0] != n:
        msg = (
            f"train holds {n} inputs and {y.shape[0]} targets; expected as many of both, and some."
        )
        raise ValueError(msg)
    if checkpoint is not None and Path(checkpoint).exists():
        if not resume:
            msg = (
                f"The checkpoint {os.fspath(checkpoint)!r} is there already; pass resume=True to "
                "go on from it, or name another file."
            )
            raise FileExistsError(msg)
        optimizer.load(checkpoint)
    history = []
    xp = namespace_of(x)
    with _watching(epochs, -(-n // batch_size), shown=progress) as (advance, end):
        for epoch in range(optimizer.epochs, epochs):
            order = np.random.default_rng([seed, epoch]).permutation(n)
            total = None
            for start in range(0, n, batch_size):
                rows = asarray(
                    order[start : start + batch_size], like=x, dtype=index_dtype(xp=xp), xp=xp
                )
                part = optimizer.step(xp.take(x, rows, axis=0), xp.take(y, rows, axis=0))
                part = part * (rows.shape[0] / n)
                total = part if total is None else total + part
                advance()
            optimizer.epoch_end()
            found = (None, None) if validation is None else evaluate(optimizer, *validation)
            history.append(Epoch(epoch + 1, float(total), *found))  # type: ignore[arg-type]
            if checkpoint is not None:
                optimizer.save(checkpoint)
            end(history[-1])
    return history


def evaluate(optimizer: NaturalGradient, x: Array, y: Array) -> tuple[float, float | None]:
    """Mean loss and accuracy of the current parameters, a chunk of examples at a time.

    Parameters
    ----------
    optimizer : NaturalGradient
        With model, parameters and likelihood.
    x, y : array
        Inputs and targets.

    Returns
    -------
    loss : float
        Mean over examples.
    accuracy : float or None
        Part of the positions classified rightly; None for other than categorical likelihoods.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> from ngd_cupy import KFAC, evaluate
    >>> optimizer = KFAC(nn.Sequential(nn.Dense("fc", 3, 2)), {"fc": np.zeros((2, 4))}, lr=0.1)
    >>> loss, accuracy = evaluate(optimizer, np.ones((2, 3)), np.asarray([0, 1]))
    >>> round(loss, 4), accuracy
    (0.6931, 0.5)
    """
    xp, likelihood = namespace_of(x), optimizer.likelihood
    loss = right = None
    for start in range(0, x.shape[0], CHUNK):
        stop = min(start + CHUNK, x.shape[0])  # the standard knows no slice beyond the end
        inputs, targets = x[start:stop, ...], y[start:stop, ...]
        outputs = nn.predict(optimizer.model, optimizer.params, inputs)
        part = xp.sum(likelihood.value(outputs, targets))
        loss = part if loss is None else loss + part
        if likelihood.name == "categorical":
            hits = xp.sum(xp.astype(xp.argmax(outputs, axis=-1) == targets, xp.float32))
            right = hits if right is None else right + hits
    n = x.shape[0]
    positions = n if right is None else int(np.prod(y.shape))
    return float(loss) / n, None if right is None else float(right) / positions  # type: ignore[arg-type]


@contextmanager
def _watching(
    epochs: int, steps: int, *, shown: bool
) -> Iterator[tuple[Callable[[], object], Callable[[Epoch], object]]]:
    """Tell what happens: a bar on a terminal, elsewhere a line an epoch."""
    if not shown:
        yield lambda: None, lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=epochs * steps)
        yield (
            lambda: bar.advance(task),
            lambda epoch: console.print(_line(epoch, epochs), markup=False, highlight=False),
        )


def _line(epoch: Epoch, epochs: int) -> str:
    text = f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.4g}"
    if epoch.test_loss is not None:
        text += f"  validation {epoch.test_loss:.4g}"
    return text if epoch.accuracy is None else f"{text}  accuracy {epoch.accuracy:.1%}"
