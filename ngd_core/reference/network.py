"""Feed-forward networks as frozen descriptions, with one block of parameters per layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ngd_core.reference import images, layers
from ngd_core.reference._arrays import Array, double, require_shape

__all__ = ["Layer", "Network"]

_REQUIRED = object()

_OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"in_features": _REQUIRED, "out_features": _REQUIRED, "bias": True},
    "conv2d": {
        "in_channels": _REQUIRED,
        "out_channels": _REQUIRED,
        "kernel_size": _REQUIRED,
        "stride": (1, 1),
        "dilation": (1, 1),
        "padding": ((0, 0), (0, 0)),
        "groups": 1,
        "bias": True,
    },
    "layer_norm": {"features": _REQUIRED, "eps": 1e-5},
    "max_pool2d": {"kernel_size": _REQUIRED, "stride": None},
    "avg_pool2d": {"kernel_size": _REQUIRED, "stride": None},
    "global_avg_pool2d": {},
    "relu": {},
    "tanh": {},
    "sigmoid": {},
    "gelu": {},
    "flatten": {},
    "residual": {},
}


@dataclass(frozen=True)
class Layer:
    """One layer of a network: what it computes and with which sizes, without its parameters.

    Parameters
    ----------
    kind : str
        One of

        - "dense": in_features, out_features, bias=True;
        - "conv2d": in_channels, out_channels, kernel_size, stride=(1, 1), dilation=(1, 1),
          padding=((0, 0), (0, 0)), groups=1, bias=True;
        - "layer_norm": features, eps=1e-5;
        - "max_pool2d", "avg_pool2d": kernel_size, stride=None;
        - "global_avg_pool2d", "relu", "tanh", "sigmoid", "gelu", "flatten": no options;
        - "residual": ``x + branch(x)``.
    name : str
        Name of the layer's block; needed for the first three kinds, unique in a network.
    branch : iterable of Layer
        The layers inside "residual"; empty otherwise.
    **options
        As listed under the kind; pairs are (height, width).

    Raises
    ------
    ValueError
        For an unknown kind, an unknown or missing option, a missing name or a misplaced branch.

    Examples
    --------
    >>> from ngd_core.reference import Layer
    >>> Layer("dense", "fc", in_features=3, out_features=2).block_shape
    (2, 4)
    """

    kind: str
    name: str
    options: dict[str, Any]
    branch: tuple[Layer, ...]

    def __init__(
        self, kind: str, name: str = "", branch: Iterable[Layer] = (), **options: Any
    ) -> None:
        if kind not in _OPTIONS:
            msg = f"kind is {kind!r}; expected one of {', '.join(_OPTIONS)}."
            raise ValueError(msg)
        known = _OPTIONS[kind]
        full = {**known, **options}
        unknown = [key for key in options if key not in known]
        missing = [key for key, value in full.items() if value is _REQUIRED]
        if unknown or missing:
            msg = (
                f"A {kind!r} layer got the unknown options {unknown} and lacks {missing}; "
                f"its options are {list(known)}."
            )
            raise ValueError(msg)
        branch = tuple(branch)
        if (kind == "residual") != bool(branch):
            msg = f"A {kind!r} layer got {len(branch)} layers as branch; only 'residual' has some."
            raise ValueError(msg)
        if kind in ("dense", "conv2d", "layer_norm") and not name:
            msg = f"A {kind!r} layer has parameters and so needs a name."
            raise ValueError(msg)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", full)
        object.__setattr__(self, "branch", branch)

    @property
    def block_shape(self) -> tuple[int, ...] | None:
        """Shape of the block, ``[W b]`` or ``[scale shift]``; None without parameters."""
        o = self.options
        if self.kind == "dense":
            return o["out_features"], o["in_features"] + o["bias"]
        if self.kind == "layer_norm":
            return o["features"], 2
        if self.kind != "conv2d":
            return None
        groups, (kh, kw) = o["groups"], o["kernel_size"]
        own = images.group_channels(o["in_channels"], groups)
        rows = images.group_channels(o["out_channels"], groups)
        stack = () if groups == 1 else (groups,)
        return (*stack, rows, own * kh * kw + o["bias"])


@dataclass(frozen=True)
class Network:
    """A chain of layers, applied one after the other.

    The vector of all parameters, theta, is the concatenation of the blocks in layer order (a
    residual branch at its place), each flattened row-major.

    Parameters
    ----------
    layers : tuple of Layer
        In the order of application.

    Raises
    ------
    ValueError
        If two layers with parameters share a name.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.reference import Layer, Network
    >>> network = Network((Layer("dense", "fc", in_features=2, out_features=1), Layer("relu")))
    >>> network.size
    3
    >>> network.forward({"fc": np.array([[1.0, 2.0, 3.0]])}, np.ones((1, 2)))
    array([[6.]])
    """

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        names = [layer.name for layer in _parametric(self.layers)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = f"The layer names {twice} occur more than once; give each layer its own name."
            raise ValueError(msg)

    @property
    def parametric(self) -> dict[str, Layer]:
        """Layers with parameters by name, in layer order, those of branches included."""
        return {layer.name: layer for layer in _parametric(self.layers)}

    @property
    def block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the blocks by name, in layer order."""
        return {
            layer.name: shape for layer in self.parametric.values() if (shape := layer.block_shape)
        }

    @property
    def slices(self) -> dict[str, slice]:
        """Place of each block in theta."""
        places, start = {}, 0
        for name, shape in self.block_shapes.items():
            places[name] = slice(start, start + math.prod(shape))
            start += math.prod(shape)
        return places

    @property
    def size(self) -> int:
        """Number P of parameters."""
        return sum(math.prod(shape) for shape in self.block_shapes.values())

    def forward(
        self,
        params: Mapping[str, ArrayLike],
        x: ArrayLike,
        offsets: Mapping[str, ArrayLike] | None = None,
        record: dict[str, Array] | None = None,
        outputs: dict[str, Array] | None = None,
    ) -> Array:
        """Apply the layers in order.

        Parameters
        ----------
        params : mapping of str to array
            Blocks by name, with the shapes of `block_shapes`; real or complex.
        x : array of shape (N, ...)
            Inputs; the first axis counts examples, which no layer mixes.
        offsets : mapping of str to array, optional
            Added to the outputs of the named layers (of any shape that broadcasts against them).
            Derivatives of what follows with respect to an offset at 0 are the output gradients.
        record : dict, optional
            Filled with each parametric layer's input.
        outputs : dict, optional
            Filled with each parametric layer's output, the offset included.

        Returns
        -------
        array of shape (N, ...)
            float64, or complex128 if any argument is complex.

        Raises
        ------
        ValueError
            If blocks are missing, too many or of the wrong shape, or inputs do not fit.
        """
        blocks = self._blocks(params)
        offsets = {} if offsets is None else offsets
        unknown = [name for name in offsets if name not in blocks]
        if unknown:
            msg = f"offsets names {unknown}; the layers with parameters are {list(blocks)}."
            raise ValueError(msg)
        inputs: dict[str, Array] = {} if record is None else record
        results: dict[str, Array] = {} if outputs is None else outputs
        return _apply(self.layers, blocks, double(x), offsets, inputs, results)

    def flatten(self, params: Mapping[str, ArrayLike]) -> Array:
        """Vector theta of all parameters.

        Parameters
        ----------
        params : mapping of str to array
            Blocks by name.

        Returns
        -------
        array of shape (P,)
            In layer order, each block row-major.

        Raises
        ------
        ValueError
            If blocks are missing, too many or of the wrong shape.
        """
        blocks = self._blocks(params)
        return np.concatenate([np.zeros(0), *(block.reshape(-1) for block in blocks.values())])

    def unflatten(self, theta: ArrayLike) -> dict[str, Array]:
        """Cut the vector theta into blocks by name; the inverse of `flatten`.

        Parameters
        ----------
        theta : array of shape (P,)
            In layer order, each block row-major.

        Returns
        -------
        dict of str to array
            Blocks with the shapes of `block_shapes`.

        Raises
        ------
        ValueError
            If theta does not have P entries.
        """
        theta = double(theta)
        require_shape("theta", theta, (self.size,))
        return {
            name: theta[place].reshape(self.block_shapes[name])
            for name, place in self.slices.items()
        }

    def _blocks(self, params: Mapping[str, ArrayLike]) -> dict[str, Array]:
        shapes = self.block_shapes
        if set(params) != set(shapes):
            msg = f"params names {list(params)}; the network has blocks {list(shapes)}."
            raise ValueError(msg)
        blocks = {name: double(params[name]) for name in shapes}
        for name, shape in shapes.items():
            require_shape(f"params[{name!r}]", blocks[name], shape)
        return blocks


def _parametric(chain: Iterable[Layer]) -> Iterator[Layer]:
    for layer in chain:
        if layer.block_shape is not None:
            yield layer
        yield from _parametric(layer.branch)


def _apply(
    chain: Iterable[Layer],
    blocks: Mapping[str, Array],
    x: Array,
    offsets: Mapping[str, ArrayLike],
    inputs: dict[str, Array],
    results: dict[str, Array],
) -> Array:
    for layer in chain:
        if layer.kind == "residual":
            change = _apply(layer.branch, blocks, x, offsets, inputs, results)
            require_shape("output of a residual branch", change, x.shape)
            x = x + change
        elif layer.block_shape is None:
            module = images if layer.kind.endswith("pool2d") else layers
            x = getattr(module, layer.kind)(x, **layer.options)
        else:
            inputs[layer.name] = x
            x = _parametric_output(layer, blocks[layer.name], x)
            if layer.name in offsets:
                shape = x.shape
                x = x + double(offsets[layer.name])
                require_shape(f"output of {layer.name!r} with its offset", x, shape)
            results[layer.name] = x
    return x


def _parametric_output(layer: Layer, block: Array, x: Array) -> Array:
    options = dict(layer.options)
    if layer.kind == "dense":
        return layers.dense(x, block, bias=options["bias"])
    if layer.kind == "layer_norm":
        return layers.layer_norm(x, block, eps=options["eps"])
    channels = options.pop("in_channels")
    options.pop("out_channels")
    if x.ndim != 4 or x.shape[1] != channels:
        msg = f"Layer {layer.name!r} got shape {x.shape}; expected (N, {channels}, height, width)."
        raise ValueError(msg)
    return images.conv2d(x, block, **options)
