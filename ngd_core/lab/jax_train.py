"""Training runs of JAX models, with the transformations of `ngd_jax` and of Optax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import ngd_jax
import optax

from ngd_core import Hyper, losses
from ngd_core.lab.arrays import Arrays
from ngd_core.lab.jax_models import Module, named
from ngd_core.lab.methods import ADAM, MOMENTUM, REFRESH_EVERY, Entry, Plan
from ngd_core.lab.modules import beside_exact, covered, fisher_of
from ngd_core.lab.train import (
    LOSS,
    Coverage,
    Examples,
    Meeting,
    Problem,
    Run,
    Trainer,
    descend,
    mean,
    measure,
    meetings,
)

__all__ = ["coverage", "optimizer", "trainer"]

Optimizer: TypeAlias = optax.GradientTransformationExtraArgs
STILL, INTERVAL = 3, 2
"""A count of steps that is in no first interval and at no interval's start."""


def optimizer(
    layers: ngd_jax.Report, entry: Entry, rate: Any, damping: float | None, plan: Plan
) -> Optimizer:
    """Make the optimizer of a method: directions, momentum, step.

    Parameters
    ----------
    layers : ngd_jax.Report
        Of the loss.
    entry : Entry
        Method.
    rate : float or array
        Learning rate.
    damping : float or None
        Its damping, if it has one.
    plan : Plan
        What the method may have to know of the run.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        With the same settings as the method has on arrays.

    Raises
    ------
    ValueError
        If the method cannot train a module, in a sentence that says why.
    """
    return optax.chain(
        _directions(layers, entry, rate, damping, plan),
        optax.trace(0.9) if entry.rule is MOMENTUM else optax.identity(),
        optax.scale_by_learning_rate(rate),
    )


def _directions(
    layers: ngd_jax.Report,
    entry: Entry,
    rate: Any,
    damping: float | None,
    plan: Plan,
    *,
    still: bool = False,
) -> Any:
    """Directions of a method; `still` with statistics as they are and without a clip."""
    if entry.curvature is None:
        plain = optax.scale_by_adam() if entry.rule is ADAM else optax.identity()
        return optax.with_extra_args_support(plain)
    method: Any = entry.curvature(plan._replace(ops=ngd_jax.NATIVE))
    damping = Hyper().damping if damping is None else damping
    if entry.observes == "gradients":
        step = ngd_jax.sofim(1.0, beta=method.beta, rho=damping, scope=method.scope)
        return optax.chain(step, optax.scale(-1.0))
    return ngd_jax.precondition(
        layers,
        method,
        damping=damping,
        factor_every=INTERVAL if still else 1,
        inverse_every=INTERVAL if still else REFRESH_EVERY,
        kl_clip=None if still else entry.clip,
        learning_rate=rate,
        steps_per_epoch=INTERVAL if still else plan.epoch,
    )


def _report(problem: Problem) -> ngd_jax.Report:
    batch = problem.order.shape[1]
    shapes = (jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in problem.train)
    return ngd_jax.report(_loss(problem.model), problem.model.params, *shapes)


def _loss(model: Module) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def loss(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = model.apply(params, x)
        each = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
        return jnp.mean(each), outputs

    return loss


def coverage(
    problem: Problem, entry: Entry, damping: float | None, arrays: Arrays
) -> Coverage | str | None:
    """Tell how much of a model a method knows, before the first step.

    Parameters
    ----------
    problem : Problem
        Of a `jax_models.Module`.
    entry : Entry
        Method.
    damping : float or None
        Its damping, if it has one.
    arrays : Arrays
        JAX.

    Returns
    -------
    Coverage, str or None
        None where all parameters are treated alike, without curvature of layers; a sentence where
        the method cannot train the model.
    """
    if entry.curvature is None or entry.observes == "gradients":
        return None
    layers = _report(problem)
    try:
        directions = _directions(layers, entry, 1.0, damping, problem.plan(arrays))
        known = jax.eval_shape(directions.init, problem.model.params).codes
    except ValueError as error:
        return str(error)
    uncovered = dict(layers.uncovered)
    for layer in layers.layers:
        if layer.spec.name not in known:
            why = f"the method has nothing for the kind {layer.spec.kind!r}"
            uncovered |= dict.fromkeys(layer.parameters, why)
    return covered({name: x.size for name, x in problem.params.items()}, uncovered)


def trainer(problem: Problem, entry: Entry, damping: float | None, arrays: Arrays) -> Trainer:
    """Make the function that trains a model with one method; see `train.trainer`.

    The step is compiled once, whatever the learning rate.

    Parameters
    ----------
    problem : Problem
        Of a `jax_models.Module`.
    entry : Entry
        Method.
    damping : float or None
        Its damping, if it has one.
    arrays : Arrays
        JAX.

    Returns
    -------
    Trainer
        Functions that train from the problem's initial values.
    """
    model, plan, layers = problem.model, problem.plan(arrays), _report(problem)
    make = partial(optimizer, layers, entry, damping=damping, plan=plan)
    gradients = _gradients(model, entry, plan, problem.seed)
    batches = [arrays.array(rows) for rows in problem.order]

    def step(
        params: Any, state: Any, examples: Examples, rows: jax.Array, k: Any, rate: Any
    ) -> tuple[Any, Any]:
        grads, records = gradients(params, k, *(jnp.take(x, rows, axis=0) for x in examples))
        updates, state = make(rate=rate).update(grads, state, params, records=records)
        return optax.apply_updates(params, updates), state

    def look_at(params: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        return measure(partial(model.apply, params))(x, y)

    still = _directions(layers, entry, 1.0, damping, plan, still=True)
    compiled, measured, met = (
        arrays.compile(f, ()) for f in (step, look_at, _beside(model, entry, plan, still))
    )
    start = model.params, jax.jit(make(rate=1.0).init)(model.params)

    def move(at: tuple[Any, Any], k: int, rate: float) -> tuple[Any, Any]:
        at = compiled(*at, problem.train, batches[k], k, rate)
        arrays.wait(at)
        return at

    def run(rate: float, watch: Callable[[int, float], None]) -> Run:
        at = start

        def go(k: int) -> None:
            nonlocal at
            at = move(at, k, rate)

        def look(examples: Examples) -> tuple[float, float]:
            return mean(partial(measured, at[0]), examples)

        return descend(problem, rate, go, look, watch)

    def meet(rate: float, steps: Sequence[int]) -> list[Meeting]:
        at = start

        def go(k: int) -> None:
            nonlocal at
            at = move(at, k, rate)

        def look(k: int) -> Meeting:
            rows = batches[k % len(batches)][: problem.probe]
            loss, agreed = met(*at, *(x[rows] for x in problem.train))
            return Meeting(k, float(loss), *map(float, agreed))

        return meetings(steps, go, look)

    move(start, 0, 0.0)
    return Trainer(run, meet)


def _gradients(model: Module, entry: Entry, plan: Plan, seed: int) -> Callable[..., Any]:
    """Make ``f(params, k, x, y)``: gradients of step k, and records where the method takes some."""
    loss = _loss(model)
    if entry.curvature is None or entry.observes == "gradients":
        return lambda params, _, x, y: (jax.grad(loss, has_aux=True)(params, x, y)[0], None)
    fisher = fisher_of(entry, entry.curvature(plan))
    both = ngd_jax.value_and_grad(loss, has_aux=True, fisher=fisher)

    def gradients(params: Any, k: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        key = jax.random.fold_in(jax.random.key(seed), k) if fisher == "mc" else None
        _, grads, records = both(params, x, y, key=key)
        return grads, records

    return gradients


def _beside(model: Module, entry: Entry, plan: Plan, still: Optimizer) -> Callable[..., Any]:
    """Make ``f(params, state, x, y)``: loss, and the direction beside the exact one.

    Statistics and inverses stay as they are; only Adam, whose second moments scale the gradient,
    and SOFIM, which is its momentum, count these examples in.
    """
    loss = _loss(model)
    weighted = entry.observes == "labels"

    def beside(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        if weighted:
            (value, outputs), grads, records = ngd_jax.value_and_grad(loss, has_aux=True)(
                params, x, y
            )
        else:
            (value, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params, x, y)
            records = None
        inner = state[0]
        if isinstance(inner, ngd_jax.PreconditionState):
            inner = inner._replace(count=jnp.full_like(inner.count, STILL))
        directions, _ = still.update(grads, inner, params, records=records)
        vectors = losses.fisher_vectors("exact", LOSS, outputs)

        def one(x: jax.Array, vectors: jax.Array) -> Any:
            _, pull = jax.vjp(lambda params: model.apply(params, x[None, ...])[0], params)
            return jax.vmap(lambda v: pull(v)[0])(vectors)

        each = jax.vmap(one, in_axes=(0, 1))(x, vectors)
        return value, beside_exact(*map(named, (directions, grads, each)))

    return beside
