"""One training run: a network, a method, a learning rate; losses over steps and over seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ngd_core import _xp, analysis, losses, nn, step
from ngd_core._typing import Array
from ngd_core.inversion import EAGER, PURE
from ngd_core.lab import weights
from ngd_core.lab.arrays import Arrays
from ngd_core.lab.methods import Entry, Plan
from ngd_core.types import Hyper, Method

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Coverage",
    "Examples",
    "Meeting",
    "Params",
    "Problem",
    "Run",
    "Trainer",
    "descend",
    "mean",
    "measure",
    "meetings",
    "trainer",
]

LOSS = losses.categorical
CHUNK = 2048
EXACT_DAMPING = 1e-3
"""Of the exact natural gradient that all methods are compared with."""

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


class Meeting(NamedTuple):
    """A method's direction beside the exact natural gradient, at one point of training.

    Parameters
    ----------
    step : int
        Steps taken before.
    loss : float
        Mean loss over the examples of the comparison.
    cosine, relative_error, decrease : float
        As in `ngd_core.analysis.Agreement`.
    """

    step: int
    loss: float
    cosine: float
    relative_error: float
    decrease: float


class Coverage(NamedTuple):
    """What a method knows of a module's parameters.

    Parameters
    ----------
    numbers : int
        Numbers in layers that have curvature.
    total : int
        Numbers in all parameters.
    uncovered : dict of str to str
        For each parameter that follows its gradient, why.
    """

    numbers: int
    total: int
    uncovered: dict[str, str]


@dataclass(frozen=True)
class Problem:
    """What all methods share: network, initial values, examples, batches and noise.

    Parameters
    ----------
    model : nn.Sequential, torch.nn.Module or jax_models.Module
        Network; a torch module is copied for each run.
    params : mapping of str to array
        Initial values.
    train, test : tuple of array
        Inputs and labels.
    order : numpy array of int32, shape (steps, batch)
        Training examples of each step.
    noise : numpy array, shape (steps, batch)
        Uniform noise with which labels are sampled from the model; modules draw their own.
    evaluate_every : int
        Steps between two measurements of the training loss.
    probe : int
        Examples of a step's batch on which directions are compared with the exact one.
    seed : int
        Of the labels that are sampled from a module.
    """

    model: Any
    params: Params
    train: Examples
    test: Examples
    order: np.ndarray
    noise: np.ndarray
    evaluate_every: int
    probe: int = 0
    seed: int = 0

    def plan(self, arrays: Arrays) -> Plan:
        """Tell a method what it may have to know of these runs."""
        batch = self.order.shape[1]
        epoch = math.ceil(len(self.train[1]) / batch)
        return Plan(EAGER if arrays.eager else PURE, batch, epoch)


class Trainer(NamedTuple):
    """One method, ready to train.

    Parameters
    ----------
    run : callable
        ``run(rate, watch)``: a whole run; it calls ``watch(step, loss)`` at each measurement.
    meet : callable
        ``meet(rate, steps)``: the same run again, with a `Meeting` after each of some numbers of
        steps, the largest at most that of the run.
    weights : callable, optional
        ``weights(rate)``: the same run again, and the values that it ends with, by the names of a
        PyTorch module; JAX, which names them otherwise, has none.
    """

    run: Callable[[float, Callable[[int, float], None]], Run]
    meet: Callable[[float, Sequence[int]], list[Meeting]]
    weights: Callable[[float], dict[str, Array]] | None = None


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
    Trainer
        Functions that train.
    """
    plan = problem.plan(arrays)
    method = None if entry.curvature is None else entry.curvature(plan)
    hyper = Hyper() if damping is None else Hyper(damping=damping)
    advance = arrays.compile(_advance(problem.model, method, entry), ("observe", "refresh"))
    measured = arrays.compile(_of_params(problem.model), ())
    start = _start(problem, method, entry)
    turns = [entry.schedule(k, plan) for k in range(len(problem.order))]
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
            **turns[k]._asdict(),
        )
        arrays.wait(state)
        return state

    def run(rate: float, watch: Callable[[int, float], None]) -> Run:
        state = start

        def go(k: int) -> None:
            nonlocal state
            state = move(state, k, rate)

        def look(examples: Examples) -> tuple[float, float]:
            return mean(partial(measured, state.params), examples)

        return descend(problem, rate, go, look, watch)

    def meet(rate: float, steps: Sequence[int]) -> list[Meeting]:
        state = start

        def go(k: int) -> None:
            nonlocal state
            state = move(state, k, rate)

        def beside(k: int) -> Meeting:
            rows = batches[k % len(batches)][0][: problem.probe]
            loss, agreed = _beside_exact(problem, method, entry, hyper, state, rows)
            return Meeting(k, float(loss), *map(float, agreed))

        return meetings(steps, go, beside)

    def trained(rate: float) -> dict[str, Array]:
        state = start
        for k in range(len(batches)):
            state = move(state, k, rate)
        return weights.named(problem.model, state.params)

    for k in {turn: k for k, turn in enumerate(turns)}.values():
        move(start, k, 0.0)
    return Trainer(run, meet, trained)


def descend(
    problem: Problem,
    rate: float,
    go: Callable[[int], None],
    look: Callable[[Examples], tuple[float, float]],
    watch: Callable[[int, float], None],
) -> Run:
    """Take all steps of a run, with the clock on, and measure now and then, with the clock off.

    Parameters
    ----------
    problem : Problem
        What is trained.
    rate : float
        Learning rate.
    go : callable
        ``go(k)``: step k.
    look : callable
        ``look(examples)``: mean loss and accuracy.
    watch : callable
        ``watch(step, loss)``: told of each measurement.

    Returns
    -------
    Run
        It ends early if the loss is not finite.
    """
    loss, _ = look(problem.train)
    seconds, last = 0.0, len(problem.order)
    steps, curve, clock = [0], [loss], [0.0]
    for k in range(last):
        begun = time.perf_counter()
        go(k)
        seconds += time.perf_counter() - begun
        if (k + 1) % problem.evaluate_every and k + 1 < last:
            continue
        loss, _ = look(problem.train)
        steps.append(k + 1)
        curve.append(loss)
        clock.append(seconds)
        watch(k + 1, loss)
        if not math.isfinite(loss):
            break
    _, accuracy = look(problem.test)
    return Run(rate, steps, curve, clock, accuracy)


def meetings(
    steps: Sequence[int], go: Callable[[int], None], look: Callable[[int], Meeting]
) -> list[Meeting]:
    """Take the steps of a run again, and look at some points of it.

    Parameters
    ----------
    steps : sequence of int
        Numbers of steps after which to look.
    go : callable
        ``go(k)``: step k.
    look : callable
        ``look(k)``: the meeting after k steps.

    Returns
    -------
    list of Meeting
        In the order of the run.
    """
    found, last = [], max(steps)
    for k in range(last + 1):
        if k in steps:
            found.append(look(k))
        if k < last:
            go(k)
    return found


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
            blocks = {spec: directions[spec.name] for spec in specs}
            if observe:
                seen: Any = {"labels": records, "gradients": blocks}.get(entry.observes)
                if entry.observes == "samples":
                    sampled = LOSS.gradient(outputs, LOSS.sample(outputs, noise))
                    seen = nn.backward(model, params, tape, sampled, grads=False).records
                curvature = method.accumulate(curvature, seen, hyper)
            if refresh:
                curvature, _ = method.refresh(curvature, hyper)
            natural, info = method.direction(curvature, blocks, records, hyper)
            if entry.clip is not None:
                scale = step.kl_clip_scale(info, rate, entry.clip)
                natural = {spec: scale * u for spec, u in natural.items()}
            directions = {**directions, **{spec.name: natural[spec] for spec in specs}}
        steps, memory = entry.rule.apply(memory, directions)
        return _State(step.sgd(params, steps, rate), memory, curvature)

    return advance


def _beside_exact(
    problem: Problem,
    method: Method | None,
    entry: Entry,
    hyper: Hyper,
    state: _State,
    order: Array,
) -> tuple[Array, analysis.Agreement]:
    """Loss on some examples, and the direction for them beside the exact natural gradient."""
    xp, specs = _xp.namespace_of(order), nn.specs(problem.model)
    inputs, labels = (xp.take(x, order, axis=0) for x in problem.train)
    outputs, tape = nn.forward(problem.model, state.params, inputs)
    slopes = LOSS.gradient(outputs, labels)
    grads, records, _ = nn.backward(problem.model, state.params, tape, slopes)
    vectors = losses.fisher_vectors("exact", LOSS, outputs)
    exact = nn.backward(problem.model, state.params, tape, vectors, grads=False).records
    blocks = {spec: grads[spec.name] for spec in specs}
    if method is not None:
        directions, _ = method.direction(state.curvature, blocks, records, hyper)
    else:
        scaled = entry.rule.scaled(state.memory, grads)
        directions = {spec: scaled[spec.name] for spec in specs}
    agreed = analysis.agreement(directions, blocks, exact, EXACT_DAMPING)
    return xp.mean(LOSS.value(outputs, labels)), agreed


def _of_params(model: Any) -> Callable[..., tuple[Array, Array]]:
    def measured(params: Params, inputs: Array, labels: Array) -> tuple[Array, Array]:
        return measure(partial(nn.predict, model, params))(inputs, labels)

    return measured


def measure(predict: Callable[[Array], Array]) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Make ``measured(inputs, labels)``: sum of losses, and number of examples classified rightly.

    Parameters
    ----------
    predict : callable
        ``predict(inputs)``: outputs.

    Returns
    -------
    callable
        Of arrays of the inputs' library.
    """

    def measured(inputs: Array, labels: Array) -> tuple[Array, Array]:
        outputs = predict(inputs)
        xp = _xp.namespace_of(outputs)
        right = _xp.astype(xp.argmax(outputs, axis=-1), labels.dtype, xp=xp) == labels
        return xp.sum(LOSS.value(outputs, labels)), xp.sum(_xp.astype(right, xp.int32, xp=xp))

    return measured


def mean(
    measured: Callable[[Array, Array], tuple[Array, Array]], examples: Examples
) -> tuple[float, float]:
    """Mean loss and accuracy over all examples, a chunk at a time.

    Parameters
    ----------
    measured : callable
        As from `measure`.
    examples : tuple of array
        Inputs and labels.

    Returns
    -------
    tuple of float
        Loss and accuracy.
    """
    inputs, labels = examples
    n, loss, right = inputs.shape[0], 0.0, 0
    for i in range(0, n, CHUNK):
        part_loss, part_right = measured(inputs[i : i + CHUNK, ...], labels[i : i + CHUNK])
        loss, right = loss + float(part_loss), right + int(part_right)
    return loss / n, right / n
