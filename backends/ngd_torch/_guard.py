"""A step is taken whole or not at all: nothing that is not finite reaches a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ngd_torch._ranks import ALONE, Group, summed
from ngd_torch._shards import is_sharded, part

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
    vouched: torch.Tensor | None = None  # whether the gradient behind the direction is finite
    grad: torch.Tensor | None = None  # of the parameter if nothing vouches, filled in by `take`


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
    alike = _alike([_rated(_here(move)) for move in moves if move.p.numel()])
    level = [[_level(move) for move in some] for some in alike]
    ok = _all_finite(level, part(like))
    if group.size > 1:
        ok = summed([(~ok).float()], group.handle)[0] == 0
    for some, copies in zip(alike, level, strict=True):
        _go(some, copies, ok.to(some[0].p.device))
    return ok


def _alike(moves: Sequence[Move]) -> list[list[Move]]:
    """Group moves that differ in their tensors alone."""
    groups: dict[object, list[Move]] = {}
    for move in moves:
        p, _, lr, shrink, mu, buffer, scale, *_ = move
        key = (p.device, p.dtype, lr, shrink, mu, buffer is None, scale is None)
        groups.setdefault(key, []).append(move)
    return list(groups.values())


def _go(moves: Sequence[Move], level: Sequence[Move], ok: torch.Tensor) -> None:
    """Take level moves in one pass, PyTorch's fused SGD, which leaves all as it is if not ok."""
    _, _, lr, shrink, mu, buffer, *_ = moves[0]
    ps, directions = [move.p for move in level], [move.direction for move in level]
    if shrink != 1:
        one = torch.ones((), dtype=ps[0].dtype, device=ok.device)
        torch._foreach_mul_(ps, torch.where(ok, shrink * one, one))
    torch._fused_sgd_(
        ps,
        directions,
        [] if buffer is None else [move.buffer for move in level],
        weight_decay=0.0,
        momentum=0.0 if buffer is None else float(mu),
        lr=float(lr),
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        found_inf=(~ok).float(),
    )
    for move, copy in zip(moves, level, strict=True):
        if copy.p is not move.p:
            move.p.copy_(copy.p)
            if move.buffer is not None:
                move.buffer.copy_(copy.buffer)


RATES = 2.0**-60, 2.0**60
"""Rates with which float32 neither overflows nor loses digits."""


def _rated(move: Move) -> Move:
    """Move with its scale in its rate, which saves a pass, where there is no momentum."""
    if move.scale is not None and move.buffer is None and move.scale.device.type == "cpu":
        rate = float(move.lr) * float(move.scale)
        if RATES[0] <= rate <= RATES[1]:
            return move._replace(lr=rate, scale=None)
    return move


def _level(move: Move) -> Move:
    """Move with its scale in it, whose tensors lie in memory alike and without gaps."""
    p, buffer, direction = move.p, move.buffer, move.direction
    if not _is_dense(p) or (buffer is not None and buffer.stride() != p.stride()):
        p = p.clone(memory_format=torch.contiguous_format)
        buffer = None if buffer is None else buffer.contiguous()
    if move.scale is not None:
        scale = move.scale.to(p.device, direction.dtype)
        direction = torch.mul(direction, scale, out=torch.empty_like(p, dtype=direction.dtype))
    elif direction.stride() != p.stride():
        direction = torch.empty_like(p, dtype=direction.dtype).copy_(direction)
    return move._replace(p=p, direction=direction, buffer=buffer, scale=None)


FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _is_dense(x: torch.Tensor) -> bool:
    return x.is_contiguous() or (
        x.ndim in FORMATS and x.is_contiguous(memory_format=FORMATS[x.ndim])
    )


def _here(move: Move) -> Move:
    """Part of a move that is in this process."""
    if move.vouched is not None and not is_sharded(move.p):
        return move
    p, buffer = part(move.p), None if move.buffer is None else part(move.buffer)
    known = move.p.grad is None or move.vouched is not None or move.direction is move.p.grad
    grad = None if known else part(move.p.grad)
    return move._replace(p=p, direction=part(move.direction), buffer=buffer, grad=grad)


def _all_finite(alike: Sequence[Sequence[Move]], like: torch.Tensor) -> torch.Tensor:
    ok = torch.ones((), dtype=torch.bool, device=like.device)
    for some in alike:
        _, _, lr, shrink, mu, buffer, *_ = some[0]
        reach = _sizes([move.direction for move in some])
        if buffer is not None:
            reach = reach + mu * _sizes([m.buffer for m in some if m.buffer is not None])
        reach = abs(shrink) * _sizes([move.p for move in some]) + lr * reach
        found = torch.isfinite(reach).all()
        grads = [dense(move.grad) for move in some if move.grad is not None]
        if grads:
            found = found & torch.isfinite(_sizes(grads)).all()
        for vouched in {id(move.vouched): move.vouched for move in some}.values():
            found = found if vouched is None else found & vouched.to(found.device)
        ok = ok & found.to(ok.device)
    return ok


def _sizes(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Norm of each tensor, not finite where an element is not."""
    order = float("inf") if tensors[0].dtype == torch.float16 else 2
    return torch.stack(torch._foreach_norm(tensors, order))
