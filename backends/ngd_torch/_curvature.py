"""A method of the core at work on a PyTorch model: capture, schedule, state, directions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from ngd_core import (
    EKFAC,
    FNGD,
    KFAC,
    SNGD,
    SOFIM,
    BasisNoise,
    DenseNGD,
    Hyper,
    Info,
    LayerRecord,
    Method,
    ProjectiveKFAC,
    TridiagonalKFAC,
    factors,
)
from ngd_core.step import due
from ngd_core.types import BAD_GRADIENT, LayerSpec
from ngd_torch._capture import Capture
from ngd_torch._heads import Heads
from ngd_torch._layers import RULES, UNTRAINED, Layer, LayerRule, find_layers
from ngd_torch._ranks import Keepers, Ranks, gathered, unwrapped
from ngd_torch._rows import Rows, can_keep
from ngd_torch._shards import resharded
from ngd_torch._stored import check_arrays, entry
from ngd_torch._trees import leaves, rebuilt
from ngd_torch._weighted import can_weigh

__all__ = ["Curvature"]

Fisher = Literal["mc", "exact", "empirical"]


class Curvature:
    """Statistics, inverses and directions of a model's layers.

    Parameters
    ----------
    model : nn.Module
        Network, called as a whole in training.
    method : Method
        Frozen options of a method of the core.
    damping, decay : float
        Of `ngd_core.Hyper`; may be set at any time.
    fisher : "mc", "exact" or "empirical"
        Of which gradients statistics are taken.
    likelihood : str, pair, mapping or sequence
        Of the outputs, as `Heads`, for "mc" and "exact".
    factor_every, inverse_every : int
        Steps between two statistics and between two refreshes.
    early : bool
        Whether there are further ones in the first steps, as `ngd_core.step.due`.
    loss_reduction : "mean" or "sum"
        Of the training loss over the batch.
    loss_scale : callable or None
        Factor by which the training loss is multiplied before its backward pass.
    class_axis : int or None
        Axis of the outputs that holds the classes; needed where there are more than two.
    examples : "rows", "positions" or None
        What one example is; needed where the outputs have positions.
    mask : callable or None
        Of the model's arguments: where the outputs have a loss.
    factor_dtype : "float32", "float64" or None
        Of the state; None: that of the parameters, at least float32.
    chunk_bytes : int
        Bound on what is captured of a layer at a time.
    sharing : "expand" or "reduce"
        Treatment of shared positions.
    uncovered : "gradient" or "error"
        What happens to parameters in no layer.
    layers : mapping of type to LayerRule
        Rules besides those for PyTorch's own modules.
    seed : int
        Of the labels sampled for "mc"; each rank adds its number.
    inverse_ranks : int, "each" or None
        Ranks that keep each layer's inverse.
    process_group : ProcessGroup or None
        Ranks that train together.
    weighted_backward : bool
        Whether FNGD's later epochs weight gradients within the backward pass.
    stagger : bool
        Whether after the first refresh each layer has its own step of the interval for it.
    trained : collection of nn.Parameter or None
        Those that an optimizer steps; layers of others are left out. None: all.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        damping: float,
        decay: float,
        fisher: Fisher,
        likelihood: Any,
        factor_every: int,
        inverse_every: int,
        early: bool,
        loss_reduction: str,
        loss_scale: Callable[[], float] | None,
        class_axis: int | None,
        examples: str | None,
        mask: Callable[..., torch.Tensor] | None,
        factor_dtype: str | None,
        chunk_bytes: int,
        sharing: str,
        uncovered: str,
        layers: Mapping[type, LayerRule] | None,
        seed: int,
        inverse_ranks: Keepers,
        process_group: Any,
        weighted_backward: bool,
        stagger: bool,
        trained: Collection[nn.Parameter] | None = None,
    ) -> None:
        _one_of("fisher", fisher, ("mc", "exact", "empirical"))
        _one_of("loss_reduction", loss_reduction, ("mean", "sum"))
        _one_of("uncovered", uncovered, ("gradient", "error"))
        _one_of("examples", examples, ("rows", "positions", None))
        _one_of("factor_dtype", factor_dtype, ("float32", "float64", None))
        for name, value in (
            ("factor_every", factor_every),
            ("inverse_every", inverse_every),
            ("chunk_bytes", chunk_bytes),
        ):
            if not isinstance(value, int) or value < 1:
                msg = f"{name} is {value!r}; expected an integer >= 1."
                raise ValueError(msg)
        if not 0 <= damping < float("inf"):
            msg = f"damping is {damping}; expected a finite number >= 0."
            raise ValueError(msg)
        if not 0 <= decay <= 1:
            msg = f"decay is {decay}; expected a number in [0, 1]."
            raise ValueError(msg)
        trainable(model.parameters())
        if isinstance(method, TOGETHER):
            msg = (
                f"{type(method).__name__} looks at all layers of a batch together, and the hooks "
                "hand layers over one by one; use KFAC, EKFAC, SNGD, FNGD or ProjectiveKFAC"
                f"{', or ngd_torch.SOFIM' if isinstance(method, SOFIM) else ''}."
            )
            raise ValueError(msg)
        if isinstance(method, FNGD) and examples == "positions":
            msg = (
                "FNGD weights rows of a batch: no single position's gradient is there to be "
                "weighted; leave examples out."
            )
            raise ValueError(msg)
        if isinstance(method, FNGD) and stagger:
            msg = "FNGD has no inverses to be refreshed within an interval; leave stagger out."
            raise ValueError(msg)
        self.model, self.method = unwrapped(model), method
        self.weighted_backward, self.stagger = weighted_backward, stagger
        self.damping, self.decay = damping, decay
        self.factor_every, self.inverse_every = factor_every, inverse_every
        self.early = early
        self.rules, self.sharing = {**RULES, **(layers or {})}, sharing
        self.strict = uncovered == "error"
        self.layers, self.uncovered = self._found(trained)
        self.by_name = {layer.spec.name: layer for layer in self.layers}
        self.steps = self.epochs = self.begun = 0
        self.index: torch.Tensor | None = None
        self.due = False  # statistics and a refresh out of turn, for new layers
        self.seen: set[str] = set()
        self.unseen = {layer.spec.name for layer in self.layers}
        self.factor_dtype = None if factor_dtype is None else getattr(torch, factor_dtype)
        specs, weight = [layer.spec for layer in self.layers], self.layers[0].weight
        self._ranks = partial(Ranks, keepers=inverse_ranks, process_group=process_group)
        self.ranks = self._ranks(model, method, specs)
        if self.ranks.group.size > 1 and isinstance(method, FNGD) and method.share == "sample":
            msg = "FNGD with share='sample' works in one process; use 'position' or 'iteration'."
            raise ValueError(msg)
        dtype = self.factor_dtype or weight.dtype
        like = torch.zeros((), dtype=dtype, device=weight.device)
        self.seed = seed
        self.state = self.ranks.trimmed(self._fresh(specs, like))
        self.home: tuple[torch.device, torch.dtype] | None = None
        self.waiting: dict[LayerSpec, list[LayerRecord]] = {}
        self.records: dict[LayerSpec, LayerRecord] = {}
        self.rows: dict[str, Rows] = {}
        self.sizes: dict[str, tuple[float, int | tuple[int, int], int]] = {}
        self.info: dict[LayerSpec, Info] = {}
        self.looked_up: tuple[Any, dict[tuple[LayerSpec, int], torch.Tensor]] = None, {}
        if weighted_backward:
            self._check_weighted(loss_reduction, loss_scale)
        if self._factoring and self.ranks.group.size > 1:
            msg = (
                f"factored_gradient is True, but there are {self.ranks.group.size} processes, "
                "whose gradients are no product of one's rows; leave it out."
            )
            raise ValueError(msg)
        whole = isinstance(method, FNGD) or self.ranks.gathers
        self._capture = partial(
            Capture,
            fisher=fisher,
            heads=Heads(likelihood, class_axis, examples, mask),
            loss_reduction=loss_reduction,
            loss_scale=loss_scale,
            chunk_bytes=None if whole else chunk_bytes,
            seed=seed + self.ranks.group.rank,
        )
        self.capture = self._capture(self.model, self.layers, outputs=self._outputs(), owner=self)
        self.capture.switch.armed = self.looking()

    def _found(
        self, trained: Collection[nn.Parameter] | None
    ) -> tuple[list[Layer], dict[str, str]]:
        """Layers of the model as it is now, and the other parameters."""
        found, uncovered = find_layers(
            self.model, self.rules, self.sharing, self.method.kinds, trained
        )
        plain = {name: why for name, why in uncovered.items() if why not in UNTRAINED}
        if self.strict and plain:
            name, why = next(iter(plain.items()))
            msg = (
                f"{len(plain)} parameters are in no layer with curvature, the first is "
                f"{name!r} ({why}); add a rule with layers={{...}}, freeze them, or pass "
                "uncovered='gradient' to train them along their gradients."
            )
            raise ValueError(msg)
        if not found:
            msg = (
                "The model has no layer with curvature; the rules know "
                f"{', '.join(kind.__name__ for kind in self.rules)}. Add one with layers={{...}}."
            )
            raise ValueError(msg)
        return found, uncovered

    def _fresh(self, specs: list[LayerSpec], like: torch.Tensor) -> Any:
        """State without statistics; a random basis is that of the seed, on every rank."""
        if not isinstance(self.method, ProjectiveKFAC) or self.method.basis == "top":
            return self.method.init(specs, like)
        stream = torch.Generator().manual_seed(self.seed)
        to = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
        noise = {
            spec: BasisNoise(
                *(
                    None if shape is None else torch.randn(shape, generator=stream).to(**to)
                    for shape in shapes
                )
            )
            for spec, shapes in self.method.noise_shapes(specs).items()
        }
        return self.method.init(specs, like, noise=noise)

    def look_again(self, trained: Collection[nn.Parameter] | None) -> None:
        """Take the model's layers as they are now; layers that stay keep their statistics."""
        if self.ranks.group.size > 1:
            msg = (
                f"Layers cannot be added over {self.ranks.group.size} processes; make a new "
                "optimizer on every rank."
            )
            raise ValueError(msg)
        self._settle()
        layers, self.uncovered = self._found(trained)
        known = {(layer.weight, layer.first): layer.spec for layer in self.layers}
        stay = {
            layer.spec: old
            for layer in layers
            if (old := known.get((layer.weight, layer.first)))
            and replace(old, name=layer.spec.name) == layer.spec
        }
        like = layers[0].weight.detach().to(self.factor_dtype)
        fresh = self._fresh([layer.spec for layer in layers], like)
        states = {
            spec: self.state.layers[stay[spec]] if spec in stay else state
            for spec, state in fresh.layers.items()
        }
        self.state, self.home = fresh._replace(layers=states), None
        self.ranks = self._ranks(self.model, self.method, list(states))
        self.records = {
            spec: self.records[old] for spec, old in stay.items() if old in self.records
        }
        self.seen = {spec.name for spec, old in stay.items() if old.name in self.seen}
        self.sizes = {
            spec.name: self.sizes[old.name] for spec, old in stay.items() if old.name in self.sizes
        }
        self.unseen = {
            spec.name for spec in states if spec not in stay or stay[spec].name in self.unseen
        }
        self.info = {}
        self.rows.clear()
        gone = len(states) < len(self.layers)  # turns are dealt anew
        self.due = self.due or len(stay) < len(states) or (self.stagger and gone)
        self.layers, self.by_name = layers, {layer.spec.name: layer for layer in layers}
        generators = self.capture.generators
        self.capture.close()
        self.capture = self._capture(self.model, layers, outputs=self._outputs(), owner=self)
        self.capture.generators = generators
        self.capture.switch.armed = self.looking()

    def _outputs(self) -> set[str]:
        """Names of layers whose outputs the method looks at."""
        if not isinstance(self.method, SNGD) or self.method.metric != "relu":
            return set()
        return set(self.by_name).difference(self.method.linear_layers)

    def wanted(self) -> bool:
        """Tell whether the passes of this step are to be recorded."""
        every = isinstance(self.method, FNGD) or self.due
        return every or self._due(self.factor_every)

    def _due(self, every: int) -> bool:
        """Tell whether what is done every so many steps is due in this one."""
        return bool(due(self.steps, every, early=self.early))

    @property
    def _factoring(self) -> bool:
        """Whether directions may be made from the rows of a backward pass."""
        return isinstance(self.method, KFAC) and self.method.factored_gradient

    def looking(self) -> bool:
        """Tell whether anything of the passes of this step is to be kept."""
        return self.wanted() or (self._factoring and not self.capture.compiled)

    def factors(self, layer: Layer, rows: int) -> bool:
        """Tell whether a layer's direction may be made from so many rows."""
        return (
            isinstance(self.method, KFAC)
            and not self.capture.compiled
            and self.method.factors_gradient(layer.spec, rows)
            and can_keep(layer)
        )

    def keep(self, name: str, rows: Rows) -> None:
        """Take the rows of a backward pass through a layer, the last before the step."""
        self.rows[name] = rows

    def _intact(self) -> dict[LayerSpec, LayerRecord]:
        """Find layers whose gradient is still what their rows made, and give these as records."""
        return {
            layer.spec: rows.record()
            for layer in self.layers
            if (rows := self.rows.get(layer.spec.name)) and rows.made_of(layer.weight.grad)
        }

    def _check_weighted(self, loss_reduction: str, loss_scale: Any) -> None:
        """Reject what a gradient that is the direction cannot go together with."""
        method, ranks = self.method, self.ranks.group.size
        wrong = {
            f"{type(method).__name__} has no weights, only FNGD has": not isinstance(method, FNGD),
            "FNGD's guard needs the gradient": isinstance(method, FNGD) and method.guard,
            "the loss has to be a mean, unscaled": loss_reduction != "mean" or loss_scale,
            f"there are {ranks} processes, and it works in one": ranks > 1,
        }
        for why in (why for why, so in wrong.items() if so):
            msg = f"weighted_backward is True, but {why}; leave it out."
            raise ValueError(msg)

    def weighs(self, layer: Layer) -> bool:
        """Tell whether the backward pass is to weight the examples in the gradient of a layer."""
        return self.weighted_backward and not self.recording and can_weigh(layer)

    def weights(self, layer: Layer, examples: int) -> torch.Tensor:
        """Weights of the examples of a batch, of which there is one a step, in a layer."""
        if not isinstance(self.method, FNGD):
            msg = f"{type(self.method).__name__} has no weights."
            raise TypeError(msg)
        self._settle()
        spec = layer.spec
        if spec.name in self.seen and self._begun(spec.name):
            raise RuntimeError(TWO_BATCHES.format(spec.name))
        self.seen.add(spec.name)
        self.unseen.discard(spec.name)
        if self.method.share != "position":
            return self._looked_up(self.method, spec, examples)
        state, known = self.looked_up
        if state is not self.state:
            known = {}
            self.looked_up = self.state, known
        if (spec, examples) not in known:
            known[spec, examples] = self._looked_up(self.method, spec, examples)
        return known[spec, examples]

    def _looked_up(self, method: FNGD, spec: LayerSpec, examples: int) -> torch.Tensor:
        with torch.no_grad():
            found, _ = method.weights(self.state, spec, examples, **self._which())
        return found

    def _has_direction(self, layer: Layer) -> bool:
        """Tell whether a layer's gradient is its direction already."""
        return self.weighs(layer) and layer.spec.name not in self.unseen

    def deliver(self, found: dict[str, list[LayerRecord]], share: float = 1.0) -> None:
        """Fold records into the statistics, now or when those of other ranks are here."""
        self._settle()
        for name, uses in found.items():
            spec = self.by_name[name].spec
            record = factors.joined(spec, uses)
            if self.ranks.gathers:
                if isinstance(self.method, FNGD) and not self._begun(name):
                    self.waiting.pop(spec, None)  # of a step that was given up
                self.waiting.setdefault(spec, []).append(record)
            else:
                self._fold(spec, record, share)

    def _fold(self, spec: LayerSpec, record: LayerRecord, share: float = 1.0) -> None:
        """Fold a batch into the statistics: the first of a step forgets, further ones add."""
        name = spec.name
        self._measure(spec, record, share)
        if isinstance(self.method, FNGD):
            if name in self.seen and self._begun(name):
                raise RuntimeError(TWO_BATCHES.format(name))
            self.records[spec] = record
        decay = 1.0 if name in self.seen else self.decay
        self.seen.add(name)
        self.unseen.discard(name)
        if self.recording:
            hyper = Hyper(damping=self.damping, decay=decay, share=share)
            with torch.no_grad():
                self.state = self.method.accumulate(
                    self.state, {spec: record}, hyper, **self._which()
                )

    def _begun(self, name: str) -> bool:
        """Tell whether a layer has a gradient, of a batch before that was not given up since."""
        grad = self.by_name[name].weight.grad
        return grad is not None and bool(grad.any())

    def _measure(self, spec: LayerSpec, record: LayerRecord, share: float) -> None:
        """Note examples, positions and vectors of a step's batch, which may come in parts."""
        vectors = record.g.shape[0] if factors.several_vectors(spec, record) else 1
        examples = record.a.shape[0]
        positions: int | tuple[int, int]
        if record.a.ndim == 4 and spec.kind == "conv2d":
            positions = record.g.shape[-2], record.g.shape[-1]
        else:
            positions = record.g.numel() // (vectors * examples * spec.out_features)
        further = spec.name in self.seen and not isinstance(self.method, FNGD)
        before = self.sizes[spec.name][0] if further else 0.0
        self.sizes[spec.name] = before + share * examples, positions, round(vectors / share)

    @property
    def recording(self) -> bool:
        """Whether records go into the statistics."""
        return not isinstance(self.method, FNGD) or self.method.recording(self.epochs)

    def epoch_end(self) -> None:
        """Close an epoch, for methods that reuse what they learnt in one."""
        with torch.no_grad():
            self.state, _ = self.method.refresh(self.state, Hyper(damping=self.damping))
        self.epochs += 1
        self.begun = self.steps

    def _which(self) -> dict[str, Any]:
        """Tell FNGD which batch it is, or which examples, if its coefficients go by that."""
        if not isinstance(self.method, FNGD) or self.method.share == "position":
            return {}
        if self.method.share == "iteration":
            number = self.steps - self.begun
            return {"index": torch.tensor(number, device=self.layers[0].weight.device)}
        if self.index is None:
            msg = (
                "FNGD with share='sample' has to know the examples: before the backward pass set "
                "optimizer.index to their numbers in the data set."
            )
            raise RuntimeError(msg)
        return {"index": self.index}

    def directions(self) -> dict[nn.Parameter, torch.Tensor]:
        """Preconditioned gradients of all covered parameters that have one; ends the step."""
        self.ranks.check()
        self._settle()
        hyper = Hyper(damping=self.damping, decay=self.decay)
        parts: dict[nn.Parameter, torch.Tensor] = {}
        device = self.layers[0].weight.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            if self.ranks.gathers:
                self._take_gathered()
            if not isinstance(self.method, FNGD):
                self._refresh(hyper)
            records = self._intact() if self._factoring else self.records
            self.info, finite = {}, True
            for layers in self.ranks.portions(self.layers):
                blocks = {
                    layer.spec: block
                    for layer in layers
                    if not self._has_direction(layer) and (block := layer.block()) is not None
                }
                self._warn_of_unseen(blocks)
                if isinstance(self.method, FNGD):  # an idle layer has a gradient and no examples
                    blocks = {spec: g for spec, g in blocks.items() if spec in self.records}
                found, info = self.ranks.directions(
                    self.state, blocks, records, hyper, **self._which()
                )
                self.info.update(info)
                for spec, block in found.items():
                    layer = self.by_name[spec.name]
                    layer.put(block, parts)
                    parts.update({p: resharded(p, parts[p]) for p in layer.parameters})
                # the schedule begins with gradients that are finite; a look at them costs a wait
                if not self.steps:
                    finite = finite and all(bool(torch.isfinite(g).all()) for g in blocks.values())
        if finite:
            self.steps += 1
            self.due = False
        self.capture.switch.armed = self.looking()
        self.index = None
        self.seen.clear()
        self.records.clear()
        self.rows.clear()
        return parts

    def _refresh(self, hyper: Hyper) -> None:
        """Make the inverses that are due, and join what EKFAC measures in the other bases."""
        layers = self.state.layers
        whole = self.due or self._due(self.inverse_every)
        if self.stagger and self.steps >= self.inverse_every:
            whole = self.due
        turns = self._turns() if self.stagger and not whole else set()
        fresh = layers if whole else {spec: layers[spec] for spec in layers if spec.name in turns}
        rest = {spec: layers[spec] for spec in layers if spec not in fresh}
        if rest and isinstance(self.method, EKFAC) and self._due(self.factor_every):
            rest = self.ranks.joint(self.state._replace(layers=rest), partly=True).layers
        if fresh:
            fresh = self.ranks.refreshed(self.state._replace(layers=fresh), hyper).layers
        new = {spec: fresh[spec] if spec in fresh else rest[spec] for spec in layers}
        self.state = self.state._replace(layers=new)

    def _turns(self) -> set[str]:
        """Names of the layers that are refreshed at this step of a staggered interval."""
        at = self.steps % self.inverse_every
        places = staggered(len(self.layers), self.inverse_every, self.factor_every)
        return {layer.spec.name for layer, k in zip(self.layers, places, strict=True) if k == at}

    def sound(self) -> torch.Tensor | None:
        """Whether all gradients with a direction were finite; None if there was none."""
        codes = [info.code for info in self.info.values()]
        return torch.stack(codes).max() < BAD_GRADIENT if codes else None

    def _take_gathered(self) -> None:
        """Fold the batches of all ranks, which only now are there."""
        waiting, self.waiting = self.waiting, {}
        for spec, batches in gathered(waiting, self.ranks).items():
            for record in batches:
                self._fold(spec, record)

    def _warn_of_unseen(self, blocks: Mapping[LayerSpec, torch.Tensor]) -> None:
        """Warn once of layers that have a gradient though no forward pass came through them."""
        names = sorted(
            spec.name for spec, block in blocks.items() if spec.name in self.unseen and block.any()
        )
        if names:
            self.unseen.difference_update(names)
            warnings.warn(
                f"No forward pass in training mode came through {', '.join(map(repr, names))}, so "
                "there they follow their gradients; call the model as a whole, model(x), and each "
                "layer as a module (a PackedSequence is not looked at: pad instead).",
                stacklevel=4,
            )

    def read_elsewhere(self, names: list[str]) -> None:
        """Tell of layers whose weights are read without a call; FNGD cannot go on there."""
        msg = (
            f"The weight of {', '.join(map(repr, names))} is read without a call of its layer, as "
            "by functional.linear(h, embedding.weight), which no hook sees; call a module there, "
            "as an nn.Linear with that weight."
        )
        if isinstance(self.method, FNGD):
            raise RuntimeError(msg)
        warnings.warn(f"{msg} Until then its curvature is that of the calls alone.", stacklevel=4)

    def _settle(self) -> None:
        """Move the state to where the parameters are, in their dtype or float32."""
        like = self.layers[0].weight
        dtype = self.factor_dtype
        if dtype is None:
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        if self.home == (like.device, dtype):
            return
        self.home = like.device, dtype
        first = next(x for _, x in leaves(self.state) if x.is_floating_point())
        if first.device == like.device and first.dtype == dtype:
            return
        self.state = rebuilt(
            self.state,
            lambda _, x: x.to(like.device, dtype if x.is_floating_point() else None),
        )
        self.state = self.ranks.trimmed(self.state)

    def state_dict(self) -> dict[str, Any]:
        """State as plain tensors by name, as one process on all examples has it."""
        generators = self.ranks.everywhere(
            {
                str(device): generator.get_state()
                for device, generator in self.capture.generators.items()
            }
        )
        with torch.no_grad():
            whole = self.ranks.whole(self.state)
        return {
            "steps": self.steps,
            "epochs": self.epochs,
            "begun": self.begun,
            "due": self.due,
            "damping": self.damping,
            "decay": self.decay,
            "unseen": sorted(self.unseen),
            "arrays": {path: x.detach().clone() for path, x in leaves(whole)},
            "generators": generators[0],
            "generators_of_further_ranks": generators[1:],
        }

    def check(self, stored: Mapping[str, Any]) -> dict[torch.device, torch.Generator]:
        """Refuse a state that is not whole or not of these layers; give this rank's generators."""
        for name, kinds in STORED.items():
            entry(stored, name, kinds, ADVICE)
        check_arrays(stored["arrays"], leaves(self.state), ADVICE)
        every = [stored["generators"], *stored.get("generators_of_further_ranks", ())]
        rank, generators = self.ranks.group.rank, {}
        for device, state in (every[rank] if rank < len(every) else {}).items():
            try:
                generators[torch.device(device)] = torch.Generator(device)
                generators[torch.device(device)].set_state(state.cpu())
            except (AttributeError, RuntimeError, TypeError) as error:
                msg = (
                    f"The stored random generator of device {device!r} cannot be made here; "
                    "set 'generators' of the stored curvature to {} to begin new ones."
                )
                raise ValueError(msg) from error
        return generators

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Take a state that was stored for the same layers, by any number of ranks."""
        generators, arrays = self.check(stored), stored["arrays"]
        state = rebuilt(self.state, lambda path, x: arrays[path].to(x.device, copy=True))
        self.state, self.home = self.ranks.shared(state), None
        self.steps, self.epochs = stored["steps"], stored["epochs"]
        self.begun = stored.get("begun", 0)
        self.due = stored.get("due", False)
        self.damping, self.decay = stored["damping"], stored["decay"]
        self.capture.switch.armed = self.looking()
        self.seen.clear()
        self.waiting.clear()
        self.unseen = set(stored["unseen"])
        self.capture.generators = generators

    def close(self) -> None:
        """Remove all hooks."""
        self.capture.close()


ADVICE = "load a state of the same model and method"
STORED: Mapping[str, Any] = {
    "arrays": Mapping,
    "steps": int,
    "epochs": int,
    "damping": (int, float, torch.Tensor),
    "decay": (int, float, torch.Tensor),
    "unseen": (list, tuple, set),
    "generators": Mapping,
}
"""What a stored state must hold."""
TWO_BATCHES = (
    "Layer {!r} saw two batches in one step; FNGD weights the examples of one batch, so take a "
    "step for each, or pass them as one."
)
TOGETHER = (DenseNGD, SOFIM, TridiagonalKFAC)
"""Methods whose statistics are of several layers at once."""


def staggered(layers: int, inverse_every: int, factor_every: int) -> list[int]:
    """Step of the interval at which each of some layers is refreshed, after the first refresh.

    Evenly apart, and a step late rather than at one with statistics, which is dear already, where
    `factor_every` divides `inverse_every`.
    """
    even = (k * inverse_every // layers for k in range(layers))
    return [(at + (at % factor_every == 0)) % inverse_every for at in even]


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Parameters that need a gradient; there must be some."""
    found = [p for p in parameters if p.requires_grad]
    if not found:
        msg = "No parameter of the model needs a gradient; unfreeze those that are to be trained."
        raise ValueError(msg)
    return found


def _one_of(name: str, value: object, known: tuple[str | None, ...]) -> None:
    if value not in known:
        msg = f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}."
        raise ValueError(msg)
