"""Negative log-likelihoods: value, gradient, Hessian, samples, back-propagated vectors.

The loss of an example, l_n, is summed over all its positions and outputs. Three likelihoods:

============= ========================= ================================= =====================
likelihood    targets                   loss of one example               Hessian, per position
============= ========================= ================================= =====================
"categorical" integers (N, ...)         sum (logsumexp f - f_y)           diag(p) - p p^T
"bernoulli"   0 or 1, (N, ..., C)       sum (log(1 + exp f) - y f)        diag(p (1 - p))
"gaussian"    real numbers (N, ..., C)  1/2 sum (f - y)^2                 I
============= ========================= ================================= =====================

f are the network's outputs, (N, ..., C); categorical logits lie along the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double, require_shape
from ngd_core.reference.layers import sigmoid

__all__ = [
    "backpropagated_vectors",
    "loss_gradient",
    "loss_hessian",
    "loss_hessian_root",
    "loss_value",
    "sample_targets",
]

Likelihood: TypeAlias = Literal["categorical", "bernoulli", "gaussian"]
FisherKind: TypeAlias = Literal["exact", "mc", "empirical"]


def _check_likelihood(likelihood: str) -> None:
    if likelihood not in ("categorical", "bernoulli", "gaussian"):
        msg = f"likelihood is {likelihood!r}; expected 'categorical', 'bernoulli' or 'gaussian'."
        raise ValueError(msg)


def _targets(likelihood: str, outputs: Array, targets: ArrayLike) -> Array:
    _check_likelihood(likelihood)
    y = np.array(targets)
    if likelihood != "categorical":
        require_shape("targets", y, outputs.shape)
        return y
    require_shape("targets", y, outputs.shape[:-1])
    classes = outputs.shape[-1]
    if not np.issubdtype(y.dtype, np.integer) or np.any(y < 0) or np.any(y >= classes):
        msg = f"targets of dtype {y.dtype}; expected integer labels from 0 to {classes - 1}."
        raise ValueError(msg)
    return y


def softmax(logits: Array) -> Array:
    """Probabilities of one vector of logits, (C,); shifted by the largest real part."""
    powers: Array = np.exp(logits - np.max(logits.real))
    powers /= np.sum(powers)
    return powers


def loss_value(likelihood: Likelihood, outputs: ArrayLike, targets: ArrayLike) -> Array:
    """Negative log-likelihood of each example, summed over positions and outputs.

    Constants that do not depend on the outputs are left out.

    Parameters
    ----------
    likelihood : "categorical", "bernoulli" or "gaussian"
        ``sum (logsumexp f - f_y)``, ``sum (log(1 + exp f) - y f)`` or ``1/2 sum (f - y)^2``.
    outputs : array of shape (N, ..., C)
        Logits, or means; real or complex.
    targets : array of shape (N, ...) of integers, or of shape (N, ..., C)
        Labels for the categorical likelihood, otherwise an array like the outputs.

    Returns
    -------
    array of shape (N,)
        float64, or complex128 for complex outputs.

    Raises
    ------
    ValueError
        For an unknown likelihood, targets of the wrong shape, or labels that are no integers
        between 0 and C - 1.

    Examples
    --------
    >>> from ngd_core.reference import loss_value
    >>> loss_value("gaussian", [[1.0, 3.0]], [[0.0, 1.0]])
    array([2.5])
    """
    f = double(outputs)
    y = _targets(likelihood, f, targets)
    values = np.zeros(len(f), f.dtype)
    if likelihood == "categorical":
        for n, *position in np.ndindex(y.shape):
            logits = f[(n, *position)]
            shift = np.max(logits.real)
            log_total = shift + np.log(np.sum(np.exp(logits - shift)))
            values[n] += log_total - logits[y[(n, *position)]]
        return values
    for n, *place in np.ndindex(f.shape):
        output, target = f[(n, *place)], y[(n, *place)]
        if likelihood == "gaussian":
            values[n] += 0.5 * (output - target) * (output - target)
        else:
            above = output if output.real > 0 else 0.0 * output
            below = -output if output.real > 0 else output
            values[n] += above + np.log1p(np.exp(below)) - target * output
    return values


def loss_gradient(likelihood: Likelihood, outputs: ArrayLike, targets: ArrayLike) -> Array:
    """Gradient of each example's loss with respect to its outputs.

    Parameters
    ----------
    likelihood : "categorical", "bernoulli" or "gaussian"
        ``softmax(f) - onehot(y)``, ``sigmoid(f) - y`` or ``f - y``.
    outputs : array of shape (N, ..., C)
        Logits, or means; real or complex.
    targets : array of shape (N, ...) of integers, or of shape (N, ..., C)
        As in `loss_value`.

    Returns
    -------
    array of shape (N, ..., C)
        Not divided by N. float64, or complex128 for complex outputs.

    Raises
    ------
    ValueError
        As in `loss_value`.

    Examples
    --------
    >>> from ngd_core.reference import loss_gradient
    >>> loss_gradient("categorical", [[0.0, 0.0]], [1])
    array([[ 0.5, -0.5]])
    """
    f = double(outputs)
    y = _targets(likelihood, f, targets)
    if likelihood == "gaussian":
        return f - y
    if likelihood == "bernoulli":
        return sigmoid(f) - y
    gradient = np.zeros_like(f)
    for place in np.ndindex(y.shape):
        gradient[place] = softmax(f[place])
        gradient[(*place, y[place])] -= 1.0
    return gradient


def loss_hessian(likelihood: Likelihood, outputs: ArrayLike) -> Array:
    """Hessian of each example's loss with respect to its outputs, as an explicit matrix.

    It does not depend on the targets and equals the covariance of the loss gradient under the
    model distribution, hence the Fisher of the outputs.

    Parameters
    ----------
    likelihood : "categorical", "bernoulli" or "gaussian"
        Per position ``diag(p) - p p^T``; per output ``p (1 - p)``; the identity.
    outputs : array of shape (N, ..., C)
        Logits, or means; real.

    Returns
    -------
    array of shape (N, K, K), float64
        K = number of outputs of an example over all positions, row-major.

    Raises
    ------
    ValueError
        For an unknown likelihood.

    Examples
    --------
    >>> from ngd_core.reference import loss_hessian
    >>> loss_hessian("categorical", [[0.0, 0.0]])
    array([[[ 0.25, -0.25],
            [-0.25,  0.25]]])
    """
    _check_likelihood(likelihood)
    f = double(outputs)
    n_examples, classes = f.shape[0], f.shape[-1]
    flat = f.reshape(n_examples, -1)
    size = flat.shape[1]
    hessian = np.zeros((n_examples, size, size), f.dtype)
    for n in range(n_examples):
        if likelihood == "gaussian":
            hessian[n] = np.eye(size)
        elif likelihood == "bernoulli":
            p = sigmoid(flat[n])
            hessian[n] = np.diag(p * (1.0 - p))
        else:
            for start in range(0, size, classes):
                p = softmax(flat[n, start : start + classes])
                place = slice(start, start + classes)
                hessian[n, place, place] = np.diag(p) - np.outer(p, p)
    return hessian


def loss_hessian_root(likelihood: Likelihood, outputs: ArrayLike) -> Array:
    """Build a matrix S with ``S S^T`` equal to each example's `loss_hessian`, by columns.

    From the eigendecomposition ``H = Q diag(w) Q^T``: column m is ``sqrt(w_m) q_m``. Only S S^T is
    determined; do not compare columns with those of another root.

    Parameters
    ----------
    likelihood : "categorical", "bernoulli" or "gaussian"
        As in `loss_hessian`.
    outputs : array of shape (N, ..., C)
        Logits, or means; real.

    Returns
    -------
    array of shape (K, N, ..., C), float64
        Vector m of example n at ``[m, n]``; K vectors, the number of outputs of an example.

    Raises
    ------
    ValueError
        For an unknown likelihood.

    Examples
    --------
    >>> from ngd_core.reference import loss_hessian_root
    >>> S = loss_hessian_root("categorical", [[0.0, 0.0]])[:, 0].T
    >>> (S @ S.T).round(2)
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    f = double(outputs)
    hessian = loss_hessian(likelihood, f)
    size = hessian.shape[-1]
    vectors = np.zeros((size, *f.shape))
    for n in range(len(f)):
        w, q = np.linalg.eigh(hessian[n])
        for m in range(size):
            column = np.sqrt(max(w[m], 0.0)) * q[:, m]
            vectors[m, n] = column.reshape(f.shape[1:])
    return vectors


def sample_targets(likelihood: Likelihood, outputs: ArrayLike, noise: ArrayLike) -> Array:
    """Draw targets from the model's own distribution, with the noise passed in.

    Parameters
    ----------
    likelihood : "categorical", "bernoulli" or "gaussian"
        Categorical: the smallest k with ``p_0 + ... + p_k > u``, u uniform on [0, 1).
        Bernoulli: 1 where ``u < sigmoid(f)``. Gaussian: ``f + standard normal noise``.
    outputs : array of shape (N, ..., C)
        Logits, or means; real.
    noise : array of shape (N, ...) for categorical, otherwise (N, ..., C)
        One number per target.

    Returns
    -------
    array of the shape of `noise`
        int64 labels for categorical, otherwise float64.

    Raises
    ------
    ValueError
        For an unknown likelihood or noise of the wrong shape.

    Examples
    --------
    >>> from ngd_core.reference import sample_targets
    >>> sample_targets("categorical", [[0.0, 0.0], [0.0, 0.0]], [0.4, 0.6])
    array([0, 1])
    """
    _check_likelihood(likelihood)
    f, u = double(outputs), double(noise)
    require_shape("noise", u, f.shape[:-1] if likelihood == "categorical" else f.shape)
    if likelihood == "gaussian":
        return f + u
    if likelihood == "bernoulli":
        return (u < sigmoid(f)).astype(np.float64)
    labels = np.zeros(u.shape, np.int64)
    for place in np.ndindex(u.shape):
        total = 0.0
        for k, p in enumerate(softmax(f[place])):
            labels[place] = k
            total += p
            if total > u[place]:
                break
    return labels


def backpropagated_vectors(
    likelihood: Likelihood,
    outputs: ArrayLike,
    kind: FisherKind = "exact",
    targets: ArrayLike | Sequence[ArrayLike] | None = None,
) -> Array:
    """Build vectors v[m, n] at the outputs whose ``sum_m v v^T`` stands for the loss Hessian.

    Parameters
    ----------
    likelihood : "categorical", "bernoulli" or "gaussian"
        As in `loss_value`.
    outputs : array of shape (N, ..., C)
        Logits, or means; real.
    kind : "exact", "mc" or "empirical"
        Columns of `loss_hessian_root`; loss gradients at M sampled targets, each divided by
        sqrt(M); the loss gradient at the labels.
    targets : sequence of M target arrays for "mc", target array for "empirical", otherwise None
        Each as in `loss_value`.

    Returns
    -------
    array of shape (M, N, ..., C), float64
        M = number of outputs of an example for "exact" and 1 for "empirical".

    Raises
    ------
    ValueError
        For an unknown kind, or targets missing or given where there are none.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import backpropagated_vectors
    >>> samples = [[[1.0]], [[3.0]], [[-1.0]], [[5.0]]]
    >>> backpropagated_vectors("gaussian", [[1.0]], "mc", samples)[:, 0, 0]
    array([ 0., -1.,  1., -2.])
    """
    if kind not in ("exact", "mc", "empirical"):
        msg = f"kind is {kind!r}; expected 'exact', 'mc' or 'empirical'."
        raise ValueError(msg)
    if (targets is None) != (kind == "exact"):
        msg = f"kind {kind!r} with targets {'missing' if targets is None else 'given'}; "
        msg += "'mc' needs a sequence of sampled targets, 'empirical' the labels, 'exact' none."
        raise ValueError(msg)
    if targets is None:
        return loss_hessian_root(likelihood, outputs)
    samples = [targets] if kind == "empirical" else list(targets)  # type: ignore[arg-type]
    gradients = [loss_gradient(likelihood, outputs, sample) for sample in samples]  # type: ignore[arg-type]
    vectors: Array = np.stack(gradients)
    vectors /= np.sqrt(len(samples))
    return vectors
