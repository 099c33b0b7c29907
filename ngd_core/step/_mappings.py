"""What the rules on mappings of arrays share: one namespace, known keys, inner products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace, Scalar

__all__ = ["entries", "in_dtype_of", "inner", "namespace", "same_shapes"]


def namespace(xp: Namespace | None, name: str, arrays: Mapping[Any, Array]) -> Namespace:
    """Namespace of a mapping's arrays; there must be at least one."""
    if not arrays:
        msg = f"{name} is empty; expected at least one array."
        raise ValueError(msg)
    return _checks.common_namespace(xp, **{f"{name} {key}": x for key, x in arrays.items()})


def entries(name: str, got: Mapping[Any, Array], known: Mapping[Any, Array], what: str) -> None:
    """Reject a key that the other mapping does not have."""
    for key in got:
        if key not in known:
            msg = f"{name} {key!r} has no entry in the {what}; both come from the same parameters."
            raise ValueError(msg)


def same_shapes(name: str, got: Mapping[Any, Array], wanted: Mapping[Any, Array]) -> None:
    """Reject an array whose shape is not that of its entry in the other mapping."""
    for key, x in got.items():
        shape = tuple(wanted[key].shape)
        _checks.shape(f"{name} {key!r}", x, shape, "both come from the same parameters")


def in_dtype_of(x: Array, value: Scalar, xp: Namespace | None) -> Scalar:
    """Python number as it is, 0-d array in the dtype of `x`."""
    if isinstance(value, (int, float)):
        return value
    return _xp.astype(value, x.dtype, xp=_checks.common_namespace(xp, array=x, scalar=value))


def inner(
    first: Mapping[Any, Array], second: Mapping[Any, Array], dtype: DType, *, xp: Namespace
) -> Array | float:
    """Sum of products over the keys that both have, in `dtype`; 0.0 if there is none."""
    total: Array | float = 0.0
    for key, x in first.items():
        if key in second:
            y = _xp.astype(second[key], dtype, xp=xp)
            total = total + xp.sum(_xp.astype(x, dtype, xp=xp) * y)
    return total
