"""States as arrays named by their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ngd_core import _xp
from ngd_core._typing import Array

__all__ = ["flatten", "mapped", "unflatten"]


def flatten(state: Any) -> dict[str, Array]:
    """Name every array of a state.

    Parameters
    ----------
    state : tree
        Arrays in mappings (keyed by strings, integers, layers, which give their name, or tuples of
        layers), named tuples, tuples and lists; None, numbers and strings are passed over.

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
    return _flattened(state, {})


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
    return _mapped(f, state, (), {})


def unflatten(
    template: Any, arrays: Mapping[str, Any], *, names: Mapping[str, str] | None = None
) -> Any:
    """Build a state of named arrays.

    Parameters
    ----------
    template : tree
        State of the same method for the same layers; it stays as it is.
    arrays : mapping of str to array
        As `flatten` or `load` gives them; copied to the dtype and device of the template.
    names : mapping of str to str, optional
        For layers of the template that have another name in `arrays`: that name, by the
        template's. Frameworks name the layers of one network differently, and nothing is guessed.

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
    >>> unflatten({"out": np.zeros(2)}, {"fc": np.ones(2)}, names={"out": "fc"})
    {'out': array([1., 1.])}
    """
    unknown = sorted(set(arrays) - set(_flattened(template, names or {})))
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

    return _mapped(put, template, (), names or {})


def _flattened(state: Any, names: Mapping[str, str]) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def note(path: str, x: Array) -> Array:
        if path in found:
            msg = f"Two arrays of the state are called {path!r}; give their keys distinct names."
            raise ValueError(msg)
        found[path] = x
        return x

    _mapped(note, state, (), names)
    return found


def _mapped(f: Any, tree: Any, path: tuple[str, ...], names: Mapping[str, str]) -> Any:
    """Put ``f(path, array)`` in the place of each array; keys of the outermost mapping renamed."""
    if isinstance(tree, Mapping):
        return {
            key: _mapped(f, value, (*path, _label(key, names)), {}) for key, value in tree.items()
        }
    if isinstance(tree, (tuple, list)):
        places = getattr(tree, "_fields", range(len(tree)))
        parts = [
            _mapped(f, x, (*path, str(place)), names) for place, x in zip(places, tree, strict=True)
        ]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return f("/".join(path), tree) if _xp.is_array(tree) else tree


def _label(key: Any, names: Mapping[str, str]) -> str:
    if isinstance(key, tuple):
        return "+".join(_label(part, names) for part in key)
    name = str(getattr(key, "name", key))
    return names.get(name, name)
