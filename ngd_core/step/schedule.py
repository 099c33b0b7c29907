"""When statistics and inverses are due."""

from __future__ import annotations

from typing import Any

__all__ = ["due"]


def due(step: Any, every: Any, *, early: bool = True) -> Any:
    """Tell whether what is done every so many steps is due at a step, counted from 0.

    Besides the multiples of `every`, powers of two below it are due: 1, 2, 4, 8, ... So what was
    done last is never older than half of the steps taken: curvature changes fastest at the start.
    In all this adds at most ``1 + log2(every)`` times. The rule is this project's own.

    Parameters
    ----------
    step : int or array of integers
        Steps taken so far.
    every : int or array of integers
        Interval, at least 1.
    early : bool
        Whether powers of two count.

    Returns
    -------
    bool or array of bool
        Of the shape that `step` and `every` broadcast to.

    Examples
    --------
    >>> [step for step in range(31) if due(step, 10)]
    [0, 1, 2, 4, 8, 10, 20, 30]
    >>> [step for step in range(31) if due(step, 10, early=False)]
    [0, 10, 20, 30]
    """
    regular = step % every == 0
    if not early:
        return regular
    return regular | ((step < every) & (step & (step - 1) == 0))
