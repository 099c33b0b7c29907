"""How far to go along given directions: the minimum of the quadratic model among their sums.

Near the parameters the objective h is modelled by

``M(delta) = h + grad . delta + 1/2 delta^T (F + (lambda + eta) I) delta``

with F the exact Fisher of the batch, lambda the damping and eta the coefficient of a quadratic
penalty ``eta/2 |theta|^2`` that is part of h, so that ``grad`` has its gradient in it (Martens and
Grosse 2015). Among ``delta = sum_i c_i v_i`` the minimum solves the k x k system

``K c = -[grad . v_i]``,  ``K_ij = v_i^T F v_j + (lambda + eta) v_i . v_j``

With one direction that is the step size, ``alpha = -grad . v / K_11``; with the preconditioned
gradient and the step before it (``delta = alpha Delta + mu delta_0``) it is step size and
momentum, and on a fixed quadratic exactly the method of preconditioned conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.step._mappings import entries, inner, same_shapes

__all__ = ["QuadraticStep", "quadratic_step"]

Key = TypeVar("Key")
MARGIN = 8
"""Eigenvalues of K, scaled to a unit diagonal, below this many k times epsilon count as zero."""


class QuadraticStep(NamedTuple):
    """Minimum of the quadratic model among the sums of given directions.

    Parameters
    ----------
    step : dict of arrays
        ``delta``, to be *added* to the parameters (``sgd(params, step, -1.0)``); in the gradients'
        dtype.
    coefficients : array, shape (k,)
        ``c``: for k = 2 the papers' ``alpha`` and ``mu``. Negative for a direction that points
        uphill, as a preconditioned gradient does.
    change : array, shape ()
        ``M(delta) - M(0) = 1/2 grad . delta``, damping included; never above 0.
    square : array, shape ()
        ``|delta|^2``.
    """

    step: dict[Any, Array]
    coefficients: Array
    change: Array
    square: Array


def quadratic_step(
    inner_fisher: Array,
    directions: Sequence[Mapping[Key, Array]],
    grads: Mapping[Key, Array],
    damping: Scalar,
    *,
    weight_decay: Scalar = 0.0,
    xp: Namespace | None = None,
) -> QuadraticStep:
    """Minimise the quadratic model over the sums of the directions.

    Parameters
    ----------
    inner_fisher : array, shape (k, k)
        ``v_i^T F v_j`` without damping, F the exact Fisher of the mean loss on the batch. Either
        `ngd_core.factors.fisher_inner` of the records of a backward pass, or, where forward-mode
        differentiation is at hand, ``(1/N) sum_n (J_n v_i)^T F_R (J_n v_j)`` from the products
        ``J_n v`` of the outputs' Jacobian and the loss Hessian ``F_R`` of the outputs.
    directions : sequence of k mappings of arrays
        ``v_i``, of either sign. What a direction has no entry for, it leaves alone. The step before
        is all zeros at the start; that is an ordinary input.
    grads : mapping of arrays
        Gradients of the mean loss h, a penalty's ``weight_decay * theta`` included.
    damping : float or array of shape ()
        ``lambda``, added to F in the model only.
    weight_decay : float or array of shape ()
        ``eta``, coefficient of a quadratic penalty that h contains (coupled weight decay). Unlike
        the damping it is curvature of h itself.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    QuadraticStep
        Scalars are in the dtype of `inner_fisher`, at least float32. Where K is singular (a zero
        direction, two parallel ones) the solution is that of the pseudo-inverse of K scaled to a
        unit diagonal. If an inner product is not finite the step is zero.

    Raises
    ------
    TypeError
        For arrays that are of several libraries or not real floating.
    ValueError
        If `inner_fisher` is not (k, k), k at least 1, a direction has an entry or a shape that the
        gradients do not have, or for a negative Python damping or weight decay.

    Notes
    -----
    After Martens and Grosse (2015), sections on re-scaling and momentum; the treatment of singular
    systems is ours.

    Examples
    --------
    >>> import numpy as np
    >>> direction, grads = {"w": np.asarray([1.0, 0.0])}, {"w": np.asarray([2.0, 5.0])}
    >>> taken = quadratic_step(np.asarray([[3.0]]), [direction], grads, 1.0)
    >>> taken.step["w"].tolist(), float(taken.change)
    ([-0.5, 0.0], -0.5)
    """
    _checks.nonnegative(damping=damping, weight_decay=weight_decay)
    xp = _border(xp, inner_fisher, directions, grads)
    dtype = _xp.working(inner_fisher.dtype, xp=xp)
    fisher = _xp.astype(inner_fisher, dtype, xp=xp)
    shift, eta = (_xp.scalar(x, like=fisher, xp=xp) for x in (damping, weight_decay))
    slopes = xp.stack([_inner(v, grads, fisher, xp=xp) for v in directions])
    model = fisher + (shift + eta) * _gram(directions, fisher, xp=xp)
    coefficients, change = _minimum(model, slopes, xp=xp)
    keys = dict.fromkeys(key for v in directions for key in v)
    exact = {key: _combined(key, directions, coefficients, xp=xp) for key in keys}
    step = {key: _xp.astype(x, grads[key].dtype, xp=xp) for key, x in exact.items()}
    return QuadraticStep(step, coefficients, change, _inner(exact, exact, fisher, xp=xp))


def _inner(v: Mapping[Key, Array], w: Mapping[Key, Array], like: Array, *, xp: Namespace) -> Array:
    return inner(v, w, like.dtype, xp=xp) + _xp.zeros((), like=like, xp=xp)


def _gram(directions: Sequence[Mapping[Key, Array]], like: Array, *, xp: Namespace) -> Array:
    """``v_i . v_j``, every pair taken once."""
    pairs = {
        (i, j): _inner(v, directions[j], like, xp=xp)
        for i, v in enumerate(directions)
        for j in range(i + 1)
    }
    k = range(len(directions))
    return xp.stack([xp.stack([pairs[max(i, j), min(i, j)] for j in k]) for i in k])


def _minimum(model: Array, slopes: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """``-K^+ b`` and ``-1/2 b^T K^+ b``, by the eigenvalues of K scaled to a unit diagonal."""
    zero, one = (_xp.full((), x, like=model, xp=xp) for x in (0.0, 1.0))
    finite = xp.all(xp.isfinite(model)) & xp.all(xp.isfinite(slopes))
    diagonal = xp.where(finite, xp.linalg.diagonal(model), zero)
    some = diagonal > 0
    scale = xp.where(some, 1 / xp.sqrt(xp.where(some, diagonal, one)), zero)
    unit = xp.where(finite, model, zero) * scale[:, None] * scale[None, :]
    w, q = xp.linalg.eigh((unit + unit.mT) / 2)
    along = q.mT @ (scale * xp.where(finite, slopes, zero))
    kept = w > MARGIN * model.shape[0] * _xp.eps(model.dtype, xp=xp)
    solved = xp.where(kept, along / xp.where(kept, w, one), zero)
    return -scale * (q @ solved), -xp.sum(along * solved) / 2


def _combined(
    key: Any, directions: Sequence[Mapping[Any, Array]], coefficients: Array, *, xp: Namespace
) -> Array:
    """``sum_i c_i v_i`` of one entry; what has the coefficient 0 is not looked at."""
    total: Any = 0.0
    for i, direction in enumerate(directions):
        if key in direction:
            c, v = coefficients[i], _xp.astype(direction[key], coefficients.dtype, xp=xp)
            total = total + xp.where(c == 0, _xp.zeros((), like=v, xp=xp), c * v)
    return total


def _border(
    xp: Namespace | None,
    inner_fisher: Array,
    directions: Sequence[Mapping[Any, Array]],
    grads: Mapping[Any, Array],
) -> Namespace:
    arrays = {"inner_fisher": inner_fisher}
    arrays |= {f"gradient {key!r}": x for key, x in grads.items()}
    for k, direction in enumerate(directions):
        entries(f"entry of direction {k}", direction, grads, "gradients")
        arrays |= {f"direction {k} of {key!r}": x for key, x in direction.items()}
    xp = _checks.common_namespace(xp, **arrays)
    _checks.floating(xp, **arrays)
    if not any(directions):
        msg = "directions is empty; expected at least one direction with an entry."
        raise ValueError(msg)
    for k, direction in enumerate(directions):
        same_shapes(f"direction {k} of", direction, grads)
    why = "one row and column for each direction"
    _checks.shape("inner_fisher", inner_fisher, (len(directions),) * 2, why)
    return xp
