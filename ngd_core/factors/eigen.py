"""Second moments of per-example gradients in a Kronecker basis: the scales of EKFAC.

With ``Q = Q_G (x) Q_A`` orthogonal, a block of the Fisher is approximated by ``Q diag(S) Q^T``. In
a given basis the diagonal of ``Q^T F Q`` is the best S in Frobenius norm (George et al. 2018), and
it is a mean of squares: ``S_ij = (1/N) sum_mn (Q_G^T u_mn Q_A)_ij^2`` with the gradient
``u_mn = sum_t g_mnt [x_nt; 1]^T`` of example n, summed over positions before it is squared.
"""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors.sharing import Rows

__all__ = ["eigen_scales", "rebase_scales"]

LARGEST = 2**18
"""Largest number of entries of per-example gradients that are held at once: what stays in a
processor's cache, beyond which a small convolution took half as long again ..."""

PIECES = 32
"""... if that does not cut a batch into more pieces than this; every piece is traced."""


def eigen_scales(canonical: Rows, Q_A: Array, Q_G: Array, *, bias: bool, xp: Namespace) -> Array:
    """Diagonal of the Fisher of one batch in the basis ``Q_G (x) Q_A``.

    Without shared positions it is ``((Y Q_G)^2)^T ((X Q_A)^2) / N``, squares entry by entry, and no
    per-example gradient is formed. With T > 1 positions the rows are rotated first, and gradients
    in the basis are formed for some examples at a time: as many as hold `LARGEST` (2^18) numbers,
    at least one, but not fewer than a `PIECES`-th (32nd) of the batch, since each piece is a part
    of a traced program. So they take the memory of 2^18 numbers, or of the gradients of a 32nd of
    the batch if that is more; as much again for their squares.

    Parameters
    ----------
    canonical : Rows
        Inputs ``(*stack, N, T, inputs)`` and gradients ``(*stack, M, N, T, rows)``; the M
        back-propagated vectors of an example are summed.
    Q_A : array, shape (*stack, columns, columns)
        Orthogonal basis of the input side, in the columns.
    Q_G : array, shape (*stack, rows, rows)
        Orthogonal basis of the output side, in the columns.
    bias : bool
        Whether the inputs are ``[x; 1]``.
    xp : namespace
        Array namespace.

    Returns
    -------
    array, shape (*stack, rows, columns)
        Mean over examples, ``>= 0``; the sum of its entries is the trace of the Fisher, whatever
        the basis.

    Examples
    --------
    >>> import numpy as np
    >>> canonical = Rows(np.asarray([[[1.0]], [[3.0]]]), np.asarray([[[[2.0]], [[1.0]]]]))
    >>> eigen_scales(canonical, np.eye(2), np.eye(1), bias=True, xp=np)
    array([[6.5, 2.5]])
    """
    x, y = _rotated(canonical.x, Q_A, bias=bias, xp=xp), _rotated(canonical.y, Q_G, xp=xp)
    *stack, n, t, columns = x.shape
    m, rows = y.shape[-4], y.shape[-1]
    if t == 1:
        x, y = x[..., 0, :], xp.sum(y[..., 0, :] ** 2, axis=-3)
        return y.mT @ x**2 / n
    total = _xp.zeros((*stack, rows, columns), like=x, xp=xp)
    size = piece(n, m * rows * columns * (stack[0] if stack else 1))
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        u = y[..., part, :, :].mT @ x[..., None, part, :, :]
        total = total + xp.sum(u**2, axis=(-4, -3))
    return total / n


def _rotated(rows: Array, basis: Array, *, bias: bool = False, xp: Namespace) -> Array:
    """``[x; 1]^T Q`` of every row, in one product, without a copy of the rows for the 1."""
    stack = basis.shape[:-2]
    flat = xp.reshape(rows, (*stack, -1, rows.shape[-1]))
    flat = flat @ basis[..., :-1, :] + basis[..., -1:, :] if bias else flat @ basis
    return xp.reshape(flat, (*rows.shape[:-1], basis.shape[-1]))


def piece(examples: int, numbers: int) -> int:
    """Examples whose gradients, of so many numbers each, are formed at once.

    Parameters
    ----------
    examples : int
        Examples of the batch.
    numbers : int
        Entries of the gradients of one of them.

    Returns
    -------
    int
        See `eigen_scales`.

    Examples
    --------
    >>> piece(512, 2**10), piece(512, 2**20)
    (256, 16)
    """
    return max(LARGEST // numbers, -(-examples // PIECES), 1)


def rebase_scales(
    S: Array,
    old: tuple[Array, Array],
    new: tuple[Array, Array],
    *,
    xp: Namespace | None = None,
) -> Array:
    """Diagonal of ``Q diag(S) Q^T`` in another basis.

    ``S'_ij = sum_kl (R_G)_ik^2 (R_A)_jl^2 S_kl`` with ``R = Q'^T Q``. The squares of an orthogonal
    matrix sum to 1 along rows and columns, so the sum of the entries stays, and with it the trace
    of the approximation. Signs and order of the basis vectors play no part. Derived here.

    Parameters
    ----------
    S : array, shape (..., rows, columns)
        Scales in the old basis.
    old : tuple of arrays, shapes (..., columns, columns) and (..., rows, rows)
        ``(Q_A, Q_G)``, orthogonal.
    new : tuple of arrays, shapes (..., columns, columns) and (..., rows, rows)
        ``(Q_A', Q_G')``, orthogonal.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (..., rows, columns)
        Scales in the new basis.

    Raises
    ------
    TypeError
        For arrays of several libraries.

    Examples
    --------
    >>> import numpy as np
    >>> swap = np.asarray([[0.0, -1.0], [1.0, 0.0]])
    >>> one = np.eye(1)
    >>> rebase_scales(np.asarray([[1.0, 2.0]]), (np.eye(2), one), (swap, one))
    array([[2., 1.]])
    """
    _checks.common_namespace(xp, S=S, old=old[0], new=new[0])
    turn_a, turn_g = (q.mT @ p for p, q in zip(old, new, strict=True))
    return turn_g**2 @ S @ (turn_a**2).mT
