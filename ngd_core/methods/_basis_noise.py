"""Noise for random bases: what a caller must draw, and a look at what was drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from ngd_core import _checks
from ngd_core._typing import Array
from ngd_core.types import LayerSpec

__all__ = ["BasisNoise", "Shapes", "Side", "check_noise", "noise_shapes"]

Side = Literal["a", "g"]
Shapes = dict[LayerSpec, tuple[tuple[int, ...] | None, tuple[int, ...] | None]]


class BasisNoise(NamedTuple):
    """Standard normal draws for the bases of one layer's factors.

    Parameters
    ----------
    a : array, shape (*stack, columns, rank), or None
        For the input factor; None where it is not projected.
    g : array, shape (*stack, rows, rank), or None
        For the output-gradient factor; likewise.
    """

    a: Array | None
    g: Array | None


def noise_shapes(specs: Iterable[LayerSpec], rank_of: Callable[[int, Side], int]) -> Shapes:
    """Shapes ``(*stack, d, r)`` for A and G of each layer; None where r is d."""

    def shape(spec: LayerSpec, d: int, side: Side) -> tuple[int, ...] | None:
        r = rank_of(d, side)
        return None if r == d else (*spec.stack, d, r)

    return {spec: (shape(spec, spec.columns, "a"), shape(spec, spec.rows, "g")) for spec in specs}


def check_noise(
    noise: Mapping[LayerSpec, BasisNoise] | None, shapes: Shapes, *, needed: bool
) -> dict[LayerSpec, BasisNoise]:
    """Noise of every layer, after a look at its shape; None where there is none."""
    noise = noise or {}
    _checks.same_layers("noise", noise, shapes)
    checked = {spec: noise.get(spec, BasisNoise(None, None)) for spec in shapes}
    for spec, wanted in shapes.items():
        for side, x, shape in zip("ag", checked[spec], wanted, strict=True):
            name = f"noise {side} of {spec.name!r}"
            if shape is None and x is not None:
                msg = f"{name} is given, but this factor has no random basis; give None."
                raise ValueError(msg)
            if shape is not None and x is None and needed:
                msg = f"{name} is missing; expected standard normal draws of shape {shape}."
                raise ValueError(msg)
            if shape is not None and x is not None:
                _checks.shape(name, x, shape, "as noise_shapes says")
    return checked
