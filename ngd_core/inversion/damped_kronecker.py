"""Inverse of a damped Kronecker product, refreshed from factors and applied to blocks.

Two forms of ``(G (x) A + lambda I)^-1``: from separately damped factors, or from the eigenvalues of
both. Either holds on to its last good value when new factors cannot be used. A factor A that is
diagonal is given, and kept, as a vector (`ngd_core.inversion.diagonal`).
"""

from __future__ import annotations

from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.inversion.damping import factored_damping, mean_diagonal
from ngd_core.inversion.diagonal import diagonal_inverse, diagonal_spectrum, is_diagonal
from ngd_core.inversion.kronecker import kronecker_product, kronecker_solve_eigh
from ngd_core.inversion.ops import PURE, Ops
from ngd_core.inversion.spd import FLOOR, damped_inverse, fallback_code, safe_eigh
from ngd_core.types import KEPT, OK, RAISED

__all__ = [
    "ExactInverse",
    "PiInverse",
    "apply_inverse",
    "identity_inverse",
    "refresh_inverse",
]


class PiInverse(NamedTuple):
    """Inverses of the separately damped factors, of one refresh and one pi.

    Parameters
    ----------
    a : array, shape (..., d, d) or (..., d)
        ``(A + pi sqrt(lambda) I)^-1``, the identity before the first refresh; for a diagonal A
        the diagonal of it.
    g : array, shape (..., o, o)
        ``(G + sqrt(lambda) / pi I)^-1``, likewise.
    good : array of bool, shape (...)
        Whether they were once computed.
    """

    a: Array
    g: Array
    good: Array


class ExactInverse(NamedTuple):
    """Eigendecompositions of the factors and the damping of their product.

    Parameters
    ----------
    a_values : array, shape (..., d)
        Eigenvalues of A.
    a_vectors : array, shape (..., d, d) or (..., d)
        Eigenvectors of A, in the columns; for a diagonal A ones, the diagonal of the identity.
    g_values : array, shape (..., o)
        Eigenvalues of G.
    g_vectors : array, shape (..., o, o)
        Eigenvectors of G, in the columns.
    damping : array, shape (...)
        ``lambda`` in force.
    good : array of bool, shape (...)
        Whether they were once computed.
    """

    a_values: Array
    a_vectors: Array
    g_values: Array
    g_vectors: Array
    damping: Array
    good: Array


def identity_inverse(
    split: str,
    stack: tuple[int, ...],
    d: int,
    o: int,
    *,
    diagonal: bool = False,
    like: Array,
    xp: Namespace,
) -> PiInverse | ExactInverse:
    """Inverse that leaves blocks as they are, marked as not good.

    Parameters
    ----------
    split : "pi" or "exact"
        Which form.
    stack : tuple of int
        Leading axes of blocks and factors.
    d, o : int
        Columns and rows of a block.
    diagonal : bool
        Whether A is diagonal and kept as a vector.
    like : array
        Template of dtype and device.
    xp : namespace
        Array namespace.

    Returns
    -------
    PiInverse or ExactInverse
        No two of its arrays share memory.

    Examples
    --------
    >>> import numpy as np
    >>> identity_inverse("pi", (), 2, 1, like=np.zeros(()), xp=np).a
    array([[1., 0.],
           [0., 1.]])
    """

    def identity(n: int) -> Array:
        return _xp.eye(n, like=like, xp=xp) + _xp.zeros((*stack, n, n), like=like, xp=xp)

    def no() -> Array:
        return _xp.zeros(stack, like=like, dtype=xp.bool, xp=xp)

    a = _xp.ones((*stack, d), like=like, xp=xp) if diagonal else identity(d)
    if split == "pi":
        return PiInverse(a, identity(o), no())
    return ExactInverse(
        _xp.ones((*stack, d), like=like, xp=xp),
        a,
        _xp.ones((*stack, o), like=like, xp=xp),
        identity(o),
        _xp.zeros(stack, like=like, xp=xp),
        no(),
    )


def refresh_inverse(
    old: PiInverse | ExactInverse,
    A: Array,
    G: Array,
    damping: Scalar,
    *,
    dtype: str | None = None,
    ops: Ops = PURE,
    xp: Namespace | None = None,
) -> tuple[PiInverse | ExactInverse, Array]:
    """Invert new factors in the form of the old inverse.

    Parameters
    ----------
    old : PiInverse or ExactInverse
        Decides the form, and stays where either factor cannot be used.
    A : array, shape (..., d, d) or (..., d)
        Input factor, or its diagonal if the old inverse was made for that.
    G : array, shape (..., o, o)
        Output-gradient factor.
    damping : float or array of shape ()
        ``lambda``, added to ``G (x) A``.
    dtype : "float32", "float64" or None
        Dtype of factorisations; None means float64 where there is one.
    ops : Ops
        Replaceable operations.
    xp : namespace, optional
        Array namespace; found from the factors if not given.

    Returns
    -------
    inverse : PiInverse or ExactInverse
        In the dtype of the factors.
    code : array of int32, shape (...)
        As in `ngd_core.types.CODE_MEANING`.

    Raises
    ------
    TypeError
        For mixed or integer arrays.
    ValueError
        If a Python `damping` is negative, or a factor is not square.

    Examples
    --------
    >>> import numpy as np
    >>> old = identity_inverse("exact", (), 2, 1, like=np.zeros(()), xp=np)
    >>> inverse, code = refresh_inverse(old, np.diag([1.0, 3.0]), np.eye(1), 1.0)
    >>> apply_inverse(inverse, np.ones((1, 2)))[0]
    array([[0.5 , 0.25]])
    """
    xp = _checks.common_namespace(xp, A=A, G=G)
    if isinstance(old, ExactInverse):
        return _refresh_exact(old, A, G, damping, dtype=dtype, xp=xp)
    return _refresh_pi(old, A, G, damping, dtype=dtype, ops=ops, xp=xp)


def _refresh_pi(
    old: PiInverse,
    A: Array,
    G: Array,
    damping: Scalar,
    *,
    dtype: str | None,
    ops: Ops,
    xp: Namespace,
) -> tuple[PiInverse, Array]:
    for_a, for_g = factored_damping(A, G, damping, xp=xp)
    diagonal = is_diagonal(A, G)
    mean_a = xp.mean(A, axis=-1) if diagonal else mean_diagonal(A, xp=xp)
    # one zero factor makes the product zero, whatever the other
    both = (mean_a > 0) & (mean_diagonal(G, xp=xp) > 0)
    present = _xp.astype(both, A.dtype, xp=xp)
    A, G = ops.cond(
        xp.all(both),
        lambda: (A, G),
        lambda: (A * _like_factor(present, diagonal), G * _like_factor(present, False)),
        xp=xp,
    )
    if diagonal:
        a, _, code_a = diagonal_inverse(A, for_a, old.a, old.good, xp=xp)
    else:
        a, _, code_a = damped_inverse(A, for_a, old.a, old.good, dtype=dtype, ops=ops, xp=xp)
    g, _, code_g = damped_inverse(G, for_g, old.g, old.good, dtype=dtype, ops=ops, xp=xp)
    code = xp.maximum(code_a, code_g)
    ok = code < KEPT
    new = PiInverse(
        ops.select(_like_factor(ok, diagonal), a, old.a, xp=xp),
        ops.select(_like_factor(ok, False), g, old.g, xp=xp),
        old.good | ok,
    )
    return new, code


def _like_factor(x: Array, diagonal: bool) -> Array:
    """Value of each factor beside its entries; a single one stays as it is."""
    if x.ndim == 0:
        return x
    return x[..., None] if diagonal else x[..., None, None]


def _refresh_exact(
    old: ExactInverse, A: Array, G: Array, damping: Scalar, *, dtype: str | None, xp: Namespace
) -> tuple[ExactInverse, Array]:
    _checks.nonnegative(damping=damping)
    diagonal = is_diagonal(A, G)
    if diagonal:
        a_values, a_vectors, a_ok = diagonal_spectrum(A, xp=xp)
    else:
        a_values, a_vectors, a_ok = safe_eigh(A, dtype=dtype, xp=xp)
    g_values, g_vectors, g_ok = safe_eigh(G, dtype=dtype, xp=xp)
    eps = FLOOR * _xp.eps(A.dtype, xp=xp)
    floor = eps * xp.sum(a_values, axis=-1) * xp.sum(g_values, axis=-1)
    asked = _xp.scalar(damping, like=A, xp=xp)
    raised = asked < floor
    used = xp.where(raised, floor, asked)
    ok = a_ok & g_ok & xp.isfinite(used) & (asked >= 0) & (used > 0)
    mild = [_xp.full(raised.shape, c, like=A, dtype=xp.int32, xp=xp) for c in (RAISED, OK)]
    vector = ok[..., None]
    # old vectors first: torch lays out the result like them, another layout is compiled anew
    new = ExactInverse(
        xp.where(vector, a_values, old.a_values),
        xp.where(~_like_factor(ok, diagonal), old.a_vectors, a_vectors),
        xp.where(vector, g_values, old.g_values),
        xp.where(~ok[..., None, None], old.g_vectors, g_vectors),
        xp.where(ok, used, old.damping),
        old.good | ok,
    )
    return new, fallback_code(ok, old.good, xp.where(raised, *mild), xp=xp)


def apply_inverse(
    inverse: PiInverse | ExactInverse, V: Array, *, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Apply ``(G (x) A + lambda I)^-1`` to blocks.

    Parameters
    ----------
    inverse : PiInverse or ExactInverse
        From `refresh_inverse` or `identity_inverse`.
    V : array, shape (..., o, d)
        Blocks, in the dtype of the inverse.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    U : array, shape (..., o, d)
        Preconditioned blocks.
    good : array of bool, shape (...)
        Whether the inverse is more than the identity.

    Examples
    --------
    >>> import numpy as np
    >>> inverse = identity_inverse("pi", (), 2, 1, like=np.zeros(()), xp=np)
    >>> U, good = apply_inverse(inverse, np.ones((1, 2)))
    >>> U.tolist(), bool(good)
    ([[1.0, 1.0]], False)
    """
    if isinstance(inverse, PiInverse):
        xp = _checks.common_namespace(xp, inverse=inverse.a, V=V)
        u = kronecker_product(inverse.g, inverse.a, V, xp=xp)
        return u, inverse.good
    xp = _checks.common_namespace(xp, inverse=inverse.a_vectors, V=V)
    u = kronecker_solve_eigh(
        (inverse.g_values, inverse.g_vectors),
        (inverse.a_values, inverse.a_vectors),
        V,
        inverse.damping[..., None, None],
        xp=xp,
    )
    return u, inverse.good
