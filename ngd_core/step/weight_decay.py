"""A quadratic penalty on the parameters: inside the objective, or beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ngd_core import _checks
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.step._mappings import entries, in_dtype_of

__all__ = ["coupled_weight_decay", "decoupled_weight_decay"]

Key = TypeVar("Key")


def coupled_weight_decay(
    grads: Mapping[Key, Array],
    params: Mapping[Key, Array],
    coefficient: Scalar,
    *,
    xp: Namespace | None = None,
) -> dict[Key, Array]:
    """Gradient of the penalised loss, ``grad + eta theta``, to be preconditioned as a whole.

    The penalty ``eta/2 |theta|^2`` is part of the objective, as in the K-FAC and KFC papers. Its
    curvature is ``eta I``: add ``eta`` to the damping that the method is given, and hand it to
    `quadratic_step` or `kfc_pre` as ``weight_decay``.

    Parameters
    ----------
    grads : mapping of arrays
        Gradients of the mean loss.
    params : mapping of arrays
        Parameters; biases are penalised too, unless their gradients are left out.
    coefficient : float or array of shape ()
        ``eta`` (K-FAC) or ``lambda`` (KFC).
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    dict of arrays
        One for each gradient, in its dtype.

    Raises
    ------
    ValueError
        For a negative Python coefficient, or a gradient without a parameter.

    Examples
    --------
    >>> import numpy as np
    >>> coupled_weight_decay({"w": np.ones(1)}, {"w": np.full(1, 4.0)}, 0.5)
    {'w': array([3.])}
    """
    _checks.nonnegative(coefficient=coefficient)
    entries("gradient", grads, params, "parameters")
    return {key: g + in_dtype_of(g, coefficient, xp) * params[key] for key, g in grads.items()}


def decoupled_weight_decay(
    params: Mapping[Key, Array],
    lr: Scalar,
    coefficient: Scalar,
    *,
    xp: Namespace | None = None,
) -> dict[Key, Array]:
    """Parameters shrunk beside the step, ``(1 - lr eta) theta``; directions know nothing of it.

    Not the papers' rule but later practice; it adds nothing to the damping.

    Parameters
    ----------
    params : mapping of arrays
        Parameters.
    lr : float or array of shape ()
        Step size.
    coefficient : float or array of shape ()
        ``eta``.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    dict of arrays
        Shrunk parameters.

    Raises
    ------
    ValueError
        For a negative Python coefficient.

    Examples
    --------
    >>> import numpy as np
    >>> decoupled_weight_decay({"w": np.full(1, 4.0)}, 0.5, 0.5)
    {'w': array([3.])}
    """
    _checks.nonnegative(coefficient=coefficient)
    return {
        key: p - in_dtype_of(p, lr, xp) * in_dtype_of(p, coefficient, xp) * p
        for key, p in params.items()
    }
