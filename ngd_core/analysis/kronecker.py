"""What is known of ``G (x) A`` from its factors alone, and how far its trace is from the Fisher's.

The eigenvalues of a Kronecker product are all products of one eigenvalue of each factor; trace,
rank and Frobenius norm multiply. A layer of several groups has one product for each, side by side.
"""

from __future__ import annotations

from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.analysis.marginals import example_norms
from ngd_core.analysis.spectrum import condition_number
from ngd_core.factors import check_batch, kronecker_factors, rows
from ngd_core.inversion import safe_eigh
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["KroneckerSpectrum", "kfac_trace_error", "kronecker_spectrum"]


class KroneckerSpectrum(NamedTuple):
    """Spectrum of a layer's ``G (x) A``, over all its groups.

    Parameters
    ----------
    eigenvalues : array, shape (p,)
        All of them, ``alpha_i gamma_j``, largest first; p is the layer's number of parameters.
        `ngd_core.analysis.log_determinant`, `effective_dimension` and `condition_number` take
        them.
    trace : array, shape ()
        ``tr A tr G``, summed over groups.
    frobenius : array, shape ()
        ``||A||_F ||G||_F``; over groups the root of the sum of squares.
    rank : array of int32, shape ()
        Product of the factors' ranks, summed over groups. An eigenvalue of a factor of order d
        counts if it is above ``d eps`` times that factor's largest.
    condition : array, shape ()
        Largest over least eigenvalue; infinite, or ``1 / eps`` and more where rounding hides the
        zero, for a singular product.
    """

    eigenvalues: Array
    trace: Array
    frobenius: Array
    rank: Array
    condition: Array


def kronecker_spectrum(
    A: Array, G: Array, *, dtype: str | None = None, xp: Namespace | None = None
) -> KroneckerSpectrum:
    """Spectrum of ``G (x) A`` without the product.

    Parameters
    ----------
    A : array, shape (d, d) or (groups, d, d), or (d,)
        Input factor, symmetric and positive semi-definite; of an embedding its diagonal.
    G : array, shape (o, o) or (groups, o, o)
        Output-gradient factor, likewise.
    dtype : "float32", "float64" or None
        Of the factorisations; None: float64 where there is one.
    xp : namespace, optional
        Array namespace; found from the factors if not given.

    Returns
    -------
    KroneckerSpectrum
        In the dtype of the factors. NaN (rank 0) if they are not finite.

    Raises
    ------
    TypeError
        For arrays of several libraries or not real floating.
    ValueError
        If a factor is not square, or they differ in their groups.

    Examples
    --------
    >>> import numpy as np
    >>> spectrum = kronecker_spectrum(np.diag([3.0, 1.0]), np.diag([2.0, 0.0]))
    >>> spectrum.eigenvalues.tolist(), int(spectrum.rank), float(spectrum.trace)
    ([6.0, 2.0, 0.0, 0.0], 2, 8.0)
    """
    xp = _checks.common_namespace(xp, A=A, G=G)
    _checks.floating(xp, A=A, G=G)
    _checks.rank(1, 3, A=A)
    _checks.rank(2, 3, G=G)
    _checks.square(G=G)
    diagonal = A.ndim == 1 and G.ndim == 2
    if not diagonal:
        _checks.square(A=A)
    if not diagonal and tuple(A.shape[:-2]) != tuple(G.shape[:-2]):
        msg = (
            f"A has shape {tuple(A.shape)} and G {tuple(G.shape)}; expected the factors of one "
            "layer, with the same groups."
        )
        raise ValueError(msg)
    if diagonal:
        a_ok = xp.all(xp.isfinite(A))
        alpha = xp.sort(xp.where(a_ok, A, _xp.ones((), like=A, xp=xp)))
    else:
        alpha, _, a_ok = safe_eigh(A, dtype=dtype, xp=xp)
    gamma, _, g_ok = safe_eigh(G, dtype=dtype, xp=xp)
    ok = xp.all(a_ok & g_ok)
    products = xp.reshape(gamma[..., :, None] * alpha[..., None, :], (-1,))
    values = xp.flip(xp.sort(products))
    values = xp.where(ok, values, _xp.full((), float("nan"), like=values, xp=xp))
    squares = xp.sum(A * A, axis=-1 if diagonal else (-2, -1)) * xp.sum(G * G, axis=(-2, -1))
    ranks = _rank(alpha, xp=xp) * _rank(gamma, xp=xp)
    rank = xp.sum(ranks, dtype=xp.int32)
    return KroneckerSpectrum(
        values,
        xp.sum(_trace(A, G, xp=xp)),
        xp.sqrt(xp.sum(squares)),
        xp.where(ok, rank, _xp.zeros((), like=rank, xp=xp)),
        condition_number(values, xp=xp),
    )


def _trace(A: Array, G: Array, *, xp: Namespace) -> Array:
    """Trace of each group's product; A may be a diagonal."""
    traces = xp.sum(A) if A.ndim < G.ndim else xp.linalg.trace(A)
    return traces * xp.linalg.trace(G)


def _rank(values: Array, *, xp: Namespace) -> Array:
    """Count the eigenvalues, ascending along the last axis, that are more than rounding."""
    least = values.shape[-1] * _xp.eps(values.dtype, xp=xp) * values[..., -1:]
    return xp.sum(_xp.astype(values > least, xp.int32, xp=xp), axis=-1, dtype=xp.int32)


def kfac_trace_error(spec: LayerSpec, record: LayerRecord, *, xp: Namespace | None = None) -> Array:
    """Compare traces: what K-FAC's lacks, ``tr F_l - tr A tr G``.

    For one position it is the covariance of ``||[x; 1]||^2`` and ``sum_m ||g_m||^2`` over the
    examples: 0 if large inputs do not go with large gradients, or for one example.

    Parameters
    ----------
    spec : LayerSpec
        Layer; with several positions ``spec.sharing`` chooses the factors.
    record : LayerRecord
        Inputs and per-example output gradients.
    xp : namespace, optional
        Array namespace; found from the record if not given.

    Returns
    -------
    array, shape ()
        In the dtype of the record, at least float32; of either sign. For one position computed
        as the covariance, without cancellation.

    Raises
    ------
    TypeError, ValueError
        As `ngd_core.factors.rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> record = LayerRecord(a=np.asarray([[1.0], [3.0]]), g=np.asarray([[0.0], [2.0]]))
    >>> float(kfac_trace_error(LayerSpec("fc", "dense", 1, 1), record))
    8.0
    """
    xp = check_batch({spec: record}, xp=xp)
    x, y = rows(spec, record, xp=xp)
    if x.shape[-2] == 1:
        inputs, outputs = xp.sum(x * x, axis=(-2, -1)), xp.sum(y * y, axis=(-4, -2, -1))
        inputs = inputs - xp.mean(inputs, axis=-1, keepdims=True)
        outputs = outputs - xp.mean(outputs, axis=-1, keepdims=True)
        return xp.sum(xp.mean(inputs * outputs, axis=-1))
    A, G = kronecker_factors(spec, record, xp=xp)
    total = xp.mean(example_norms({spec: record}, xp=xp)[spec])
    return total - xp.sum(_trace(A, G, xp=xp))
