"""From a layer's record to rows of inputs and output gradients, and to its parameter block.

Every kind of layer becomes a linear map on rows: ``y = [W b] [x; 1]`` at each of T shared
positions of each of N examples. All factor code works on that one layout.
"""

from __future__ import annotations

from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace
from ngd_core.factors.patches import patches
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["Rows", "join", "rows", "split"]


class Rows(NamedTuple):
    """A record in canonical layout; ``stack`` is ``(groups,)`` or empty.

    Parameters
    ----------
    x : array, shape (*stack, N, T, inputs)
        Inputs without the bias coordinate.
    y : array, shape (*stack, M, N, T, outputs)
        Per-example output gradients, M back-propagated vectors.
    """

    x: Array
    y: Array


def rows(
    spec: LayerSpec,
    record: LayerRecord,
    *,
    dtype: DType | None = None,
    xp: Namespace | None = None,
) -> Rows:
    """Bring a record to the canonical layout.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    record : LayerRecord
        Its inputs and per-example output gradients.
    dtype : dtype, optional
        Of the result; the record's own if not given. At least float32 either way.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    Rows
        Inputs ``(*stack, N, T, inputs)``, column order (channel, kernel row, kernel column) for a
        convolution, and gradients ``(*stack, M, N, T, outputs)``.

    Raises
    ------
    TypeError
        If the arrays are of different libraries or not real floating.
    ValueError
        If the shapes fit neither the layer nor each other, or there is nothing in the batch.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.ones((4, 7, 3)), g=np.ones((4, 7, 2)))
    >>> x, y = rows(LayerSpec("fc", "dense", 3, 2), record)
    >>> x.shape, y.shape
    ((4, 7, 3), (1, 4, 7, 2))
    """
    a, g, _ = record
    xp = _checks.common_namespace(xp, a=a, g=g)
    _checks.floating(xp, a=a, g=g)
    _check_record(spec, a, g)
    dtype = _xp.working(xp.result_type(a, g) if dtype is None else dtype, xp=xp)
    a, g = _xp.astype(a, dtype, xp=xp), _xp.astype(g, dtype, xp=xp)
    if g.ndim == a.ndim:
        g = g[None, ...]
    if spec.geometry is None:
        n, m = a.shape[0], g.shape[0]
        return Rows(
            xp.reshape(a, (n, -1, spec.in_features)), xp.reshape(g, (m, n, -1, spec.out_features))
        )
    m, n, _, height, width = g.shape
    x = patches(a, spec.geometry, xp=xp)
    y = xp.reshape(g, (m, n, spec.groups, spec.rows, height * width))
    y = xp.permute_dims(y, (2, 0, 1, 4, 3))
    return Rows(x, y if spec.stack else y[0, ...])


def _check_record(spec: LayerSpec, a: Array, g: Array) -> None:
    name = f"record of layer {spec.name!r}: "
    if spec.geometry is None:
        _checks.rank(2, **{name + "a": a})
        wanted = (*a.shape[:-1], spec.out_features)
        channels = a.shape[-1]
    else:
        _checks.rank(4, 4, **{name + "a": a})
        wanted = (a.shape[0], spec.out_features, *spec.geometry.output_size(*a.shape[2:]))
        channels = a.shape[1]
    if channels != spec.in_features:
        msg = (
            f"{name}a has shape {tuple(a.shape)} with {channels} features; "
            f"expected {spec.in_features}."
        )
        raise ValueError(msg)
    if tuple(g.shape) != wanted and tuple(g.shape[1:]) != wanted:
        msg = (
            f"{name}g has shape {tuple(g.shape)}; expected {wanted}, or one more leading axis of "
            "back-propagated vectors."
        )
        raise ValueError(msg)
    if 0 in (*a.shape, *g.shape):
        msg = (
            f"{name}the batch is empty: a has shape {tuple(a.shape)} and g {tuple(g.shape)}; leave "
            "out steps without examples, positions or back-propagated vectors."
        )
        raise ValueError(msg)


def join(
    spec: LayerSpec, weight: Array, bias: Array | None = None, *, xp: Namespace | None = None
) -> Array:
    """Weight and bias as one block ``[W b]``, the bias column last.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    weight : array, shape (out, in) or (out, in / groups, kernel height, kernel width)
        Weight in PyTorch's layout.
    bias : array, shape (out,), or None
        Bias; needed exactly if ``spec.bias``.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape spec.block_shape
        The block.

    Raises
    ------
    ValueError
        If a bias is missing or not wanted, or a shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerSpec
    >>> join(LayerSpec("fc", "dense", 2, 1), np.asarray([[1.0, 2.0]]), np.asarray([3.0]))
    array([[1., 2., 3.]])
    """
    if spec.bias != (bias is not None):
        msg = f"Layer {spec.name!r} has bias={spec.bias}, but bias is {type(bias).__name__}."
        raise ValueError(msg)
    parts = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    xp = _checks.common_namespace(xp, **parts)
    inputs = spec.columns - spec.bias
    wanted: tuple[int, ...] = (spec.out_features, spec.in_features)
    if spec.geometry is not None:
        wanted = (spec.out_features, spec.in_features // spec.groups, *spec.geometry.kernel_size)
    _checks.shape("weight", weight, wanted, f"layer {spec.name!r}")
    block = xp.reshape(weight, (*spec.stack, spec.rows, inputs))
    if bias is None:
        return block
    _checks.shape("bias", bias, (spec.out_features,), f"layer {spec.name!r}")
    return xp.concat([block, xp.reshape(bias, (*spec.stack, spec.rows, 1))], axis=-1)


def split(
    spec: LayerSpec, block: Array, *, xp: Namespace | None = None
) -> tuple[Array, Array | None]:
    """Weight and bias of a block; the inverse of `join`.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    block : array, shape spec.block_shape
        Parameters, gradients or directions.
    xp : namespace, optional
        Array namespace; found from the block if not given.

    Returns
    -------
    weight : array
        In PyTorch's layout.
    bias : array, shape (out,), or None
        None if the layer has no bias.

    Raises
    ------
    ValueError
        If the block's shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerSpec
    >>> split(LayerSpec("fc", "dense", 2, 1), np.asarray([[1.0, 2.0, 3.0]]))
    (array([[1., 2.]]), array([3.]))
    """
    xp = _checks.common_namespace(xp, block=block)
    _checks.shape("block", block, spec.block_shape, f"layer {spec.name!r}")
    inputs = spec.columns - spec.bias
    shape: tuple[int, ...] = (spec.out_features, spec.in_features)
    if spec.geometry is not None:
        shape = (spec.out_features, spec.in_features // spec.groups, *spec.geometry.kernel_size)
    weight = xp.reshape(block[..., :inputs], shape)
    return weight, xp.reshape(block[..., inputs], (spec.out_features,)) if spec.bias else None
