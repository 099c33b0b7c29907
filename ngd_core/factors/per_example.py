"""Per-example gradients and the dense Fisher made of them, from inputs and output gradients."""

from __future__ import annotations

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace
from ngd_core.factors.sharing import rows
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["mean_gradient", "per_example_gradients"]


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
        Per-example block gradients; memory is M N times that of the layer.

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
        Mean gradient, at least float32, formed without per-example gradients.

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
    *stack, n, t, _ = x.shape
    y = xp.reshape(xp.sum(y, axis=-4), (*stack, n * t, spec.rows))
    x = xp.reshape(x, (*stack, n * t, -1))
    if spec.bias:
        x = xp.concat([x, _xp.ones((*stack, n * t, 1), like=x, xp=xp)], axis=-1)
    return y.mT @ x / n
