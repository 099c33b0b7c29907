"""Layers with a local Fisher layer in front of their weights.

Such a layer is the user's own module, of a class made from its class: `weight` and `bias` are
computed from trained `coordinates`, and all else (forward, hooks, attributes) stays as it was, as
in `torch.nn.utils.parametrize`, which knows no two tensors made of one parameter.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from ngd_core import LayerRecord, LayerSpec, factors, reconstruction
from ngd_core.methods.sngd_state import SNGDLayer
from ngd_core.reconstruction import LocalFisherLayer
from ngd_torch._layers import Layer, LayerRule

__all__ = [
    "LocalFisher",
    "Plan",
    "Reconstructed",
    "computed",
    "full_precision",
    "plan_of",
    "rebuild",
    "restore",
]

LOW = (torch.float16, torch.bfloat16)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which products are in the dtype of their factors."""
    if torch.amp.is_autocast_available(device.type):
        context: AbstractContextManager[Any] = torch.autocast(device.type, enabled=False)
        return context
    return nullcontext()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context without gradients and without autocast."""
    with torch.no_grad(), without_autocast(device):
        yield


class LocalFisher(nn.Module):  # type: ignore[misc]
    """Averaged local Fisher matrix of one layer, and the map that was made from it: buffers alone.

    Parameters
    ----------
    state : SNGDLayer
        Of `ngd_core.SNGD` in literal mode.
    weight : torch.Tensor
        Template of device and dtype; float32 at least, also if the model is cast later.
    """

    def __init__(self, state: SNGDLayer, weight: torch.Tensor) -> None:
        super().__init__()
        self.passes = 0
        self.uses: list[tuple[int, torch.Tensor]] | None = None
        dtype = torch.float32 if weight.dtype in LOW else weight.dtype
        for name, x in self._named(state).items():
            own = x.to(weight.device, dtype if x.is_floating_point() else None, copy=True)
            self.register_buffer(name, own)

    @staticmethod
    def _named(state: SNGDLayer) -> dict[str, torch.Tensor]:
        named = state._asdict()
        return {**named, **named["inverse"]._asdict()}

    @property
    def map(self) -> LocalFisherLayer:
        """Root and inverse root in use."""
        return LocalFisherLayer(self.root, self.inverse, self.good)

    @property
    def state(self) -> SNGDLayer:
        """As the method of the core takes it."""
        return SNGDLayer(self.fisher, self.weight, self.prior, self.rejected, self.map)

    @state.setter
    def state(self, state: SNGDLayer) -> None:
        for name, x in self._named(state).items():
            setattr(self, name, x)

    def get_extra_state(self) -> dict[str, int]:
        """Training passes so far."""
        return {"passes": self.passes}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Take what `get_extra_state` gave."""
        self.passes = state["passes"]

    def _apply(self, fn: Any, recurse: bool = True) -> LocalFisher:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, x in self._buffers.items():
            if x.dtype in LOW:
                self._buffers[name] = before[name].to(x.device)
        return self


class _Weights(torch.autograd.Function):  # type: ignore[misc]
    """``w = w' R^-1``; the gradient is pulled back by the map in use when it arrives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(coordinates: torch.Tensor, local: LocalFisher) -> torch.Tensor:
        with full_precision(coordinates.device):
            own = coordinates.to(local.root.dtype)
            return reconstruction.weights(local.map, own).to(coordinates.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, LocalFisher], _: Any) -> None:
        ctx.local = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        with without_autocast(grad.device):
            own = grad.to(ctx.local.root.dtype)
            return reconstruction.pull_back(ctx.local.map, own).to(grad.dtype), None


class Plan(NamedTuple):
    """What does not change of a reconstructed layer.

    Parameters
    ----------
    spec : LayerSpec
        The layer.
    rule : LayerRule
        How the module is read.
    shape : torch.Size
        Of its weight.
    per_output : bool
        Whether each output has a matrix of its own, by the ReLU metric.
    """

    spec: LayerSpec
    rule: LayerRule
    shape: torch.Size
    per_output: bool


class Reconstructed(nn.Module):  # type: ignore[misc]
    """What the class of a reconstructed layer has before the layer's own class."""

    coordinates: nn.Parameter
    local_fisher: LocalFisher

    @property
    def weight(self) -> torch.Tensor:
        """Weight that the layer computes with."""
        return computed(self)[0]

    @property
    def bias(self) -> torch.Tensor | None:
        """Bias that the layer computes with."""
        return computed(self)[1]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the layer's own class does, and note what it saw."""
        self.__dict__["_computed"] = computed(self)
        try:
            output = super().forward(*args, **kwargs)
        finally:
            del self.__dict__["_computed"]
        if self.local_fisher.uses is not None and torch.is_grad_enabled():
            _note(self, args[0] if args else next(iter(kwargs.values())), output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Reconstructed:
        new: Reconstructed = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        msg = (
            "A layer with a local Fisher layer cannot be pickled; save the state_dict, or the "
            "whole of ngd_torch.fold(model)."
        )
        raise TypeError(msg)


def plan_of(module: Reconstructed) -> Plan:
    """Tell what does not change of the layer."""
    plan: Plan = module.__dict__["_plan"]
    return plan


# not traced: a compiled model reads the map in use, not the one it was compiled with
@torch.compiler.disable  # type: ignore[untyped-decorator]
def computed(module: Reconstructed) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of the coordinates; once in a forward pass."""
    if "_computed" in module.__dict__:
        parts: tuple[torch.Tensor, torch.Tensor | None] = module.__dict__["_computed"]
        return parts
    spec, rule, shape, _ = plan_of(module)
    block = _Weights.apply(module.coordinates, module.local_fisher)
    weight, bias = factors.split(spec, block)
    weight = rule.restore(module, weight).reshape(shape)
    return weight, bias if spec.bias else module._parameters.get("bias")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _note(module: Reconstructed, x: torch.Tensor, z: torch.Tensor) -> None:
    """Keep the local Fisher matrix of one use, and the number of rows it is a mean of."""
    uses = module.local_fisher.uses
    if uses is None or not z.numel():
        return
    spec, rule, _, per_output = plan_of(module)
    with full_precision(x.device):
        a, z = rule.inputs(module, x.detach()), rule.outputs(module, z.detach())
        if spec.kind == "dense":
            a, z = a.reshape(-1, a.shape[-1]), z.reshape(-1, z.shape[-1])
        local = factors.relu_fisher if per_output else factors.linear_fisher
        matrix = local(spec, LayerRecord(a, z, z))
    uses.append((z.numel() // spec.out_features, matrix))


@functools.cache
def _with_local_fisher(kind: Any) -> Any:
    return type(f"Reconstructed{kind.__name__}", (Reconstructed, kind), {})


def rebuild(layer: Layer, state: SNGDLayer, per_output: bool) -> None:
    """Give a layer a local Fisher layer, in place."""
    module: Any = layer.module
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    block = factors.join(layer.spec, layer.rule.layout(module, weight), bias)
    for name in ("weight", "bias") if layer.spec.bias else ("weight",):
        del module._parameters[name]
    module.coordinates = nn.Parameter(block.contiguous())
    module.local_fisher = LocalFisher(state, weight)
    module.__dict__["_plan"] = Plan(layer.spec, layer.rule, weight.shape, per_output)
    kind: Any = type(module)
    module.__class__ = _with_local_fisher(kind)


def restore(module: Reconstructed) -> None:
    """Undo `rebuild` at the weights of now, in place."""
    with torch.no_grad():
        weight, bias = computed(module)
    own, kept = module._parameters, dict(module._parameters)
    trained = kept.pop("coordinates").requires_grad
    own.clear()
    own["weight"] = nn.Parameter(weight.clone(), trained)
    if plan_of(module).spec.bias and bias is not None:
        own["bias"] = nn.Parameter(bias.clone(), trained)
    own.update(kept)
    del module.local_fisher, module.__dict__["_plan"]
    module.__class__ = type(module).__mro__[2]
