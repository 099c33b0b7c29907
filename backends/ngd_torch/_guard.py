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
    """How one parameter is to move: ``shrink * p - lr * (mu * buffer + direction)``."""

    p: nn.Parameter
    direction: torch.Tensor
    lr: float
    shrink: float = 1.0
    mu: float = 0.0
    buffer: torch.Tensor | None = None
    grad: torch.Tensor | None = None  # of the parameter, filled in by `take`


def dense(grad: torch.Tensor) -> torch.Tensor:
    """Gradient with all its zeros, also one of an embedding made with ``sparse=True``."""
    return grad.to_dense() if grad.is_sparse else grad


def take(moves: Sequence[Move], like: torch.Tensor, group: Group = ALONE) -> torch.Tensor:
    """Take all moves, or none, and tell which, on the device and without waiting for it.

    None is taken if a gradient or a direction is not finite, or if a parameter or its momentum
    would not be, by the bound ``|shrink| |p| + lr (mu |buffer| + |direction|)`` on its entries.

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
    for p, direction, lr, shrink, mu, buffer, _ in moves:
        here = ok.to(p.device)
        if buffer is not None:
            direction = (mu * buffer).add_(direction)
            buffer.copy_(torch.where(here, direction, buffer))
        moved = (p if shrink == 1 else p * shrink) - lr * direction
        p.copy_(torch.where(here, moved, p))
    return ok


def _here(move: Move) -> Move:
    """Part of a move that is in this process."""
    p, buffer = part(move.p), None if move.buffer is None else part(move.buffer)
    grad = None if move.p.grad is None else part(move.p.grad)
    return move._replace(p=p, direction=part(move.direction), buffer=buffer, grad=grad)


def _all_finite(moves: Sequence[Move], like: torch.Tensor) -> torch.Tensor:
    alike: dict[object, list[Move]] = {}
    for move in moves:
        if move.p.numel():
            p, _, lr, shrink, mu, buffer, _ = move
            key = (p.device, p.dtype, lr, shrink, mu, buffer is None)
            alike.setdefault(key, []).append(move)
    ok = torch.ones((), dtype=torch.bool, device=like.device)
    for some in alike.values():
        _, _, lr, shrink, mu, buffer, _ = some[0]
        reach = _peaks([move.direction for move in some])
        if buffer is not None:
            reach = reach + mu * _peaks([m.buffer for m in some if m.buffer is not None])
        reach = abs(shrink) * _peaks([move.p for move in some]) + lr * reach
        found = torch.isfinite(reach).all()
        grads = [dense(move.grad) for move in some if move.grad is not None]
        if grads:
            found = found & torch.isfinite(_peaks(grads)).all()
        ok = ok & found.to(ok.device)
    return ok


def _peaks(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Largest magnitude in each tensor, NaN where there is one."""
    return torch.stack(torch._foreach_norm(tensors, float("inf")))
