"""Parameters that are spread over processes, as `torch.distributed.fsdp.fully_shard` leaves them.

Such a parameter is a DTensor. Its type is not looked at, since its module takes long to import.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["copies", "is_sharded", "part", "resharded", "whole", "whole_of_part"]


def is_sharded(x: object) -> bool:
    """Tell whether a tensor is a DTensor."""
    return hasattr(x, "full_tensor")


def whole(x: Any) -> Any:
    """Whole of a DTensor, on every process, which all must ask for; other tensors as they are."""
    return x.full_tensor() if is_sharded(x) else x


def part(x: Any) -> Any:
    """Take what this process has of a tensor."""
    return x.to_local() if is_sharded(x) else x


def resharded(like: Any, x: torch.Tensor) -> Any:
    """Whole tensor, the same on every process, spread as `like` is; nothing is sent."""
    if not is_sharded(like) or is_sharded(x):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)


def whole_of_part(like: Any, x: torch.Tensor) -> torch.Tensor:
    """Whole of a tensor spread as `like` is, of which every process hands its part over."""
    if not is_sharded(like):
        return x
    from torch.distributed.tensor import DTensor

    mesh, places = like.device_mesh, like.placements
    shape, stride = like.shape, like.stride()
    spread = DTensor.from_local(x, mesh, places, run_check=False, shape=shape, stride=stride)
    full: torch.Tensor = whole(spread)
    return full


def copies(x: Any, processes: int) -> int:
    """How many of the processes hold each number of a tensor."""
    if is_sharded(x):
        for axis, placement in enumerate(x.placements):
            if not placement.is_replicate():
                processes //= x.device_mesh.size(axis)
    return processes
