"""Chains of layers, their parameter blocks and where these start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ngd_core import _checks
from ngd_core._typing import Array, Namespace
from ngd_core.nn._border import Stateless
from ngd_core.nn.conv import Conv2d
from ngd_core.nn.layers import Dense, LayerNorm
from ngd_core.types import LayerSpec

__all__ = [
    "Layer",
    "Params",
    "Residual",
    "Sequential",
    "init",
    "shapes",
    "specs",
]

Layer: TypeAlias = "Stateless | Dense | Conv2d | LayerNorm | Residual | Sequential"
Params: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True)
class Residual:
    """``x + inner(x)``.

    Parameters
    ----------
    inner : layer
        Any layer, or a `Sequential`, whose output has the shape of its input.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.predict(nn.Residual(nn.ReLU()), {}, np.array([[-1.0, 2.0]]))
    array([[-1.,  4.]])
    """

    inner: Layer

    def __post_init__(self) -> None:
        _require_layer("Residual", self.inner)


@dataclass(frozen=True)
class Sequential:
    """Layers applied one after the other; may be nested.

    Parameters
    ----------
    *layers : layer
        In order of application.

    Raises
    ------
    TypeError
        If an argument is not a layer.
    ValueError
        If two layers with parameters share a name.

    Examples
    --------
    >>> from ngd_core import nn
    >>> nn.shapes(nn.Sequential(nn.Flatten(), nn.Dense("fc", 64, 10)))
    {'fc': (10, 65)}
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        for layer in layers:
            _require_layer("Sequential", layer)
        object.__setattr__(self, "layers", layers)
        names = [leaf.name for leaf in leaves(self)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = (
                f"The layer names {', '.join(map(repr, twice))} occur more than once; give each "
                "layer with parameters a name of its own."
            )
            raise ValueError(msg)


def specs(model: Layer) -> tuple[LayerSpec, ...]:
    """Layers that have Fisher blocks: the dense and convolutional ones, in order.

    Parameters
    ----------
    model : layer
        Usually a `Sequential`.

    Returns
    -------
    tuple of LayerSpec
        The keys of the records that `backward` returns.

    Examples
    --------
    >>> from ngd_core import nn
    >>> model = nn.Sequential(nn.Dense("fc", 4, 3), nn.LayerNorm("ln", 3))
    >>> [spec.name for spec in nn.specs(model)]
    ['fc']
    """
    return tuple(leaf.spec for leaf in leaves(model) if not isinstance(leaf, LayerNorm))


def shapes(model: Layer) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter block.

    Parameters
    ----------
    model : layer
        Usually a `Sequential`.

    Returns
    -------
    dict of str to tuple of int
        By layer name, in order: ``LayerSpec.block_shape`` of dense and convolutional layers,
        ``(features, 2)`` of layer normalisation.

    Examples
    --------
    >>> from ngd_core import nn
    >>> model = nn.Sequential(nn.Dense("fc", 4, 3), nn.LayerNorm("ln", 3))
    >>> nn.shapes(model)
    {'fc': (3, 5), 'ln': (3, 2)}
    """
    return {leaf.name: leaf.block_shape for leaf in leaves(model)}


def init(
    model: Layer,
    uniforms: Params,
    *,
    gain: float = math.sqrt(2),
    xp: Namespace | None = None,
) -> dict[str, Array]:
    """Make initial parameters from uniform random numbers.

    ``W = (2 u - 1) gain sqrt(3 / fan_in)``, of variance ``gain^2 / fan_in``, and bias 0. The
    default gain, for ReLU, is that of He et al. (2015), equation (10). Layer normalisation
    starts at scale 1 and shift 0.

    Parameters
    ----------
    model : layer
        Usually a `Sequential`.
    uniforms : mapping of str to array
        Numbers in [0, 1), one array for each name and shape of `shapes`. The columns of biases
        and the blocks of layer normalisation are not read, only their dtype and device are.
    gain : float
        1 keeps the variance through linear layers and suits tanh.
    xp : namespace, optional
        Of the arrays; found from them by default.

    Returns
    -------
    dict of str to array
        Parameter blocks, of the dtype and device of the uniform numbers.

    Raises
    ------
    ValueError
        If an array is missing or has another shape.
    TypeError
        If the arrays are of several libraries or dtypes, or not real floating.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.init(nn.Dense("fc", 6, 1), {"fc": np.full((1, 7), 0.75)})["fc"]
    array([[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0. ]])
    """
    parametric = leaves(model)
    if not parametric:
        return {}
    xp = border(model, xp, "uniforms", uniforms)
    return {leaf.name: leaf.init(uniforms[leaf.name], gain=gain, xp=xp) for leaf in parametric}


def leaves(layer: Layer) -> list[Dense | Conv2d | LayerNorm]:
    """List the layers with parameters, in order."""
    if isinstance(layer, Sequential):
        return [leaf for part in layer.layers for leaf in leaves(part)]
    if isinstance(layer, Residual):
        return leaves(layer.inner)
    return [layer] if isinstance(layer, (Dense, Conv2d, LayerNorm)) else []


def border(
    model: Layer, xp: Namespace | None, what: str, blocks: Params, **arrays: Array
) -> Namespace:
    """Check blocks and further arrays at a public function's border; return their namespace."""
    named = dict(arrays)
    for leaf in leaves(model):
        if leaf.name not in blocks:
            known = ", ".join(map(repr, shapes(model)))
            msg = f"{what} has no block {leaf.name!r}; expected an array for each of {known}."
            raise ValueError(msg)
        named[f"{what}[{leaf.name!r}]"] = blocks[leaf.name]
    xp = _checks.common_namespace(xp, **named)
    _checks.floating(xp, **named)
    for leaf in leaves(model):
        name = f"{what}[{leaf.name!r}]"
        _checks.shape(name, named[name], leaf.block_shape, "as nn.shapes lists it")
    dtypes = {name: x.dtype for name, x in named.items()}
    first = next(iter(dtypes))
    for name, dtype in dtypes.items():
        if dtype != dtypes[first]:
            msg = (
                f"{first} has dtype {dtypes[first]} and {name} {dtype}; expected one dtype for "
                "all; cast one of them."
            )
            raise TypeError(msg)
    return xp


def _require_layer(where: str, layer: object) -> None:
    if isinstance(layer, type) or not isinstance(layer, (Sequential, Residual, Stateless)):
        msg = (
            f"{where} got {layer!r}; expected layers such as Dense(...) or ReLU(), "
            "each an argument of its own."
        )
        raise TypeError(msg)
