"""Gram duality: the Fisher of P parameters through the Gram matrix of R = M N gradients.

With the rows of J the per-example gradients ``u_mn / sqrt(N)``, ``F = J^T J`` and ``K = J J^T``
have the same non-zero eigenvalues, trace and Frobenius norm, and (Woodbury)

``(F + lambda I)^-1 v = (v - J^T (K + lambda I)^-1 J v) / lambda``.

K is the sum of the layers' Gram matrices over N. Neither F nor J is formed, so this is exact for
models of any size on batches of some thousand rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace, Scalar
from ngd_core.analysis._batch import (
    cast,
    check_blocks,
    parameters,
    result_dtype,
    work_dtype,
)
from ngd_core.factors import (
    batch_shape,
    check_batch,
    directional_derivatives,
    fisher_product,
    gram,
    weighted_gradient,
)
from ngd_core.inversion import safe_eigh
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["LIMIT", "eigenvalues", "fisher_gram", "frobenius_norm", "natural_gradient"]

LIMIT = 8192
"""Largest number R = M N of rows for which ``(R, R)`` matrices are formed unless more is allowed;
half a gigabyte in float64, and a few of them are alive at once."""


def fisher_gram(
    records: Mapping[LayerSpec, LayerRecord],
    *,
    limit: int = LIMIT,
    xp: Namespace | None = None,
) -> Array:
    """Gram matrix of all layers together, ``K = (1/N) sum_layers <u_i, u_j>``.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Of one batch: M back-propagated vectors of N examples.
    limit : int
        Largest ``M N`` accepted.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    array, shape (M N, M N)
        ``J J^T``, those of one vector in a row; in the dtype of the records, at least float32. On
        the way, a layer of p parameters and T positions takes the smaller of ``(M N T)^2`` and
        ``M N p`` numbers, ``(M N)^2`` for one position.

    Raises
    ------
    TypeError
        As `ngd_core.factors.rows`.
    ValueError
        If the records are not of one batch, or have more rows than `limit`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> fisher_gram({LayerSpec("fc", "dense", 1, 1): record})
    array([[ 9., 18.],
           [18., 40.]])
    """
    xp = check_batch(records, xp=xp)
    return _gram(records, result_dtype(records, xp=xp), limit, xp=xp)


def frobenius_norm(
    records: Mapping[LayerSpec, LayerRecord],
    *,
    limit: int = LIMIT,
    xp: Namespace | None = None,
) -> Array:
    """Frobenius norm of the Fisher, which is that of its Gram matrix.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Of one batch.
    limit : int
        Largest number ``M N`` of rows accepted.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    array, shape ()
        ``||F||_F = ||K||_F``; no eigenvalues are computed.

    Raises
    ------
    TypeError, ValueError
        As `fisher_gram`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[3.0]]), g=np.asarray([[2.0]]))
    >>> float(frobenius_norm({LayerSpec("fc", "dense", 1, 1): record}))
    40.0
    """
    K = fisher_gram(records, limit=limit, xp=xp)
    xp = _checks.common_namespace(xp, K=K)
    return xp.sqrt(xp.sum(K * K))


def eigenvalues(
    records: Mapping[LayerSpec, LayerRecord],
    *,
    limit: int = LIMIT,
    dtype: str | None = None,
    xp: Namespace | None = None,
) -> Array:
    """Eigenvalues of the Fisher that may differ from zero, largest first.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Of one batch: M back-propagated vectors of N examples.
    limit : int
        Largest number ``M N`` of rows accepted.
    dtype : "float32", "float64" or None
        In which the Gram matrix is formed and factorised; None: float64 where there is one.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    array, shape (min(M N, P),)
        In the dtype of the records, at least float32. All others of the P eigenvalues are zero.
        Each is off by up to some eps (of `dtype`) times the largest, so that small ones have
        fewer digits; rounding below zero is cut off. NaN if a record is not finite.

    Raises
    ------
    TypeError, ValueError
        As `fisher_gram`; if `dtype` is unknown or not to be had.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [-1.0]]), g=np.asarray([[1.0], [3.0]]))
    >>> eigenvalues({LayerSpec("fc", "dense", 1, 1): record}).round(6)
    array([9., 1.])
    """
    xp = check_batch(records, xp=xp)
    values, _ = _eigh(records, work_dtype(records, dtype, xp=xp), limit, xp=xp)
    count = min(values.shape[0], parameters(records))
    return _xp.astype(xp.flip(values)[:count], result_dtype(records, xp=xp), xp=xp)


def natural_gradient(
    records: Mapping[LayerSpec, LayerRecord],
    grads: Mapping[LayerSpec, Array],
    damping: Scalar,
    *,
    limit: int = LIMIT,
    dtype: str | None = None,
    refinements: int = 1,
    xp: Namespace | None = None,
) -> dict[LayerSpec, Array]:
    """Exact natural gradient on a batch, ``(F + lambda I)^-1 v`` with the joint Fisher.

    ``(v - J^T (K + lambda I)^-1 J v) / lambda``, then corrected by the same formula for what is
    left of ``v - F u - lambda u``.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Of one batch; which Fisher they stand for (exact, sampled, empirical) is the caller's.
    grads : mapping of LayerSpec to array, shape spec.block_shape
        ``v``, usually the gradient of the mean loss, for the same layers.
    damping : float or array of shape ()
        ``lambda > 0``, added to the Fisher of the mean loss.
    limit : int
        Largest number ``M N`` of rows accepted.
    dtype : "float32", "float64" or None
        In which all is computed; None: float64 where there is one.
    refinements : int
        Number of corrections.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    dict of LayerSpec to array, shape spec.block_shape
        In the gradients' dtype. NaN if a record or gradient is not finite.

    Raises
    ------
    TypeError
        For arrays of several libraries or not real floating.
    ValueError
        As `fisher_gram`; for other layers or shapes of the gradients; if a Python `damping` is
        not above 0; if `dtype` is unknown or not to be had.

    Notes
    -----
    The subtraction cancels where v lies in the range of ``J^T``, as the gradient of an empirical
    Fisher's own batch does. With eps of `dtype` and the largest eigenvalue sigma, the relative
    residual ``||v - F u - lambda u|| / ||v||`` is up to some ``eps sigma / lambda`` without a
    correction; each one multiplies it by that number again, until it is some eps. The relative
    error of u itself may be ``eps (sigma + lambda) / lambda`` whatever one does: that is the
    condition of the problem. In float64 dampings down to ``1e-10 sigma`` are safe, in float32
    (JAX without x64) down to ``1e-3 sigma`` if three digits are enough.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 1, 1, bias=False)
    >>> record = LayerRecord(a=np.asarray([[1.0]]), g=np.asarray([[2.0]]))
    >>> natural_gradient({fc: record}, {fc: np.asarray([[10.0]])}, 1.0)[fc].round(6)
    array([[2.]])
    """
    _checks.positive(damping=damping)
    xp = check_batch(records, xp=xp, **{f"grads of {s.name!r}": v for s, v in grads.items()})
    check_blocks("grads", grads, records, xp)
    work = work_dtype(records, dtype, xp=xp)
    records = cast(records, work, xp=xp)
    v = {spec: _xp.astype(grads[spec], work, xp=xp) for spec in records}
    u = solve(records, v, damping, limit, refinements, xp=xp)
    return {spec: _xp.astype(u[spec], grads[spec].dtype, xp=xp) for spec in grads}


def solve(
    records: Mapping[LayerSpec, LayerRecord],
    v: Mapping[LayerSpec, Array],
    damping: Scalar,
    limit: int,
    refinements: int,
    *,
    xp: Namespace,
) -> dict[LayerSpec, Array]:
    """`natural_gradient` of arrays that are all of one dtype."""
    like = next(iter(v.values()))
    values, vectors = _eigh(records, like.dtype, limit, xp=xp)
    damping = _xp.scalar(damping, like=like, xp=xp)

    def woodbury(v: Mapping[LayerSpec, Array]) -> dict[LayerSpec, Array]:
        along = directional_derivatives(records, v, xp=xp)
        c = xp.reshape(along, (-1, 1))
        c = vectors @ ((vectors.mT @ c) / (values + damping)[:, None])
        c = xp.reshape(c, along.shape)
        inside = {spec: weighted_gradient(spec, records[spec], c, xp=xp) for spec in v}
        return {spec: (v[spec] - inside[spec] / c.shape[-1]) / damping for spec in v}

    u = woodbury(v)
    for _ in range(refinements):
        product = fisher_product(records, u, xp=xp)
        rest = {spec: (v[spec] - damping * u[spec]) - product[spec] for spec in v}
        more = woodbury(rest)
        u = {spec: u[spec] + more[spec] for spec in v}
    return u


def _gram(
    records: Mapping[LayerSpec, LayerRecord], dtype: DType, limit: int, *, xp: Namespace
) -> Array:
    m, n = batch_shape(*next(iter(records.items())))
    if m * n > limit:
        size = (m * n) ** 2 * 8 / 2**30
        msg = (
            f"the batch has {m} back-propagated vectors of {n} examples, {m * n} rows, above the "
            f"limit of {limit}: a Gram matrix of them takes {size:.1f} GiB in float64; take fewer "
            "examples, sampled targets (M = 1) in place of the exact Fisher, or a larger limit."
        )
        raise ValueError(msg)
    parts = [
        gram(spec, record, route=_route(spec, record, m * n), xp=xp)
        for spec, record in cast(records, dtype, xp=xp).items()
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / n


def _route(spec: LayerSpec, record: LayerRecord, count: int) -> Literal["positions", "explicit"]:
    """Take pairs of positions, or the gradients, whichever is the smaller array."""
    positions = math.prod(record.g.shape) // (count * spec.out_features)
    pairs, entries = (count * positions) ** 2, count * math.prod(spec.block_shape)
    return "positions" if positions == 1 or pairs <= entries else "explicit"


def _eigh(
    records: Mapping[LayerSpec, LayerRecord], dtype: DType, limit: int, *, xp: Namespace
) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of K; NaN where it is not finite."""
    K = _gram(records, dtype, limit, xp=xp)
    values, vectors, ok = safe_eigh(K, dtype="float32", xp=xp)  # that is: in the dtype of K
    return xp.where(ok, values, _xp.full((), float("nan"), like=values, xp=xp)), vectors
