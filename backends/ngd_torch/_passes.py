"""Backward passes, in which every layer's gradients become records and are handed on at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ngd_core import LayerRecord
from ngd_torch._layers import Layer, by_rows
from ngd_torch._rows import Rows
from ngd_torch._trees import is_stand_in

__all__ = ["Owner", "Uses"]

SAMPLED: set[int] = set()
"""Numbers of the backward passes that carry sampled vectors, of all models."""


class Owner(Protocol):
    """Who wants the records; held by a weak reference."""

    def wanted(self) -> bool:
        """Tell whether the passes of this step are to be recorded."""
        ...

    def looking(self) -> bool:
        """Tell whether anything of the passes of this step is to be kept."""
        ...

    def deliver(self, found: dict[str, list[LayerRecord]], share: float = 1.0) -> None:
        """Take the records of a layer, one a use of it; see `ngd_core.Hyper` for the share."""
        ...

    def weighs(self, layer: Layer) -> bool:
        """Tell whether the examples have weights in the gradient of a layer."""
        ...

    def weights(self, layer: Layer, examples: int) -> torch.Tensor:
        """Weights of the examples of a batch in the gradient of a layer."""
        ...

    def factors(self, layer: Layer, rows: int) -> bool:
        """Tell whether a layer's direction may be made from so many rows."""
        ...

    def keep(self, name: str, rows: Rows) -> None:
        """Take the rows of a backward pass through a layer."""
        ...

    def read_elsewhere(self, names: list[str]) -> None:
        """Take note of layers whose weights are read without a call."""
        ...


class Place:
    """A use of a layer: its input, its gradients so far, and where in the graph it is.

    With `outputs` it keeps a copy of its output, which what follows may change in place. It knows
    its place in the graph if gradients are `sampled`: the graph knows it by a hook, and the two
    would keep each other for good if the hook were not taken off again, as `Uses.drop` does.
    """

    def __init__(
        self, layer: Layer, x: torch.Tensor, z: torch.Tensor, *, outputs: bool, sampled: bool
    ) -> None:
        self.layer, self.x = layer, x
        self.z = z.detach().clone() if outputs else None
        self.shape = z.shape
        edge = get_gradient_edge(_source(z)) if sampled else None  # now: z may change in place
        self.edge: GradientEdge | None = edge
        self.numbers: int = z.numel()
        self.gradients: list[torch.Tensor] = []
        self.last = False  # of all places, none is behind this one on the way back


class Uses:
    """Uses of layers in one forward pass, and their records as gradients come.

    Parameters
    ----------
    owner : weak reference to Owner
        Who takes the records.
    sampled : bool
        Whether gradients are those of vectors that `carry` carries back, or of the training loss.
    chunk_bytes : int or None
        Bound on the rows of a record, and on gradients that wait; None: whole batches.
    outputs : collection of str
        Names of the layers whose records need the outputs z.
    """

    def __init__(
        self,
        owner: weakref.ref[Owner],
        *,
        sampled: bool,
        chunk_bytes: int | None,
        outputs: Collection[str] = (),
    ) -> None:
        self.owner, self.sampled, self.chunk_bytes = owner, sampled, chunk_bytes
        self.outputs = outputs
        self.examples = 0  # known at the end of the forward pass
        self.scale: Any = 1.0
        self.places: dict[str, list[Place]] = {}
        self.expected: dict[str, int] = {}
        self.handles: list[Any] = []
        self.together, self.of_all = 1, 1
        self.carrying = False
        self.queued = False  # a call at the end of the backward pass
        self.weighed = False

    def add(self, layer: Layer, x: torch.Tensor, z: torch.Tensor) -> None:
        """Note a use."""
        name = layer.spec.name
        if name in self.outputs and is_stand_in(z):
            msg = (
                f"The outputs of layer {name!r}, inside a recurrent module, are not to be had one "
                "by one, and the ReLU metric needs them; name its layers in linear_layers of "
                "ngd_core.SNGD."
            )
            raise ValueError(msg)
        place = Place(layer, x, z, outputs=name in self.outputs, sampled=self.sampled)
        self.places.setdefault(name, []).append(place)
        self.expected[name] = len(self.places[name])
        self.handles.append(_source(z).register_hook(partial(self.arrived, place)))

    def weigh(self, layer: Layer) -> Callable[[int], torch.Tensor]:
        """Weights of the rows of a layer's input, examples first, for a backward pass to come."""
        self.weighed = True

        def of(rows: int) -> torch.Tensor:
            owner, n = self.owner(), self.examples
            if owner is None or not n or rows % n:
                msg = (
                    f"Layer {layer.spec.name!r} saw {rows} rows where the model's output has {n} "
                    "examples; keep the examples on the first axis, or set weighted_backward=False."
                )
                raise ValueError(msg)
            weights = owner.weights(layer, n)
            return weights if rows == n else weights.repeat_interleave(rows // n)

        return of

    def await_loss(self, examples: int, scale: Any) -> None:
        """From now on take gradients of the training loss, times the scale."""
        self.examples, self.scale = examples, scale

    def carry(
        self,
        examples: int,
        outputs: Sequence[torch.Tensor],
        count: int,
        vectors: Iterable[Sequence[torch.Tensor]],
    ) -> None:
        """Carry vectors back from the outputs, a pass for each.

        The graph is asked for the gradients of those places alone that are last on the way back:
        those of all others come by, and none is kept. As many vectors are put into one record as
        `chunk_bytes` allows, at least one.

        Parameters
        ----------
        examples : int
            Examples of the batch.
        outputs : sequence of Tensor
            Where the passes begin.
        count : int
            Number of vectors.
        vectors : iterable of sequence of Tensor
            For each pass the gradients at the outputs.
        """
        self.examples = examples
        try:
            self._carry(outputs, count, vectors)
        finally:
            self.drop()

    def _carry(
        self,
        outputs: Sequence[torch.Tensor],
        count: int,
        vectors: Iterable[Sequence[torch.Tensor]],
    ) -> None:
        places = [place for uses in self.places.values() for place in uses]
        reached = _reached(outputs, places)
        edges = [place.edge for place in reached if place.last and place.edge]
        if edges:
            numbers = sum(place.numbers for place in reached) * outputs[0].element_size()
            room = count if self.chunk_bytes is None else self.chunk_bytes // numbers
            self.together, self.of_all = max(1, min(count, room)), count
            self.carrying = True
            left = count
            for v in vectors:
                left -= 1
                self._pass(outputs, edges, v)
                if left % self.together == 0:
                    self._rest()
                    self.together = min(self.together, left)

    def drop(self) -> None:
        """Take no more gradients."""
        for handle in self.handles:
            handle.remove()
        self.places.clear()

    def _pass(
        self,
        outputs: Sequence[torch.Tensor],
        edges: Sequence[GradientEdge],
        v: Sequence[torch.Tensor],
    ) -> None:
        starts = [out.view_as(out) for out in outputs]  # nodes of our own, the first to be run
        numbers: set[int] = set()

        def begun(_: torch.Tensor) -> None:
            numbers.add(torch._C._current_graph_task_id())
            SAMPLED.update(numbers)

        for start in starts:
            start.register_hook(begun)
        try:
            torch.autograd.grad(starts, edges, v, retain_graph=True, allow_unused=True)
        finally:
            SAMPLED.difference_update(numbers)

    def arrived(self, place: Place, g: torch.Tensor) -> torch.Tensor | None:
        """Take a gradient of one use; hand over when all uses of the layer have theirs."""
        name = place.layer.spec.name
        if name not in self.places or not self._awaited():
            return None
        place.gradients.append(g.detach().reshape(place.shape))
        uses = self.places[name]
        if sum(len(use.gradients) for use in uses) == self.expected[name] * self.together:
            self._hand_over(name)
        elif not self.sampled and not self.queued:
            self.queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._passed)
        # the pass goes no further here, and would keep this gradient to its end
        return g.new_zeros(()).expand_as(g) if self.sampled and place.last else None

    def _awaited(self) -> bool:
        """Tell whether the backward pass that runs is the one whose gradients are wanted."""
        if self.sampled:
            return self.carrying
        return self.examples > 0 and torch._C._current_graph_task_id() not in SAMPLED

    def _passed(self) -> None:
        self.queued = False
        self._rest()

    def _rest(self) -> None:
        """Hand over layers of which some use had no gradient."""
        for name, uses in list(self.places.items()):
            if any(use.gradients for use in uses):
                self._hand_over(name)

    def _hand_over(self, name: str) -> None:
        uses = [use for use in self.places[name] if use.gradients]
        share = self.together / self.of_all
        owner, device = self.owner(), uses[0].gradients[0].device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            for records in self._records(uses, self.scale / share**0.5):
                if owner is not None:
                    owner.deliver({name: records}, **({} if share == 1 else {"share": share}))
        for use in uses:
            use.gradients.clear()
        if not self.sampled:
            self.places[name] = [use for use in self.places[name] if use not in uses]
            self.expected[name] = len(self.places[name])
            if not self.places[name]:
                del self.places[name]

    def _records(self, uses: Sequence[Place], scale: Any) -> Iterator[list[LayerRecord]]:
        """Yield records of some examples at a time."""
        n = size = self.examples
        if self.chunk_bytes is not None and not uses[0].layer.whole:
            item = max(4, uses[0].gradients[0].element_size())
            each = sum(_numbers(use) for use in uses) * item // n
            size = max(1, min(n, self.chunk_bytes // max(each, 1)))
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            yield [_record(use, part, n, scale, several=self.sampled) for use in uses]


def _source(z: torch.Tensor) -> torch.Tensor:
    """Tensor at which gradients of z come by, also where z is changed in place.

    A product of a tensor of several axes is a view of that of its rows. What changes a view in
    place acts on the whole of which it is one, and no gradient comes by the view any more.
    """
    base = z._base
    if base is None or base.grad_fn is None or z.grad_fn.name() != "ViewBackward0":
        return z
    return base if base.grad_fn.name() in ("AddmmBackward0", "MmBackward0") else z


def _reached(outputs: Sequence[torch.Tensor], places: Sequence[Place]) -> list[Place]:
    """Places that a pass from the outputs comes through; those that are last on it are marked."""
    at: dict[Node, list[Place]] = {}
    for place in places:
        if place.edge is not None:
            at.setdefault(place.edge.node, []).append(place)
    behind: dict[Node, bool] = {}  # whether a place is behind a node
    todo = [(out.grad_fn, False) for out in outputs]
    while todo:
        node, done = todo.pop()
        if done:
            behind[node] = any(n in at or behind[n] for n, _ in node.next_functions if n)
        elif node not in behind:
            behind[node] = False
            todo.append((node, True))
            todo.extend((n, False) for n, _ in node.next_functions if n)
    found = []
    for node, here in at.items():
        if node in behind:
            for place in here:
                place.last = not behind[node]
            found += here
    return found


def _numbers(place: Place) -> int:
    """Numbers in the rows of a use's inputs and gradients."""
    spec = place.layer.spec
    columns = 0 if spec.kind == "embedding" else spec.columns * spec.groups
    positions: int = place.numbers // spec.out_features
    outputs = len(place.gradients) + (place.z is not None)
    return positions * columns + place.numbers * outputs


def _record(place: Place, part: slice, examples: int, scale: Any, *, several: bool) -> LayerRecord:
    """Record of some examples of one use, examples first."""
    layer, x = place.layer, place.x
    gradients = [*place.gradients, *([] if place.z is None else [place.z])]
    rule, count = layer.rule, part.stop - part.start
    if layer.spec.geometry is not None and len(x) != examples:
        rule = by_rows(rule, layer.spec.geometry)
    early = rule.by_example and len(x) == examples and count < examples
    if early:
        x, gradients = x[part], [g[part] for g in gradients]
    a = rule.inputs(layer.module, _wide(x))
    gs = [rule.outputs(layer.module, _wide(g)) for g in gradients]
    if not early:
        a, *gs = (_of_examples(layer, t, examples)[part] for t in (a, *gs))
    z = None if place.z is None else gs.pop()
    gs = [g * scale for g in gs]
    g = gs[0] if not several else gs[0][None] if len(gs) == 1 else torch.stack(gs)
    return LayerRecord(a, g, z)


def _wide(t: torch.Tensor) -> torch.Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _of_examples(layer: Layer, t: torch.Tensor, examples: int) -> torch.Tensor:
    """Positions that were folded into the first axis, as an axis of their own."""
    if t.shape[0] == examples:
        return t
    if t.shape[0] % examples:
        msg = (
            f"Layer {layer.spec.name!r} saw {t.shape[0]} rows where the model's output has "
            f"{examples} examples; keep the examples on the first axis, or leave the layer out."
        )
        raise ValueError(msg)
    t = t.reshape(examples, -1, *t.shape[1:])
    return t if layer.spec.geometry is None else t.flatten(1, 2)  # rows of all images
