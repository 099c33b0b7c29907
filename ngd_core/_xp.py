"""The one door to array libraries: namespaces, and creation of arrays after a template.

No other module of the core imports ``array_api_compat`` or ``array_api_extra``.
"""

from __future__ import annotations

import array_api_compat
import array_api_extra as xpx

from ngd_core._typing import Array, DType, Namespace, Scalar

__all__ = [
    "add_at",
    "arange",
    "asarray",
    "astype",
    "copied",
    "double",
    "eps",
    "eye",
    "fits",
    "full",
    "index_dtype",
    "is_array",
    "is_other",
    "mix",
    "namespace_of",
    "on_host",
    "ones",
    "pad",
    "scalar",
    "widest",
    "working",
    "zeros",
]


def namespace_of(*arrays: Array) -> Namespace:
    """Namespace shared by the arrays; `TypeError` from array_api_compat if there are several."""
    return array_api_compat.array_namespace(*arrays)


def is_array(x: object) -> bool:
    """Tell whether `x` is an array of a library that array_api_compat knows, or a tracer."""
    return bool(array_api_compat.is_array_api_obj(x))


def _device(like: Array) -> object:
    """Device of an array; None for one that is spread over several."""
    device = getattr(like, "device", None)
    return None if hasattr(device, "device_set") else device


def zeros(shape: tuple[int, ...], *, like: Array, dtype: DType = None, xp: Namespace) -> Array:
    """Zeros of dtype (unless given) and device of `like`."""
    return xp.zeros(shape, dtype=like.dtype if dtype is None else dtype, device=_device(like))


def ones(shape: tuple[int, ...], *, like: Array, dtype: DType = None, xp: Namespace) -> Array:
    """Ones of dtype (unless given) and device of `like`."""
    return xp.ones(shape, dtype=like.dtype if dtype is None else dtype, device=_device(like))


def full(
    shape: tuple[int, ...], value: Scalar, *, like: Array, dtype: DType = None, xp: Namespace
) -> Array:
    """Array filled with `value`, of dtype (unless given) and device of `like`."""
    return xp.full(shape, value, dtype=like.dtype if dtype is None else dtype, device=_device(like))


def eye(n: int, *, like: Array, dtype: DType = None, xp: Namespace) -> Array:
    """Identity matrix of dtype (unless given) and device of `like`."""
    return xp.eye(n, dtype=like.dtype if dtype is None else dtype, device=_device(like))


def arange(n: int, *, like: Array, dtype: DType = None, xp: Namespace) -> Array:
    """``0, ..., n - 1`` of dtype (unless given) and device of `like`."""
    return xp.arange(n, dtype=like.dtype if dtype is None else dtype, device=_device(like))


def asarray(value: object, *, like: Array, dtype: DType = None, xp: Namespace) -> Array:
    """Python or NumPy values as an array of dtype (unless given) and device of `like`."""
    return xp.asarray(value, dtype=like.dtype if dtype is None else dtype, device=_device(like))


def copied(value: object, *, like: Array, xp: Namespace) -> Array:
    """Copy values to the dtype and device of `like`."""
    value = xp.asarray(value, device=_device(like), copy=True)
    return astype(value, like.dtype, xp=xp)


def is_other(x: object) -> bool:
    """Tell whether `x` is of a library that is known by the standard alone, devices included."""
    known = (
        array_api_compat.is_numpy_array(x)
        or array_api_compat.is_torch_array(x)
        or array_api_compat.is_jax_array(x)
        or array_api_compat.is_cupy_array(x)
    )
    return hasattr(x, "__array_namespace__") and not known


def on_host(x: Array) -> Array:
    """Array that NumPy reads; on the device of a GPU it is copied."""
    if array_api_compat.is_cupy_array(x) or array_api_compat.is_torch_array(x):
        return array_api_compat.to_device(x, "cpu")
    return x


def scalar(value: Scalar, *, like: Array, dtype: DType = None, xp: Namespace) -> Array:
    """Python number or 0-d array as a 0-d array of dtype (unless given) and device of `like`."""
    dtype = like.dtype if dtype is None else dtype
    if isinstance(value, (int, float)):
        return xp.full((), value, dtype=dtype, device=_device(like))
    return astype(value, dtype, xp=xp)


def astype(x: Array, dtype: DType, *, xp: Namespace) -> Array:
    """Cast, without a copy where the dtype is already right."""
    return x if x.dtype == dtype else xp.astype(x, dtype)


def mix(old: Array, new: Array, share: Array, *, xp: Namespace) -> Array:
    """Give ``(1 - share) old + share new``.

    Not ``old + share (new - old)``, which cancels when a much larger old one is forgotten.
    """
    return (1 - share) * old + share * new


def eps(dtype: DType, *, xp: Namespace) -> float:
    """Machine epsilon of a real floating dtype, as a Python float."""
    return float(xp.finfo(dtype).eps)


def fits(x: Array, dtype: DType, *, xp: Namespace) -> Array:
    """Tell which elements are finite, and stay so when cast to `dtype`."""
    return xp.abs(x) <= min(float(xp.finfo(kind).max) for kind in (x.dtype, dtype))


def working(dtype: DType, *, xp: Namespace) -> DType:
    """Dtype in which factors are kept: the given one, but at least float32."""
    return xp.float64 if dtype == xp.float64 else xp.float32


def index_dtype(*, xp: Namespace) -> DType:
    """Integer dtype that the namespace indexes with; wide enough for any position."""
    return xp.__array_namespace_info__().default_dtypes()["indexing"]


def double(*, xp: Namespace) -> DType | None:
    """float64 where the namespace has it (JAX only with x64 enabled), otherwise None."""
    known = xp.__array_namespace_info__().dtypes(kind="real floating")
    return xp.float64 if "float64" in known else None


def pad(x: Array, widths: tuple[tuple[int, int], ...], *, xp: Namespace) -> Array:
    """Surround `x` with zeros, ``(before, after)`` for each axis; `x` itself if all are 0."""
    if all(before == 0 and after == 0 for before, after in widths):
        return x
    return xpx.pad(x, list(widths), mode="constant", constant_values=0, xp=xp)


def add_at(x: Array, index: tuple[object, ...], values: Array) -> Array:
    """``x[index] += values``, in place where the library can; only for arrays made by the caller.

    `array_api_extra.at` looks into the index, which PyTorch's compiler cannot trace.
    """
    if hasattr(x, "at"):
        return x.at[index].add(values)
    x[index] += values
    return x


def widest(dtype: DType, *, xp: Namespace) -> DType:
    """Dtype of long sums: float64 where the namespace has it, otherwise at least float32."""
    wide = double(xp=xp)
    return working(dtype, xp=xp) if wide is None else wide
