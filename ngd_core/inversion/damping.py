"""How one damping for ``G (x) A + lambda I`` is shared between the two factors."""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.inversion.diagonal import is_diagonal

__all__ = ["factored_damping", "mean_diagonal"]


def mean_diagonal(m: Array, *, xp: Namespace) -> Array:
    """Mean eigenvalue ``tr(m) / n`` of symmetric matrices.

    Parameters
    ----------
    m : array, shape (..., n, n)
        Matrices.
    xp : namespace
        Array namespace.

    Returns
    -------
    array, shape (...)
        Means of the diagonals.

    Examples
    --------
    >>> import numpy as np
    >>> mean_diagonal(np.asarray([[1.0, 5.0], [5.0, 3.0]]), xp=np)
    np.float64(2.0)
    """
    return xp.mean(xp.linalg.diagonal(m), axis=-1)


def factored_damping(
    A: Array, G: Array, damping: Scalar, *, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Factored Tikhonov damping with the trace norm.

    ``(A + pi sqrt(lambda) I) (x) (G + sqrt(lambda) / pi I)`` with
    ``pi^2 = (tr A / dim A) / (tr G / dim G)`` replaces ``A (x) G + lambda I``. The difference,
    ``pi sqrt(lambda) I (x) G + sqrt(lambda) / pi A (x) I``, is positive semi-definite, and its
    trace is smallest at this pi (Martens and Grosse 2015, section 6.3). Replacing ``(A, G)`` by
    ``(c A, G / c)`` changes nothing.

    Parameters
    ----------
    A : array, shape (..., d, d) or (..., d)
        Input factor, or its diagonal if it has no more.
    G : array, shape (..., o, o)
        Output-gradient factor, such that the product is the Fisher of the mean loss.
    damping : float or array of shape ()
        ``lambda``, added to that Fisher.
    xp : namespace, optional
        Array namespace; found from the factors if not given.

    Returns
    -------
    damping_a, damping_g : array, shape (...)
        What to add to the diagonals of A and G. If either factor has no trace both are
        ``sqrt(lambda)``; the Fisher is then zero, so both factors should be taken as zero for the
        product to be ``lambda I``, as `ngd_core.inversion.refresh_inverse` does.

    Raises
    ------
    TypeError
        For mixed or integer arrays.
    ValueError
        If a Python `damping` is negative, or a factor is not square.

    Examples
    --------
    >>> import numpy as np
    >>> a, g = factored_damping(4.0 * np.eye(3), np.eye(2), 0.01)
    >>> round(float(a), 3), round(float(g), 3)
    (0.2, 0.05)
    """
    _checks.nonnegative(damping=damping)
    xp = _checks.common_namespace(xp, A=A, G=G)
    _checks.floating(xp, A=A, G=G)
    _checks.square(**({"G": G} if is_diagonal(A, G) else {"A": A, "G": G}))
    root = xp.sqrt(_xp.scalar(damping, like=A, xp=xp))
    a = xp.mean(A, axis=-1) if is_diagonal(A, G) else mean_diagonal(A, xp=xp)
    g = mean_diagonal(G, xp=xp)
    both = (a > 0) & (g > 0)
    one = _xp.ones((), like=a, xp=xp)
    a, g = xp.sqrt(xp.where(both, a, one)), xp.sqrt(xp.where(both, g, one))
    return root * (a / g), root * (g / a)
