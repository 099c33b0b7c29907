"""Second moments of many rows, with a rounding error that hardly grows with their number."""

from __future__ import annotations

from ngd_core import _xp
from ngd_core._typing import Array, Namespace

__all__ = ["cross_moment", "second_moment"]

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
    x = _extended(x, bias, xp=xp)
    centre = xp.mean(x, axis=-2, keepdims=True)
    rest = x - centre
    cross = centre.mT @ xp.sum(rest, axis=-2, keepdims=True)
    return rest.mT @ rest + (cross + cross.mT) + n * (centre.mT @ centre)


def cross_moment(
    x: Array, y: Array, count: int, *, bias: tuple[bool, bool] = (False, False), xp: Namespace
) -> Array:
    """Sum of outer products of two matrices' rows over a count, ``(1/count) sum_r x_r y_r^T``.

    With the rounding of `second_moment`, so that the moments of x, of y and of both stay those of
    one positive semi-definite matrix up to a few units of it.

    Parameters
    ----------
    x : array, shape (..., R, d)
        Rows.
    y : array, shape (..., R, e)
        Rows that belong to those of `x`.
    count : int
        What the sum is divided by.
    bias : pair of bool
        Whether every row is ``[x_r; 1]``, and ``[y_r; 1]``.
    xp : namespace
        Of the arrays.

    Returns
    -------
    array, shape (..., d + bias[0], e + bias[1])
        Dtype of the arrays.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.asarray([[1.0], [3.0]]), np.asarray([[2.0], [0.0]])
    >>> cross_moment(x, y, 2, bias=(False, True), xp=np)
    array([[1., 2.]])
    """
    return _cross_sum(x, y, bias, xp=xp) / count


def _cross_sum(x: Array, y: Array, bias: tuple[bool, bool], *, xp: Namespace) -> Array:
    n = x.shape[-2]
    if n > ROWS:
        half = n // 2
        first = _cross_sum(x[..., :half, :], y[..., :half, :], bias, xp=xp)
        return first + _cross_sum(x[..., half:, :], y[..., half:, :], bias, xp=xp)
    x, y = (_extended(rows, more, xp=xp) for rows, more in zip((x, y), bias, strict=True))
    x_centre, y_centre = (xp.mean(rows, axis=-2, keepdims=True) for rows in (x, y))
    x_rest, y_rest = x - x_centre, y - y_centre
    left = xp.sum(x_rest, axis=-2, keepdims=True).mT @ y_centre
    right = x_centre.mT @ xp.sum(y_rest, axis=-2, keepdims=True)
    return x_rest.mT @ y_rest + (left + right) + n * (x_centre.mT @ y_centre)


def _extended(x: Array, bias: bool, *, xp: Namespace) -> Array:
    return xp.concat([x, _xp.ones((*x.shape[:-1], 1), like=x, xp=xp)], axis=-1) if bias else x
