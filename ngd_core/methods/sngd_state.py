"""What SNGD keeps of each layer: an averaged local Fisher matrix and what was made from it."""

from __future__ import annotations

from typing import NamedTuple

from ngd_core import _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.inversion.ops import PURE, Ops
from ngd_core.methods._common import folded
from ngd_core.reconstruction import LocalFisherLayer, identity_layer
from ngd_core.types import Hyper, LayerSpec

__all__ = ["LocalInverse", "SNGDLayer", "SNGDState"]


class LocalInverse(NamedTuple):
    """Inverse of a damped local Fisher matrix.

    Parameters
    ----------
    matrix : array, shape (*stack, columns, columns) or (*stack, rows, columns, columns)
        ``(G + eps I)^-1``, the identity before the first refresh.
    good : array of bool, shape of `matrix` without its last two axes
        Whether it was once computed.
    """

    matrix: Array
    good: Array


class SNGDLayer(NamedTuple):
    """State of one layer.

    Parameters
    ----------
    fisher : array, shape (*stack, columns, columns) or (*stack, rows, columns, columns)
        Averaged local Fisher matrix; one for each output under the ReLU metric.
    weight : array, shape ()
        Examples in the average, older ones discounted.
    prior : array, shape ()
        Weight of the identity in G, from 1 down with ``start="identity"``, otherwise 0.
    rejected : array of int32, shape ()
        Batches refused because the matrix was not finite.
    inverse : LocalInverse or LocalFisherLayer
        What `SNGD.direction` applies.
    """

    fisher: Array
    weight: Array
    prior: Array
    rejected: Array
    inverse: LocalInverse | LocalFisherLayer


class SNGDState(NamedTuple):
    """State of all layers.

    Parameters
    ----------
    layers : dict of LayerSpec to SNGDLayer
        One entry a layer.
    """

    layers: dict[LayerSpec, SNGDLayer]


def init_layer(
    spec: LayerSpec, one_each: bool, roots: bool, prior: float, *, like: Array, xp: Namespace
) -> SNGDLayer:
    """State of a layer before any statistics; `one_each` output a matrix, or one for all."""
    d = spec.columns
    stack = (*spec.stack, spec.rows) if one_each else spec.stack
    identity = identity_layer(stack, d, like=like, xp=xp)
    return SNGDLayer(
        fisher=_xp.zeros((*stack, d, d), like=like, xp=xp),
        weight=_xp.zeros((), like=like, xp=xp),
        prior=_xp.full((), prior, like=like, xp=xp),
        rejected=_xp.zeros((), like=like, dtype=xp.int32, xp=xp),
        inverse=identity if roots else LocalInverse(identity.inverse, identity.good),
    )


def fold(
    layer: SNGDLayer,
    batch: Array,
    count: Scalar,
    hyper: Hyper,
    *,
    ops: Ops = PURE,
    xp: Namespace,
) -> SNGDLayer:
    """Fold a batch's local Fisher matrix into the average, unless it is not finite."""
    batch = _xp.astype(batch, layer.fisher.dtype, xp=xp)
    new: SNGDLayer
    new, ok = folded(layer, {"fisher": batch}, count, hyper.decay, ops=ops, xp=xp)
    prior = layer.prior * _xp.scalar(hyper.decay, like=layer.prior, xp=xp)
    return new._replace(prior=xp.where(ok, prior, layer.prior))


def current_fisher(layer: SNGDLayer, *, xp: Namespace) -> Array:
    """G with the identity's share in it, or NaN as long as nothing is known."""
    identity = _xp.eye(layer.fisher.shape[-1], like=layer.fisher, xp=xp)
    fisher = layer.fisher + layer.prior * (identity - layer.fisher)
    nan = _xp.full((), float("nan"), like=fisher, xp=xp)
    return xp.where((layer.weight > 0) | (layer.prior > 0), fisher, nan)
