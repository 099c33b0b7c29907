"""A symmetric linear map on blocks: the Fisher of a batch, or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from ngd_core import _checks, _xp
from ngd_core._typing import Array, DType, Namespace
from ngd_core.analysis._batch import (
    Blocks,
    Records,
    check_blocks,
    flat,
    result_dtype,
    unflat,
)
from ngd_core.factors import check_batch, fisher_product
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["Operator", "Vector", "operator_border", "sample_count", "vector_product"]

Operator: TypeAlias = (
    Mapping[LayerSpec, LayerRecord] | Callable[[dict[LayerSpec, Array]], Mapping[LayerSpec, Array]]
)
Vector: TypeAlias = Callable[[Array], Array]


def operator_border(
    operator: Operator, name: str, blocks: Blocks, lead: tuple[int, ...], xp: Namespace | None
) -> tuple[Namespace, DType]:
    """Namespace and dtype to compute in, after a look at blocks with leading axes."""
    if not blocks:
        msg = f"{name} is empty; expected a block for every layer."
        raise ValueError(msg)
    arrays = {f"{name} of {spec.name!r}": block for spec, block in blocks.items()}
    records: Records = {}
    if isinstance(operator, Mapping):
        records = operator
        xp = check_batch(records, xp=xp, **arrays)
    xp = _checks.common_namespace(xp, **arrays)
    check_blocks(name, blocks, records or blocks, xp, lead)
    dtype = _xp.working(xp.result_type(*arrays.values()), xp=xp)
    return xp, xp.result_type(dtype, result_dtype(records, xp=xp)) if records else dtype


def sample_count(noise: Blocks) -> int:
    """Length of the first axis of the first block."""
    for spec, block in noise.items():
        name = f"noise of {spec.name!r}"
        _checks.rank(len(spec.block_shape) + 1, **{name: block})
        if block.shape[0] == 0:
            msg = f"{name} has shape {tuple(block.shape)}; expected at least one sample (axis 0)."
            raise ValueError(msg)
        return int(block.shape[0])
    return 0


def vector_product(
    operator: Operator, specs: tuple[LayerSpec, ...], dtype: DType, *, xp: Namespace
) -> Vector:
    """Give the map as a function of one vector of P entries."""

    def product(vector: Array) -> Array:
        blocks = unflat(vector, specs, xp=xp)
        if isinstance(operator, Mapping):
            result: Blocks = fisher_product(operator, blocks, xp=xp)
        else:
            result = operator(blocks)
        return flat(result, specs, dtype, xp=xp)

    return product
