"""A traced function, computed again: what its sites read comes out, a perturbation goes in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from ngd_jax import _shards
from ngd_jax._graph import nested, opened, tagged
from ngd_jax._rules import Rule, rule_of
from ngd_jax._sites import Path, Site

__all__ = ["evaluate"]

Arrays = dict[Path, Any]


def evaluate(
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    sites: Mapping[Path, Site],
    perturbations: Arrays,
    path: Path = (),
) -> tuple[list[Any], Arrays]:
    """Compute a jaxpr with something added to the result of each site.

    Parameters
    ----------
    jaxpr : Jaxpr
        Traced function.
    consts, arguments : sequence of arrays
        For its variables.
    sites : mapping of Path to Site
        Of the whole function.
    perturbations : dict of Path to array
        Added to the sites' results, enclosing scans first.
    path : tuple of int
        Of the equation that calls this jaxpr.

    Returns
    -------
    results : list of arrays
        Of the function.
    read : dict of Path to array
        For each site below this path the operand that is the data, enclosing scans first.
    """
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))
    prefixes = _prefixes(sites)
    read: Arrays = {}
    for k, eqn in enumerate(jaxpr.eqns):
        here = (*path, k)
        inputs = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
        if here in sites:
            read[here] = inputs[sites[here].data]
            results = [_bind(jaxpr, eqn, inputs)[0] + perturbations[here]]
        elif here in prefixes:
            below = {p: x for p, x in perturbations.items() if p[: len(here)] == here}
            results, inner = _call(eqn, inputs, sites, below, here)
            if tagged(eqn):
                (perturbation,) = below.values()
                results = [inputs[0] + perturbation, *results[1:]]
            read.update(inner)
        else:
            results = _bind(jaxpr, eqn, inputs)
        env.update(zip(eqn.outvars, results, strict=True))
    return [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars], read


def _prefixes(sites: Collection[Path]) -> set[Path]:
    return {site[:k] for site in sites for k in range(1, len(site))}


def _bind(jaxpr: Any, eqn: Any, inputs: list[Any]) -> list[Any]:
    """Compute one equation, as a jaxpr of its own: the public way to bind any primitive."""
    given = {v: x for v, x in zip(eqn.invars, inputs, strict=True) if not isinstance(v, Literal)}
    one = jaxpr.replace(
        constvars=[],
        invars=list(given),
        outvars=list(eqn.outvars),
        eqns=[eqn],
        effects=eqn.effects,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return list(jaxpr_as_fun(ClosedJaxpr(one, []))(*given.values()))


def _call(
    eqn: Any, inputs: list[Any], sites: Mapping[Path, Site], below: Arrays, path: Path
) -> tuple[list[Any], Arrays]:
    """Compute an equation with sites inside."""
    if eqn.primitive.name == "cond":
        return _branched(eqn, inputs, sites, below, path)
    if eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
        return _ruled(eqn, inputs, sites, below, path)
    closed = nested(eqn)
    jaxpr, consts = opened(closed), getattr(closed, "consts", ())

    def once(arguments: Sequence[Any], perturbations: Arrays) -> tuple[list[Any], Arrays]:
        return evaluate(jaxpr, consts, arguments, sites, perturbations, path)

    name, p = eqn.primitive.name, eqn.params
    if name in ("remat", "remat2", "checkpoint"):
        kept = jax.checkpoint(once, prevent_cse=p["prevent_cse"], policy=p["policy"])
        return kept(inputs, below)  # type: ignore[no-any-return]
    if name == "shard_map":
        return _shards.called(eqn, once, inputs, sites, below)  # type: ignore[no-any-return]
    if name != "scan":
        return once(inputs, below)
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]

    def body(carry: list[Any], xs: Any) -> tuple[list[Any], Any]:
        slices, perturbations = xs
        results, read = once([*inputs[:first], *carry, *slices], perturbations)
        n = p["num_carry"]
        return results[:n], (results[n:], read)

    carry, (stacked, read) = lax.scan(
        body,
        inputs[first:last],
        (inputs[last:], below),
        length=p["length"],
        reverse=p["reverse"],
        unroll=p["unroll"],
    )
    return [*carry, *stacked], read


def _branched(
    eqn: Any, inputs: list[Any], sites: Mapping[Path, Site], below: Arrays, path: Path
) -> tuple[list[Any], Arrays]:
    """Compute one branch; what the sites of the others read is zero."""
    index, *operands = inputs
    branches = eqn.params["branches"]

    def one(k: int, operands: list[Any], below: Arrays) -> tuple[list[Any], Arrays]:
        closed = branches[k]
        return evaluate(closed.jaxpr, closed.consts, operands, sites, below, (*path, k))

    each = [jax.eval_shape(partial(one, k), operands, below)[1] for k in range(len(branches))]

    def whole(k: int, operands: list[Any], below: Arrays) -> tuple[list[Any], Arrays]:
        results, read = one(k, operands, below)
        others = {p: jnp.zeros(x.shape, x.dtype) for like in each for p, x in like.items()}
        return results, others | read

    taken = [partial(whole, k) for k in range(len(branches))]
    return lax.switch(index, taken, operands, below)  # type: ignore[no-any-return]


def _ruled(
    eqn: Any, inputs: list[Any], sites: Mapping[Path, Site], below: Arrays, path: Path
) -> tuple[list[Any], Arrays]:
    """Compute a function by its own rule, in which the perturbations have tangents of their own."""
    rule = rule_of(eqn)
    assert rule is not None, "a site was found in it"

    def ruled(operands: Sequence[Any], tangents: Any, moved: Arrays) -> tuple[list[Any], Arrays]:
        arguments = [*operands, *(tangents[k] for k in rule.moved)]
        return evaluate(rule.closed.jaxpr, rule.closed.consts, arguments, sites, moved, path)

    derive = _pushed if eqn.primitive.name == "custom_jvp_call" else _pulled
    shapes = {p: jax.ShapeDtypeStruct(x.shape, x.dtype) for p, x in below.items()}
    function = derive(rule, ruled, len(eqn.outvars), shapes)
    held = [lax.stop_gradient(x) for x in inputs]
    read = ruled(held, {k: jnp.zeros_like(held[k]) for k in rule.moved}, _zeros(shapes))[1]
    return function(inputs, below), read


def _zeros(shapes: Arrays) -> Arrays:
    return {path: jnp.zeros(x.shape, x.dtype) for path, x in shapes.items()}


def _pushed(rule: Rule, ruled: Any, results: int, _: Arrays) -> Any:
    """Make a function whose tangents are those of a rule, perturbed."""
    function = jax.custom_jvp(lambda operands, _: list(rule.function(*operands)))

    def of(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        found, _ = ruled(primals[0], *tangents)
        return found[:results], found[results:]

    function.defjvp(of)
    return function


def _pulled(rule: Rule, ruled: Any, results: int, shapes: Arrays) -> Any:
    """Make a function with its own backward pass, and beside it that of the perturbations."""
    function = jax.custom_vjp(lambda operands, _: list(rule.function(*operands)))

    def forward(operands: list[Any], _: Arrays) -> Any:
        found, pull = jax.vjp(rule.of_moved(operands), *(operands[k] for k in rule.moved))
        return list(found), (operands, pull)

    def backward(kept: Any, gradients: list[Any]) -> Any:
        operands, pull = kept
        moved = dict(zip(rule.moved, pull(gradients), strict=True))
        zeros = {k: jnp.zeros_like(operands[k]) for k in rule.moved}
        _, along = jax.vjp(lambda x: ruled(operands, zeros, x)[0][results:], _zeros(shapes))
        return [moved.get(k) for k in range(len(operands))], along(gradients)[0]

    function.defvjp(forward, backward)
    return function
