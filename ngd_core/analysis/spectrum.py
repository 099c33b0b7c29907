"""Numbers that are functions of the eigenvalues of a Fisher matrix alone.

They take eigenvalues from anywhere: `eigenvalues` by Gram duality, `kronecker_spectrum`, a dense
`eigh`. Eigenvalues that are zero may be left out where the number of parameters is given.
"""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar

__all__ = ["condition_number", "effective_dimension", "log_determinant"]


def _border(xp: Namespace | None, values: Array, damping: Scalar) -> tuple[Namespace, Array]:
    xp = _checks.common_namespace(xp, eigenvalues=values)
    _checks.floating(xp, eigenvalues=values)
    _checks.rank(1, 1, eigenvalues=values)
    return xp, _xp.scalar(damping, like=values, xp=xp)


def log_determinant(
    eigenvalues: Array,
    damping: Scalar,
    *,
    parameters: int | None = None,
    xp: Namespace | None = None,
) -> Array:
    """Logarithm of the determinant of the damped Fisher, ``logdet(F + lambda I)``.

    ``P log lambda + sum_i log(1 + sigma_i / lambda)``, which is the Gram matrix's
    ``(P - R) log lambda + logdet(K + lambda I)`` for R <= P rows. For R > P the Gram matrix has
    R - P zeros more than F has parameters; give the largest P eigenvalues, as `eigenvalues` does.

    Parameters
    ----------
    eigenvalues : array, shape (r,)
        ``sigma``, at least 0; all that are not zero.
    damping : float or array of shape ()
        ``lambda > 0``, added to the Fisher of the mean loss.
    parameters : int or None
        P, the order of F; None means r.
    xp : namespace, optional
        Array namespace; found from the eigenvalues if not given.

    Returns
    -------
    array, shape ()
        In the dtype of the eigenvalues.

    Raises
    ------
    ValueError
        If a Python `damping` is not above 0, or there are more eigenvalues than parameters.

    Examples
    --------
    >>> import numpy as np
    >>> float(log_determinant(np.asarray([1.0]), 1.0, parameters=3).round(6))
    0.693147
    """
    _checks.positive(damping=damping)
    xp, damping = _border(xp, eigenvalues, damping)
    count = eigenvalues.shape[0]
    parameters = count if parameters is None else parameters
    if parameters < count:
        msg = (
            f"there are {count} eigenvalues for {parameters} parameters; expected at most that "
            "many: leave out the zeros that a Gram matrix has more."
        )
        raise ValueError(msg)
    return parameters * xp.log(damping) + xp.sum(xp.log1p(eigenvalues / damping))


def effective_dimension(
    eigenvalues: Array, damping: Scalar, *, xp: Namespace | None = None
) -> Array:
    """Effective dimension: how many directions the data determine, ``tr F (F + lambda I)^-1``.

    ``sum_i sigma_i / (sigma_i + lambda)``: eigenvalues far above the damping count 1, those far
    below 0. Zeros may be left out.

    Parameters
    ----------
    eigenvalues : array, shape (r,)
        ``sigma``, at least 0.
    damping : float or array of shape ()
        ``lambda > 0``, added to the Fisher of the mean loss.
    xp : namespace, optional
        Array namespace; found from the eigenvalues if not given.

    Returns
    -------
    array, shape ()
        Between 0 and the rank, in the dtype of the eigenvalues.

    Raises
    ------
    ValueError
        If a Python `damping` is not above 0.

    Examples
    --------
    >>> import numpy as np
    >>> float(effective_dimension(np.asarray([3.0, 1.0, 0.0]), 1.0))
    1.25
    """
    _checks.positive(damping=damping)
    xp, damping = _border(xp, eigenvalues, damping)
    return xp.sum(eigenvalues / (eigenvalues + damping))


def condition_number(
    eigenvalues: Array, damping: Scalar = 0.0, *, xp: Namespace | None = None
) -> Array:
    """Condition of the damped matrix, ``(max sigma + lambda) / (min sigma + lambda)``.

    Parameters
    ----------
    eigenvalues : array, shape (r,)
        ``sigma``, at least 0; *all* of them, the zeros too.
    damping : float or array of shape ()
        ``lambda >= 0``, added to the matrix.
    xp : namespace, optional
        Array namespace; found from the eigenvalues if not given.

    Returns
    -------
    array, shape ()
        Infinite where the matrix is singular.

    Raises
    ------
    ValueError
        If a Python `damping` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> float(condition_number(np.asarray([3.0, 0.0]))), float(condition_number(np.ones(2)))
    (inf, 1.0)
    """
    _checks.nonnegative(damping=damping)
    xp, damping = _border(xp, eigenvalues, damping)
    most, least = xp.max(eigenvalues) + damping, xp.min(eigenvalues) + damping
    regular = least > 0
    infinite = _xp.full((), float("inf"), like=least, xp=xp)
    ratio = most / xp.where(regular, least, _xp.ones((), like=least, xp=xp))
    return xp.where(regular | xp.isnan(least), ratio, infinite)
