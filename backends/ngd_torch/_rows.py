"""The rows of which a weight's gradient is the product, as the backward pass uses them.

PyTorch makes a linear layer's gradient as ``g^T x``, and that very memory becomes ``weight.grad``
if nothing is added to it. So a gradient is known to be the product of the rows kept beside it as
long as it lies where it was made and was not written to since, which PyTorch counts. Nothing of
the graph is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ngd_core import LayerRecord
from ngd_torch._layers import RULES, Layer

__all__ = ["Rows", "can_keep", "watch_rows"]

VIEWS = ("ViewBackward0", "UnsafeViewBackward0")
PRODUCTS = ("AddmmBackward0", "MmBackward0")


class Rows(NamedTuple):
    """Inputs and output gradients of one pass, the gradient made of them, and their versions."""

    x: torch.Tensor
    g: torch.Tensor
    made: torch.Tensor
    versions: tuple[int, ...]

    def made_of(self, grad: torch.Tensor | None) -> bool:
        """Tell whether a weight's gradient is the one that was made, all as it was then."""
        return (
            grad is not None
            and not grad.is_sparse
            and grad.data_ptr() == self.made.data_ptr()
            and grad.dtype == self.made.dtype
            and (self.x._version, self.g._version, grad._version) == self.versions
        )

    def record(self) -> LayerRecord:
        """Record of one example, whose positions are the rows."""
        return LayerRecord(self.x.reshape(1, -1, self.x.shape[-1]), self.g[None])


def can_keep(layer: Layer) -> bool:
    """Tell whether a layer's gradient is of the rows of one module alone."""
    return (
        type(layer.module) is nn.Linear
        and layer.rule is RULES[nn.Linear]
        and layer.rows is None
        and not layer.others
    )


def watch_rows(x: torch.Tensor, z: torch.Tensor, keep: Callable[[Rows], None]) -> None:
    """Hand over the rows of each backward pass through a linear layer, which turned x into z."""
    node = z.grad_fn
    if node is not None and node.name() in VIEWS:
        node = node.next_functions[0][0]
    if node is not None and node.name() in PRODUCTS:
        node.register_hook(partial(_passed, x.detach(), keep))


def _passed(x: torch.Tensor, keep: Callable[[Rows], None], made: Any, given: Any) -> None:
    """Look at the gradients that a product's backward made, the weight's last, of those given."""
    (g,), weight = given, made[-1]
    if g is None or weight is None or _several(weight):
        return
    keep(Rows(x, g, weight, (x._version, g._version, weight._version)))


def _several(x: torch.Tensor) -> bool:
    """Tell whether x stands for one of several under a vmap, whose memory cannot be told."""
    wrapped = torch._C._functorch
    return bool(wrapped.is_legacy_batchedtensor(x) or wrapped.is_functorch_wrapped_tensor(x))
