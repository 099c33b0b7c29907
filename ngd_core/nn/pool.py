"""Pooling over windows, by the same strided slices as the convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ngd_core import _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors.patches import fold_windows, windows
from ngd_core.nn._border import require_input
from ngd_core.types import Conv2dGeometry

__all__ = ["AvgPool2d", "GlobalAvgPool2d", "MaxPool2d"]


@dataclass(frozen=True)
class MaxPool2d:
    """Largest value in each window of ``(N, C, H, W)`` inputs, without padding.

    Parameters
    ----------
    size : int or tuple of int
        Height and width of the window.
    stride : int, tuple of int or None
        Step between windows; None stands for `size`.

    Notes
    -----
    Where several inputs of a window tie, the whole gradient goes to the first of them in
    row-major order, as in PyTorch and JAX.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.predict(nn.MaxPool2d(2), {}, np.reshape(np.arange(8.0), (1, 1, 2, 4)))
    array([[[[5., 7.]]]])
    """

    size: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None
    geometry: Conv2dGeometry = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "geometry", _geometry(self.size, self.stride))

    def forward(self, x: Array, *, xp: Namespace) -> tuple[Array, Array]:
        """Compute ``(N, C, out_height, out_width)`` outputs; the input is kept."""
        _require_images("MaxPool2d", x)
        return xp.max(windows(x, self.geometry, xp=xp), axis=-3), x

    def backward(self, x: Array, g: Array, *, xp: Namespace) -> Array:
        """Put each gradient at the first maximal tap of its window."""
        first = xp.argmax(windows(x, self.geometry, xp=xp), axis=-3, keepdims=True)
        taps = math.prod(self.geometry.kernel_size)
        tap = _xp.arange(taps, like=x, dtype=first.dtype, xp=xp)[:, None, None]
        routed = g[..., None, :, :] * _xp.astype(first == tap, g.dtype, xp=xp)
        return fold_windows(routed, self.geometry, *x.shape[-2:], xp=xp)


@dataclass(frozen=True)
class AvgPool2d:
    """Mean of each window of ``(N, C, H, W)`` inputs, without padding.

    Parameters
    ----------
    size : int or tuple of int
        Height and width of the window.
    stride : int, tuple of int or None
        Step between windows; None stands for `size`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.predict(nn.AvgPool2d(2), {}, np.reshape(np.arange(8.0), (1, 1, 2, 4)))
    array([[[[2.5, 4.5]]]])
    """

    size: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None
    geometry: Conv2dGeometry = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "geometry", _geometry(self.size, self.stride))

    def forward(self, x: Array, *, xp: Namespace) -> tuple[Array, Array]:
        """Compute ``(N, C, out_height, out_width)`` outputs; the input is kept for its shape."""
        _require_images("AvgPool2d", x)
        return xp.mean(windows(x, self.geometry, xp=xp), axis=-3), x

    def backward(self, x: Array, g: Array, *, xp: Namespace) -> Array:
        """Share each gradient equally among the taps of its window."""
        taps = math.prod(self.geometry.kernel_size)
        shape = (*g.shape[:-2], taps, *g.shape[-2:])
        shares = xp.broadcast_to((g / taps)[..., None, :, :], shape)
        return fold_windows(shares, self.geometry, *x.shape[-2:], xp=xp)


@dataclass(frozen=True)
class GlobalAvgPool2d:
    """Mean over all positions: ``(N, C, H, W)`` to ``(N, C)``.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.predict(nn.GlobalAvgPool2d(), {}, np.reshape(np.arange(4.0), (1, 1, 2, 2)))
    array([[1.5]])
    """

    def forward(self, x: Array, *, xp: Namespace) -> tuple[Array, Array]:
        """Compute ``(N, C)`` outputs; the input is kept for its shape."""
        _require_images("GlobalAvgPool2d", x)
        return xp.mean(x, axis=(-2, -1)), x

    def backward(self, x: Array, g: Array, *, xp: Namespace) -> Array:
        """Share each gradient equally among all positions."""
        height, width = x.shape[-2:]
        shares = (g / (height * width))[..., None, None]
        return xp.broadcast_to(shares, (*g.shape, height, width))


def _geometry(size: int | tuple[int, int], stride: int | tuple[int, int] | None) -> Conv2dGeometry:
    return Conv2dGeometry(size, size if stride is None else stride)


def _require_images(layer: str, x: Array) -> None:
    require_input(layer, x, x.ndim == 4, "(N, channels, height, width)")
