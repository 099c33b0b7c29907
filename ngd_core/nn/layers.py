"""Layers on the last axis: the affine map, layer normalisation, flattening."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ngd_core import _xp
from ngd_core._typing import Array, Namespace
from ngd_core.nn._border import require_input, sum_vectors
from ngd_core.types import LayerSpec

__all__ = ["Dense", "Flatten", "LayerNorm"]


@dataclass(frozen=True)
class Dense:
    """Affine map of the last axis, ``z = W a + b``; further axes are shared positions.

    Parameters
    ----------
    name : str
        Key of the block ``[W b]``, shape ``(out_features, in_features + bias)``.
    in_features, out_features : int
        Sizes of the last axis of ``(N, ..., in_features)`` inputs and of the outputs.
    bias : bool
        Whether the block has a last column b.
    sharing : "expand" or "reduce"
        Handed on to the `LayerSpec`; plays no part in forward and backward.

    Raises
    ------
    ValueError
        As `LayerSpec` does.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.predict(nn.Dense("fc", 2, 1), {"fc": np.array([[1.0, 2.0, 3.0]])}, np.ones((1, 2)))
    array([[6.]])
    """

    name: str
    in_features: int
    out_features: int
    bias: bool = True
    sharing: Literal["expand", "reduce"] = "expand"
    spec: LayerSpec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spec = LayerSpec(
            self.name, "dense", self.in_features, self.out_features, self.bias, self.sharing
        )
        object.__setattr__(self, "spec", spec)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of the block."""
        return self.spec.block_shape

    def init(self, u: Array, *, gain: float, xp: Namespace) -> Array:
        """Start at weights uniform in ``±gain sqrt(3 / in_features)`` and bias 0."""
        return scaled(u, self.bias, gain * math.sqrt(3 / self.in_features), xp=xp)

    def forward(self, block: Array, x: Array, *, xp: Namespace) -> tuple[Array, Array]:
        """Compute ``(N, ..., out_features)`` outputs; the input is kept."""
        fits = x.ndim >= 2 and x.shape[-1] == self.in_features
        require_input(f"Layer {self.name!r}", x, fits, f"(N, ..., {self.in_features})")
        z = _rows(x, xp=xp) @ xp.matrix_transpose(block[:, : self.in_features])
        if self.bias:
            z = z + block[:, self.in_features]
        return xp.reshape(z, (*x.shape[:-1], self.out_features)), x

    def backward(self, block: Array, x: Array, g: Array, *, xp: Namespace) -> Array:
        """Compute input gradients ``g W``."""
        a = _rows(g, xp=xp) @ block[:, : self.in_features]
        return xp.reshape(a, (*g.shape[:-1], self.in_features))

    def gradient(self, x: Array, g: Array, *, xp: Namespace) -> Array:
        """Compute ``(1/N) sum_n g^T [a 1]``, summed over positions and M."""
        rows = _rows(sum_vectors(g, x.ndim, xp=xp), xp=xp)
        w = xp.matrix_transpose(rows) @ _rows(x, xp=xp)
        if self.bias:
            w = xp.concat([w, xp.sum(rows, axis=0)[:, None]], axis=1)
        return w / x.shape[0]


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation of the last axis to mean 0 and variance 1, then scale and shift.

    ``y = scale (x - mean(x)) / sqrt(var(x) + eps) + shift`` with mean and (biased) variance over
    the last axis (Ba, Kiros and Hinton 2016). It has a gradient but no record: `specs` and
    `backward` leave it out, though a `LayerSpec` of kind "scale" would describe it.

    Parameters
    ----------
    name : str
        Key of the block ``[scale shift]``, shape ``(features, 2)``.
    features : int
        Size of the last axis.
    eps : float
        Added to the variance.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> block = np.array([[1.0, 0.0], [1.0, 5.0]])
    >>> nn.predict(nn.LayerNorm("ln", 2, eps=0.0), {"ln": block}, np.array([[1.0, 3.0]]))
    array([[-1.,  6.]])
    """

    name: str
    features: int
    eps: float = 1e-5

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of the block."""
        return (self.features, 2)

    def init(self, u: Array, *, gain: float, xp: Namespace) -> Array:
        """Start at scale 1 and shift 0; nothing of `u` but dtype and device is used."""
        one = _xp.ones((self.features, 1), like=u, xp=xp)
        return xp.concat([one, _xp.zeros((self.features, 1), like=u, xp=xp)], axis=1)

    def forward(
        self, block: Array, x: Array, *, xp: Namespace
    ) -> tuple[Array, tuple[Array, Array]]:
        """Compute the outputs; normalised inputs and ``1 / sqrt(var + eps)`` are kept."""
        fits = x.ndim >= 2 and x.shape[-1] == self.features
        require_input(f"Layer {self.name!r}", x, fits, f"(N, ..., {self.features})")
        centred = x - xp.mean(x, axis=-1, keepdims=True)
        variance = xp.mean(xp.square(centred), axis=-1, keepdims=True)
        rate = 1 / xp.sqrt(variance + self.eps)
        normal = centred * rate
        return normal * block[:, 0] + block[:, 1], (normal, rate)

    def backward(
        self, block: Array, kept: tuple[Array, Array], g: Array, *, xp: Namespace
    ) -> Array:
        """Compute ``rate (h - mean(h) - normal mean(h normal))`` with ``h = g scale``."""
        normal, rate = kept
        h = g * block[:, 0]
        along = xp.mean(h * normal, axis=-1, keepdims=True)
        return rate * (h - xp.mean(h, axis=-1, keepdims=True) - normal * along)

    def gradient(self, kept: tuple[Array, Array], g: Array, *, xp: Namespace) -> Array:
        """Compute ``(1/N) sum_n [g normal, g]``, summed over positions and M."""
        normal, _ = kept
        g = sum_vectors(g, normal.ndim, xp=xp)
        axes = tuple(range(normal.ndim - 1))
        columns = [xp.sum(g * normal, axis=axes), xp.sum(g, axis=axes)]
        return xp.stack(columns, axis=1) / normal.shape[0]


@dataclass(frozen=True)
class Flatten:
    """All axes but the batch as one, row-major.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.predict(nn.Flatten(), {}, np.ones((2, 3, 4))).shape
    (2, 12)
    """

    def forward(self, x: Array, *, xp: Namespace) -> tuple[Array, Array]:
        """Compute ``(N, features)`` outputs; the input is kept for its shape."""
        return xp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))), x

    def backward(self, x: Array, g: Array, *, xp: Namespace) -> Array:
        """Give the gradients the input's shape."""
        return xp.reshape(g, (*g.shape[:-1], *x.shape[1:]))


def scaled(u: Array, bias: bool, bound: float, *, xp: Namespace) -> Array:
    """Spread uniform numbers in [0, 1) over ``±bound``, the bias column (if any) set to 0."""
    w = (2 * u - 1) * bound
    if not bias:
        return w
    none = _xp.zeros((*w.shape[:-1], 1), like=w, xp=xp)
    return xp.concat([w[..., :-1], none], axis=-1)


def _rows(x: Array, *, xp: Namespace) -> Array:
    return xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
