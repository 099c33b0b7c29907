"""What will happen to each parameter, told before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from ngd_jax._capture import traced
from ngd_jax._layers import Layer, layers_of

__all__ = ["Report", "report"]


class Report(NamedTuple):
    """Parameters with and without curvature; `str` of it is a table.

    Parameters
    ----------
    layers : tuple of Layer
        Layers, each with its ``spec`` (an `ngd_core.LayerSpec`) and the paths of its
        ``parameters``.
    uncovered : dict of str to str
        For each other parameter why it is in no layer.
    """

    layers: tuple[Layer, ...]
    uncovered: dict[str, str]

    def __str__(self) -> str:
        lines = [("layer", "parameters", "kind", "block")]
        for layer in self.layers:
            block = "x".join(map(str, layer.spec.block_shape))
            lines.append((layer.spec.name, ", ".join(layer.parameters), layer.spec.kind, block))
        for name, why in self.uncovered.items():
            lines.append(("-", name, "-", f"follows its gradient: {why}"))
        widths = [max(len(line[k]) for line in lines) for k in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def report(
    loss_fn: Callable[..., Any],
    params: Any,
    *batch: Any,
    sharing: Literal["expand", "reduce"] = "expand",
    batch_argnums: Sequence[int] | None = None,
) -> Report:
    """Tell which parameters of a loss have curvature, and in which layers; compute nothing.

    Parameters
    ----------
    loss_fn : callable
        As in `ngd_jax.value_and_grad`, with or without further results.
    params : pytree
        Parameters; shapes and dtypes are enough (`jax.ShapeDtypeStruct`).
    *batch : pytrees
        Further arguments of the loss, or their shapes and dtypes.
    sharing : "expand" or "reduce"
        Treatment of shared positions, as in `ngd_core.LayerSpec`.
    batch_argnums : sequence of int, optional
        As in `ngd_jax.value_and_grad`.

    Returns
    -------
    Report
        Layers, for `ngd_jax.kfac` and the others, and the parameters in none.

    Raises
    ------
    TypeError, ValueError
        As `ngd_jax.value_and_grad`.

    Examples
    --------
    >>> import jax.numpy as jnp, ngd_jax
    >>> def loss_fn(params, x):
    ...     return jnp.mean(jnp.tanh(x @ params["w"] + params["b"]) / params["s"])
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2), "s": jnp.ones(2)}
    >>> print(ngd_jax.report(loss_fn, params, jnp.ones((4, 3))))
    layer  parameters  kind   block
    w      w, b        dense  2x4
    -      s           -      follows its gradient: used by div
    """
    trace = traced(loss_fn, params, batch, batch_argnums)
    layers = layers_of(trace.groups, trace.paths, sharing)
    return Report(tuple(layers), trace.uncovered)
