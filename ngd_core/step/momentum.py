"""First-order rules on mappings of arrays: what a direction, or a plain gradient, becomes.

Each is a pure function from a state and directions to steps and the next state; `sgd` applies
steps to parameters. Keys are whatever the caller likes: layer names, `LayerSpec` objects. What
gets no direction in a step keeps its state; scalars given as arrays change no dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.step._mappings import entries, in_dtype_of, namespace

__all__ = ["AdamState", "adam", "adam_init", "momentum", "momentum_init", "sgd"]

Key = TypeVar("Key")


class AdamState(NamedTuple):
    """State of Adam.

    Parameters
    ----------
    count : array of float, shape ()
        Steps taken.
    first, second : dict
        Averages of the gradient and of its square, shaped as the parameters, in at least float32.
    """

    count: Array
    first: dict[Any, Array]
    second: dict[Any, Array]


def momentum_init(params: Mapping[Key, Array], *, xp: Namespace | None = None) -> dict[Key, Array]:
    """Velocity at rest.

    Parameters
    ----------
    params : mapping of arrays
        Parameters.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    dict of arrays
        Zeros.

    Examples
    --------
    >>> import numpy as np
    >>> momentum_init({"w": np.ones(2)})
    {'w': array([0., 0.])}
    """
    xp = namespace(xp, "parameter", params)
    return {key: _xp.zeros(tuple(p.shape), like=p, xp=xp) for key, p in params.items()}


def momentum(
    velocity: Mapping[Key, Array],
    directions: Mapping[Key, Array],
    *,
    decay: Scalar = 0.9,
    nesterov: bool = False,
    xp: Namespace | None = None,
) -> tuple[dict[Key, Array], dict[Key, Array]]:
    """Heavy-ball momentum ``m <- decay m + d``, as in PyTorch without dampening.

    Parameters
    ----------
    velocity : mapping of arrays
        ``m``, zeros at the start.
    directions : mapping of arrays
        ``d``: gradients or preconditioned gradients, clipped already where clipping is wanted
        (the K-FAC papers clip before momentum).
    decay : float or array of shape ()
        ``mu``, in [0, 1].
    nesterov : bool
        Step along ``d + decay m`` instead of ``m``.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    steps : dict of arrays
        To be multiplied by the step size and subtracted; one for each direction.
    velocity : dict of arrays
        New velocity; unchanged where there is no direction.

    Raises
    ------
    ValueError
        If a Python `decay` is outside [0, 1], or a direction has no velocity.

    Examples
    --------
    >>> import numpy as np
    >>> momentum({"w": np.ones(1)}, {"w": np.ones(1)}, decay=0.5)
    ({'w': array([1.5])}, {'w': array([1.5])})
    """
    _checks.unit_interval(decay=decay)
    entries("direction", directions, velocity, "velocity")
    moved, steps = dict(velocity), {}
    for key, d in directions.items():
        mu = in_dtype_of(d, decay, xp)
        moved[key] = mu * velocity[key] + d
        steps[key] = d + mu * moved[key] if nesterov else moved[key]
    return steps, moved


def sgd(
    params: Mapping[Key, Array],
    steps: Mapping[Key, Array],
    lr: Scalar,
    *,
    xp: Namespace | None = None,
) -> dict[Key, Array]:
    """Parameters moved against the steps, ``p - lr s``.

    Parameters
    ----------
    params, steps : mapping of arrays
        Parameters and steps; parameters without a step stay.
    lr : float or array of shape ()
        Step size.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    dict of arrays
        New parameters.

    Raises
    ------
    ValueError
        If a step has no parameter.

    Examples
    --------
    >>> import numpy as np
    >>> sgd({"w": np.ones(1)}, {"w": np.ones(1)}, 0.25)
    {'w': array([0.75])}
    """
    entries("step", steps, params, "parameters")
    return {
        key: p - in_dtype_of(p, lr, xp) * steps[key] if key in steps else p
        for key, p in params.items()
    }


def adam_init(params: Mapping[Key, Array], *, xp: Namespace | None = None) -> AdamState:
    """State of Adam before the first step.

    Parameters
    ----------
    params : mapping of arrays
        Parameters.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    AdamState
        Zeros.

    Examples
    --------
    >>> import numpy as np
    >>> adam_init({"w": np.ones(1)}).first
    {'w': array([0.])}
    """
    xp = namespace(xp, "parameter", params)

    def zeros(shape: tuple[int, ...], p: Array) -> Array:
        return _xp.zeros(shape, like=p, dtype=_xp.working(p.dtype, xp=xp), xp=xp)

    first, second = ({key: zeros(tuple(p.shape), p) for key, p in params.items()} for _ in range(2))
    return AdamState(zeros((), next(iter(params.values()))), first, second)


def adam(
    state: AdamState,
    grads: Mapping[Key, Array],
    *,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: float = 1e-8,
    xp: Namespace | None = None,
) -> tuple[dict[Key, Array], AdamState]:
    """Adam (Kingma and Ba 2015), with both averages bias-corrected.

    Parameters
    ----------
    state : AdamState
        State.
    grads : mapping of arrays
        Gradients of the mean loss.
    betas : tuple of float
        ``beta_1`` and ``beta_2``, in [0, 1].
    eps : float
        Added to the root of the second average.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    steps : dict of arrays
        To be multiplied by the step size and subtracted; in the gradients' dtype.
    state : AdamState
        New state; averages stay where there is no gradient.

    Raises
    ------
    ValueError
        If a Python beta is outside [0, 1], or a gradient has no entry in the state.

    Examples
    --------
    >>> import numpy as np
    >>> steps, _ = adam(adam_init({"w": np.ones(1)}), {"w": np.full(1, 7.0)})
    >>> steps["w"].round(6)
    array([1.])
    """
    xp = namespace(xp, "gradient", grads)
    entries("gradient", grads, state.first, "state")
    _checks.unit_interval(beta_1=betas[0], beta_2=betas[1])
    count = state.count + 1
    one, two = (in_dtype_of(count, beta, xp) for beta in betas)
    fix_one, fix_two = 1 - one**count, 1 - two**count
    first, second, steps = dict(state.first), dict(state.second), {}
    for key, grad in grads.items():
        dtype = first[key].dtype
        g = _xp.astype(grad, dtype, xp=xp)
        a, b = (in_dtype_of(g, beta, xp) for beta in betas)
        first[key] = a * first[key] + (1 - a) * g
        second[key] = b * second[key] + (1 - b) * g * g
        mean = first[key] / _xp.astype(fix_one, dtype, xp=xp)
        square = second[key] / _xp.astype(fix_two, dtype, xp=xp)
        steps[key] = _xp.astype(mean / (xp.sqrt(square) + eps), grad.dtype, xp=xp)
    return steps, AdamState(count, first, second)
