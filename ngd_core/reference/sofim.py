"""SOFIM by definition: the averaged gradient, its outer product formed, then solved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double

__all__ = ["sofim_direction", "sofim_fisher", "sofim_moment"]


def sofim_moment(gradients: Sequence[ArrayLike], beta: float) -> Array:
    """Bias-corrected average ``(1 - beta) sum_k beta^(t-k) g_k / (1 - beta^t)``.

    Parameters
    ----------
    gradients : sequence of t arrays of one shape
        Gradients g_1 to g_t.
    beta : float
        In [0, 1).

    Returns
    -------
    array, float64
        Average, of the gradients' shape.

    Examples
    --------
    >>> from ngd_core.reference import sofim_moment
    >>> sofim_moment([[0.0], [3.0]], 0.5)
    array([2.])
    """
    t = len(gradients)
    total = np.zeros_like(double(gradients[0]))
    for k, g in enumerate(gradients, start=1):
        total += (1 - beta) * beta ** (t - k) * double(g)
    return total / (1 - beta**t)


def sofim_fisher(moment: ArrayLike, rho: float) -> Array:
    """Matrix ``M M^T + rho I``.

    Parameters
    ----------
    moment : array of shape (d,)
        M.
    rho : float
        Above 0.

    Returns
    -------
    array of shape (d, d), float64
        Symmetric positive definite.

    Examples
    --------
    >>> from ngd_core.reference import sofim_fisher
    >>> sofim_fisher([1.0, 2.0], 1.0)
    array([[2., 2.],
           [2., 5.]])
    """
    m = double(moment)
    return np.outer(m, m) + rho * np.eye(len(m))


def sofim_direction(moment: ArrayLike, rho: float, gradient: ArrayLike | None = None) -> Array:
    """Solve with the dense matrix, ``(M M^T + rho I)^-1 M``, or ``... g``.

    Parameters
    ----------
    moment : array of shape (d,)
        M.
    rho : float
        Above 0.
    gradient : array of shape (d,), optional
        g; M if not given.

    Returns
    -------
    array of shape (d,), float64
        Direction.

    Examples
    --------
    >>> from ngd_core.reference import sofim_direction
    >>> sofim_direction([1.0, 0.0], 1.0, [2.0, 3.0])
    array([1., 3.])
    """
    right = moment if gradient is None else gradient
    return np.linalg.solve(sofim_fisher(moment, rho), double(right))
