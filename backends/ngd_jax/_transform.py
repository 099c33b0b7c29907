"""A method of the core at work on gradients: schedule, state, directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from ngd_core import (
    FNGD,
    SOFIM,
    DenseNGD,
    Hyper,
    LayerSpec,
    Method,
    TridiagonalKFAC,
    step,
)
from ngd_jax._capture import path_name
from ngd_jax._dealt import refreshed
from ngd_jax._layers import Layer, leaves_of
from ngd_jax._placed import placed
from ngd_jax._report import Report
from ngd_jax._stacks import NUMPY

__all__ = ["PreconditionState", "by_path", "chosen_layers", "precondition", "rekeyed"]

Number: TypeAlias = float | jax.Array
Schedule: TypeAlias = Callable[[Any], Any]
Records: TypeAlias = Mapping[str, Any]


class PreconditionState(NamedTuple):
    """State of `precondition`, arrays alone in NamedTuples and dicts with strings for keys.

    Parameters
    ----------
    count : array of int32, shape ()
        Steps so far.
    curvature : pytree
        State of the method, layers by name.
    codes : dict of str to array of int32, shape ()
        For each layer what happened in the last step, a key of `ngd_core.types.CODE_MEANING`.
    """

    count: Any
    curvature: Any
    codes: dict[str, Any]


def precondition(
    layers: Report,
    method: Method,
    *,
    damping: Number | Schedule = 1e-3,
    decay: Number | Schedule = 0.95,
    factor_every: int | jax.Array = 10,
    inverse_every: int | jax.Array = 100,
    early: bool = False,
    kl_clip: Number | None = None,
    learning_rate: Number | Schedule = 1.0,
    uncovered: Literal["gradient", "error"] = "gradient",
    steps_per_epoch: int | jax.Array | None = None,
    inverse_mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Natural-gradient directions in place of gradients, for any transformation that comes after.

    Parameters
    ----------
    layers : Report
        From `ngd_jax.report` of the loss.
    method : Method
        For example ``ngd_core.KFAC()``; not one that looks at all layers together.
    damping : float, array or schedule
        Added to the Fisher of the mean loss.
    decay : float, array or schedule
        Weight kept by older statistics.
    factor_every, inverse_every : int or array
        Steps between two statistics and between two refreshes.
    early : bool
        Further ones at steps 1, 4, 16, 64, ... below these intervals, see `ngd_core.step.due`.
    kl_clip : float, array or None
        Bound on a step's estimated KL divergence, see `ngd_core.step.kl_clip_scale`.
    learning_rate : float, array or schedule
        Of the transformations behind, for `kl_clip` alone.
    uncovered : "gradient" or "error"
        What happens to parameters in no layer that has curvature.
    steps_per_epoch : int or array, optional
        For `ngd_core.FNGD`, whose coefficients are those of its first epoch.
    inverse_mesh : jax.sharding.Mesh, optional
        Devices over which the layers are dealt out at a refresh: each inverts its own, by the
        cubes of their factors' sizes, and all are sent the inverses. Without it every device
        makes every inverse.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``update(grads, state, params=None, *, records=...)`` with the records of
        `ngd_jax.value_and_grad`, or the function that it gives with ``deferred=True``; a step
        without them (None) uses the statistics it has. Leaves
        that are masked out are left alone: a layer without its bias is a layer of its weight.
        `ngd_core.FNGD` with ``share="sample"`` takes ``index=`` too, the examples' numbers in the
        data set, shape ``(n,)``.

    Raises
    ------
    TypeError, ValueError
        For a method or number that does not fit; with ``uncovered="error"`` by ``init`` if a
        parameter has no curvature.

    Notes
    -----
    Statistics and refreshes are branches of ``lax.cond``, so a schedule of intervals, damping or
    learning rate compiles nothing.

    Examples
    --------
    >>> import jax.numpy as jnp, ngd_core, ngd_jax, optax
    >>> def loss_fn(params, x, y):
    ...     return 0.5 * jnp.mean(jnp.sum((x @ params["w"] - y) ** 2, axis=-1))
    >>> params, x, y = {"w": jnp.ones((2, 1))}, jnp.eye(2), jnp.zeros((2, 1))
    >>> layers = ngd_jax.report(loss_fn, params, x, y)
    >>> optimizer = optax.chain(ngd_jax.precondition(layers, ngd_core.KFAC()), optax.adam(1e-3))
    >>> state = optimizer.init(params)
    >>> value, grads, records = ngd_jax.value_and_grad(loss_fn)(params, x, y)
    >>> updates, state = optimizer.update(grads, state, params, records=records)
    """
    _check(method, factor_every, inverse_every, kl_clip, uncovered, steps_per_epoch)
    _check_mesh(method, inverse_mesh)
    fngd = isinstance(method, FNGD)

    def init(params: Any) -> PreconditionState:
        leaves = by_path(params)
        chosen = chosen_layers(layers, leaves, method)
        _cover(chosen, layers, leaves, method, uncovered)
        like = leaves[chosen[0].parameters[0]]
        state = method.init([layer.spec for layer in chosen], jnp.asarray(like))
        codes = {layer.spec.name: jnp.zeros((), jnp.int32) for layer in chosen}
        named = jax.tree.map(lambda x: jnp.array(x, copy=True), _named(state))
        return PreconditionState(*placed((jnp.zeros((), jnp.int32), named, codes), like))

    def update(
        updates: Any,
        state: PreconditionState,
        params: Any = None,
        *,
        records: Records | Callable[[], Records] | None = None,
        index: jax.Array | None = None,
        **_: Any,
    ) -> tuple[Any, PreconditionState]:
        leaves = by_path(updates)
        chosen = chosen_layers(layers, leaves, method)
        specs = {layer.spec.name: layer.spec for layer in chosen}
        hyper = Hyper(_value(damping, state.count), _value(decay, state.count))
        if fngd and callable(records):
            records = records()
        found = records if callable(records) else _found(records, specs, fngd)
        curvature = rekeyed(state.curvature, specs)
        which = _which(method, state.count, index)
        curvature = _learn(method, curvature, found, hyper, state.count, which)
        blocks = {layer.spec: layer.block(leaves) for layer in chosen}
        weighted = found if fngd and not callable(found) else {}
        directions, info = method.direction(curvature, blocks, weighted, hyper, xp=NUMPY, **which)
        if kl_clip is not None:
            rate = _value(learning_rate, state.count)
            scale = step.kl_clip_scale(info, rate, kl_clip)
            directions = {spec: d * scale.astype(d.dtype) for spec, d in directions.items()}
        parts = leaves_of(chosen, directions)
        written = leaves | {path: x.astype(leaves[path].dtype) for path, x in parts.items()}
        new = jax.tree_util.tree_map_with_path(lambda path, _: written[path_name(path)], updates)
        codes = {spec.name: one.code for spec, one in info.items()}
        return new, PreconditionState(state.count + 1, _named(curvature), codes)

    def _which(method: Any, count: Any, index: Any) -> dict[str, Any]:
        """Tell FNGD which batch it is, or which examples, if its coefficients go by that."""
        if not fngd or method.share == "position":
            return {}
        return {"index": index if method.share == "sample" else count % steps_per_epoch}

    def _learn(
        method: Any, curvature: Any, found: Any, hyper: Hyper, count: Any, which: dict[str, Any]
    ) -> Any:
        def when(condition: Any, change: Any, curvature: Any) -> Any:
            return lax.cond(condition, lambda c: change(rekeyed(c, specs)), lambda c: c, named)

        specs = {spec.name: spec for spec in _layers(curvature)}
        named = _named(curvature)
        if fngd:
            epoch, place = count // steps_per_epoch, count % steps_per_epoch
            recording = epoch == 0
            if method.refresh_epochs is not None:
                recording = epoch % method.refresh_epochs == 0
            closing = (place == 0) & (count > 0)
            named = when(closing, lambda c: _named(method.refresh(c, hyper, xp=NUMPY)[0]), named)
            learnt = partial(method.accumulate, records=found, hyper=hyper, xp=NUMPY, **which)
            named = when(recording, lambda c: _named(learnt(c)), named)
            return rekeyed(named, specs)
        if found:

            def accumulated(c: Any) -> Any:
                now = _found(found(), specs, fngd) if callable(found) else found
                return _named(method.accumulate(c, now, hyper, xp=NUMPY))

            named = when(step.due(count, factor_every, early=early), accumulated, named)
        due = step.due(count, inverse_every, early=early)
        named = when(due, lambda c: _named(refreshed(method, c, hyper, inverse_mesh)), named)
        return rekeyed(named, specs)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(
    method: Any, factor_every: Any, inverse_every: Any, kl_clip: Any, uncovered: str, epoch: Any
) -> None:
    if isinstance(method, (DenseNGD, SOFIM, TridiagonalKFAC)):
        msg = (
            f"{type(method).__name__} looks at all layers of a batch together; use KFAC, EKFAC, "
            "SNGD, FNGD or ProjectiveKFAC, or ngd_jax.sofim."
        )
        raise ValueError(msg)
    if uncovered not in ("gradient", "error"):
        msg = f"uncovered is {uncovered!r}; expected 'gradient' or 'error'."
        raise ValueError(msg)
    intervals = {"factor_every": factor_every, "inverse_every": inverse_every}
    if isinstance(method, FNGD):
        if epoch is None:
            msg = "steps_per_epoch is missing; FNGD reuses the coefficients of its first epoch."
            raise ValueError(msg)
        intervals = {"steps_per_epoch": epoch}
    for name, value in intervals.items():
        if not isinstance(value, jax.Array) and not (isinstance(value, int) and value >= 1):
            msg = f"{name} is {value!r}; expected an integer >= 1."
            raise ValueError(msg)
    if isinstance(kl_clip, (int, float)) and not kl_clip > 0:
        msg = f"kl_clip is {kl_clip}; expected a number > 0, or None."
        raise ValueError(msg)


def _check_mesh(method: Any, mesh: Any) -> None:
    if mesh is None:
        return
    if isinstance(method, FNGD):
        msg = "FNGD keeps no inverses that could be split over devices; leave inverse_mesh out."
        raise ValueError(msg)
    if not isinstance(mesh, Mesh):
        msg = f"inverse_mesh is {mesh!r}; expected a jax.sharding.Mesh, or None."
        raise TypeError(msg)


def _value(x: Any, count: Any) -> Any:
    return x(count) if callable(x) else x


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves of a tree by path."""
    return {path_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def chosen_layers(layers: Report, leaves: Mapping[str, Any], method: Method) -> list[Layer]:
    """Layers whose weights are here, and of kinds that the method takes."""
    chosen = []
    for layer in layers.layers:
        weight, *bias = layer.parameters
        if weight not in leaves or layer.spec.kind not in method.kinds:
            continue
        if bias and bias[0] not in leaves:
            spec = replace(layer.spec, bias=False)
            layer = layer._replace(spec=spec, bias=None, parameters=(weight,))
        chosen.append(layer)
    return chosen


def _cover(
    chosen: list[Layer],
    layers: Report,
    leaves: Mapping[str, Any],
    method: Method,
    uncovered: str,
) -> None:
    if not chosen:
        msg = (
            "No parameter here is in a layer with curvature; str(report) tells which layers were "
            "found, and report has to be made for the same parameters."
        )
        raise ValueError(msg)
    held = {path for layer in chosen for path in layer.parameters}
    rest = [path for path in leaves if path not in held]
    if uncovered == "error" and rest:
        name = type(method).__name__
        why = layers.uncovered.get(rest[0], f"{name} has nothing for its kind of layer")
        msg = (
            f"{len(rest)} parameters are in no layer with curvature, the first is {rest[0]!r} "
            f"({why}); mask them out, or pass uncovered='gradient' to train them along their "
            "gradients."
        )
        raise ValueError(msg)


def _found(
    records: Mapping[str, Any] | None, specs: Mapping[str, LayerSpec], needed: bool
) -> dict[LayerSpec, Any]:
    if records is None:
        if needed:
            msg = "records= is missing; FNGD weights the examples of every batch."
            raise ValueError(msg)
        return {}
    missing = [name for name in specs if name not in records]
    if missing:
        msg = (
            f"There is no record of layer {missing[0]!r}; pass the records that "
            "ngd_jax.value_and_grad gives for the loss that was reported on."
        )
        raise ValueError(msg)
    return {spec: records[name] for name, spec in specs.items()}


def _layers(state: Any) -> list[LayerSpec]:
    return list(state.layers)


def _named(tree: Any) -> Any:
    """State of the core with names for layers, which any checkpoint can hold."""
    return _mapped(tree, lambda key: getattr(key, "name", key))


def rekeyed(tree: Any, specs: Mapping[str, LayerSpec]) -> Any:
    """State with layers for their names."""
    return _mapped(tree, lambda key: specs.get(key, key))


def _mapped(tree: Any, f: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {f(key): _mapped(value, f) for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = [_mapped(value, f) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree
