"""Types and small checks that the modules of the oracle share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["NO_PADDING", "Array", "Padding", "Pair", "double", "require_shape", "result_dtype"]

Array: TypeAlias = NDArray[Any]
Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = tuple[tuple[int, int], tuple[int, int]]

NO_PADDING: Padding = ((0, 0), (0, 0))


def double(x: ArrayLike) -> Array:
    """Copy `x` as float64, or as complex128 if it is complex."""
    array = np.array(x)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def result_dtype(*arrays: Array) -> type[np.float64] | type[np.complex128]:
    """complex128 if any array is complex, otherwise float64."""
    return np.complex128 if any(np.iscomplexobj(x) for x in arrays) else np.float64


def require_shape(name: str, x: Array, wanted: tuple[int, ...]) -> None:
    """Reject an array of any other shape."""
    if x.shape != wanted:
        msg = f"{name} has shape {x.shape}; expected {wanted}."
        raise ValueError(msg)
