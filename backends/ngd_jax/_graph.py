"""Where a traced loss uses its parameters: in linear maps that can be read, or otherwise.

A loss is traced twice, for the batch as it is and for twice as many examples: the axes whose size
doubles are those of the examples, whatever the model calls them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from jax.extend.core import Literal

from ngd_jax import _shards
from ngd_jax._digits import alone, halved
from ngd_jax._folds import Lost, Walk, states_of
from ngd_jax._rules import rule_of
from ngd_jax._sites import SITES, Batch, Path, Refused, Site
from ngd_jax._tag import MARK
from ngd_jax._views import Layout, View

__all__ = ["Found", "find_sites", "nested", "opened", "tagged"]


class Output(NamedTuple):
    """The result of a site on its way, as long as nothing else reads it."""

    path: Path
    axes: tuple[int | None, ...]


class Shift(NamedTuple):
    """A parameter that an equation added to data, until the sum is added to a site's result."""

    view: View
    path: Path


class Value(NamedTuple):
    """What is known of a variable; `uses` are those of which a tag would make a site."""

    view: View | None = None
    leaves: frozenset[int] = frozenset()
    data: bool = False
    output: Output | None = None
    biased: Output | None = None
    shift: Shift | None = None
    uses: frozenset[Path] = frozenset()

    @property
    def bare(self) -> Value:
        """Value without what it is part of."""
        return self._replace(output=None, biased=None, shift=None, uses=frozenset())


@dataclass
class Found:
    """Sites by path, and what else is known of them.

    First factors of products of a scale with more data, biases added to sites, branches with the
    number of loops around them, for each leaf that meets data in another way where and how, and
    what leaves go into of which there is no gradient.
    """

    examples: int
    sites: dict[Path, Site] = field(default_factory=dict)
    factors: dict[Path, Site] = field(default_factory=dict)
    biases: dict[Path, Layout] = field(default_factory=dict)
    branched: dict[Path, int] = field(default_factory=dict)
    uses: dict[int, dict[Path, str]] = field(default_factory=dict)
    passed: dict[int, str] = field(default_factory=dict)

    @property
    def lost(self) -> dict[int, str]:
        """Leaves that meet data in another way, and the first such way."""
        return {leaf: next(iter(uses.values())) for leaf, uses in self.uses.items() if uses}


def find_sites(closed: Any, doubled: Any, leaves: int, examples: int) -> Found:
    """Find the uses of the first `leaves` arguments of a traced function.

    Parameters
    ----------
    closed, doubled : ClosedJaxpr
        The function, traced for the batch and for twice as many examples.
    leaves : int
        Number of arguments that are parameters.
    examples : int
        Size of the batch.

    Returns
    -------
    Found
        The sites.

    Raises
    ------
    ValueError
        If the two traces are not the same but for sizes.
    """
    found = Found(examples)
    shapes = [tuple(var.aval.shape) for var in closed.jaxpr.invars]
    values = [
        Value(View(Layout(k, shape), (), tuple(range(len(shape)))), frozenset({k}))
        if k < leaves
        else Value(data=True)
        for k, shape in enumerate(shapes)
    ]
    walk = _Walk(found, states_of(closed, doubled, leaves, examples))
    walk.run(closed.jaxpr, doubled.jaxpr, values, (), ())
    return found


def nested(eqn: Any) -> Any:
    """Jaxpr that an equation calls once, or at each iteration; None if there is none to look into.

    Functions with derivatives of their own are none of these: what happens inside is not what is
    differentiated.
    """
    if eqn.primitive.name in ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "scan"):
        return eqn.params["call_jaxpr" if "call_jaxpr" in eqn.params else "jaxpr"]
    if eqn.primitive.name in ("checkpoint", "shard_map"):
        return eqn.params["jaxpr"]
    return None


def tagged(eqn: Any) -> bool:
    """Whether an equation is a call of `ngd_jax.tag`."""
    return eqn.primitive.name in ("jit", "pjit") and eqn.params.get("name") == MARK


def opened(jaxpr: Any) -> Any:
    """Jaxpr without its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr)


class _Walk:
    """Goes through the equations of two traces side by side."""

    def __init__(self, found: Found, states: Walk) -> None:
        self.found = found
        self.examples = found.examples
        self.states = states

    def run(
        self,
        jaxpr: Any,
        doubled: Any,
        values: Sequence[Value],
        path: Path,
        lead: tuple[tuple[int, int], ...],
    ) -> list[Value]:
        """Values of the results, from those of the arguments."""
        if [e.primitive.name for e in jaxpr.eqns] != [e.primitive.name for e in doubled.eqns]:
            msg = (
                "The loss computes something else for twice as many examples, so the axis of the "
                "examples cannot be told; write it without branches on the size of the batch."
            )
            raise ValueError(msg)
        env: dict[Any, Value] = dict(zip(jaxpr.invars, values, strict=True))
        uses: dict[Any, int] = {}
        for var in _read(jaxpr):
            uses[var] = uses.get(var, 0) + 1
        for k, (eqn, twin) in enumerate(zip(jaxpr.eqns, doubled.eqns, strict=True)):
            inputs = [
                Value() if isinstance(v, Literal) else _single(env.get(v, Value()), uses[v])
                for v in eqn.invars
            ]
            outputs = self.equation(eqn, twin, inputs, (*path, k), lead)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [
            Value() if isinstance(v, Literal) else _single(env.get(v, Value()), uses[v])
            for v in jaxpr.outvars
        ]

    def equation(
        self, eqn: Any, twin: Any, inputs: list[Value], path: Path, lead: tuple[Any, ...]
    ) -> list[Value]:
        """Values of an equation's results."""
        name = eqn.primitive.name
        if not any(value.leaves or value.output for value in inputs):
            data = [value for value in inputs if value.data]
            uses = data[0].uses if len(data) == 1 else frozenset()
            inner = nested(eqn)
            if inner is None or not data:
                return [Value(data=bool(data), uses=uses)] * len(eqn.outvars)
            return [Value(data=True)] * len(eqn.outvars)
        if name in ("stop_gradient", "while"):  # nothing behind it is differentiated through it
            for leaf in frozenset().union(*(value.leaves for value in inputs)):
                self.found.passed.setdefault(leaf, f"{name}, through which no gradient goes")
            return [Value(data=any(value.data for value in inputs))] * len(eqn.outvars)
        if name == "shard_map":
            return self.shards(eqn, twin, inputs, path, lead)
        if name == "scan":
            return self.scan(eqn, twin, inputs, path, lead)
        if name == "cond":
            return self.cond(eqn, twin, inputs, path, lead)
        if name == "custom_jvp_call" or (
            name == "custom_vjp_call" and any(value.leaves for value in inputs)
        ):
            return self.rule(eqn, twin, inputs, path, lead)
        if tagged(eqn):
            return self.tag(eqn, twin, inputs, path, lead)
        inner = nested(eqn)
        if inner is not None:
            return self.run(opened(inner), opened(nested(twin)), inputs, path, lead)
        moved = _moved(eqn, inputs)
        if moved is not None:
            return [moved]
        if name in SITES:
            views = [k for k, value in enumerate(inputs[:2]) if value.view is not None]
            view = inputs[views[0]].view if len(views) == 1 else None
            if view is not None and inputs[1 - views[0]].data:
                batch = self.batch(eqn, 1 - views[0], path)
                site = SITES[name](eqn, twin, view, views[0], lead, batch)
                if isinstance(site, Site):
                    self.found.sites[path] = replace(site, fold=batch.fold)
                    axes = tuple(range(len(eqn.outvars[0].aval.shape)))
                    return [Value(data=True, output=Output(path, axes), uses=frozenset({path}))]
                return self.other(eqn, inputs, site.why, path, lead)
        if name == "mul":
            rescaled = self.rescaled(eqn, inputs, path)
            if rescaled is not None:
                return [rescaled]
        if name in ("add", "add_any"):
            joined = self.bias(eqn, inputs, lead)
            if joined is not None:
                return [Value(data=True, biased=joined, uses=frozenset({joined.path}))]
            if not any(value.leaves for value in inputs):
                shift = next((value.shift for value in inputs if value.shift), None)
                return [Value(data=True, output=_summand(eqn, inputs), shift=shift)]
            shift = next((Shift(value.view, path) for value in inputs if value.view), None)
            return [
                value._replace(shift=shift) for value in self.other(eqn, inputs, name, path, lead)
            ]
        return self.other(eqn, inputs, name, path, lead)

    def cond(
        self, eqn: Any, twin: Any, inputs: list[Value], path: Path, lead: tuple[Any, ...]
    ) -> list[Value]:
        """Enter each branch, of which one will be taken."""
        data = any(value.data for value in inputs)
        inner = [value.bare for value in inputs[1:]]
        self.found.branched[path] = len(lead)
        results = [
            self.run(opened(a), opened(b), inner, (*path, k), lead)
            for k, (a, b) in enumerate(
                zip(eqn.params["branches"], twin.params["branches"], strict=True)
            )
        ]
        return [
            Value(leaves=frozenset().union(*(value.leaves for value in values)), data=data)
            for values in zip(*results, strict=True)
        ]

    def rule(
        self, eqn: Any, twin: Any, inputs: list[Value], path: Path, lead: tuple[Any, ...]
    ) -> list[Value]:
        """Enter a derivative of the user's own, where data meets tangents of parameters."""
        own, double = rule_of(eqn), rule_of(twin)
        if own is None or double is None:
            why = "custom_vjp_call, whose rule has no transpose"
            return self.other(eqn, inputs, why, path, lead)
        jaxpr, doubled, moved = opened(own.closed), opened(double.closed), own.moved
        data = any(value.data for value in inputs)
        primals = [Value(data=value.data) for value in inputs]
        tangents = [inputs[k].bare for k in moved]
        states = self.states.of(path, eqn)
        self.states.run(jaxpr, doubled, [*states, *(states[k] for k in moved)], path)
        results = self.run(jaxpr, doubled, [*primals, *tangents], path, lead)
        uses, outcome = frozenset({path}), results[len(eqn.outvars) :]
        if data:  # what a parameter became with data is no view of it
            outcome = [value._replace(view=None, data=True) for value in outcome]
        return [value._replace(uses=uses) for value in outcome]

    def batch(self, eqn: Any, data: int, path: Path) -> Batch:
        """Find how the examples lie in an operand."""
        state, examples = self.states.of(path, eqn)[data], self.examples
        if isinstance(state, Lost):
            return Batch(examples, lost=state.by)
        if state is None or alone(state):
            return Batch(examples)
        digits = halved(state, examples, tuple(eqn.invars[data].aval.shape)) or ()
        axes = [axis for axis in digits if any(stride for _, stride in axis)]
        if examples != self.found.examples:  # shards are put together as if the axis were theirs
            return Batch(examples, lost="shard_map")
        return Batch(examples, fold=axes[0] if len(axes) == 1 else ())

    def tag(
        self, eqn: Any, twin: Any, inputs: list[Value], path: Path, lead: tuple[Any, ...]
    ) -> list[Value]:
        """Take the site in a tagged map for the use of its weight by what made the result."""
        known = set(self.found.sites)
        inner, doubled = (opened(nested(e)) for e in (eqn, twin))
        _, like = self.run(inner, doubled, inputs, path, lead)
        new = [p for p in self.found.sites if p not in known]
        output = like.output or like.biased
        rank = range(len(eqn.outvars[0].aval.shape))
        if output is None or new != [output.path] or output.axes != tuple(rank):
            for p in new:
                leaf = self.found.sites.pop(p).weight.leaf
                why = {p: "a tag that is no single map of data"}
                self.found.uses[leaf] = why | self.found.uses.get(leaf, {})
            return [Value(data=True), Value(data=True)]
        layouts = [self.found.sites[output.path].weight, self.found.biases.get(output.path)]
        made = inputs[0].output or inputs[0].biased
        uses = inputs[0].uses | ({made.path} if made else set())
        for layout in layouts:
            if layout is not None:
                self.excuse(layout.leaf, uses)
        return [Value(data=True), Value(data=True)]

    def excuse(self, leaf: int, uses: frozenset[Path]) -> None:
        """Forget what was found of a leaf in these equations and in what they call."""
        ways = self.found.uses.get(leaf, {})
        for path in [p for p in ways if any(p[: len(use)] == use for use in uses)]:
            del ways[path]
        for path in [p for p in self.found.sites if any(p[: len(use)] == use for use in uses)]:
            if self.found.sites[path].weight.leaf == leaf:
                del self.found.sites[path]
                self.found.biases.pop(path, None)

    def other(
        self, eqn: Any, inputs: list[Value], why: str, path: Path, lead: tuple[Any, ...]
    ) -> list[Value]:
        """Pass anything else: a parameter that meets data there is in no layer.

        A penalty, added to the loss outside of all loops, is no use on data.
        """
        leaves = frozenset().union(*(value.leaves for value in inputs))
        data = [value for value in inputs if value.data]
        if not data:
            return [Value(leaves=leaves)] * len(eqn.outvars)
        scalars = all(v.aval.shape == () for v in (*eqn.invars, *eqn.outvars))
        penalty = scalars and not lead and eqn.primitive.name in ("add", "sub")
        if not penalty:
            for leaf in leaves:
                self.found.uses.setdefault(leaf, {})[path] = why
        uses = frozenset({path}) if leaves else frozenset()
        if eqn.primitive.name in ("add", "sub", "mul") and len(data) == 1:
            uses |= data[0].uses
        return [Value(data=True, uses=uses)] * len(eqn.outvars)

    def rescaled(self, eqn: Any, inputs: list[Value], path: Path) -> Value | None:
        """Go on with a scale that is multiplied with more data; None if this is something else."""
        first = 0 if inputs[0].output is not None else 1
        output, other = inputs[first].output, inputs[1 - first]
        if output is None or other.leaves or not other.data:
            return None
        site = self.found.sites[output.path]
        shape = tuple(eqn.outvars[0].aval.shape)
        same = output.axes == tuple(range(len(shape))) and shape == tuple(
            eqn.invars[first].aval.shape
        )
        if site.kind != "scale" or not same:
            return None
        del self.found.sites[output.path]
        before = (*site.before, output.path)
        dtype = eqn.outvars[0].aval.dtype
        self.found.factors[output.path] = site
        self.found.sites[path] = replace(site, data=1 - first, dtype=dtype, before=before)
        return Value(data=True, output=Output(path, output.axes))

    def bias(self, eqn: Any, inputs: list[Value], lead: tuple[Any, ...]) -> Output | None:
        """Join a parameter to the site whose result it is added to."""
        first = 0 if inputs[0].output is not None else 1
        output, view, shift = inputs[first].output, inputs[1 - first].view, inputs[1 - first].shift
        if shift is not None:
            view = shift.view
        if output is None or view is None:
            return None
        site = self.found.sites[output.path]
        if site.kind == "embedding" or site.scans != view.scans:
            return None
        shape = eqn.invars[1 - first].aval.shape
        held = {
            output.axes[k]: k
            for k, axis in enumerate(view.axes)
            if axis is not None and shape[k] != 1
        }
        offset = len(lead)
        stack = [k - offset for k in site.outputs[0] if k >= offset]
        wanted = [*stack, *(k - offset for k in site.outputs[3])]
        sizes = dict(enumerate(site.shape[offset:]))
        if set(held) != {k for k in wanted if sizes[k] != 1} or len(shape) != len(output.axes):
            return None
        axes = [view.axes[held[k]] for k in wanted if k in held]
        sized = view.layout.result
        rest = [k for k in view.inner if k not in axes]
        if any(sized[k] != 1 for k in rest):
            return None
        scans = range(len(view.scans))
        layout = view.layout.transposed((*scans, *axes, *rest))  # type: ignore[arg-type]
        self.found.biases[output.path] = layout
        if shift is not None:
            del self.found.uses[layout.leaf][shift.path]
        return output

    def scan(
        self, eqn: Any, twin: Any, inputs: list[Value], path: Path, lead: tuple[Any, ...]
    ) -> list[Value]:
        """Enter a loop: its iterations share what it holds, and slice what it runs over."""
        p = eqn.params
        jaxpr, doubled = opened(p["jaxpr"]), opened(twin.params["jaxpr"])
        held, carried = p["num_consts"], p["num_carry"]
        data = any(value.data for value in inputs)
        inner = [value.bare for value in inputs]
        for k in range(held, held + carried):
            for leaf in inner[k].leaves:
                self.found.uses.setdefault(leaf, {})[path] = "scan, as what it carries"
            inner[k] = Value(data=data)
        for k in range(held + carried, len(inner)):
            view, var = inner[k].view, eqn.invars[k]
            if view is not None:
                view = view.sliced(tuple(var.aval.shape), len(lead))
            inner[k] = inner[k]._replace(view=view)
        lengths = (p["length"], twin.params["length"])
        results = self.run(jaxpr, doubled, inner, path, (*lead, lengths))
        return [Value(leaves=value.leaves, data=value.data or data) for value in results]

    def shards(
        self, eqn: Any, twin: Any, inputs: list[Value], path: Path, lead: tuple[Any, ...]
    ) -> list[Value]:
        """Enter a shard_map: its body sees a shard of the examples, and whole parameters."""
        kinds = ([v.data for v in inputs], [bool(v.leaves) for v in inputs])
        names = _shards.divided(eqn, twin, *kinds)
        if isinstance(names, Refused):
            return self.other(eqn, inputs, names.why, path, lead)
        if self.examples != self.found.examples:
            return self.other(eqn, inputs, "shard_map, in another one", path, lead)
        shards = _shards.parts(eqn, names)
        inner = [value.bare for value in inputs]
        self.examples //= shards
        jaxpr, doubled = (opened(nested(e)) for e in (eqn, twin))
        results = self.run(jaxpr, doubled, inner, path, lead)
        self.examples = self.found.examples
        for sites in (self.found.sites, self.found.factors):
            for p in [p for p in sites if p[: len(path)] == path]:
                sites[p] = _shards.whole(sites[p], names, shards)
        return [
            value.bare._replace(output=self.joined(var, value.output, lead), uses=value.uses)
            for var, value in zip(eqn.outvars, results, strict=True)
        ]

    def joined(self, var: Any, output: Output | None, lead: tuple[Any, ...]) -> Output | None:
        """Follow the result of a site out of its shards; None if those make another array."""
        if output is None:
            return None
        sizes = self.found.sites[output.path].shape[len(lead) :]
        axes = zip(var.aval.shape, output.axes, strict=True)
        return output if all(axis is None or n == sizes[axis] for n, axis in axes) else None


def _read(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield from (v for v in eqn.invars if not isinstance(v, Literal))
    yield from (v for v in jaxpr.outvars if not isinstance(v, Literal))


def _summand(eqn: Any, inputs: list[Value]) -> Output | None:
    """Find the result of a site in a sum, whose gradient is the sum's."""
    for var, value in zip(eqn.invars, inputs, strict=True):
        if value.output is not None and var.aval.shape == eqn.outvars[0].aval.shape:
            return value.output
    return None


def _single(value: Value, uses: int) -> Value:
    return value if uses == 1 else value._replace(output=None, biased=None, shift=None)


def _moved(eqn: Any, inputs: list[Value]) -> Value | None:
    """Value after an operation that moves elements and changes none; None for any other."""
    value, name, p = inputs[0], eqn.primitive.name, eqn.params
    if name not in MOVES or any(v.leaves or v.data for v in inputs[1:]):
        return None
    old, new = (tuple(v.aval.shape) for v in (eqn.invars[0], eqn.outvars[0]))
    view, output = value.view, value.output
    if name == "transpose":
        order = p["permutation"]
        view = view.transposed(order) if view else None
        output = output and output._replace(axes=tuple(output.axes[k] for k in order))
    elif name == "broadcast_in_dim":
        places = tuple(int(k) for k in p["broadcast_dimensions"])
        same = all(old[k] == new[place] for k, place in enumerate(places))
        if view is not None:
            view = view.spread(len(new), places)
        if output is not None:
            axes: list[int | None] = [None] * len(new)
            for place, axis in zip(places, output.axes, strict=True):
                axes[place] = axis
            ones = all(new[k] == 1 for k in range(len(new)) if k not in places)
            output = output._replace(axes=tuple(axes)) if same and ones else None
    elif name in ("reshape", "squeeze", "expand_dims"):
        if name == "reshape" and p.get("dimensions") is not None:
            return None
        kept = [k for k, n in enumerate(old) if n != 1], [k for k, n in enumerate(new) if n != 1]
        if [old[k] for k in kept[0]] == [new[k] for k in kept[1]]:
            match = dict(zip(kept[1], kept[0], strict=True))
            if view is not None:
                axes = [view.axes[match[k]] if k in match else None for k in range(len(new))]
                view = replace(view, axes=tuple(axes))
            if output is not None:
                axes = [output.axes[match[k]] if k in match else None for k in range(len(new))]
                output = output._replace(axes=tuple(axes))
        else:
            view = view.reshaped(old, new) if view else None
            output = None
    elif old != new:
        return None
    if value.view is not None and view is None:
        return None
    return value._replace(view=view, output=output, biased=None, shift=None)


MOVES = (
    "transpose",
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "copy_p",
    "name",
    "sharding_constraint",
    "reduce_precision",
    "pvary",
)
