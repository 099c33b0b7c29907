"""The methods of the core as Optax optimizers."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import ngd_core
from ngd_core import Hyper, Method
from ngd_jax._capture import path_name
from ngd_jax._ops import NATIVE
from ngd_jax._placed import placed
from ngd_jax._report import Report
from ngd_jax._transform import Number, Schedule, precondition

__all__ = ["SofimState", "ekfac", "fngd", "kfac", "projective_kfac", "sngd", "sofim"]

Optimizer: TypeAlias = optax.GradientTransformationExtraArgs


def _optimizer(
    layers: Report,
    method: Method,
    learning_rate: Any,
    momentum: Any,
    weight_decay: Any,
    **options: Any,
) -> Optimizer:
    """Directions, heavy-ball momentum, decoupled decay, step: what `ngd_torch` does."""
    if isinstance(momentum, (int, float)) and not 0 <= momentum < 1:
        msg = f"momentum is {momentum}; expected a number >= 0 and < 1."
        raise ValueError(msg)
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if isinstance(value, (int, float)) and not value >= 0:
            msg = f"{name} is {value}; expected a number >= 0."
            raise ValueError(msg)
    steps = [precondition(layers, method, learning_rate=learning_rate, **options)]
    if not (isinstance(momentum, (int, float)) and momentum == 0):
        steps.append(optax.trace(momentum))
    if not (isinstance(weight_decay, (int, float)) and weight_decay == 0):
        steps.append(optax.add_decayed_weights(weight_decay))
    return optax.chain(*steps, optax.scale_by_learning_rate(learning_rate))


def kfac(
    layers: Report,
    learning_rate: Number | Schedule,
    *,
    damping: Number | Schedule = 1e-3,
    momentum: Number = 0.9,
    weight_decay: Number = 0.0,
    decay: Number | Schedule = 0.95,
    factor_every: int | jax.Array = 10,
    inverse_every: int | jax.Array = 100,
    early: bool = False,
    kl_clip: Number | None = 1e-3,
    uncovered: Literal["gradient", "error"] = "gradient",
    damping_split: Literal["pi", "exact"] = "pi",
    inverse_mesh: Mesh | None = None,
) -> Optimizer:
    """K-FAC for dense layers and KFC for convolutions; see `ngd_core.KFAC`.

    Parameters
    ----------
    layers : Report
        From `ngd_jax.report` of the loss.
    learning_rate : float, array or schedule
        Learning rate.
    damping, decay, factor_every, inverse_every, early, kl_clip, uncovered, inverse_mesh
        As in `ngd_jax.precondition`.
    momentum : float or array
        Heavy-ball momentum of the directions.
    weight_decay : float or array
        Decoupled: parameters shrink by ``1 - learning_rate * weight_decay``.
    damping_split : "pi" or "exact"
        As in `ngd_core.KFAC`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``update(grads, state, params, records=records)``.

    Raises
    ------
    TypeError, ValueError
        As `ngd_jax.precondition`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, ngd_jax, optax
    >>> def loss_fn(params, x, y):
    ...     return 0.5 * jnp.mean(jnp.sum((x @ params["w"] - y) ** 2, axis=-1))
    >>> params, x, y = {"w": jnp.ones((2, 1))}, jnp.eye(2), jnp.zeros((2, 1))
    >>> layers = ngd_jax.report(loss_fn, params, x, y)
    >>> optimizer = ngd_jax.kfac(layers, learning_rate=0.1)
    >>> state = optimizer.init(params)
    >>> @jax.jit
    ... def step(params, state, x, y):
    ...     value, grads, records = ngd_jax.value_and_grad(loss_fn)(params, x, y)
    ...     updates, state = optimizer.update(grads, state, params, records=records)
    ...     return optax.apply_updates(params, updates), state, value
    >>> params, state, value = step(params, state, x, y)
    """
    return _optimizer(
        layers,
        ngd_core.KFAC(damping_split=damping_split, ops=NATIVE),
        learning_rate,
        momentum,
        weight_decay,
        damping=damping,
        decay=decay,
        factor_every=factor_every,
        inverse_every=inverse_every,
        early=early,
        kl_clip=kl_clip,
        uncovered=uncovered,
        inverse_mesh=inverse_mesh,
    )


def ekfac(
    layers: Report,
    learning_rate: Number | Schedule,
    *,
    damping: Number | Schedule = 1e-3,
    momentum: Number = 0.9,
    weight_decay: Number = 0.0,
    decay: Number | Schedule = 0.95,
    factor_every: int | jax.Array = 10,
    inverse_every: int | jax.Array = 100,
    early: bool = False,
    kl_clip: Number | None = 1e-3,
    uncovered: Literal["gradient", "error"] = "gradient",
    inverse_mesh: Mesh | None = None,
) -> Optimizer:
    """K-FAC with the Fisher's own diagonal in its eigenbasis; see `ngd_core.EKFAC`.

    Parameters
    ----------
    layers : Report
        From `ngd_jax.report` of the loss.
    learning_rate : float, array or schedule
        Learning rate.
    damping, decay, factor_every, inverse_every, early, kl_clip, uncovered, inverse_mesh
        As in `ngd_jax.precondition`.
    momentum, weight_decay : float or array
        As in `ngd_jax.kfac`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        As `ngd_jax.kfac`.

    Raises
    ------
    TypeError, ValueError
        As `ngd_jax.precondition`.
    """
    return _optimizer(
        layers,
        ngd_core.EKFAC(),
        learning_rate,
        momentum,
        weight_decay,
        damping=damping,
        decay=decay,
        factor_every=factor_every,
        inverse_every=inverse_every,
        early=early,
        kl_clip=kl_clip,
        uncovered=uncovered,
        inverse_mesh=inverse_mesh,
    )


def sngd(
    layers: Report,
    learning_rate: Number | Schedule,
    *,
    damping: Number | Schedule = 1e-2,
    momentum: Number = 0.9,
    weight_decay: Number = 0.0,
    decay: Number | Schedule = 0.95,
    factor_every: int | jax.Array = 10,
    inverse_every: int | jax.Array = 100,
    early: bool = False,
    kl_clip: Number | None = 1e-3,
    uncovered: Literal["gradient", "error"] = "gradient",
    metric: Literal["linear", "relu"] = "linear",
    damping_mode: Literal["relative", "absolute", "trace"] = "relative",
    inverse_mesh: Mesh | None = None,
) -> Optimizer:
    """Structured natural gradient descent, from the layers' inputs alone; see `ngd_core.SNGD`.

    Parameters
    ----------
    layers : Report
        From `ngd_jax.report` of the loss.
    learning_rate : float, array or schedule
        Learning rate.
    damping, decay, factor_every, inverse_every, early, kl_clip, uncovered, inverse_mesh
        As in `ngd_jax.precondition`.
    momentum, weight_decay : float or array
        As in `ngd_jax.kfac`.
    metric : "linear" or "relu"
        As in `ngd_core.SNGD`.
    damping_mode : "relative", "absolute" or "trace"
        As in `ngd_core.SNGD`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        As `ngd_jax.kfac`.

    Raises
    ------
    TypeError, ValueError
        As `ngd_jax.precondition`.
    """
    return _optimizer(
        layers,
        ngd_core.SNGD(metric=metric, damping_mode=damping_mode, ops=NATIVE),
        learning_rate,
        momentum,
        weight_decay,
        damping=damping,
        decay=decay,
        factor_every=factor_every,
        inverse_every=inverse_every,
        early=early,
        kl_clip=kl_clip,
        uncovered=uncovered,
        inverse_mesh=inverse_mesh,
    )


def fngd(
    layers: Report,
    learning_rate: Number | Schedule,
    *,
    steps_per_epoch: int | jax.Array,
    batch_size: int | None = None,
    damping: Number | Schedule = 10.0,
    momentum: Number = 0.9,
    weight_decay: Number = 0.0,
    kl_clip: Number | None = None,
    uncovered: Literal["gradient", "error"] = "gradient",
    damping_mode: Literal["relative", "absolute"] = "relative",
    gain: Literal["unit", "natural"] = "unit",
    share: Literal["position", "iteration", "sample"] = "position",
    dataset_size: int | None = None,
    refresh_epochs: int | None = None,
) -> Optimizer:
    """Weighted sums of per-example gradients, the weights of the first epoch; see `ngd_core.FNGD`.

    Parameters
    ----------
    layers : Report
        From `ngd_jax.report` of the loss.
    learning_rate : float, array or schedule
        Learning rate.
    steps_per_epoch : int or array
        Steps of an epoch; an integer for ``share="iteration"``.
    batch_size : int or None
        Examples of a full batch; needed but for ``share="sample"``.
    damping, kl_clip, uncovered
        As in `ngd_jax.precondition`.
    momentum, weight_decay : float or array
        As in `ngd_jax.kfac`.
    damping_mode : "relative" or "absolute"
        As in `ngd_core.FNGD`.
    gain : "unit" or "natural"
        As in `ngd_core.FNGD`.
    share : "position", "iteration" or "sample"
        As in `ngd_core.FNGD`. For "sample" give ``update`` the examples' numbers in the data set as
        ``index=``, an array of integers.
    dataset_size : int or None
        Examples of the data set; needed for ``share="sample"``.
    refresh_epochs : int or None
        As in `ngd_core.FNGD`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        As `ngd_jax.kfac`; every step needs its records, those of ``fisher="empirical"``. Under
        `optax.inject_hyperparams` give ``static_args=("batch_size", "dataset_size",
        "refresh_epochs")``, and "steps_per_epoch" too for ``share="iteration"``.

    Raises
    ------
    TypeError, ValueError
        As `ngd_jax.precondition`.
    """
    if share == "iteration" and not isinstance(steps_per_epoch, int):
        msg = (
            f"steps_per_epoch is {steps_per_epoch!r}; expected an integer, as share='iteration' "
            "keeps a table of that size."
        )
        raise ValueError(msg)
    method = ngd_core.FNGD(
        share=share,
        batch_size=batch_size,
        iterations=steps_per_epoch if share == "iteration" else None,
        dataset_size=dataset_size,
        damping_mode=damping_mode,
        gain=gain,
        refresh_epochs=refresh_epochs,
        ops=NATIVE,
    )
    return _optimizer(
        layers,
        method,
        learning_rate,
        momentum,
        weight_decay,
        damping=damping,
        kl_clip=kl_clip,
        uncovered=uncovered,
        steps_per_epoch=steps_per_epoch,
    )


def projective_kfac(
    layers: Report,
    learning_rate: Number | Schedule,
    *,
    damping: Number | Schedule = 1e-3,
    momentum: Number = 0.9,
    weight_decay: Number = 0.0,
    decay: Number | Schedule = 0.95,
    factor_every: int | jax.Array = 10,
    inverse_every: int | jax.Array = 100,
    early: bool = False,
    kl_clip: Number | None = 1e-3,
    uncovered: Literal["gradient", "error"] = "gradient",
    rank: float = 0.125,
    sides: Literal["both", "inputs"] = "inputs",
    complement: bool = True,
    inverse_mesh: Mesh | None = None,
) -> Optimizer:
    """K-FAC with projected factors and recursive inverses; see `ngd_core.ProjectiveKFAC`.

    Parameters
    ----------
    layers : Report
        From `ngd_jax.report` of the loss.
    learning_rate : float, array or schedule
        Learning rate.
    damping, decay, factor_every, inverse_every, early, kl_clip, uncovered, inverse_mesh
        As in `ngd_jax.precondition`.
    momentum, weight_decay : float or array
        As in `ngd_jax.kfac`.
    rank : float or int
        As in `ngd_core.ProjectiveKFAC`.
    sides : "both" or "inputs"
        As in `ngd_core.ProjectiveKFAC`.
    complement : bool
        As in `ngd_core.ProjectiveKFAC`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        As `ngd_jax.kfac`. Under `optax.inject_hyperparams` give ``static_args="rank"``.

    Raises
    ------
    TypeError, ValueError
        As `ngd_jax.precondition`.
    """
    return _optimizer(
        layers,
        ngd_core.ProjectiveKFAC(rank=rank, sides=sides, complement=complement, ops=NATIVE),
        learning_rate,
        momentum,
        weight_decay,
        damping=damping,
        decay=decay,
        factor_every=factor_every,
        inverse_every=inverse_every,
        early=early,
        kl_clip=kl_clip,
        uncovered=uncovered,
        inverse_mesh=inverse_mesh,
    )


class SofimState(NamedTuple):
    """State of `sofim`.

    Parameters
    ----------
    tensors : dict of str to pytree
        Momentum of each leaf, by path.
    """

    tensors: dict[str, Any]


def sofim(
    learning_rate: Number | Schedule,
    *,
    rho: Number,
    beta: Number = 0.9,
    scope: Literal["global", "tensor"] = "global",
    weight_decay: Number = 0.0,
) -> Optimizer:
    """Momentum over a regularised rank-one Fisher of that momentum; see `ngd_core.SOFIM`.

    Gradients alone are needed: no report and no records.

    Parameters
    ----------
    learning_rate : float, array or schedule
        Learning rate ``eta``; close to a minimum the rate is ``eta / rho``.
    rho : float or array
        Regularisation, in the units of a squared gradient norm.
    beta : float or array
        Weight kept by older gradients.
    scope : "global" or "tensor"
        As in `ngd_core.SOFIM`.
    weight_decay : float or array
        As in `ngd_jax.kfac`.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        ``update(grads, state, params)``.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.SOFIM`.

    Examples
    --------
    >>> import jax.numpy as jnp, ngd_jax
    >>> optimizer = ngd_jax.sofim(26.0, rho=1.0)
    >>> grads = {"w": jnp.asarray([3.0, 4.0])}
    >>> updates, state = optimizer.update(grads, optimizer.init(grads))
    >>> updates["w"].round(5).tolist()
    [-3.0, -4.0]
    """
    fixed = {"rho": rho, "beta": beta}
    given = {name: x for name, x in fixed.items() if isinstance(x, (int, float))}
    ngd_core.SOFIM(**{"rho": None, **given}, scope=scope)  # type: ignore[arg-type]
    method = ngd_core.SOFIM(rho=None, beta=None, scope=scope)
    hyper = Hyper(damping=rho, decay=beta)

    def init(params: Any) -> SofimState:
        arrays = {name: jnp.asarray(x) for name, x in _by_name(params).items()}
        tensors = jax.tree.map(lambda x: jnp.array(x, copy=True), method.init(arrays).tensors)
        return SofimState({name: placed(x, arrays[name]) for name, x in tensors.items()})

    def update(
        updates: Any, state: SofimState, params: Any = None, **_: Any
    ) -> tuple[Any, SofimState]:
        grads = _by_name(updates)
        whole = method.init(grads)._replace(tensors=state.tensors)
        whole = method.accumulate(whole, grads, hyper)
        directions, _ = method.direction(whole, grads, {}, hyper)
        new = jax.tree_util.tree_map_with_path(lambda path, _: directions[path_name(path)], updates)
        return new, SofimState(whole.tensors)

    steps = [optax.GradientTransformationExtraArgs(init, update)]
    if not (isinstance(weight_decay, (int, float)) and weight_decay == 0):
        steps.append(optax.add_decayed_weights(weight_decay))
    return optax.chain(*steps, optax.scale_by_learning_rate(learning_rate))


def _by_name(tree: Any) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
