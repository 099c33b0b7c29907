"""Trace and diagonal of the Fisher, and what is read off them, layer by layer.

``F = (1/N) sum_mn u_mn u_mn^T`` with the per-example gradients ``u_mn = sum_t g_mnt [x_nt; 1]^T``.
Where an example has one position, ``(u_mn)_ij^2 = g_mni^2 x_nj^2`` and no u is formed; otherwise
they are, for a few examples at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ngd_core import _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors import check_batch, rows
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["diagonal", "example_norms", "layer_traces", "trace", "unit_information"]

CHUNK = 2**22
"""Largest number of entries of per-example gradients that are formed at once."""


def example_norms(
    records: Mapping[LayerSpec, LayerRecord], *, xp: Namespace | None = None
) -> dict[LayerSpec, Array]:
    """Squared norm of each example's gradient, layer by layer.

    ``sum_m ||u_mn||^2 = sum_m sum_ts (x_nt . x_ns + 1) (g_mnt . g_mns)``, for one position
    ``(||x_n||^2 + 1) sum_m ||g_mn||^2``.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Of one batch, N examples; M back-propagated vectors are summed, so that with those of the
        exact Fisher the numbers are the expectations ``E ||grad l_n||^2``.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    dict of LayerSpec to array, shape (N,)
        In the dtype of the records, at least float32. Their mean is the layer's trace.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`; if the records are not of one batch.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> list(example_norms({LayerSpec("fc", "dense", 1, 1): record}).values())
    [array([18., 80.])]
    """
    xp = check_batch(records, xp=xp)
    return {spec: _norms(spec, record, xp=xp) for spec, record in records.items()}


def layer_traces(
    records: Mapping[LayerSpec, LayerRecord], *, xp: Namespace | None = None
) -> dict[LayerSpec, Array]:
    """Trace of each layer's block of the Fisher, ``tr F_l = (1/N) sum_mn ||u_mn||^2``.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        As for `example_norms`.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    dict of LayerSpec to array, shape ()
        In the dtype of the records, at least float32.

    Raises
    ------
    TypeError, ValueError
        As `example_norms`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> [float(t) for t in layer_traces({LayerSpec("fc", "dense", 1, 1): record}).values()]
    [49.0]
    """
    xp = check_batch(records, xp=xp)
    return {spec: xp.mean(_norms(spec, record, xp=xp)) for spec, record in records.items()}


def trace(records: Mapping[LayerSpec, LayerRecord], *, xp: Namespace | None = None) -> Array:
    """Trace of the Fisher over all layers, the mean squared norm of a per-example gradient.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        As for `example_norms`.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    array, shape ()
        The sum of `layer_traces`.

    Raises
    ------
    TypeError, ValueError
        As `example_norms`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> float(trace({LayerSpec("fc", "dense", 1, 1): record}))
    49.0
    """
    traces = layer_traces(records, xp=xp)
    xp = check_batch(records, xp=xp)
    return xp.sum(xp.stack(list(traces.values())))


def diagonal(
    records: Mapping[LayerSpec, LayerRecord], *, xp: Namespace | None = None
) -> dict[LayerSpec, Array]:
    """Diagonal of the Fisher, one block of the parameters' shape a layer.

    ``diag F_l = (1/N) sum_mn u_mn^2``, entry by entry; for one position
    ``(1/N) (sum_m g_m^2)^T (x^2)``.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        As for `example_norms`.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    dict of LayerSpec to array, shape spec.block_shape
        In the dtype of the records, at least float32. Where an example has several positions, the
        per-example gradients of some examples are held on the way, never more than about four
        million numbers (or one example's).

    Raises
    ------
    TypeError, ValueError
        As `example_norms`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> list(diagonal({LayerSpec("fc", "dense", 1, 1): record}).values())
    [array([[36.5, 12.5]])]
    """
    xp = check_batch(records, xp=xp)
    return {spec: _diagonal(spec, record, xp=xp) for spec, record in records.items()}


def unit_information(
    records: Mapping[LayerSpec, LayerRecord], *, xp: Namespace | None = None
) -> dict[LayerSpec, Array]:
    """Trace of the Fisher of each unit's, or filter's, own weights: row sums of the diagonal.

    ``E[sum_m g_mi^2 (||x||^2 + 1)]`` for unit i of a dense layer with one position.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        As for `example_norms`.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    dict of LayerSpec to array, shape (out_features,)
        Information about the incoming weights and the bias of each output feature or channel, in
        the order of the layer's outputs; their sum is the layer's trace.

    Raises
    ------
    TypeError, ValueError
        As `example_norms`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> list(unit_information({LayerSpec("fc", "dense", 1, 1): record}).values())
    [array([49.])]
    """
    xp = check_batch(records, xp=xp)
    diagonals = {spec: _diagonal(spec, record, xp=xp) for spec, record in records.items()}
    return {spec: xp.reshape(xp.sum(d, axis=-1), (-1,)) for spec, d in diagonals.items()}


def _extended(spec: LayerSpec, record: LayerRecord, *, xp: Namespace) -> tuple[Array, Array]:
    """Rows ``[x; 1]`` and y: ``(*stack, N, T, columns)`` and ``(*stack, M, N, T, rows)``."""
    x, y = rows(spec, record, xp=xp)
    if spec.bias:
        x = xp.concat([x, _xp.ones((*x.shape[:-1], 1), like=x, xp=xp)], axis=-1)
    return x, y


def _chunks(n: int, entries: int) -> Iterator[slice]:
    """Slices of n examples that take `entries` numbers each."""
    size = max(1, CHUNK // entries)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _norms(spec: LayerSpec, record: LayerRecord, *, xp: Namespace) -> Array:
    x, y = _extended(spec, record, xp=xp)
    m, n, t = y.shape[-4:-1]
    if t == 1:
        inputs, outputs = xp.sum(x * x, axis=(-2, -1)), xp.sum(y * y, axis=(-4, -2, -1))
        norms = inputs * outputs
        return xp.sum(norms, axis=0) if spec.stack else norms
    pairs = t * (spec.columns + spec.rows) < spec.columns * spec.rows
    entries = spec.groups * m * (t * t if pairs else spec.columns * spec.rows)
    parts = []
    for some in _chunks(n, entries):
        left, right = x[..., some, :, :], y[..., some, :, :]
        if pairs:
            alike = xp.sum(right @ right.mT, axis=-4)
            part = xp.sum((left @ left.mT) * alike, axis=(-2, -1))
        else:
            u = right.mT @ left[..., None, :, :, :]
            part = xp.sum(u * u, axis=(-4, -2, -1))
        parts.append(xp.sum(part, axis=0) if spec.stack else part)
    return xp.concat(parts)


def _diagonal(spec: LayerSpec, record: LayerRecord, *, xp: Namespace) -> Array:
    x, y = _extended(spec, record, xp=xp)
    m, n, t = y.shape[-4:-1]
    if t == 1:
        squares = xp.sum(y * y, axis=(-4, -2))
        return squares.mT @ xp.sum(x * x, axis=-2) / n
    total = _xp.zeros(spec.block_shape, like=y, xp=xp)
    for some in _chunks(n, m * math.prod(spec.block_shape)):
        u = y[..., some, :, :].mT @ x[..., None, some, :, :]
        total = total + xp.sum(u * u, axis=(-4, -3))
    return total / n
