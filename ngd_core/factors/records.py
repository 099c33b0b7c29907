"""Whether a layer's record fits the layer: dtypes, axes and sizes, never values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ngd_core import _checks
from ngd_core._typing import Array, Namespace
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["batch_shape", "check_batch", "check_record", "several_vectors"]


def several_vectors(spec: LayerSpec, record: LayerRecord) -> bool:
    """Tell whether a record's gradients have the leading axis M of back-propagated vectors.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    record : LayerRecord
        Its record, of which the numbers of axes are looked at.

    Returns
    -------
    bool
        True also for M = 1.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> spec = LayerSpec("tokens", "embedding", 10, 2, bias=False)
    >>> several_vectors(spec, LayerRecord(a=np.zeros(3, int), g=np.ones((3, 2))))
    False
    """
    features = 1 if spec.kind == "embedding" else 0
    return bool(record.g.ndim > record.a.ndim + features)


def batch_shape(spec: LayerSpec, record: LayerRecord) -> tuple[int, int]:
    """Numbers of back-propagated vectors and of examples of a record.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    record : LayerRecord
        Its record, of which the shapes are looked at.

    Returns
    -------
    m : int
        Vectors, 1 for gradients without an axis of them.
    n : int
        Examples.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> batch_shape(LayerSpec("fc", "dense", 3, 2), LayerRecord(np.ones((4, 3)), np.ones((4, 2))))
    (1, 4)
    """
    return int(record.g.shape[0]) if several_vectors(spec, record) else 1, int(record.a.shape[0])


def check_record(spec: LayerSpec, record: LayerRecord, *, xp: Namespace | None = None) -> Namespace:
    """Reject a record that does not fit its layer.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    record : LayerRecord
        Its inputs and per-example output gradients.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    namespace
        Of the record.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.ones((4, 3)), g=np.ones((4, 2)))
    >>> check_record(LayerSpec("fc", "dense", 3, 2), record).__name__
    'array_api_compat.numpy'
    """
    a, g = record.a, record.g
    xp = _checks.common_namespace(xp, a=a, g=g)
    name = f"record of layer {spec.name!r}: "
    if spec.kind == "embedding":
        _checks.integral(xp, **{name + "the tokens a": a})
        _checks.floating(xp, **{name + "g": g})
        _checks.rank(1, **{name + "the tokens a": a})
        wanted: tuple[int, ...] = (*a.shape, spec.out_features)
        channels = spec.in_features
        if record.tied is not None:
            _check_tied(spec, record, xp=xp)
    elif spec.geometry is None:
        _checks.floating(xp, **{name + "a": a, name + "g": g})
        _checks.rank(2, **{name + "a": a})
        wanted = (*a.shape[:-1], spec.out_features)
        channels = a.shape[-1]
    elif a.ndim == 3:
        _checks.floating(xp, **{name + "a": a, name + "g": g})
        wanted = (*a.shape[:2], spec.out_features)
        taps = spec.geometry.kernel_size[0] * spec.geometry.kernel_size[1]
        channels = a.shape[2] // taps if a.shape[2] % taps == 0 else a.shape[2] / taps
    else:
        _checks.floating(xp, **{name + "a": a, name + "g": g})
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
    return xp


def check_batch(
    records: Mapping[LayerSpec, LayerRecord], *, xp: Namespace | None = None, **others: Array
) -> Namespace:
    """Reject records that do not fit their layers, or that are not of one batch.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Inputs and per-example output gradients of several layers.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.
    **others : array
        Further arrays, by the names to call them by, that must be of the same library.

    Returns
    -------
    namespace
        Of all the arrays.

    Raises
    ------
    TypeError
        As `ngd_core.factors.rows`.
    ValueError
        As `ngd_core.factors.rows`; if there is no record, or the records differ in their numbers
        of back-propagated vectors or of examples.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.ones((4, 3)), g=np.ones((4, 2)))
    >>> check_batch({LayerSpec("fc", "dense", 3, 2): record}).__name__
    'array_api_compat.numpy'
    """
    if not records:
        msg = "records is empty; expected the record of at least one layer."
        raise ValueError(msg)
    arrays: dict[str, Array] = {}
    for spec, record in records.items():
        arrays |= {f"a of {spec.name!r}": record.a, f"g of {spec.name!r}": record.g}
    xp = _checks.common_namespace(xp, **arrays, **others)
    for spec, record in records.items():
        check_record(spec, record, xp=xp)
    sizes = {spec.name: batch_shape(spec, record) for spec, record in records.items()}
    if len(set(sizes.values())) > 1:
        msg = (
            "records differ in their numbers of back-propagated vectors and examples, (M, N): "
            f"{sizes}; pass those of one backward pass."
        )
        raise ValueError(msg)
    return xp


def _check_tied(spec: LayerSpec, record: LayerRecord, *, xp: Namespace) -> None:
    """Reject uses of a table as output layer that fit neither the table nor the look-ups."""
    tied: Any = record.tied
    dense = LayerSpec(spec.name, "dense", spec.out_features, spec.in_features, bias=False)
    check_record(dense, tied, xp=xp)
    counts = [
        (rec.a.shape[0], rec.g.shape[0] if several_vectors(of, rec) else None)
        for of, rec in ((spec, record), (dense, tied))
    ]
    if counts[0] != counts[1]:
        msg = (
            f"record of layer {spec.name!r}: look-ups and tied uses are of {counts} examples and "
            "vectors; expected those of one pass."
        )
        raise ValueError(msg)
