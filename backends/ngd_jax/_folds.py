"""Follows the examples of a batch through a traced function, also folded with positions.

The axis that grows with the batch tells where the examples are while they have it to themselves.
Where they share it, their order on it has to be known from what was done to the data, by operations
of which each is known to keep it; behind any other it counts as lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from jax.extend.core import Literal

from ngd_jax._digits import Axis, Digits, alone, halved, merged, reshaped, whole
from ngd_jax._kept_axes import placed
from ngd_jax._sites import SITES, Path

__all__ = ["Lost", "State", "Walk", "states_of"]


@dataclass(frozen=True)
class Lost:
    """Data that grows with the batch, with its examples in no known order.

    Parameters
    ----------
    by : str
        What they went through while folded with positions; empty if they never were.
    """

    by: str = ""


State: TypeAlias = Digits | Lost | None
"""Digits for twice the batch; None for what does not grow with it, or is no data."""

CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
)


def states_of(closed: Any, doubled: Any, leaves: int, examples: int) -> Walk:
    """Tell where the examples are in the operands of what may be a site.

    Parameters
    ----------
    closed, doubled : ClosedJaxpr
        A function, traced for the batch and for twice as many examples.
    leaves : int
        Number of arguments that are parameters.
    examples : int
        Size of the batch.

    Returns
    -------
    Walk
        With all states found.
    """
    walk = Walk(examples, {})
    pairs = zip(closed.jaxpr.invars, doubled.jaxpr.invars, strict=True)
    states = [None if k < leaves else walk.grown(*pair, "") for k, pair in enumerate(pairs)]
    walk.run(closed.jaxpr, doubled.jaxpr, states, ())
    return walk


class Walk(NamedTuple):
    """Goes through the equations of two traces side by side.

    Parameters
    ----------
    examples : int
        Size of the batch.
    found : dict of Path to sequence of State
        Of the operands of what may be a site, by the path of its equation.
    """

    examples: int
    found: dict[Path, Sequence[State]]

    def of(self, path: Path, eqn: Any) -> Sequence[State]:
        """States of an equation's operands."""
        return self.found.get(path, [None] * len(eqn.invars))

    def run(self, jaxpr: Any, doubled: Any, states: Sequence[State], path: Path) -> list[State]:
        """States of the results, from those of the arguments."""
        env = dict(zip(jaxpr.invars, states, strict=True))

        def known(v: Any) -> State:
            return None if isinstance(v, Literal) else env.get(v)

        for k, (eqn, twin) in enumerate(zip(jaxpr.eqns, doubled.eqns, strict=False)):
            inputs, here = [known(v) for v in eqn.invars], (*path, k)
            if eqn.primitive.name in (*SITES, "custom_jvp_call", "custom_vjp_call"):
                self.found[here] = inputs
            env.update(zip(eqn.outvars, self.equation(eqn, twin, inputs, here), strict=True))
        return [known(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, twin: Any, inputs: list[State], path: Path) -> list[State]:
        """States of an equation's results."""
        name, p = eqn.primitive.name, eqn.params
        if all(state is None for state in inputs) or name != twin.primitive.name:
            return [None] * len(eqn.outvars)
        if name == "scan":
            return self.scan(eqn, twin, inputs, path)
        if name == "cond":
            pairs = enumerate(zip(p["branches"], twin.params["branches"], strict=True))
            each = [self.run(a.jaxpr, b.jaxpr, inputs[1:], (*path, k)) for k, (a, b) in pairs]
            return [_joined(states, name) for states in zip(*each, strict=True)]
        if name == "shard_map":
            return self.shards(eqn, twin, inputs, path)
        if name in CALLS:
            key = "call_jaxpr" if "call_jaxpr" in p else "jaxpr"
            inner, double = (getattr(e.params[key], "jaxpr", e.params[key]) for e in (eqn, twin))
            return self.run(inner, double, inputs, path)
        known = [None if isinstance(state, Lost) else state for state in inputs]
        torn = name == "reshape" and known[0] is not None
        by = name if torn else _by(inputs, name)
        results: list[State] = []
        for var, double in zip(eqn.outvars, twin.outvars, strict=True):
            shape, digits = tuple(double.aval.shape), None
            if torn and p.get("dimensions") is None:
                digits = reshaped(known[0] or (), shape)
            elif known == inputs:
                digits = placed(twin, known, shape)
            fits = digits and halved(digits, self.examples, tuple(var.aval.shape))
            results.append(digits if fits else self.grown(var, double, by))
        return results

    def shards(self, eqn: Any, twin: Any, inputs: list[State], path: Path) -> list[State]:
        """Enter a shard_map, whose body sees an equal part of the examples."""
        body, double = (getattr(e.params["jaxpr"], "jaxpr", e.params["jaxpr"]) for e in (eqn, twin))
        sizes = {
            math.prod(var.aval.shape) // math.prod(inner.aval.shape)
            for var, inner, state in zip(eqn.invars, body.invars, inputs, strict=True)
            if state is not None
        }
        if len(sizes) != 1:
            pairs = zip(eqn.outvars, twin.outvars, strict=True)
            return [self.grown(*pair, "shard_map") for pair in pairs]
        part = Walk(self.examples // sizes.pop(), self.found)
        states = [
            state and part.grown(var, other, _by([state], "shard_map"))
            for var, other, state in zip(body.invars, double.invars, inputs, strict=True)
        ]
        results = part.run(body, double, states, path)
        return [
            self.grown(var, other, _by([state], "shard_map") or _lost(state))
            for var, other, state in zip(eqn.outvars, twin.outvars, results, strict=True)
        ]

    def grown(self, var: Any, double: Any, by: str) -> State:
        """State by what grows alone; `by` is what the examples were lost by while folded."""
        old, new = tuple(var.aval.shape), tuple(double.aval.shape)
        grown = [k for k in range(len(old)) if old[k] != new[k]]
        if not grown:
            return None
        digits = whole(grown[0], new)
        own = not by and len(grown) == 1 and halved(digits, self.examples, old) is not None
        return digits if own else Lost(by)

    def scan(self, eqn: Any, twin: Any, inputs: list[State], path: Path) -> list[State]:
        """Enter a loop, again until what it carries is settled."""
        p = eqn.params
        first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
        jaxprs = [e.params["jaxpr"].jaxpr for e in (eqn, twin)]
        held, carry = inputs[:first], inputs[first:last]
        seen = [
            self.slice(state, *(jaxpr.invars[k] for jaxpr in jaxprs))
            for k, state in enumerate(inputs[last:], last)
        ]
        heads = {state.head for state in seen if isinstance(state, _Rows)}
        slices = [None if isinstance(state, _Rows) else state for state in seen]
        while True:
            results = self.run(jaxprs[0], jaxprs[1], [*held, *carry, *slices], path)
            after = [_joined(pair, "scan") for pair in zip(carry, results, strict=False)]
            if after == carry:
                break
            carry = after
        n = len(carry)
        outs = zip(results[n:], eqn.outvars[n:], twin.outvars[n:], strict=True)
        return [*carry, *(self.stacked(*out, heads) for out in outs)]

    def slice(self, state: State, var: Any, double: Any) -> State | _Rows:
        """State of what one iteration sees of an array."""
        if state is None or isinstance(state, Lost):
            return state and self.grown(var, double, state.by)
        if not any(stride for _, stride in state[0]):
            return state[1:]
        sizes = [n for n, stride in state[0] if stride]
        return _Rows(state[0]) if math.prod(sizes) == 2 * self.examples else None

    def stacked(self, state: State, var: Any, double: Any, heads: set[Axis]) -> State:
        """State of the results of all iterations."""
        shape = tuple(double.aval.shape)
        by = state.by if isinstance(state, Lost) else "scan" if state and heads else ""
        if by or isinstance(state, Lost) or not (state or heads):
            return self.grown(var, double, by)
        head = next(iter(heads)) if len(heads) == 1 else ((shape[0], 0),)
        digits = (merged(head), *(state or whole(-1, shape[1:])))
        fits = halved(digits, self.examples, tuple(var.aval.shape))
        return self.grown(var, double, "scan") if fits is None else digits


class _Rows(NamedTuple):
    """What a loop over the examples, and positions folded with them, runs over."""

    head: Axis


def _lost(state: State) -> str:
    return "shard_map" if isinstance(state, Lost) else ""


def _joined(states: Iterable[State], by: str) -> State:
    """State of what is one or the other."""
    known = [state for state in dict.fromkeys(states) if state is not None]
    if len(known) < 2:
        return known[0] if known else None
    return Lost(_by(known, by))


def _by(states: Iterable[State], name: str) -> str:
    """Name what the examples are lost by: what they were before, or this if it was given folds."""
    before = [state.by for state in states if isinstance(state, Lost) and state.by]
    folded = any(isinstance(state, tuple) and not alone(state) for state in states)
    return before[0] if before else name if folded else ""
