"""From a layer's record to rows of inputs and output gradients, and to its parameter block.

Every kind of layer becomes a linear map on rows: ``y = [W b] [x; 1]`` at each of T shared
positions of each of N examples. All factor code works on that one layout.

A scale is such a map for each feature, of one input and one output. The rows of an embedding are
one-hot; where its tokens will do, `token_rows` has them instead.
"""

from __future__ import annotations

from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace
from ngd_core.factors.patches import patches
from ngd_core.factors.records import check_record, several_vectors
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["Rows", "gradient_rows", "join", "rows", "split", "token_rows", "working_dtype"]


class Rows(NamedTuple):
    """A record in canonical layout; ``stack`` is ``(groups,)``, ``(features,)`` or empty.

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
        convolution, and gradients ``(*stack, M, N, T, outputs)``. Inputs of an embedding are
        one-hot and take memory for ``N T vocabulary`` numbers.

    Raises
    ------
    TypeError
        If the arrays are of different libraries or not real floating (an embedding's tokens: not
        integers).
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
    xp = check_record(spec, record, xp=xp)
    if spec.kind == "embedding":
        tokens, y = token_rows(spec, record, dtype=dtype, xp=xp)
        known = _xp.arange(spec.in_features, like=tokens, xp=xp)
        looked_up = Rows(_xp.astype(tokens[..., None] == known, y.dtype, xp=xp), y)
        return looked_up if record.tied is None else _tied_rows(looked_up, record.tied, xp=xp)
    a = _xp.astype(record.a, working_dtype(record, dtype, xp=xp), xp=xp)
    y = _gradients(spec, record, a.dtype, xp=xp)
    if spec.geometry is None:
        x = xp.reshape(a, (a.shape[0], -1, spec.in_features))
        return Rows(x if spec.kind == "dense" else xp.permute_dims(x, (2, 0, 1))[..., None], y)
    if a.ndim == 4:
        return Rows(patches(a, spec.geometry, xp=xp), y)
    x = xp.reshape(a, (*a.shape[:-1], spec.groups, -1))
    return Rows(xp.permute_dims(x, (2, 0, 1, 3)) if spec.stack else x[..., 0, :], y)


def gradient_rows(
    spec: LayerSpec,
    record: LayerRecord,
    *,
    dtype: DType | None = None,
    xp: Namespace | None = None,
) -> Array:
    """Bring a record's gradients to the canonical layout; nothing is done with its inputs.

    Parameters
    ----------
    spec : LayerSpec
        Layer, no embedding.
    record : LayerRecord
        Its inputs and per-example output gradients.
    dtype : dtype, optional
        Of the result; the record's own if not given. At least float32 either way.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    array, shape (*stack, M, N, T, outputs)
        As ``rows(...).y``.

    Raises
    ------
    TypeError, ValueError
        As `rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.ones((4, 7, 3)), g=np.ones((4, 7, 2)))
    >>> gradient_rows(LayerSpec("fc", "dense", 3, 2), record).shape
    (1, 4, 7, 2)
    """
    xp = check_record(spec, record, xp=xp)
    return _gradients(spec, record, working_dtype(record, dtype, xp=xp), xp=xp)


def working_dtype(record: LayerRecord, dtype: DType | None, *, xp: Namespace) -> DType:
    """Dtype of a record's rows: the one asked for, or its own, and at least float32.

    Parameters
    ----------
    record : LayerRecord
        Floating inputs and gradients.
    dtype : dtype or None
        The one asked for.
    xp : namespace
        Of the record.

    Returns
    -------
    dtype
        Real floating.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord
    >>> record = LayerRecord(np.ones(1, np.float16), np.ones(1, np.float16))
    >>> working_dtype(record, None, xp=np) is np.float32
    True
    """
    return _xp.working(xp.result_type(record.a, record.g) if dtype is None else dtype, xp=xp)


def _gradients(spec: LayerSpec, record: LayerRecord, dtype: DType, *, xp: Namespace) -> Array:
    g = _xp.astype(record.g, dtype, xp=xp)
    if not several_vectors(spec, record):
        g = g[None, ...]
    m, n = g.shape[:2]
    if spec.geometry is None:
        y = xp.reshape(g, (m, n, -1, spec.out_features))
        return y if spec.kind == "dense" else xp.permute_dims(y, (3, 0, 1, 2))[..., None]
    if record.a.ndim == 4:
        y = xp.reshape(g, (m, n, spec.groups, spec.rows, -1))
        y = xp.permute_dims(y, (2, 0, 1, 4, 3))
    else:
        y = xp.permute_dims(xp.reshape(g, (*g.shape[:-1], spec.groups, -1)), (3, 0, 1, 2, 4))
    return y if spec.stack else y[0, ...]


def _tied_rows(looked_up: Rows, record: LayerRecord, *, xp: Namespace) -> Rows:
    """Put uses of a table as output layer behind its look-ups, as rows of its block.

    Such a use of weight ``(V, E)`` has gradient ``g h^T``, so its row of inputs is g and its row of
    outputs h. As g is one of M vectors, each vector has positions of its own, 0 for the others.
    """
    m, n, _, features = looked_up.y.shape
    h = xp.reshape(_xp.astype(record.a, looked_up.y.dtype, xp=xp), (n, -1, features))
    g = xp.reshape(_xp.astype(record.g, looked_up.y.dtype, xp=xp), (m, n, h.shape[1], -1))
    g = xp.reshape(xp.permute_dims(g, (1, 0, 2, 3)), (n, -1, g.shape[-1]))
    own = _xp.eye(m, like=h, xp=xp)[:, None, :, None, None]
    y = xp.reshape(own * h[None, :, None, :, :], (m, n, -1, features))
    return Rows(xp.concat([looked_up.x, g], axis=-2), xp.concat([looked_up.y, y], axis=-2))


def token_rows(
    spec: LayerSpec,
    record: LayerRecord,
    *,
    dtype: DType | None = None,
    xp: Namespace | None = None,
) -> Rows:
    """Bring an embedding's record to rows of tokens, of which none is made one-hot.

    Parameters
    ----------
    spec : LayerSpec
        Embedding.
    record : LayerRecord
        Its tokens and per-example output gradients.
    dtype : dtype, optional
        Of the gradients; their own if not given. At least float32 either way.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    Rows
        Tokens ``(N, T)``, of the dtype that the library indexes with, and gradients
        ``(M, N, T, features)``.

    Raises
    ------
    TypeError, ValueError
        As `rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> spec = LayerSpec("tokens", "embedding", 10, 2, bias=False)
    >>> record = LayerRecord(a=np.asarray([[1, 9], [0, 1]]), g=np.ones((2, 2, 2)))
    >>> token_rows(spec, record).x
    array([[1, 9],
           [0, 1]])
    """
    xp = check_record(spec, record, xp=xp)
    tokens, g = record.a, record.g
    n, m = tokens.shape[0], g.shape[0] if several_vectors(spec, record) else 1
    dtype = _xp.working(g.dtype if dtype is None else dtype, xp=xp)
    index = _xp.astype(tokens, _xp.index_dtype(xp=xp), xp=xp)
    return Rows(
        xp.reshape(index, (n, -1)),
        xp.reshape(_xp.astype(g, dtype, xp=xp), (m, n, -1, spec.out_features)),
    )


def join(
    spec: LayerSpec, weight: Array, bias: Array | None = None, *, xp: Namespace | None = None
) -> Array:
    """Weight and bias as one block ``[W b]``, the bias column last.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    weight : array
        Weight in PyTorch's layout: ``(out, in)``, a convolution's ``(out, in / groups, kernel
        height, kernel width)``, an embedding's ``(vocabulary, features)``, a scale's
        ``(features,)``.
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
    _checks.shape("weight", weight, _weight_shape(spec), f"layer {spec.name!r}")
    if spec.kind == "embedding":
        return xp.matrix_transpose(weight)
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
        In PyTorch's layout, see `join`.
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
    if spec.kind == "embedding":
        return xp.matrix_transpose(block), None
    inputs = spec.columns - spec.bias
    weight = xp.reshape(block[..., :inputs], _weight_shape(spec))
    return weight, xp.reshape(block[..., inputs], (spec.out_features,)) if spec.bias else None


def _weight_shape(spec: LayerSpec) -> tuple[int, ...]:
    if spec.geometry is not None:
        return spec.out_features, spec.in_features // spec.groups, *spec.geometry.kernel_size
    if spec.kind == "embedding":
        return spec.in_features, spec.out_features
    return (spec.out_features,) if spec.kind == "scale" else (spec.out_features, spec.in_features)
