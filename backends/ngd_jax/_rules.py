"""Derivatives that users wrote for functions of their own, as traced functions.

What a parameter's gradient is, such a rule says and not the function. The rule of a ``custom_jvp``
is linear in the tangents, so a product of data with a parameter's tangent in it is a site as any
other: the gradient is that site's transpose, and nothing of the rule is changed. The rule of a
``custom_vjp`` is turned round: where it is linear in the gradient it has a transpose, and that is
such a rule of tangents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def of_moved(self, operands: Sequence[Any]) -> Callable[..., Any]:
        """Make the function of the operands in `moved`, the others held."""

        def function(*values: Any) -> Any:
            given = dict(zip(self.moved, values, strict=True))
            return self.function(*(given.get(k, x) for k, x in enumerate(operands)))

        return function


def rule_of(eqn: Any) -> Rule | None:
    """Trace the rule of a ``custom_jvp_call`` or ``custom_vjp_call``.

    Parameters
    ----------
    eqn : equation
        The call.

    Returns
    -------
    Rule or None
        None for a rule of ``custom_vjp`` of which JAX finds no transpose: it is not linear in the
        gradient, or has steps of which JAX knows none.
    """
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

    shapes = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type)
        for v in eqn.invars
    ]
    moved = tuple(
        k
        for k, v in enumerate(eqn.invars)
        if not isinstance(v, Literal) and jnp.issubdtype(v.aval.dtype, jnp.inexact)
    )

    def both(operands: Any, tangents: Any) -> Any:
        held = [operands[k] for k in moved]
        if eqn.primitive.name == "custom_jvp_call":
            return jax.jvp(rule.of_moved(operands), held, tangents)
        results, pull = jax.vjp(rule.of_moved(operands), *held)
        (turned,) = jax.linear_transpose(pull, results)(tuple(tangents))
        return results, turned

    rule = Rule(function, None, moved)
    try:
        closed = jax.make_jaxpr(both)(shapes, [shapes[k] for k in moved])
    except Exception:
        if eqn.primitive.name == "custom_jvp_call":
            raise
        return None
    return rule._replace(closed=closed)
