"""What has to be known of a type of module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ngd_core import LayerSpec

__all__ = ["LayerRule"]


def _as_it_is(_: Any, x: torch.Tensor) -> torch.Tensor:
    return x


@dataclass(frozen=True)
class LayerRule:
    """What the core has to know of a type of module with a ``weight`` and perhaps a ``bias``.

    Parameters
    ----------
    spec : callable
        ``spec(module, name, sharing)``: the layer's `ngd_core.LayerSpec`. Its ``bias`` says whether
        the bias, if the module has one, is part of the block.
    inputs : callable
        ``inputs(module, x)``: the first argument of the module's forward as `LayerRecord.a`.
    outputs : callable
        ``outputs(module, g)``: a gradient at its output as `LayerRecord.g`.
    layout : callable
        ``layout(module, weight)``: the weight, or its gradient, in the layout of
        `ngd_core.factors.join`.
    restore : callable
        ``restore(module, weight)``: the inverse of `layout`, up to a reshape.
    why_not : callable
        ``why_not(module)``: why a module of this type has no curvature, or None if it has.
    parts : callable or None
        ``parts(module)``: pairs of a name and a layer, for a module that holds several; each layer
        takes the module's place in all of the above. None: the module is the layer. What happens
        inside is seen in subclasses of PyTorch's recurrent modules and attention alone.
    by_example : bool
        Whether `inputs` and `outputs` may be called with some of the examples at a time: where
        they take much memory, and x and g have the examples on their first axis.
    """

    spec: Callable[[Any, str, str], LayerSpec]
    inputs: Callable[[Any, torch.Tensor], torch.Tensor] = _as_it_is
    outputs: Callable[[Any, torch.Tensor], torch.Tensor] = _as_it_is
    layout: Callable[[Any, torch.Tensor], torch.Tensor] = _as_it_is
    restore: Callable[[Any, torch.Tensor], torch.Tensor] = _as_it_is
    why_not: Callable[[Any], str | None] = lambda _: None
    parts: Callable[[Any], Iterable[tuple[str, Any]]] | None = None
    by_example: bool = False
