"""Rules for normalisations: the scale and shift behind them, on inputs normalised once more.

Running statistics are read where the module reads them, and never written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ngd_core import LayerSpec
from ngd_torch._rule import LayerRule

__all__ = ["NORMS"]


def _scale(module: Any, name: str, _: str) -> LayerSpec:
    features = module.weight.numel()
    bias = getattr(module, "bias", None)
    trained = bias is not None and bias.requires_grad
    return LayerSpec(name, "scale", features, features, bias=trained)


def _layer_norm(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    shape = module.normalized_shape
    return functional.layer_norm(x, shape, eps=module.eps).flatten(-len(shape))


def _rms_norm(module: nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    shape = module.normalized_shape
    return functional.rms_norm(x, list(shape), eps=module.eps).flatten(-len(shape))


def _group_norm(module: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    return functional.group_norm(x, module.num_groups, eps=module.eps).movedim(1, -1)


def _batch_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Input by the statistics of the batch, or by frozen ones, as the module chooses them."""
    own = module.training or module.running_mean is None
    mean, var = (None, None) if own else (module.running_mean, module.running_var)
    return functional.batch_norm(x, mean, var, training=own, eps=module.eps).movedim(1, -1)


def _instance_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    own = module.training or not module.track_running_stats
    mean, var = (None, None) if own else (module.running_mean, module.running_var)
    x = functional.instance_norm(x, mean, var, use_input_stats=own, eps=module.eps)
    return x.movedim(1, -1)


def _features_together(module: Any, x: torch.Tensor) -> torch.Tensor:
    return x.flatten(-len(module.normalized_shape))


def _channels_last(_: Any, x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1)


def _in_a_row(_: Any, weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(-1)


def _of_all_processes(_: Any) -> str:
    return "its statistics are of all processes"


BATCH = LayerRule(_scale, _batch_norm, _channels_last, _in_a_row)
INSTANCE = LayerRule(_scale, _instance_norm, _channels_last, _in_a_row)
NORMS: Mapping[type, LayerRule] = {
    nn.LayerNorm: LayerRule(_scale, _layer_norm, _features_together, _in_a_row),
    nn.RMSNorm: LayerRule(_scale, _rms_norm, _features_together, _in_a_row),
    nn.GroupNorm: LayerRule(_scale, _group_norm, _channels_last, _in_a_row),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), BATCH),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), INSTANCE),
    nn.SyncBatchNorm: LayerRule(_scale, why_not=_of_all_processes),
}
"""Rules for PyTorch's normalisations."""
