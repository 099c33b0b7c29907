"""Forward functions of layers on any number of axes, for real and for complex arrays.

Every function here and in `ngd_core.reference.images` is analytic in its input wherever the layer
is differentiable: choices look at the real part alone and no modulus is taken, so
``imag(f(x + ih)) / h`` is the derivative to machine precision (`ngd_core.reference.jacobian`).
Real input gives float64, complex input complex128.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import Array, double, require_shape, result_dtype

__all__ = ["dense", "flatten", "gelu", "layer_norm", "relu", "sigmoid", "tanh"]


def dense(x: ArrayLike, block: ArrayLike, bias: bool = True) -> Array:
    """Affine map of the last axis.

    ``z[..., o] = sum_i W[o, i] x[..., i] + b[o]``

    Parameters
    ----------
    x : array of shape (..., in_features)
        Inputs; every axis but the last is carried along.
    block : array of shape (out_features, in_features + bias)
        ``[W b]``, the bias column last.
    bias : bool
        Whether the block has that column.

    Returns
    -------
    array of shape (..., out_features)
        float64, or complex128 if either argument is complex.

    Raises
    ------
    ValueError
        If the columns of the block do not fit the inputs.

    Examples
    --------
    >>> from ngd_core.reference import dense
    >>> dense([[1.0, 2.0]], [[3.0, 4.0, 5.0]])
    array([[16.]])
    """
    x, block = double(x), double(block)
    inputs = x.shape[-1]
    require_shape("block", block, (len(block), inputs + bias))
    z = np.zeros((*x.shape[:-1], len(block)), result_dtype(x, block))
    for o in range(len(block)):
        for i in range(inputs):
            z[..., o] += block[o, i] * x[..., i]
        if bias:
            z[..., o] += block[o, inputs]
    return z


def layer_norm(x: ArrayLike, block: ArrayLike, eps: float = 1e-5) -> Array:
    """Normalise the last axis, then scale and shift it.

    ``z_i = s_i (x_i - mean(x)) / sqrt(var(x) + eps) + t_i``, the variance with divisor `features`.

    Parameters
    ----------
    x : array of shape (..., features)
        Inputs.
    block : array of shape (features, 2)
        ``[scale shift]``.
    eps : float
        Added to the variance under the root.

    Returns
    -------
    array of the shape of `x`
        float64, or complex128 if an argument is complex.

    Raises
    ------
    ValueError
        If the block does not have shape (features, 2).

    Examples
    --------
    >>> from ngd_core.reference import layer_norm
    >>> layer_norm([[1.0, 3.0]], [[1.0, 0.0], [2.0, 5.0]], eps=0.0)
    array([[-1.,  7.]])
    """
    x, block = double(x), double(block)
    require_shape("block", block, (x.shape[-1], 2))
    z = np.zeros(x.shape, result_dtype(x, block))
    for place in np.ndindex(x.shape[:-1]):
        centred = x[place] - np.mean(x[place])
        variance = np.mean(centred * centred)
        z[place] = block[:, 0] * centred / np.sqrt(variance + eps) + block[:, 1]
    return z


def relu(x: ArrayLike) -> Array:
    """``x`` where its real part is positive, otherwise 0 (also at 0).

    Parameters
    ----------
    x : array of any shape
        Inputs.

    Returns
    -------
    array of the shape of `x`
        float64, or complex128 if an argument is complex.

    Examples
    --------
    >>> from ngd_core.reference import relu
    >>> relu([-1.0, 2.0])
    array([0., 2.])
    """
    x = double(x)
    return np.where(x.real > 0, x, 0.0)


def tanh(x: ArrayLike) -> Array:
    """Hyperbolic tangent.

    Parameters
    ----------
    x : array of any shape
        Inputs.

    Returns
    -------
    array of the shape of `x`
        float64, or complex128 if an argument is complex.

    Examples
    --------
    >>> from ngd_core.reference import tanh
    >>> tanh([0.0])
    array([0.])
    """
    return np.tanh(double(x))


def sigmoid(x: ArrayLike) -> Array:
    """``1 / (1 + exp(-x))``, without overflow for large negative `x`.

    Parameters
    ----------
    x : array of any shape
        Inputs.

    Returns
    -------
    array of the shape of `x`
        float64, or complex128 if an argument is complex.

    Examples
    --------
    >>> from ngd_core.reference import sigmoid
    >>> sigmoid([0.0, -1000.0])
    array([0.5, 0. ])
    """
    x = double(x)
    positive = x.real >= 0
    small = np.exp(np.where(positive, -x, x))
    return np.where(positive, 1.0, small) / (1.0 + small)


def gelu(x: ArrayLike) -> Array:
    """Gaussian error linear unit in its tanh form (Hendrycks and Gimpel 2016).

    ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``

    Parameters
    ----------
    x : array of any shape
        Inputs.

    Returns
    -------
    array of the shape of `x`
        float64, or complex128 if an argument is complex.

    Examples
    --------
    >>> from ngd_core.reference import gelu
    >>> gelu([0.0, 100.0])
    array([  0., 100.])
    """
    x = double(x)
    inner: Array = np.sqrt(2.0 / np.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1.0 + np.tanh(inner))


def flatten(x: ArrayLike) -> Array:
    """All axes but the first in one, row-major.

    Parameters
    ----------
    x : array of shape (N, ...)
        Inputs.

    Returns
    -------
    array of shape (N, product of the other axes)
        float64, or complex128 if an argument is complex.

    Examples
    --------
    >>> from ngd_core.reference import flatten
    >>> flatten([[[1.0, 2.0], [3.0, 4.0]]])
    array([[1., 2., 3., 4.]])
    """
    x = double(x)
    return x.reshape(x.shape[0], -1)
