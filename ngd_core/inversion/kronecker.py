"""Linear algebra of damped Kronecker products, without forming them.

In row-major flattening ``(G (x) A) vec(V) = vec(G V A)`` for symmetric factors. A may be given as
its diagonal, with one axis less than G.
"""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.inversion.diagonal import is_diagonal

__all__ = ["eigenbasis_solve", "kronecker_dense", "kronecker_product", "kronecker_solve_eigh"]


def kronecker_product(G: Array, A: Array, V: Array, *, xp: Namespace | None = None) -> Array:
    """Product ``G V A``, that is ``(G (x) A) vec(V)``.

    Parameters
    ----------
    G : array, shape (..., o, o)
        Output-side factor, or its inverse.
    A : array, shape (..., d, d) or (..., d)
        Input-side factor, or its inverse, or the diagonal of it.
    V : array, shape (..., o, d)
        Block.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (..., o, d)
        Product.

    Examples
    --------
    >>> import numpy as np
    >>> kronecker_product(2 * np.eye(1), np.diag([1.0, 3.0]), np.ones((1, 2)))
    array([[2., 6.]])
    """
    _checks.common_namespace(xp, G=G, A=A, V=V)
    return (G @ V) * A[..., None, :] if is_diagonal(A, G) else (G @ V) @ A


def kronecker_solve_eigh(
    G: tuple[Array, Array],
    A: tuple[Array, Array],
    V: Array,
    damping: Scalar,
    *,
    xp: Namespace | None = None,
) -> Array:
    """Solution U of ``G U A + damping U = V`` from eigendecompositions.

    ``U = Q_G [(Q_G^T V Q_A) / (d_G d_A^T + damping)] Q_A^T``, exact for the damped product.

    Parameters
    ----------
    G : tuple of arrays, shapes (..., o) and (..., o, o)
        Eigenvalues ``d_G`` and eigenvectors ``Q_G``.
    A : tuple of arrays, shapes (..., d) and (..., d, d) or (..., d)
        Eigenvalues ``d_A`` and eigenvectors ``Q_A``, or the diagonal of ``Q_A``.
    V : array, shape (..., o, d)
        Right-hand side.
    damping : float or array of shape ()
        Added to the eigenvalues of the product; must keep them from 0.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (..., o, d)
        Solution.

    Examples
    --------
    >>> import numpy as np
    >>> one = (np.ones(1), np.ones((1, 1)))
    >>> kronecker_solve_eigh(one, one, np.ones((1, 1)), 1.0)
    array([[0.5]])
    """
    (g, q_g), (a, q_a) = G, A
    xp = _checks.common_namespace(xp, q_g=q_g, q_a=q_a, V=V)
    spectrum = g[..., :, None] * a[..., None, :] + _xp.scalar(damping, like=g, xp=xp)
    return eigenbasis_solve(q_g, q_a, V, spectrum, xp=xp)


def eigenbasis_solve(
    Q_G: Array, Q_A: Array, V: Array, spectrum: Array, *, xp: Namespace | None = None
) -> Array:
    """Product ``Q_G [(Q_G^T V Q_A) / spectrum] Q_A^T``.

    The inverse of ``(Q_G (x) Q_A) diag(spectrum) (Q_G (x) Q_A)^T``, whose eigenvalues need not be
    products of two factors' eigenvalues.

    Parameters
    ----------
    Q_G : array, shape (..., o, o)
        Orthogonal basis of the output side, in the columns.
    Q_A : array, shape (..., d, d) or (..., d)
        Orthogonal basis of the input side, in the columns; or the diagonal of one.
    V : array, shape (..., o, d)
        Right-hand side.
    spectrum : array, shape (..., o, d)
        Eigenvalues, none of them 0.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (..., o, d)
        Solution.

    Examples
    --------
    >>> import numpy as np
    >>> eigenbasis_solve(np.eye(1), np.eye(2), np.ones((1, 2)), np.asarray([[2.0, 4.0]]))
    array([[0.5 , 0.25]])
    """
    _checks.common_namespace(xp, Q_G=Q_G, Q_A=Q_A, V=V, spectrum=spectrum)
    if is_diagonal(Q_A, Q_G):
        side = Q_A[..., None, :]
        return (Q_G @ (((Q_G.mT @ V) * side) / spectrum)) * side
    return (Q_G @ (((Q_G.mT @ V) @ Q_A) / spectrum)) @ Q_A.mT


def kronecker_dense(G: Array, A: Array, *, xp: Namespace | None = None) -> Array:
    """Form ``G (x) A`` as a matrix; for small layers and for checking.

    Parameters
    ----------
    G : array, shape (..., o, o)
        Output-side factor.
    A : array, shape (..., d, d)
        Input-side factor.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (..., o d, o d)
        Entry ``((i, j), (k, l))`` is ``G_ik A_jl``.

    Examples
    --------
    >>> import numpy as np
    >>> kronecker_dense(np.diag([1.0, 2.0]), 3 * np.eye(1))
    array([[3., 0.],
           [0., 6.]])
    """
    xp = _checks.common_namespace(xp, G=G, A=A)
    n = G.shape[-1] * A.shape[-1]
    product = G[..., :, None, :, None] * A[..., None, :, None, :]
    return xp.reshape(product, (*product.shape[:-4], n, n))
