"""Coefficients of the natural gradient as a weighted sum of per-example gradients.

For the empirical Fisher ``F = U U^T / n`` of a layer, U holding the n per-example gradients in
its columns, the Sherman-Morrison-Woodbury identity gives

``(lambda I + F)^-1 gbar = U c`` with ``c = (n lambda I_n + K)^-1 1`` and ``K = U^T U``,

where plain averaging is ``c_i = 1/n``.
"""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.inversion import PURE, Ops, damped_inverse, mean_diagonal

__all__ = ["coefficients", "descent_guard", "layer_damping"]


def layer_damping(
    K: Array,
    damping: Scalar,
    *,
    mode: str = "relative",
    floor: float = 1e-8,
    xp: Namespace | None = None,
) -> Array:
    """Damping of each layer's Fisher.

    Parameters
    ----------
    K : array, shape (..., n, n)
        Gram matrices of layers' per-example gradients.
    damping : float or array of shape ()
        "absolute": ``lambda`` itself. "relative": ``rho``, in units of ``tr(K) / n^2``, the mean
        eigenvalue of ``K / n`` (its non-zero ones are those of F).
    mode : "relative" or "absolute"
        Meaning of `damping`.
    floor : float
        Smallest damping.
    xp : namespace, optional
        Array namespace; found from `K` if not given.

    Returns
    -------
    array, shape (...)
        ``lambda``, to be added to F.

    Raises
    ------
    ValueError
        For an unknown mode or a negative Python damping.

    Notes
    -----
    ``tr(K) / n^2 = tr(F) / n`` falls with the size of the batch: under the relative damping a
    batch written down twice is damped by half as much, though its Fisher is the same.

    Examples
    --------
    >>> import numpy as np
    >>> float(layer_damping(np.diag([1.0, 7.0]), 10.0))
    20.0
    """
    _checks.nonnegative(damping=damping)
    _checks.one_of("mode", mode, ("relative", "absolute"))
    xp = _checks.common_namespace(xp, K=K)
    asked = _xp.scalar(damping, like=K, xp=xp)
    if mode == "relative":
        asked = asked * (mean_diagonal(K, xp=xp) / K.shape[-1])
    return xp.maximum(asked, _xp.full(K.shape[:-2], floor, like=K, xp=xp))


def coefficients(
    K: Array,
    damping: Scalar,
    *,
    dtype: str | None = None,
    ops: Ops = PURE,
    xp: Namespace | None = None,
) -> tuple[Array, Array, Array]:
    """Coefficients ``c = (n lambda I + K)^-1 1``, so that ``U c = (lambda I + F)^-1 gbar``.

    The usual printed form ``(1 - (n lambda I + K)^-1 K 1) / (n lambda)`` is the same number, but
    loses digits by cancellation where the damping is small.

    Parameters
    ----------
    K : array, shape (..., n, n)
        Gram matrices, of several layers for example; symmetrised here.
    damping : float or array of shape () or (...)
        ``lambda``, added to the Fisher of the mean loss.
    dtype : "float32", "float64" or None
        Dtype of the factorisation; None means float64 where there is one.
    ops : Ops
        Replaceable operations.
    xp : namespace, optional
        Array namespace; found from `K` if not given.

    Returns
    -------
    c : array, shape (..., n)
        In the dtype of `K`. Negative entries are no error; their sum is positive.
    ok : array of bool, shape (...)
        False if `K` is not finite or the system could not be solved: c is then of no use.
    code : array of int32, shape (...)
        As in `ngd_core.inversion.damped_inverse`.

    Raises
    ------
    ValueError
        If a Python `damping` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> c, ok, code = coefficients(np.diag([2.0, 6.0]), 1.0)
    >>> c.round(6).tolist(), bool(ok), int(code)
    ([0.25, 0.125], True, 0)
    """
    _checks.nonnegative(damping=damping)
    xp = _checks.common_namespace(xp, K=K)
    n = K.shape[-1]
    shift = n * _xp.scalar(damping, like=K, xp=xp)
    none = _xp.zeros((), like=K, dtype=xp.bool, xp=xp)
    identity = xp.broadcast_to(_xp.eye(n, like=K, xp=xp), K.shape)
    inverse, ok, code = damped_inverse(K, shift, identity, none, dtype=dtype, ops=ops, xp=xp)
    return xp.sum(inverse, axis=-1), ok, code


def descent_guard(
    direction: Array, grad: Array, gain: Array, *, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Replace a direction by ``gain * grad`` where it is no descent direction.

    Parameters
    ----------
    direction : array
        Weighted sum of per-example gradients, with weights that may be stale.
    grad : array, shape of `direction`
        Gradient of the mean loss, in the same dtype.
    gain : array, shape ()
        Positive scale, such that the replacement has the size of other directions.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    direction : array
        With ``<direction, grad> > 0`` unless the gradient is zero; not finite if it was not.
    fired : array of bool, shape ()
        Whether it was replaced: the inner product was not above 0, the gradient not zero.

    Examples
    --------
    >>> import numpy as np
    >>> u, fired = descent_guard(np.asarray([-1.0]), np.asarray([2.0]), np.asarray(0.5))
    >>> u.tolist(), bool(fired)
    ([1.0], True)
    """
    xp = _checks.common_namespace(xp, direction=direction, grad=grad)
    fired = (xp.sum(direction * grad) <= 0) & xp.any(grad != 0)
    return xp.where(fired, gain * grad, direction), fired
