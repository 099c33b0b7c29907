"""Curvature in files that every array library can read."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ngd_core import state
from ngd_torch._optimizers import NaturalGradient, Preconditioner

__all__ = ["load_curvature", "save_curvature"]

COUNTS = ("steps", "epochs", "begun")


def save_curvature(
    path: str | os.PathLike[str], optimizer: NaturalGradient | Preconditioner
) -> None:
    """Write statistics, inverses and the place in the schedule to a safetensors file.

    It goes on in any library (`ngd_core.state.load`). Parameters, momentum and the stream of
    sampled labels are PyTorch's own and not in it: ``state_dict()`` has them. Over several
    processes call it on every rank; the first writes.

    Parameters
    ----------
    path : path
        File; one that is there is replaced, all or nothing.
    optimizer : NaturalGradient or Preconditioner
        Any of this package but `SOFIM`, which has a momentum and no curvature.

    Examples
    --------
    >>> import os, tempfile, torch
    >>> from ngd_torch import KFAC, load_curvature, save_curvature
    >>> first, second = (KFAC(torch.nn.Linear(3, 2), lr=0.1) for _ in range(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_curvature(os.path.join(folder, "kfac"), first)
    ...     load_curvature(os.path.join(folder, "kfac"), second)
    """
    curvature = optimizer.curvature
    stored = curvature.state_dict()  # all ranks take part
    counts = {name: str(stored[name]) for name in COUNTS}
    if curvature.ranks.group.rank == 0:
        state.save(path, stored["arrays"], method=curvature.method, **counts)


def load_curvature(
    path: str | os.PathLike[str],
    optimizer: NaturalGradient | Preconditioner,
    *,
    names: Mapping[str, str] | None = None,
) -> None:
    """Go on from statistics, inverses and the place in the schedule of a file.

    Parameters
    ----------
    path : path
        File of the same method with the same options on the same network, from any library.
    optimizer : NaturalGradient or Preconditioner
        To take it; over several processes call it on every rank.
    names : mapping of str to str, optional
        For layers that have another name in the file: that name, by the module's name here. Those
        of a file from `ngd_jax` are the paths of the weights: ``{"fc": "fc/kernel"}``.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If the file is damaged or does not fit; then nothing of it is taken.

    Examples
    --------
    See `save_curvature`.
    """
    curvature = optimizer.curvature
    found = state.load(path, method=curvature.method)
    tree = state.unflatten(curvature.state, found.arrays, names=names)
    missing = [name for name in ("steps", "epochs") if name not in found.notes]
    if missing:
        msg = (
            f"The file {os.fspath(path)!r} has no note {missing[0]!r}, its place in the "
            "schedule; save it with steps= and epochs=, as strings."
        )
        raise ValueError(msg)
    counts = {name: int(found.notes.get(name, "0")) for name in COUNTS}
    curvature.load_state_dict({**curvature.state_dict(), **counts, "arrays": state.flatten(tree)})
