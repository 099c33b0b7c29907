"""Networks in JAX: those of the core as Equinox modules, and an encoder of Flax linen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from ngd_core import factors
from ngd_core import nn as core
from ngd_core._typing import Array
from ngd_core.lab.models import DEPTH, FEATURES, HEADS, image

__all__ = ["MODULES", "Module", "as_module", "fresh", "named", "parameters"]


class Module(NamedTuple):
    """A network of any library, as its parameters and a function of them.

    Parameters
    ----------
    apply : callable
        ``apply(params, inputs)``: outputs, examples first.
    params : pytree
        Initial values.
    """

    apply: Callable[[Any, Any], Any]
    params: Any


def named(tree: Any) -> dict[str, Any]:
    """Leaves of a tree by their paths, as `ngd_jax.report` names them."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def parameters(module: Module) -> dict[str, Any]:
    """Name the initial values of a network by their paths."""
    return named(module.params)


def as_module(network: core.Sequential, params: Mapping[str, Array]) -> Module:
    """Turn a network of the core into an Equinox module with the same values.

    Parameters
    ----------
    network : ngd_core.nn.Sequential
        Of dense and convolutional layers, `Flatten`, `Sigmoid` and `ReLU`.
    params : mapping of str to array
        Values.

    Returns
    -------
    Module
        In the values' dtype.
    """
    blocks = {spec.name: (spec, np.asarray(params[spec.name])) for spec in core.specs(network)}
    model = eqx.nn.Sequential([_part(layer, blocks) for layer in network.layers])
    values, static = eqx.partition(model, eqx.is_inexact_array)
    return Module(lambda values, x: jax.vmap(eqx.combine(values, static))(x), values)


def _part(layer: Any, blocks: Mapping[str, Any]) -> eqx.Module:
    """One layer; its values are set, not drawn."""
    match layer:
        case core.Flatten():
            return eqx.nn.Lambda(jnp.ravel)
        case core.Sigmoid():
            return eqx.nn.Lambda(jax.nn.sigmoid)
        case core.ReLU():
            return eqx.nn.Lambda(jax.nn.relu)
        case core.Dense():
            make: Any = eqx.nn.Linear
            sizes: tuple[Any, ...] = layer.in_features, layer.out_features
            options: dict[str, Any] = {}
        case core.Conv2d():
            geometry: Any = layer.spec.geometry
            make = eqx.nn.Conv2d
            sizes = layer.in_channels, layer.out_channels, geometry.kernel_size, geometry.stride
            padding = geometry.padding
            options = {
                "padding": padding.upper() if isinstance(padding, str) else padding,
                "dilation": geometry.dilation,
                "groups": geometry.groups,
            }
    spec, block = blocks[layer.name]
    part = eqx.filter_eval_shape(
        make, *sizes, use_bias=layer.bias, **options, key=jax.random.key(0)
    )
    weight, bias = factors.split(spec, block)
    weight = jnp.asarray(weight.reshape(part.weight.shape))
    part = eqx.tree_at(lambda p: p.weight, part, weight)
    if bias is None:
        return part
    return eqx.tree_at(lambda p: p.bias, part, jnp.asarray(bias.reshape(part.bias.shape)))


class Block(linen.Module):  # type: ignore[misc]
    """Attention and a network of one hidden layer, each behind a norm and beside its input."""

    @linen.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: jax.Array) -> jax.Array:
        h = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=HEADS)(h, h)
        h = linen.Dense(2 * FEATURES)(linen.LayerNorm()(x))
        return x + linen.Dense(FEATURES)(linen.gelu(h))


class Transformer(linen.Module):  # type: ignore[misc]
    """Encoder of images: each row is a token, and the classes come from the tokens' mean."""

    classes: int

    @linen.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: jax.Array) -> jax.Array:
        tokens = jnp.reshape(jnp.swapaxes(x, 1, 2), (x.shape[0], x.shape[2], -1))
        start = linen.initializers.normal(0.02)
        h = linen.Dense(FEATURES)(tokens)
        h = h + self.param("position", start, (x.shape[2], FEATURES))
        for _ in range(DEPTH):
            h = Block()(h)
        return linen.Dense(self.classes)(jnp.mean(linen.LayerNorm()(h), axis=1))


MODULES: dict[str, Callable[[int], Any]] = {"transformer": Transformer}
"""Modules by the name the command line knows."""


def fresh(name: str, shape: tuple[int, ...], classes: int, seed: int) -> Module:
    """Build one of `MODULES` with Flax's own initial values.

    Parameters
    ----------
    name : str
        Which.
    shape : tuple of int
        Of an input.
    classes : int
        Number of outputs.
    seed : int
        Of the initial values.

    Returns
    -------
    Module
        In float32.

    Raises
    ------
    UserError
        If the inputs are no images.
    """
    model = MODULES[name](classes)
    inputs = jnp.zeros((1, *image(name, shape)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(seed), inputs)["params"]
    return Module(lambda params, x: model.apply({"params": params}, x), params)
