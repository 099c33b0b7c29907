"""Derivatives that users wrote for functions of their own, as traced functions.

What a parameter's gradient is, such a rule says and not the function. The rule of a ``custom_jvp``
is linear in the tangents, so a product of data with a parameter's tangent in it is a site as any
other: the gradient is that site's transpose, and nothing of the rule is changed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

__all__ = ["Rule", "rule_of"]


class Rule(NamedTuple):
    """The rule of one equation.

    Parameters
    ----------
    function : callable
        What the equation computes, of all operands.
    closed : ClosedJaxpr
        From all operands and the tangents of those in `moved` to results and their tangents.
    moved : tuple of int
        Operands that have tangents.
    """

    function: Any
    closed: Any
    moved: tuple[int, ...]


def rule_of(eqn: Any) -> Rule:
    """Trace the rule of an equation ``custom_jvp_call``."""
    inner = eqn.params["call_jaxpr"].jaxpr
    names = [v for v in eqn.invars if not isinstance(v, Literal)]
    one = inner.replace(
        constvars=[],
        invars=names,
        outvars=list(eqn.outvars),
        eqns=[eqn],
        effects=eqn.effects,
        debug_info=inner.debug_info.with_unknown_names(),
    )
    alone = jaxpr_as_fun(ClosedJaxpr(one, []))

    def function(*operands: Any) -> Any:
        pairs = zip(eqn.invars, operands, strict=True)
        return alone(*(x for v, x in pairs if not isinstance(v, Literal)))

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    moved = tuple(
        k
        for k, v in enumerate(eqn.invars)
        if not isinstance(v, Literal) and jnp.issubdtype(v.aval.dtype, jnp.inexact)
    )

    def both(operands: Any, tangents: Any) -> Any:
        def of_moved(*values: Any) -> Any:
            given = dict(zip(moved, values, strict=True))
            return function(*(given.get(k, x) for k, x in enumerate(operands)))

        return jax.jvp(of_moved, [operands[k] for k in moved], tangents)

    closed = jax.make_jaxpr(both)(shapes, [shapes[k] for k in moved])
    return Rule(function, closed, moved)
