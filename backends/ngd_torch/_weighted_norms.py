"""Normalisations in whose backward pass each example has a weight in the scale's gradient.

What PyTorch's own backward pass takes, mean and reciprocal deviation, is kept from the forward
pass, which is not done again. The weights come in where they cost least: for group norms as the
gradients of a scale an example has to itself, for layer norms as factors of the deviations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ngd_torch._weighing import Weigh, per_row

__all__ = ["NORMS", "weighted_norm"]

BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (nn.LayerNorm, nn.GroupNorm, *BATCH)
"""Types of modules that `weighted_norm` knows."""


def weighted_norm(module: Any, x: torch.Tensor, z: torch.Tensor, weigh: Weigh) -> torch.Tensor:
    """Output z of a normalisation, as `ngd_torch._weighted.weighted` gives those of layers."""
    held = [z.detach()]
    bias = getattr(module, "bias", None)
    if isinstance(module, nn.LayerNorm):
        shape = list(module.normalized_shape)
        kept = _kept(z, "NativeLayerNormBackward0") or torch.native_layer_norm(
            x.detach(), shape, None, None, module.eps
        )
        out = _LayerNorm.apply(x, module.weight, bias, held, weigh, shape, kept[-2:])
    elif isinstance(module, nn.GroupNorm):
        n, c, groups = x.shape[0], x.shape[1], module.num_groups
        kept = _kept(z, "NativeGroupNormBackward0") or torch.native_group_norm(
            x.detach().contiguous(), None, None, n, c, x[0, 0].numel(), groups, module.eps
        )
        out = _GroupNorm.apply(x, module.weight, bias, held, weigh, groups, kept[-2:])
    else:
        own = module.training or module.running_mean is None
        running = (None, None) if own else (module.running_mean, module.running_var)
        kept = _kept(z, "NativeBatchNormBackward0") or torch.native_batch_norm(
            x.detach(), None, None, *running, own, 0.0, module.eps
        )
        options = (*running, *kept[-2:], own, module.eps)
        out = _BatchNorm.apply(x, module.weight, bias, held, weigh, options)
    result: torch.Tensor = out
    return result


def _kept(z: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and reciprocal deviation that the graph of z keeps, if it is of this kind."""
    node: Any = z.grad_fn
    return (node._saved_result1, node._saved_result2) if node.name() == name else None


class _LayerNorm(torch.autograd.Function):  # type: ignore[misc]
    """Layer norm, computed before."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: Any,
        bias: Any,
        held: list[torch.Tensor],
        weigh: Weigh,
        shape: list[int],
        kept: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias, *kept)
        ctx.weigh, ctx.shape = weigh, shape
        return held.pop()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, weight, bias, mean, deviation = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        v, a = ctx.weigh(len(g)), x.to(g.dtype)
        gradient = torch.ops.aten.native_layer_norm_backward
        to_x = to_weight = to_bias = None
        if needs_x:
            some = [True, False, False]
            to_x, *_ = gradient(g, a, ctx.shape, mean, deviation, weight, bias, some)
        if needs_weight:
            deviation = deviation * per_row(v, deviation)
            some = [False, True, False]
            _, to_weight, _ = gradient(g, a, ctx.shape, mean, deviation, weight, bias, some)
        if needs_bias:
            flat = g.reshape(len(v), -1, bias.numel())
            to_bias = (v.to(g.dtype) @ flat.sum(1)).view_as(bias)
        return to_x, to_weight, to_bias, None, None, None, None


class _GroupNorm(torch.autograd.Function):  # type: ignore[misc]
    """Group norm, computed before: of one example whose channels are those of all examples."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: Any,
        _: Any,
        held: list[torch.Tensor],
        weigh: Weigh,
        groups: int,
        kept: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, *kept)
        ctx.weigh, ctx.groups = weigh, groups
        return held.pop()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, weight, mean, deviation = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        (n, c), size = x.shape[:2], x[0, 0].numel()
        to_x, *each = torch.ops.aten.native_group_norm_backward(
            g.contiguous().view(1, n * c, size),
            x.to(g.dtype).contiguous().view(1, n * c, size),
            mean.reshape(1, -1),
            deviation.reshape(1, -1),
            weight.repeat(n),
            1,
            n * c,
            size,
            n * ctx.groups,
            [needs_x, needs_weight, needs_bias],
        )
        v = ctx.weigh(n)
        sums = [None if u is None else v.to(u.dtype) @ u.view(n, c) for u in each]
        return None if to_x is None else to_x.view_as(x), *sums, None, None, None, None


class _BatchNorm(torch.autograd.Function):  # type: ignore[misc]
    """Batch norm, computed before."""

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
        a, gradient = x.to(g.dtype), torch.ops.aten.native_batch_norm_backward
        to_x = to_weight = to_bias = None
        if needs_x:
            to_x, *_ = gradient(g, a, weight, *ctx.options, [True, False, False])
        if needs_weight or needs_bias:
            v = ctx.weigh(len(g))
            some = [False, needs_weight, needs_bias]
            _, to_weight, to_bias = gradient(g * per_row(v, g), a, weight, *ctx.options, some)
        return to_x, to_weight, to_bias, None, None, None
