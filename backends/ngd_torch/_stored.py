"""Whether a stored state fits, all of it, before anything of it is taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

__all__ = ["check_arrays", "check_groups", "entry"]


OWN = ("lr", "momentum", "weight_decay")
"""Options of a group that are not torch's own."""


def entry(stored: Any, name: str, kinds: type | tuple[type, ...], advice: str) -> Any:
    """Entry of a state, which must be there and of these types."""
    found = stored.get(name) if isinstance(stored, Mapping) else None
    if not isinstance(found, kinds):
        msg = f"The state's {name!r} is of type {type(found).__name__}; {advice}."
        raise ValueError(msg)
    return found


def check_arrays(
    arrays: Mapping[str, Any], wanted: Iterable[tuple[str, torch.Tensor]], advice: str
) -> None:
    """Refuse arrays unless they have the paths, shapes and kinds of numbers of those wanted."""
    templates = dict(wanted)
    for path, x in templates.items():
        got = arrays.get(path)
        if not isinstance(got, torch.Tensor):
            what = "nothing" if got is None else f"a {type(got).__name__}"
        elif got.shape != x.shape:
            what = f"shape {tuple(got.shape)}"
        elif got.is_floating_point() != x.is_floating_point():
            what = f"dtype {got.dtype}"
        else:
            continue
        msg = (
            f"The stored curvature holds {what} for {path}, expected shape {tuple(x.shape)} and "
            f"dtype {x.dtype}; {advice}."
        )
        raise ValueError(msg)
    further = sorted(set(arrays) - set(templates))
    if further:
        msg = f"The stored curvature holds {further[0]}, which is in no layer here; {advice}."
        raise ValueError(msg)


def check_groups(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any], advice: str) -> None:
    """Refuse a state unless groups and momentum are those of as many parameters."""
    groups = entry(stored, "param_groups", list, advice)
    kept = entry(stored, "state", dict, advice)
    own = [len(group["params"]) for group in optimizer.param_groups]
    got = [len(entry(group, "params", list, advice)) for group in groups]
    if got != own:
        msg = f"The stored groups have {got} parameters, expected {own}; {advice}."
        raise ValueError(msg)
    for group in groups:
        missing = [name for name in OWN if name in optimizer.defaults and name not in group]
        if missing:
            msg = f"A stored group has no {missing[0]!r}; {advice}."
            raise ValueError(msg)
    numbers = [number for group in groups for number in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for number, p in zip(numbers, params, strict=True):
        x = kept.get(number, {}).get("momentum_buffer")
        if x is not None and x.shape != p.shape:
            msg = (
                f"The stored momentum has shape {tuple(x.shape)} for a parameter of shape "
                f"{tuple(p.shape)}; {advice}."
            )
            raise ValueError(msg)
