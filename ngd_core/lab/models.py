"""The networks that are trained; modules are in `torch_models` and `jax_models`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ngd_core import nn
from ngd_core.lab.errors import UserError

__all__ = ["DEPTH", "FEATURES", "HEADS", "MODELS", "Model", "image"]

Activation = Callable[[], nn.Layer]
FEATURES, HEADS, DEPTH = 32, 4, 2
"""Of the transformer encoder, in every library."""


@dataclass(frozen=True)
class Model:
    """A network for any data set.

    Parameters
    ----------
    title : str
        Name for people.
    note : str
        Its layers in words.
    build : callable, optional
        ``build(input_shape, classes)``: the network for inputs of that shape.
    backends : tuple of str
        Without `build`: libraries that have it as a module.
    """

    title: str
    note: str
    build: Callable[[tuple[int, ...], int], nn.Sequential] | None = None
    backends: tuple[str, ...] = ()


def image(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of an input that is an image, which a kind of network needs.

    Raises
    ------
    UserError
        If it is none.
    """
    if len(shape) != 3:
        msg = (
            f"The {kind} net needs images, and the inputs have the shape {shape}; choose other "
            "--models"
        )
        raise UserError(msg)
    return shape


def _cnn(activation: Activation) -> Callable[[tuple[int, ...], int], nn.Sequential]:
    def build(shape: tuple[int, ...], classes: int) -> nn.Sequential:
        channels, height, width = image("convolutional", shape)
        positions = math.ceil(height / 4) * math.ceil(width / 4)
        return nn.Sequential(
            nn.Conv2d("conv1", channels, 8, 3, stride=2, padding="same"),
            activation(),
            nn.Conv2d("conv2", 8, 16, 3, stride=2, padding="same"),
            activation(),
            nn.Flatten(),
            nn.Dense("dense", 16 * positions, classes),
        )

    return build


def _mlp(activation: Activation) -> Callable[[tuple[int, ...], int], nn.Sequential]:
    def build(shape: tuple[int, ...], classes: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Flatten(),
            nn.Dense("dense1", math.prod(shape), 64),
            activation(),
            nn.Dense("dense2", 64, 64),
            activation(),
            nn.Dense("dense3", 64, 64),
            activation(),
            nn.Dense("dense4", 64, classes),
        )

    return build


CNN = "two 3x3 convolutions of stride 2 (8 and 16 channels), one dense layer"
MLP = "three hidden layers of 64 units"

MODELS = {
    "cnn": Model("Convolutional net", f"{CNN}, sigmoid", _cnn(nn.Sigmoid)),
    "mlp": Model("MLP", f"{MLP}, sigmoid", _mlp(nn.Sigmoid)),
    "cnn-relu": Model("Convolutional net (ReLU)", f"{CNN}, ReLU", _cnn(nn.ReLU)),
    "mlp-relu": Model("MLP (ReLU)", f"{MLP}, ReLU", _mlp(nn.ReLU)),
    "resnet": Model(
        "Residual net",
        "a 3x3 convolution, three residual blocks of 8, 16 and 32 channels, group norm, ReLU, mean "
        "over positions, one dense layer; PyTorch alone",
        backends=("torch",),
    ),
    "transformer": Model(
        "Transformer encoder",
        "each row a token, learnt positions, two blocks of 32 features, 4 heads and 64 hidden "
        "units, layer norm first, GELU, mean over tokens, one dense layer; PyTorch or JAX",
        backends=("torch", "jax"),
    ),
}
"""Networks by the name the command line knows."""
