"""One precondition a function; each says what came, what was expected and what to do.

Only static properties are looked at (types, shapes, dtypes, Python numbers), never values
of arrays, so every check also runs under ``jax.jit`` and ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ngd_core import _xp
from ngd_core._typing import Array, Namespace, Scalar

__all__ = [
    "common_namespace",
    "floating",
    "integral",
    "nonnegative",
    "one_of",
    "positive",
    "rank",
    "same_layers",
    "shape",
    "square",
    "unit_interval",
]


def common_namespace(xp: Namespace | None, **arrays: Array) -> Namespace:
    """Namespace of the named arrays, or `xp` unchecked if it is given."""
    if xp is not None:
        return xp
    for name, x in arrays.items():
        if not _xp.is_array(x):
            msg = (
                f"{name} is a {_kind(x)}; expected an array of a library that follows the Array "
                "API standard (NumPy, CuPy, PyTorch, JAX, ...); convert it first."
            )
            raise TypeError(msg)
    try:
        return _xp.namespace_of(*arrays.values())
    except TypeError:
        kinds = ", ".join(f"{name} is a {_kind(x)}" for name, x in arrays.items())
        msg = f"Arrays of several libraries were mixed: {kinds}; convert them to one library first."
        raise TypeError(msg) from None


def _kind(x: object) -> str:
    return f"{type(x).__module__.partition('.')[0]} {type(x).__name__}"


def floating(xp: Namespace, **arrays: Array) -> None:
    """Reject integer, boolean and complex arrays."""
    for name, x in arrays.items():
        if not xp.isdtype(x.dtype, "real floating"):
            msg = (
                f"{name} has dtype {x.dtype}; expected a real floating dtype; cast it first, for "
                "example with xp.astype(x, xp.float32)."
            )
            raise TypeError(msg)


def integral(xp: Namespace, **arrays: Array) -> None:
    """Reject what is not an array of an integer dtype."""
    for name, x in arrays.items():
        if not hasattr(x, "dtype"):
            msg = f"{name} is a {_kind(x)}; expected an array of an integer dtype; convert it."
            raise TypeError(msg)
        if not xp.isdtype(x.dtype, "integral"):
            msg = f"{name} has dtype {x.dtype}; expected an integer dtype; cast it first."
            raise TypeError(msg)


def rank(minimum: int, maximum: int | None = None, **arrays: Array) -> None:
    """Reject arrays whose number of axes is outside ``[minimum, maximum]``."""
    for name, x in arrays.items():
        if x.ndim < minimum or (maximum is not None and x.ndim > maximum):
            if maximum is None:
                wanted = f"at least {minimum}"
            else:
                wanted = str(minimum) if minimum == maximum else f"{minimum} to {maximum}"
            msg = f"{name} has shape {tuple(x.shape)}; expected {wanted} axes."
            raise ValueError(msg)


def shape(name: str, x: Array, wanted: tuple[int, ...], why: str) -> None:
    """Reject an array whose shape is not exactly `wanted`."""
    if tuple(x.shape) != wanted:
        msg = f"{name} has shape {tuple(x.shape)}; expected {wanted}: {why}."
        raise ValueError(msg)


def square(**arrays: Array) -> None:
    """Reject arrays whose last two axes are not those of square matrices."""
    for name, x in arrays.items():
        if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
            msg = f"{name} has shape {tuple(x.shape)}; expected (..., n, n), square matrices."
            raise ValueError(msg)


def _number(name: str, value: Scalar, ok: bool, wanted: str) -> None:
    if not ok:
        msg = f"{name} is {value}; expected {wanted}."
        raise ValueError(msg)


def nonnegative(**values: Scalar) -> None:
    """Reject negative and NaN Python numbers; arrays are not looked into."""
    for name, value in values.items():
        if type(value) in (int, float):
            _number(name, value, value >= 0, "a number >= 0")


def positive(**values: Scalar) -> None:
    """Reject Python numbers that are not above zero; arrays are not looked into."""
    for name, value in values.items():
        if type(value) in (int, float):
            _number(name, value, value > 0, "a number > 0")


def unit_interval(**values: Scalar) -> None:
    """Reject Python numbers outside ``[0, 1]``; arrays are not looked into."""
    for name, value in values.items():
        if type(value) in (int, float):
            _number(name, value, 0 <= value <= 1, "a number between 0 and 1")


def one_of(name: str, value: object, options: Iterable[object]) -> None:
    """Reject a value that is not among the options, naming them."""
    options = list(options)
    if value not in options:
        names = ", ".join(repr(option) for option in options)
        msg = f"{name} is {value!r}; expected one of {names}."
        raise ValueError(msg)


def same_layers(name: str, got: Mapping[Any, object], wanted: Mapping[Any, object]) -> None:
    """Reject a mapping that names other layers than the state was made for."""
    unknown = [spec for spec in got if spec not in wanted]
    if unknown:
        known = ", ".join(getattr(spec, "name", repr(spec)) for spec in wanted)
        first = getattr(unknown[0], "name", unknown[0])
        msg = (
            f"{name} holds the layer {first!r}, which the state was not made for (it knows: "
            f"{known}); call init with its LayerSpec, or leave it out."
        )
        raise ValueError(msg)
