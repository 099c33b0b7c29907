"""Curvature of a loss as an operator on pytrees like its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ngd_core import EKFAC, KFAC, LayerSpec, operators
from ngd_core.analysis import LIMIT
from ngd_core.methods.ekfac import EKFACState
from ngd_core.operators import FisherOperator, KroneckerOperator, MappedOperator
from ngd_core.operators.mapped import check_covered
from ngd_jax._capture import value_and_grad
from ngd_jax._layers import Layer, leaves_of
from ngd_jax._report import Report, report
from ngd_jax._transform import PreconditionState, by_path, chosen_layers, rekeyed

__all__ = ["fisher", "kronecker"]

Uncovered = Literal["error", "omit"]


def fisher(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    has_aux: bool = True,
    fisher: Literal["exact", "mc", "empirical"] = "exact",
    likelihood: Any = "categorical",
    outputs: Callable[[Any], Any] | None = None,
    loss_reduction: Literal["mean", "sum"] = "mean",
    batch_argnums: Sequence[int] | None = None,
    key: Any = None,
    uncovered: Uncovered = "error",
    limit: int = LIMIT,
) -> MappedOperator:
    """Joint Fisher of all layers of a loss on one batch, as an operator on its parameters.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(params, *batch)``, which gives ``(loss, outputs)`` with `has_aux`.
    params : pytree
        Parameters.
    *batch : pytrees
        Further arguments of the loss.
    has_aux, fisher, likelihood, outputs, loss_reduction, batch_argnums
        As in `ngd_jax.value_and_grad`, but that the exact Fisher is meant if nothing is said.
    key : array, optional
        For ``fisher="mc"``.
    uncovered : "error" or "omit"
        What happens to parameters in no layer.
    limit : int
        As in `ngd_core.operators.fisher`.

    Returns
    -------
    ngd_core.operators.MappedOperator
        On pytrees like `params`, None in place of parameters that are left out; the order of
        `to_dense` is that of ``jax.tree.leaves``. Make and use it inside `jax.jit`, which it does
        not call itself; it is no pytree and does not leave it.

    Raises
    ------
    TypeError, ValueError
        As `ngd_jax.value_and_grad` and `ngd_core.operators.fisher`; for parameters in no layer, by
        name.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, ngd_jax
    >>> def loss_fn(params, x, y):
    ...     z = x @ params["w"] + params["b"]
    ...     return 0.5 * jnp.mean(jnp.sum((z - y) ** 2, axis=-1)), z
    >>> @jax.jit
    ... def solved(params, grads, x, y):
    ...     F = ngd_jax.fisher(loss_fn, params, x, y, likelihood="gaussian")
    ...     return F.solve(grads, damping=1.0)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    >>> h = solved(params, params, jnp.ones((4, 3)), jnp.zeros((4, 2)))
    >>> h["w"].shape, round(float(h["b"][0]), 4)
    ((3, 2), 0.2)
    """
    layers = report(loss_fn, params, *batch, batch_argnums=batch_argnums)
    check_covered(layers.uncovered, uncovered)
    _, _, records = value_and_grad(
        loss_fn,
        has_aux=has_aux,
        fisher=fisher,
        likelihood=likelihood,
        outputs=outputs,
        loss_reduction=loss_reduction,
        batch_argnums=batch_argnums,
    )(params, *batch, key=key)
    found = {layer.spec: records[layer.spec.name] for layer in layers.layers}
    return _on_parameters(operators.fisher(found, limit=limit), layers.layers, params)


def kronecker(
    state: Any,
    layers: Report,
    params: Any,
    *,
    uncovered: Uncovered = "error",
    dtype: Literal["float32", "float64"] | None = None,
) -> MappedOperator:
    """Fisher that K-FAC or EKFAC has averaged in training, as an operator on parameters.

    Parameters
    ----------
    state : pytree
        Of `ngd_jax.kfac`, `ngd_jax.ekfac`, or `ngd_jax.precondition` with one of these methods,
        alone or within other transformations, after a step with records.
    layers : Report
        That the optimizer was made with.
    params : pytree
        Parameters, of which shapes are looked at.
    uncovered : "error" or "omit"
        What happens to parameters without statistics: in no layer, or masked out.
    dtype : "float32", "float64" or None
        As in `ngd_core.operators.kronecker`.

    Returns
    -------
    ngd_core.operators.MappedOperator
        As `fisher`.

    Raises
    ------
    TypeError
        For a state of another method.
    ValueError
        If there is not one such state; for parameters in no layer, by name.

    Examples
    --------
    >>> import jax.numpy as jnp, ngd_jax
    >>> def loss_fn(params, x, y):
    ...     z = x @ params["w"]
    ...     return 0.5 * jnp.mean(jnp.sum((z - y) ** 2, axis=-1)), z
    >>> params, x, y = {"w": jnp.ones((2, 1))}, jnp.eye(2), jnp.zeros((2, 1))
    >>> layers = ngd_jax.report(loss_fn, params, x, y)
    >>> optimizer = ngd_jax.kfac(layers, learning_rate=0.1)
    >>> f = ngd_jax.value_and_grad(loss_fn, has_aux=True, fisher="exact", likelihood="gaussian")
    >>> _, grads, records = f(params, x, y)
    >>> _, state = optimizer.update(grads, optimizer.init(params), params, records=records)
    >>> round(float(ngd_jax.kronecker(state, layers, params).trace()), 4)
    1.0
    """

    def ours(x: Any) -> bool:
        return isinstance(x, PreconditionState)

    states = [x.curvature for x in jax.tree.leaves(state, is_leaf=ours) if ours(x)]
    if len(states) != 1:
        msg = (
            f"The state holds {len(states)} states of ngd_jax.precondition, expected one: that of "
            "ngd_jax.kfac or ngd_jax.ekfac."
        )
        raise ValueError(msg)
    method = EKFAC() if isinstance(states[0], EKFACState) else KFAC()
    leaves, names = by_path(params), set(getattr(states[0], "layers", {}))
    chosen = chosen_layers(layers, leaves, method)
    held = [layer for layer in chosen if layer.spec.name in names]
    operator = operators.kronecker(
        rekeyed(states[0], {layer.spec.name: layer.spec for layer in held}), dtype=dtype
    )
    if len(held) < len(names):
        msg = (
            f"The state has the layers {sorted(names)}, of which the report and the parameters "
            f"have {len(held)}; pass those that the optimizer was made with."
        )
        raise ValueError(msg)
    covered = {path for layer in held for path in layer.parameters}
    why = {
        path: layers.uncovered.get(path, "the state knows nothing of it")
        for path in leaves
        if path not in covered
    }
    check_covered(why, uncovered)
    return _on_parameters(operator, held, params)


def _on_parameters(
    operator: FisherOperator | KroneckerOperator, layers: Sequence[Layer], params: Any
) -> MappedOperator:
    """Operator on pytrees like the parameters."""
    structure = jax.tree.structure(params)
    every = {path: jnp.shape(x) for path, x in by_path(params).items()}
    held = {path for layer in layers for path in layer.parameters}
    shapes = {path: shape for path, shape in every.items() if path in held}

    def to_blocks(arrays: Mapping[str, Any]) -> dict[LayerSpec, Any]:
        arrays = {path: jnp.asarray(x) for path, x in arrays.items()}
        return {layer.spec: layer.block(arrays) for layer in layers}

    def from_blocks(blocks: Mapping[LayerSpec, Any]) -> dict[str, Any]:
        return leaves_of(layers, blocks)

    def tree(arrays: Mapping[str, Any]) -> Any:
        return jax.tree.unflatten(structure, [arrays.get(path) for path in every])

    return MappedOperator(operator, shapes, to_blocks, from_blocks, by_path, tree)
