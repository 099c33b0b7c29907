"""Extreme eigenvalues of a symmetric linear map that can only be applied, by Lanczos.

Each step applies the map once and keeps one more vector of P entries; every new vector is made
orthogonal to all the former ones, twice, so that no eigenvalue comes back as a ghost of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ngd_core import _xp
from ngd_core._typing import Array, Namespace
from ngd_core.analysis._batch import flat, unflat
from ngd_core.analysis._operator import Operator, Vector, operator_border, vector_product
from ngd_core.types import LayerSpec

__all__ = ["Lanczos", "lanczos"]

BREAKDOWN = 100.0
"""Least part of a new vector that is taken for one, in units of eps times the map's norm."""


class Lanczos(NamedTuple):
    """Ritz pairs: eigenvalues and eigenvectors of the map, seen in a Krylov space of k dimensions.

    Parameters
    ----------
    eigenvalues : array, shape (k,)
        Largest first. Each of the first `found` is within its residual of an eigenvalue, and none
        is outside the spectrum. Zero behind `found`.
    vectors : dict of LayerSpec to array, shape (k, *block_shape)
        Vectors of norm 1, orthogonal to one another, as blocks. Zero behind `found`.
    residuals : array, shape (k,)
        ``||F v - theta v||``.
    found : array of int32, shape ()
        Dimension of the space; below k where the start vector lies in a smaller invariant space,
        whose eigenvalues are then exact.
    """

    eigenvalues: Array
    vectors: dict[LayerSpec, Array]
    residuals: Array
    found: Array


class Tridiagonal(NamedTuple):
    """Eigendecomposition of the Lanczos matrix T.

    Values (k,), largest first, vectors (k, k) in the columns, the basis (k, P), the last
    off-diagonal number (), and the dimension of the space (). Behind that dimension values are 0.
    """

    values: Array
    vectors: Array
    basis: Array
    last: Array
    found: Array


def lanczos(
    operator: Operator,
    start: Mapping[LayerSpec, Array],
    steps: int,
    *,
    xp: Namespace | None = None,
) -> Lanczos:
    """Approximate the largest eigenvalues, and vectors, of the Fisher or any symmetric map.

    Parameters
    ----------
    operator : mapping of LayerSpec to LayerRecord, or callable
        Records of a batch, for their joint Fisher; or a function from blocks to blocks,
        symmetric and linear.
    start : mapping of LayerSpec to array, shape spec.block_shape
        First vector, drawn by the caller: standard normal numbers or random signs. Nothing is
        found outside the space that it reaches.
    steps : int
        Number k of steps, at least 1; at most P are made. The largest eigenvalue needs some tens.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    Lanczos
        In the dtype of the start and the records together, at least float32; NaN where the map
        gives numbers that are not finite.

    Raises
    ------
    TypeError
        For arrays of several libraries or not real floating.
    ValueError
        If `steps` is below 1, or blocks do not fit the layers.

    Notes
    -----
    Memory is k P numbers. Of an eigenvalue that comes several times one copy is found: what a
    single start vector sees of its eigenspace is one direction.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> result = lanczos(lambda v: {fc: v[fc] * [1.0, 3.0]}, {fc: np.ones((1, 2))}, 2)
    >>> result.eigenvalues.round(6).tolist(), abs(result.vectors[fc][0].round(6)).tolist()
    ([3.0, 1.0], [[0.0, 1.0]])
    """
    xp, dtype = operator_border(operator, "start", start, (), xp)
    specs = tuple(start)
    product = vector_product(operator, specs, dtype, xp=xp)
    t = tridiagonal(product, flat(start, specs, dtype, xp=xp), steps, xp=xp)
    vectors = t.vectors.mT @ t.basis
    residuals = t.last * xp.abs(t.vectors[-1, :])
    return Lanczos(t.values, unflat(vectors, specs, xp=xp), residuals, t.found)


def tridiagonal(product: Vector, start: Array, steps: int, *, xp: Namespace) -> Tridiagonal:
    """Run Lanczos on vectors and decompose its matrix."""
    if not isinstance(steps, int) or steps < 1:
        msg = f"steps is {steps!r}; expected an integer >= 1."
        raise ValueError(msg)
    steps = min(steps, start.shape[0])
    zero, one = _xp.zeros((), like=start, xp=xp), _xp.ones((), like=start, xp=xp)
    tolerance = BREAKDOWN * _xp.eps(start.dtype, xp=xp)
    size, norm = _norm(start, xp=xp), zero
    alive = size != 0
    basis = [_unit(start, size, alive, xp=xp)]
    alphas, betas, living = [], [], []
    for _ in range(steps):
        q = basis[-1]
        w = product(q)
        norm = xp.maximum(norm, _norm(w, xp=xp))
        alphas.append(xp.sum(q * w))
        living.append(alive)
        known = xp.stack(basis)
        for _ in range(2):
            w = w - (known.mT @ (known @ w[:, None]))[:, 0]
        beta = _norm(w, xp=xp)
        # NaN goes on, so that it is seen in the end
        alive = alive & ~(beta <= tolerance * norm)
        betas.append(xp.where(alive, beta, zero))
        basis.append(_unit(w, beta, alive, xp=xp))
    alpha, beta, lives = xp.stack(alphas), xp.stack(betas), xp.stack(living)
    found = xp.sum(_xp.astype(lives, xp.int32, xp=xp), dtype=xp.int32)
    # steps behind the end get a place below all others, so that sorting puts them last
    bound = xp.max(xp.abs(alpha)) + 2 * xp.max(beta)
    alpha = xp.where(lives, alpha, -xp.where(bound == 0, one, 2 * bound))
    place = _xp.arange(steps, like=found, xp=xp)
    above = _xp.astype(place[:, None] + 1 == place[None, :], start.dtype, xp=xp)
    off = above * beta[:, None]
    matrix = _xp.eye(steps, like=start, xp=xp) * alpha[:, None] + off + off.mT
    ok = xp.all(xp.isfinite(matrix))
    values, vectors = xp.linalg.eigh(xp.where(ok, matrix, zero))
    values, vectors = xp.flip(values), xp.flip(vectors, axis=1)
    values = xp.where(place < found, values, zero)
    vectors = xp.where((place < found)[None, :], vectors, zero)
    values = xp.where(ok, values, _xp.full((), float("nan"), like=values, xp=xp))
    return Tridiagonal(values, vectors, known, betas[-1], found)


def _norm(x: Array, *, xp: Namespace) -> Array:
    return xp.sqrt(xp.sum(x * x))


def _unit(x: Array, size: Array, alive: Array, *, xp: Namespace) -> Array:
    """Scale to norm 1; 0 where it is not alive."""
    zero, one = _xp.zeros((), like=x, xp=xp), _xp.ones((), like=x, xp=xp)
    return xp.where(alive, x / xp.where(alive, size, one), zero)
