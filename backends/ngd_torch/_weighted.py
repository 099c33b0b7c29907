"""Backward passes in which each example has a weight in a layer's gradient, and nowhere else.

The gradient of a weight is a sum over examples, ``sum_n g_n a_n^T``. With a weight an example it is
one product as well, of the same cost, while the gradient at the layer's input stays as it is; only
the smaller of inputs and gradients is gone through once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ngd_torch._layers import RULES, Layer
from ngd_torch._weighing import Weigh, per_row
from ngd_torch._weighted_norms import NORMS, weighted_norm

__all__ = ["can_weigh", "weighted"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PROJECTION = nn.modules.linear.NonDynamicallyQuantizableLinear  # of nn.MultiheadAttention
KINDS = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *NORMS)


def can_weigh(layer: Layer) -> bool:
    """Tell whether the gradient of all of a layer's parameters can be weighted on the way."""
    module = layer.module
    if layer.others:
        return False
    if layer.rule is RULES[nn.MultiheadAttention]:
        return True
    kind = nn.Linear if type(module) is PROJECTION else type(module)
    return (
        kind in KINDS
        and layer.rule is RULES[kind]
        and layer.rows is None
        and getattr(module, "padding_mode", "zeros") == "zeros"
    )


def weighted(layer: Layer, x: torch.Tensor, z: torch.Tensor, weigh: Weigh) -> torch.Tensor:
    """Output z of a layer, whose backward pass weights the examples in its parameters' gradients.

    Nothing is computed again: z is taken out of its graph and put into another.
    """
    module, held = layer.module, [z.detach()]
    if isinstance(module, nn.Embedding):
        z.register_hook(lambda g: g * per_row(weigh(len(g)), g))
        return z
    if isinstance(module, NORMS):
        return weighted_norm(module, x, z, weigh)
    if isinstance(module, nn.Linear):
        out = _Linear.apply(x, module.weight, module.bias, held, weigh)
    else:
        out = _Convolution.apply(x, module.weight, module.bias, held, weigh, _options(module, x))
    result: torch.Tensor = out
    return result


def _options(module: Any, x: torch.Tensor) -> tuple[Any, ...]:
    """Arguments of PyTorch's gradient of a convolution behind the tensors and the bias' shape."""
    axes = len(module.kernel_size)
    padding = module.padding
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        padding = [0] * axes if padding == "valid" else [t // 2 for t in total]
    return (
        list(module.stride),
        list(padding),
        list(module.dilation),
        False,
        [0] * axes,
        module.groups,
    )


def _weighted_pair(
    g: torch.Tensor, a: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients and inputs, the rows of the smaller of them times their weights."""
    return (g, a * per_row(v, a)) if a.numel() <= g.numel() else (g * per_row(v, g), a)


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    """``x W^T + b``, computed before."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: Any, _: Any, held: list[torch.Tensor], weigh: Weigh
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.weigh = weigh
        return held.pop()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        v = ctx.weigh(len(g))
        to_x = g @ weight.to(g.dtype) if needs_x else None
        to_weight = to_bias = None
        if needs_weight:
            left, right = _weighted_pair(g, x.to(g.dtype), v)
            to_weight = left.flatten(0, -2).mT @ right.flatten(0, -2)
        if needs_bias:
            to_bias = v.to(g.dtype) @ (g if g.ndim == 2 else g.flatten(1, -2).sum(1))
        return to_x, to_weight, to_bias, None, None


class _Convolution(torch.autograd.Function):  # type: ignore[misc]
    """Convolution, computed before."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: Any,
        _: Any,
        held: list[torch.Tensor],
        weigh: Weigh,
        options: tuple[Any, ...],
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.weigh, ctx.options = weigh, options
        return held.pop()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        v = ctx.weigh(len(g))
        a, w = x.to(g.dtype), weight.to(g.dtype)
        gradient = torch.ops.aten.convolution_backward
        to_x = to_weight = to_bias = None
        if needs_x:
            to_x, *_ = gradient(g, a, w, None, *ctx.options, [True, False, False])
        if needs_weight:
            left, right = _weighted_pair(g, a, v)
            _, to_weight, _ = gradient(left, right, w, None, *ctx.options, [False, True, False])
        if needs_bias:
            to_bias = v.to(g.dtype) @ g.flatten(2).sum(2)
        return to_x, to_weight, to_bias, None, None, None
