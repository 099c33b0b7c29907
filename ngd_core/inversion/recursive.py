"""An inverse second moment that follows the average batch by batch, without factorising it.

For an average ``C <- alpha C + V^T V`` the matrix inversion lemma gives the new inverse from the
old one with one system of the order of the batch. What started as ``(C_0 + delta I)^-1`` is after
k batches exactly ``(C_k + alpha^k delta I)^-1``: the damping is forgotten with the old batches, so
that the inverse must be made anew now and then.

The recursion is part of the method of Kaul and Lall (2023), whose text could not be had; the
symmetrisation, the account of the damping and the halt are ours.
"""

from __future__ import annotations

from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.inversion.ops import PURE, Ops
from ngd_core.inversion.spd import PROBE, damped_inverse, safe_eigh
from ngd_core.types import KEPT

__all__ = [
    "RecursiveInverse",
    "follow",
    "identity_recursive",
    "lag",
    "recursive_update",
    "resync",
]


class RecursiveInverse(NamedTuple):
    """An inverse, and how far it has followed the average since it was last made anew.

    Parameters
    ----------
    matrix : array, shape (..., n, n)
        ``(C + share * delta I)^-1`` for C the average at the last batch followed and ``delta``
        the damping at `resync`; the identity before that.
    share : array, shape (...)
        Part of that damping that is left: the product of ``alpha`` over the batches followed.
    good : array of bool, shape (...)
        Whether it was once computed.
    following : array of bool, shape (...)
        Whether no batch has passed it by since.
    failed : array of bool, shape (...)
        Whether that was because an update could not be used.
    """

    matrix: Array
    share: Array
    good: Array
    following: Array
    failed: Array


def identity_recursive(
    stack: tuple[int, ...], n: int, *, like: Array, xp: Namespace
) -> RecursiveInverse:
    """Identity matrix, marked as not good.

    Parameters
    ----------
    stack : tuple of int
        Leading axes.
    n : int
        Order.
    like : array
        Template of dtype and device.
    xp : namespace
        Array namespace.

    Returns
    -------
    RecursiveInverse
        No two of its arrays share memory.

    Examples
    --------
    >>> import numpy as np
    >>> identity_recursive((), 1, like=np.zeros(()), xp=np).matrix
    array([[1.]])
    """

    def no() -> Array:
        return _xp.zeros(stack, like=like, dtype=xp.bool, xp=xp)

    return RecursiveInverse(
        matrix=_xp.eye(n, like=like, xp=xp) + _xp.zeros((*stack, n, n), like=like, xp=xp),
        share=_xp.ones(stack, like=like, xp=xp),
        good=no(),
        following=no(),
        failed=no(),
    )


def recursive_update(
    K: Array, V: Array, alpha: Scalar, *, dtype: str | None = None, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Inverse of ``alpha K^-1 + V^T V``, by a block update with forgetting.

    ``[K - K V^T (alpha I + V K V^T)^-1 V K] / alpha``, symmetrised. Without that, and with
    ``V K`` taken as the transpose of ``K V^T``, whatever is antisymmetric grows by ``1 / alpha``
    a step until it is all there is. The system of order m is solved by its eigenvalues, which
    are at least alpha and are taken so, whatever rounding did.

    Parameters
    ----------
    K : array, shape (..., n, n)
        Positive definite inverses.
    V : array, shape (..., m, n)
        Samples in rows, scaled such that ``V^T V`` is what is added: for an average
        ``C <- alpha C + (1 - alpha) Y^T Y`` that is ``sqrt(1 - alpha) Y``.
    alpha : float or array of shape () or (...)
        Weight kept by what went before, in (0, 1].
    dtype : "float32", "float64" or None
        Dtype of the eigendecomposition of order m; None means float64 where there is one.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    K : array, shape (..., n, n)
        Symmetric. One update with m rows equals m updates with one row each, `alpha` applied in
        the first of them only.
    ok : array of bool, shape (...)
        False where it is not finite, has a diagonal that is not positive, or fails on one probe
        vector, a combination of the samples, to be the inverse asked for; it must not be used
        then.

    Raises
    ------
    ValueError
        If a Python `alpha` is not in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> K, ok = recursive_update(np.asarray([[2.0]]), np.asarray([[3.0]]), 0.5)
    >>> bool(np.allclose(K, 1 / (0.5 / 2.0 + 9.0))), bool(ok)
    (True, True)
    """
    _checks.unit_interval(alpha=alpha)
    xp = _checks.common_namespace(xp, K=K, V=V)
    asked = _xp.scalar(alpha, like=K, xp=xp)
    usable = (asked > 0) & xp.isfinite(asked)
    alpha = xp.where(usable, asked, _xp.ones((), like=K, xp=xp))
    wide = K @ V.mT
    values, vectors, ok = safe_eigh(V @ wide, dtype=dtype, xp=xp)
    roots = (wide @ vectors) / xp.sqrt(values + alpha[..., None])[..., None, :]
    new = (K - roots @ roots.mT) / alpha[..., None, None]
    new = 0.5 * (new + new.mT)
    probe = V.mT @ xp.cos(_xp.arange(V.shape[-2], like=K, xp=xp))[:, None]
    before = K @ probe
    size = xp.max(xp.abs(before), axis=(-2, -1), keepdims=True)
    size = xp.where(size > 0, size, _xp.ones((), like=size, xp=xp))
    probe, before = alpha[..., None, None] * (probe / size), before / size
    error = xp.max(xp.abs(new @ (probe + V.mT @ (V @ before)) - before), axis=(-2, -1))
    ok = ok & usable & (error < PROBE)
    ok = ok & xp.all(xp.linalg.diagonal(new) > 0, axis=-1)
    return new, ok & xp.all(xp.isfinite(new), axis=(-2, -1))


def follow(
    inverse: RecursiveInverse,
    V: Array,
    alpha: Scalar,
    *,
    halt_below: float = 0.5,
    dtype: str | None = None,
    xp: Namespace | None = None,
) -> RecursiveInverse:
    """Let an inverse follow one batch, if it can.

    It halts, and stays as it is until `resync`, once less than `halt_below` of the damping would
    be left: otherwise the inverse of a direction that no batch excites (a dead unit, a constant
    pixel) would grow by ``1 / alpha`` a step without end.

    Parameters
    ----------
    inverse : RecursiveInverse
        Before the batch.
    V : array, shape (..., m, n)
        Scaled samples in rows, as for `recursive_update`.
    alpha : float or array of shape ()
        Weight kept by what went before.
    halt_below : float
        Least share of the damping, in [0, 1]; 0 never halts, 1 never follows.
    dtype : "float32", "float64" or None
        As for `recursive_update`.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    RecursiveInverse
        After the batch. An update that cannot be used leaves the matrix and marks the failure.

    Raises
    ------
    ValueError
        If a Python `alpha` or `halt_below` is not in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> inverse = identity_recursive((), 1, like=np.zeros(()), xp=np)
    >>> inverse, _ = resync(inverse, np.asarray([[4.0]]), 1.0)
    >>> inverse = follow(inverse, np.sqrt(0.25) * np.asarray([[2.0]]), 0.75)
    >>> float(1 / inverse.matrix[0, 0]), float(inverse.share)
    (4.75, 0.75)
    """
    _checks.unit_interval(halt_below=halt_below)
    xp = _checks.common_namespace(xp, inverse=inverse.matrix, V=V)
    new, ok = recursive_update(inverse.matrix, V, alpha, dtype=dtype, xp=xp)
    share = inverse.share * _xp.scalar(alpha, like=inverse.share, xp=xp)
    tried = inverse.good & inverse.following & (share >= halt_below)
    done = tried & ok
    return RecursiveInverse(
        matrix=xp.where(done[..., None, None], new, inverse.matrix),
        share=xp.where(done, share, inverse.share),
        good=inverse.good,
        following=done,
        failed=inverse.failed | (tried & ~ok),
    )


def lag(inverse: RecursiveInverse, *, xp: Namespace) -> RecursiveInverse:
    """Let a batch pass an inverse by; it follows no other until `resync`.

    Parameters
    ----------
    inverse : RecursiveInverse
        Before the batch.
    xp : namespace
        Array namespace.

    Returns
    -------
    RecursiveInverse
        The same matrix, no longer following.

    Examples
    --------
    >>> import numpy as np
    >>> inverse = identity_recursive((), 1, like=np.zeros(()), xp=np)
    >>> inverse, _ = resync(inverse, np.eye(1), 1.0)
    >>> bool(inverse.following), bool(lag(inverse, xp=np).following)
    (True, False)
    """
    return inverse._replace(
        following=_xp.zeros(inverse.following.shape, like=inverse.following, xp=xp)
    )


def resync(
    inverse: RecursiveInverse,
    C: Array,
    damping: Scalar,
    *,
    dtype: str | None = None,
    ops: Ops = PURE,
    xp: Namespace | None = None,
) -> tuple[RecursiveInverse, Array]:
    """Make the inverse anew from the average, with all of its damping.

    Parameters
    ----------
    inverse : RecursiveInverse
        Stays where the average cannot be used.
    C : array, shape (..., n, n)
        Average second moment.
    damping : float or array of shape () or (...)
        ``delta``, added to the diagonal of C.
    dtype : "float32", "float64" or None
        Dtype of the factorisation; None means float64 where there is one.
    ops : Ops
        Replaceable operations.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    inverse : RecursiveInverse
        ``(C + delta I)^-1`` with a share of 1.
    code : array of int32, shape (...)
        As in `ngd_core.types.CODE_MEANING`.

    Raises
    ------
    ValueError
        If a Python `damping` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> inverse = identity_recursive((), 1, like=np.zeros(()), xp=np)
    >>> inverse, code = resync(inverse, np.asarray([[3.0]]), 1.0)
    >>> float(inverse.matrix[0, 0].round(6)), int(code)
    (0.25, 0)
    """
    xp = _checks.common_namespace(xp, inverse=inverse.matrix, C=C)
    matrix, good, code = damped_inverse(
        C, damping, inverse.matrix, inverse.good, dtype=dtype, ops=ops, xp=xp
    )
    fresh = code < KEPT
    one = _xp.ones((), like=inverse.share, xp=xp)
    return RecursiveInverse(
        matrix=matrix,
        share=xp.where(fresh, one, inverse.share),
        good=good,
        following=inverse.following | fresh,
        failed=inverse.failed & ~fresh,
    ), code
