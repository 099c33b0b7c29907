"""What compiles a method's step, and how often it did."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ngd_core import Hyper


class Compiler(NamedTuple):
    """Namespace, maker of arrays, compiler of functions, and the number of compilations so far."""

    xp: Any
    array: Callable[[Any], Any]
    compiled: Callable[[Any], Any]
    count: Callable[[], int]


def compiler_of(name: str) -> Compiler:
    """Take `jax.jit` or `torch.compile`, of which nothing may fall back to Python."""
    made: list[Any] = []
    if name == "jax":
        import jax
        import jax.numpy

        def jitted(f):
            made.append(jax.jit(f))
            return made[-1]

        return Compiler(
            jax.numpy, jax.numpy.asarray, jitted, lambda: sum(f._cache_size() for f in made)
        )
    import array_api_compat.torch
    import torch

    def note(graph, _):
        made.append(graph)
        return graph.forward

    return Compiler(
        array_api_compat.torch,
        torch.asarray,
        lambda f: torch.compile(f, fullgraph=True, backend=note),
        lambda: len(made),
    )


def hypers(array, steps=12):
    """Dampings and decays, another of each a step."""
    for k in range(steps):
        yield Hyper(array(np.asarray(0.1 * (k + 1))), array(np.asarray(0.9 - 0.01 * k)))
