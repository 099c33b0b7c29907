"""A layer that is used several times in one pass: its uses are further shared positions.

That is exact for every example's gradient, a sum over positions; for the factors it is K-FAC's
own rule for shared weights, with A the mean and G the sum over all positions of all uses.
"""

from __future__ import annotations

from collections.abc import Sequence

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors.records import several_vectors
from ngd_core.factors.sharing import rows
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["joined", "unfolded"]


def unfolded(spec: LayerSpec, record: LayerRecord, *, xp: Namespace | None = None) -> LayerRecord:
    """Record of a convolution as the rows that its kernel reads, of which no image is left.

    Parameters
    ----------
    spec : LayerSpec
        Convolution.
    record : LayerRecord
        Inputs ``(N, channels, height, width)`` and gradients, or rows already.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    LayerRecord
        ``a (N, T, in_features * taps)`` and ``g (N, T, out_features)`` or ``(M, N, T, ...)``, z as
        one such g if there is one, at least float32, with the same gradients and factors. It fits
        every convolution with as many channels, groups and taps, whatever its stride, dilation and
        padding.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Conv2dGeometry, LayerRecord, LayerSpec
    >>> spec = LayerSpec("conv", "conv2d", 2, 4, geometry=Conv2dGeometry(3, groups=2))
    >>> record = unfolded(spec, LayerRecord(np.ones((5, 2, 4, 4)), np.ones((5, 4, 2, 2))))
    >>> record.a.shape, record.g.shape
    ((5, 4, 18), (5, 4, 4))
    """
    xp = _checks.common_namespace(xp, a=record.a, g=record.g)
    if record.a.ndim == 3:
        return record
    x, y = rows(spec, record, xp=xp)
    if spec.stack:
        x, y = xp.permute_dims(x, (1, 2, 0, 3)), xp.permute_dims(y, (1, 2, 3, 0, 4))
    a = xp.reshape(x, (*x.shape[:2], -1))
    g = xp.reshape(y, (*y.shape[:3], -1))
    z = None
    if record.z is not None:
        z = unfolded(spec, LayerRecord(record.a, record.z), xp=xp).g
    return LayerRecord(a, g if several_vectors(spec, record) else g[0, ...], z)


def joined(
    spec: LayerSpec, uses: Sequence[LayerRecord], *, xp: Namespace | None = None
) -> LayerRecord:
    """One record of all uses of a layer in one pass.

    Parameters
    ----------
    spec : LayerSpec
        Layer.
    uses : sequence of LayerRecord
        One a use, of the same examples and numbers of back-propagated vectors. For an embedding,
        records with floating `a` are uses of its table as output layer: inputs
        ``(N, *positions, out_features)``, gradients ``(N, *positions, in_features)``.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    LayerRecord
        The only one as it is; otherwise positions of all uses on one axis.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> uses = [LayerRecord(np.ones((4, t, 3)), np.ones((4, t, 2))) for t in (5, 1)]
    >>> joined(LayerSpec("fc", "dense", 3, 2), uses).a.shape
    (4, 6, 3)
    """
    xp = _checks.common_namespace(xp, **{f"use {k}": use.a for k, use in enumerate(uses)})
    if spec.kind == "embedding":
        tokens = [use for use in uses if xp.isdtype(use.a.dtype, "integral")]
        outputs = [use for use in uses if not xp.isdtype(use.a.dtype, "integral")]
        dense = LayerSpec(spec.name, "dense", spec.out_features, spec.in_features, bias=False)
        tied = _joined(dense, outputs, xp=xp) if outputs else None
        if not tokens and tied is not None:
            return _no_tokens(spec, tied, several_vectors(dense, tied), xp=xp)
        return _joined(spec, tokens, xp=xp)._replace(tied=tied)
    if spec.kind == "conv2d" and len(uses) > 1:
        uses = [unfolded(spec, use, xp=xp) for use in uses]
    return _joined(spec, uses, xp=xp)


def _joined(spec: LayerSpec, uses: Sequence[LayerRecord], *, xp: Namespace) -> LayerRecord:
    if len(uses) == 1:
        return uses[0]
    lead = 1 + several_vectors(spec, uses[0])

    def flat(x: Array, lead: int, features: bool) -> Array:
        return xp.reshape(x, (*x.shape[:lead], -1, *(x.shape[-1:] if features else ())))

    a = [flat(use.a, 1, spec.kind != "embedding") for use in uses]
    g = [flat(use.g, lead, True) for use in uses]
    z = [flat(use.z, 1, True) for use in uses if use.z is not None]
    outputs = xp.concat(z, axis=1) if len(z) == len(uses) else None
    return LayerRecord(xp.concat(a, axis=1), xp.concat(g, axis=lead), outputs)


def _no_tokens(spec: LayerSpec, tied: LayerRecord, several: bool, *, xp: Namespace) -> LayerRecord:
    """Record of a table that was an output layer alone: one position, and a token that is none."""
    n = tied.a.shape[0]
    shape = (*(tied.g.shape[:1] if several else ()), n, 1, spec.out_features)
    none = _xp.full((n, 1), -1, like=tied.a, dtype=_xp.index_dtype(xp=xp), xp=xp)
    return LayerRecord(none, _xp.zeros(shape, like=tied.g, xp=xp), tied=tied)
