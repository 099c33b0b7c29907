"""Second moments held in a low-dimensional basis: bases, compression, and the lifted inverse.

A basis P has orthonormal columns, ``P^T P = I``. With K the inverse of the compressed and damped
matrix ``P^T M P + delta I``, the inverse of ``M + delta I`` is replaced by
``P K P^T + c (I - P P^T)``, in which no matrix of the full order appears.

The method of Kaul and Lall (2023) projects Kronecker factors. Its text could not be had: the forms
here are a reconstruction from their published code, held to identities of linear algebra.
"""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.inversion.spd import safe_eigh

__all__ = [
    "apply_projected",
    "change_basis",
    "compress",
    "orthonormal_basis",
    "range_basis",
    "top_basis",
]


def top_basis(
    m: Array, rank: int, *, dtype: str | None = None, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Eigenvectors of the largest eigenvalues; the best basis of its size, at cubic cost.

    Parameters
    ----------
    m : array, shape (..., d, d)
        Positive semi-definite matrices.
    rank : int
        Columns r of the basis, from 1 to d.
    dtype : "float32", "float64" or None
        Dtype of the factorisation; None means float64 where there is one.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    P : array, shape (..., d, r)
        Orthonormal columns, in the dtype of `m`.
    ok : array of bool, shape (...)
        False where `m` is not finite and P some other basis.

    Raises
    ------
    ValueError
        If `rank` is not from 1 to d.

    Examples
    --------
    >>> import numpy as np
    >>> P, ok = top_basis(np.diag([1.0, 3.0, 2.0]), 1)
    >>> np.abs(P).round(6).tolist(), bool(ok)
    ([[0.0], [1.0], [0.0]], True)
    """
    xp = _checks.common_namespace(xp, m=m)
    _check_rank(rank, m.shape[-1])
    _, vectors, ok = safe_eigh(m, dtype=dtype, xp=xp)
    return vectors[..., :, m.shape[-1] - rank :], ok


def orthonormal_basis(m: Array, *, xp: Namespace | None = None) -> Array:
    """Orthonormal basis of the columns; of Gaussian noise, a uniformly random subspace.

    Noise itself will not do: ``E[P P^T] = I`` for entries of variance 1/r, but ``P^T P`` is far
    from I, and lifting with it scales directions at random.

    Parameters
    ----------
    m : array, shape (..., d, r)
        Columns, not more than rows. Where they are dependent, other directions fill the basis;
        where they are not finite, coordinate axes do.
    xp : namespace, optional
        Array namespace; found from `m` if not given.

    Returns
    -------
    array, shape (..., d, r)
        The factor Q of a QR decomposition.

    Raises
    ------
    ValueError
        If there are more columns than rows.

    Examples
    --------
    >>> import numpy as np
    >>> np.abs(orthonormal_basis(np.asarray([[3.0], [4.0]]))).round(6)
    array([[0.6],
           [0.8]])
    """
    xp = _checks.common_namespace(xp, m=m)
    d, r = m.shape[-2:]
    _check_rank(r, d)
    one = _xp.ones((), like=m, xp=xp)
    usable = xp.all(xp.isfinite(m), axis=(-2, -1))[..., None, None]
    m = xp.where(usable, m, _xp.eye(d, like=m, xp=xp)[:, :r])
    scale = xp.max(xp.abs(m), axis=(-2, -1), keepdims=True)
    q, _ = xp.linalg.qr(m / xp.where(scale > 0, scale, one))
    return q


def range_basis(m: Array, noise: Array, *, power: int = 1, xp: Namespace | None = None) -> Array:
    """Orthonormal basis near the dominant eigenvectors, by a randomised range finder.

    The range of ``m^(1 + power) noise``, orthonormalised after every product: O(d^2 r) where
    `top_basis` costs O(d^3). A former basis may stand for the noise; repeated calls on one
    matrix are then subspace iteration, which ends at the dominant eigenvectors.

    Parameters
    ----------
    m : array, shape (..., d, d)
        Positive semi-definite matrices.
    noise : array, shape (..., d, r)
        Standard normal draws, or a former basis.
    power : int
        Products with `m` after the first.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (..., d, r)
        Orthonormal columns. A matrix of rank r or less is captured entirely.

    Examples
    --------
    >>> import numpy as np
    >>> np.abs(range_basis(np.diag([0.0, 2.0]), np.ones((2, 1))))
    array([[0.],
           [1.]])
    """
    xp = _checks.common_namespace(xp, m=m, noise=noise)
    basis = orthonormal_basis(noise, xp=xp)
    for _ in range(power + 1):
        basis = orthonormal_basis(m @ basis, xp=xp)
    return basis


def compress(m: Array, basis: Array, *, xp: Namespace | None = None) -> Array:
    """Matrix within a basis, ``P^T m P``.

    Its eigenvalues interlace with those of `m` (Cauchy); averaging over batches and compressing
    commute as long as the basis stays.

    Parameters
    ----------
    m : array, shape (..., d, d)
        Symmetric matrices.
    basis : array, shape (..., d, r)
        Orthonormal columns P.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (..., r, r)
        Compressed matrices, symmetrised.

    Examples
    --------
    >>> import numpy as np
    >>> compress(np.diag([1.0, 2.0]), np.asarray([[0.0], [1.0]]))
    array([[2.]])
    """
    _checks.common_namespace(xp, m=m, basis=basis)
    small = basis.mT @ (m @ basis)
    return 0.5 * (small + small.mT)


def change_basis(
    C: Array, old: Array, new: Array, tail: Scalar = 0.0, *, xp: Namespace | None = None
) -> Array:
    """Re-express a compressed matrix in another basis without the full matrix.

    With ``R = new^T old``: ``R C R^T + tail (I - R R^T)``, which is what `compress` gives for the
    matrix ``old C old^T + tail (I - old old^T)``. For ``tail = 0`` and bases of one subspace it is
    exact; otherwise it is as good as that model of the full matrix.

    Parameters
    ----------
    C : array, shape (..., r, r)
        Matrix within the old basis.
    old : array, shape (..., d, r)
        Old basis, orthonormal columns.
    new : array, shape (..., d, s)
        New basis, orthonormal columns.
    tail : float or array of shape () or (...)
        Mean eigenvalue assumed outside the old basis.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (..., s, s)
        Matrix within the new basis, symmetrised.

    Examples
    --------
    >>> import numpy as np
    >>> one, two = np.asarray([[1.0], [0.0]]), np.asarray([[0.0], [1.0]])
    >>> change_basis(np.asarray([[5.0]]), one, two, tail=0.5)
    array([[0.5]])
    """
    xp = _checks.common_namespace(xp, C=C, old=old, new=new)
    rotation = new.mT @ old
    tail = _xp.scalar(tail, like=C, xp=xp)[..., None, None]
    rest = _xp.eye(new.shape[-1], like=C, xp=xp) - rotation @ rotation.mT
    moved = rotation @ (C @ rotation.mT) + tail * rest
    return 0.5 * (moved + moved.mT)


def apply_projected(
    basis: Array,
    K: Array,
    outside: Scalar,
    x: Array,
    *,
    left: bool = True,
    xp: Namespace | None = None,
) -> Array:
    """Apply ``P K P^T + c (I - P P^T)`` to columns, or to rows, in O(d r) each.

    With ``c = 0`` (plain) nothing outside the basis moves. With ``c = 1 / (delta + tau)``
    (complemented), ``tau`` the mean eigenvalue outside, the rest is scaled like its average. With
    P the dominant eigenvectors, ``c = 1 / delta`` is the low-rank inverse of randomised K-FAC
    (Puiu 2022), whose error in the 2-norm is exactly
    ``lambda_{r+1} / (delta (delta + lambda_{r+1}))``.

    Parameters
    ----------
    basis : array, shape (..., d, r)
        Orthonormal columns P.
    K : array, shape (..., r, r)
        What acts within the basis.
    outside : float or array of shape () or (...)
        Factor c on what the basis leaves out.
    x : array, shape (..., d, k) or (..., k, d)
        Columns, or rows if not `left`.
    left : bool
        Whether the matrix stands on the left of `x`.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape of `x`
        Product.

    Examples
    --------
    >>> import numpy as np
    >>> P, K = np.asarray([[1.0], [0.0]]), np.asarray([[0.25]])
    >>> apply_projected(P, K, 2.0, np.ones((2, 1)))
    array([[0.25],
           [2.  ]])
    """
    xp = _checks.common_namespace(xp, basis=basis, K=K, x=x)
    c = _xp.scalar(outside, like=x, xp=xp)[..., None, None]
    within = K - c * _xp.eye(K.shape[-1], like=K, xp=xp)
    if left:
        return basis @ (within @ (basis.mT @ x)) + c * x
    return ((x @ basis) @ within) @ basis.mT + c * x


def _check_rank(rank: int, d: int) -> None:
    if not 1 <= rank <= d:
        msg = f"The basis has {rank} columns for vectors of length {d}; expected 1 to {d}."
        raise ValueError(msg)
