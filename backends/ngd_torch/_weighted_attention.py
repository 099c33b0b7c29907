"""Attention in whose backward pass each example has a weight in the projections' gradients.

PyTorch's function of attention is taken as it is, but for the one that multiplies by a weight: a
copy of the function, which has the same code, finds another one under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional

from ngd_torch._weighing import Weigh

__all__ = ["CAN_WEIGH", "weighted_attention", "weighted_product"]

Find = Callable[[Any, int], Weigh | None]
ATTENTION: Any = functional.multi_head_attention_forward
PROJECTIONS = ("_in_projection", "_in_projection_packed")
CAN_WEIGH = {"linear", "has_torch_function", *PROJECTIONS} <= set(
    ATTENTION.__code__.co_names
) and all("linear" in getattr(functional, name).__code__.co_names for name in PROJECTIONS)
"""Whether the function of attention is made of the functions known here."""


def weighted_attention(find: Find, arguments: dict[str, Any]) -> Any:
    """Call `multi_head_attention_forward`.

    Parameters
    ----------
    find : callable
        ``find(weight, row)``: weights of the layer that begins at a row of a parameter, or None.
    arguments : dict
        Of the function.
    """
    query = arguments["query"]
    examples = query.shape[1] if query.ndim == 3 else 1
    parameter, size = arguments.get("in_proj_weight"), query.shape[-1]

    def linear(x: torch.Tensor, weight: Any, bias: Any = None) -> torch.Tensor:
        if parameter is not None and (weight is parameter or weight._base is parameter):
            first = (weight.storage_offset() - parameter.storage_offset()) // size
            weighs = [find(parameter, first + k) for k in range(0, len(weight), size)]
        else:
            weighs = [find(weight, 0)]
        z = functional.linear(x, weight, bias)
        found = [weigh for weigh in weighs if weigh is not None]
        if len(found) < len(weighs):
            return z
        return weighted_product(x, weight, bias, z, found, examples)

    names = {"linear": linear, "has_torch_function": lambda _: False}
    names |= {name: _copy(getattr(functional, name), names) for name in PROJECTIONS}
    return _copy(ATTENTION, names)(**arguments)


def _copy(function: Any, names: dict[str, Any]) -> Any:
    """Copy of a function that finds others under some names of its module."""
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def weighted_product(
    x: torch.Tensor, weight: Any, bias: Any, z: torch.Tensor, weighs: Sequence[Weigh], examples: int
) -> torch.Tensor:
    """Output z of ``x W^T + b``, time first, of as many layers as there are weights of examples."""
    if not z.requires_grad:
        return z
    out: torch.Tensor = _Product.apply(x, weight, bias, [z.detach()], weighs, examples)
    return out


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """``x W^T + b``, computed before; its rows are of the examples in turn."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: Any,
        _: Any,
        held: list[torch.Tensor],
        weighs: Sequence[Weigh],
        examples: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.weighs, ctx.examples = weighs, examples
        return held.pop()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        to_x = g @ weight.to(g.dtype) if needs_x else None
        n, parts = ctx.examples, len(ctx.weighs)
        v = torch.stack([weigh(n) for weigh in ctx.weighs], -1).to(g.dtype)[..., None]
        u = (g.reshape(-1, n, parts, g.shape[-1] // parts) * v).reshape(-1, g.shape[-1])
        a = x.reshape(-1, x.shape[-1]).to(g.dtype)
        to_weight = u.mT @ a if needs_weight else None
        return to_x, to_weight, u.sum(0) if needs_bias else None, None, None, None
