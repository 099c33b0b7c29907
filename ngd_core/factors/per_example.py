"""Per-example gradients and the dense Fisher made of them, from inputs and output gradients."""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace
from ngd_core.factors.sharing import rows
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["mean_gradient", "per_example_gradients", "weighted_gradient"]


def per_example_gradients(
    spec: LayerSpec,
    record: LayerRecord,
    *,
    dtype: DType | None = None,
    xp: Namespace | None = None,
) -> Array:
    """Gradient of each example's loss with respect to the block ``[W b]``.

    ``u_mn = sum_t g_mnt [x_nt; 1]^T``, for each back-propagated vector m and example n.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    record : LayerRecord
        Inputs and per-example output gradients.
    dtype : dtype, optional
        Of the result, to which the record is cast first; the record's own if not given. At least
        float32 either way.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    array, shape (M, N, *stack, rows, columns)
        Per-example block gradients; memory is M N times that of the layer, which for an embedding
        is the whole table.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> per_example_gradients(LayerSpec("fc", "dense", 1, 1), record).tolist()
    [[[[3.0, 3.0]], [[8.0, 4.0]]]]
    """
    xp = _checks.common_namespace(xp, a=record.a, g=record.g)
    x, y = rows(spec, record, dtype=dtype, xp=xp)
    x = x[..., None, :, :, :]
    u = y.mT @ x
    if spec.bias:
        u = xp.concat([u, xp.sum(y, axis=-2)[..., None]], axis=-1)
    return xp.permute_dims(u, (1, 2, 0, 3, 4)) if spec.stack else u


def mean_gradient(spec: LayerSpec, record: LayerRecord, *, xp: Namespace | None = None) -> Array:
    """Gradient of the mean loss with respect to the block, ``(1/N) sum_n u_n``.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    record : LayerRecord
        Inputs and per-example output gradients; several back-propagated vectors are summed.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    array, shape spec.block_shape
        Mean gradient, at least float32, formed without per-example gradients; an embedding's
        inputs are made one-hot on the way (`ngd_core.factors.rows`).

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> mean_gradient(LayerSpec("fc", "dense", 1, 1), record).tolist()
    [[5.5, 3.5]]
    """
    xp = _checks.common_namespace(xp, a=record.a, g=record.g)
    x, y = rows(spec, record, xp=xp)
    return _summed(spec, x, y, xp=xp) / x.shape[-3]


def weighted_gradient(
    spec: LayerSpec,
    record: LayerRecord,
    weights: Array,
    *,
    dtype: DType | None = None,
    xp: Namespace | None = None,
) -> Array:
    """Weighted sum ``sum_mn w_mn u_mn`` of per-example gradients, in one product.

    Only the rows of the output gradients are scaled, ``(w * G)^T X``, over all positions of an
    example alike; no per-example gradient is formed, and no other layer's gradient changes.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    record : LayerRecord
        Inputs and per-example output gradients; several back-propagated vectors are summed.
    weights : array, shape (N,) or (M, N)
        One weight an example, or an example of each vector; 1/N gives the mean gradient.
    dtype : dtype, optional
        Of the result, to which all arrays are cast first; the record's own if not given. At least
        float32 either way.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape spec.block_shape
        Block ``[W b]``.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`; if there is not one weight an example.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [2.0]]), g=np.asarray([[3.0], [4.0]]))
    >>> weighted_gradient(LayerSpec("fc", "dense", 1, 1), record, np.asarray([1.0, 0.5]))
    array([[7., 5.]])
    """
    xp = _checks.common_namespace(xp, a=record.a, g=record.g, weights=weights)
    x, y = rows(spec, record, dtype=dtype, xp=xp)
    if weights.ndim == 2:
        _checks.shape("weights", weights, tuple(y.shape[-4:-2]), "one a vector and example")
    else:
        _checks.shape("weights", weights, (x.shape[-3],), "one an example")
    return _summed(spec, x, y * _xp.astype(weights, y.dtype, xp=xp)[..., None, None], xp=xp)


def _summed(spec: LayerSpec, x: Array, y: Array, *, xp: Namespace) -> Array:
    """Sum of the per-example gradients of rows, over vectors and examples."""
    *stack, n, t, _ = x.shape
    y = xp.reshape(xp.sum(y, axis=-4), (*stack, n * t, spec.rows))
    x = xp.reshape(x, (*stack, n * t, -1))
    if spec.bias:
        x = xp.concat([x, _xp.ones((*stack, n * t, 1), like=x, xp=xp)], axis=-1)
    return y.mT @ x
