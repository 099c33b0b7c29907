"""When to let an inverse follow its average, and when to make it anew: static, from sizes alone."""

from __future__ import annotations

import math

__all__ = ["inversion_flops", "recursion_flops", "recursion_pays", "resync_period"]


def resync_period(decay: float, share: float = 0.5) -> int:
    """Batches after which the damping has to be renewed: the largest k with ``decay^k >= share``.

    Parameters
    ----------
    decay : float
        ``alpha`` of each batch, in (0, 1).
    share : float
        Least share of the damping that is to be left, in (0, 1].

    Returns
    -------
    int
        Number of batches; 13 for a decay of 0.95.

    Raises
    ------
    ValueError
        If `decay` is not in (0, 1) or `share` not in (0, 1].

    Examples
    --------
    >>> resync_period(0.95)
    13
    """
    if not (0 < decay < 1 and 0 < share <= 1):
        msg = f"decay is {decay} and share {share}; expected decay in (0, 1) and share in (0, 1]."
        raise ValueError(msg)
    return math.floor(math.log(share) / math.log(decay) + 1e-9)


def recursion_flops(n: int, m: int) -> int:
    """Operations of `recursive_update`: ``4 n^2 m + 4 n m^2 + 10 m^3``.

    Parameters
    ----------
    n : int
        Order of the inverse.
    m : int
        Samples.

    Returns
    -------
    int
        Two for each multiply-add; the last term is the eigendecomposition's.

    Examples
    --------
    >>> recursion_flops(100, 1)
    40410
    """
    return 4 * n * n * m + 4 * n * m * m + 10 * m**3


def inversion_flops(n: int) -> int:
    """Operations of an inverse made anew, ``2 n^3``.

    Parameters
    ----------
    n : int
        Order of the inverse.

    Returns
    -------
    int
        Two for each multiply-add.

    Examples
    --------
    >>> inversion_flops(100)
    2000000
    """
    return 2 * n**3


def recursion_pays(n: int, m: int) -> bool:
    """Tell whether following a batch costs less than a new inverse: m up to about n / 3.

    This compares equally fresh inverses. Against an inverse made anew every T batches the
    recursion saves nothing once ``T > n / (2 m)``: it buys freshness, not time.

    Parameters
    ----------
    n : int
        Order of the inverse.
    m : int
        Samples in a batch.

    Returns
    -------
    bool
        ``recursion_flops(n, m) < inversion_flops(n)``.

    Examples
    --------
    >>> recursion_pays(120, 38), recursion_pays(120, 39)
    (True, False)
    """
    return recursion_flops(n, m) < inversion_flops(n)
