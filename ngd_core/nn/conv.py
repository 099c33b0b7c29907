"""2-D convolution by patches: one stack of strided slices, one reshape, one matrix product."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ngd_core._typing import Array, Namespace
from ngd_core.factors.patches import fold_windows, windows
from ngd_core.nn._border import require_input, sum_vectors
from ngd_core.nn.layers import scaled
from ngd_core.types import Conv2dGeometry, LayerSpec

__all__ = ["Conv2d"]


@dataclass(frozen=True)
class Conv2d:
    """2-D convolution (cross-correlation, as in every framework) of ``(N, C, H, W)`` inputs.

    Parameters
    ----------
    name : str
        Key of the block ``[W b]``, shape
        ``(out_channels, in_channels * kh * kw + bias)``; with several groups
        ``(groups, out_channels / groups, in_channels / groups * kh * kw + bias)``. A row of W is
        a PyTorch-layout kernel flattened row-major.
    in_channels, out_channels : int
        Over all groups.
    kernel_size, stride, dilation : int or tuple of int
        As for `Conv2dGeometry`, as are the two that follow.
    padding : "valid", "same", int, (int, int) or ((top, bottom), (left, right))
        Zeros around the input.
    groups : int
        Number of channel groups.
    bias : bool
        Whether the block has a last column b.
    sharing : "expand" or "reduce"
        Handed on to the `LayerSpec`; plays no part in forward and backward.

    Raises
    ------
    ValueError
        As `Conv2dGeometry` and `LayerSpec` do.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> conv = nn.Conv2d("c", 1, 1, 2, bias=False)
    >>> nn.predict(conv, {"c": np.ones((1, 4))}, np.ones((1, 1, 3, 2)))
    array([[[[4.],
             [4.]]]])
    """

    name: str
    in_channels: int
    out_channels: int
    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    dilation: int | tuple[int, int] = 1
    padding: (
        Literal["same", "valid"] | int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
    ) = "valid"
    groups: int = 1
    bias: bool = True
    sharing: Literal["expand", "reduce"] = "expand"
    geometry: Conv2dGeometry = field(init=False, repr=False, compare=False)
    spec: LayerSpec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        geometry = Conv2dGeometry(
            self.kernel_size, self.stride, self.dilation, self.padding, self.groups
        )
        spec = LayerSpec(
            self.name,
            "conv2d",
            self.in_channels,
            self.out_channels,
            self.bias,
            self.sharing,
            geometry,
        )
        object.__setattr__(self, "geometry", geometry)
        object.__setattr__(self, "spec", spec)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of the block."""
        return self.spec.block_shape

    def init(self, u: Array, *, gain: float, xp: Namespace) -> Array:
        """Start at weights uniform in ``±gain sqrt(3 / fan_in)`` and bias 0."""
        fan_in = self.spec.columns - self.bias
        return scaled(u, self.bias, gain * math.sqrt(3 / fan_in), xp=xp)

    def forward(self, block: Array, x: Array, *, xp: Namespace) -> tuple[Array, Array]:
        """Compute ``(N, out_channels, out_height, out_width)`` outputs; the input is kept."""
        fits = x.ndim == 4 and x.shape[1] == self.in_channels
        require_input(f"Layer {self.name!r}", x, fits, f"(N, {self.in_channels}, height, width)")
        weight, bias = self._split(block, xp=xp)
        z = weight @ self._columns(x, xp=xp)
        if bias is not None:
            z = z + bias
        out = self.geometry.output_size(*x.shape[2:])
        return xp.reshape(z, (x.shape[0], self.out_channels, *out)), x

    def backward(self, block: Array, x: Array, g: Array, *, xp: Namespace) -> Array:
        """Compute ``W^T g`` at every position and add it to the inputs that were read."""
        weight, _ = self._split(block, xp=xp)
        p = xp.matrix_transpose(weight) @ self._outputs(g, xp=xp)
        taps = math.prod(self.geometry.kernel_size)
        shape = (*g.shape[:-3], self.in_channels, taps, *g.shape[-2:])
        return fold_windows(xp.reshape(p, shape), self.geometry, *x.shape[2:], xp=xp)

    def gradient(self, x: Array, g: Array, *, xp: Namespace) -> Array:
        """Compute ``(1/N) sum_n g^T [patches 1]``, summed over positions and M."""
        out = self._outputs(sum_vectors(g, x.ndim, xp=xp), xp=xp)
        columns = self._columns(x, xp=xp)
        if self.spec.rows <= out.shape[-1]:  # then a product an example is less than its patches
            w = xp.sum(out @ xp.matrix_transpose(columns), axis=0)
        else:
            w = _merge(out, xp=xp) @ xp.matrix_transpose(_merge(columns, xp=xp))
        if self.bias:
            w = xp.concat([w, xp.sum(out, axis=(0, -1))[..., None]], axis=-1)
        return xp.reshape(w / x.shape[0], self.block_shape)

    def _split(self, block: Array, *, xp: Namespace) -> tuple[Array, Array | None]:
        spec = self.spec
        block = xp.reshape(block, (self.groups, spec.rows, spec.columns))
        if self.bias:
            return block[..., :-1], block[..., -1:]
        return block, None

    def _columns(self, x: Array, *, xp: Namespace) -> Array:
        """Gather patches of shape ``(N, groups, columns, T)``."""
        read = windows(x, self.geometry, xp=xp)
        columns = self.spec.columns - self.bias
        return xp.reshape(read, (x.shape[0], self.groups, columns, math.prod(read.shape[-2:])))

    def _outputs(self, g: Array, *, xp: Namespace) -> Array:
        """Give output gradients the shape ``(..., N, groups, rows, T)``."""
        shape = (*g.shape[:-3], self.groups, self.spec.rows, math.prod(g.shape[-2:]))
        return xp.reshape(g, shape)


def _merge(x: Array, *, xp: Namespace) -> Array:
    """Merge examples and positions: ``(N, groups, rows, T)`` as ``(groups, rows, N T)``."""
    n, groups, rows, positions = x.shape
    return xp.reshape(xp.permute_dims(x, (1, 2, 0, 3)), (groups, rows, n * positions))
