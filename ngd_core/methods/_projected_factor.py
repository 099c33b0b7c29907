"""One Kronecker factor of the projective method: its averages, its basis, its inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from ngd_core import _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.factors.average import average
from ngd_core.inversion import (
    Ops,
    RecursiveInverse,
    apply_projected,
    change_basis,
    compress,
    follow,
    identity_recursive,
    lag,
    mean_diagonal,
    orthonormal_basis,
    range_basis,
    resync,
    top_basis,
)
from ngd_core.inversion.spd import FLOOR
from ngd_core.types import KEPT

__all__ = [
    "Batch",
    "DirectFactor",
    "Factor",
    "ProjectedFactor",
    "View",
    "apply_factor",
    "choose",
    "fold",
    "init_factor",
    "mean_eigenvalue",
    "measure",
    "new_basis",
    "renew",
]


class DirectFactor(NamedTuple):
    """A factor that is inverted as it is.

    Parameters
    ----------
    moment : array, shape (*stack, d, d)
        Averaged factor.
    inverse : RecursiveInverse
        Of order d.
    """

    moment: Array
    inverse: RecursiveInverse


class ProjectedFactor(NamedTuple):
    """A factor that is inverted within a basis.

    Parameters
    ----------
    moment : array, shape (*stack, d, d) or (*stack, r, r)
        Averaged factor; for the "gaussian" basis, its part within the basis.
    trace : array, shape (*stack,)
        Averaged trace of the whole factor.
    basis : array, shape (*stack, d, r)
        Orthonormal columns P.
    inverse : RecursiveInverse
        Of order r.
    outside : array, shape (*stack,)
        Inverse of what the basis leaves out; 1 before the first refresh.
    """

    moment: Array
    trace: Array
    basis: Array
    inverse: RecursiveInverse
    outside: Array


Factor: TypeAlias = DirectFactor | ProjectedFactor


class View(NamedTuple):
    """One batch's part in a factor, by functions of no arguments.

    Parameters
    ----------
    full : callable
        The batch's whole factor, ``(*stack, d, d)``.
    samples : callable
        Rows of which that is the second moment, ``(*stack, rows, d)``.
    rows : int
        Number of these.
    """

    full: Callable[[], Array]
    samples: Callable[[], Array]
    rows: int


class Batch(NamedTuple):
    """One batch as its factor sees it.

    Parameters
    ----------
    moment : array
        What is averaged into ``moment``.
    trace : array, shape (*stack,)
        Trace of the batch's whole factor.
    samples : array, shape (*stack, m, order of the inverse), or None
        Rows for the recursion; None where there is none.
    """

    moment: Array
    trace: Array
    samples: Array | None


def init_factor(
    stack: tuple[int, ...],
    d: int,
    rank: int,
    basis: Array | None,
    *,
    compressed: bool,
    like: Array,
    xp: Namespace,
) -> Factor:
    """Factor before any statistics; `basis` of rank columns, or None for coordinate axes."""
    inverse = identity_recursive(stack, rank, like=like, xp=xp)
    order = rank if compressed else d
    moment = _xp.zeros((*stack, order, order), like=like, xp=xp)
    if rank == d:
        return DirectFactor(moment, inverse)
    if basis is None:
        axes = _xp.eye(d, like=like, xp=xp)[:, :rank]
        basis = axes + _xp.zeros((*stack, d, rank), like=like, xp=xp)
    return ProjectedFactor(
        moment=moment,
        trace=_xp.zeros(stack, like=like, xp=xp),
        basis=basis,
        inverse=inverse,
        outside=_xp.ones(stack, like=like, xp=xp),
    )


def measure(factor: Factor, view: View, *, recursive: bool, xp: Namespace) -> Batch:
    """Statistics of a batch, with samples for the recursion if `recursive`."""
    dtype = factor.moment.dtype
    compressed = isinstance(factor, ProjectedFactor) and (
        factor.moment.shape[-1] == factor.basis.shape[-1]
    )
    x = y = None
    if compressed or recursive:
        x = y = _xp.astype(view.samples(), dtype, xp=xp)
        if isinstance(factor, ProjectedFactor):
            y = x @ factor.basis
    if compressed and x is not None and y is not None:
        moment, trace = y.mT @ y, xp.sum(x * x, axis=(-2, -1))
    else:
        moment = _xp.astype(view.full(), dtype, xp=xp)
        trace = xp.sum(xp.linalg.diagonal(moment), axis=-1)
    return Batch(moment, trace, y if recursive else None)


def fold(
    factor: Factor,
    batch: Batch,
    weight: Array,
    count: Scalar,
    decay: Scalar,
    *,
    halt_below: float,
    dtype: str | None,
    xp: Namespace,
) -> Factor:
    """Average a batch in, and let the inverse follow it if it came with samples."""
    moment, total = average(factor.moment, weight, batch.moment, count, decay, xp=xp)
    if batch.samples is None:
        inverse = lag(factor.inverse, xp=xp)
    else:
        kept = weight * _xp.scalar(decay, like=weight, xp=xp) / total
        scaled = xp.sqrt(count / total) * batch.samples
        inverse = follow(factor.inverse, scaled, kept, halt_below=halt_below, dtype=dtype, xp=xp)
    if isinstance(factor, DirectFactor):
        return DirectFactor(moment, inverse)
    trace, _ = average(factor.trace, weight, batch.trace, count, decay, xp=xp)
    return factor._replace(moment=moment, trace=trace, inverse=inverse)


def choose(ok: Array, new: Any, old: Any, *, ops: Ops, xp: Namespace) -> Any:
    """Every array of `new` where `ok`, a 0-d boolean, otherwise that of `old`."""
    if isinstance(new, tuple):
        pairs = zip(new, old, strict=True)
        return type(new)(*(choose(ok, x, y, ops=ops, xp=xp) for x, y in pairs))
    return ops.select(ok, new, old, xp=xp)


def mean_eigenvalue(factor: Factor, *, xp: Namespace) -> Array:
    """Mean eigenvalue of the whole factor, ``(*stack,)``."""
    if isinstance(factor, DirectFactor):
        return mean_diagonal(factor.moment, xp=xp)
    return factor.trace / factor.basis.shape[-2]


def new_basis(
    factor: ProjectedFactor, kind: str, noise: Array | None, *, dtype: str | None, xp: Namespace
) -> Array | None:
    """Basis for the averages as they are, NaN where there is none to be had; None for no change."""
    if kind == "top":
        basis, ok = top_basis(factor.moment, factor.basis.shape[-1], dtype=dtype, xp=xp)
        return xp.where(ok[..., None, None], basis, _xp.full((), float("nan"), like=basis, xp=xp))
    if noise is not None:
        noise = _xp.astype(noise, factor.basis.dtype, xp=xp)
    if kind == "range":
        return range_basis(factor.moment, factor.basis if noise is None else noise, xp=xp)
    return None if noise is None else orthonormal_basis(noise, xp=xp)


def renew(
    factor: Factor,
    basis: Array | None,
    damping: Array,
    usable: Array,
    *,
    complement: bool,
    dtype: str | None,
    ops: Ops,
    xp: Namespace,
) -> tuple[Factor, Array, Array]:
    """Change the basis and invert: the factor, a code, and the part of the trace in the basis.

    Where the averages are not `usable` all stays as it was.
    """
    nan = _xp.full((), float("nan"), like=factor.moment, xp=xp)
    known = xp.where(usable, _xp.zeros((), like=nan, xp=xp), nan)[..., None, None]
    if isinstance(factor, DirectFactor):
        moment = factor.moment + known
        inverse, code = resync(factor.inverse, moment, damping, dtype=dtype, ops=ops, xp=xp)
        return factor._replace(inverse=inverse), code, _xp.ones((), like=moment, xp=xp)
    d, r = factor.basis.shape[-2:]
    compressed = factor.moment.shape[-1] == r
    if not compressed:
        small = compress(factor.moment, factor.basis if basis is None else basis, xp=xp)
    elif basis is None:
        small = factor.moment
    else:
        rest = _outside(factor.trace, factor.moment, d, xp=xp)
        small = change_basis(factor.moment, factor.basis, basis, rest, xp=xp)
    inverse, code = resync(factor.inverse, small + known, damping, dtype=dtype, ops=ops, xp=xp)
    fresh = code < KEPT
    matrix = fresh[..., None, None]
    zero, one = _xp.zeros((), like=small, xp=xp), _xp.ones((), like=small, xp=xp)
    floor = FLOOR * _xp.eps(small.dtype, xp=xp) * factor.trace
    tail = xp.maximum(damping + _outside(factor.trace, small, d, xp=xp), floor)
    outside = one / xp.where(tail > zero, tail, one) if complement else zero
    whole = xp.sum(factor.trace)
    inside = xp.where(whole > zero, xp.sum(xp.linalg.diagonal(small)), one)
    inside = inside / xp.where(whole > zero, whole, one)
    new = factor._replace(
        moment=xp.where(matrix, small, factor.moment) if compressed else factor.moment,
        basis=factor.basis if basis is None else xp.where(matrix, basis, factor.basis),
        inverse=inverse,
        outside=xp.where(fresh, outside, factor.outside),
    )
    return new, code, xp.where(xp.isfinite(inside), inside, one)


def _outside(trace: Array, small: Array, d: int, *, xp: Namespace) -> Array:
    """Mean eigenvalue outside the basis, rounded up to 0."""
    rest = (trace - xp.sum(xp.linalg.diagonal(small), axis=-1)) / (d - small.shape[-1])
    return xp.maximum(rest, _xp.zeros((), like=rest, xp=xp))


def apply_factor(factor: Factor, V: Array, *, left: bool, xp: Namespace) -> Array:
    """``M^-1 V`` if `left`, otherwise ``V M^-1``."""
    if isinstance(factor, DirectFactor):
        return factor.inverse.matrix @ V if left else V @ factor.inverse.matrix
    inverse = factor.inverse.matrix
    return apply_projected(factor.basis, inverse, factor.outside, V, left=left, xp=xp)
