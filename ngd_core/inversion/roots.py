"""Square roots of damped positive semi-definite matrices, and their inverses.

With ``M = m + damping I``, four ways to ``M^(1/2)`` and ``M^(-1/2)`` (of SNGD's papers only the
names Nystrom and Denman-Beavers were seen, so how the two are used here is our choice):

==============  ============================================  ====================================
root            how                                           when
==============  ============================================  ====================================
eigh            ``V diag(max(w, 0) + damping)^p V^T``         the most accurate
denman-beavers  Newton's iteration for the matrix sign, two   neither cheaper nor safer than eigh
                inversions a step
newton-schulz   the same without inversions, three products   where products are all that is fast
                a step
nystrom         m replaced by a low-rank approximation        rank far below the order
                through some of its columns
==============  ============================================  ====================================

The number of steps is fixed beforehand; `condition_bound` tells what it suffices for.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace, Scalar
from ngd_core.inversion.damping import mean_diagonal
from ngd_core.inversion.ops import PURE, Ops
from ngd_core.inversion.schulz import frobenius_norm
from ngd_core.inversion.spd import fallback_code, mild_code, scaled, shifted, solve_dtype
from ngd_core.types import DOUBLE

__all__ = [
    "Roots",
    "condition_bound",
    "damped_roots",
    "denman_beavers",
    "landmarks",
    "newton_schulz",
    "nystrom",
    "shifted_power",
]

RootKind: TypeAlias = Literal["eigh", "denman-beavers", "newton-schulz", "nystrom"]
ROOTS = ("eigh", "denman-beavers", "newton-schulz", "nystrom")
STEPS = {"denman-beavers": 20, "newton-schulz": 30}

RESIDUAL = 1e-2
"""Largest usable Frobenius norm of ``M^(1/2) M^(-1/2) - I``, and of the error of the square."""


class Roots(NamedTuple):
    """A square root and its inverse.

    Parameters
    ----------
    root : array, shape (..., n, n)
        ``M^(1/2)``, symmetric.
    inverse : array, shape (..., n, n)
        ``M^(-1/2)``, symmetric.
    """

    root: Array
    inverse: Array


def condition_bound(root: Literal["denman-beavers", "newton-schulz"], steps: int) -> float:
    """Tell how badly conditioned a matrix may be for a number of steps to suffice.

    Below it the iteration itself leaves less than 1e-8 of the identity; rounding comes on top.

    Parameters
    ----------
    root : "denman-beavers" or "newton-schulz"
        Which iteration.
    steps : int
        Its steps.

    Returns
    -------
    float
        Of "denman-beavers" ``4^(steps - 4)``, a bound for both ``mean / smallest`` and
        ``largest / mean`` eigenvalue; of "newton-schulz" ``2.25^(steps - 5)``, a bound for
        the Frobenius norm over the smallest eigenvalue. (A small eigenvalue's error shrinks by
        2 in the root, or by 9/4, in each step until the last few.)

    Raises
    ------
    ValueError
        For another root.

    Examples
    --------
    >>> condition_bound("denman-beavers", 10)
    4096.0
    """
    _checks.one_of("root", root, tuple(STEPS))
    return 4.0 ** (steps - 4) if root == "denman-beavers" else 2.25 ** (steps - 5)


def denman_beavers(m: Array, *, steps: int = 20, xp: Namespace | None = None) -> Roots:
    """Square roots by the iteration of Denman and Beavers (1976).

    ``Y <- (Y + Z^-1)/2, Z <- (Z + Y^-1)/2``, both from the old Y and Z, from ``Y = m / mu`` and
    ``Z = I`` with the mean eigenvalue ``mu``; ``Y sqrt(mu)`` tends to the root and
    ``Z / sqrt(mu)`` to its inverse.

    Parameters
    ----------
    m : array, shape (..., n, n)
        Matrices that are safely positive definite; what a library does with others differs.
    steps : int
        Steps; see `condition_bound`.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    Roots
        In the dtype of `m`. Errors grow with the condition number: beyond 1e7 float32 is of no
        use.

    Examples
    --------
    >>> import numpy as np
    >>> denman_beavers(np.diag([4.0, 9.0])).root.round(6)
    array([[2., 0.],
           [0., 3.]])
    """
    xp = _checks.common_namespace(xp, m=m)
    mu = mean_diagonal(m, xp=xp)[..., None, None]
    y = m / mu
    z = _xp.eye(m.shape[-1], like=m, xp=xp) + 0 * y
    for _ in range(steps):
        y, z = 0.5 * (y + xp.linalg.inv(z)), 0.5 * (z + xp.linalg.inv(y))
    return Roots(y * xp.sqrt(mu), z / xp.sqrt(mu))


def newton_schulz(m: Array, *, steps: int = 30, xp: Namespace | None = None) -> Roots:
    """Square roots by the coupled Newton-Schulz iteration, which multiplies only.

    ``T = (3 I - Z Y)/2, Y <- Y T, Z <- T Z`` from ``Y = m / s`` and ``Z = I``, with the
    Frobenius norm s: then ``|I - m / s| < 1``, which it needs to converge.

    Parameters
    ----------
    m : array, shape (..., n, n)
        Symmetric positive definite matrices.
    steps : int
        Steps; see `condition_bound`.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    Roots
        In the dtype of `m`.

    Examples
    --------
    >>> import numpy as np
    >>> newton_schulz(np.diag([4.0, 9.0])).inverse.round(6)
    array([[0.5     , 0.      ],
           [0.      , 0.333333]])
    """
    xp = _checks.common_namespace(xp, m=m)
    s = frobenius_norm(m, xp=xp)
    identity = _xp.eye(m.shape[-1], like=m, xp=xp)
    y = m / s
    z = identity + 0 * y
    for _ in range(steps):
        t = 1.5 * identity - 0.5 * (z @ y)
        y, z = y @ t, t @ z
    return Roots(y * xp.sqrt(s), z / xp.sqrt(s))


def landmarks(n: int, rank: int) -> tuple[int, ...]:
    """Columns for `nystrom`: evenly spaced, the last one (a layer's bias) always among them.

    Parameters
    ----------
    n : int
        Order of the matrix.
    rank : int
        Wanted number of columns; all of them if there are no more.

    Returns
    -------
    tuple of int
        Ascending indices.

    Examples
    --------
    >>> landmarks(10, 4)
    (1, 4, 6, 9)
    """
    rank = min(rank, n)
    return tuple((k + 1) * n // rank - 1 for k in range(rank))


def nystrom(
    m: Array, columns: tuple[int, ...], *, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Eigenvalues and vectors of the Nystrom approximation through some columns.

    ``Q diag(values) Q^T = C m_SS^+ C^T`` with the columns ``C = m_:S``: the thin singular value
    decomposition of ``C m_SS^(-1/2)``. It is never above m (as quadratic forms), and equal to
    m if those columns span all others.

    Parameters
    ----------
    m : array, shape (..., n, n)
        Finite positive semi-definite matrices.
    columns : tuple of int
        The k indices S.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    values : array, shape (..., k)
        Eigenvalues, descending; directions in which ``m_SS`` is singular to rounding count 0.
    Q : array, shape (..., n, k)
        Orthonormal eigenvectors in the columns.

    Examples
    --------
    >>> import numpy as np
    >>> values, Q = nystrom(np.ones((3, 3)), (2,))
    >>> ((Q * values) @ Q.T).round(6)
    array([[1., 1., 1.],
           [1., 1., 1.],
           [1., 1., 1.]])
    """
    xp = _checks.common_namespace(xp, m=m)
    index = _xp.asarray(list(columns), like=m, dtype=xp.int64, xp=xp)
    c = xp.take(m, index, axis=-1)
    core = xp.take(c, index, axis=-2)
    w, v = xp.linalg.eigh(0.5 * (core + core.mT))
    zero, one = _xp.zeros((), like=m, xp=xp), _xp.ones((), like=m, xp=xp)
    known = w > len(columns) * _xp.eps(m.dtype, xp=xp) * xp.max(w, axis=-1, keepdims=True)
    factor = xp.where(known, 1 / xp.sqrt(xp.where(known, w, one)), zero)
    q, s, _ = xp.linalg.svd((c @ v) * factor[..., None, :], full_matrices=False)
    return s * s, q


def shifted_power(
    values: Array, Q: Array, shift: Array, p: float, *, xp: Namespace | None = None
) -> Array:
    """Power of a low-rank matrix plus a multiple of the identity.

    ``(Q diag(values) Q^T + shift I)^p = shift^p I + Q diag((values + shift)^p - shift^p) Q^T``
    for orthonormal columns Q.

    Parameters
    ----------
    values : array, shape (..., k)
        Eigenvalues, not negative.
    Q : array, shape (..., n, k)
        Their eigenvectors.
    shift : array, shape (...)
        Positive.
    p : float
        Power.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (..., n, n)
        Symmetric.

    Examples
    --------
    >>> import numpy as np
    >>> shifted_power(np.asarray([3.0]), np.asarray([[1.0], [0.0]]), np.asarray(1.0), 0.5)
    array([[2., 0.],
           [0., 1.]])
    """
    xp = _checks.common_namespace(xp, values=values, Q=Q, shift=shift)
    shift = shift[..., None]
    rest = shift**p
    inside = (values + shift) ** p - rest
    return rest[..., None] * _xp.eye(Q.shape[-2], like=Q, xp=xp) + (Q * inside[..., None, :]) @ Q.mT


def damped_roots(
    m: Array,
    damping: Scalar,
    previous: Roots,
    good: Array,
    *,
    root: RootKind = "eigh",
    steps: int | None = None,
    rank: int | None = None,
    dtype: str | None = None,
    ops: Ops = PURE,
    xp: Namespace | None = None,
) -> tuple[Roots, Array, Array]:
    """Roots of ``m + damping I`` and their inverses, always finite.

    The chain is that of `ngd_core.inversion.damped_inverse`: damping raised to the floor, float64
    where that was not used, then the previous roots. Roots are used only if they are inverse to
    each other and their square is M, so a root that has not converged is not used.

    Parameters
    ----------
    m : array, shape (..., n, n)
        Positive semi-definite matrices; symmetrised here. Any scale of entries is fine.
    damping : float or array of shape () or (...)
        Added to the diagonal of `m`, or of its approximation by "nystrom".
    previous : Roots
        Last good roots, or identities.
    good : array of bool, shape (...)
        Whether `previous` is good.
    root : "eigh", "denman-beavers", "newton-schulz" or "nystrom"
        See the module's table.
    steps : int, optional
        Of the two iterations; 20 and 30 if not given.
    rank : int, optional
        Columns for "nystrom", evenly spaced as `landmarks` has them; needed there.
    dtype : "float32", "float64" or None
        Dtype of the computation; None means float64 where there is one.
    ops : Ops
        Replaceable operations.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    roots : Roots
        In the dtype of `m`.
    good : array of bool, shape (...)
        Whether they are good, new or old.
    code : array of int32, shape (...)
        As in `ngd_core.types.CODE_MEANING`.

    Raises
    ------
    ValueError
        For a negative Python `damping`, an unknown root, or options that do not belong to it.

    Examples
    --------
    >>> import numpy as np
    >>> identity = Roots(np.eye(2), np.eye(2))
    >>> roots, good, code = damped_roots(np.diag([3.0, 8.0]), 1.0, identity, np.asarray(False))
    >>> roots.root.round(6).tolist(), bool(good), int(code)
    ([[2.0, 0.0], [0.0, 3.0]], True, 0)
    """
    xp = _checks.common_namespace(xp, m=m, root=previous.root)
    check_root(root, steps, rank)

    def attempt(dtype: DType) -> tuple[Array, ...]:
        return _attempt(m, damping, dtype, root, steps, rank, xp=xp)

    work, double = solve_dtype(dtype, like=m, xp=xp), _xp.double(xp=xp)
    new, inverse, ok, raised = attempt(work)
    code = mild_code(raised, xp=xp)
    if double is not None and double != work:

        def again() -> tuple[Array, ...]:
            second, second_inverse, second_ok, _ = attempt(double)
            first = ok[..., None, None]
            return (
                xp.where(first, new, second),
                xp.where(first, inverse, second_inverse),
                ok | second_ok,
                xp.where(ok, code, _xp.full((), DOUBLE, like=code, xp=xp)),
            )

        new, inverse, ok, code = ops.cond(
            xp.all(ok), lambda: (new, inverse, ok, code), again, xp=xp
        )
    code = fallback_code(ok, good, code, xp=xp)
    usable = ok[..., None, None]
    roots = Roots(xp.where(usable, new, previous.root), xp.where(usable, inverse, previous.inverse))
    return roots, good | ok, code


def check_root(root: str, steps: int | None, rank: int | None) -> None:
    """Reject an unknown root, and options that are missing or belong to another."""
    _checks.one_of("root", root, ROOTS)
    if steps is not None and (root not in STEPS or steps < 1):
        msg = (
            f"steps is {steps} with root {root!r}; expected an integer >= 1 with "
            "'denman-beavers' or 'newton-schulz', and None otherwise."
        )
        raise ValueError(msg)
    if (rank is None) == (root == "nystrom") or (rank is not None and rank < 1):
        msg = (
            f"rank is {rank} with root {root!r}; expected an integer >= 1 with 'nystrom', and "
            "None otherwise."
        )
        raise ValueError(msg)


def _attempt(
    m: Array,
    damping: Scalar,
    dtype: DType,
    root: str,
    steps: int | None,
    rank: int | None,
    *,
    xp: Namespace,
) -> tuple[Array, Array, Array, Array]:
    part = scaled(m, damping, dtype, xp=xp)
    safe = shifted(part, xp=xp)
    if root == "eigh":
        values, vectors = xp.linalg.eigh(part.matrix)
        values = xp.maximum(values, _xp.zeros((), like=values, xp=xp)) + part.shift[..., None]
        side = xp.sqrt(values)[..., None, :]
        roots = Roots((vectors * side) @ vectors.mT, (vectors / side) @ vectors.mT)
    elif root == "nystrom":
        columns = landmarks(m.shape[-1], 1 if rank is None else rank)
        values, vectors = nystrom(part.matrix, columns, xp=xp)
        roots = Roots(
            shifted_power(values, vectors, part.shift, 0.5, xp=xp),
            shifted_power(values, vectors, part.shift, -0.5, xp=xp),
        )
        safe = shifted_power(values, vectors, part.shift, 1.0, xp=xp)
    else:
        iterate = denman_beavers if root == "denman-beavers" else newton_schulz
        roots = iterate(safe, steps=STEPS[root] if steps is None else steps, xp=xp)
    new, inverse = (0.5 * (x + x.mT) for x in roots)
    identity = _xp.eye(m.shape[-1], like=safe, xp=xp)
    ok = part.usable & (_norm(new @ inverse - identity, xp=xp) < RESIDUAL)
    ok = ok & (_norm(new @ new - safe, xp=xp) < RESIDUAL)
    scale = xp.sqrt(part.scale)[..., None, None]
    new, inverse = (_xp.astype(x, m.dtype, xp=xp) for x in (new * scale, inverse / scale))
    finite = xp.isfinite(new) & xp.isfinite(inverse)
    return new, inverse, ok & xp.all(finite, axis=(-2, -1)), part.raised


def _norm(x: Array, *, xp: Namespace) -> Array:
    return frobenius_norm(x, xp=xp)[..., 0, 0]
