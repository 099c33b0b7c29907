"""Safe inverses and eigendecompositions of damped positive semi-definite matrices.

Array libraries differ most where a factorisation fails: NumPy and PyTorch raise, JAX returns NaN,
CuPy returns garbage. So nothing here is factorised before it is made safe, nothing is caught, and
a result is used only after it was checked. What could not be used is replaced by the last good
result, and a code says so.
"""

from __future__ import annotations

from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace, Scalar
from ngd_core.inversion.ops import PURE, Ops, all_finite, all_fit
from ngd_core.types import DOUBLE, IDENTITY, KEPT, OK, RAISED

__all__ = ["damped_inverse", "fallback_code", "safe_eigh", "solve_dtype"]

FLOOR = 10.0
"""Smallest damping, in units of ``eps * tr(m)``: bounds the condition number by ``1/(10 eps)``."""

PROBE = 0.5
"""Largest relative residual of a usable inverse on one probe vector."""

ENOUGH = 2.0**-10
"""Largest ``eps tr(m) / damping`` for which a matrix is factorised in its own dtype.

``tr(m) / damping`` bounds the condition number of the damped matrix less 1, so this is what
rounding the entries of m to their dtype, which was done, can change in the inverse, relative to its
norm. A factorisation in the same dtype errs by a few times as much as a rule; what can be proved
has a further factor of about the order of m.
"""


def solve_dtype(wanted: str | None, *, like: Array, xp: Namespace) -> DType:
    """Dtype of factorisations, where that is not left to the damping (`damped_inverse`).

    Parameters
    ----------
    wanted : "float32", "float64" or None
        None means float64 where the namespace has it, otherwise the factor's own dtype.
    like : array
        A factor.
    xp : namespace
        Array namespace.

    Returns
    -------
    dtype
        At least that of `like`.

    Raises
    ------
    ValueError
        If float64 is wanted and the namespace has none.

    Examples
    --------
    >>> import numpy as np
    >>> solve_dtype(None, like=np.ones(1, np.float32), xp=np) is np.float64
    True
    """
    double = _xp.double(xp=xp)
    if wanted == "float64" and double is None:
        msg = (
            "solve_dtype is 'float64', but this array library offers none on this device (JAX "
            "needs jax_enable_x64); use None or 'float32'."
        )
        raise ValueError(msg)
    return like.dtype if wanted == "float32" or double is None else double


class Scaled(NamedTuple):
    """A matrix made fit for factorising: ``matrix + shift I`` is safely positive definite.

    ``m + damping I = scale (matrix + shift I)`` with entries of order 1. Where nothing usable
    came, `matrix` is 0 and `shift` 1. `raised` tells where the damping asked for was too small.
    """

    matrix: Array
    shift: Array
    scale: Array
    usable: Array
    raised: Array


def scaled(m: Array, damping: Scalar, dtype: DType, *, ops: Ops = PURE, xp: Namespace) -> Scaled:
    """Symmetrise, scale to entries of order 1, and raise the damping to the floor."""
    _checks.nonnegative(damping=damping)
    eps = FLOOR * _xp.eps(m.dtype, xp=xp) * m.shape[-1]
    tiny = float(xp.finfo(m.dtype).smallest_normal)
    usable = all_finite(m, axis=(-2, -1), ops=ops, xp=xp)
    m = _xp.astype(m, dtype, xp=xp)
    damping = _xp.scalar(damping, like=m, xp=xp)
    zero, one = _xp.zeros((), like=m, xp=xp), _xp.ones((), like=m, xp=xp)
    usable = usable & xp.isfinite(damping) & (damping >= 0)
    m = _where(usable, m, zero, ops=ops, xp=xp)
    damping = xp.where(usable, damping, one)
    scale = xp.maximum(xp.max(xp.linalg.diagonal(m), axis=-1), damping)
    scale = xp.where(scale > 0, scale, one)
    m = m / scale[..., None, None]
    m = 0.5 * (m + m.mT)
    floor = eps * xp.mean(xp.linalg.diagonal(m), axis=-1)
    asked = damping / scale
    raised = asked < floor
    shift = xp.where(raised, floor, asked)
    usable = usable & (shift * scale >= tiny)
    m = _where(usable, m, zero, ops=ops, xp=xp)
    shift, scale = xp.where(usable, shift, one), xp.where(usable, scale, one)
    return Scaled(m, shift, scale, usable, raised)


def _where(ok: Array, m: Array, other: Array, *, ops: Ops, xp: Namespace) -> Array:
    """Matrices that are `ok`, others in the place of the rest."""
    return ops.select(ok if ok.ndim == 0 else ok[..., None, None], m, other, xp=xp)


def shifted(part: Scaled, *, xp: Namespace) -> Array:
    """Form ``matrix + shift I``."""
    identity = _xp.eye(part.matrix.shape[-1], like=part.matrix, xp=xp)
    return part.matrix + part.shift[..., None, None] * identity


def well_damped(m: Array, damping: Scalar, *, xp: Namespace) -> Array:
    """Whether all of some matrices are damped so much that their own dtype will do (`ENOUGH`)."""
    share = _xp.eps(m.dtype, xp=xp) / ENOUGH
    least = xp.sum(share * xp.linalg.diagonal(m), axis=-1)
    return xp.all(least <= _xp.scalar(damping, like=m, xp=xp))


def fallback_code(ok: Array, good: Array, mild: Array, *, xp: Namespace) -> Array:
    """`mild` where a result is `ok`, otherwise the code of what is used in its place.

    Parameters
    ----------
    ok, good : array of bool, shape (...)
        Whether the new result is usable, and whether an older one is.
    mild : array of int32, shape (...)
        Code of a usable result.
    xp : namespace
        Array namespace.

    Returns
    -------
    array of int32, shape (...)
        Codes as in `ngd_core.types.CODE_MEANING`.

    Examples
    --------
    >>> import numpy as np
    >>> no, yes = np.asarray(False), np.asarray(True)
    >>> int(fallback_code(no, yes, np.asarray(0), xp=np))
    3
    """
    kept, identity = (_xp.full((), code, like=mild, xp=xp) for code in (KEPT, IDENTITY))
    return xp.where(ok, mild, xp.where(good, kept, identity))


def mild_code(raised: Array, *, xp: Namespace) -> Array:
    codes = (_xp.full((), c, like=raised, dtype=xp.int32, xp=xp) for c in (RAISED, OK))
    return xp.where(raised, *codes)


def damped_inverse(
    m: Array,
    damping: Scalar,
    previous: Array,
    good: Array,
    *,
    dtype: str | None = None,
    ops: Ops = PURE,
    xp: Namespace | None = None,
) -> tuple[Array, Array, Array]:
    """Inverse ``(m + damping I)^-1`` that is always finite.

    The chain: the damping is raised to ``10 eps tr(m)`` if it is below (``eps`` of the dtype of
    `m`); the factorisation runs in `dtype`, which None leaves to the damping: at ``1024 eps tr(m)``
    and above the dtype of `m` is enough; a result that is not finite, or that a probe vector
    shows not to be an inverse, is computed again in float64 where that was not done; and if that
    fails too, or there is nothing to invert (a damped matrix too small for the reciprocals of its
    eigenvalues), the previous inverse stays.

    Parameters
    ----------
    m : array, shape (..., n, n)
        Positive semi-definite matrices; symmetrised here.
    damping : float or array of shape () or (...)
        Added to the diagonal of `m`.
    previous : array, shape (..., n, n)
        Last good inverse, or the identity.
    good : array of bool, shape (...)
        Whether `previous` is a good inverse.
    dtype : "float32", "float64" or None
        Dtype of the factorisation. None: float64 where there is one, but that of `m` where the
        damping of all the matrices allows it and `ops` can choose at once (`Ops.eager`).
    ops : Ops
        Replaceable operations.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    inverse : array, shape (..., n, n)
        In the dtype of `m`.
    good : array of bool, shape (...)
        Whether it is a good inverse, new or old.
    code : array of int32, shape (...)
        As in `ngd_core.types.CODE_MEANING`.

    Raises
    ------
    TypeError
        For mixed or integer arrays.
    ValueError
        If a Python `damping` is negative, `m` is not square, or `previous` is of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> m = np.asarray([[1.0, 1.0], [1.0, 1.0]])
    >>> inverse, good, code = damped_inverse(m, 1.0, np.eye(2), np.asarray(False))
    >>> inverse.round(4).tolist(), bool(good), int(code)
    ([[0.6667, -0.3333], [-0.3333, 0.6667]], True, 0)
    """
    xp = _checks.common_namespace(xp, m=m, previous=previous)
    _checks.floating(xp, m=m)
    _checks.square(m=m)
    _checks.shape("previous", previous, tuple(m.shape), "that of m")
    work, double = solve_dtype(dtype, like=m, xp=xp), _xp.double(xp=xp)

    def attempt(work: DType) -> tuple[Array, Array, Array]:
        return _attempt(m, damping, previous, work, ops=ops, xp=xp)

    least = _xp.working(m.dtype, xp=xp)
    chosen = dtype is None and ops.eager and work != least
    if chosen:
        enough = well_damped(m, damping, xp=xp)
        inverse, ok, raised = ops.cond(enough, lambda: attempt(least), lambda: attempt(work), xp=xp)
        settled = xp.all(ok) | ~enough
    else:
        inverse, ok, raised = attempt(work)
        settled = xp.all(ok)
    code = mild_code(raised, xp=xp)
    if double is not None and (chosen or double != work):

        def again() -> tuple[Array, Array, Array]:
            second, second_ok, _ = attempt(double)
            doubled = _xp.full((), DOUBLE, like=code, xp=xp)
            return (
                xp.where(ok[..., None, None], inverse, second),
                ok | second_ok,
                xp.where(ok, code, doubled),
            )

        inverse, ok, code = ops.cond(settled, lambda: (inverse, ok, code), again, xp=xp)
    code = fallback_code(ok, good, code, xp=xp)
    return _where(ok, inverse, previous, ops=ops, xp=xp), good | ok, code


def _attempt(
    m: Array, damping: Scalar, previous: Array, dtype: DType, *, ops: Ops, xp: Namespace
) -> tuple[Array, Array, Array]:
    part = scaled(m, damping, dtype, ops=ops, xp=xp)
    safe = _add_to_diagonal(part.matrix, part.shift, xp=xp)
    if ops.warm:
        start = _xp.astype(previous, dtype, xp=xp) * part.scale[..., None, None]
        inverse = ops.spd_inverse(safe, start=start, xp=xp)
    else:
        inverse = ops.spd_inverse(safe, xp=xp)
    probe = xp.cos(_xp.arange(m.shape[-1], like=safe, xp=xp))[:, None]
    residual = xp.max(xp.abs(safe @ (inverse @ probe) - probe), axis=(-2, -1))
    inverse = inverse / part.scale[..., None, None]
    ok = part.usable & (residual < PROBE)
    ok = ok & all_fit(inverse, m.dtype, axis=(-2, -1), ops=ops, xp=xp)
    inverse = _where(ok, inverse, _xp.zeros((), like=inverse, xp=xp), ops=ops, xp=xp)
    # the largest entry of a positive definite matrix is on its diagonal
    largest = xp.max(xp.linalg.diagonal(inverse), axis=-1)
    return _cleared(inverse, largest, m.dtype, ops=ops, xp=xp), ok, part.raised


def _add_to_diagonal(m: Array, shift: Array, *, xp: Namespace) -> Array:
    """Form ``m + shift I``, in place where the library can."""
    n = m.shape[-1]
    flat = xp.reshape(m, (*m.shape[:-2], n * n))
    flat = _xp.add_at(flat, (..., slice(None, None, n + 1)), shift[..., None])
    return xp.reshape(flat, m.shape)


def _cleared(x: Array, largest: Array, dtype: DType, *, ops: Ops = PURE, xp: Namespace) -> Array:
    """Cast, with 0 in place of entries below ``eps^2`` of the largest one of a matrix.

    Rounding to `dtype` changes such a matrix by far more. Where units are dead most entries can be
    that small; cast, many would be subnormal, and products with these take ten times as long.
    """
    least = _xp.eps(dtype, xp=xp) ** 2 * largest[..., None, None]
    return _xp.astype(ops.clear(x, least, xp=xp), dtype, xp=xp)


def safe_eigh(
    m: Array, *, dtype: str | None = None, xp: Namespace | None = None
) -> tuple[Array, Array, Array]:
    """Eigenvalues and eigenvectors of positive semi-definite matrices, always finite.

    Parameters
    ----------
    m : array, shape (..., n, n)
        Positive semi-definite matrices; symmetrised here.
    dtype : "float32", "float64" or None
        Dtype of the factorisation; None means float64 where there is one.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    values : array, shape (..., n)
        Eigenvalues in the dtype of `m`, ascending, rounded up to 0 where rounding made them
        negative.
    vectors : array, shape (..., n, n)
        Eigenvectors in the columns.
    ok : array of bool, shape (...)
        False where `m` was not finite, or the library found no finite answer; values are 1 and
        vectors those of some other matrix there.

    Raises
    ------
    TypeError
        For an integer array.
    ValueError
        If `m` is not square.

    Examples
    --------
    >>> import numpy as np
    >>> values, vectors, ok = safe_eigh(np.asarray([[2.0, 0.0], [0.0, 1.0]]))
    >>> values.tolist(), bool(ok)
    ([1.0, 2.0], True)
    """
    xp = _checks.common_namespace(xp, m=m)
    _checks.floating(xp, m=m)
    _checks.square(m=m)
    work = solve_dtype(dtype, like=m, xp=xp)
    original = m.dtype
    m = _xp.astype(m, work, xp=xp)
    usable = xp.all(xp.isfinite(m), axis=(-2, -1))
    zero, one = _xp.zeros((), like=m, xp=xp), _xp.ones((), like=m, xp=xp)
    m = xp.where(usable[..., None, None], m, _xp.eye(m.shape[-1], like=m, xp=xp))
    scale = xp.max(xp.abs(xp.linalg.diagonal(m)), axis=-1)
    scale = xp.where(scale > zero, scale, one)[..., None, None]
    safe = 0.5 * (m + m.mT) / scale
    values, vectors = xp.linalg.eigh(safe)
    values = xp.maximum(values, zero) * scale[..., 0]
    values = _xp.astype(values, original, xp=xp)
    largest = xp.max(xp.abs(vectors), axis=(-2, -1))
    vectors = _cleared(vectors, largest, original, xp=xp)
    ok = usable & xp.all(xp.isfinite(values), axis=-1)
    ok = ok & xp.all(xp.isfinite(vectors), axis=(-2, -1))
    return xp.where(ok[..., None], values, _xp.ones((), like=values, xp=xp)), vectors, ok
