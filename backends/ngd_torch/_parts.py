"""Dense layers inside modules that hold several, and modules whose inputs put time first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = [
    "Part",
    "attention_parts",
    "cell_parts",
    "examples_first",
    "recurrent_parts",
    "time_first",
]

Rows = slice | None


class Part(NamedTuple):
    """One dense layer inside a module, as much like `nn.Linear` as a rule has to know.

    Parameters
    ----------
    weight, bias : nn.Parameter or None
        Parameters that hold the layer's weight and bias.
    rows, bias_rows : slice or None
        Which of their rows are the layer's; None for all.
    """

    weight: Any
    bias: Any
    rows: Rows = None
    bias_rows: Rows = None

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """Rows of the weight that are the layer's."""
        return len(range(*(self.rows or slice(None)).indices(len(self.weight))))

    def parameters(self, recurse: bool = False) -> Iterator[nn.Parameter]:
        """Parameters, as a module gives them."""
        yield from (p for p in (self.weight, self.bias) if isinstance(p, nn.Parameter))


def recurrent_parts(module: nn.RNNBase) -> Iterator[tuple[str, Part]]:
    """Layers of `nn.LSTM`, `nn.GRU` and `nn.RNN`."""
    for name in module._flat_weights_names:
        if name.startswith("weight"):
            bias = name.replace("weight", "bias")
            yield name.removeprefix("weight_"), _named(module, name, bias)


def cell_parts(module: nn.RNNCellBase) -> Iterator[tuple[str, Part]]:
    """Layers of `nn.LSTMCell`, `nn.GRUCell` and `nn.RNNCell`."""
    for name in ("ih", "hh"):
        yield name, _named(module, f"weight_{name}", f"bias_{name}")


def attention_parts(module: nn.MultiheadAttention) -> Iterator[tuple[str, Part]]:
    """Projections of `nn.MultiheadAttention` to query, key and value; `out_proj` is a module."""
    size = module.embed_dim
    for k, name in enumerate(("q_proj", "k_proj", "v_proj")):
        part = _named(module, f"{name}_weight", "in_proj_bias")
        rows = slice(k * size, (k + 1) * size)
        if part.weight is None:
            part = part._replace(weight=getattr(module, "in_proj_weight", None), rows=rows)
        yield name, part._replace(bias_rows=rows)


def _named(module: nn.Module, weight: str, bias: str) -> Part:
    return Part(getattr(module, weight, None), getattr(module, bias, None))


def time_first(model: nn.Module) -> set[nn.Module]:
    """Modules of PyTorch's transformer layers that see ``(time, N, features)``."""
    found: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            if not module.self_attn.batch_first:
                found.update(module.modules())
        elif isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
            inner = next(iter(module.layers), None)
            first = getattr(getattr(inner, "self_attn", None), "batch_first", True)
            if module.norm is not None and not first:
                found.update(module.norm.modules())
    attention = [m for m in found if isinstance(m, nn.MultiheadAttention)]
    return found.difference(*(m.modules() for m in attention))


@cache
def examples_first(rule: Any) -> Any:
    """Rule that swaps the first two axes of what its module sees."""
    return replace(
        rule,
        inputs=lambda module, x: rule.inputs(module, _swapped(x)),
        outputs=lambda module, g: rule.outputs(module, _swapped(g)),
    )


def _swapped(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1) if x.ndim > 2 else x
