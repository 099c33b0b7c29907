"""First-order rules on mappings of arrays: what a direction, or a plain gradient, becomes.

Each is a pure function from a state and directions to steps and the next state; `sgd` applies
steps to parameters. Keys are whatever the caller likes: layer names, `LayerSpec` objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar

__all__ = ["AdamState", "adam", "adam_init", "momentum", "momentum_init", "sgd"]

Key = TypeVar("Key")


class AdamState(NamedTuple):
    """State of Adam.

    Parameters
    ----------
    count : array of float, shape ()
        Steps taken.
    first, second : dict
        Averages of the gradient and of its square, as the parameters.
    """

    count: Array
    first: dict[Any, Array]
    second: dict[Any, Array]


def _namespace(xp: Namespace | None, name: str, arrays: Mapping[Any, Array]) -> Namespace:
    if not arrays:
        msg = f"{name} is empty; expected at least one array."
        raise ValueError(msg)
    return _checks.common_namespace(xp, **{f"{name} {key}": x for key, x in arrays.items()})


def _entries(name: str, got: Mapping[Any, Array], known: Mapping[Any, Array], what: str) -> None:
    for key in got:
        if key not in known:
            msg = f"{name} {key!r} has no entry in the {what}; both come from the same parameters."
            raise ValueError(msg)


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
    xp = _namespace(xp, "parameter", params)
    return {key: _xp.zeros(tuple(p.shape), like=p, xp=xp) for key, p in params.items()}


def momentum(
    velocity: Mapping[Key, Array],
    directions: Mapping[Key, Array],
    *,
    decay: Scalar = 0.9,
    nesterov: bool = False,
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

    Returns
    -------
    steps : dict of arrays
        To be multiplied by the step size and subtracted.
    velocity : dict of arrays
        New velocity.

    Raises
    ------
    ValueError
        If a Python `decay` is outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> momentum({"w": np.ones(1)}, {"w": np.ones(1)}, decay=0.5)
    ({'w': array([1.5])}, {'w': array([1.5])})
    """
    _checks.unit_interval(decay=decay)
    _entries("direction", directions, velocity, "velocity")
    moved = {key: decay * velocity[key] + d for key, d in directions.items()}
    if not nesterov:
        return moved, moved
    return {key: d + decay * moved[key] for key, d in directions.items()}, moved


def sgd(params: Mapping[Key, Array], steps: Mapping[Key, Array], lr: Scalar) -> dict[Key, Array]:
    """Parameters moved against the steps, ``p - lr s``.

    Parameters
    ----------
    params, steps : mapping of arrays
        Parameters and steps; parameters without a step stay.
    lr : float or array of shape ()
        Step size.

    Returns
    -------
    dict of arrays
        New parameters.

    Examples
    --------
    >>> import numpy as np
    >>> sgd({"w": np.ones(1)}, {"w": np.ones(1)}, 0.25)
    {'w': array([0.75])}
    """
    _entries("step", steps, params, "parameters")
    return {key: p - lr * steps[key] if key in steps else p for key, p in params.items()}


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
    xp = _namespace(xp, "parameter", params)
    count = _xp.zeros((), like=next(iter(params.values())), xp=xp)
    return AdamState(count, momentum_init(params, xp=xp), momentum_init(params, xp=xp))


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
        ``beta_1`` and ``beta_2``.
    eps : float
        Added to the root of the second average.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    steps : dict of arrays
        To be multiplied by the step size and subtracted.
    state : AdamState
        New state.

    Examples
    --------
    >>> import numpy as np
    >>> steps, _ = adam(adam_init({"w": np.ones(1)}), {"w": np.full(1, 7.0)})
    >>> steps["w"].round(6)
    array([1.])
    """
    xp = _namespace(xp, "gradient", grads)
    _entries("gradient", grads, state.first, "state")
    one, two = betas
    count = state.count + 1
    first = {key: one * state.first[key] + (1 - one) * g for key, g in grads.items()}
    second = {key: two * state.second[key] + (1 - two) * g * g for key, g in grads.items()}
    fix_one, fix_two = 1 - one**count, 1 - two**count
    steps = {key: (first[key] / fix_one) / (xp.sqrt(second[key] / fix_two) + eps) for key in grads}
    return steps, AdamState(count, first, second)
