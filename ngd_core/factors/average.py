"""Exponential moving averages without a starting value."""

from __future__ import annotations

from collections.abc import Callable

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar

__all__ = ["average", "new_share"]


def average(
    mean: Array,
    weight: Array,
    batch: Array,
    count: Scalar,
    decay: Scalar,
    *,
    mix: Callable[..., Array] | None = None,
    xp: Namespace | None = None,
) -> tuple[Array, Array]:
    """Fold a batch mean into a bias-corrected exponential moving average.

    The average over all batches k so far is ``sum_k decay^(t-k) n_k S_k / sum_k decay^(t-k) n_k``:
    every example of a batch counts alike, older batches less. There is no starting value to be
    forgotten (the first batch is taken as it is), and micro-batches folded in with a decay of 1
    after the first give what the joint batch gives.

    Parameters
    ----------
    mean : array
        Average so far; ignored while `weight` is 0.
    weight : array, shape ()
        ``sum_k decay^(t-k) n_k`` so far, 0 at the start.
    batch : array, shape of `mean`
        Mean over the new batch's examples.
    count : int, float or array of shape ()
        Examples in the new batch, or what they weigh.
    decay : float or array of shape ()
        Weight kept by everything older, in [0, 1]; the papers' ``epsilon`` or ``beta``.
    mix : callable, optional
        As `ngd_core.inversion.Ops` has it, for a library's own; the formula above if not given.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    mean, weight : array
        Updated average and weight.

    Raises
    ------
    ValueError
        If a Python `decay` is outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> mean, weight = average(np.zeros(1), np.zeros(()), np.ones(1), 4, 0.5)
    >>> mean, weight = average(mean, weight, np.full(1, 4.0), 4, 0.5)
    >>> mean.tolist(), float(weight)
    ([3.0], 6.0)
    """
    xp = _checks.common_namespace(xp, mean=mean, weight=weight, batch=batch)
    share, total = new_share(weight, count, decay, xp=xp)
    share = _xp.astype(share, mean.dtype, xp=xp)
    return (_xp.mix if mix is None else mix)(mean, batch, share, xp=xp), total


def new_share(weight: Array, count: Scalar, decay: Scalar, *, xp: Namespace) -> tuple[Array, Array]:
    """Part of a new batch in the average of `average`.

    Parameters
    ----------
    weight : array, shape ()
        ``sum_k decay^(t-k) n_k`` so far, 0 at the start.
    count : int, float or array of shape ()
        Examples in the new batch, or what they weigh.
    decay : float or array of shape ()
        Weight kept by everything older, in [0, 1].
    xp : namespace
        Array namespace.

    Returns
    -------
    share, weight : array, shape ()
        Part of the new batch in the average, and the average's new weight.

    Raises
    ------
    ValueError
        If a Python `decay` is outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> share, weight = new_share(np.asarray(4.0), 4, 0.5, xp=np)
    >>> round(float(share), 3), float(weight)
    (0.667, 6.0)
    """
    _checks.unit_interval(decay=decay)
    count = _xp.scalar(count, like=weight, xp=xp)
    total = weight * _xp.scalar(decay, like=weight, xp=xp) + count
    return count / total, total
