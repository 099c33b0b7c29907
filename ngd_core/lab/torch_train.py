"""Training runs of `torch.nn.Module` models, with the optimizers of `ngd_torch` and of torch."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ngd_torch
import torch
from torch import nn
from torch.nn import functional

from ngd_core import Hyper, losses
from ngd_core.lab.arrays import Arrays
from ngd_core.lab.methods import ADAM, REFRESH_EVERY, Entry, Plan
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

__all__ = ["coverage", "direction", "example_gradients", "optimizer", "trainer"]


def optimizer(
    model: nn.Module,
    entry: Entry,
    rate: float,
    damping: Any,
    plan: Plan,
    seed: int = 0,
    *,
    exact: bool = False,
) -> torch.optim.Optimizer:
    """Make the optimizer of a method.

    Parameters
    ----------
    model : nn.Module
        Network.
    entry : Entry
        Method.
    rate : float
        Learning rate.
    damping : float or None
        Its damping, if it has one.
    plan : Plan
        What the method may have to know of the run.
    seed : int
        Of the labels sampled from the model.
    exact : bool
        Whether methods that sample labels take the exact Fisher in their place.

    Returns
    -------
    torch.optim.Optimizer
        With the same settings as the method has on arrays.

    Raises
    ------
    ValueError
        If the method cannot train a module, in a sentence that says why.
    """
    if entry.curvature is None:
        if entry.rule is ADAM:
            return torch.optim.Adam(model.parameters(), rate)
        return torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    method: Any = entry.curvature(plan._replace(ops=ngd_torch.NATIVE))
    damping = Hyper().damping if damping is None else damping
    if entry.observes == "gradients":
        return ngd_torch.SOFIM(model, rate, beta=method.beta, rho=damping, scope=method.scope)
    fisher: Any = fisher_of(entry, method)
    return ngd_torch.NaturalGradient(
        model,
        method,
        rate,
        damping=damping,
        kl_clip=entry.clip,
        fisher="exact" if exact and fisher == "mc" else fisher,
        factor_every=1,
        inverse_every=REFRESH_EVERY,
        seed=seed,
    )


def coverage(
    problem: Problem, entry: Entry, damping: float | None, arrays: Arrays
) -> Coverage | str | None:
    """Tell how much of a model a method knows, before the first step.

    Parameters
    ----------
    problem : Problem
        Of a module.
    entry : Entry
        Method.
    damping : float or None
        Its damping, if it has one.
    arrays : Arrays
        PyTorch.

    Returns
    -------
    Coverage, str or None
        None where all parameters are treated alike, without curvature of layers; a sentence where
        the method cannot train the model.
    """
    model = copy.deepcopy(problem.model)
    try:
        made = optimizer(model, entry, 1.0, damping, problem.plan(arrays))
    except ValueError as error:
        return str(error)
    if not isinstance(made, ngd_torch.NaturalGradient):
        return None
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return covered(sizes, made.report().uncovered)


def trainer(problem: Problem, entry: Entry, damping: float | None, arrays: Arrays) -> Trainer:
    """Make the function that trains a module with one method; see `train.trainer`.

    Parameters
    ----------
    problem : Problem
        Of a module.
    entry : Entry
        Method.
    damping : float or None
        Its damping, if it has one.
    arrays : Arrays
        PyTorch.

    Returns
    -------
    Trainer
        Functions that train copies of the problem's module.
    """
    plan = problem.plan(arrays)
    inputs, labels = problem.train[0], problem.train[1].long()
    batches = [torch.from_numpy(rows) for rows in problem.order.astype("int64")]
    turns = [entry.schedule(k, plan) for k in range(len(batches))]

    def begin(rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = copy.deepcopy(problem.model).train()
        return model, optimizer(model, entry, rate, damping, plan, problem.seed)

    def move(model: nn.Module, rule: Any, k: int) -> None:
        if entry.observes == "labels" and turns[k].refresh:
            rule.curvature.epoch_end()
        rule.zero_grad()
        functional.cross_entropy(model(inputs[batches[k]]), labels[batches[k]]).backward()
        rule.step()

    def run(rate: float, watch: Callable[[int, float], None]) -> Run:
        model, rule = begin(rate)
        return descend(
            problem, rate, lambda k: move(model, rule, k), lambda part: _mean(model, part), watch
        )

    def meet(rate: float, steps: Sequence[int]) -> list[Meeting]:
        model, rule = begin(rate)

        def look(k: int) -> Meeting:
            rows = batches[k % len(batches)][: problem.probe]
            return _beside_exact(k, model, rule, inputs[rows], labels[rows])

        return meetings(steps, lambda k: move(model, rule, k), look)

    def weights(rate: float) -> dict[str, torch.Tensor]:
        model, rule = begin(rate)
        for k in range(len(batches)):
            move(model, rule, k)
        return {name: p.detach() for name, p in model.named_parameters()}

    move(*begin(0.0), 0)
    return Trainer(run, meet, weights)


def _mean(model: nn.Module, examples: Examples) -> tuple[float, float]:
    """Mean loss and accuracy of a model that is not in training, and is again afterwards."""
    model.eval()
    with torch.no_grad():
        found = mean(measure(lambda x: model(x)), examples)
    model.train()
    return found


def _beside_exact(
    k: int, model: nn.Module, rule: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> Meeting:
    """Loss on some examples, and the direction for them beside the exact natural gradient."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    grads, directions = direction(model, rule, x, y)
    model.eval()
    with torch.no_grad():
        outputs = model(x)
    vectors = losses.fisher_vectors("exact", LOSS, outputs)
    each = example_gradients(model, params, x, vectors)
    model.train()
    loss = functional.cross_entropy(outputs, y)
    return Meeting(k, float(loss), *map(float, beside_exact(directions, grads, each)))


def example_gradients(
    model: nn.Module, params: dict[str, torch.Tensor], x: torch.Tensor, vectors: torch.Tensor
) -> Any:
    """Differentiate each example's outputs along some vectors.

    Parameters
    ----------
    model : nn.Module
        Network.
    params : dict of str to tensor
        Its parameters, by name.
    x : tensor
        Inputs of N examples.
    vectors : tensor, shape (M, N, classes)
        Along which.

    Returns
    -------
    dict of str to tensor, shape (N, M, ...)
        By parameter.
    """

    def one(x: torch.Tensor, vectors: torch.Tensor) -> Any:
        def outputs(params: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(model, params, (x[None],))[0]

        _, pull = torch.func.vjp(outputs, params)
        return torch.func.vmap(lambda v: pull(v)[0])(vectors)

    return torch.func.vmap(one, in_dims=(0, 1))(x, vectors)


def direction(
    model: nn.Module, rule: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients, and the step that copies take from zero at rate 1 with neither momentum nor clip.

    Statistics and inverses stay as they are; only FNGD, whose direction is made of the examples'
    own gradients, and SOFIM, which is its momentum, count these in.

    Parameters
    ----------
    model : nn.Module
        Network; it stays as it is.
    rule : torch.optim.Optimizer
        Of the model's parameters; it stays as it is.
    x, y : tensor
        Inputs and labels.

    Returns
    -------
    tuple of dict of str to tensor
        Gradients of the mean loss, and directions, by parameter.
    """
    model, rule = copy.deepcopy((model, rule))
    if isinstance(rule, ngd_torch.NaturalGradient):
        rule.kl_clip = None
        curvature = rule.curvature
        curvature.factor_every = curvature.inverse_every = sys.maxsize
        curvature.capture.switch.armed = curvature.wanted()
    rule.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    for group in rule.param_groups:
        group.update(lr=1.0, momentum=0.0)
    rule.step()
    return grads, {name: -p.detach() for name, p in model.named_parameters()}
