"""KFC-pre: preconditioned SGD with a clip, momentum and averaged iterates, as published.

Grosse and Martens (2016), algorithm 1, from the preconditioned gradient on. The statistics and
inverses before it are those of `ngd_core.KFAC` with sampled targets, refreshed every so many
steps, with the penalty's coefficient added to the damping: ``Hyper(damping=gamma + weight_decay)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.step._mappings import entries, in_dtype_of, inner, same_shapes
from ngd_core.step.averaging import iterate_average, iterate_average_init
from ngd_core.step.clip import constraint_scale
from ngd_core.step.momentum import momentum as heavy_ball
from ngd_core.step.momentum import momentum_init, sgd

__all__ = ["KFCPreInfo", "KFCPreState", "kfc_pre", "kfc_pre_init"]

Key = TypeVar("Key")


class KFCPreState(NamedTuple):
    """State of the rule.

    Parameters
    ----------
    velocity : dict of arrays
        ``p``, in the parameters' dtype; a step, with the step size in it.
    average : dict of arrays
        ``theta_bar``, in at least float32: the parameters to evaluate.
    """

    velocity: dict[Any, Array]
    average: dict[Any, Array]


class KFCPreInfo(NamedTuple):
    """What the clip saw and did.

    Parameters
    ----------
    quadratic : array, shape ()
        ``nu = v^T F v + lambda v^T v`` before clipping.
    scale : array, shape ()
        Factor that ``v`` was multiplied by; 1 where nothing was clipped.
    """

    quadratic: Array
    scale: Array


def kfc_pre_init(params: Mapping[Key, Array], *, xp: Namespace | None = None) -> KFCPreState:
    """State before the first step.

    Parameters
    ----------
    params : mapping of arrays
        Parameters ``theta_0``.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    KFCPreState
        Velocity 0 and average ``theta_0``, copied.

    Examples
    --------
    >>> import numpy as np
    >>> kfc_pre_init({"w": np.ones(1)})
    KFCPreState(velocity={'w': array([0.])}, average={'w': array([1.])})
    """
    return KFCPreState(momentum_init(params, xp=xp), iterate_average_init(params, xp=xp))


def kfc_pre(
    state: KFCPreState,
    params: Mapping[Key, Array],
    directions: Mapping[Key, Array],
    curvature: Array,
    lr: Scalar,
    *,
    momentum: Scalar = 0.9,
    clip: Scalar = 0.3,
    weight_decay: Scalar = 0.0,
    averaging: Scalar = 0.99,
    xp: Namespace | None = None,
) -> tuple[dict[Key, Array], KFCPreState, KFCPreInfo]:
    """One step of KFC-pre after preconditioning.

    ``v = -alpha u``; ``v <- v sqrt(C / nu)`` if ``nu = v^T F v + lambda v^T v > C``; then
    ``p <- mu p + v``, ``theta <- theta + p``, ``theta_bar <- xi theta_bar + (1 - xi) theta``. The
    clip acts before momentum: in the Fisher's norm p may be up to ``1 / (1 - mu)`` times as long.

    Parameters
    ----------
    state : KFCPreState
        State.
    params : mapping of arrays
        Parameters ``theta``.
    directions : mapping of arrays
        ``u``, the preconditioned gradients of the *penalised* mean loss: give the method
        ``coupled_weight_decay(grads, params, weight_decay)``. Parameters without one stay.
    curvature : array, shape ()
        ``u^T F u`` with the exact Fisher of the mean loss, undamped, without the step size:
        ``fisher_inner(records, [u])[0, 0]``; the paper takes a quarter of the batch.
    lr : float or array of shape ()
        ``alpha``.
    momentum : float or array of shape ()
        ``mu``, in [0, 1].
    clip : float or array of shape ()
        ``C``, the largest ``nu``.
    weight_decay : float or array of shape ()
        ``lambda``, coefficient of the penalty ``lambda/2 |theta|^2``; here for ``nu`` alone.
    averaging : float or array of shape ()
        ``xi``, in [0, 1]; the paper's is ``averaging_decay(mini-batches in an epoch)``.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    params : dict of arrays
        New parameters, in their dtype.
    state : KFCPreState
        New state; return ``state.average`` at the end of training.
    info : KFCPreInfo
        In the dtype of `curvature`, at least float32.

    Raises
    ------
    ValueError
        If a direction has no parameter or another shape, `curvature` is not of shape ``()``, or a
        Python number is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> params, u = {"w": np.asarray([1.0])}, {"w": np.asarray([2.0])}
    >>> state = kfc_pre_init(params)
    >>> params, state, info = kfc_pre(state, params, u, np.asarray(12.0), lr=1.0, clip=3.0)
    >>> params["w"].tolist(), float(info.quadratic), float(info.scale)
    ([0.0], 12.0, 0.5)
    """
    _checks.nonnegative(weight_decay=weight_decay)
    xp = _border(xp, params, directions, curvature)
    dtype = _xp.working(curvature.dtype, xp=xp)
    fisher = _xp.astype(curvature, dtype, xp=xp)
    alpha, penalty = (_xp.scalar(x, like=fisher, xp=xp) for x in (lr, weight_decay))
    quadratic = alpha**2 * (fisher + penalty * inner(directions, directions, dtype, xp=xp))
    scale = constraint_scale(quadratic, clip, xp=xp)
    factor = -alpha * scale
    v = {key: in_dtype_of(u, factor, xp) * u for key, u in directions.items()}
    steps, velocity = heavy_ball(state.velocity, v, decay=momentum, xp=xp)
    moved = sgd(params, steps, -1.0, xp=xp)
    average = iterate_average(state.average, moved, averaging, xp=xp)
    return moved, KFCPreState(velocity, average), KFCPreInfo(quadratic, scale)


def _border(
    xp: Namespace | None,
    params: Mapping[Any, Array],
    directions: Mapping[Any, Array],
    curvature: Array,
) -> Namespace:
    arrays = {f"direction {key!r}": u for key, u in directions.items()}
    arrays |= {f"parameter {key!r}": p for key, p in params.items()}
    xp = _checks.common_namespace(xp, curvature=curvature, **arrays)
    _checks.floating(xp, curvature=curvature, **arrays)
    _checks.shape("curvature", curvature, (), "u^T F u is one number, fisher_inner(...)[0, 0]")
    entries("direction", directions, params, "parameters")
    same_shapes("direction", directions, params)
    return xp
