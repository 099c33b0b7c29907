"""One layer of the projective method: what happens to its two factors together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ngd_core import _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors import (
    Rows,
    gradient_rows,
    input_moment,
    input_samples,
    output_moment,
    output_samples,
    rows,
)
from ngd_core.inversion import Ops, factored_damping
from ngd_core.inversion.ops import all_finite
from ngd_core.methods import _projected_factor as factors
from ngd_core.methods._basis_noise import BasisNoise
from ngd_core.methods._common import guarded
from ngd_core.methods._projected_factor import DirectFactor, Factor, ProjectedFactor, View
from ngd_core.types import IDENTITY, KEPT, OK, Hyper, Info, LayerRecord, LayerSpec

__all__ = ["ProjectiveLayer", "accumulate_layer", "direct_layer", "refresh_layer"]


class ProjectiveLayer(NamedTuple):
    """State of one layer.

    Parameters
    ----------
    a : DirectFactor or ProjectedFactor
        Input factor A: averages, basis, inverse.
    g : DirectFactor or ProjectedFactor
        Output-gradient factor G.
    weight : array, shape ()
        Examples in the averages, older ones discounted.
    rejected : array of int32, shape ()
        Batches refused because a factor was not finite.
    """

    a: DirectFactor | ProjectedFactor
    g: DirectFactor | ProjectedFactor
    weight: Array
    rejected: Array


def accumulate_layer(
    spec: LayerSpec,
    layer: ProjectiveLayer,
    record: LayerRecord,
    hyper: Hyper,
    *,
    follows: Callable[[Factor, int], bool],
    halt_below: float,
    dtype: str | None,
    ops: Ops,
    xp: Namespace,
) -> ProjectiveLayer:
    """Average a batch in; `follows(factor, m)` tells whether an inverse follows m samples."""
    of_a, of_g = _views(spec, record, xp=xp)
    count = _xp.scalar(record.a.shape[0] * hyper.share, like=layer.weight, xp=xp)
    a = factors.measure(layer.a, of_a, recursive=follows(layer.a, of_a.rows), xp=xp)
    g = factors.measure(layer.g, of_g, recursive=follows(layer.g, of_g.rows), xp=xp)
    total = layer.weight * _xp.scalar(hyper.decay, like=layer.weight, xp=xp) + count
    ok = _finite(total, a.moment, a.trace, g.moment, g.trace, ops=ops, xp=xp)

    def folded(factor: Factor, batch: factors.Batch) -> Any:
        new = factors.fold(
            factor,
            batch,
            layer.weight,
            count,
            hyper.decay,
            halt_below=halt_below,
            dtype=dtype,
            xp=xp,
        )
        return factors.choose(ok, new, factor, ops=ops, xp=xp)

    return ProjectiveLayer(
        a=folded(layer.a, a),
        g=folded(layer.g, g),
        weight=xp.where(ok, total, layer.weight),
        rejected=layer.rejected + _xp.astype(~ok, layer.rejected.dtype, xp=xp),
    )


def refresh_layer(
    layer: ProjectiveLayer,
    hyper: Hyper,
    noise: BasisNoise,
    *,
    kind: str,
    rebase: bool,
    complement: bool,
    dtype: str | None,
    ops: Ops,
    xp: Namespace,
) -> tuple[ProjectiveLayer, Info]:
    """Choose bases if `rebase`, damp, and make both inverses anew."""
    dampings = factored_damping(
        factors.mean_eigenvalue(layer.a, xp=xp)[..., None, None],
        factors.mean_eigenvalue(layer.g, xp=xp)[..., None, None],
        hyper.damping,
        xp=xp,
    )

    def renewed(factor: Factor, draws: Array | None, damping: Array) -> Any:
        basis, usable = None, layer.weight > 0
        if not rebase:
            usable = usable & factor.inverse.good
        elif isinstance(factor, ProjectedFactor):
            basis = factors.new_basis(factor, kind, draws, dtype=dtype, xp=xp)
        return factors.renew(
            factor, basis, damping, usable, complement=complement, dtype=dtype, ops=ops, xp=xp
        )

    a, code_a, captured_a = renewed(layer.a, noise.a, dampings[0])
    g, code_g, captured_g = renewed(layer.g, noise.g, dampings[1])
    measures = {
        "rejected": _xp.astype(layer.rejected, layer.weight.dtype, xp=xp),
        "weight": layer.weight,
        "captured_a": captured_a,
        "captured_g": captured_g,
    }
    return layer._replace(a=a, g=g), Info(xp.max(xp.maximum(code_a, code_g)), measures)


def direct_layer(
    layer: ProjectiveLayer, grad: Array, *, ops: Ops, xp: Namespace
) -> tuple[Array, Info]:
    """Apply both inverses to a gradient."""
    a, g = layer.a.inverse, layer.g.inverse
    u = _xp.astype(grad, a.matrix.dtype, xp=xp)
    u = factors.apply_factor(layer.g, u, left=True, xp=xp)
    u = factors.apply_factor(layer.a, u, left=False, xp=xp)
    ok, kept, identity = (_xp.full((), c, like=layer.rejected, xp=xp) for c in (OK, KEPT, IDENTITY))
    code = xp.where(a.failed | g.failed, kept, ok)
    u, info = guarded(u, grad, xp.where(a.good & g.good, code, identity), ops=ops, xp=xp)
    remaining = xp.min(xp.minimum(a.share, g.share))
    return u, info._replace(measures=info.measures | {"remaining": remaining})


def _finite(*arrays: Array, ops: Ops, xp: Namespace) -> Array:
    ok = all_finite(arrays[0], ops=ops, xp=xp)
    for x in arrays[1:]:
        ok = ok & all_finite(x, ops=ops, xp=xp)
    return ok


def _views(spec: LayerSpec, record: LayerRecord, *, xp: Namespace) -> tuple[View, View]:
    """One batch as A and as G see it; nothing is computed before it is called for."""
    bias, sharing = spec.bias, spec.sharing
    y = gradient_rows(spec, record, xp=xp)
    m, n, t = y.shape[-4:-1]
    positions = t if sharing == "expand" else 1
    of_a = View(
        full=lambda: input_moment(spec, record, xp=xp),
        samples=lambda: input_samples(rows(spec, record, xp=xp), bias=bias, sharing=sharing, xp=xp),
        rows=n * positions,
    )
    of_g = View(
        full=lambda: output_moment(spec, record, xp=xp),
        samples=lambda: output_samples(Rows(y, y), sharing=sharing, xp=xp),
        rows=m * n * positions,
    )
    return of_a, of_g
