"""What every analysis does with the records of one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace
from ngd_core.inversion import solve_dtype
from ngd_core.types import LayerRecord, LayerSpec

__all__ = [
    "Blocks",
    "Records",
    "cast",
    "check_blocks",
    "flat",
    "inner",
    "parameters",
    "result_dtype",
    "unflat",
    "work_dtype",
]

Records = Mapping[LayerSpec, LayerRecord]
Blocks = Mapping[LayerSpec, Array]


def parameters(records: Records) -> int:
    """Count the parameters of all layers together, P."""
    return sum(math.prod(spec.block_shape) for spec in records)


def result_dtype(records: Records, *, xp: Namespace) -> DType:
    """Dtype of results: that of the records, at least float32."""
    arrays = [record.g for record in records.values()]
    arrays += [record.a for spec, record in records.items() if spec.kind != "embedding"]
    return _xp.working(xp.result_type(*arrays), xp=xp)


def work_dtype(records: Records, wanted: str | None, *, xp: Namespace) -> DType:
    """Dtype of factorisations: float64 where there is one, unless another is wanted."""
    _checks.one_of("dtype", wanted, ("float32", "float64", None))
    like = next(iter(records.values())).g
    like = _xp.zeros((), like=like, dtype=result_dtype(records, xp=xp), xp=xp)
    return solve_dtype(wanted, like=like, xp=xp)


def cast(records: Records, dtype: DType, *, xp: Namespace) -> dict[LayerSpec, LayerRecord]:
    """Bring inputs and output gradients to one dtype."""
    return {
        spec: record._replace(
            a=record.a if spec.kind == "embedding" else _xp.astype(record.a, dtype, xp=xp),
            g=_xp.astype(record.g, dtype, xp=xp),
        )
        for spec, record in records.items()
    }


def check_blocks(
    name: str, blocks: Blocks, records: Records, xp: Namespace, lead: tuple[int, ...] = ()
) -> None:
    """Reject blocks of other layers than the records', or of other shapes or kinds."""
    _checks.same_layers(name, blocks, records)
    _checks.same_layers("records", records, blocks)
    arrays = {f"{name} of {spec.name!r}": block for spec, block in blocks.items()}
    _checks.floating(xp, **arrays)
    for spec, block in blocks.items():
        label = f"{name} of {spec.name!r}"
        _checks.shape(label, block, (*lead, *spec.block_shape), "blocks are [W b]")


def inner(u: Blocks, v: Blocks, *, xp: Namespace) -> Array:
    """Sum of the products of all entries."""
    parts = [xp.sum(u[spec] * v[spec]) for spec in u]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def flat(blocks: Blocks, specs: Sequence[LayerSpec], dtype: DType, *, xp: Namespace) -> Array:
    """Blocks in one vector of P entries, row-major, in the order of the layers."""
    parts = [xp.reshape(_xp.astype(blocks[spec], dtype, xp=xp), (-1,)) for spec in specs]
    return xp.concat(parts)


def unflat(vector: Array, specs: Sequence[LayerSpec], *, xp: Namespace) -> dict[LayerSpec, Array]:
    """Cut ``(..., P)`` into blocks; the inverse of `flat`."""
    blocks, start = {}, 0
    for spec in specs:
        stop = start + math.prod(spec.block_shape)
        part = vector[..., start:stop]
        blocks[spec] = xp.reshape(part, (*vector.shape[:-1], *spec.block_shape))
        start = stop
    return blocks
