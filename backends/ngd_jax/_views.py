"""What a traced function has done to a parameter: its elements moved, and none of them changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax.numpy as jnp

__all__ = ["Layout", "View"]

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A leaf of the parameters with its elements in another order, one to one.

    Parameters
    ----------
    leaf : int
        Number of the leaf.
    shape : tuple of int
        Its shape.
    ops : tuple
        Pairs of "transpose" and a permutation, or "reshape" and a shape, in order.
    """

    leaf: int
    shape: Shape
    ops: tuple[tuple[str, Shape], ...] = ()

    @property
    def shapes(self) -> list[Shape]:
        """Shapes before, between and after the operations."""
        shapes = [self.shape]
        for op, how in self.ops:
            last = shapes[-1]
            shapes.append(how if op == "reshape" else tuple(last[k] for k in how))
        return shapes

    @property
    def result(self) -> Shape:
        """Shape after all operations."""
        return self.shapes[-1]

    def transposed(self, permutation: Shape) -> Layout:
        """Layout with its axes in another order."""
        ops = self.ops
        if ops and ops[-1][0] == "transpose":
            ops, permutation = ops[:-1], tuple(ops[-1][1][k] for k in permutation)
        if permutation == tuple(range(len(permutation))):
            return replace(self, ops=ops)
        return replace(self, ops=(*ops, ("transpose", permutation)))

    def reshaped(self, shape: Shape) -> Layout:
        """Layout with another shape of as many elements."""
        return self if shape == self.result else replace(self, ops=(*self.ops, ("reshape", shape)))

    def of(self, leaf: Any) -> Any:
        """Array of the leaf's shape, brought to the layout."""
        for op, how in self.ops:
            leaf = jnp.reshape(leaf, how) if op == "reshape" else jnp.transpose(leaf, how)
        return leaf

    def back(self, x: Any) -> Any:
        """Array in the layout, brought back to the leaf's shape."""
        for (op, how), shape in reversed(list(zip(self.ops, self.shapes, strict=False))):
            if op == "reshape":
                x = jnp.reshape(x, shape)
            else:
                x = jnp.transpose(x, tuple(how.index(k) for k in range(len(how))))
        return x


@dataclass(frozen=True)
class View:
    """A variable of a traced function that holds a parameter.

    Parameters
    ----------
    layout : Layout
        The parameter; its first axes are those of `scans`.
    scans : tuple of int
        Enclosing scans, by depth, each of whose iterations sees one slice along that axis.
    axes : tuple of int or None
        For each axis of the variable the axis of the layout; None for an axis that repeats.
    """

    layout: Layout
    scans: tuple[int, ...]
    axes: tuple[int | None, ...]

    @property
    def inner(self) -> tuple[int, ...]:
        """Axes of the layout that one iteration sees."""
        return tuple(range(len(self.scans), len(self.layout.result)))

    def transposed(self, permutation: Shape) -> View:
        """View after ``transpose``."""
        return replace(self, axes=tuple(self.axes[k] for k in permutation))

    def spread(self, rank: int, places: Shape) -> View:
        """View after ``broadcast_in_dim``: its axes at these places, repeats elsewhere."""
        axes: list[int | None] = [None] * rank
        for place, axis in zip(places, self.axes, strict=True):
            axes[place] = axis
        return replace(self, axes=tuple(axes))

    def reshaped(self, old: Shape, new: Shape) -> View | None:
        """View after ``reshape``; None if it repeats what it holds."""
        moved = self.ordered(old)
        if moved is None:
            return None
        lead = moved.result[: len(self.scans)]
        layout = moved.reshaped((*lead, *new))
        return View(layout, self.scans, tuple(range(len(lead), len(lead) + len(new))))

    def ordered(self, shape: Shape) -> Layout | None:
        """Layout with the axes of the variable, of this shape; None if the variable repeats."""
        kept = [k for k, axis in enumerate(self.axes) if axis is not None]
        if any(shape[k] != 1 for k in range(len(shape)) if k not in kept):
            return None
        used = [self.axes[k] for k in kept]
        sizes = self.layout.result
        rest = [k for k in self.inner if k not in used]
        if math.prod(sizes[k] for k in rest) != 1:
            return None
        if any(sizes[axis] != shape[k] for k, axis in zip(kept, used, strict=True)):  # type: ignore[index]
            return None
        scans = tuple(range(len(self.scans)))
        moved = self.layout.transposed((*scans, *used, *rest))  # type: ignore[arg-type]
        return moved.reshaped((*(sizes[k] for k in scans), *shape))

    def sliced(self, shape: Shape, depth: int) -> View | None:
        """View of one iteration of a scan over the first axis; None if that axis repeats."""
        layout = self.ordered(shape)
        if layout is None:
            return None
        first = len(self.scans) + 1
        axes = tuple(range(first, first + len(shape) - 1))
        return View(layout, (*self.scans, depth), axes)
