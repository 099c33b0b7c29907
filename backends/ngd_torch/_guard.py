"""A step is taken whole or not at all: nothing that is not finite reaches a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ngd_torch._ranks import ALONE, Group, summed
from ngd_torch._shards import part

__all__ = ["Move", "dense", "take"]


class Move(NamedTuple):
    """How one parameter is to move: ``shrink * p - lr * (mu * buffer + scale * direction)``."""

    p: nn.Parameter
    direction: torch.Tensor
    lr: float
    shrink: float = 1.0
    mu: float = 0.0
    buffer: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    grad: torch.Tensor | None = None  # of the parameter, filled in by `take`


def dense(grad: torch.Tensor) -> torch.Tensor:
    """Gradient with all its zeros, also one of an embedding made with ``sparse=True``."""
    return grad.to_dense() if grad.is_sparse else grad


def take(moves: Sequence[Move], like: torch.Tensor, group: Group = ALONE) -> torch.Tensor:
    """Take all moves, or none, and tell which, on the device and without waiting for it.

    None is taken if a gradient or a direction is not finite, or if a parameter or its momentum
    would not be, by the bound ``|shrink| |p| + lr (mu |buffer| + scale |direction|)`` with norms
    of whole tensors: the Euclidean one, whose square has to be finite too and which costs far less
    than the largest magnitude, but for float16 with its small range.

    Parameters
    ----------
    moves : sequence of Move
        One a parameter.
    like : tensor
        On whose device to answer.
    group : Group
        Processes that have parts of the parameters, and take the step together or not at all.

    Returns
    -------
    tensor of bool, shape ()
        Whether they were taken.
    """
    moves = [_here(move) for move in moves]
    ok = _all_finite(moves, part(like))
    if group.size > 1:
        ok = summed([(~ok).float()], group.handle)[0] == 0
    for p, direction, lr, shrink, mu, buffer, scale, _ in moves:
        on = ok.to(p.device, p.dtype)
        share = on if scale is None else torch.where(ok, scale, 0).to(p.device, p.dtype)
        direction = torch.nan_to_num(direction)
        if shrink != 1:
            p.addcmul_(p, on, value=_number(shrink - 1, p.dtype))
        if buffer is None:
            p.addcmul_(direction, share, value=_number(-lr, p.dtype))
        else:
            buffer.addcmul_(buffer, on, value=_number(mu - 1, p.dtype)).addcmul_(direction, share)
            p.addcmul_(buffer, on, value=_number(-lr, p.dtype))
    return ok


def _number(x: float, dtype: torch.dtype) -> float:
    """Keep a factor within the dtype, so that 0 times it is 0; no step with a larger is taken."""
    x = float(x)
    return x if abs(x) <= torch.finfo(dtype).max else 0.0


def _here(move: Move) -> Move:
    """Part of a move that is in this process."""
    p, buffer = part(move.p), None if move.buffer is None else part(move.buffer)
    grad = None if move.p.grad is None else part(move.p.grad)
    return move._replace(p=p, direction=part(move.direction), buffer=buffer, grad=grad)


def _all_finite(moves: Sequence[Move], like: torch.Tensor) -> torch.Tensor:
    alike: dict[object, list[Move]] = {}
    for move in moves:
        if move.p.numel():
            p, _, lr, shrink, mu, buffer, scale, _ = move
            key = (p.device, p.dtype, lr, shrink, mu, buffer is None, scale is None)
            alike.setdefault(key, []).append(move)
    ok = torch.ones((), dtype=torch.bool, device=like.device)
    for some in alike.values():
        _, _, lr, shrink, mu, buffer, scale, _ = some[0]
        reach = _sizes([move.direction for move in some])
        if scale is not None:
            reach = scale.to(reach.device) * reach
        if buffer is not None:
            reach = reach + mu * _sizes([m.buffer for m in some if m.buffer is not None])
        reach = abs(shrink) * _sizes([move.p for move in some]) + lr * reach
        found = torch.isfinite(reach).all()
        grads = [dense(move.grad) for move in some if move.grad is not None]
        if grads:
            found = found & torch.isfinite(_sizes(grads)).all()
        ok = ok & found.to(ok.device)
    return ok


def _sizes(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Norm of each tensor, not finite where an element is not."""
    order = float("inf") if tensors[0].dtype == torch.float16 else 2
    return torch.stack(torch._foreach_norm(tensors, order))
