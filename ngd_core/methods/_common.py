"""What every method does at its border."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.factors.average import average
from ngd_core.inversion.ops import PURE, Ops, all_finite, all_fit
from ngd_core.types import BAD_GRADIENT, Info, LayerRecord, LayerSpec

__all__ = [
    "check_grads",
    "check_specs",
    "folded",
    "guarded",
    "record_namespace",
    "refuse_kinds",
]


def check_specs(specs: Iterable[LayerSpec]) -> tuple[LayerSpec, ...]:
    """Layers as a tuple; at least one, and no name twice."""
    specs = tuple(specs)
    names = [spec.name for spec in specs]
    if not specs:
        msg = "specs is empty; a method needs at least one layer with weights."
        raise ValueError(msg)
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        msg = f"Layer names must be unique; {twice} come more than once."
        raise ValueError(msg)
    return specs


def refuse_kinds(specs: Iterable[LayerSpec], kinds: tuple[str, ...], why: str) -> None:
    """Reject layers of other kinds than a method takes."""
    for spec in specs:
        if spec.kind not in kinds:
            msg = (
                f"Layer {spec.name!r} is of kind {spec.kind!r}, {why}; leave it out of specs: its "
                "gradient is then used as it is."
            )
            raise ValueError(msg)


def record_namespace(
    xp: Namespace | None,
    records: Mapping[LayerSpec, LayerRecord],
    like: Array,
) -> Namespace:
    """Namespace of the state and the records; one library only."""
    if xp is not None:
        return xp
    arrays = {"the state": like}
    for spec, record in records.items():
        arrays |= {f"a of {spec.name!r}": record.a, f"g of {spec.name!r}": record.g}
    return _checks.common_namespace(None, **arrays)


def check_grads(xp: Namespace | None, grads: Mapping[LayerSpec, Array], like: Array) -> Namespace:
    """Namespace of the state and the gradients, after a look at every block."""
    arrays = {f"gradient of {spec.name!r}": grad for spec, grad in grads.items()}
    xp = _checks.common_namespace(xp, **{"the state": like}, **arrays)
    _checks.floating(xp, **arrays)
    for spec, grad in grads.items():
        _checks.shape(
            f"gradient of {spec.name!r}",
            grad,
            spec.block_shape,
            "blocks are [W b], see factors.join",
        )
    return xp


def folded(
    layer: Any,
    batch: Mapping[str, Array],
    count: Scalar,
    decay: Scalar,
    *,
    ops: Ops = PURE,
    xp: Namespace,
) -> tuple[Any, Array]:
    """Layer with the batch means averaged in, and whether they were: all of them, or none.

    The keys of `batch` are fields of `layer`, which has the fields weight and rejected as well. If
    an average or the weight would not be finite, all stay and the batch is counted as rejected.
    """
    new = {}
    for name, mean in batch.items():
        new[name], new["weight"] = average(
            getattr(layer, name), layer.weight, mean, count, decay, mix=ops.mix, xp=xp
        )
    ok = xp.isfinite(new["weight"])
    for x in new.values():
        ok = ok & all_finite(x, ops=ops, xp=xp)
    kept = {name: ops.select(ok, x, getattr(layer, name), xp=xp) for name, x in new.items()}
    rejected = layer.rejected + _xp.astype(~ok, layer.rejected.dtype, xp=xp)
    return layer._replace(rejected=rejected, **kept), ok


def guarded(
    direction: Array, grad: Array, code: Array, *, ops: Ops = PURE, xp: Namespace
) -> tuple[Array, Info]:
    """Direction in the gradient's dtype, zero if it, the gradient or their product is not finite.

    The measure ``inner`` is that product ``<direction, gradient>``, ``u^T (F + damping) u``. As
    every element is in it, it tells in one pass whether all are finite.
    """
    working, dtype = direction.dtype, grad.dtype
    flat, beside = xp.reshape(direction, (-1,)), xp.reshape(_xp.astype(grad, working, xp=xp), (-1,))
    inner = flat @ beside
    ok = xp.isfinite(inner)
    if xp.finfo(dtype).max < xp.finfo(working).max:
        ok = ok & all_fit(direction, dtype, ops=ops, xp=xp)
    zero = _xp.zeros((), like=direction, xp=xp)
    bad = _xp.full((), BAD_GRADIENT, like=code, xp=xp)
    info = Info(
        ops.select(ok, xp.max(code), bad, xp=xp), {"inner": ops.select(ok, inner, zero, xp=xp)}
    )
    return _xp.astype(ops.select(ok, direction, zero, xp=xp), dtype, xp=xp), info
