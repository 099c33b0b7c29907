"""Operators on the parameters of a model as its framework keeps them, in place of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.operators.fisher import FisherOperator
from ngd_core.operators.kronecker import KroneckerOperator
from ngd_core.types import LayerSpec

__all__ = ["MappedOperator", "check_covered"]


def _as_it_is(tree: Any) -> Any:
    return tree


@dataclass(frozen=True)
class MappedOperator:
    """Operator that takes and gives parameters; ``fisher`` and ``kronecker`` of an adapter make it.

    Parameters
    ----------
    operator : FisherOperator or KroneckerOperator
        On blocks.
    shapes : mapping of str to tuple of int
        Shape of each parameter by name, in the order of `to_dense`.
    to_blocks : callable
        ``to_blocks(arrays)``: blocks by layer of arrays by name.
    from_blocks : callable
        ``from_blocks(blocks)``: its inverse; it moves entries and changes none.
    by_name : callable
        ``by_name(tree)``: arrays by name of what `@` takes; a mapping of names if not given.
    tree : callable
        ``tree(arrays)``: its inverse.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec, factors
    >>> from ngd_core.operators import fisher
    >>> fc = LayerSpec("fc", "dense", 1, 1)
    >>> F = MappedOperator(
    ...     fisher({fc: LayerRecord(a=np.asarray([[3.0]]), g=np.asarray([[1.0]]))}),
    ...     {"bias": (1,), "weight": (1, 1)},
    ...     lambda arrays: {fc: factors.join(fc, **arrays)},
    ...     lambda blocks: dict(zip(("weight", "bias"), factors.split(fc, blocks[fc]))),
    ... )
    >>> F.to_dense().round(6)
    array([[1., 3.],
           [3., 9.]])
    >>> (F @ {"weight": np.ones((1, 1)), "bias": np.zeros(1)})["bias"].round(6)
    array([3.])
    """

    operator: FisherOperator | KroneckerOperator
    shapes: Mapping[str, tuple[int, ...]]
    to_blocks: Callable[[Mapping[str, Array]], Mapping[LayerSpec, Array]]
    from_blocks: Callable[[Mapping[LayerSpec, Array]], Mapping[str, Array]]
    by_name: Callable[[Any], Mapping[str, Array]] = _as_it_is
    tree: Callable[[Mapping[str, Array]], Any] = _as_it_is

    def __matmul__(self, v: Any) -> Any:
        """Product with parameters."""
        return self._given_back(self.operator @ self._taken(v))

    def inverse(self, damping: Scalar = 0.0) -> MappedOperator:
        """Inverse of this operator with `damping` on its diagonal; infinite where that is 0."""
        return replace(self, operator=self.operator.inverse(damping))

    def solve(self, v: Any, damping: Scalar = 0.0) -> Any:
        """Apply ``(self + damping I)^-1``."""
        return self._given_back(self.operator.solve(self._taken(v), damping))

    def sqrt(self) -> MappedOperator:
        """Symmetric square root."""
        return replace(self, operator=self.operator.sqrt())

    def trace(self) -> Array:
        """Sum of all eigenvalues."""
        return self.operator.trace()

    def logdet(self, damping: Scalar = 0.0) -> Array:
        """Logarithm of the determinant, with `damping` on the diagonal; -inf if it is singular."""
        return self.operator.logdet(damping)

    def diagonal(self) -> Any:
        """Diagonal, as parameters."""
        return self._given_back(self.operator.diagonal())

    def eigenvalues(self) -> Array:
        """Eigenvalues, largest first: those that the operator on blocks gives."""
        return self.operator.eigenvalues()

    def to_dense(self) -> Array:
        """Matrix of order P, parameters in the order of `shapes`, rows major; for small models."""
        if isinstance(self.operator, FisherOperator):
            matrix, specs = self.operator.to_dense(), list(self.operator.records)
            xp = _xp.namespace_of(matrix)
        else:
            parts = self.operator.to_dense()
            specs, xp = list(parts), _xp.namespace_of(*parts.values())
            matrix = _block_diagonal(list(parts.values()), xp)
        places, start = {}, 0
        numbers = _xp.arange(matrix.shape[0], like=matrix, dtype=_xp.index_dtype(xp=xp), xp=xp)
        for spec in specs:
            stop = start + math.prod(spec.block_shape)
            places[spec] = xp.reshape(numbers[start:stop], spec.block_shape)
            start = stop
        moved = self.from_blocks(places)
        order = xp.concat([xp.reshape(moved[name], (-1,)) for name in self.shapes])
        return xp.take(xp.take(matrix, order, axis=0), order, axis=1)

    def _taken(self, v: Any) -> Mapping[LayerSpec, Array]:
        """Blocks of parameters that were given."""
        arrays = self.by_name(v)
        if not isinstance(arrays, Mapping):
            msg = (
                f"v is a {type(v).__name__}; expected a mapping of the parameters' names to arrays."
            )
            raise TypeError(msg)
        if set(arrays) != set(self.shapes):
            missing = sorted(set(self.shapes) - set(arrays))
            further = sorted(set(arrays) - set(self.shapes))
            msg = (
                f"v lacks the parameters {missing} and has {further} besides; expected those of "
                f"the operator, {list(self.shapes)}."
            )
            raise ValueError(msg)
        for name, shape in self.shapes.items():
            _checks.shape(f"v of {name!r}", arrays[name], shape, "that of the parameter")
        return self.to_blocks(arrays)

    def _given_back(self, blocks: Mapping[LayerSpec, Array]) -> Any:
        """Parameters of blocks, in the order of `shapes`."""
        arrays = self.from_blocks(blocks)
        return self.tree({name: arrays[name] for name in self.shapes})


def check_covered(why: Mapping[str, str], uncovered: str) -> None:
    """Reject parameters in no layer, unless they are to be left out.

    Parameters
    ----------
    why : mapping of str to str
        For each such parameter the reason.
    uncovered : "error" or "omit"
        What happens to them.

    Raises
    ------
    ValueError
        For "error" if there are some, by name; for any other word but "omit".

    Examples
    --------
    >>> check_covered({"scale": "used by mul"}, "omit")
    """
    _checks.one_of("uncovered", uncovered, ("error", "omit"))
    if why and uncovered == "error":
        names = ", ".join(f"{name!r} ({reason})" for name, reason in why.items())
        msg = (
            f"These parameters are in no layer with curvature: {names}; pass uncovered='omit' for "
            "an operator on all others."
        )
        raise ValueError(msg)


def _block_diagonal(blocks: Sequence[Array], xp: Namespace) -> Array:
    size, rows, before = sum(block.shape[0] for block in blocks), [], 0
    for block in blocks:
        after = size - before - block.shape[0]
        rows.append(_xp.pad(block, ((0, 0), (before, after)), xp=xp))
        before += block.shape[0]
    return xp.concat(rows)
