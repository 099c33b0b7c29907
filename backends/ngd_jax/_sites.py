"""Primitives in which a parameter works linearly on data, and how their axes are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from jax import lax

from ngd_jax._digits import Axis
from ngd_jax._views import Layout, Shape, View

__all__ = ["SITES", "Batch", "Path", "Refused", "Site"]

Path: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """One place where a parameter works linearly on data.

    Parameters
    ----------
    kind : "dense", "conv", "embedding" or "scale"
        Primitive.
    weight : Layout
        Parameter as ``(*stack, *outputs, *inputs)``; a table's as ``(*stack, rows, *features)``, a
        scale's as ``(*stack, *features)``.
    axes : tuple of int
        Numbers of stack, output and input axes of `weight`.
    data : int
        Which operand is the data.
    inputs, outputs : tuple of tuples of int
        Axes of the recorded operand and of the primitive's result, after those of enclosing scans:
        stack, example, positions, features. Spatial axes of a convolution come last.
    scans : tuple of int
        Of the enclosing scans, by depth, those that go over the stack.
    shape : tuple of int
        Of the result, enclosing scans first.
    params : dict
        Of the primitive.
    before : tuple of Path
        Products of a scale with other data of which this is one more factor.
    split : tuple of str
        Axes of the mesh over which a `shard_map` splits the examples.
    fold : Axis
        Digits of the examples' axis, if they share it with positions.
    """

    kind: str
    weight: Layout
    axes: tuple[int, int, int]
    data: int
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    scans: tuple[int, ...]
    shape: Shape
    dtype: Any
    params: dict[str, Any] = field(hash=False, compare=False)
    before: tuple[Path, ...] = ()
    split: tuple[str, ...] = ()
    fold: Axis = ()


class Batch(NamedTuple):
    """The examples, as they lie in the operand that is the data.

    Parameters
    ----------
    examples : int
        Their number.
    fold : Axis
        Digits of their axis, if they share it with positions.
    lost : str
        What they went through while they did, if that left their order unknown.
    """

    examples: int
    fold: Axis = ()
    lost: str = ""


class Refused(NamedTuple):
    """Why a use is no site."""

    why: str


def _examples(
    old: Sequence[int], new: Sequence[int], axes: Sequence[int], rows: Batch
) -> int | Refused:
    """Find the examples' axis, which has to be one of those given."""
    grown = [k for k in range(len(old)) if old[k] != new[k]]
    if not grown:
        return Refused("its data has no axis of the examples")
    if len(grown) > 1:
        return Refused("its data has several axes of examples")
    if rows.lost:
        return Refused(f"the order of the examples is unknown after {rows.lost}")
    if old[grown[0]] != rows.examples and not rows.fold:
        return Refused("the examples share an axis with other positions")
    if grown[0] not in axes:
        return Refused("the examples are no axis of their own in its result")
    return grown[0]


def _dense(
    eqn: Any, twin: Any, view: View, side: int, lead: tuple[Any, ...], rows: Batch
) -> Site | Refused:
    (contract, batch) = eqn.params["dimension_numbers"]
    contracted, batched = (
        [tuple(int(k) for k in pair[s]) for s in (0, 1)] for pair in (contract, batch)
    )
    shapes = [tuple(v.aval.shape) for v in eqn.invars]
    free = [
        [k for k in range(len(shapes[s])) if k not in contracted[s] and k not in batched[s]]
        for s in (0, 1)
    ]
    # along an axis of both on which the weight repeats, the data has it to itself
    repeated = {k for k in batched[side] if view.axes[k] is None and shapes[side][k] != 1}
    kept = [k for k in range(len(shapes[side])) if k not in repeated]
    own = replace(view, axes=tuple(view.axes[k] for k in kept))
    weight = own.ordered(tuple(shapes[side][k] for k in kept))
    if weight is None:
        return Refused("dot_general, with a weight that repeats")
    n, data, scans = len(lead), 1 - side, view.scans
    grown = tuple(twin.invars[data].aval.shape)
    pairs = list(zip(batched[side], batched[data], strict=True))
    alone = [k for w, k in pairs if w in repeated] + free[data]
    stack = [(w, k) for w, k in pairs if w not in repeated]
    lengths, doubled = ([pair[k] for pair in lead] for k in (0, 1))
    spots = [k for k in range(n) if k not in scans] + [n + k for k in alone]
    example = _examples((*lengths, *shapes[data]), (*doubled, *grown), spots, rows)
    if isinstance(example, Refused):
        return Refused(f"dot_general: {example.why}")
    # axes of the result: batch, free of the left, free of the right
    result: dict[tuple[int, int], int] = {}
    for k in range(len(batched[0])):
        result[data, batched[data][k]] = n + k
    place = n + len(batched[0])
    for s in (0, 1):
        for k in free[s]:
            result[s, k] = place
            place += 1
    positions = [k for k in spots if k != example]
    out = {n + k: result[data, k] for k in alone} | {k: k for k in range(n)}
    stack_in = (*scans, *(n + k for _, k in stack))
    stack_out = (*scans, *(result[data, k] for _, k in stack))
    parts = (*(w for w, _ in stack), *free[side], *contracted[side])
    order = (*range(len(scans)), *(len(scans) + kept.index(w) for w in parts))
    return Site(
        "dense",
        weight.transposed(order),
        (len(stack_in), len(free[side]), len(contracted[side])),
        data,
        (stack_in, (example,), tuple(positions), tuple(n + k for k in contracted[data])),
        (
            stack_out,
            (out[example],),
            tuple(out[k] for k in positions),
            tuple(result[side, k] for k in free[side]),
        ),
        scans,
        (*lengths, *eqn.outvars[0].aval.shape),
        eqn.outvars[0].aval.dtype,
        eqn.params,
    )


def _conv(
    eqn: Any, twin: Any, view: View, side: int, lead: tuple[Any, ...], rows: Batch
) -> Site | Refused:
    p, n, scans = eqn.params, len(lead), view.scans
    numbers = p["dimension_numbers"]
    shapes = [tuple(v.aval.shape) for v in eqn.invars]
    weight = view.ordered(shapes[1]) if side == 1 else None
    if weight is None or p["batch_group_count"] != 1:
        return Refused("conv_general_dilated, with a parameter that is no plain kernel")
    lengths, doubled = ([pair[k] for pair in lead] for k in (0, 1))
    grown = tuple(twin.invars[0].aval.shape)
    spots = [k for k in range(n) if k not in scans] + [n + numbers.lhs_spec[0]]
    example = _examples((*lengths, *shapes[0]), (*doubled, *grown), spots, rows)
    if isinstance(example, Refused):
        return Refused(f"conv_general_dilated: {example.why}")
    positions = [k for k in spots if k != example]

    def axes(spec: Sequence[int]) -> tuple[Shape, ...]:
        places = {n + numbers.lhs_spec[0]: n + spec[0]} | {k: k for k in range(n)}
        return (
            scans,
            (places[example],),
            tuple(places[k] for k in positions),
            tuple(n + k for k in spec[1:2]),
            tuple(n + k for k in spec[2:]),
        )

    order = (*range(len(scans)), *(len(scans) + k for k in numbers.rhs_spec))
    return Site(
        "conv",
        weight.transposed(order),
        (len(scans), 1, len(shapes[1]) - 1),
        0,
        axes(numbers.lhs_spec),
        axes(numbers.out_spec),
        scans,
        (*lengths, *eqn.outvars[0].aval.shape),
        eqn.outvars[0].aval.dtype,
        p,
    )


def _gather(
    eqn: Any, twin: Any, view: View, side: int, lead: tuple[Any, ...], rows: Batch
) -> Site | Refused:
    p, n, scans = eqn.params, len(lead), view.scans
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    shape, indices = (tuple(v.aval.shape) for v in eqn.invars[:2])
    looked = [k for k in range(len(shape)) if sizes[k] != shape[k]]
    weight = view.ordered(shape) if side == 0 else None
    plain = (
        weight is not None
        and len(looked) == 1
        and sizes[looked[0]] == 1
        and not numbers.operand_batching_dims
        and looked[0] in numbers.start_index_map
    )
    if weight is None or not plain:
        return Refused("gather, other than of rows of a table")
    row = looked[0]
    lengths, doubled = ([pair[k] for pair in lead] for k in (0, 1))
    grown = tuple(twin.invars[1].aval.shape)
    spots = [k for k in range(n) if k not in scans] + [n + k for k in range(len(indices) - 1)]
    example = _examples((*lengths, *indices), (*doubled, *grown), spots, rows)
    if isinstance(example, Refused):
        return Refused(f"gather: {example.why}")
    positions = [k for k in spots if k != example]
    rank = len(eqn.outvars[0].aval.shape)
    batch = [n + k for k in range(rank) if k not in numbers.offset_dims]
    out = {k: k for k in range(n)} | {n + k: b for k, b in enumerate(batch)}
    kept = [k for k in range(len(shape)) if k not in numbers.collapsed_slice_dims]
    at = dict(zip(kept, (n + k for k in numbers.offset_dims), strict=True))
    features = [k for k in range(len(shape)) if k != row]
    if any(k not in at for k in features):
        return Refused("gather, other than of rows of a table")
    order = (*range(len(scans)), *(len(scans) + k for k in (row, *features)))
    mapped = numbers.start_index_map.index(row)
    return Site(
        "embedding",
        weight.transposed(order),
        (len(scans), 1, len(features)),
        1,
        (scans, (example,), tuple(positions), ()),
        (
            scans,
            (out[example],),
            tuple(out[k] for k in positions),
            (*(at[k] for k in features), *((at[row],) if row in at else ())),
        ),
        scans,
        (*lengths, *eqn.outvars[0].aval.shape),
        eqn.outvars[0].aval.dtype,
        {"column": mapped, "clip": p["mode"] == lax.GatherScatterMode.CLIP, "rows": shape[row]},
    )


def _scale(
    eqn: Any, twin: Any, view: View, side: int, lead: tuple[Any, ...], rows: Batch
) -> Site | Refused:
    n, scans, sizes = len(lead), view.scans, view.layout.result
    shape, grown = (tuple(e.outvars[0].aval.shape) for e in (eqn, twin))
    lengths, doubled = ([pair[k] for pair in lead] for k in (0, 1))
    held = {k: axis for k, axis in enumerate(view.axes) if axis is not None and sizes[axis] != 1}
    rest = [k for k in view.inner if k not in held.values()]
    if any(sizes[k] != 1 for k in rest):
        return Refused("mul, with a scale that lacks elements")
    spots = [k for k in range(n) if k not in scans]
    spots += [n + k for k in range(len(shape)) if k not in held]
    example = _examples((*lengths, *shape), (*doubled, *grown), spots, rows)
    if isinstance(example, Refused):
        return Refused(f"mul: {example.why}")
    lead_axes = tuple(range(len(scans)))
    layout = view.layout.transposed((*lead_axes, *held.values(), *rest))
    layout = layout.reshaped((*(sizes[k] for k in lead_axes), *(sizes[k] for k in held.values())))
    positions = tuple(k for k in spots if k != example)
    axes = (scans, (example,), positions, tuple(n + k for k in held))
    return Site(
        "scale",
        layout,
        (len(scans), len(held), 0),
        1 - side,
        axes,
        axes,
        scans,
        (*lengths, *shape),
        eqn.outvars[0].aval.dtype,
        eqn.params,
    )


SITES = {
    "dot_general": _dense,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "mul": _scale,
}
