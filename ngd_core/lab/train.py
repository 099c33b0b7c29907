"""One training run: a network, a method, a learning rate; losses over steps and over seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ngd_core import _xp, losses, nn, step
from ngd_core._typing import Array
from ngd_core.lab.arrays import Arrays
from ngd_core.lab.methods import Entry
from ngd_core.types import Hyper, Method

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Problem", "Run", "Trainer", "trainer"]

LOSS = losses.categorical
CHUNK = 2048

Params: TypeAlias = Mapping[str, Array]
Examples: TypeAlias = tuple[Array, Array]


class Run(NamedTuple):
    """What one run left.

    Parameters
    ----------
    rate : float
        Learning rate.
    steps : list of int
        Steps after which the training loss was measured, from 0.
    losses : list of float
        Mean loss over all training examples then; the last is not finite if the run diverged.
    seconds : list of float
        Time spent in training steps until then; measuring is not counted, nor is compilation.
    accuracy : float
        Part of the test examples classified rightly at the end.
    """

    rate: float
    steps: list[int]
    losses: list[float]
    seconds: list[float]
    accuracy: float

    @property
    def diverged(self) -> bool:
        """Whether the run was stopped because its loss was not finite."""
        return not math.isfinite(self.losses[-1])

    def reached(self, target: float) -> int | None:
        """Index of the first loss at or below the target."""
        return next((i for i, loss in enumerate(self.losses) if loss <= target), None)


@dataclass(frozen=True)
class Problem:
    """What all methods share: network, initial values, examples, batches and noise.

    Parameters
    ----------
    model : nn.Sequential
        Network.
    params : mapping of str to array
        Initial values.
    train, test : tuple of array
        Inputs and labels.
    order : numpy array of int32, shape (steps, batch)
        Training examples of each step.
    noise : numpy array, shape (steps, batch)
        Uniform noise with which labels are sampled from the model.
    evaluate_every : int
        Steps between two measurements of the training loss.
    """

    model: Any
    params: Params
    train: Examples
    test: Examples
    order: np.ndarray
    noise: np.ndarray
    evaluate_every: int


Trainer: TypeAlias = Callable[[float, Callable[[int, float], None]], Run]


def trainer(problem: Problem, entry: Entry, damping: float | None, arrays: Arrays) -> Trainer:
    """Make the function that trains with one method.

    Everything is compiled and run once here, so that a run's clock sees neither.

    Parameters
    ----------
    problem : Problem
        What to train.
    entry : Entry
        Method.
    damping : float or None
        Its damping, if it has one.
    arrays : Arrays
        Array library of the problem.

    Returns
    -------
    callable
        ``run(rate, watch) -> Run``; it calls ``watch(step, loss)`` at each measurement.
    """
    method = None if entry.curvature is None else entry.curvature(arrays.eager)
    hyper = Hyper() if damping is None else Hyper(damping=damping)
    advance = arrays.compile(_advance(problem.model, method, entry), ("observe", "refresh"))
    measure = arrays.compile(_measure(problem.model), ())
    start = _start(problem, method, entry)
    batches = [
        (arrays.array(order), arrays.array(noise))
        for order, noise in zip(problem.order, problem.noise, strict=True)
    ]

    def move(state: _State, k: int, rate: float) -> _State:
        state = advance(
            state,
            problem.train,
            *batches[k],
            rate,
            hyper,
            observe=k % entry.observe_every == 0,
            refresh=k % entry.refresh_every == 0,
        )
        arrays.wait(state)
        return state

    def run(rate: float, watch: Callable[[int, float], None]) -> Run:
        loss, _ = _mean(measure, start.params, problem.train)
        state, seconds = start, 0.0
        steps, curve, clock = [0], [loss], [0.0]
        for k in range(len(batches)):
            begun = time.perf_counter()
            state = move(state, k, rate)
            seconds += time.perf_counter() - begun
            if (k + 1) % problem.evaluate_every and k + 1 < len(batches):
                continue
            loss, _ = _mean(measure, state.params, problem.train)
            steps.append(k + 1)
            curve.append(loss)
            clock.append(seconds)
            watch(k + 1, loss)
            if not math.isfinite(loss):
                break
        _, accuracy = _mean(measure, state.params, problem.test)
        return Run(rate, steps, curve, clock, accuracy)

    for k in range(min(len(batches), math.lcm(entry.observe_every, entry.refresh_every) + 1)):
        move(start, k, 0.0)
    return run


class _State(NamedTuple):
    """Parameters, what the rule remembers, and the curvature's state."""

    params: Params
    memory: Any
    curvature: Any


def _start(problem: Problem, method: Method | None, entry: Entry) -> _State:
    curvature = None
    if method is not None:
        like = next(iter(problem.params.values()))
        curvature = method.init(nn.specs(problem.model), like)
    return _State(problem.params, entry.rule.init(problem.params), curvature)


def _advance(model: Any, method: Method | None, entry: Entry) -> Callable[..., _State]:
    specs = nn.specs(model)

    def advance(
        state: _State,
        examples: Examples,
        order: Array,
        noise: Array,
        rate: float,
        hyper: Hyper,
        *,
        observe: bool,
        refresh: bool,
    ) -> _State:
        params, memory, curvature = state
        xp = _xp.namespace_of(order)
        inputs, labels = (xp.take(x, order, axis=0) for x in examples)
        outputs, tape = nn.forward(model, params, inputs)
        slopes = LOSS.gradient(outputs, labels)
        directions, records, _ = nn.backward(model, params, tape, slopes)
        if method is not None:
            if observe:
                sampled = LOSS.gradient(outputs, LOSS.sample(outputs, noise))
                _, sampled_records, _ = nn.backward(model, params, tape, sampled, grads=False)
                curvature = method.accumulate(curvature, sampled_records, hyper)
            if refresh:
                curvature, _ = method.refresh(curvature, hyper)
            blocks = {spec: directions[spec.name] for spec in specs}
            natural, info = method.direction(curvature, blocks, records, hyper)
            if entry.clip is not None:
                scale = step.kl_clip_scale(info, rate, entry.clip)
                natural = {spec: scale * u for spec, u in natural.items()}
            directions = {**directions, **{spec.name: natural[spec] for spec in specs}}
        steps, memory = entry.rule.apply(memory, directions)
        return _State(step.sgd(params, steps, rate), memory, curvature)

    return advance


def _measure(model: Any) -> Callable[..., tuple[Array, Array]]:
    def measure(params: Params, inputs: Array, labels: Array) -> tuple[Array, Array]:
        """Sum of losses, and number of examples classified rightly."""
        outputs = nn.predict(model, params, inputs)
        xp = _xp.namespace_of(outputs)
        right = _xp.astype(xp.argmax(outputs, axis=-1), labels.dtype, xp=xp) == labels
        return xp.sum(LOSS.value(outputs, labels)), xp.sum(_xp.astype(right, xp.int32, xp=xp))

    return measure


def _mean(
    measure: Callable[..., tuple[Array, Array]], params: Params, examples: Examples
) -> tuple[float, float]:
    """Mean loss and accuracy over all examples, a chunk at a time."""
    inputs, labels = examples
    n, loss, right = inputs.shape[0], 0.0, 0
    for i in range(0, n, CHUNK):
        part_loss, part_right = measure(params, inputs[i : i + CHUNK, ...], labels[i : i + CHUNK])
        loss, right = loss + float(part_loss), right + int(part_right)
    return loss / n, right / n
