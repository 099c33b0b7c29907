"""The exact Fisher of a batch, and functions of it, as an operator without a matrix.

With the R = M N rows of J the per-example gradients over ``sqrt(N)``, ``F = J^T J``, and the Gram
matrix ``K = J J^T = U diag(k) U^T``, a function f of F acts as

``f(F) v = f(0) (v - Pi v) + J^T U diag(f(k) / k) U^T J v``, ``Pi = J^T U diag(1 / k) U^T J``,

Pi the projection onto the range of ``J^T``. Eigenvalues k below rounding belong to the rest. Those
below ``sqrt(eps)`` of the largest have eigenvectors of few digits, by which a projection would lose
them: their directions stay in the rest, and ``(f(k) - f(0)) / k`` stands in place of ``f(k) / k``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.analysis._batch import check_blocks, parameters
from ngd_core.analysis.duality import LIMIT, fisher_gram
from ngd_core.factors import batch_shape, directional_derivatives, weighted_gradient
from ngd_core.inversion import safe_eigh
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["FisherOperator", "fisher"]

Blocks = Mapping[LayerSpec, Array]


@dataclass(frozen=True)
class FisherOperator:
    """Function of the joint Fisher of all layers on one batch; `fisher` makes one.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Of the batch.
    gram_values : array, shape (R,)
        Eigenvalues of the Gram matrix, ascending; 0 where they are below rounding.
    gram_vectors : array, shape (R, R)
        Its eigenvectors, in the columns.
    values : array, shape (R,)
        Eigenvalues of this operator at those eigenvectors.
    rest : array, shape ()
        Its eigenvalue at all else: 0 for the Fisher itself.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> F = fisher({fc: LayerRecord(a=np.asarray([[3.0, 0.0]]), g=np.asarray([[1.0]]))})
    >>> (F.inverse(damping=1.0) @ {fc: np.ones((1, 2))})[fc].round(6)
    array([[0.1, 1. ]])
    """

    records: Mapping[LayerSpec, LayerRecord]
    gram_values: Array
    gram_vectors: Array
    values: Array
    rest: Array

    def __matmul__(self, v: Blocks) -> dict[LayerSpec, Array]:
        """Product with blocks, each in its dtype; one pass over the records there and back."""
        xp = _xp.namespace_of(self.values)
        check_blocks("v", v, self.records, xp)
        dtype = self.values.dtype
        work = {spec: _xp.astype(x, dtype, xp=xp) for spec, x in v.items()}
        along = self._along(work, xp)
        apart = self._apart(xp)
        values = xp.where(apart, self.values, self.values - self.rest)
        inside = self._back(self._inverted(values, xp) * along, xp)
        outside = self._outside(self._outside(work, xp), xp)
        return {
            spec: _xp.astype(inside[spec] + self.rest * outside[spec], x.dtype, xp=xp)
            for spec, x in v.items()
        }

    def inverse(self, damping: Scalar = 0.0) -> FisherOperator:
        """Inverse of this operator with `damping` on its diagonal; infinite where that is 0."""
        _checks.nonnegative(damping=damping)
        return self._with(lambda x, xp: 1 / (x + _xp.scalar(damping, like=x, xp=xp)))

    def solve(self, v: Blocks, damping: Scalar = 0.0) -> dict[LayerSpec, Array]:
        """Apply ``(self + damping I)^-1``."""
        return self.inverse(damping) @ v

    def sqrt(self) -> FisherOperator:
        """Symmetric square root."""
        return self._with(lambda x, xp: xp.sqrt(x))

    def trace(self) -> Array:
        """Sum of all P eigenvalues."""
        return self._sum(self.values, self.rest)

    def logdet(self, damping: Scalar = 0.0) -> Array:
        """Logarithm of the determinant, with `damping` on the diagonal; -inf if it is singular."""
        _checks.nonnegative(damping=damping)
        xp = _xp.namespace_of(self.values)
        extra = _xp.scalar(damping, like=self.values, xp=xp)
        return self._sum(xp.log(self.values + extra), xp.log(self.rest + extra))

    def diagonal(self) -> dict[LayerSpec, Array]:
        """Diagonal, in the shape of the blocks; R passes over the records."""
        xp = _xp.namespace_of(self.values)
        excess = self._inverted(self.values - self.rest, xp)
        found = {
            spec: self.rest + _xp.zeros(spec.block_shape, like=self.values, xp=xp)
            for spec in self.records
        }
        for r in range(self.values.shape[0]):
            row = self._back(_one(r, self.values, xp), xp)
            found = {spec: d + excess[r] * row[spec] * row[spec] for spec, d in found.items()}
        return found

    def eigenvalues(self) -> Array:
        """Eigenvalues at the range of the batch's gradients, largest first.

        Returns
        -------
        array, shape (R,)
            All others of the P eigenvalues are `rest`, which also stands where the batch has fewer
            directions than rows.
        """
        xp = _xp.namespace_of(self.values)
        return xp.flip(xp.sort(self.values))

    def to_dense(self) -> Array:
        """Matrix of order P, layers in the order of the records; for small models."""
        xp = _xp.namespace_of(self.values)
        rows = []
        for r in range(self.values.shape[0]):
            row = self._back(_one(r, self.values, xp), xp)
            rows.append(xp.concat([xp.reshape(row[spec], (-1,)) for spec in self.records]))
        basis = xp.stack(rows)
        excess = self._inverted(self.values - self.rest, xp)
        unit = _xp.eye(basis.shape[1], like=self.values, xp=xp)
        return self.rest * unit + basis.mT @ (excess[:, None] * basis)

    def _with(self, f: Callable[[Array, Namespace], Array]) -> FisherOperator:
        xp = _xp.namespace_of(self.values)
        rest = f(self.rest, xp)
        values = xp.where(self.gram_values > 0, f(self.values, xp), rest)
        return replace(self, values=values, rest=rest)

    def _sum(self, values: Array, rest: Array) -> Array:
        """Sum over the spectrum, `values` at the range and `rest` elsewhere."""
        xp = _xp.namespace_of(values)
        used = self.gram_values > 0
        count = xp.sum(_xp.astype(used, values.dtype, xp=xp))
        size = parameters(self.records)
        # 0 times an infinite logarithm, where the range is everything, counts for nothing
        outside = xp.where(count < size, rest, xp.zeros_like(rest)) * (size - count)
        return xp.sum(xp.where(used, values, xp.zeros_like(values))) + outside

    def _inverted(self, numbers: Array, xp: Namespace) -> Array:
        """Numbers over the Gram eigenvalues, 0 where those are."""
        used = self.gram_values > 0
        return xp.where(used, numbers / xp.where(used, self.gram_values, 1.0), 0.0)

    def _along(self, v: Blocks, xp: Namespace) -> Array:
        """``U^T J v``."""
        along = directional_derivatives(self.records, v, xp=xp)
        n = along.shape[-1]
        return self.gram_vectors.mT @ xp.reshape(along, (-1,)) / n**0.5

    def _back(self, c: Array, xp: Namespace) -> dict[LayerSpec, Array]:
        """``J^T U c``."""
        m, n = batch_shape(*next(iter(self.records.items())))
        weights = xp.reshape(self.gram_vectors @ c, (m, n)) / n**0.5
        return {
            spec: weighted_gradient(spec, record, weights, xp=xp)
            for spec, record in self.records.items()
        }

    def _apart(self, xp: Namespace) -> Array:
        """Where directions can be projected away; others are known to too few digits."""
        least = _xp.eps(self.gram_values.dtype, xp=xp) ** 0.5 * xp.max(self.gram_values)
        return self.gram_values > least

    def _outside(self, v: Blocks, xp: Namespace) -> dict[LayerSpec, Array]:
        """Part of v outside the range, but for directions of small Gram eigenvalues."""
        ones = _xp.astype(self._apart(xp), self.values.dtype, xp=xp)
        inside = self._back(self._inverted(ones, xp) * self._along(v, xp), xp)
        return {spec: x - inside[spec] for spec, x in v.items()}


def fisher(
    records: Mapping[LayerSpec, LayerRecord],
    *,
    limit: int = LIMIT,
    xp: Namespace | None = None,
) -> FisherOperator:
    """Make an operator of the joint Fisher of all layers on a batch, ``(1/N) sum u u^T``.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Of one batch; which Fisher they stand for (exact, sampled, empirical) is the caller's.
    limit : int
        Largest number ``M N`` of rows accepted; a matrix of that order is factorised.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    FisherOperator
        In the dtype of the records, at least float32. Eigenvalues below ``R eps`` of the largest
        are rounding and count as 0.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.analysis.fisher_gram`.

    Notes
    -----
    For a damped solve with small dampings `ngd_core.analysis.natural_gradient` is more exact: it
    corrects its result by the residual.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [-1.0]]), g=np.asarray([[1.0], [3.0]]))
    >>> F = fisher({LayerSpec("fc", "dense", 1, 1): record})
    >>> F.eigenvalues().round(6), float(F.trace().round(6))
    (array([9., 1.]), 10.0)
    """
    K = fisher_gram(records, limit=limit, xp=xp)
    xp = _checks.common_namespace(xp, K=K)
    values, vectors, _ = safe_eigh(K, dtype="float32", xp=xp)
    floor = values.shape[0] * _xp.eps(values.dtype, xp=xp) * xp.max(values)
    values = xp.where(values > floor, values, xp.zeros_like(values))
    return FisherOperator(records, values, vectors, values, _xp.zeros((), like=values, xp=xp))


def _one(r: int, like: Array, xp: Namespace) -> Array:
    """Make the r-th unit vector."""
    return _xp.astype(_xp.arange(like.shape[0], like=like, xp=xp) == r, like.dtype, xp=xp)
