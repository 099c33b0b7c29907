"""Layer inputs and output gradients of a model's own forward and backward passes.

The hooks know their owner by a weak reference, and the owner knows the model: so a model that is
dropped is freed at once, and a hook whose owner is gone does nothing.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ngd_torch._heads import Heads
from ngd_torch._layers import RULES, Layer
from ngd_torch._passes import Owner, Uses
from ngd_torch._reads import read_elsewhere
from ngd_torch._rows import Rows, watch_rows
from ngd_torch._shards import is_sharded
from ngd_torch._unrolled import fused, watch
from ngd_torch._weighing import Weigh
from ngd_torch._weighted import weighted

__all__ = ["Capture"]


class Switch:
    """Whether passes may have to be recorded, and whether one is; all a compiled model looks at.

    The owner arms it at the end of a step; a pass that is not wanted disarms it.
    """

    armed = True
    live = False


class Capture:
    """Hooks that turn the passes of a model into records.

    Parameters
    ----------
    model : nn.Module
        Network; forward passes in training mode, with gradients enabled, are looked at while
        ``switch.armed``.
    layers : sequence of Layer
        Layers to record.
    fisher : "mc", "exact" or "empirical"
        Of which gradients.
    heads : Heads
        Outputs and their losses.
    loss_reduction : "mean" or "sum"
        Of the loss over the examples, for ``fisher="empirical"``.
    loss_scale : callable or None
        ``loss_scale()``: what the training loss is multiplied by, for ``fisher="empirical"``.
    chunk_bytes : int or None
        As in `Uses`.
    outputs : collection of str
        As in `Uses`.
    owner : Owner
        Who is told.
    seed : int
        Of the generators that labels are sampled with.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        *,
        fisher: str,
        heads: Heads,
        loss_reduction: str,
        loss_scale: Callable[[], float] | None,
        chunk_bytes: int | None,
        outputs: Collection[str],
        owner: Owner,
        seed: int,
    ) -> None:
        self.heads, self.loss_scale, self.chunk_bytes = heads, loss_scale, chunk_bytes
        self.outputs = outputs
        self.model = weakref.ref(model)
        self.layers = {layer.weight: layer for layer in layers}
        # a sharded weight has another parameter in its place during a forward pass
        self.sharded: dict[nn.Module, Layer] = {}
        self.parts = {(layer.weight, layer.first): layer for layer in layers}
        self.time_first: set[tuple[int, ...]] = set()
        self.fisher, self.loss_reduction = fisher, loss_reduction
        self.owner, self.seed = weakref.ref(owner), seed
        self.generators: dict[torch.device, torch.Generator] = {}
        self.uses: Uses | None = None
        self.passes: weakref.WeakSet[Uses] = weakref.WeakSet()
        self.compiled = type(model).__name__ == "OptimizedModule"  # what torch.compile gives
        self.stance: Any = None
        self.checked = False
        self.switch = Switch()
        hook = partial(partial, switch=self.switch, me=weakref.ref(self))
        self.handles = [
            model.register_forward_pre_hook(hook(_begin)),
            model.register_forward_hook(hook(_end), with_kwargs=True, always_call=True),
            *(watch(module, weakref.ref(self)) for module in fused(model, set(self.layers))),
        ]
        weights = set(self.layers)
        for module in model.modules():
            if getattr(module, "weight", None) not in weights:
                continue
            if is_sharded(module.weight):
                self.sharded[module] = self.layers[module.weight]
            if module is not model:
                self.handles.append(module.register_forward_hook(hook(_used), with_kwargs=True))
        if getattr(model, "weight", None) in weights:
            first = model.register_forward_hook(hook(_used), prepend=True, with_kwargs=True)
            self.handles.insert(0, first)

    def close(self) -> None:
        """Remove all hooks, also those of passes that wait for a loss."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for uses in self.passes:
            uses.drop()

    def begin(self, module: nn.Module) -> None:
        """Start to collect uses of layers."""
        if self.model() is not module:  # a copied model brings copies of the hooks
            return
        owner = self.owner()
        if self.uses is not None:  # the forward pass before was broken off
            self.uses.drop()
            self.uses = None
        self.switch.armed = self.switch.live = owner is not None and owner.looking()
        if owner is None or not owner.wanted():
            return
        self.uses = Uses(
            self.owner,
            sampled=self.fisher != "empirical",
            chunk_bytes=self.chunk_bytes,
            outputs=self.outputs,
        )
        self.passes.add(self.uses)
        self.time_first.clear()
        if self.compiled:  # layers are looked at one by one, and the graph stays whole for later
            self.stance = torch.compiler.set_stance("force_eager")

    def unrolls(self) -> bool:
        """Tell whether a pass is being recorded."""
        return self.uses is not None

    def turned(self, shape: tuple[int, ...]) -> None:
        """Take note that a module's input is of shape (time, N)."""
        self.time_first.add(shape)

    def holds(self, weight: Any, first: int) -> bool:
        """Tell whether a layer begins at this row of a weight."""
        return (weight, first) in self.parts

    def product(self, weight: Any, first: int, x: torch.Tensor, z: torch.Tensor) -> None:
        """Note a use of such a layer."""
        if self.holds(weight, first):
            self.read(self.parts[weight, first], x, z)

    def weighing(self, weight: Any, first: int) -> Weigh | None:
        """Weights of the rows of such a layer's input, if its gradient is to have them."""
        layer, owner = self.parts.get((weight, first)), self.owner()
        if layer is None or owner is None or self.uses is None or not owner.weighs(layer):
            return None
        return self.uses.weigh(layer)

    def used(self, module: Any, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor | None:
        """Note a use of a layer, or give another output in whose backward pass it has weights."""
        layer = self.layers.get(module.weight, self.sharded.get(module))
        if layer is None:
            return None
        owner = self.owner()
        if owner is not None and owner.weighs(layer) and self.uses is not None:
            return weighted(layer, x, z, self.uses.weigh(layer)) if z.requires_grad else None
        rows = x.numel() // max(1, x.shape[-1]) if x.ndim else 0
        if owner is not None and owner.factors(layer, rows):
            watch_rows(x, z, partial(_kept, self.owner, layer.spec.name))
        self.read(layer.seen_in(module).called(x, z), x, z)
        return None

    def read(self, layer: Layer, x: torch.Tensor, z: torch.Tensor) -> None:
        """Note that a layer turned x into z."""
        if self.uses is not None and z.requires_grad:
            self.uses.add(layer, x.detach(), z)

    def end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Carry sampled gradients back, or wait for those of the training loss."""
        if self.model() is not module:
            return
        uses, self.uses, self.switch.live = self.uses, None, False
        if uses is None:
            return
        if self.stance is not None:
            self.stance.__exit__(None, None, None)
            self.stance = None
        sampled = self.fisher != "empirical"
        terms = self.heads.terms(output, args, kwargs, sampled=sampled)
        if not terms or not (uses.places or uses.weighed):
            uses.drop()
            return
        examples, *rest = terms[0].outputs.shape
        if (examples, *rest[:1]) in self.time_first and examples != rest[0]:
            msg = (
                f"The model's output has shape {tuple(terms[0].outputs.shape)}, time first like "
                "the input of its recurrent or attention modules; its first axis must be the "
                "examples, so return outputs.transpose(0, 1)."
            )
            raise ValueError(msg)
        if not self.checked:
            self._check([term.outputs for term in terms], uses)
        if sampled:
            device = terms[0].outputs.device.type
            with torch.autocast(device, enabled=False):
                count, vectors = self.heads.vectors(self.fisher, terms, self._generator)
                uses.carry(examples, [term.outputs for term in terms], count, vectors)
            return
        spread = self.heads.spread(terms)
        scale = examples * spread**0.5 if self.loss_reduction == "mean" else spread**-0.5
        if self.loss_scale is not None:
            scale = scale / self.loss_scale()
        uses.await_loss(examples, scale)

    def _check(self, outputs: Sequence[torch.Tensor], uses: Uses) -> None:
        """Look once for weights that are read where no hook is."""
        self.checked, owner = True, self.owner()
        weights = {
            layer.spec.name: weight
            for weight, layer in self.layers.items()
            if layer.spec.name in uses.expected
            and layer.rule in RULES.values()
            and layer.rule.parts is None  # kernels read these, as often as they like
        }
        names = read_elsewhere(outputs, weights, uses.expected)
        if names and owner is not None:
            owner.read_elsewhere(names)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]


def _kept(owner: weakref.ref[Owner], name: str, rows: Rows) -> None:
    keeper = owner()
    if keeper is not None:
        keeper.keep(name, rows)


# A compiled model looks at the switch alone, as long as it is off.
def _begin(module: nn.Module, args: Any, *, switch: Switch, me: weakref.ref[Capture]) -> None:
    if switch.armed and module.training and torch.is_grad_enabled():
        _begun(me, module)


def _used(
    module: nn.Module,
    args: Any,
    kwargs: Any,
    output: Any,
    *,
    switch: Switch,
    me: weakref.ref[Capture],
) -> torch.Tensor | None:
    return _noted(me, module, args, kwargs, output) if switch.live else None


def _end(
    module: nn.Module,
    args: Any,
    kwargs: Any,
    output: Any,
    *,
    switch: Switch,
    me: weakref.ref[Capture],
) -> None:
    if switch.live:
        _ended(me, module, args, kwargs, output)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _begun(me: weakref.ref[Capture], module: nn.Module) -> None:
    capture = me()
    if capture is not None:
        capture.begin(module)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _noted(
    me: weakref.ref[Capture], module: nn.Module, args: Any, kwargs: Any, output: Any
) -> torch.Tensor | None:
    capture = me()
    x = args[0] if args else _by_keyword(module, kwargs)
    if capture is None or x is None or not isinstance(output, torch.Tensor):
        return None
    return capture.used(module, x, output)


def _by_keyword(module: nn.Module, kwargs: Any) -> Any:
    """First argument of a module's forward, if it was given by its name."""
    _, *names = inspect.signature(type(module).forward).parameters
    return kwargs.get(names[0]) if names else None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _ended(
    me: weakref.ref[Capture], module: nn.Module, args: Any, kwargs: Any, output: Any
) -> None:
    capture = me()
    if capture is not None:
        capture.end(module, args, kwargs, output)
