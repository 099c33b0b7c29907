"""Inputs of a sliding kernel by strided slices, and the adjoint maps that scatter back.

One tap of the kernel reads one strided slice of the padded input, so a kernel of ``kh * kw`` taps
needs that many slices, one stack and one reshape.
"""

from __future__ import annotations

from collections.abc import Iterator

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.types import Conv2dGeometry

__all__ = ["fold", "fold_windows", "mean_patches", "patches", "tap_slices", "windows"]


def tap_slices(
    geometry: Conv2dGeometry, out_height: int, out_width: int
) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the padded input that each tap reads, taps in row-major order.

    Parameters
    ----------
    geometry : Conv2dGeometry
        Kernel.
    out_height, out_width : int
        Size of the output.

    Yields
    ------
    pair of slice
        One for each tap.

    Examples
    --------
    >>> from ngd_core import Conv2dGeometry
    >>> list(tap_slices(Conv2dGeometry((1, 2), stride=3), 4, 1))
    [(slice(0, 10, 3), slice(0, 1, 3)), (slice(0, 10, 3), slice(1, 2, 3))]
    """
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel_size, geometry.stride, geometry.dilation
    for i in range(kh):
        rows = slice(i * dh, i * dh + (out_height - 1) * sh + 1, sh)
        for j in range(kw):
            yield rows, slice(j * dw, j * dw + (out_width - 1) * sw + 1, sw)


def windows(x: Array, geometry: Conv2dGeometry, *, xp: Namespace) -> Array:
    """Gather what each tap of the kernel reads at each output position.

    Parameters
    ----------
    x : array, shape (..., C, H, W)
        Input; leading axes are carried along.
    geometry : Conv2dGeometry
        Kernel; its groups play no part here.
    xp : namespace
        Of `x`.

    Returns
    -------
    array, shape (..., C, kh * kw, out_height, out_width)
        Dtype of `x`. Taps are in row-major order, padding reads 0.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Conv2dGeometry
    >>> windows(np.ones((5, 3, 8, 8)), Conv2dGeometry(3, stride=2), xp=np).shape
    (5, 3, 9, 3, 3)
    """
    height, width = x.shape[-2:]
    out = geometry.output_size(height, width)
    none = ((0, 0),) * (x.ndim - 2)
    padded = _xp.pad(x, (*none, *geometry.pads(height, width)), xp=xp)
    return xp.stack([padded[..., rows, cols] for rows, cols in tap_slices(geometry, *out)], axis=-3)


def fold_windows(
    w: Array, geometry: Conv2dGeometry, height: int, width: int, *, xp: Namespace
) -> Array:
    """Adjoint of `windows`: each value is added to the input element that it was read from.

    Parameters
    ----------
    w : array, shape (..., C, kh * kw, out_height, out_width)
        As `windows` returns it.
    geometry : Conv2dGeometry
        The same as there.
    height, width : int
        Size of the input without padding.
    xp : namespace
        Of `w`.

    Returns
    -------
    array, shape (..., C, height, width)
        Dtype of `w`; what falls on the padding is dropped.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Conv2dGeometry
    >>> fold_windows(np.ones((1, 4, 1, 2)), Conv2dGeometry(2), 2, 3, xp=np)
    array([[[1., 2., 1.],
            [1., 2., 1.]]])
    """
    (top, bottom), (left, right) = geometry.pads(height, width)
    shape = (*w.shape[:-3], height + top + bottom, width + left + right)
    x = _xp.zeros(shape, like=w, xp=xp)
    out = geometry.output_size(height, width)
    for tap, (rows, cols) in enumerate(tap_slices(geometry, *out)):
        x = _xp.add_at(x, (..., rows, cols), w[..., tap, :, :])
    return x[..., top : top + height, left : left + width]


def patches(x: Array, geometry: Conv2dGeometry, *, xp: Namespace) -> Array:
    """Gather the rows that a convolution multiplies its kernel with, one an output position.

    A kernel of PyTorch layout ``(O, C / groups, kh, kw)``, flattened to
    ``(O, C / groups * kh * kw)``, gives the convolution's output as ``patches @ kernel.mT``; with
    groups, one such product for each group.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Input.
    geometry : Conv2dGeometry
        Kernel, stride, dilation, padding and groups.
    xp : namespace
        Of `x`.

    Returns
    -------
    array, shape (N, T, C * kh * kw) or (groups, N, T, C / groups * kh * kw)
        Dtype of `x`. The ``T = out_height * out_width`` positions are row-major, columns are
        ordered (channel, kh, kw), padding reads 0. No column for the bias is added.

    Raises
    ------
    ValueError
        If `x` has other than four axes, the groups do not divide the channels, or the dilated
        kernel is larger than the padded input.

    Notes
    -----
    This is the expansion ``[[A]]`` of Grosse and Martens (2016), section 2.2, without the
    homogeneous column.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Conv2dGeometry
    >>> x = np.reshape(np.arange(9.0), (1, 1, 3, 3))
    >>> patches(x, Conv2dGeometry(2), xp=np)[0, 1, :]
    array([1., 2., 4., 5.])
    """
    _checks.rank(4, 4, x=x)
    groups = geometry.groups
    n, channels = x.shape[:2]
    if channels % groups:
        msg = f"x has {channels} channels (axis 1), which {groups} groups do not divide."
        raise ValueError(msg)
    read = windows(x, geometry, xp=xp)
    taps, out_height, out_width = read.shape[-3:]
    columns, positions = channels // groups * taps, out_height * out_width
    if groups == 1:
        return xp.matrix_transpose(xp.reshape(read, (n, columns, positions)))
    return xp.permute_dims(xp.reshape(read, (n, groups, columns, positions)), (1, 0, 3, 2))


def fold(p: Array, geometry: Conv2dGeometry, height: int, width: int, *, xp: Namespace) -> Array:
    """Adjoint of `patches`: the gradient at the input, given the gradient at the patches.

    Parameters
    ----------
    p : array, shape (..., N, T, C * kh * kw) or (..., groups, N, T, C / groups * kh * kw)
        As `patches` returns it, possibly with more leading axes.
    geometry : Conv2dGeometry
        The same as there.
    height, width : int
        Size of the input without padding.
    xp : namespace
        Of `p`.

    Returns
    -------
    array, shape (..., N, C, height, width)
        Dtype of `p`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Conv2dGeometry
    >>> fold(np.ones((1, 4, 4)), Conv2dGeometry(2), 3, 3, xp=np)
    array([[[[1., 2., 1.],
             [2., 4., 2.],
             [1., 2., 1.]]]])
    """
    groups = geometry.groups
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    q = xp.matrix_transpose(p)
    if groups > 1:
        k = q.ndim - 4
        q = xp.permute_dims(q, (*range(k), k + 1, k, k + 2, k + 3))
        lead = q.shape[:-3]
    else:
        lead = q.shape[:-2]
    channels = groups * (p.shape[-1] // taps)
    shape = (*lead, channels, taps, *geometry.output_size(height, width))
    return fold_windows(xp.reshape(q, shape), geometry, height, width, xp=xp)


def mean_patches(x: Array, geometry: Conv2dGeometry, *, xp: Namespace) -> Array:
    """Mean over positions of what `patches` returns, without gathering it.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Input.
    geometry : Conv2dGeometry
        As for `patches`.
    xp : namespace
        Of `x`.

    Returns
    -------
    array, shape (N, C * kh * kw) or (groups, N, C / groups * kh * kw)
        Dtype of `x`.

    Raises
    ------
    ValueError
        If the dilated kernel is larger than the padded input.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Conv2dGeometry
    >>> x = np.reshape(np.arange(9.0), (1, 1, 3, 3))
    >>> mean_patches(x, Conv2dGeometry(2), xp=np)
    array([[2., 3., 5., 6.]])
    """
    n, (height, width) = x.shape[0], x.shape[2:]
    padded = _xp.pad(x, ((0, 0), (0, 0), *geometry.pads(height, width)), xp=xp)
    slices = tap_slices(geometry, *geometry.output_size(height, width))
    means = [xp.mean(padded[..., rows, cols], axis=(-2, -1)) for rows, cols in slices]
    found = xp.reshape(xp.stack(means, axis=-1), (n, geometry.groups, -1))
    return xp.permute_dims(found, (1, 0, 2)) if geometry.groups > 1 else found[:, 0, :]
