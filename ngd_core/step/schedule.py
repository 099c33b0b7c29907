"""When statistics and inverses are due."""

from __future__ import annotations

from typing import Any

__all__ = ["due"]

POWERS_OF_FOUR = 0x55555555


def due(step: Any, every: Any, *, early: bool = False) -> Any:
    """Tell whether what is done every so many steps is due at a step, counted from 0.

    With `early`, powers of four below the interval are due besides its multiples: 1, 4, 16, 64,
    ... So what was done last is never older than three quarters of the steps taken, as curvature
    may change fastest at the start. The rule is this project's own.

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
    [0, 10, 20, 30]
    >>> [step for step in range(31) if due(step, 10, early=True)]
    [0, 1, 4, 10, 20, 30]
    """
    regular = step % every == 0
    if not early:
        return regular
    one_bit = step & (step - 1) == 0
    return regular | ((step < every) & one_bit & (step & POWERS_OF_FOUR > 0))
