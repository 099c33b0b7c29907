"""SOFIM's tensors as one vector, of which a step works through few arrays and not through many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ngd_core.methods.sofim import SOFIMState

__all__ = ["Joined", "apart", "flat", "fits", "joined", "views"]

Kind = tuple[torch.device, torch.dtype, torch.Size]


class Joined(NamedTuple):
    """State of arrays end to end: those of one device and dtype that have seen the same steps.

    Parameters
    ----------
    kinds : dict of int to (device, dtype, shape)
        Of each array's gradient.
    members : list of list of int
        Arrays in each vector.
    state : SOFIMState
        Of the vectors, by their numbers.
    room : dict of int to tensor
        Where the vectors' gradients go.
    moments : dict of int to tensor
        Momentum of each array, where it is in its vector.
    """

    kinds: dict[int, Kind]
    members: list[list[int]]
    state: SOFIMState
    room: dict[int, torch.Tensor]
    moments: dict[int, torch.Tensor]


def _kinds(grads: Mapping[int, torch.Tensor]) -> dict[int, Kind]:
    return {k: (grad.device, grad.dtype, grad.shape) for k, grad in grads.items()}


def fits(state: Joined, grads: Mapping[int, torch.Tensor]) -> bool:
    """Tell whether these are gradients of the arrays that were joined, where they were."""
    return state.kinds == _kinds(grads)


def joined(state: SOFIMState, grads: Mapping[int, torch.Tensor]) -> Joined:
    """Join copies of a state's arrays, for gradients beside which they are; looks at numbers."""
    kinds = _kinds(grads)
    groups: dict[Any, list[int]] = {}
    for k, x in state.tensors.items():
        groups.setdefault((kinds[k], float(x.weight), int(x.rejected)), []).append(k)
    vectors, room = {}, {}
    for n, own in enumerate(groups.values()):
        moment = torch.cat([state.tensors[k].moment.reshape(-1) for k in own])
        vectors[n] = state.tensors[own[0]]._replace(moment=moment)
        room[n] = torch.empty_like(moment, dtype=grads[own[0]].dtype)
    members = list(groups.values())
    moments = views({n: x.moment for n, x in vectors.items()}, members, grads)
    return Joined(kinds, members, SOFIMState(vectors), room, moments)


def flat(grads: Mapping[int, torch.Tensor], state: Joined) -> dict[int, torch.Tensor]:
    """Gradients end to end, in the room for them."""
    return {
        n: torch.cat([grads[k].reshape(-1) for k in own], out=state.room[n])
        for n, own in enumerate(state.members)
    }


def views(
    vectors: Mapping[int, torch.Tensor],
    members: list[list[int]],
    like: Mapping[int, torch.Tensor],
) -> dict[int, torch.Tensor]:
    """Parts of vectors in the shapes of the arrays."""
    found = {}
    for n, own in enumerate(members):
        parts = vectors[n].split([like[k].numel() for k in own])
        found.update({k: x.view(like[k].shape) for k, x in zip(own, parts, strict=True)})
    return {k: found[k] for k in sorted(found)}


def apart(state: Joined) -> SOFIMState:
    """State array by array, as it was before `joined`; a copy."""
    tensors = state.state.tensors
    whose = {k: n for n, own in enumerate(state.members) for k in own}
    return SOFIMState(
        {k: tensors[whose[k]]._replace(moment=x.clone()) for k, x in state.moments.items()}
    )
