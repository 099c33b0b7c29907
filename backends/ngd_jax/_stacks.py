"""Factorisations of stacks of matrices, which on CPUs go one after the other.

jaxlib (seen in 0.10.2) splits a stack over the very threads that run the step, and waits for them:
as many stacks at a time as there are threads wait for each other for ever. A `jax.vmap` of what is
here makes stacks again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["NUMPY", "one_by_one"]

FACTORISATIONS = ("cholesky", "eigh", "eigvalsh", "inv", "qr", "svd")


def one_by_one(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` of one matrix after the other on CPUs, and of whole stacks elsewhere.

    Parameters
    ----------
    f : callable
        ``f(m, ...)`` with m of shape ``(..., n, k)``; gives arrays with the same leading axes.

    Returns
    -------
    callable
        The same, but for the order of computation.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> one_by_one(jnp.linalg.inv)(jnp.asarray([[[2.0]], [[4.0]]])).tolist()
    [[[0.5]], [[0.25]]]
    """

    @functools.wraps(f)
    def wrapped(m: Any, /, *args: Any, **options: Any) -> Any:
        lead = m.shape[:-2]
        if math.prod(lead) < 2:
            return f(m, *args, **options)

        def whole(m: Any) -> Any:
            return f(m, *args, **options)

        def each(m: Any) -> Any:
            found = lax.map(whole, m.reshape(-1, *m.shape[-2:]))
            return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)

        return lax.platform_dependent(m, cpu=each, default=whole)

    return wrapped


def _with_factorisations(module: ModuleType) -> ModuleType:
    found = ModuleType(module.__name__)
    found.__dict__.update(vars(module))
    linalg = ModuleType(module.linalg.__name__)
    linalg.__dict__.update(vars(module.linalg))
    for name in FACTORISATIONS:
        setattr(linalg, name, one_by_one(getattr(module.linalg, name)))
    found.linalg = linalg  # type: ignore[attr-defined]
    return found


NUMPY = _with_factorisations(jnp)
"""``jax.numpy`` whose factorisations go one by one on CPUs, for the core."""
