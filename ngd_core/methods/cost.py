"""What a method costs a layer, counted in multiply-adds from sizes alone."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import NamedTuple

from ngd_core.factors import gram_route, image_moment_products
from ngd_core.inversion.recursion_cost import recursion_flops, recursion_pays
from ngd_core.methods._basis_noise import Side
from ngd_core.methods._gradient_factors import products
from ngd_core.methods.ekfac import EKFAC
from ngd_core.methods.fngd import FNGD
from ngd_core.methods.kfac import KFAC
from ngd_core.methods.projective import ProjectiveKFAC
from ngd_core.methods.sngd import SNGD
from ngd_core.types import LayerSpec, Method

__all__ = ["LayerCost", "layer_cost"]


class LayerCost(NamedTuple):
    """Multiply-adds of one layer, each two floating-point operations.

    Parameters
    ----------
    statistics : float
        Of `accumulate` for one batch.
    refresh : float
        Of `refresh`.
    direction : float
        Of `direction`, and of nothing that the batch's size enters.
    weighting : float
        What the batch's size adds to `direction`: FNGD's weighted sum of gradients, and K-FAC's
        direction from the rows of a record, which then takes the place of `direction`.
    own : float
        Of the layer's own products, forward and twice backward, for the same batch; 0 for an
        embedding and a scale, which have none.
    """

    statistics: float
    refresh: float
    direction: float
    weighting: float
    own: float


def layer_cost(
    method: Method,
    spec: LayerSpec,
    *,
    examples: int = 1,
    positions: int | tuple[int, int] = 1,
    vectors: int = 1,
) -> LayerCost | None:
    """Estimate what a method costs one layer.

    Parameters
    ----------
    method : Method
        One of this library's.
    spec : LayerSpec
        Layer.
    examples : int
        Of a batch: N.
    positions : int or (int, int)
        T of each example: tokens, or for a convolution whose records are images, output
        ``(height, width)``. A single number stands for records of rows, whose input factor costs
        more.
    vectors : int
        Back-propagated vectors of an example: M.

    Returns
    -------
    LayerCost or None
        None for methods over several layers at once, and for methods from elsewhere.

    Notes
    -----
    Matrix products are counted as they are made, and the numbers are exact up to what grows with
    one factor alone, not with the batch (means, residuals of inverses). An inverse by Cholesky
    counts ``n^3 / 2``, an eigendecomposition ``4.5 n^3``: textbook counts (LAPACK's; Golub and Van
    Loan's 9 n^3 operations), while their time is several times that of a product of as many. The
    roots of `SNGD` other than "eigh" are counted as that. Elementwise work is not counted.

    Examples
    --------
    >>> from ngd_core import KFAC, LayerSpec
    >>> layer_cost(KFAC(), LayerSpec("fc", "dense", 9, 10), examples=100)
    LayerCost(statistics=18100, refresh=1000.0, direction=2000, weighting=0, own=27000)
    """
    found = None
    t = positions if isinstance(positions, int) else prod(positions)
    if isinstance(method, KFAC):
        found = _kfac(method, spec, examples, positions, vectors)
    elif isinstance(method, EKFAC):
        found = _ekfac(spec, examples, positions, vectors)
    elif isinstance(method, SNGD):
        found = _sngd(method, spec, examples, positions)
    elif isinstance(method, FNGD):
        found = _fngd(spec, examples, t)
    elif isinstance(method, ProjectiveKFAC):
        found = _projective(method, spec, examples, positions, vectors)
    if found is None:
        return None
    own = 0 if spec.kind in ("embedding", "scale") else 3 * examples * t * _map(spec)
    return LayerCost(*found, own)


Costs = tuple[float, float, float, float]
Positions = int | tuple[int, int]


def _map(spec: LayerSpec) -> int:
    """Multiply-adds of the layer's map for one row."""
    return spec.groups * spec.rows * (spec.columns - spec.bias)


def _cholesky(n: int) -> float:
    return n**3 / 2


def _eigh(n: int) -> float:
    return 4.5 * n**3


def _number(t: Positions) -> int:
    return t if isinstance(t, int) else prod(t)


def _samples(spec: LayerSpec, n: int, t: Positions) -> int:
    return n if spec.sharing == "reduce" else n * _number(t)


def _of_inputs(spec: LayerSpec, n: int, t: Positions) -> int:
    """Second moment of one group's inputs."""
    if spec.kind == "embedding":
        return 0
    if spec.geometry is None or isinstance(t, int) or spec.sharing == "reduce":
        return _samples(spec, n, t) * (spec.columns - spec.bias) ** 2
    return n * image_moment_products(spec.geometry, spec.in_features // spec.groups, *t)


def _moments(spec: LayerSpec, n: int, t: Positions, m: int) -> float:
    c, r = spec.columns, spec.rows
    if spec.kind == "scale":
        return spec.groups * m * n * (_number(t) + c * c)
    return spec.groups * (_of_inputs(spec, n, t) + _samples(spec, n, t) * m * r * r)


def _sides(spec: LayerSpec) -> int:
    """Both factors' products with a block; that with an embedding's A is elementwise."""
    c, r = spec.columns, spec.rows
    return spec.groups * (r * r * c + (0 if spec.kind == "embedding" else r * c * c))


def _kfac(method: KFAC, spec: LayerSpec, n: int, t: Positions, m: int) -> Costs:
    exact = method.damping_split == "exact" or spec.kind == "scale"
    one = _eigh if exact else _cholesky
    inverse = one(spec.rows) + (0 if spec.kind == "embedding" else one(spec.columns))
    rows, direction, of_rows = n * _number(t), (1 + exact) * _sides(spec), 0
    if method.factors_gradient(spec, rows):
        direction, of_rows = 0, products(spec, rows)
    return _moments(spec, n, t, m), spec.groups * inverse, direction, of_rows


def _ekfac(spec: LayerSpec, n: int, t: Positions, m: int) -> Costs:
    c, r = spec.columns, spec.rows
    turned = (c - spec.bias) * c + m * r * r + (r * c if _number(t) == 1 else m * r * c)
    rebased = c**3 + r**3
    refresh = spec.groups * (_eigh(c) + _eigh(r) + rebased) + _sides(spec)
    statistics = _moments(spec, n, t, m) + spec.groups * n * _number(t) * turned
    return statistics, refresh, 2 * _sides(spec), 0


def _sngd(method: SNGD, spec: LayerSpec, n: int, t: Positions) -> Costs:
    c, r = spec.columns, spec.rows
    relu = method.metric == "relu" and spec.name not in method.linear_layers
    each = r if relu else 1
    roots = method.mode == "literal" or method.root != "eigh"
    inverse = spec.groups * each * (_eigh(c) if roots else _cholesky(c))
    applied = spec.groups * r * c * c * (2 if roots and method.mode == "direct" else 1)
    if relu:
        moments = r * n * _number(t) * c * c
    else:
        moments = _of_inputs(replace(spec, sharing="expand"), n, t)
    return spec.groups * moments, inverse, applied, 0


def _fngd(spec: LayerSpec, n: int, t: int) -> Costs:
    c, r = spec.columns, spec.rows
    inputs = 0 if spec.kind == "embedding" else c - spec.bias
    if gram_route(spec, t) == "positions":
        products = spec.groups * (n * t) ** 2 * (inputs + r)
    else:
        products = spec.groups * (n * t * r * (c - spec.bias) + n * n * r * c)
    return products + _cholesky(n), 0, 0, spec.groups * n * t * r * c


def _projective(method: ProjectiveKFAC, spec: LayerSpec, n: int, t: Positions, m: int) -> Costs:
    samples, d, o = _samples(spec, n, t), spec.columns, spec.rows
    sides = (
        _factor(method, "a", d, o, samples, _of_inputs(spec, n, t)),
        _factor(method, "g", o, d, m * samples, m * samples * o * o),
    )
    statistics, refresh, direction = (
        spec.groups * sum(parts) for parts in zip(*sides, strict=True)
    )
    return statistics, refresh, direction, 0


def _factor(
    method: ProjectiveKFAC, side: Side, d: int, other: int, samples: int, moment: int
) -> tuple[float, float, float]:
    k = method.rank_of(d, side)
    projected, formed = k < d, not (k < d and method.basis == "gaussian")
    pays = projected and recursion_pays(k, samples)
    follows = pays if method.recursive == "auto" else method.recursive and samples < k
    statistics: float = moment if formed else samples * k * k
    if projected and (follows or not formed):
        statistics += samples * d * k
    if follows:
        statistics += recursion_flops(k, samples) / 2
    if not projected:
        return statistics, _cholesky(d), d * d * other
    compressed = d * d * k + d * k * k
    basis = {"top": _eigh(d), "range": d * d * k + 2 * d * k * k, "gaussian": -compressed}
    refresh = basis[method.basis] + compressed + _cholesky(k)
    return statistics, refresh, (2 * d * k + k * k) * other
