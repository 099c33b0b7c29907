"""How much to trust the quadratic model: the damping, from what it promised and what came true.

All numbers may be Python floats, giving floats, or 0-d arrays, giving 0-d arrays, also traced
ones. Adapting the damping needs losses and models of one batch that are accurate: with small
stochastic batches the ratio is mostly noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ngd_core import _checks, _xp
from ngd_core._typing import Namespace, Scalar
from ngd_core.step.quadratic import QuadraticStep

__all__ = [
    "levenberg_marquardt",
    "pick_gamma",
    "predicted_change",
    "reduction_ratio",
    "try_gammas",
]


def predicted_change(
    quadratic: QuadraticStep,
    damping: Scalar,
    *,
    include_damping: bool = False,
    xp: Namespace | None = None,
) -> Scalar:
    """Change of the loss that the quadratic model promises for its own minimum.

    Parameters
    ----------
    quadratic : QuadraticStep
        From `quadratic_step`.
    damping : float or array of shape ()
        ``lambda``, as given to `quadratic_step`.
    include_damping : bool
        True: ``M(delta) - M(0)`` with ``lambda/2 |delta|^2`` in M, which is what Martens and Grosse
        (2015) divide by. False: without it, as later code does by default (tensorflow/kfac,
        kfac-jax); a quadratic loss is then predicted exactly. A penalty's curvature counts either
        way.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape ()
        Never above 0.

    Raises
    ------
    ValueError
        For a negative Python damping.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.step import quadratic_step
    >>> v, damping = {"w": np.ones(1)}, 1.0
    >>> taken = quadratic_step(np.ones((1, 1)), [v], {"w": np.full(1, 4.0)}, damping)
    >>> float(predicted_change(taken, damping, include_damping=True))
    -4.0
    >>> float(predicted_change(taken, damping))
    -6.0
    """
    _checks.nonnegative(damping=damping)
    if include_damping:
        return quadratic.change
    _, (change, square, damping) = _numbers(quadratic.change, quadratic.square, damping, xp=xp)
    return change - damping * square / 2


def reduction_ratio(
    loss_after: Scalar, loss_before: Scalar, predicted: Scalar, *, xp: Namespace | None = None
) -> Scalar:
    """Change of the loss over its prediction, ``rho``.

    Parameters
    ----------
    loss_after, loss_before : float or array of shape ()
        Mean loss ``h(theta + delta)`` and ``h(theta)`` of one and the same batch.
    predicted : float or array of shape ()
        From `predicted_change`, of that batch.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    float or array of shape ()
        1 where the model was right, negative where the loss rose though it should have fallen. NaN
        for a predicted change of 0, whatever the loss did. An array has the dtype of the first one.

    Examples
    --------
    >>> reduction_ratio(1.0, 3.0, -4.0)
    0.5
    """
    xp, (after, before, promised) = _numbers(loss_after, loss_before, predicted, xp=xp)
    none = promised == 0
    ratio = (after - before) / _where(none, 1.0, promised, like=promised, xp=xp)
    return _where(none, math.nan, ratio, like=promised, xp=xp)


def levenberg_marquardt(
    damping: Scalar,
    ratio: Scalar,
    *,
    interval: int = 5,
    decay: Scalar = 19 / 20,
    minimum: float = 1e-8,
    maximum: float = math.inf,
    xp: Namespace | None = None,
) -> Scalar:
    """Damping after a look at the reduction ratio; to be called every `interval` steps.

    ``lambda <- omega lambda`` if ``rho > 3/4``, ``lambda / omega`` if ``rho < 1/4``, with
    ``omega = decay^interval`` (Martens and Grosse 2015: interval 5, decay 19/20, lambda_0 = 150).

    Parameters
    ----------
    damping : float or array of shape ()
        ``lambda``, added to the Fisher of the mean loss.
    ratio : float or array of shape ()
        ``rho`` of the last step, from `reduction_ratio`. NaN raises the damping, as in kfac-jax.
    interval : int
        Steps between two calls.
    decay : float or array of shape ()
        Factor for one step, in (0, 1].
    minimum, maximum : float
        Bounds of the result (from later code; the paper has none). With a quadratic penalty, whose
        coefficient is added to F too, 1e-8 is enough.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    float or array of shape ()
        New damping, in the dtype of `damping` if that is an array.

    Raises
    ------
    ValueError
        If a Python `damping` is not above 0, a Python `decay` not in (0, 1], `interval` below 1, or
        `minimum` above `maximum`.

    Examples
    --------
    >>> levenberg_marquardt(8.0, 0.9, interval=1, decay=0.5)
    4.0
    >>> levenberg_marquardt(8.0, float("nan"), interval=1, decay=0.5)
    16.0
    """
    _checks.positive(damping=damping, interval=interval, decay=decay)
    _checks.unit_interval(decay=decay)
    if not minimum <= maximum:
        msg = f"minimum is {minimum} and maximum {maximum}; expected minimum <= maximum."
        raise ValueError(msg)
    xp, (damping, ratio, decay) = _numbers(damping, ratio, decay, xp=xp)
    omega = decay**interval
    raised = _where(ratio >= 0.25, 1.0, 1 / omega, like=damping, xp=xp)
    damping = damping * _where(ratio > 0.75, omega, raised, like=damping, xp=xp)
    damping = _where(damping < minimum, minimum, damping, like=damping, xp=xp)
    return _where(damping > maximum, maximum, damping, like=damping, xp=xp)


def try_gammas(
    gamma: Scalar, omega: Scalar = (19 / 20) ** 10, *, xp: Namespace | None = None
) -> tuple[Scalar, Scalar, Scalar]:
    """Candidates for the preconditioner's own damping, ``{gamma, omega gamma, gamma / omega}``.

    The papers damp the Kronecker factors by ``gamma`` in place of ``sqrt(lambda + eta)``, at which
    it starts: give the method ``Hyper(damping=gamma**2)``. Every ``T_2 = 20`` steps, with
    ``omega_2 = sqrt(19/20)^20``, directions of all three are tried and `pick_gamma` keeps one.

    Parameters
    ----------
    gamma : float or array of shape ()
        ``gamma``, in the units of the square root of F.
    omega : float or array of shape ()
        ``omega_2``, in (0, 1].
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    tuple of three floats or arrays of shape ()
        The present value first.

    Raises
    ------
    ValueError
        If a Python `gamma` is not above 0, or a Python `omega` not in (0, 1].

    Examples
    --------
    >>> try_gammas(2.0, 0.5)
    (2.0, 1.0, 4.0)
    """
    _checks.positive(gamma=gamma, omega=omega)
    _checks.unit_interval(omega=omega)
    _, (gamma, omega) = _numbers(gamma, omega, xp=xp)
    return gamma, omega * gamma, gamma / omega


def pick_gamma(
    gammas: Sequence[Scalar], changes: Sequence[Scalar], *, xp: Namespace | None = None
) -> Scalar:
    """Candidate whose step has the lowest model.

    Parameters
    ----------
    gammas : sequence of floats or arrays of shape ()
        From `try_gammas`.
    changes : sequence of floats or arrays of shape ()
        ``M(delta) - M(0)`` of each candidate's step, `QuadraticStep.change`, damping included.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    float or array of shape ()
        The first of several equal ones; never one whose change is NaN, unless all are.

    Raises
    ------
    ValueError
        If there is no candidate, or not as many changes.

    Examples
    --------
    >>> pick_gamma((2.0, 1.0, 4.0), (-1.0, float("nan"), -3.0))
    4.0
    """
    if not gammas or len(gammas) != len(changes):
        msg = f"There are {len(gammas)} gammas and {len(changes)} changes; expected a pair each."
        raise ValueError(msg)
    xp, numbers = _numbers(*gammas, *changes, xp=xp)
    gammas, changes = numbers[: len(gammas)], numbers[len(gammas) :]
    best, lowest = gammas[0], changes[0]
    for gamma, change in zip(gammas[1:], changes[1:], strict=True):
        better = (change < lowest) | ((lowest != lowest) & (change == change))  # NaN never wins
        best = _where(better, gamma, best, like=gamma, xp=xp)
        lowest = _where(better, change, lowest, like=change, xp=xp)
    return best


def _numbers(*values: Scalar, xp: Namespace | None) -> tuple[Namespace | None, tuple[Scalar, ...]]:
    """Namespace and all values as 0-d arrays in the first one's dtype; as they are if none is."""
    arrays = {f"number {k}": x for k, x in enumerate(values) if not isinstance(x, (int, float))}
    if not arrays:
        return None, values
    xp = _checks.common_namespace(xp, **arrays)
    _checks.floating(xp, **arrays)
    like = next(iter(arrays.values()))
    return xp, tuple(_xp.scalar(x, like=like, xp=xp) for x in values)


def _where(
    condition: Any, yes: Scalar, no: Scalar, *, like: Scalar, xp: Namespace | None
) -> Scalar:
    """Python's choice for Python numbers, the namespace's for arrays."""
    if xp is None:
        return yes if condition else no
    yes, no = (_xp.scalar(x, like=like, xp=xp) for x in (yes, no))
    return xp.where(condition, yes, no)
