"""Processes that train one model together: joint statistics, and inverses split over them.

A rank averages the statistics of its own examples. Averages of several ranks are joined when they
are needed: ``(sum_r w_r mean_r) / sum_r w_r``, the weights ``w_r`` in examples, is what one process
would have averaged over all examples, as older ones are discounted alike on every rank. The joint
average then goes on from there on every rank, with a weight of ``sum_r w_r / ranks``.

For inverses the ranks form a table of rows of `keepers` ranks. A layer belongs to one row, whose
ranks keep its inverse, and is inverted by one of them, which sends the inverse along its row at a
refresh. At a step directions are sent along the columns, each of which meets each row once
(derived here; KAISA, arXiv 2107.01739, has the same two ends and what is between them).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import distributed, nn

from ngd_core import EKFAC, KFAC, SNGD, Hyper, Info, LayerRecord, Method, ProjectiveKFAC, factors
from ngd_core.methods.dealt import dealt
from ngd_core.types import LayerSpec
from ngd_torch._shards import is_sharded
from ngd_torch._trees import leaves, rebuilt, stand_in

__all__ = ["ALONE", "Group", "Keepers", "Ranks", "gathered", "group_of", "summed", "unwrapped"]

T = TypeVar("T")
Keepers = int | Literal["each"] | None

BUCKET = 2**23
"""Numbers in one collective, unless one tensor has more."""
AVERAGED: Mapping[type, tuple[str, ...]] = {
    KFAC: ("a", "g"),
    EKFAC: ("a", "g", "scales"),
    SNGD: ("fisher",),
    ProjectiveKFAC: ("a/moment", "a/trace", "g/moment", "g/trace"),
}
"""Averages over examples in a layer's state."""
OWN = ("weight", "rejected", "prior")
"""What else is known to every rank; the rest of a layer's state is made by a refresh."""
SPLIT = (KFAC, SNGD)
"""Methods whose inverses are of no use before the direction."""


class Group(NamedTuple):
    """Processes that train together.

    Parameters
    ----------
    handle : ProcessGroup or None
        Of `torch.distributed`; None for a process by itself.
    rank, size : int
        Of this process within the group, and of the group.
    """

    handle: Any
    rank: int
    size: int


ALONE = Group(None, 0, 1)


def unwrapped(model: nn.Module) -> nn.Module:
    """Model within a `DistributedDataParallel`."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def group_of(process_group: Any) -> Group:
    """Find the processes of a group, or without one all that there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    handle = distributed.group.WORLD if process_group is None else process_group
    size = distributed.get_world_size(handle)
    return Group(handle, distributed.get_rank(handle), size) if size > 1 else ALONE


class Ranks:
    """What a process has to send and to receive for the layers of a model.

    Parameters
    ----------
    model : nn.Module
        As the user gave it, wrapped or not.
    method : Method
        Whose statistics they are.
    specs : sequence of LayerSpec
        The model's layers, in the same order on every rank.
    keepers : int, "each" or None
        Ranks that keep each layer's inverse; "each": every rank makes every inverse itself. None:
        as few as the method allows if parameters are sharded, otherwise "each".
    process_group : ProcessGroup or None
        Ranks that train together.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        specs: Sequence[LayerSpec],
        *,
        keepers: Keepers,
        process_group: Any,
    ) -> None:
        if process_group is None and isinstance(model, nn.parallel.DistributedDataParallel):
            process_group = model.process_group
        self.group, self.asked, self.method = group_of(process_group), process_group, method
        self.checked = False
        self.layers = [(spec.name, spec.block_shape) for spec in specs]
        self.sharded = any(is_sharded(p) for p in model.parameters())
        followed = isinstance(method, ProjectiveKFAC) and method.recursive is not False
        self.averaged: tuple[str, ...] = ()
        if not followed:
            kinds = (paths for kind, paths in AVERAGED.items() if isinstance(method, kind))
            self.averaged = next(kinds, ())
        self.keepers = _keepers(keepers, method, self.group.size, self.sharded and self.averaged)
        whose = dealt(specs, self.group.size)
        width = self.group.size if self.keepers == "each" else self.keepers
        self.makes = {spec for spec, rank in whose.items() if rank == self.group.rank}
        row = self.group.rank // width
        self.keeps = {spec for spec, rank in whose.items() if rank // width == row}
        self.row, self.column = _row_and_column(self.group, width, next(model.parameters()).device)

    @property
    def gathers(self) -> bool:
        """Whether the records of all ranks are brought together, averages not being enough."""
        return self.group.size > 1 and not self.averaged

    @property
    def together(self) -> Group:
        """Processes that have to agree before a step: those among which parameters are spread."""
        return self.group if self.sharded else ALONE

    def check(self) -> None:
        """Refuse to go on alone when other processes have come, or with ranks unlike this one."""
        if self.group is ALONE and group_of(self.asked).size > 1:
            msg = (
                "torch.distributed was initialised after the optimizer was made, which so knows "
                "of no other process; call init_process_group before making the optimizer."
            )
            raise RuntimeError(msg)
        if not self.checked:
            every = self.everywhere((type(self.method).__name__, self.keepers, self.layers))
            self.checked = True
            if any(one != every[0] for one in every):
                other = next(one for one in every if one != every[0])
                msg = (
                    f"The ranks have different methods, inverse_ranks or layers: {every[0]} and "
                    f"{other}; give all of them the same, or say with process_group which ranks "
                    "train together."
                )
                raise RuntimeError(msg)

    def joint(self, state: Any, *, partly: bool = False) -> Any:
        """State with averages over all ranks; `partly`: of EKFAC's scales alone."""
        if self.group.size == 1 or not self.averaged:
            return state
        paths = ("scales",) if partly else self.averaged
        weights = {spec: layer.weight for spec, layer in state.layers.items()}
        sums = summed(list(weights.values()), self.group.handle)
        totals = dict(zip(weights, sums, strict=True))
        parts = {
            (spec, path): x * torch.where(totals[spec] > 0, weights[spec] / totals[spec], 0.0)
            for spec, layer in state.layers.items()
            for path, x in leaves(layer)
            if path in paths
        }
        sums = summed(list(parts.values()), self.group.handle)
        means = dict(zip(parts, sums, strict=True))
        layers = {}
        for spec, layer in state.layers.items():
            new = rebuilt(layer, lambda path, x, spec=spec: means.get((spec, path), x))
            if not partly:
                new = new._replace(weight=totals[spec] / self.group.size)
            layers[spec] = new
        return type(state)(layers)

    def refreshed(self, state: Any, hyper: Hyper) -> Any:
        """State with joint averages and new inverses, each made where it is to be made."""
        state = self.joint(state)
        if self.keepers == "each":
            return self.method.refresh(state, hyper)[0]
        layers = dict(state.layers)
        mine = {spec: layer for spec, layer in layers.items() if spec in self.makes}
        if mine:
            layers.update(self.method.refresh(type(state)(mine), hyper)[0].layers)
        kept = {spec: layer for spec, layer in layers.items() if spec in self.keeps}
        return type(state)(layers | self._sent(kept, self.makes, self.row))

    def _sent(self, layers: Mapping[LayerSpec, Any], own: set[LayerSpec], group: Any) -> Any:
        """Layers with what a refresh made, of which each rank of the group has its `own`."""
        if group is None:
            return dict(layers)
        tensors = [
            x if spec in own else torch.zeros_like(x, memory_format=torch.contiguous_format)
            for spec, layer in layers.items()
            for path, x in leaves(layer)
            if self._made(path)
        ]
        theirs = iter(summed(tensors, group))
        return {
            spec: rebuilt(layer, lambda path, x: next(theirs) if self._made(path) else x)
            for spec, layer in layers.items()
        }

    def _made(self, path: str) -> bool:
        return path not in OWN and (path not in self.averaged or path == "scales")

    def directions(
        self,
        state: Any,
        blocks: Mapping[LayerSpec, torch.Tensor],
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        **further: Any,
    ) -> tuple[dict[LayerSpec, torch.Tensor], dict[LayerSpec, Info]]:
        """Directions of all layers with a gradient, from the ranks that keep their inverses."""
        if self.column is None:
            return self.method.direction(state, blocks, records, hyper, **further)
        kept = {spec: block for spec, block in blocks.items() if spec in self.keeps}
        found, infos = self.method.direction(state, kept, records, hyper)
        like = next(iter(state.layers.values())).weight
        tensors = []
        for spec, block in blocks.items():
            facts = like.new_zeros(2)
            if spec in found:
                facts = torch.stack([infos[spec].code.to(like), infos[spec].measures["inner"]])
            tensors += [found.get(spec, torch.zeros_like(block)), facts]
        sums = summed(tensors, self.column)
        infos = {
            spec: Info(code.to(torch.int32), {"inner": inner})
            for spec, (code, inner) in zip(blocks, sums[1::2], strict=True)
        }
        return dict(zip(blocks, sums[::2], strict=True)), infos

    def trimmed(self, state: Any) -> Any:
        """State without inverses that others keep: one number stands for each of them."""
        if self.column is None:
            return state

        def drop(path: str, x: torch.Tensor) -> torch.Tensor:
            return stand_in(x) if self._made(path) else x

        layers = {
            spec: layer if spec in self.keeps else rebuilt(layer, drop)
            for spec, layer in state.layers.items()
        }
        return type(state)(layers)

    def whole(self, state: Any) -> Any:
        """State as one process on all examples has it, the same on every rank."""
        if self.group.size == 1 or not self.averaged:
            return state
        state = self.joint(state)
        layers = self._sent(state.layers, self.keeps, self.column)
        return type(state)(_weighted(layers, self.group.size))

    def shared(self, state: Any) -> Any:
        """State of one process, as each rank takes it."""
        if self.group.size == 1 or not self.averaged:
            return state
        return self.trimmed(type(state)(_weighted(state.layers, 1 / self.group.size)))

    def everywhere(self, x: T) -> list[T]:
        """Small object of every rank, in their order."""
        if self.group.size == 1:
            return [x]
        found: list[Any] = [None] * self.group.size
        distributed.all_gather_object(found, x, group=self.group.handle)
        return found

    def portions(self, layers: Sequence[Any]) -> Iterator[list[Any]]:
        """Layers at a time, whose whole gradients a rank with sharded parameters can hold."""
        if not self.sharded:
            yield list(layers)
            return
        sizes = [math.prod(layer.spec.block_shape) for layer in layers]
        for places in _buckets(range(len(layers)), sizes):
            yield [layers[k] for k in places]


def _keepers(asked: Keepers, method: Method, size: int, few: Any) -> int | Literal["each"]:
    """Check the option, or choose."""
    splits = isinstance(method, SPLIT)
    if asked is None:
        return (1 if splits else size) if few else "each"
    if asked == "each":
        return "each"
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1 or size % asked:
        msg = (
            f"inverse_ranks is {asked!r}; expected 'each', or a number that divides the {size} "
            "ranks evenly."
        )
        raise ValueError(msg)
    if size > 1 and not isinstance(method, tuple(AVERAGED)):
        msg = (
            f"{type(method).__name__} keeps no inverses that could be split over ranks; leave "
            "inverse_ranks out."
        )
        raise ValueError(msg)
    if asked < size and not splits:
        msg = (
            f"{type(method).__name__} needs what a refresh made for its statistics, so every rank "
            f"keeps it; use inverse_ranks={size} or 'each'."
        )
        raise ValueError(msg)
    return asked


def _row_and_column(group: Group, width: int, device: torch.device) -> tuple[Any, Any]:
    """Own row of `width` ranks and own column; None for one of a single rank."""
    if group.size == 1:
        return None, None
    everyone = distributed.get_process_group_ranks(group.handle)
    own = []
    for lines in (
        [everyone[start : start + width] for start in range(0, group.size, width)],
        [everyone[start::width] for start in range(width)],
    ):
        line = next(line for line in lines if everyone[group.rank] in line)
        if len(line) in (1, group.size):
            own.append(None if len(line) == 1 else group.handle)
            continue
        own.append(
            distributed.new_group(
                line, timeout=_timeout(group.handle, device), use_local_synchronization=True
            )
        )
    return own[0], own[1]


def _timeout(handle: Any, device: torch.device) -> Any:
    """Timeout of a group, which a new one does not take over by itself."""
    return handle._get_backend(torch.device(device.type)).options._timeout


def _weighted(layers: Mapping[LayerSpec, Any], factor: float) -> dict[LayerSpec, Any]:
    return {spec: layer._replace(weight=factor * layer.weight) for spec, layer in layers.items()}


def _buckets(places: Iterable[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Places in turn, as many together as stay below the limit."""
    some: list[int] = []
    for k in places:
        if some and sum(sizes[j] for j in some) + sizes[k] > BUCKET:
            yield some
            some = []
        some.append(k)
    if some:
        yield some


def summed(tensors: Sequence[torch.Tensor], group: Any) -> list[torch.Tensor]:
    """Sum of each tensor over the ranks; those of a dtype are sent together."""
    found = list(tensors)
    sizes = [x.numel() for x in tensors]
    for dtype in dict.fromkeys(x.dtype for x in tensors):
        places = [k for k, x in enumerate(tensors) if x.dtype == dtype]
        for some in _buckets(places, sizes):
            flat = torch.cat([tensors[k].reshape(-1) for k in some])
            flat = flat.to(torch.uint8) if dtype == torch.bool else flat
            distributed.all_reduce(flat, group=group)
            for k, x in zip(some, flat.split([sizes[k] for k in some]), strict=True):
                found[k] = x.reshape(tensors[k].shape).to(dtype)
    return found


def gathered(
    records: Mapping[LayerSpec, Sequence[LayerRecord]], ranks: Ranks
) -> dict[LayerSpec, list[LayerRecord]]:
    """Bring the records of joint batches together, the examples of rank 0 first."""
    mine = {spec: each for spec, each in sorted(records.items()) if each}
    tied = [spec.name for spec, each in mine.items() if each[0].tied is not None]
    if tied:
        msg = (
            f"The table {tied[0]!r} is an output layer too, and {type(ranks.method).__name__} does "
            "not gather such records over processes; untie it, or use KFAC."
        )
        raise NotImplementedError(msg)
    shapes = ranks.everywhere(
        {
            spec.name: [[tuple(x.shape) for x in record if x is not None] for record in each]
            for spec, each in mine.items()
        }
    )
    counts = [{name: len(each) for name, each in one.items()} for one in shapes]
    if any(count != counts[0] for count in counts):
        msg = (
            f"The ranks saw different layers or numbers of batches in one step: {counts}; "
            f"{type(ranks.method).__name__} needs the same of all of them."
        )
        raise RuntimeError(msg)
    tensors = [x for each in mine.values() for record in each for x in record if x is not None]
    flat_shapes = [
        [shape for each in one.values() for record in each for shape in record] for one in shapes
    ]
    parts = _gathered_tensors(tensors, flat_shapes, ranks.group)
    found: dict[LayerSpec, list[LayerRecord]] = {}
    for spec, each in mine.items():
        for record in each:
            axes = {"a": 0, "g": int(factors.several_vectors(spec, record)), "z": 0}
            new = {
                name: torch.cat(next(parts), dim=axes[name])
                for name, x in record._asdict().items()
                if x is not None
            }
            found.setdefault(spec, []).append(LayerRecord(**new))
    return found


def _gathered_tensors(
    tensors: Sequence[torch.Tensor], shapes: Sequence[Sequence[tuple[int, ...]]], group: Group
) -> Iterator[list[torch.Tensor]]:
    """For each tensor those of all ranks; of one dtype they are sent together."""
    found: list[list[torch.Tensor]] = [[] for _ in tensors]
    for dtype in dict.fromkeys(x.dtype for x in tensors):
        places = [k for k, x in enumerate(tensors) if x.dtype == dtype]
        lengths = [sum(math.prod(one[k]) for k in places) for one in shapes]
        flat = torch.cat([tensors[k].reshape(-1) for k in places])
        flat = torch.nn.functional.pad(flat, (0, max(lengths) - len(flat)))
        each = [torch.empty_like(flat) for _ in shapes]
        distributed.all_gather(each, flat, group=group.handle)
        for one, values in zip(shapes, each, strict=True):
            start = 0
            for k in places:
                size = math.prod(one[k])
                found[k].append(values[start : start + size].reshape(one[k]))
                start += size
    return iter(found)
