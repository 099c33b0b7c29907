"""A mark in the loss: this array is the result of that linear map, however it was computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

__all__ = ["MARK", "tag"]

MARK = "ngd_jax_tag"
"""Name of the marked call in a jaxpr."""


def tag(y: Any, like: Callable[..., Any], *args: Any) -> Any:
    """Mark an array as what a linear map of a parameter gives, for tracing to see.

    For a Pallas kernel, or a `jax.custom_vjp` function whose backward pass has no transpose.

    Parameters
    ----------
    y : array
        Result of the kernel, used from here on in place of itself.
    like : callable
        ``like(*args)``: the same in plain JAX, one product of a parameter with data as in the table
        of `docs/jax.md`, and a bias that is added to it. It is traced and never computed in a
        compiled step; neither values nor gradients come from it.
    *args : arrays
        Data, weight and bias as the kernel has them.

    Returns
    -------
    array
        `y`.

    Raises
    ------
    ValueError
        If `like` gives another shape or dtype than `y`.

    Notes
    -----
    The mark excuses the use of the parameter by the operation that made `y`, through reshapes,
    casts and functions of one array; every other use counts as without it.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, ngd_jax
    >>> @jax.custom_vjp
    ... def kernel(x, w):
    ...     return x @ w
    >>> kernel.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    >>> def loss_fn(params, x):
    ...     w = params["w"]
    ...     return jnp.mean(ngd_jax.tag(kernel(x, w), jnp.matmul, x, w))
    >>> print(ngd_jax.report(loss_fn, {"w": jnp.ones((3, 2))}, jnp.ones((4, 3))))
    layer  parameters  kind   block
    w      w           dense  2x3
    """
    shape = jax.eval_shape(like, *args)
    if (shape.shape, shape.dtype) != (y.shape, y.dtype):
        msg = (
            f"The tagged array has shape {y.shape} and dtype {y.dtype}, and `like` gives "
            f"{shape.shape} and {shape.dtype}; pass the map that the kernel computes."
        )
        raise ValueError(msg)

    def ngd_jax_tag(y: Any, args: Any) -> Any:
        return y, like(*args)

    return jax.jit(ngd_jax_tag)(y, args)[0]
