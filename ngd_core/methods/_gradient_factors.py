"""Directions from the two factors of a gradient, where a batch has few rows and a layer is wide.

The gradient of a dense layer's weight is a product of the batch's rows, ``(1/N) g^T a``. With its
bias' gradient b, whatever that is, and the last row ``a_d`` of the inverse ``A^-1``

    ``G^-1 [W b] A^-1 = G^-1 [g^T / N, b] [a A_w; a_d]``, ``A_w`` being the rows above ``a_d``,

by associativity alone [derived], which for R rows costs ``R (o^2 + d^2 + o d)`` multiply-adds
instead of ``o d (o + d)``.
"""

from __future__ import annotations

import math

from ngd_core import _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors.records import check_record, several_vectors
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["applied", "is_product", "products", "row_count", "rows_pay", "usable"]


def row_count(record: LayerRecord) -> int:
    """Rows of a dense layer's record."""
    return math.prod(record.a.shape[:-1])


def products(spec: LayerSpec, rows: int) -> int:
    """Multiply-adds of a direction from so many rows."""
    r, c = spec.rows, spec.columns
    rows_of_a, rank = rows * (c - spec.bias) * c, rows + spec.bias
    return rows_of_a + rank * (r * r + r * c)


def rows_pay(spec: LayerSpec, rows: int) -> bool:
    """Tell whether that is less than two products with the block."""
    r, c = spec.rows, spec.columns
    return spec.kind == "dense" and products(spec, rows) < r * c * (r + c)


def usable(spec: LayerSpec, record: LayerRecord, grad: Array, like: Array) -> bool:
    """Tell whether a record can give the direction, as far as shapes and dtypes say."""
    if spec.kind != "dense" or several_vectors(spec, record):
        return False
    check_record(spec, record)
    alike = record.a.dtype == record.g.dtype == grad.dtype == like.dtype
    return bool(alike) and rows_pay(spec, row_count(record))


def is_product(spec: LayerSpec, record: LayerRecord, grad: Array, *, xp: Namespace) -> Array:
    """Tell whether the weight's part of a gradient is the product of a record's rows.

    Both are multiplied by one vector p, and output by output they may differ by what rounding sums
    may do: ``2 eps |p| |g_o| |a| / N`` with Euclidean norms of a column and of all inputs. What is
    smaller than that is not seen, and `applied` leaves it out. No where numbers are not finite.
    """
    a, g = _rows(spec, record, xp=xp)
    places = _xp.arange(a.shape[1], like=a, xp=xp)
    probe = xp.cos(places * places)
    gap = grad[:, : a.shape[1]] @ probe - _mean((a @ probe) @ g, record)
    size = _mean(_norm(g, axis=0, xp=xp), record) * _norm(a, xp=xp) * _norm(probe, xp=xp)
    bound = 2 * _xp.eps(a.dtype, xp=xp) * size
    return xp.all((xp.abs(gap) <= bound) & xp.isfinite(bound))


def _norm(x: Array, *, axis: int | None = None, xp: Namespace) -> Array:
    """Euclidean norm, whatever its square is."""
    largest = xp.linalg.vector_norm(x, ord=float("inf"))
    unit = xp.where(largest > 0, largest, _xp.ones((), like=x, xp=xp))
    return xp.linalg.vector_norm(x / unit, axis=axis) * unit


def applied(
    spec: LayerSpec, G: Array, A: Array, record: LayerRecord, grad: Array, *, xp: Namespace
) -> Array:
    """Product ``G grad A`` of symmetric matrices and a gradient that `is_product`."""
    a, g = _rows(spec, record, xp=xp)
    left, right = _mean(g, record), a @ A[: a.shape[1], :]
    if spec.bias:
        left = xp.concat([left, grad[:, -1:].mT], axis=0)
        right = xp.concat([right, A[-1:, :]], axis=0)
    return (left @ G).mT @ right


def _mean(x: Array, record: LayerRecord) -> Array:
    n = record.a.shape[0]
    return x if n == 1 else x / n


def _rows(spec: LayerSpec, record: LayerRecord, *, xp: Namespace) -> tuple[Array, Array]:
    a, g = record.a, record.g
    return xp.reshape(a, (-1, spec.in_features)), xp.reshape(g, (-1, spec.out_features))
