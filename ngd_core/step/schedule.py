"""When statistics and inverses are due."""

from __future__ import annotations

from typing import Any

__all__ = ["due"]

POWERS_OF_FOUR = 0x55555555


def due(step: Any, every: Any, *, early: bool = True) -> Any:
    """Tell whether what is done every so many steps is due at a step, counted from 0.

    Besides the multiples of `every`, powers of four below it are due: 1, 4, 16, 64, ... So what
    was done last is never older than three quarters of the steps taken: curvature changes fastest
    at the start. An interval of 100 has four such steps. The rule is this project's own.

    Parameters
    ----------
    step : int or array of integers
        Steps taken so far.
    every : int or array of integers
        Interval, at least 1.
    early : bool
        Whether powers of four count.

    Returns
    -------
    bool or array of bool
        Of the shape that `step` and `every` broadcast to.

    Examples
    --------
    >>> [step for step in range(31) if due(step, 10)]
    [0, 1, 4, 10, 20, 30]
    >>> [step for step in range(31) if due(step, 10, early=False)]
    [0, 10, 20, 30]
    """
    regular = step % every == 0
    if not early:
        return regular
    one_bit = step & (step - 1) == 0
    return regular | ((step < every) & one_bit & (step & POWERS_OF_FOUR > 0))
