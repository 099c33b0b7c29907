"""Names for type checkers; at run time an array is whatever the user's library calls one."""

from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An array of any library that follows the Python Array API standard, or a tracer of one."""

Namespace: TypeAlias = Any
"""The array library's namespace, as ``array_api_compat.array_namespace`` returns it."""

DType: TypeAlias = Any
"""A dtype object of that namespace."""

Scalar: TypeAlias = Any
"""A Python float or an array of shape ``()``."""
