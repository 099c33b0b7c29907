"""What differs between array libraries in a training run: creation, compilation, waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ngd_core._typing import Array
from ngd_core.lab.errors import need

__all__ = ["BACKENDS", "Arrays"]

Function = Callable[..., Any]


@dataclass(frozen=True)
class Arrays:
    """One array library.

    Parameters
    ----------
    array : callable
        ``array(x)``: a NumPy array as one of this library, dtype kept.
    compile : callable
        ``compile(f, static)``: `f` compiled, where the library compiles; `static` names keyword
        arguments that are fixed at compile time.
    wait : callable
        ``wait(tree)``: return when all arrays in the tree have been computed.
    eager : bool
        Whether arrays are computed at once on the host, so that Python may look at them.
    """

    array: Callable[[Any], Array]
    compile: Callable[[Function, tuple[str, ...]], Function]
    wait: Callable[[Any], object]
    eager: bool


def _no_compiler(f: Function, _static: tuple[str, ...]) -> Function:
    return f


def _no_wait(_tree: Any) -> None:
    return None


def _numpy() -> Arrays:
    import numpy as np

    return Arrays(np.asarray, _no_compiler, _no_wait, eager=True)


def _torch() -> Arrays:
    torch = need("torch", "PyTorch", "torch")
    return Arrays(lambda x: torch.asarray(x, copy=True), _no_compiler, _no_wait, eager=True)


def _jax() -> Arrays:
    jax = need("jax", "JAX", "jax")
    return Arrays(
        jax.numpy.asarray,
        lambda f, static: jax.jit(f, static_argnames=static),
        jax.block_until_ready,
        eager=False,
    )


BACKENDS: dict[str, Callable[[], Arrays]] = {"numpy": _numpy, "torch": _torch, "jax": _jax}
