"""A table that is looked up and an output layer too: one Kronecker product for both uses.

The block of a table ``W (V, E)`` is its transpose. Looked up, its Fisher is ``G_1 (x) A_1`` with
the tokens' frequencies as diagonal ``A_1``. As output layer ``z = W h`` it is ``G_2 (x) A_2`` with
``G_2 = mean h h^T`` and ``A_2`` the second moment of the gradients at z, of which the diagonal is
kept: no matrix of the vocabulary's order is formed. Their sum is no Kronecker product, and the
damped inverse of the sum would need an eigendecomposition a token.

What is done instead is ours [derived here], no paper's: the product of the sum's two partial
traces. It leaves out the moments between an example's two uses, as K-FAC does between the uses of
any shared weight. A and G are scaled by the traces of their own batch, so averages over parts
of a batch are near those of the whole batch, not equal to them.
"""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace

__all__ = ["product_of_marginals"]


def product_of_marginals(
    first: tuple[Array, Array], second: tuple[Array, Array], *, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Kronecker product with the partial traces of ``G_1 (x) A_1 + G_2 (x) A_2``, up to scale.

    ``A ~ tr(G_1) A_1 + tr(G_2) A_2`` and ``G ~ tr(A_1) G_1 + tr(A_2) G_2``, scaled so that the
    product has the trace of the sum. Where one summand is 0 the product is the other.

    Parameters
    ----------
    first, second : tuple of arrays, shapes (V,) and (E, E)
        Diagonal A and matrix G of two positive semi-definite summands.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    A : array, shape (V,)
        Of trace ``tr(A_1)`` where the second summand is 0, and of trace 1 where the first is.
    G : array, shape (E, E)
        Symmetric, positive semi-definite up to rounding.

    Raises
    ------
    TypeError
        For arrays of several libraries.

    Examples
    --------
    >>> import numpy as np
    >>> first = np.asarray([1.0, 0.0]), np.asarray([[2.0]])
    >>> second = np.asarray([1.0, 3.0]), np.asarray([[0.5]])
    >>> product_of_marginals(first, second)
    (array([0.625, 0.375]), array([[4.]]))
    """
    (A_1, G_1), (A_2, G_2) = first, second
    xp = _checks.common_namespace(xp, A_1=A_1, G_1=G_1, A_2=A_2, G_2=G_2)
    p, q = xp.sum(A_1), xp.sum(A_2)
    t, u = xp.linalg.trace(G_1), xp.linalg.trace(G_2)
    whole = t * p + u * q
    one = _xp.ones((), like=whole, xp=xp)
    some = whole > 0
    whole = xp.where(some, whole, one)
    scale = xp.where(some, (t * p * p + u * q) / whole, one)
    A = xp.where(some, (t * A_1 + u * A_2) * (scale / whole), A_1)
    return A, (p * G_1 + q * G_2) / scale
