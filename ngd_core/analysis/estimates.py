"""Trace and spectral density from random vectors, for maps that can only be applied.

The vectors are drawn by the caller, signs +1 and -1 with equal chances at best: the same noise
gives the same numbers in every library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.analysis._batch import flat
from ngd_core.analysis._operator import Operator, operator_border, sample_count, vector_product
from ngd_core.analysis.duality import LIMIT, frobenius_norm
from ngd_core.analysis.krylov import tridiagonal
from ngd_core.analysis.marginals import diagonal
from ngd_core.factors import directional_derivatives
from ngd_core.types import LayerRecord, LayerSpec

__all__ = [
    "Quadrature",
    "hutchinson_trace",
    "hutchinson_variance",
    "spectral_density",
    "spectral_quadrature",
]


class Quadrature(NamedTuple):
    """Nodes and weights of an estimate of the distribution of a map's eigenvalues.

    Parameters
    ----------
    nodes : array, shape (samples, steps)
        Places, in each row the largest first.
    weights : array, shape (samples, steps)
        Masses; each row sums to ``1 / samples`` (to 0, if its noise is 0).
    """

    nodes: Array
    weights: Array


def hutchinson_trace(
    operator: Operator, noise: Mapping[LayerSpec, Array], *, xp: Namespace | None = None
) -> Array:
    """Estimates ``z^T F z`` of the trace, one for each random vector (Hutchinson 1990).

    Parameters
    ----------
    operator : mapping of LayerSpec to LayerRecord, or callable
        Records of a batch, for their joint Fisher; or a function from blocks to blocks,
        symmetric and linear.
    noise : mapping of LayerSpec to array, shape (samples, *spec.block_shape)
        Independent numbers of mean 0 and variance 1. Signs have the smallest variance.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (samples,)
        Each has the trace as its expectation; take their mean. In the dtype of noise and records
        together, at least float32.

    Raises
    ------
    TypeError
        For arrays of several libraries or not real floating.
    ValueError
        If blocks do not fit the layers, or differ in their number of samples.

    Notes
    -----
    For the Fisher of records `ngd_core.analysis.trace` is exact and cheaper: the estimate is for
    maps given as functions, and a check of these.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> noise = {fc: np.asarray([[[1.0, 1.0]], [[1.0, -1.0]]])}
    >>> hutchinson_trace(lambda v: {fc: v[fc] @ [[2.0, 1.0], [1.0, 3.0]]}, noise)
    array([7., 3.])
    """
    samples = sample_count(noise)
    xp, dtype = operator_border(operator, "noise", noise, (samples,), xp)
    specs = tuple(noise)
    values = []
    for k in range(samples):
        z = {spec: block[k, ...] for spec, block in noise.items()}
        if isinstance(operator, Mapping):
            along = directional_derivatives(operator, z, xp=xp)
            values.append(xp.sum(along * along) / along.shape[-1])
        else:
            vector = flat(z, specs, dtype, xp=xp)
            product = vector_product(operator, specs, dtype, xp=xp)
            values.append(xp.sum(vector * product(vector)))
    return xp.stack(values)


def hutchinson_variance(
    records: Mapping[LayerSpec, LayerRecord],
    *,
    limit: int = LIMIT,
    xp: Namespace | None = None,
) -> Array:
    """Variance of one estimate of the Fisher's trace from random signs.

    ``2 (||F||_F^2 - sum_i F_ii^2)``, the norm by Gram duality; that of a mean over k vectors is
    a k-th of it.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Of one batch.
    limit : int
        Largest number ``M N`` of rows accepted; see `ngd_core.analysis.fisher_gram`.
    xp : namespace, optional
        Array namespace; found from the records if not given.

    Returns
    -------
    array, shape ()
        At least 0. Cancellation leaves few digits where F is nearly diagonal.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.analysis.fisher_gram`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0]]), g=np.asarray([[1.0]]))  # F is all ones
    >>> float(hutchinson_variance({LayerSpec("fc", "dense", 1, 1): record}))
    4.0
    """
    norm = frobenius_norm(records, limit=limit, xp=xp)
    xp = _checks.common_namespace(xp, norm=norm)
    squares = [xp.sum(d * d) for d in diagonal(records, xp=xp).values()]
    rest = norm * norm - xp.sum(xp.stack(squares))
    return 2 * xp.maximum(rest, _xp.zeros((), like=rest, xp=xp))


def spectral_quadrature(
    operator: Operator,
    noise: Mapping[LayerSpec, Array],
    steps: int,
    *,
    xp: Namespace | None = None,
) -> Quadrature:
    """Distribution of the eigenvalues by stochastic Lanczos quadrature.

    For each random vector z, Gauss quadrature of the measure that puts ``<q_i, z>^2 / ||z||^2``
    on the eigenvalue of ``q_i``: the eigenvalues of the Lanczos matrix are the nodes, the squared
    first entries of its eigenvectors the weights (Golub and Meurant; Ubaru, Chen and Saad 2017).

    Parameters
    ----------
    operator : mapping of LayerSpec to LayerRecord, or callable
        As for `ngd_core.analysis.lanczos`.
    noise : mapping of LayerSpec to array, shape (samples, *spec.block_shape)
        Random signs at best, or standard normal numbers.
    steps : int
        Number k of Lanczos steps for each vector, at most P of which are made.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    Quadrature
        ``P sum(weights f(nodes))`` estimates the trace of ``f(F)``; for random signs without
        bias if f is a polynomial of degree below 2k. What lies behind a breakdown has weight 0.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.analysis.lanczos`; if blocks differ in their number of samples.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> noise = {fc: np.asarray([[[1.0, -1.0]]])}
    >>> nodes, weights = spectral_quadrature(lambda v: {fc: v[fc] * [1.0, 3.0]}, noise, 2)
    >>> nodes.round(6).tolist(), weights.round(6).tolist()
    ([[3.0, 1.0]], [[0.5, 0.5]])
    """
    samples = sample_count(noise)
    xp, dtype = operator_border(operator, "noise", noise, (samples,), xp)
    specs = tuple(noise)
    product = vector_product(operator, specs, dtype, xp=xp)
    nodes, weights = [], []
    for k in range(samples):
        z = flat({spec: block[k, ...] for spec, block in noise.items()}, specs, dtype, xp=xp)
        t = tridiagonal(product, z, steps, xp=xp)
        nodes.append(t.values)
        weights.append(t.vectors[0, :] * t.vectors[0, :] / samples)
    return Quadrature(xp.stack(nodes), xp.stack(weights))


def spectral_density(
    nodes: Array,
    weights: Array,
    grid: Array,
    width: Scalar,
    *,
    xp: Namespace | None = None,
) -> Array:
    """Smooth a distribution of eigenvalues: a normal density around each node.

    ``rho(x) = sum_i w_i exp(-(x - theta_i)^2 / (2 s^2)) / (s sqrt(2 pi))``

    Parameters
    ----------
    nodes, weights : array, shape (...)
        Places and masses, of equal shape, as of `spectral_quadrature`.
    grid : array, shape (G,)
        Where the density is wanted. Transform nodes and grid alike for a logarithmic axis.
    width : float or array of shape ()
        ``s > 0``, standard deviation of each normal density.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    array, shape (G,)
        Its integral is the sum of the weights.

    Raises
    ------
    TypeError
        For arrays of several libraries or not real floating.
    ValueError
        If nodes and weights differ in shape, the grid has not one axis, or a Python `width` is
        not above 0.

    Examples
    --------
    >>> import numpy as np
    >>> spectral_density(np.zeros(1), np.ones(1), np.asarray([0.0, 1.0]), 1.0).round(4)
    array([0.3989, 0.242 ])
    """
    _checks.positive(width=width)
    xp = _checks.common_namespace(xp, nodes=nodes, weights=weights, grid=grid)
    _checks.floating(xp, nodes=nodes, weights=weights, grid=grid)
    _checks.rank(1, 1, grid=grid)
    _checks.shape("weights", weights, tuple(nodes.shape), "that of the nodes")
    width = _xp.scalar(width, like=grid, xp=xp)
    away = (grid[:, None] - xp.reshape(nodes, (1, -1))) / width
    bells = xp.exp(-0.5 * (away * away)) / (width * math.sqrt(2 * math.pi))
    return xp.sum(bells * xp.reshape(weights, (1, -1)), axis=1)
