"""How far a step may go in the metric of the Fisher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.types import Info

__all__ = ["constraint_scale", "kl_clip_scale"]


def constraint_scale(quadratic: Array, bound: Scalar, *, xp: Namespace | None = None) -> Array:
    """Factor ``min(1, sqrt(bound / quadratic))`` that keeps ``v^T F v`` within a bound.

    The KFC paper's clip with ``bound`` C = 0.3 and ``quadratic`` ``v^T F v + lambda v^T v`` for
    the step ``v`` with its step size in it, F exact on a quarter of the batch (Grosse and Martens
    2016, algorithm 1). It acts before momentum.

    Parameters
    ----------
    quadratic : array, shape ()
        ``v^T F v``; where it is not above 0 the step is left alone.
    bound : float or array of shape ()
        Largest value wanted.
    xp : namespace, optional
        Array namespace; found from `quadratic` if not given.

    Returns
    -------
    array, shape ()
        Factor for the whole step, at most 1.

    Raises
    ------
    ValueError
        If a Python `bound` is not above 0.

    Examples
    --------
    >>> import numpy as np
    >>> float(constraint_scale(np.asarray(4.0), 1.0)), float(constraint_scale(np.asarray(0.0), 1.0))
    (0.5, 1.0)
    """
    _checks.positive(bound=bound)
    xp = _checks.common_namespace(xp, quadratic=quadratic)
    one = _xp.ones((), like=quadratic, xp=xp)
    bound = _xp.scalar(bound, like=quadratic, xp=xp)
    over = quadratic > bound
    return xp.sqrt(xp.where(over, bound / xp.where(over, quadratic, one), one))


def kl_clip_scale(
    info: Mapping[Any, Info], lr: Scalar, clip: Scalar, *, xp: Namespace | None = None
) -> Array:
    """Factor that keeps the step's estimated KL divergence within a bound, from directions alone.

    ``min(1, sqrt(clip / (lr^2 sum <u, g>)))``. For ``u = (F + lambda I)^-1 g`` the inner product
    is ``u^T (F + lambda I) u``, so no Fisher-vector product is needed; this form is from later
    code (tensorflow/kfac and its descendants), not from the papers.

    Parameters
    ----------
    info : mapping of Info
        What a method's ``direction`` returned; the sum is over all layers.
    lr : float or array of shape ()
        Step size.
    clip : float or array of shape ()
        Largest ``(lr u)^T (F + lambda I) (lr u)``; 1e-3 is the usual default.
    xp : namespace, optional
        Array namespace; found from the info if not given.

    Returns
    -------
    array, shape ()
        Factor for all directions.

    Raises
    ------
    ValueError
        If a Python `clip` is not above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Info
    >>> float(kl_clip_scale({"fc": Info(np.asarray(0), {"inner": np.asarray(4.0)})}, 1.0, 0.01))
    0.05
    """
    _checks.positive(clip=clip)
    if not info:
        msg = "info is empty; pass what a method's direction returned."
        raise ValueError(msg)
    inner = [layer.measures["inner"] for layer in info.values()]
    total = inner[0]
    for part in inner[1:]:
        total = total + part
    xp = _checks.common_namespace(xp, inner=total)
    lr = _xp.scalar(lr, like=total, xp=xp)
    return constraint_scale(lr * lr * total, clip, xp=xp)
