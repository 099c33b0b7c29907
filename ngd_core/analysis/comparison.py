"""How far a method's direction is from the exact natural gradient on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.analysis._batch import cast, check_blocks, inner, result_dtype, work_dtype
from ngd_core.analysis.duality import LIMIT, solve
from ngd_core.factors import check_batch, fisher_inner
from ngd_core.types import Hyper, LayerRecord, LayerSpec, Method

__all__ = ["Agreement", "agreement", "layer_agreements", "method_agreement"]


class Agreement(NamedTuple):
    """A direction u beside the exact one, ``u* = (F + lambda I)^-1 g``.

    Parameters
    ----------
    cosine : array, shape ()
        ``<u, u*> / (||u|| ||u*||)``, in [-1, 1]; no matter how long u is. After the best scaling
        of u the relative error would be ``sqrt(1 - cosine^2)``.
    relative_error : array, shape ()
        ``||u - u*|| / ||u*||`` as u is, its length included.
    decrease : array, shape ()
        Share of the exact direction's decrease of the quadratic model
        ``m(-t u) = -t <g, u> + t^2/2 u^T (F + lambda I) u`` that u reaches at its best step size
        ``t >= 0``: ``<g, u>^2 / (u^T (F + lambda I) u) / <g, u*>``, or 0 for an ascent direction.
        In [0, 1]; no matter how long u is. It is the squared cosine in the metric of
        ``F + lambda I``.
    """

    cosine: Array
    relative_error: Array
    decrease: Array


def agreement(
    directions: Mapping[LayerSpec, Array],
    grads: Mapping[LayerSpec, Array],
    records: Mapping[LayerSpec, LayerRecord],
    damping: Scalar,
    *,
    limit: int = LIMIT,
    dtype: str | None = None,
    xp: Namespace | None = None,
) -> Agreement:
    """Compare directions with the exact natural gradient over all layers together.

    Parameters
    ----------
    directions : mapping of LayerSpec to array, shape spec.block_shape
        ``u``, as a method's ``direction`` returns them, before learning rate and momentum.
    grads : mapping of LayerSpec to array, shape spec.block_shape
        ``g``, gradients of the mean loss.
    records : mapping of LayerSpec to LayerRecord
        Of one batch. They say what "exact" means: with vectors of the exact Fisher the exact
        one, with sampled or the labels' own gradients that sampled or empirical Fisher. A part of
        the layers asks about the Fisher of that part.
    damping : float or array of shape ()
        ``lambda > 0``, added to the Fisher of the mean loss.
    limit : int
        Largest number ``M N`` of rows accepted; see `ngd_core.analysis.natural_gradient`.
    dtype : "float32", "float64" or None
        In which all is computed; None: float64 where there is one.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    Agreement
        Numbers in the dtype of the records, at least float32. With u = u* = 0 (no gradient) they
        are those of equal directions; where only u* is 0 the relative error is infinite.

    Raises
    ------
    TypeError
        For arrays of several libraries or not real floating.
    ValueError
        If layers or shapes differ, the records are not of one batch or have more rows than
        `limit`; if a Python `damping` is not above 0; if `dtype` is unknown or not to be had.

    Notes
    -----
    Derived here. For the plain gradient Kantorovich's inequality bounds the decrease from below
    by ``4 kappa / (1 + kappa)^2`` with the condition kappa of ``F + lambda I``.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> records = {fc: LayerRecord(a=np.eye(2) * [[2.0], [0.0]], g=np.ones((2, 1)))}
    >>> g = {fc: np.asarray([[1.0, 1.0]])}  # F = diag(2, 0), so u* = (1/3, 1)
    >>> [float(x.round(3)) for x in agreement(g, g, records, 1.0)]
    [0.894, 0.632, 0.75]
    """
    _checks.positive(damping=damping)
    named = {
        f"{name} of {spec.name!r}": block
        for name, blocks in (("directions", directions), ("grads", grads))
        for spec, block in blocks.items()
    }
    xp = check_batch(records, xp=xp, **named)
    check_blocks("directions", directions, records, xp)
    check_blocks("grads", grads, records, xp)
    work, result = work_dtype(records, dtype, xp=xp), result_dtype(records, xp=xp)
    records = cast(records, work, xp=xp)
    u = {spec: _xp.astype(directions[spec], work, xp=xp) for spec in records}
    g = {spec: _xp.astype(grads[spec], work, xp=xp) for spec in records}
    exact = solve(records, g, damping, limit, 1, xp=xp)
    numbers = _compare(u, g, exact, records, damping, xp=xp)
    return Agreement(*(_xp.astype(number, result, xp=xp) for number in numbers))


def _compare(
    u: Mapping[LayerSpec, Array],
    g: Mapping[LayerSpec, Array],
    exact: Mapping[LayerSpec, Array],
    records: Mapping[LayerSpec, LayerRecord],
    damping: Scalar,
    *,
    xp: Namespace,
) -> Agreement:
    uu, ee = inner(u, u, xp=xp), inner(exact, exact, xp=xp)
    rest = {spec: u[spec] - exact[spec] for spec in u}
    zero, one = _xp.zeros((), like=uu, xp=xp), _xp.ones((), like=uu, xp=xp)
    same = (uu == 0) & (ee == 0)

    def ratio(top: Array, below: Array, otherwise: Array) -> Array:
        """Quotient; `otherwise` where the divisor is 0, 1 where both directions are."""
        some = below != 0
        value = xp.where(some, top / xp.where(some, below, one), otherwise)
        return xp.where(same, one, value)

    cosine = ratio(inner(u, exact, xp=xp), xp.sqrt(uu) * xp.sqrt(ee), zero)
    infinite = _xp.full((), float("inf"), like=uu, xp=xp)
    error = ratio(xp.sqrt(inner(rest, rest, xp=xp)), xp.sqrt(ee), infinite)
    gu, curvature = inner(g, u, xp=xp), fisher_inner(records, [u], xp=xp)[0, 0]
    curvature = curvature + _xp.scalar(damping, like=uu, xp=xp) * uu
    down = xp.maximum(gu, zero)
    reached = ratio(down * down, curvature, zero)
    decrease = ratio(reached, inner(g, exact, xp=xp), zero)
    return Agreement(cosine, xp.where(same, zero, error), decrease)


def layer_agreements(
    directions: Mapping[LayerSpec, Array],
    grads: Mapping[LayerSpec, Array],
    records: Mapping[LayerSpec, LayerRecord],
    damping: Scalar,
    *,
    limit: int = LIMIT,
    dtype: str | None = None,
    xp: Namespace | None = None,
) -> dict[LayerSpec, Agreement]:
    """Compare each layer with the exact natural gradient of that layer alone.

    What lies between layers is left out on both sides: a method that treats layers one by one,
    as K-FAC does, is judged by its own block here, and by `agreement` together with what leaving
    out the rest costs.

    Parameters
    ----------
    directions, grads : mapping of LayerSpec to array, shape spec.block_shape
        As for `agreement`.
    records : mapping of LayerSpec to LayerRecord
        As for `agreement`.
    damping : float or array of shape ()
        As for `agreement`.
    limit : int
        As for `agreement`.
    dtype : "float32", "float64" or None
        As for `agreement`.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    dict of LayerSpec to Agreement
        ``u* = (F_l + lambda I)^-1 g_l`` with the layer's block ``F_l``.

    Raises
    ------
    TypeError, ValueError
        As `agreement`.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 1, 1, bias=False)
    >>> records = {fc: LayerRecord(a=np.ones((1, 1)), g=np.ones((1, 1)))}
    >>> g = {fc: np.ones((1, 1))}
    >>> [float(x) for x in layer_agreements(g, g, records, 1.0)[fc]]
    [1.0, 1.0, 1.0]
    """
    _checks.same_layers("directions", directions, records)
    _checks.same_layers("grads", grads, records)
    _checks.same_layers("records", records, directions)
    _checks.same_layers("records", records, grads)
    return {
        spec: agreement(
            {spec: directions[spec]},
            {spec: grads[spec]},
            {spec: record},
            damping,
            limit=limit,
            dtype=dtype,
            xp=xp,
        )
        for spec, record in records.items()
    }


def method_agreement(
    method: Method,
    records: Mapping[LayerSpec, LayerRecord],
    grads: Mapping[LayerSpec, Array],
    hyper: Hyper,
    *,
    state: Any = None,
    rounds: int = 2,
    exact_records: Mapping[LayerSpec, LayerRecord] | None = None,
    damping: Scalar | None = None,
    limit: int = LIMIT,
    dtype: str | None = None,
    xp: Namespace | None = None,
) -> Agreement:
    """Compare a method's direction on a batch with the exact natural gradient on that batch.

    Parameters
    ----------
    method : Method
        Any of the library's methods, or another with their four functions.
    records : mapping of LayerSpec to LayerRecord
        What the method accumulates, for every layer: vectors of the exact or a sampled Fisher for
        K-FAC and its kin, the labels' own gradients (M = 1) for FNGD and SOFIM.
    grads : mapping of LayerSpec to array, shape spec.block_shape
        Gradients of the mean loss.
    hyper : Hyper
        For the method; ``hyper.damping`` is also lambda of the exact one.
    state : any, optional
        State of the method in training, used as it is: the batch is not accumulated and nothing
        refreshed, so that the age of its averages and inverses is part of the answer. None: a
        fresh state which has seen this batch alone (decay 0).
    rounds : int
        How often a fresh state accumulates the batch and is refreshed. EKFAC measures scales in
        the basis of the refresh before, so the second time counts; others do not change.
    exact_records : mapping of LayerSpec to LayerRecord, optional
        Of the same batch, for the exact side, where the method saw sampled targets, say; those of
        the method if not given.
    damping : float or array of shape (), optional
        Lambda of the exact side, for methods whose ``hyper.damping`` is relative.
    limit : int
        As for `agreement`.
    dtype : "float32", "float64" or None
        Of the exact side, as for `agreement`.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    Agreement
        As of `agreement`. Joint over all layers; for one layer pass the records and gradients of
        that layer alone.

    Raises
    ------
    TypeError, ValueError
        As `agreement`, and as the method does; if `rounds` is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import KFAC, Hyper, LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> records = {fc: LayerRecord(a=np.asarray([[1.0, 2.0]]), g=np.asarray([[3.0]]))}
    >>> grads = {fc: np.asarray([[3.0, 6.0]])}
    >>> kfac = KFAC(damping_split="exact")  # exact for one example without positions
    >>> [float(abs(x.round(6))) for x in method_agreement(kfac, records, grads, Hyper(0.1))]
    [1.0, 0.0, 1.0]
    """
    if not isinstance(rounds, int) or rounds < 1:
        msg = f"rounds is {rounds!r}; expected an integer >= 1."
        raise ValueError(msg)
    exact_records = records if exact_records is None else exact_records
    xp = check_batch(records, xp=xp, **{f"grads of {s.name!r}": v for s, v in grads.items()})
    options = {"xp": xp}
    if state is None:
        like = next(iter(grads.values()))
        state = method.init(list(records), like, **options)
        for _ in range(rounds):
            state = method.accumulate(state, records, hyper._replace(decay=0.0), **options)
            state, _ = method.refresh(state, hyper, **options)
    directions, _ = method.direction(state, grads, records, hyper, **options)
    damping = hyper.damping if damping is None else damping
    return agreement(directions, grads, exact_records, damping, limit=limit, dtype=dtype, xp=xp)
