"""Second moments of many rows, with a rounding error that hardly grows with their number."""

from __future__ import annotations

from ngd_core import _xp
from ngd_core._typing import Array, Namespace

__all__ = ["second_moment"]

ROWS = 4096
"""Largest number of rows that are multiplied at once."""


def second_moment(x: Array, count: int, *, bias: bool = False, xp: Namespace) -> Array:
    """Sum of the rows' outer products over a count, ``(1/count) sum_r x_r x_r^T``.

    In float32 the plain product over some thousand alike rows (an image's background), let alone
    their mean over a million, is off by more than a small damping, and so not positive
    semi-definite: down to -150 eps of its trace was seen for 5,000 alike rows. Here blocks of rows
    are centred, multiplied, and added in pairs, for a quarter more time on large inputs.

    Parameters
    ----------
    x : array, shape (..., R, d)
        Rows.
    count : int
        What the sum is divided by.
    bias : bool
        Whether every row is ``[x_r; 1]``.
    xp : namespace
        Of `x`.

    Returns
    -------
    array, shape (..., d + bias, d + bias)
        Dtype of `x`.

    Examples
    --------
    >>> import numpy as np
    >>> second_moment(np.asarray([[1.0], [3.0]]), 2, bias=True, xp=np)
    array([[5., 2.],
           [2., 1.]])
    """
    return _sum(x, bias, xp=xp) / count


def _sum(x: Array, bias: bool, *, xp: Namespace) -> Array:
    n = x.shape[-2]
    if n > ROWS:
        half = n // 2
        return _sum(x[..., :half, :], bias, xp=xp) + _sum(x[..., half:, :], bias, xp=xp)
    if bias:
        x = xp.concat([x, _xp.ones((*x.shape[:-1], 1), like=x, xp=xp)], axis=-1)
    centre = xp.mean(x, axis=-2, keepdims=True)
    rest = x - centre
    cross = centre.mT @ xp.sum(rest, axis=-2, keepdims=True)
    return rest.mT @ rest + (cross + cross.mT) + n * (centre.mT @ centre)
