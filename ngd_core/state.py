"""States as named arrays, and as files that every array library can read.

A method's state is a tree of named tuples and mappings with arrays at its leaves. `flatten` names
each array by its place, `unflatten` puts arrays back after a template, and `save` and `load` keep
them in a safetensors file: numbers alone, so that reading one runs no code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ngd_core import _xp
from ngd_core._typing import Array

__all__ = ["flatten", "load", "mapped", "save", "unflatten"]


def flatten(state: Any) -> dict[str, Array]:
    """Name every array of a state.

    Parameters
    ----------
    state : tree
        Arrays in mappings (keyed by strings, integers, or layers, which give their name), named
        tuples, tuples and lists; None, numbers and strings are passed over.

    Returns
    -------
    dict of str to array
        The arrays themselves, by path: ``"layers/fc/a"``.

    Raises
    ------
    ValueError
        If two arrays have one name, as with the keys 1 and "1".

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import KFAC, LayerSpec
    >>> state = KFAC().init([LayerSpec("fc", "dense", 2, 1, bias=False)], np.zeros(()))
    >>> list(flatten(state))[:2]
    ['layers/fc/a', 'layers/fc/g']
    """
    found: dict[str, Array] = {}

    def note(path: str, x: Array) -> Array:
        if path in found:
            msg = f"Two arrays of the state are called {path!r}; give their keys distinct names."
            raise ValueError(msg)
        found[path] = x
        return x

    mapped(note, state)
    return found


def mapped(f: Callable[..., Any], state: Any) -> Any:
    """Build a state of what a function makes of each array.

    Parameters
    ----------
    f : callable
        Takes an array's path, as `flatten` names it, and the array.
    state : tree
        As `flatten` takes it; it stays as it is.

    Returns
    -------
    tree
        Same structure, mappings as dicts; what is no array is as it was.

    Examples
    --------
    >>> import numpy as np
    >>> mapped(lambda path, x: (path, x.size), {"m": [np.zeros(2), None]})
    {'m': [('m/0', 2), None]}
    """
    return _mapped(f, state, ())


def unflatten(template: Any, arrays: Mapping[str, Any]) -> Any:
    """Build a state of named arrays.

    Parameters
    ----------
    template : tree
        State of the same method for the same layers; it stays as it is.
    arrays : mapping of str to array
        As `flatten` or `load` gives them; copied to the dtype and device of the template.

    Returns
    -------
    tree
        Structure of the template, values of `arrays`.

    Raises
    ------
    ValueError
        If a name is missing or unknown, or a shape differs.

    Examples
    --------
    >>> import numpy as np
    >>> unflatten({"m": np.zeros(2, dtype=np.float32)}, {"m": np.ones(2)})
    {'m': array([1., 1.], dtype=float32)}
    """
    unknown = sorted(set(arrays) - set(flatten(template)))
    if unknown:
        msg = (
            f"The arrays hold {unknown[0]!r}, which the state has no place for; load a state of "
            "the same method and the same layers."
        )
        raise ValueError(msg)

    def put(path: str, x: Array) -> Array:
        value = arrays.get(path)
        if value is None or tuple(value.shape) != tuple(x.shape):
            got = "nothing" if value is None else f"shape {tuple(value.shape)}"
            msg = (
                f"The arrays hold {got} for {path!r}, expected shape {tuple(x.shape)}; load a "
                "state of the same method and the same layers."
            )
            raise ValueError(msg)
        return _xp.copied(value, like=x, xp=_xp.namespace_of(x))

    return mapped(put, template)


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any], **notes: str) -> None:
    """Write named arrays, all or nothing.

    Parameters
    ----------
    path : path
        File; one that is there is replaced, by a rename after everything is written.
    arrays : mapping of str to array
        Of NumPy, or of a library whose arrays NumPy can read or copy from its device.
    **notes : str
        Kept in the file's header.

    Raises
    ------
    ModuleNotFoundError
        Without the package safetensors (extra ``files``).

    Examples
    --------
    >>> import numpy as np, tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(os.path.join(folder, "a"), {"x": np.ones(1)}, step="3")
    ...     load(os.path.join(folder, "a"))
    ({'x': array([1.])}, {'step': '3'})
    """
    import numpy as np
    from safetensors.numpy import save as serialised

    on_host = {name: np.asarray(_xp.on_host(x)) for name, x in arrays.items()}
    # safetensors writes the memory of an array, whatever its strides
    rows = {name: np.asarray(x, order="C") for name, x in on_host.items()}
    data = serialised(rows, metadata=notes or None)
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Read what `save` wrote.

    Parameters
    ----------
    path : path
        File.

    Returns
    -------
    arrays : dict of str to numpy array
        As they were saved.
    notes : dict of str to str
        From the header.

    Raises
    ------
    ModuleNotFoundError
        Without the package safetensors (extra ``files``).
    FileNotFoundError
        Without the file.

    Examples
    --------
    >>> import numpy as np, tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(os.path.join(folder, "a"), {"x": np.ones(2, dtype=np.float32)})
    ...     arrays, _ = load(os.path.join(folder, "a"))
    >>> arrays["x"]
    array([1., 1.], dtype=float32)
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        names = sorted(file.keys())
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def _mapped(f: Any, tree: Any, path: tuple[str, ...]) -> Any:
    """Put ``f(path, array)`` in the place of each array."""
    if isinstance(tree, Mapping):
        return {
            key: _mapped(f, value, (*path, str(getattr(key, "name", key))))
            for key, value in tree.items()
        }
    if isinstance(tree, (tuple, list)):
        names = getattr(tree, "_fields", range(len(tree)))
        parts = [_mapped(f, x, (*path, str(name))) for name, x in zip(names, tree, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return f("/".join(path), tree) if _xp.is_array(tree) else tree
