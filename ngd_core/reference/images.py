"""Convolution, its receptive fields, and pooling of images, by nested loops.

Images have shape (N, channels, height, width); the rules of `ngd_core.reference.layers` hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference._arrays import (
    NO_PADDING,
    Array,
    Padding,
    Pair,
    double,
    require_shape,
    result_dtype,
)

__all__ = ["avg_pool2d", "conv2d", "conv_patches", "global_avg_pool2d", "max_pool2d"]


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
    _require_images(x)
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
    out_height, out_width = _output_size((height, width), kernel_size, stride, dilation, padding)
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


def conv_patches(
    x: ArrayLike,
    kernel_size: Pair,
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    padding: Padding = NO_PADDING,
    groups: int = 1,
) -> Array:
    """Receptive fields of a convolution, one row per output position.

    Parameters
    ----------
    x : array of shape (N, channels, height, width)
        Images.
    kernel_size, stride, dilation : (int, int)
        (height, width).
    padding : ((top, bottom), (left, right))
        Zeros around the image.
    groups : int
        Number of channel groups.

    Returns
    -------
    array of shape (N, T, D), or (groups, N, T, D) for groups > 1
        T output positions, row-major; D = ``channels / groups * kh * kw`` columns in the order
        (channel, kernel row, kernel column). No bias column. ``patches @ W.T`` is the convolution.

    Raises
    ------
    ValueError
        As in `conv2d`.

    Examples
    --------
    >>> from ngd_core.reference import conv_patches
    >>> conv_patches([[[[1.0, 2.0, 3.0]]]], kernel_size=(1, 2))
    array([[[1., 2.],
            [2., 3.]]])
    """
    x = double(x)
    _require_images(x)
    n_images, channels, height, width = x.shape
    own = group_channels(channels, groups)
    kh, kw = kernel_size
    rows, columns = _output_size((height, width), kernel_size, stride, dilation, padding)
    patches = np.zeros((groups, n_images, rows * columns, own * kh * kw), x.dtype)
    for group in range(groups):
        for n in range(n_images):
            for p in range(rows):
                for q in range(columns):
                    for c in range(own):
                        for i in range(kh):
                            for j in range(kw):
                                r = p * stride[0] + i * dilation[0] - padding[0][0]
                                s = q * stride[1] + j * dilation[1] - padding[1][0]
                                if 0 <= r < height and 0 <= s < width:
                                    column = c * kh * kw + i * kw + j
                                    patches[group, n, p * columns + q, column] = x[
                                        n, group * own + c, r, s
                                    ]
    return patches[0] if groups == 1 else patches


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
        float64, or complex128 if `x` is complex.

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
    _require_images(x)
    stride = kernel_size if stride is None else stride
    height, width = _output_size(x.shape[2:], kernel_size, stride, (1, 1), NO_PADDING)
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
        float64, or complex128 if `x` is complex.

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
    _require_images(x)
    stride = kernel_size if stride is None else stride
    height, width = _output_size(x.shape[2:], kernel_size, stride, (1, 1), NO_PADDING)
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
        float64, or complex128 if `x` is complex.

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
    _require_images(x)
    z = np.zeros(x.shape[:2], x.dtype)
    for p in range(x.shape[2]):
        for q in range(x.shape[3]):
            z += x[:, :, p, q]
    z /= x.shape[2] * x.shape[3]
    return z


def _require_images(x: Array) -> None:
    """Reject anything but four axes."""
    if x.ndim != 4:
        msg = f"x has shape {x.shape}; expected images of shape (N, channels, height, width)."
        raise ValueError(msg)


def group_channels(channels: int, groups: int) -> int:
    """Input channels of one group; `ValueError` if the groups do not divide them."""
    if groups < 1 or channels % groups:
        msg = f"{channels} channels in {groups} groups; the groups must divide the channels."
        raise ValueError(msg)
    return channels // groups


def _output_size(
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
