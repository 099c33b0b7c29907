"""What every layer shares: the shape of a layer without parameters, and a check of its input."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ngd_core._typing import Array, Namespace

__all__ = ["Stateless", "require_input", "sum_vectors"]


@runtime_checkable
class Stateless(Protocol):
    """A layer without parameters; every axis 0 counts examples, which no layer mixes."""

    def forward(self, x: Array, *, xp: Namespace) -> tuple[Array, Any]:
        """Compute outputs, and what the backward pass needs: arrays or tuples of arrays."""
        ...

    def backward(self, kept: Any, g: Array, *, xp: Namespace) -> Array:
        """Compute input gradients; those of the outputs may have one more leading axis M."""
        ...


def require_input(layer: str, x: Array, ok: bool, wanted: str) -> None:
    """Reject an input that the layer cannot read, naming the layer."""
    if not ok:
        msg = f"{layer} got an input of shape {tuple(x.shape)}; expected {wanted}."
        raise ValueError(msg)


def sum_vectors(g: Array, axes: int, *, xp: Namespace) -> Array:
    """Sum over the leading axis M, if `g` has more than `axes` axes."""
    return xp.sum(g, axis=0) if g.ndim > axes else g
