"""Networks as `torch.nn.Module`: those of the core turned into modules, and two more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ngd_core import Conv2dGeometry, factors
from ngd_core import nn as core
from ngd_core._typing import Array
from ngd_core.lab.models import DEPTH, FEATURES, HEADS, image

__all__ = ["MODULES", "as_module", "fresh", "parameters"]

WIDTH, GROUPS = 8, 4


def as_module(network: core.Sequential, params: Mapping[str, Array]) -> nn.Module:
    """Turn a network of the core into a module with the same values.

    Parameters
    ----------
    network : ngd_core.nn.Sequential
        Of dense and convolutional layers, `Flatten`, `Sigmoid` and `ReLU`.
    params : mapping of str to tensor
        Values; they are copied.

    Returns
    -------
    nn.Module
        In the values' dtype.
    """
    parts: dict[str, nn.Module] = {}
    for k, layer in enumerate(network.layers):
        match layer:
            case core.Dense():
                parts[layer.name] = nn.Linear(layer.in_features, layer.out_features, layer.bias)
            case core.Conv2d():
                geometry: Any = layer.spec.geometry
                parts[f"{layer.name}-border"] = Border(geometry)
                parts[layer.name] = nn.Conv2d(
                    layer.in_channels,
                    layer.out_channels,
                    geometry.kernel_size,
                    geometry.stride,
                    dilation=geometry.dilation,
                    groups=geometry.groups,
                    bias=layer.bias,
                )
            case _:
                parts[str(k)] = getattr(nn, type(layer).__name__)()
    module = nn.Sequential()
    for name, part in parts.items():
        module.add_module(name, part)
    with torch.no_grad():
        for spec in core.specs(network):
            part = module.get_submodule(spec.name).to(params[spec.name].dtype)
            weight, bias = factors.split(spec, params[spec.name])
            part.weight.copy_(weight.reshape(part.weight.shape))
            if bias is not None:
                part.bias.copy_(bias)
    return module


class Border(nn.Module):  # type: ignore[misc]
    """Zeros around images; "same" of strided convolutions puts the odd one after."""

    def __init__(self, geometry: Conv2dGeometry) -> None:
        super().__init__()
        self.geometry = geometry

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = self.geometry.pads(x.shape[-2], x.shape[-1])
        return functional.pad(x, (*columns, *rows))


class Residual(nn.Module):  # type: ignore[misc]
    """Two 3x3 convolutions beside the input, which a 1x1 convolution fits where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(GROUPS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, outputs)
        fits = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if fits else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def _resnet(shape: tuple[int, ...], classes: int) -> nn.Module:
    channels, _, _ = image("residual", shape)
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False),
        nn.GroupNorm(GROUPS, WIDTH),
        nn.ReLU(),
        Residual(WIDTH, WIDTH, 1),
        Residual(WIDTH, 2 * WIDTH, 2),
        Residual(2 * WIDTH, 4 * WIDTH, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * WIDTH, classes),
    )


class Attention(nn.Module):  # type: ignore[misc]
    """Self-attention of several heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(FEATURES, 3 * FEATURES)
        self.out = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind()
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(-2))


class Block(nn.Module):  # type: ignore[misc]
    """Attention and a network of one hidden layer, each behind a norm and beside its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(FEATURES), nn.LayerNorm(FEATURES)
        self.attention = Attention()
        self.mlp = nn.Sequential(
            nn.Linear(FEATURES, 2 * FEATURES), nn.GELU(), nn.Linear(2 * FEATURES, FEATURES)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):  # type: ignore[misc]
    """Encoder of images: each row is a token, and the classes come from the tokens' mean."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = image("transformer", shape)
        self.embedding = nn.Linear(channels * width, FEATURES)
        self.position = nn.Parameter(0.02 * torch.randn(height, FEATURES))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embedding(x.transpose(1, 2).flatten(2)) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


MODULES: dict[str, Callable[[tuple[int, ...], int], Any]] = {
    "resnet": _resnet,
    "transformer": Transformer,
}
"""Modules by the name the command line knows."""


def parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    """Name the values of a module."""
    return dict(module.named_parameters())


def fresh(name: str, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Build one of `MODULES` with PyTorch's own initial values.

    Parameters
    ----------
    name : str
        Which.
    shape : tuple of int
        Of an input.
    classes : int
        Number of outputs.
    seed : int
        Of the initial values; torch's random stream is left as it was.

    Returns
    -------
    nn.Module
        On the CPU, in float32.

    Raises
    ------
    UserError
        If the inputs are no images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODULES[name](shape, classes)
