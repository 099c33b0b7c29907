"""Forward functions of the layers, by loops, for real and for complex arrays.

Every function is analytic in its input wherever the layer is differentiable: choices look at the
real part alone and no modulus is taken, so ``imag(f(x + ih)) / h`` is the derivative to machine
precision (`ngd_core.reference.jacobian`). Real input gives float64, complex input complex128.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "avg_pool2d",
    "conv2d",
    "dense",
    "flatten",
    "gelu",
    "global_avg_pool2d",
    "layer_norm",
    "max_pool2d",
    "relu",
    "sigmoid",
    "tanh",
]

Array: TypeAlias = NDArray[Any]
Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = tuple[tuple[int, int], tuple[int, int]]

NO_PADDING: Padding = ((0, 0), (0, 0))


def double(x: ArrayLike) -> Array:
    """Copy `x` as float64, or as complex128 if it is complex."""
    array = np.array(x)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def result_dtype(*arrays: Array) -> type[np.float64] | type[np.complex128]:
    """complex128 if any array is complex, otherwise float64."""
    return np.complex128 if any(np.iscomplexobj(x) for x in arrays) else np.float64


def require_shape(name: str, x: Array, wanted: tuple[int, ...]) -> None:
    """Reject an array of any other shape."""
    if x.shape != wanted:
        msg = f"{name} has shape {x.shape}; expected {wanted}."
        raise ValueError(msg)


def require_images(x: Array) -> None:
    """Reject anything but four axes."""
    if x.ndim != 4:
        msg = f"x has shape {x.shape}; expected images of shape (N, channels, height, width)."
        raise ValueError(msg)


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


def conv2d(
    x: ArrayLike,
    block: ArrayLike,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    padding: Padding = NO_PADDING,
    groups: int = 1,
    bias: bool = True,
) -> Array:
    """2-D convolution (cross-correlation) by nested loops.

    ``z[n, o, p, q] = b[o] + sum_{c,i,j} W[o, c, i, j] x[n, c, r, s]``

    with ``r = p s1 + i d1 - top``, ``s = q s2 + j d2 - left`` and x = 0 off the grid. With several
    groups, group k maps its own ``channels / groups`` input channels to its own
    ``out_channels / groups`` output channels.

    Parameters
    ----------
    x : array of shape (N, channels, height, width)
        Images.
    block : array of shape (out_channels, D), or (groups, out_channels / groups, D) for groups > 1
        ``[W b]`` with D = ``channels / groups * kh * kw + bias``: columns in the order (channel,
        kernel row, kernel column), which is the row-major flattening of a kernel of shape
        ``(out_channels, channels / groups, kh, kw)``, then the bias.
    kernel_size, stride, dilation : (int, int)
        (height, width).
    padding : ((top, bottom), (left, right))
        Zeros around the image.
    groups : int
        Number of channel groups.
    bias : bool
        Whether the block has a bias column.

    Returns
    -------
    array of shape (N, out_channels, out_height, out_width)
        float64, or complex128 if either argument is complex; ``out_height = (height + top +
        bottom - d1 (kh - 1) - 1) // s1 + 1``, and likewise the width.

    Raises
    ------
    ValueError
        If shapes do not fit, the groups do not divide the channels, or the kernel is larger than
        the padded image.

    Examples
    --------
    >>> from ngd_core.reference import conv2d
    >>> conv2d([[[[1.0, 2.0, 3.0]]]], [[1.0, -1.0, 0.5]], kernel_size=(1, 2))
    array([[[[-0.5, -0.5]]]])
    """
    x, block = double(x), double(block)
    require_images(x)
    if groups == 1:
        block = block[None]
    if block.ndim != 3:
        msg = f"block has {block.ndim} axes; expected (groups, outputs, D) for groups = {groups}."
        raise ValueError(msg)
    (kh, kw), (top, _), (left, _) = kernel_size, padding[0], padding[1]
    n_images, channels, height, width = x.shape
    own = group_channels(channels, groups)
    outputs = block.shape[1]
    require_shape("block of one group", block[0], (outputs, own * kh * kw + bias))
    require_shape("block", block, (groups, outputs, own * kh * kw + bias))
    out_height, out_width = output_size((height, width), kernel_size, stride, dilation, padding)
    z = np.zeros((n_images, groups * outputs, out_height, out_width), result_dtype(x, block))
    pixels, weights = x.tolist(), block.tolist()
    for n in range(n_images):
        for group in range(groups):
            for o in range(outputs):
                row = weights[group][o]
                for p in range(out_height):
                    for q in range(out_width):
                        total = row[-1] if bias else 0.0
                        for c in range(own):
                            for i in range(kh):
                                r = p * stride[0] + i * dilation[0] - top
                                for j in range(kw):
                                    s = q * stride[1] + j * dilation[1] - left
                                    if 0 <= r < height and 0 <= s < width:
                                        weight = row[(c * kh + i) * kw + j]
                                        total += weight * pixels[n][group * own + c][r][s]
                        z[n, group * outputs + o, p, q] = total
    return z


def group_channels(channels: int, groups: int) -> int:
    """Input channels of one group; `ValueError` if the groups do not divide them."""
    if groups < 1 or channels % groups:
        msg = f"{channels} channels in {groups} groups; the groups must divide the channels."
        raise ValueError(msg)
    return channels // groups


def output_size(
    size: Pair, kernel_size: Pair, stride: Pair, dilation: Pair, padding: Padding
) -> Pair:
    """Height and width of a convolution's or pooling's output, by counting the places that fit."""
    counts = []
    for axis in range(2):
        before, after = padding[axis]
        reach = dilation[axis] * (kernel_size[axis] - 1) + 1
        last_start = size[axis] + before + after - reach
        if last_start < 0:
            msg = (
                f"The kernel {kernel_size} with dilation {dilation} is larger than the image "
                f"{size} with padding {padding}; use a smaller kernel or more padding."
            )
            raise ValueError(msg)
        counts.append(len(range(0, last_start + 1, stride[axis])))
    return counts[0], counts[1]


def max_pool2d(x: ArrayLike, kernel_size: Pair, stride: Pair | None = None) -> Array:
    """Largest value (by real part) of each window; on ties the first in row-major order.

    Parameters
    ----------
    x : array of shape (N, channels, height, width)
        Images.
    kernel_size : (int, int)
        Height and width of the window. Windows that do not fit into the image are left out.
    stride : (int, int) or None
        Distance of windows; None means the kernel size.

    Returns
    -------
    array of shape (N, channels, out_height, out_width)
        Same dtype rule as `conv2d`.

    Raises
    ------
    ValueError
        If `x` does not have four axes or the window is larger than the image.

    Examples
    --------
    >>> from ngd_core.reference import max_pool2d
    >>> max_pool2d([[[[1.0, 4.0], [3.0, 2.0]]]], (2, 2))
    array([[[[4.]]]])
    """
    x = double(x)
    require_images(x)
    stride = kernel_size if stride is None else stride
    height, width = output_size(x.shape[2:], kernel_size, stride, (1, 1), NO_PADDING)
    z = np.zeros((*x.shape[:2], height, width), x.dtype)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            for p in range(height):
                for q in range(width):
                    best = x[n, c, p * stride[0], q * stride[1]]
                    for i in range(kernel_size[0]):
                        for j in range(kernel_size[1]):
                            value = x[n, c, p * stride[0] + i, q * stride[1] + j]
                            if value.real > best.real:
                                best = value
                    z[n, c, p, q] = best
    return z


def avg_pool2d(x: ArrayLike, kernel_size: Pair, stride: Pair | None = None) -> Array:
    """Mean of each window.

    Parameters
    ----------
    x : array of shape (N, channels, height, width)
        Images.
    kernel_size : (int, int)
        Height and width of the window. Windows that do not fit into the image are left out.
    stride : (int, int) or None
        Distance of windows; None means the kernel size.

    Returns
    -------
    array of shape (N, channels, out_height, out_width)
        Same dtype rule as `conv2d`.

    Raises
    ------
    ValueError
        If `x` does not have four axes or the window is larger than the image.

    Examples
    --------
    >>> from ngd_core.reference import avg_pool2d
    >>> avg_pool2d([[[[1.0, 4.0], [3.0, 2.0]]]], (2, 2))
    array([[[[2.5]]]])
    """
    x = double(x)
    require_images(x)
    stride = kernel_size if stride is None else stride
    height, width = output_size(x.shape[2:], kernel_size, stride, (1, 1), NO_PADDING)
    z = np.zeros((*x.shape[:2], height, width), x.dtype)
    for p in range(height):
        for q in range(width):
            for i in range(kernel_size[0]):
                for j in range(kernel_size[1]):
                    z[:, :, p, q] += x[:, :, p * stride[0] + i, q * stride[1] + j]
    z /= kernel_size[0] * kernel_size[1]
    return z


def global_avg_pool2d(x: ArrayLike) -> Array:
    """Mean over all pixels: ``(N, channels, height, width)`` to ``(N, channels)``.

    Parameters
    ----------
    x : array of shape (N, channels, height, width)
        Images.

    Returns
    -------
    array of shape (N, channels)
        Same dtype rule as `conv2d`.

    Raises
    ------
    ValueError
        If `x` does not have four axes.

    Examples
    --------
    >>> from ngd_core.reference import global_avg_pool2d
    >>> global_avg_pool2d([[[[1.0, 4.0], [3.0, 2.0]]]])
    array([[2.5]])
    """
    x = double(x)
    require_images(x)
    z = np.zeros(x.shape[:2], x.dtype)
    for p in range(x.shape[2]):
        for q in range(x.shape[3]):
            z += x[:, :, p, q]
    z /= x.shape[2] * x.shape[3]
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
        Same dtype rule as `conv2d`.

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
        Same dtype rule as `conv2d`.

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
        Same dtype rule as `conv2d`.

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
        Same dtype rule as `conv2d`.

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
        Same dtype rule as `conv2d`.

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
        Same dtype rule as `conv2d`.

    Examples
    --------
    >>> from ngd_core.reference import flatten
    >>> flatten([[[1.0, 2.0], [3.0, 4.0]]])
    array([[1., 2., 3., 4.]])
    """
    x = double(x)
    return x.reshape(x.shape[0], -1)
