"""Losses as negative log-likelihoods: value, gradient, samples and Hessian root.

Each likelihood reads network outputs as natural parameters, so the Hessian of the loss with
respect to the outputs is the Fisher of the likelihood, and the generalised Gauss-Newton matrix is
the Fisher of the network. The loss of one example is the *sum* over its positions and outputs;
the mean over examples is taken elsewhere, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace

__all__ = [
    "FisherKind",
    "Likelihood",
    "bernoulli",
    "categorical",
    "fisher_vectors",
    "gaussian",
    "get",
]

FisherKind: TypeAlias = Literal["exact", "mc", "empirical"]


@dataclass(frozen=True)
class Likelihood:
    """A loss ``l(f, y) = -log p(y | f)`` and what a natural gradient needs of it.

    Every function takes a keyword ``xp``, the array namespace, found from the arrays if not given.
    Results have the dtype of `outputs`; targets and noise are cast to it, but for labels.

    Parameters
    ----------
    name : str
        "categorical", "bernoulli" or "gaussian".
    noise : "uniform" or "normal"
        Distribution of the noise that `sample` turns into targets: uniform on [0, 1), or standard
        normal.
    value : callable
        ``value(outputs, targets)``: loss of each example, shape ``(N,)``, summed over all further
        axes.
    gradient : callable
        ``gradient(outputs, targets)``: its gradient with respect to `outputs`, per example, the
        shape of `outputs`.
    sample : callable
        ``sample(outputs, noise)``: targets drawn from the model; differentiation through it is
        not meant.
    hessian_root : callable
        ``hessian_root(outputs)``: vectors S of shape ``(M, *outputs.shape)`` with
        ``sum_m S_m S_m^T`` the Hessian of each example's loss.
    noise_shape : callable
        ``noise_shape(outputs)``: shape of the noise for one sample.
    """

    name: str
    noise: Literal["uniform", "normal"]
    value: Callable[..., Array]
    gradient: Callable[..., Array]
    sample: Callable[..., Array]
    hessian_root: Callable[..., Array]
    noise_shape: Callable[[Array], tuple[int, ...]]


def _border(outputs: Array, xp: Namespace | None, **others: Array) -> Namespace:
    xp = _checks.common_namespace(xp, outputs=outputs, **others)
    _checks.floating(xp, outputs=outputs)
    _checks.rank(2, outputs=outputs)
    return xp


def _per_example(x: Array, *, xp: Namespace) -> Array:
    return xp.sum(xp.reshape(x, (x.shape[0], -1)), axis=-1)


def _root(columns: Array, *, xp: Namespace) -> Array:
    """Columns ``(N, *positions, outputs, K)`` of each position's root, as vectors of an example.

    Positions do not interact in the loss, so each (position, column) is a vector of its own that
    is zero elsewhere.
    """
    n, *positions, c, k = columns.shape
    t = math.prod(positions)
    columns = xp.permute_dims(xp.reshape(columns, (n, t, c, k)), (3, 0, 1, 2))
    if t == 1:
        return xp.reshape(columns, (k, n, *positions, c))
    spread = _xp.eye(t, like=columns, xp=xp)[:, None, None, :, None] * columns[None, ...]
    return xp.reshape(spread, (t * k, n, *positions, c))


def _softmax(outputs: Array, *, xp: Namespace) -> Array:
    e = xp.exp(outputs - xp.max(outputs, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def _one_hot(targets: Array, outputs: Array, *, xp: Namespace) -> Array:
    classes = _xp.arange(outputs.shape[-1], like=targets, xp=xp)
    return _xp.astype(targets[..., None] == classes, outputs.dtype, xp=xp)


def _labels(targets: Array, outputs: Array, xp: Namespace) -> None:
    if not xp.isdtype(targets.dtype, "integral"):
        msg = f"targets have dtype {targets.dtype}; categorical targets are integer class labels."
        raise TypeError(msg)
    if tuple(targets.shape) != tuple(outputs.shape[:-1]):
        msg = (
            f"targets have shape {tuple(targets.shape)} for outputs of shape "
            f"{tuple(outputs.shape)}; expected one label where the outputs have a row of logits."
        )
        raise ValueError(msg)


def _noise(noise: Array, outputs: Array, *, xp: Namespace) -> Array:
    _checks.floating(xp, noise=noise)
    return _xp.astype(noise, outputs.dtype, xp=xp)


def _categorical_value(outputs: Array, targets: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp, targets=targets)
    _labels(targets, outputs, xp)
    shifted = outputs - xp.max(outputs, axis=-1, keepdims=True)
    normaliser = xp.log(xp.sum(xp.exp(shifted), axis=-1))
    chosen = xp.sum(shifted * _one_hot(targets, outputs, xp=xp), axis=-1)
    return _per_example(normaliser - chosen, xp=xp)


def _categorical_gradient(outputs: Array, targets: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp, targets=targets)
    _labels(targets, outputs, xp)
    return _softmax(outputs, xp=xp) - _one_hot(targets, outputs, xp=xp)


def _categorical_sample(outputs: Array, noise: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp, noise=noise)
    cumulative = xp.cumulative_sum(_softmax(outputs, xp=xp), axis=-1)
    below = cumulative[..., :-1] <= _noise(noise, outputs, xp=xp)[..., None]
    return xp.sum(_xp.astype(below, xp.int32, xp=xp), axis=-1, dtype=xp.int32)


def _categorical_root(outputs: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp)
    p = _softmax(outputs, xp=xp)
    root = xp.sqrt(p)[..., None, :]
    identity = _xp.eye(outputs.shape[-1], like=outputs, xp=xp)
    return _root((identity - p[..., None]) * root, xp=xp)


def _sigmoid(x: Array, *, xp: Namespace) -> Array:
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, _xp.ones((), like=x, xp=xp), e) / (1 + e)


def _values(targets: Array, outputs: Array, *, xp: Namespace) -> Array:
    """Targets in the dtype of the outputs, after a look at their shape."""
    if tuple(targets.shape) != tuple(outputs.shape):
        msg = (
            f"targets have shape {tuple(targets.shape)}; expected that of the outputs, "
            f"{tuple(outputs.shape)}."
        )
        raise ValueError(msg)
    return _xp.astype(targets, outputs.dtype, xp=xp)


def _bernoulli_value(outputs: Array, targets: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp, targets=targets)
    targets = _values(targets, outputs, xp=xp)
    softplus = xp.maximum(outputs, _xp.zeros((), like=outputs, xp=xp)) + xp.log1p(
        xp.exp(-xp.abs(outputs))
    )
    return _per_example(softplus - targets * outputs, xp=xp)


def _bernoulli_gradient(outputs: Array, targets: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp, targets=targets)
    return _sigmoid(outputs, xp=xp) - _values(targets, outputs, xp=xp)


def _bernoulli_sample(outputs: Array, noise: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp, noise=noise)
    success = _noise(noise, outputs, xp=xp) < _sigmoid(outputs, xp=xp)
    return _xp.astype(success, outputs.dtype, xp=xp)


def _bernoulli_root(outputs: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp)
    variance = _sigmoid(outputs, xp=xp) * _sigmoid(-outputs, xp=xp)
    identity = _xp.eye(outputs.shape[-1], like=outputs, xp=xp)
    return _root(identity * xp.sqrt(variance)[..., None], xp=xp)


def _gaussian_value(outputs: Array, targets: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp, targets=targets)
    return _per_example(0.5 * (outputs - _values(targets, outputs, xp=xp)) ** 2, xp=xp)


def _gaussian_gradient(outputs: Array, targets: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp, targets=targets)
    return outputs - _values(targets, outputs, xp=xp)


def _gaussian_sample(outputs: Array, noise: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp, noise=noise)
    return outputs + _noise(noise, outputs, xp=xp)


def _gaussian_root(outputs: Array, *, xp: Namespace | None = None) -> Array:
    xp = _border(outputs, xp)
    identity = _xp.eye(outputs.shape[-1], like=outputs, xp=xp)
    shape = (*outputs.shape, outputs.shape[-1])
    return _root(xp.broadcast_to(identity, shape), xp=xp)


categorical = Likelihood(
    "categorical",
    "uniform",
    _categorical_value,
    _categorical_gradient,
    _categorical_sample,
    _categorical_root,
    lambda outputs: tuple(outputs.shape[:-1]),
)
"""Integer labels under a softmax of logits; Hessian ``diag(p) - p p^T`` at each position."""

bernoulli = Likelihood(
    "bernoulli",
    "uniform",
    _bernoulli_value,
    _bernoulli_gradient,
    _bernoulli_sample,
    _bernoulli_root,
    lambda outputs: tuple(outputs.shape),
)
"""Targets in [0, 1], each under a sigmoid of its logit; Hessian ``diag(p (1 - p))``."""

gaussian = Likelihood(
    "gaussian",
    "normal",
    _gaussian_value,
    _gaussian_gradient,
    _gaussian_sample,
    _gaussian_root,
    lambda outputs: tuple(outputs.shape),
)
"""Square loss ``1/2 ||f - y||^2``, a normal of unit variance; Hessian I."""

_ALL = {likelihood.name: likelihood for likelihood in (categorical, bernoulli, gaussian)}


def get(name: str) -> Likelihood:
    """Likelihood of a name.

    Parameters
    ----------
    name : "categorical", "bernoulli" or "gaussian"
        Its name.

    Returns
    -------
    Likelihood
        The functions.

    Raises
    ------
    ValueError
        For any other name.

    Examples
    --------
    >>> get("gaussian").noise
    'normal'
    """
    _checks.one_of("likelihood", name, _ALL)
    return _ALL[name]


def fisher_vectors(
    kind: FisherKind,
    likelihood: Likelihood,
    outputs: Array,
    *,
    targets: Array | None = None,
    noise: Array | None = None,
    xp: Namespace | None = None,
) -> Array:
    """Vectors v with ``F = (1/N) sum_n sum_m (J_n^T v_mn)(J_n^T v_mn)^T``.

    Parameters
    ----------
    kind : "exact", "mc" or "empirical"
        "exact" (type-2; also the generalised Gauss-Newton): columns of the root S of the loss
        Hessian, ``S S^T = H``. "mc": gradients at targets sampled from the model's own
        distribution, divided by ``sqrt(M)``; equal to "exact" in expectation. "empirical":
        gradients at the training targets, which is not the Fisher (Kunstner et al. 2019): its
        gradients do not average to zero under the model, and the exactness cases fail.
    likelihood : Likelihood
        Loss of the network.
    outputs : array, shape (N, ..., outputs)
        Network outputs (natural parameters).
    targets : array, optional
        For "empirical" only.
    noise : array, shape (M, *likelihood.noise_shape(outputs)), optional
        For "mc" only: one sample for each leading index, distributed as `likelihood.noise` says.
    xp : namespace, optional
        Array namespace; found from the outputs if not given.

    Returns
    -------
    array, shape (M, N, ..., outputs)
        Back-propagated vectors; pass them to a backward function as they are.

    Raises
    ------
    ValueError
        For an unknown kind, or if `targets` or `noise` is missing where it is needed or given
        where it is not.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import losses
    >>> losses.fisher_vectors("exact", losses.gaussian, np.zeros((5, 3))).shape
    (3, 5, 3)
    """
    _checks.one_of("kind", kind, get_args(FisherKind))
    for name, value, wanted in (("targets", targets, "empirical"), ("noise", noise, "mc")):
        if (value is None) == (kind == wanted):
            verb = "is needed" if value is None else "is not used"
            msg = f"{name} {verb} for the Fisher of kind {kind!r}; it belongs to {wanted!r}."
            raise ValueError(msg)
    xp = _checks.common_namespace(xp, outputs=outputs)
    if kind == "exact":
        return likelihood.hessian_root(outputs, xp=xp)
    if noise is None:
        return likelihood.gradient(outputs, targets, xp=xp)[None, ...]
    one = likelihood.noise_shape(outputs)
    if tuple(noise.shape[1:]) != one:
        msg = f"noise has shape {tuple(noise.shape)}; expected (samples, *{one})."
        raise ValueError(msg)
    repeated = xp.broadcast_to(outputs, (noise.shape[0], *outputs.shape))
    samples = likelihood.sample(repeated, noise, xp=xp)
    return likelihood.gradient(repeated, samples, xp=xp) / noise.shape[0] ** 0.5
