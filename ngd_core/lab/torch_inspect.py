"""What `ngd inspect` looks at, of a `torch.nn.Module`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import ngd_torch
import torch
from torch import nn

from ngd_core import LayerRecord, LayerSpec, analysis, losses
from ngd_core.lab.methods import METHODS, Entry, Plan
from ngd_core.lab.modules import covered
from ngd_core.lab.subject import Subject, damping_of
from ngd_core.lab.torch_train import direction, example_gradients, optimizer
from ngd_core.lab.train import LOSS, Coverage, mean, measure

__all__ = ["fill", "of_module"]

ROUNDS = 2
"""How often an optimizer sees the examples; EKFAC measures scales in the basis before."""


def fill(module: nn.Module, arrays: Mapping[str, Any]) -> None:
    """Give a module other values.

    Parameters
    ----------
    module : nn.Module
        Network.
    arrays : mapping of str to numpy array
        By parameter.
    """
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.asarray(arrays[name]))


def of_module(module: nn.Module, x: torch.Tensor, y: torch.Tensor, damping: float) -> Subject:
    """Look at a module.

    A layer is a submodule with parameters of its own; a parameter whose first axis is not that of
    the others beside it, or which the network itself holds, is a layer of its own. Units are the
    first axis.

    Parameters
    ----------
    module : nn.Module
        Network.
    x, y : tensor
        Inputs and labels of N examples.
    damping : float
        Of the exact natural gradient.

    Returns
    -------
    Subject
        In the dtype of the module. Methods are the optimizers of `ngd_torch` after these examples
        alone.
    """
    module = copy.deepcopy(module).eval()
    params = {name: p.detach() for name, p in module.named_parameters()}
    with torch.no_grad():
        outputs = module(x)
        loss, accuracy = mean(measure(module), (x, y))
    layers = _layers(params)
    vectors = losses.fisher_vectors("exact", LOSS, outputs)
    each = example_gradients(module, params, x, vectors)
    specs = {
        layer: LayerSpec(layer, "dense", sum(params[n].numel() for n in names), 1, bias=False)
        for layer, names in layers.items()
    }

    def joined(tree: Mapping[str, torch.Tensor]) -> dict[LayerSpec, torch.Tensor]:
        """One row a layer: for each unit its weights, then its bias."""
        rows = {}
        for layer, names in layers.items():
            units = params[names[0]].shape[0]
            lead = tree[names[0]].shape[: tree[names[0]].ndim - params[names[0]].ndim]
            parts = [tree[name].reshape(*lead, units, -1) for name in names]
            rows[specs[layer]] = torch.cat(parts, -1).reshape(math.prod(lead), -1)
        return rows

    records = {}
    for spec, rows in joined(each).items():
        records[spec] = LayerRecord(rows * len(vectors) ** 0.5, torch.ones_like(rows[:, :1]))
    labels = y.long()
    slopes = torch.autograd.grad(
        nn.functional.cross_entropy(module(x), labels), module.parameters()
    )
    gradients = dict(zip(params, slopes, strict=True))
    grads = joined(gradients)
    diagonal = analysis.diagonal(records)
    units = {
        spec: diagonal[spec].reshape(params[layers[layer][0]].shape[0], -1).sum(1)
        for layer, spec in specs.items()
    }

    def rule_of(method: str, model: nn.Module) -> Any:
        plan = Plan(ngd_torch.NATIVE, len(y), 1)
        own = damping_of(method, damping)
        return optimizer(model, METHODS[method], 0.0, own, plan, exact=True)

    def beside(method: str) -> analysis.Agreement | str:
        model = copy.deepcopy(module).train()
        try:
            rule = rule_of(method, model)
        except ValueError as error:
            return str(error).rstrip(".")
        _show(model, rule, METHODS[method], x, labels)
        _, directions = direction(model, rule, x, labels)
        return analysis.agreement(joined(directions), grads, records, damping)

    def coverage(method: str) -> Coverage | None:
        rule = rule_of(method, copy.deepcopy(module))
        if not isinstance(rule, ngd_torch.NaturalGradient):
            return None
        return covered({n: p.numel() for n, p in params.items()}, rule.report().uncovered)

    return Subject(records, units, grads, loss, accuracy, beside, coverage)


def _layers(params: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Names of parameters by layer."""
    owners: dict[str, list[str]] = {}
    for name in params:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    layers: dict[str, list[str]] = {}
    for owner, names in owners.items():
        alike = len({params[name].shape[:1] for name in names}) == 1
        if owner and alike:
            layers[owner] = names
        else:
            layers |= {name: [name] for name in names}
    return layers


def _show(model: nn.Module, rule: Any, entry: Entry, x: torch.Tensor, y: torch.Tensor) -> None:
    """Let an optimizer see the examples, with no weight on what it began with."""
    if isinstance(rule, ngd_torch.NaturalGradient):
        rule.curvature.decay, rule.curvature.inverse_every = 0.0, 1
    for _ in range(0 if entry.curvature is None else ROUNDS):
        rule.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        rule.step()
        if entry.observes == "labels" and rule.curvature.recording:
            rule.curvature.epoch_end()
