"""Where the examples of a batch lie in an array whose axes may have been folded and split.

An axis is a product of digits, slowest first, as places in a number: each counts examples in steps
of its stride, or something else. ``x.reshape(N * T, d)`` has the digits N and T on its first axis.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from ngd_jax._views import Shape

__all__ = ["Axis", "Digits", "alone", "halved", "merged", "reshaped", "whole"]

Axis: TypeAlias = tuple[tuple[int, int], ...]
"""Pairs of a size and a stride in examples, 0 for what is no example."""
Digits: TypeAlias = tuple[Axis, ...]


def whole(axis: int, shape: Shape) -> Digits:
    """Digits of an array that has the examples on one axis of their own."""
    return tuple(((n, int(k == axis)),) if n != 1 else () for k, n in enumerate(shape))


def merged(axis: Axis) -> Axis:
    """Axis with as few digits as can be."""
    result: list[tuple[int, int]] = []
    for size, stride in axis:
        before, step = result[-1] if result else (1, -1)
        if size == 1:
            continue
        if step == stride * size:
            result[-1] = (before * size, stride)
        else:
            result.append((size, stride))
    return tuple(result)


def reshaped(digits: Digits, shape: Shape) -> Digits | None:
    """Digits after a reshape in row-major order; None if it tears one apart."""
    if 0 in shape:
        return None
    left = list(merged(tuple(digit for axis in digits for digit in axis)))
    result = []
    for wanted in shape:
        axis, size = [], wanted
        while size > 1:
            n, stride = left.pop(0)
            if size % n and n % size:
                return None
            if n > size:
                left.insert(0, (n // size, stride))
                n, stride = size, stride * (n // size)
            axis.append((n, stride))
            size //= n
        result.append(merged(tuple(axis)))
    return tuple(result)


def halved(digits: Digits, examples: int, shape: Shape) -> Digits | None:
    """Digits for half as many examples.

    Parameters
    ----------
    digits : tuple of Axis
        Of an array of twice as many examples.
    examples : int
        Size of the batch.
    shape : tuple of int
        Of the same array for the batch.

    Returns
    -------
    tuple of Axis or None
        None if the digits are not those of each example once, or do not fit the shape.
    """
    own = sorted((digit for axis in digits for digit in axis if digit[1]), key=lambda d: -d[1])
    places = [stride * size for size, stride in own]
    if places != [2 * examples, *(stride for _, stride in own[:-1])] or own[-1][1] != 1:
        return None
    slowest = own[0]
    result = tuple(
        tuple((n // 2 if (n, s) == slowest else n, s) for n, s in axis) for axis in digits
    )
    fits = slowest[0] % 2 == 0 and len(result) == len(shape)
    sizes = [math.prod(n for n, _ in axis) for axis in result]
    return result if fits and sizes == list(shape) else None


def alone(digits: Digits) -> bool:
    """Whether the examples have one axis, of their own."""
    own = [axis for axis in digits if any(stride for _, stride in axis)]
    return len(own) == 1 and len(own[0]) == 1
