"""Rows whose second moments are the Kronecker factors, for methods that never form these."""

from __future__ import annotations

import math

from ngd_core import _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors.sharing import Rows

__all__ = ["input_samples", "output_samples"]


def input_samples(canonical: Rows, *, bias: bool, sharing: str, xp: Namespace) -> Array:
    """Scaled inputs X with ``X^T X = A``, the bias coordinate last.

    Parameters
    ----------
    canonical : Rows
        Inputs ``(*stack, N, T, inputs)``.
    bias : bool
        Whether to append the homogeneous coordinate.
    sharing : "expand" or "reduce"
        Row of the table in `ngd_core.factors.kronecker`.
    xp : namespace
        Array namespace.

    Returns
    -------
    array, shape (*stack, m, columns)
        ``m = N T`` rows for "expand", N for "reduce".

    Examples
    --------
    >>> import numpy as np
    >>> canonical = Rows(np.ones((4, 1, 2)), np.ones((1, 4, 1, 5)))
    >>> input_samples(canonical, bias=True, sharing="expand", xp=np)[0]
    array([0.5, 0.5, 0.5])
    """
    x = canonical.x
    if sharing == "reduce":
        x = xp.mean(x, axis=-2, keepdims=True)
    *stack, n, t, inputs = x.shape
    x = xp.reshape(x, (*stack, n * t, inputs))
    if bias:
        x = xp.concat([x, _xp.ones((*stack, n * t, 1), like=x, xp=xp)], axis=-1)
    return x / math.sqrt(n * t)


def output_samples(canonical: Rows, *, sharing: str, xp: Namespace) -> Array:
    """Scaled output gradients Y with ``Y^T Y = G``.

    Parameters
    ----------
    canonical : Rows
        Gradients ``(*stack, M, N, T, outputs)``.
    sharing : "expand" or "reduce"
        Row of the table in `ngd_core.factors.kronecker`.
    xp : namespace
        Array namespace.

    Returns
    -------
    array, shape (*stack, m, rows)
        ``m = M N T`` rows for "expand", M N for "reduce".

    Examples
    --------
    >>> import numpy as np
    >>> canonical = Rows(np.ones((4, 2, 3)), np.ones((1, 4, 2, 5)))
    >>> output_samples(canonical, sharing="reduce", xp=np).shape
    (4, 5)
    """
    y = canonical.y
    if sharing == "reduce":
        y = xp.sum(y, axis=-2, keepdims=True)
    *stack, m, n, t, outputs = y.shape
    return xp.reshape(y, (*stack, m * n * t, outputs)) / math.sqrt(n)
