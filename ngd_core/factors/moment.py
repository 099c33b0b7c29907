"""Second moments of many rows, with a rounding error that hardly grows with their number."""

from __future__ import annotations

from ngd_core import _xp
from ngd_core._typing import Array, Namespace

__all__ = ["cross_moment", "second_moment"]

ROWS_A_COLUMN, LEAST = 2, 64
"""Rows that are multiplied at once: so many a column, and no fewer than these."""


def second_moment(x: Array, count: int, *, bias: bool = False, xp: Namespace) -> Array:
    """Sum of the rows' outer products over a count, ``(1/count) sum_r x_r x_r^T``.

    In float32 the plain product over some thousand alike rows (an image's background), let alone
    their mean over a million, is off by more than a small damping, and so not positive
    semi-definite: down to -150 eps of its trace was seen for 5,000 alike rows. The error of a block
    of b alike rows was seen to reach b / 16 eps of the trace in few columns, and less in many. So
    small blocks are multiplied, all in one call, and their products added in pairs.

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
    return _sum(x, x, (bias, bias), xp=xp) / count


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
    return _sum(x, y, bias, xp=xp) / count


def _sum(x: Array, y: Array, bias: tuple[bool, bool], *, xp: Namespace) -> Array:
    size = max(LEAST, ROWS_A_COLUMN * min(x.shape[-1], y.shape[-1]))
    own = _blocks(x, size, xp=xp)
    others = own if y is x else _blocks(y, size, xp=xp)
    total = _added([a.mT @ b for a, b in zip(own, others, strict=True)])
    if not any(bias):
        return total
    x_sum = _added([xp.sum(a, axis=-2, keepdims=True) for a in own])
    y_sum = x_sum if y is x else _added([xp.sum(b, axis=-2, keepdims=True) for b in others])
    if bias[1]:
        total = xp.concat([total, x_sum.mT], axis=-1)
        count = _xp.full((*y_sum.shape[:-1], 1), x.shape[-2], like=y_sum, xp=xp)
        y_sum = xp.concat([y_sum, count], axis=-1)
    return xp.concat([total, y_sum], axis=-2) if bias[0] else total


def _blocks(x: Array, size: int, *, xp: Namespace) -> list[Array]:
    """Rows in blocks, ``(..., blocks, size, d)``, and those that are left, ``(..., 1, r, d)``."""
    count, left = divmod(x.shape[-2], size)
    if not count:
        return [x[..., None, :, :]]
    even = x[..., : count * size, :] if left else x
    parts = [xp.reshape(even, (*x.shape[:-2], count, size, x.shape[-1]))]
    return [*parts, x[..., None, count * size :, :]] if left else parts


def _added(parts: list[Array]) -> Array:
    """Sum over the third axis from behind, in pairs."""
    spare = []
    while parts:
        part = parts.pop()
        while (count := part.shape[-3]) > 1:
            if count % 2:
                spare.append(part[..., -1, :, :])
            half = count // 2
            part = part[..., :half, :, :] + part[..., half : 2 * half, :, :]
        spare.append(part[..., 0, :, :])
    return sum(spare[1:], start=spare[0])
