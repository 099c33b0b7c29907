"""Averages of the iterates, kept apart from the parameters that are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.step._mappings import entries, in_dtype_of, namespace, same_shapes

__all__ = ["averaging_decay", "iterate_average", "iterate_average_init"]

Key = TypeVar("Key")


def averaging_decay(timescale: Scalar, *, xp: Namespace | None = None) -> Scalar:
    """Weight ``xi = exp(-1 / tau)`` kept by the average of the iterates in one step.

    Parameters
    ----------
    timescale : float or array of shape ()
        ``tau`` in steps; the KFC paper takes about the number of mini-batches in an epoch.
    xp : namespace, optional
        Array namespace; found from `timescale` if not given.

    Returns
    -------
    float or array of shape ()
        In [0, 1).

    Raises
    ------
    ValueError
        If a Python `timescale` is not above 0.

    Examples
    --------
    >>> round(averaging_decay(100.0), 4)
    0.99
    """
    _checks.positive(timescale=timescale)
    if isinstance(timescale, (int, float)):
        return math.exp(-1 / timescale)
    xp = _checks.common_namespace(xp, timescale=timescale)
    return xp.exp(-1 / timescale)


def iterate_average_init(
    params: Mapping[Key, Array], *, xp: Namespace | None = None
) -> dict[Key, Array]:
    """Average before the first step: the parameters themselves, copied.

    Parameters
    ----------
    params : mapping of arrays
        Parameters ``theta_0``.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    dict of arrays
        ``theta_0``, in at least float32.

    Examples
    --------
    >>> import numpy as np
    >>> iterate_average_init({"w": np.ones(1)})
    {'w': array([1.])}
    """
    xp = namespace(xp, "parameter", params)
    return {key: xp.astype(p, _xp.working(p.dtype, xp=xp)) for key, p in params.items()}


def iterate_average(
    average: Mapping[Key, Array],
    params: Mapping[Key, Array],
    decay: Scalar = 0.99,
    *,
    xp: Namespace | None = None,
) -> dict[Key, Array]:
    """Average with one more iterate, ``theta_bar <- xi theta_bar + (1 - xi) theta``.

    Without correction for the start: ``theta_bar_0 = theta_0`` keeps its weight ``xi^k`` (Grosse
    and Martens 2016; Martens and Grosse 2015 with ``xi`` = 0.99).

    Parameters
    ----------
    average : mapping of arrays
        ``theta_bar``, from `iterate_average_init` at the start.
    params : mapping of arrays
        ``theta`` after a step. What is left out keeps its average.
    decay : float or array of shape ()
        ``xi``, in [0, 1]; `averaging_decay` makes it from a timescale.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    dict of arrays
        New average, in the dtype of the old one.

    Raises
    ------
    ValueError
        If a Python `decay` is outside [0, 1], or a parameter has no average or another shape.

    Examples
    --------
    >>> import numpy as np
    >>> iterate_average({"w": np.zeros(1)}, {"w": np.ones(1)}, 0.75)
    {'w': array([0.25])}
    """
    _checks.unit_interval(decay=decay)
    xp = namespace(xp, "average", average)
    entries("parameter", params, average, "average")
    same_shapes("parameter", params, average)
    moved = dict(average)
    for key, p in params.items():
        xi = in_dtype_of(average[key], decay, xp)
        moved[key] = xi * average[key] + (1 - xi) * _xp.astype(p, average[key].dtype, xp=xp)
    return moved
