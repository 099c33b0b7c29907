"""States as named arrays, and as files that every array library can read.

A method's state is a tree of named tuples and mappings with arrays at its leaves. `flatten` names
each array by its place, `unflatten` puts arrays back after a template, and `save` and `load` keep
them in a safetensors file.
"""

from ngd_core.state.files import Stored, load, save
from ngd_core.state.trees import flatten, mapped, unflatten

__all__ = ["Stored", "flatten", "load", "mapped", "save", "unflatten"]
