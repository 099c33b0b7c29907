"""Trained weights as safetensors files: named arrays alone, so that reading one runs no code.

Names are those of a PyTorch ``state_dict``, ``conv1.weight`` and ``conv1.bias``; blocks ``[W b]``
of the core's networks, under the layers' names, are read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ngd_core import factors, nn, state
from ngd_core._typing import Array
from ngd_core.lab.errors import UserError, need

__all__ = ["SUFFIX", "blocks", "load", "named", "save"]

SUFFIX = ".safetensors"

OWN = "ngd_core"
"""Entry in the header of files that `ngd_core.state` wrote, which have a digest."""


def named(network: nn.Sequential, params: Mapping[str, Array]) -> dict[str, Array]:
    """Name the values of a network of the core as the same module of PyTorch does.

    Parameters
    ----------
    network : ngd_core.nn.Sequential
        Of dense and convolutional layers.
    params : mapping of str to array
        Blocks ``[W b]`` by layer.

    Returns
    -------
    dict of str to array
        Weights and biases in PyTorch's layout.
    """
    found = {}
    for spec in nn.specs(network):
        weight, bias = factors.split(spec, params[spec.name])
        found[f"{spec.name}.weight"] = weight
        if bias is not None:
            found[f"{spec.name}.bias"] = bias
    return found


def blocks(network: nn.Sequential, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Join weights and biases to the blocks of a network; the inverse of `named`."""
    return {
        spec.name: factors.join(
            spec, arrays[f"{spec.name}.weight"], arrays.get(f"{spec.name}.bias")
        )
        for spec in nn.specs(network)
    }


def save(path: Path, arrays: Mapping[str, Array], **notes: str) -> None:
    """Write weights, all or nothing.

    Parameters
    ----------
    path : Path
        File.
    arrays : mapping of str to array
        Of any library.
    **notes : str
        What they are, for the header.

    Raises
    ------
    UserError
        If safetensors is not installed, or the file system refuses.
    """
    need("safetensors", "safetensors", "files")
    try:
        state.save(path, arrays, **notes)
    except OSError as error:
        msg = f"The file '{path}' cannot be written: {error.strerror}"
        raise UserError(msg) from None


def load(
    source: str, wanted: Mapping[str, tuple[int, ...]], network: nn.Sequential | None = None
) -> dict[str, Any]:
    """Read the weights of a model.

    Parameters
    ----------
    source : str
        Path of a safetensors file.
    wanted : mapping of str to tuple of int
        Shapes of the model's parameters, named as in its ``state_dict``.
    network : ngd_core.nn.Sequential, optional
        The model as a network of the core, whose blocks the file may hold instead.

    Returns
    -------
    dict of str to numpy array
        By the names wanted, in their order.

    Raises
    ------
    UserError
        If safetensors is not installed, the file cannot be read, or it is not of this model.
    """
    arrays = _read(source)
    if network is not None and set(arrays) == set(nn.shapes(network)):
        _fit(source, arrays, nn.shapes(network))
        arrays = named(network, arrays)
    _fit(source, arrays, wanted)
    return {name: arrays[name] for name in wanted}


def _read(source: str) -> dict[str, Any]:
    files = need("safetensors", "safetensors", "files")
    if not Path(source).is_file():
        msg = f"There is no file '{source}'; give the path of a safetensors file of weights"
        raise UserError(msg)
    try:
        with files.safe_open(source, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            own = OWN in (file.metadata() or {})
        return state.load(source).arrays if own else arrays
    except (OSError, ValueError, TypeError, AttributeError, files.SafetensorError) as error:
        # TypeError and AttributeError: numbers of a type that NumPy does not know
        msg = (
            f"The file '{source}' cannot be read as safetensors ({str(error).rstrip('.')}); write "
            "one with safetensors.torch.save_file(model.state_dict(), ...)"
        )
        raise UserError(msg) from None


def _fit(source: str, arrays: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse other names, shapes or numbers."""
    import numpy as np

    missing = [name for name in wanted if name not in arrays]
    unknown = [name for name in arrays if name not in wanted]
    if missing or unknown:
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        has = f"holds {', '.join(unknown)}" if unknown else ""
        msg = (
            f"The weights in '{source}' are not of this model and data: the file "
            f"{' and '.join(filter(None, (lacks, has)))}; expected {', '.join(wanted)}"
        )
        raise UserError(msg)
    for name, shape in wanted.items():
        x = arrays[name]
        if tuple(x.shape) != tuple(shape):
            msg = (
                f"The array '{name}' in '{source}' has the shape {tuple(x.shape)}; this model with "
                f"this data needs {tuple(shape)}"
            )
            raise UserError(msg)
        if not np.isdtype(x.dtype, "real floating") or not np.isfinite(x).all():
            msg = (
                f"The array '{name}' in '{source}' holds {x.dtype} numbers that are not all finite "
                "and real; give weights that a model can compute with"
            )
            raise UserError(msg)
