"""Curvature of a module as an operator on its parameters by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ngd_core import EKFAC, KFAC, LayerRecord, LayerSpec, factors, operators
from ngd_core.analysis import LIMIT
from ngd_core.operators import FisherOperator, KroneckerOperator, MappedOperator
from ngd_core.operators.mapped import check_covered
from ngd_core.types import KINDS
from ngd_torch._capture import Capture
from ngd_torch._heads import Heads
from ngd_torch._layers import RULES, UNTRAINED, Layer, LayerRule, find_layers
from ngd_torch._optimizers import NaturalGradient, Preconditioner
from ngd_torch._ranks import unwrapped
from ngd_torch._rows import Rows
from ngd_torch._shards import whole

__all__ = ["fisher", "kronecker"]

Uncovered = Literal["error", "omit"]
Found = tuple[list[Layer], dict[str, str]]


def fisher(
    model: nn.Module,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    likelihood: Any = "categorical",
    fisher: Literal["exact", "mc"] = "exact",
    class_axis: int | None = None,
    examples: Literal["rows", "positions"] | None = None,
    mask: Callable[..., torch.Tensor] | None = None,
    layers: Mapping[type, LayerRule] | None = None,
    seed: int = 0,
    uncovered: Uncovered = "error",
    limit: int = LIMIT,
) -> MappedOperator:
    """Joint Fisher of all layers of a module on one batch, as an operator on its parameters.

    Parameters
    ----------
    model : nn.Module
        Network, in training or evaluation mode: the Fisher is that of the mode. A copy of it is
        run, so that neither it nor an optimizer that watches it sees anything.
    *args : objects
        What the model is called with, examples first.
    kwargs : mapping of str to object, optional
        What it is called with by keyword.
    likelihood : str, pair, mapping or sequence
        As in `ngd_torch.Options`; several outputs with ``fisher="mc"`` alone.
    fisher : "exact" or "mc"
        The exact Fisher, or that of one label sampled for each example.
    class_axis, examples, mask, layers
        As in `ngd_torch.Options`.
    seed : int
        Of the sampled labels, which touch no other random stream.
    uncovered : "error" or "omit"
        What happens to parameters in no layer, or in one that the outputs do not depend on.
    limit : int
        As in `ngd_core.operators.fisher`.

    Returns
    -------
    ngd_core.operators.MappedOperator
        On dicts of names to tensors of the parameters' shapes, one for each parameter that needs a
        gradient, in the order of ``model.named_parameters()``.

    Raises
    ------
    TypeError, ValueError
        As `ngd_torch.KFAC` and `ngd_core.operators.fisher`; for parameters in no layer, by name.

    Examples
    --------
    >>> import torch, ngd_torch
    >>> model = torch.nn.Linear(3, 2)
    >>> F = ngd_torch.fisher(model, torch.ones(4, 3), likelihood="gaussian")
    >>> round(float(F.trace()), 4), list(F.diagonal())
    (8.0, ['weight', 'bias'])
    """
    if fisher not in ("exact", "mc"):
        msg = f"fisher is {fisher!r}; expected 'exact' or 'mc'."
        raise ValueError(msg)
    heads = Heads(likelihood, class_axis, examples, mask)
    if fisher == "exact" and len(heads.entries) > 1:
        msg = (
            f"There are likelihoods of {len(heads.entries)} outputs, whose vectors do not reach "
            "the same layers; pass fisher='mc', or add the operators of one output each."
        )
        raise ValueError(msg)
    model, rules = unwrapped(model), {**RULES, **(layers or {})}
    found, why = find_layers(model, rules, "expand", KINDS)
    twin = copy.deepcopy(model)
    keeper = _Keeper()
    capture = Capture(
        twin,
        find_layers(twin, rules, "expand", KINDS)[0],
        fisher=fisher,
        heads=heads,
        loss_reduction="mean",
        loss_scale=None,
        chunk_bytes=None,
        outputs=(),
        owner=keeper,
        seed=seed,
    )
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(list(devices)), torch.enable_grad():
            if not twin.training:  # where its hook looks away
                capture.begin(twin)
            twin(*args, **(kwargs or {}))
    finally:
        capture.close()
    kept = _kept(model, (found, why), keeper.records, "the outputs do not depend on it", uncovered)
    with torch.no_grad():
        records = {layer.spec: keeper.records[layer.spec.name] for layer in kept}
        joined = {spec: factors.joined(spec, uses) for spec, uses in records.items()}
        return _on_parameters(operators.fisher(joined, limit=limit), kept, model)


def kronecker(
    optimizer: NaturalGradient | Preconditioner,
    *,
    uncovered: Uncovered = "error",
    dtype: Literal["float32", "float64"] | None = None,
) -> MappedOperator:
    """Fisher that K-FAC or EKFAC has averaged in training, as an operator on parameters.

    Parameters
    ----------
    optimizer : NaturalGradient or Preconditioner
        `ngd_torch.KFAC`, `ngd_torch.EKFAC` or a preconditioner of these methods, after a step. Of
        several processes all have to ask.
    uncovered : "error" or "omit"
        What happens to parameters of the optimizer in no layer, or in one without statistics.
    dtype : "float32", "float64" or None
        As in `ngd_core.operators.kronecker`.

    Returns
    -------
    ngd_core.operators.MappedOperator
        As `fisher`, on the optimizer's parameters; it stays as it is in further steps.

    Raises
    ------
    TypeError
        For an optimizer of another method.
    ValueError
        For parameters in no layer, by name.

    Examples
    --------
    >>> import torch, ngd_torch
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = ngd_torch.KFAC(model, lr=0.1, fisher="exact", likelihood="gaussian")
    >>> model(torch.ones(4, 3)).sum().backward()
    >>> optimizer.step()
    >>> round(float(ngd_torch.kronecker(optimizer).trace()), 4)
    8.0
    """
    curvature = getattr(optimizer, "curvature", None)
    method = getattr(curvature, "method", optimizer)
    if curvature is None or not isinstance(method, (KFAC, EKFAC)):
        msg = (
            f"The optimizer is one of {type(method).__name__}, which keeps no factors that "
            "multiply to a Fisher; expected one of K-FAC or EKFAC."
        )
        raise TypeError(msg)
    with torch.no_grad():
        state = curvature.ranks.whole(curvature.state)
        known = {spec.name for spec, layer in state.layers.items() if bool(layer.weight > 0)}
        found = curvature.layers, curvature.uncovered
        kept = _kept(curvature.model, found, known, "there are no statistics of it yet", uncovered)
        state = state._replace(layers={layer.spec: state.layers[layer.spec] for layer in kept})
        operator = operators.kronecker(state, dtype=dtype)
        return _on_parameters(operator, kept, curvature.model)


class _Keeper:
    """Keeps the records of one pass."""

    def __init__(self) -> None:
        self.records: dict[str, list[LayerRecord]] = {}

    def wanted(self) -> bool:
        return True

    def looking(self) -> bool:
        return True

    def deliver(self, found: dict[str, list[LayerRecord]], share: float = 1.0) -> None:
        self.records.update(found)

    def weighs(self, layer: Layer) -> bool:
        return False

    def weights(self, layer: Layer, examples: int) -> torch.Tensor:
        raise NotImplementedError

    def factors(self, layer: Layer, rows: int) -> bool:
        return False

    def keep(self, name: str, rows: Rows) -> None:
        raise NotImplementedError

    def read_elsewhere(self, names: list[str]) -> None:
        msg = (
            f"The weight of {', '.join(map(repr, names))} is read without a call of its layer, as "
            "by functional.linear(h, embedding.weight), which no hook sees; call a module there, "
            "as an nn.Linear with that weight."
        )
        raise ValueError(msg)


def _kept(
    model: nn.Module, found: Found, known: Collection[str], reason: str, uncovered: str
) -> list[Layer]:
    """Layers of which something is known; all parameters are of these, or they may be left out."""
    layers, reasons = found
    why = {name: text for name, text in reasons.items() if text not in UNTRAINED}
    idle = {p for layer in layers if layer.spec.name not in known for p in layer.parameters}
    why |= {name: reason for name, p in model.named_parameters() if p in idle}
    check_covered(why, uncovered)
    kept = [layer for layer in layers if idle.isdisjoint(layer.parameters)]
    if not kept:
        msg = "No parameter that needs a gradient is in a layer with curvature."
        raise ValueError(msg)
    return kept


def _on_parameters(
    operator: FisherOperator | KroneckerOperator, layers: Sequence[Layer], model: nn.Module
) -> MappedOperator:
    """Operator on tensors by name."""
    held = {p for layer in layers for p in layer.parameters}
    names = {p: name for name, p in model.named_parameters() if p in held}
    shapes = {name: tuple(p.shape) for p, name in names.items()}

    def to_blocks(arrays: Mapping[str, torch.Tensor]) -> dict[LayerSpec, torch.Tensor]:
        return {
            layer.spec: layer.joined(*(whole(arrays[names[p]]) for p in layer.parameters))
            for layer in layers
        }

    def from_blocks(blocks: Mapping[LayerSpec, torch.Tensor]) -> dict[str, torch.Tensor]:
        like = next(iter(blocks.values()))
        parts = {p: like.new_zeros(p.shape) for p in names}
        for layer in layers:
            layer.put(blocks[layer.spec], parts)
        return {name: parts[p] for p, name in names.items()}

    return MappedOperator(operator, shapes, to_blocks, from_blocks)
