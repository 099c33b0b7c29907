"""The Fisher as a method of the K-FAC family keeps it, as an operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.inversion import is_diagonal, safe_eigh
from ngd_core.methods.ekfac import EKFACState
from ngd_core.methods.kfac import KFACState
from ngd_core.types import LayerSpec

__all__ = ["EigenBlock", "KroneckerOperator", "kronecker"]

Blocks = Mapping[LayerSpec, Array]


class EigenBlock(NamedTuple):
    """One layer: ``(Q_G (x) Q_A) diag(values) (Q_G (x) Q_A)^T``.

    Parameters
    ----------
    values : array, shape (*stack, rows, columns)
        Eigenvalues.
    g_basis : array, shape (*stack, rows, rows)
        Eigenvectors of the output side, in the columns.
    a_basis : array, shape (*stack, columns, columns) or (columns,)
        Those of the input side; ones if they are those of a diagonal.
    """

    values: Array
    g_basis: Array
    a_basis: Array


@dataclass(frozen=True)
class KroneckerOperator:
    """Block-diagonal operator with Kronecker eigenvectors; `kronecker` makes one.

    Parameters
    ----------
    blocks : mapping of LayerSpec to EigenBlock
        One entry a layer.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> F = KroneckerOperator({fc: EigenBlock(np.asarray([[1.0, 3.0]]), np.eye(1), np.eye(2))})
    >>> (F @ {fc: np.ones((1, 2))})[fc], float(F.trace())
    (array([[1., 3.]]), 4.0)
    >>> F.inverse(damping=1.0).diagonal()[fc]
    array([[0.5 , 0.25]])
    """

    blocks: Mapping[LayerSpec, EigenBlock]

    def __matmul__(self, v: Blocks) -> dict[LayerSpec, Array]:
        """Product with blocks, each in its dtype."""
        if set(v) != set(self.blocks):
            got, known = (sorted(spec.name for spec in keys) for keys in (v, self.blocks))
            msg = f"v holds the layers {got}, expected those of the operator, {known}."
            raise ValueError(msg)
        return {spec: _product(block, v[spec], spec) for spec, block in self.blocks.items()}

    def inverse(self, damping: Scalar = 0.0) -> KroneckerOperator:
        """Inverse of this operator with `damping` on its diagonal; infinite where that is 0."""
        _checks.nonnegative(damping=damping)
        return self._with(lambda values, xp: 1 / (values + _xp.scalar(damping, like=values, xp=xp)))

    def solve(self, v: Blocks, damping: Scalar = 0.0) -> dict[LayerSpec, Array]:
        """Apply ``(self + damping I)^-1``."""
        return self.inverse(damping) @ v

    def sqrt(self) -> KroneckerOperator:
        """Symmetric square root."""
        return self._with(lambda values, xp: xp.sqrt(values))

    def trace(self) -> Array:
        """Sum of the eigenvalues."""
        return self._sum(lambda values, xp: xp.sum(values))

    def logdet(self, damping: Scalar = 0.0) -> Array:
        """Logarithm of the determinant, with `damping` on the diagonal; -inf if it is singular."""
        _checks.nonnegative(damping=damping)
        return self._sum(
            lambda values, xp: xp.sum(xp.log(values + _xp.scalar(damping, like=values, xp=xp)))
        )

    def diagonal(self) -> dict[LayerSpec, Array]:
        """Diagonal, in the shape of the blocks."""
        found = {}
        for spec, (values, g, a) in self.blocks.items():
            half = (g * g) @ values
            found[spec] = half * a * a if is_diagonal(a, g) else half @ (a * a).mT
        return found

    def eigenvalues(self) -> Array:
        """All P eigenvalues of all layers, largest first."""
        blocks = self.blocks.values()
        xp = _xp.namespace_of(*(block.values for block in blocks))
        return xp.flip(xp.sort(xp.concat([xp.reshape(block.values, (-1,)) for block in blocks])))

    def to_dense(self) -> dict[LayerSpec, Array]:
        """Matrices of order ``prod(block_shape)``, rows major; for small layers."""
        found = {}
        for spec, block in self.blocks.items():
            n = math.prod(spec.block_shape)
            xp = _xp.namespace_of(block.values)
            unit = xp.reshape(_xp.eye(n, like=block.values, xp=xp), (n, *spec.block_shape))
            found[spec] = xp.reshape(_product(block, unit, spec), (n, n))
        return found

    def _with(self, f: Callable[[Array, Namespace], Array]) -> KroneckerOperator:
        return KroneckerOperator(
            {
                spec: block._replace(values=f(block.values, _xp.namespace_of(block.values)))
                for spec, block in self.blocks.items()
            }
        )

    def _sum(self, f: Callable[[Array, Namespace], Array]) -> Array:
        parts = [f(block.values, _xp.namespace_of(block.values)) for block in self.blocks.values()]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def kronecker(
    state: KFACState | EKFACState, *, dtype: str | None = None, xp: Namespace | None = None
) -> KroneckerOperator:
    """Fisher that a state of `ngd_core.KFAC` or `ngd_core.EKFAC` has averaged.

    Parameters
    ----------
    state : KFACState or EKFACState
        With statistics; of EKFAC also with a basis, that is after a refresh.
    dtype : "float32", "float64" or None
        Of the eigendecompositions of K-FAC's factors; None: float64 where there is one.
    xp : namespace, optional
        Array namespace; found from the state if not given.

    Returns
    -------
    KroneckerOperator
        ``G (x) A`` of each layer (K-FAC), or ``Q diag(S) Q^T`` (EKFAC), without damping, in the
        state's dtype. K-FAC's factors with an eigenvalue below 0 by rounding have it at 0.

    Raises
    ------
    TypeError
        For the state of another method.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import KFAC, Hyper, LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 1, 1, bias=False)
    >>> record = LayerRecord(a=np.asarray([[2.0]]), g=np.asarray([[3.0]]))
    >>> method = KFAC()
    >>> state = method.accumulate(method.init([fc], np.zeros(())), {fc: record}, Hyper())
    >>> float(kronecker(state).trace())
    36.0
    """
    if isinstance(state, EKFACState):
        return KroneckerOperator(
            {
                spec: EigenBlock(layer.scales, layer.g_basis, layer.a_basis)
                for spec, layer in state.layers.items()
            }
        )
    if not isinstance(state, KFACState):
        msg = (
            f"The state is a {type(state).__name__}, expected one of KFAC or EKFAC; other methods "
            "keep no factors that multiply to a Fisher."
        )
        raise TypeError(msg)
    blocks = {}
    for spec, layer in state.layers.items():
        xp = _checks.common_namespace(xp, a=layer.a, g=layer.g)
        g_values, g_basis, _ = safe_eigh(layer.g, dtype=dtype, xp=xp)
        if is_diagonal(layer.a, layer.g):
            a_values, a_basis = layer.a, xp.ones_like(layer.a)
        else:
            a_values, a_basis, _ = safe_eigh(layer.a, dtype=dtype, xp=xp)
        values = g_values[..., :, None] * a_values[..., None, :]
        blocks[spec] = EigenBlock(values, g_basis, a_basis)
    return KroneckerOperator(blocks)


def _product(block: EigenBlock, v: Array, spec: LayerSpec) -> Array:
    """Product with a block, or a stack of them, in its dtype."""
    values, g, a = block
    xp = _checks.common_namespace(None, values=values, v=v)
    given = tuple(v.shape)[-len(spec.block_shape) :]
    if given != spec.block_shape:
        msg = f"v of {spec.name!r} has shape {tuple(v.shape)}, expected {spec.block_shape}."
        raise ValueError(msg)
    x = g.mT @ _xp.astype(v, values.dtype, xp=xp)
    diagonal = is_diagonal(a, g)
    turned = (x * a if diagonal else x @ a) * values
    out = (g @ turned) * a if diagonal else (g @ turned) @ a.mT
    return _xp.astype(out, v.dtype, xp=xp)
