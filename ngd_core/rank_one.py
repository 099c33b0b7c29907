"""Solves with ``m m^T + rho I`` in linear time, on mappings of arrays taken as one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace, Scalar
from ngd_core.inversion import PURE, Ops

__all__ = ["rank_one_divisor", "rank_one_solve", "scaled_square"]

Key = TypeVar("Key")


def scaled_square(
    arrays: Mapping[Any, Array], *, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Squared norm of all arrays together, as ``scale^2 * square`` that does not overflow.

    Parameters
    ----------
    arrays : mapping of arrays
        At least one; together one vector m.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    scale : array, shape ()
        1, or the largest absolute entry if that is so large that squares might overflow; float64
        where the library has it.
    square : array, shape ()
        ``|m / scale|^2``, accumulated in that dtype.

    Raises
    ------
    TypeError
        If the arrays are of several libraries, or not real floating.
    ValueError
        If there are none.

    Examples
    --------
    >>> import numpy as np
    >>> scale, square = scaled_square({"w": np.asarray([3.0, 4.0])})
    >>> float(scale), float(square)
    (1.0, 25.0)
    """
    xp = _vector_namespace(xp, "arrays", arrays)
    return _scaled_square(arrays, ops=PURE, xp=xp)


def rank_one_divisor(
    m: Mapping[Any, Array], rho: Scalar, *, ops: Ops = PURE, xp: Namespace | None = None
) -> Array:
    """Find the divisor of m that solves ``(m m^T + rho I) u = m``, ``u = m / divisor``.

    Parameters
    ----------
    m : mapping of arrays
        Vector.
    rho : float or array of shape ()
        Added to the diagonal, above 0.
    ops : Ops
        Replaceable operations.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape ()
        ``rho + |m|^2``, in float64 where the library has it; infinite if that is too large for it,
        where `rank_one_solve` has a solution still.

    Raises
    ------
    TypeError
        If the arrays are of several libraries, or not real floating.
    ValueError
        If a Python `rho` is not above 0, or there is no array.

    Examples
    --------
    >>> import numpy as np
    >>> float(rank_one_divisor({"w": np.asarray([3.0, 4.0])}, 2.0))
    27.0
    """
    _checks.positive(rho=rho)
    xp = _vector_namespace(xp, "m", m)
    scale, square = _scaled_square(m, ops=ops, xp=xp)
    return _xp.scalar(rho, like=scale, xp=xp) + scale * (scale * square)


def rank_one_solve(
    m: Mapping[Key, Array],
    rho: Scalar,
    x: Mapping[Key, Array] | None = None,
    *,
    ops: Ops = PURE,
    xp: Namespace | None = None,
) -> tuple[dict[Key, Array], Array]:
    """Solve ``(m m^T + rho I) u = x``, all arrays together being one vector.

    For ``x = m`` the vector m is an eigenvector, so ``u = m / (rho + |m|^2)``: the two-term
    Sherman-Morrison form ``m / rho - m |m|^2 / (rho^2 + rho |m|^2)`` is the same number, but
    cancels, with a relative error of ``eps (1 + |m|^2 / rho)``. For another x its component along
    m is divided by ``rho + |m|^2`` and the rest by ``rho``.

    Parameters
    ----------
    m : mapping of arrays
        Vector.
    rho : float or array of shape ()
        Added to the diagonal, above 0.
    x : mapping of arrays, or None
        Right-hand side with the keys and shapes of `m`; None for `m` itself.
    ops : Ops
        Replaceable operations.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    u : dict of arrays
        Solution, in the dtypes of `m`; computed in float64 where the library has it, or as
        accurately.
    norm : array, shape ()
        ``|m|``.

    Raises
    ------
    TypeError
        If the arrays are of several libraries, or not real floating.
    ValueError
        If a Python `rho` is not above 0, or keys or shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> m = {"w": np.asarray([1.0]), "b": np.asarray([1.0])}
    >>> u, norm = rank_one_solve(m, 2.0)
    >>> u["w"], round(float(norm), 3)
    (array([0.25]), 1.414)
    >>> rank_one_solve(m, 2.0, {"w": np.asarray([1.0]), "b": np.asarray([-1.0])})[0]["b"]
    array([-0.5])
    """
    _checks.positive(rho=rho)
    xp = _vector_namespace(xp, "m", m)
    scale, square = _scaled_square(m, ops=ops, xp=xp)
    rho = _xp.scalar(rho, like=scale, xp=xp)
    bottom = rho / scale + scale * square
    unit = m if _roomy(m, xp=xp) else {key: v / scale for key, v in _wide(m, xp=xp).items()}
    if x is None:
        u = {key: ops.divide(v, bottom, xp=xp) for key, v in unit.items()}
    else:
        unit = _wide(unit, xp=xp)
        along, rest = _split(unit, square, x, xp=xp)
        u = {key: rest[key] / rho + (along / scale) * (v / bottom) for key, v in unit.items()}
    return {key: _xp.astype(v, m[key].dtype, xp=xp) for key, v in u.items()}, scale * xp.sqrt(
        square
    )


def _split(
    unit: Mapping[Key, Array], square: Array, x: Mapping[Key, Array], *, xp: Namespace
) -> tuple[Array, dict[Key, Array]]:
    """Component of x along the vector, and what is left of x without it."""
    if set(x) != set(unit):
        got, wanted = ([getattr(key, "name", key) for key in keys] for keys in (x, unit))
        msg = f"x has the keys {got}; expected those of m: {wanted}."
        raise ValueError(msg)
    _checks.floating(xp, **{_named("x", key): v for key, v in x.items()})
    for key, v in unit.items():
        _checks.shape(_named("x", key), x[key], tuple(v.shape), "the shape in m")
    x = {key: _xp.astype(x[key], v.dtype, xp=xp) for key, v in unit.items()}
    dot = _total([xp.sum(x[key] * v) for key, v in unit.items()])
    one = _xp.ones((), like=square, xp=xp)
    along = dot / xp.where(square > 0, square, one)
    return along, {key: x[key] - along * v for key, v in unit.items()}


def _vector_namespace(xp: Namespace | None, name: str, arrays: Mapping[Any, Array]) -> Namespace:
    if not arrays:
        msg = f"{name} is empty; expected at least one array."
        raise ValueError(msg)
    named = {_named(name, key): x for key, x in arrays.items()}
    xp = _checks.common_namespace(xp, **named)
    _checks.floating(xp, **named)
    return xp


def _named(name: str, key: Any) -> str:
    return f"{name} {getattr(key, 'name', key)!r}"


def _wide(arrays: Mapping[Key, Array], *, xp: Namespace) -> dict[Key, Array]:
    return {key: _xp.astype(x, _xp.widest(x.dtype, xp=xp), xp=xp) for key, x in arrays.items()}


def _limit(dtype: DType, *, xp: Namespace) -> float:
    """Magnitude up to which sums of squares do not overflow."""
    limit: float = float(xp.finfo(dtype).max) ** 0.25
    return limit


def _roomy(arrays: Mapping[Any, Array], *, xp: Namespace) -> bool:
    """Tell whether no finite number of the arrays' dtypes is too large for squares in the wide."""
    dtypes = [x.dtype for x in arrays.values()]
    limit = min(_limit(_xp.widest(dtype, xp=xp), xp=xp) for dtype in dtypes)
    return all(float(xp.finfo(dtype).max) <= limit for dtype in dtypes)


def _scaled_square(arrays: Mapping[Any, Array], *, ops: Ops, xp: Namespace) -> tuple[Array, Array]:
    first = next(iter(arrays.values()))
    one = _xp.ones((), like=first, dtype=_xp.widest(first.dtype, xp=xp), xp=xp)
    if _roomy(arrays, xp=xp):
        return one, _total([ops.square(x, xp=xp) for x in arrays.values()])
    wide, largest = _wide(arrays, xp=xp), one
    for x in wide.values():
        largest = xp.maximum(largest, _xp.astype(xp.max(xp.abs(x)), one.dtype, xp=xp))
    limit = _limit(one.dtype, xp=xp)
    scale = xp.where(largest > limit, largest, one)
    return scale, _total([PURE.square(x / scale, xp=xp) for x in wide.values()])


def _total(parts: list[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
