"""Passes through a model: outputs, a tape, and from it gradients and records."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from ngd_core._typing import Array, Namespace
from ngd_core.nn.conv import Conv2d
from ngd_core.nn.layers import Dense, LayerNorm
from ngd_core.nn.model import Layer, Params, Residual, Sequential, border, leaves
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["Backward", "Tape", "backward", "forward", "predict"]

Found: TypeAlias = dict[str, tuple[Any, Array]]


class Tape(NamedTuple):
    """What a forward pass keeps for the backward pass; arrays only.

    Parameters
    ----------
    outputs : array
        Outputs of the model.
    kept : array or nested tuple of arrays
        Of each layer what its backward pass reads.
    """

    outputs: Array
    kept: Any


class Backward(NamedTuple):
    """What a backward pass finds.

    Parameters
    ----------
    grads : dict of str to array
        Gradients of the mean loss ``(1/N) sum_n l_n`` by layer name, shaped and typed as the
        parameter blocks; empty if not asked for.
    records : dict of LayerSpec to LayerRecord
        Inputs and per-example output gradients of the dense and convolutional layers, in order.
    input : array
        Per-example gradient of the loss at the model's input.
    """

    grads: dict[str, Array]
    records: dict[LayerSpec, LayerRecord]
    input: Array


def forward(
    model: Layer, params: Params, x: Array, *, xp: Namespace | None = None
) -> tuple[Array, Tape]:
    """Apply the model and keep what the backward pass needs.

    Parameters
    ----------
    model : layer
        Usually a `Sequential`.
    params : mapping of str to array
        Blocks of the shapes that `shapes` gives; other names are ignored.
    x : array, shape (N, ...)
        Inputs of N examples.
    xp : namespace, optional
        Of the arrays; found from them by default.

    Returns
    -------
    outputs : array, shape (N, ...)
        Dtype of `x` and `params`.
    tape : Tape
        For `backward`. It refers to layer inputs and outputs without copying them.

    Raises
    ------
    ValueError
        If a block is missing or has another shape, or an input does not fit a layer.
    TypeError
        If the arrays are of several libraries or dtypes, or not real floating.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> model = nn.Sequential(nn.Dense("fc", 2, 1), nn.ReLU())
    >>> outputs, tape = nn.forward(model, {"fc": np.array([[1.0, 2.0, 3.0]])}, np.ones((1, 2)))
    >>> outputs
    array([[6.]])
    """
    xp = border(model, xp, "params", params, x=x)
    outputs, kept = _forward(model, params, x, xp=xp)
    return outputs, Tape(outputs, kept)


def predict(model: Layer, params: Params, x: Array, *, xp: Namespace | None = None) -> Array:
    """Apply the model, dropping every intermediate array as soon as it was read.

    Parameters
    ----------
    model : layer
        Usually a `Sequential`.
    params : mapping of str to array
        Blocks of the shapes that `shapes` gives; other names are ignored.
    x : array, shape (N, ...)
        Inputs of N examples.
    xp : namespace, optional
        Of the arrays; found from them by default.

    Returns
    -------
    array, shape (N, ...)
        Outputs, of the dtype of `x` and `params`.

    Raises
    ------
    ValueError, TypeError
        As `forward`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> nn.predict(nn.Dense("fc", 2, 1), {"fc": np.array([[1.0, 2.0, 3.0]])}, np.ones((1, 2)))
    array([[6.]])
    """
    xp = border(model, xp, "params", params, x=x)
    return _predict(model, params, x, xp=xp)


def backward(
    model: Layer,
    params: Params,
    tape: Tape,
    g: Array,
    *,
    grads: bool = True,
    xp: Namespace | None = None,
) -> Backward:
    """Carry output gradients back through the model.

    Parameters
    ----------
    model : layer
        The model of the forward pass.
    params : mapping of str to array
        The parameters of the forward pass.
    tape : Tape
        From `forward`.
    g : array, shape (N, ...) or (M, N, ...)
        Gradient of each example's loss l_n with respect to the outputs, not divided by N; or M
        vectors for each example, carried back in one pass.
    grads : bool
        Whether to compute gradients of the parameters.
    xp : namespace, optional
        Of the arrays; found from them by default.

    Returns
    -------
    Backward
        Gradients of the *mean* loss ``(1/N) sum_n l_n`` (the sum over M, if `g` has that axis),
        records of *per-example* gradients (the axis M kept), and the input's per-example
        gradient.

    Raises
    ------
    ValueError
        If a block is missing or has another shape, or `g` has not the outputs' shape.
    TypeError
        If the arrays are of several libraries or dtypes, or not real floating.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import nn
    >>> model = nn.Dense("fc", 2, 1)
    >>> params = {"fc": np.array([[1.0, 2.0, 3.0]])}
    >>> outputs, tape = nn.forward(model, params, np.array([[5.0, 7.0]]))
    >>> result = nn.backward(model, params, tape, np.ones((1, 1)))
    >>> result.grads["fc"], result.input
    (array([[5., 7., 1.]]), array([[1., 2.]]))
    """
    xp = border(model, xp, "params", params, outputs=tape.outputs, g=g)
    wanted = tuple(tape.outputs.shape)
    if tuple(g.shape[-len(wanted) :]) != wanted or g.ndim > len(wanted) + 1:
        msg = (
            f"g has shape {tuple(g.shape)}; expected {wanted}, the shape of the outputs, with at "
            "most one more axis in front."
        )
        raise ValueError(msg)
    found: Found = {}
    at_input = _backward(model, params, tape.kept, g, found, xp=xp)
    gradients, records = {}, {}
    for leaf in leaves(model):
        kept, own = found[leaf.name]
        if grads:
            gradients[leaf.name] = leaf.gradient(kept, own, xp=xp)
        if not isinstance(leaf, LayerNorm):
            records[leaf.spec] = LayerRecord(kept, own)
    return Backward(gradients, records, at_input)


def _forward(layer: Layer, params: Params, x: Array, *, xp: Namespace) -> tuple[Array, Any]:
    if isinstance(layer, Sequential):
        tape = []
        for part in layer.layers:
            x, kept = _forward(part, params, x, xp=xp)
            tape.append(kept)
        return x, tuple(tape)
    if isinstance(layer, Residual):
        y, kept = _forward(layer.inner, params, x, xp=xp)
        return _add(x, y), kept
    if isinstance(layer, (Dense, Conv2d, LayerNorm)):
        return layer.forward(params[layer.name], x, xp=xp)
    return layer.forward(x, xp=xp)


def _predict(layer: Layer, params: Params, x: Array, *, xp: Namespace) -> Array:
    if isinstance(layer, Sequential):
        for part in layer.layers:
            x = _predict(part, params, x, xp=xp)
        return x
    if isinstance(layer, Residual):
        return _add(x, _predict(layer.inner, params, x, xp=xp))
    return _forward(layer, params, x, xp=xp)[0]


def _backward(
    layer: Layer, params: Params, kept: Any, g: Array, found: Found, *, xp: Namespace
) -> Array:
    if isinstance(layer, Sequential):
        for part, own in zip(reversed(layer.layers), reversed(kept), strict=True):
            g = _backward(part, params, own, g, found, xp=xp)
        return g
    if isinstance(layer, Residual):
        return g + _backward(layer.inner, params, kept, g, found, xp=xp)
    if isinstance(layer, (Dense, Conv2d, LayerNorm)):
        found[layer.name] = (kept, g)
        return layer.backward(params[layer.name], kept, g, xp=xp)
    return layer.backward(kept, g, xp=xp)


def _add(x: Array, y: Array) -> Array:
    if x.shape != y.shape:
        msg = (
            f"Residual got an input of shape {tuple(x.shape)} and its inner layer gave "
            f"{tuple(y.shape)}; expected equal shapes."
        )
        raise ValueError(msg)
    return x + y
