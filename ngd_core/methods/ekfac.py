"""EKFAC: K-FAC's basis, with the Fisher's own diagonal in it.

Source: George, Laurent, Bouthillier, Ballas and Vincent, "Fast Approximate Natural Gradient Descent
in a Kronecker-factored Eigenbasis" (2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors import (
    eigen_scales,
    input_moment,
    kronecker_factors,
    output_factor,
    rebase_scales,
    rows,
)
from ngd_core.inversion import PURE, Ops, eigenbasis_solve, fallback_code, safe_eigh
from ngd_core.inversion.spd import FLOOR
from ngd_core.methods._batched import batched
from ngd_core.methods._common import (
    check_grads,
    check_specs,
    folded,
    guarded,
    record_namespace,
    refuse_kinds,
)
from ngd_core.types import IDENTITY, KEPT, OK, RAISED, Hyper, Info, LayerRecord, LayerSpec

__all__ = ["EKFAC", "EKFACLayer", "EKFACState"]


class EKFACLayer(NamedTuple):
    """State of one layer.

    Parameters
    ----------
    a : array, shape (*stack, columns, columns)
        Averaged input factor A.
    g : array, shape (*stack, rows, rows)
        Averaged output-gradient factor G.
    scales : array, shape (*stack, rows, columns)
        S, the averaged diagonal of the Fisher in the basis; means nothing before the first refresh.
    weight : array, shape ()
        Examples in the averages, older ones discounted; the same for all three.
    rejected : array of int32, shape ()
        Batches refused because a factor or a scale was not finite.
    a_basis : array, shape (*stack, columns, columns)
        ``Q_A``, eigenvectors of A at the last refresh in the columns; the identity before.
    g_basis : array, shape (*stack, rows, rows)
        ``Q_G``, those of G.
    damping : array, shape (*stack,)
        The last refresh's, used where a direction comes with one that is no number.
    good : array of bool, shape (*stack,)
        Whether the basis was once computed.
    """

    a: Array
    g: Array
    scales: Array
    weight: Array
    rejected: Array
    a_basis: Array
    g_basis: Array
    damping: Array
    good: Array


class EKFACState(NamedTuple):
    """State of all layers.

    Parameters
    ----------
    layers : dict of LayerSpec to EKFACLayer
        One entry a layer.
    """

    layers: dict[LayerSpec, EKFACLayer]


@dataclass(frozen=True)
class EKFAC:
    """Eigenvalue-corrected K-FAC, layer by layer.

    The Fisher of a layer's block is taken as ``Q diag(S) Q^T`` with ``Q = Q_G (x) Q_A`` (row-major)
    the eigenvectors of K-FAC's factors, and the direction is

    ``U = Q_G [(Q_G^T V Q_A) / (S + lambda)] Q_A^T``

    for the gradient V, with ``lambda`` in the units of the mean loss' Fisher. S (the paper's
    ``s*``) is the average over batches of ``diag(Q^T F Q)``, from exact per-example gradients,
    summed over positions before they are squared, whatever ``LayerSpec.sharing``: that one chooses
    factors, and so the basis.

    Parameters
    ----------
    solve_dtype : "float32", "float64" or None
        Dtype of eigendecompositions. None: float64 where the library has it. All that is kept stays
        in the parameters' dtype, at least float32; directions have the gradients' dtype.
    ops : Ops
        Replaceable operations, of which `select`, `within` and `mix` are used.

    Raises
    ------
    ValueError
        For an unknown option.

    Notes
    -----
    For one batch, seen in the basis of its own factors, the trace is that of the Fisher block F,
    and ``|F - F_KFAC|^2 = |F - F_EKFAC|^2 + |F_EKFAC - F_KFAC|^2`` in Frobenius norm: never
    farther from F than K-FAC. Where K-FAC is exact so is EKFAC, and it is exact for every F that is
    diagonal in the basis. If a factor has equal eigenvalues, its eigenvectors, and with them S and
    the direction, are those that the library happens to give.

    `refresh` changes the basis under S, which is then re-expressed: the diagonal of the old
    ``Q diag(S) Q^T`` in the new basis, of the same trace (derived here). At the first refresh there
    is nothing to re-express: what was averaged before is the diagonal in the coordinate axes, which
    says little about directions that mix them. S then starts as K-FAC's eigenvalues ``d_G d_A^T``,
    with the weight of the factors: a first step is K-FAC's with exact damping, and every later
    batch moves S towards what is seen in the basis, all at once with a decay of 0.

    No inverse is kept, so the damping is that of the step, not of the last refresh, and it may
    change at every step at no cost.

    The variant with scales from the squared gradient of a whole batch ("EKFAC-ra" in the paper) is
    left out: that is an estimate of the diagonal of F from one vector, and only if per-example
    gradients have mean zero, so none of the identities above holds for a batch.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Hyper, LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> method, hyper = EKFAC(), Hyper(damping=1.0)
    >>> state = method.init([fc], like=np.zeros(()))
    >>> record = LayerRecord(a=np.asarray([[2.0, 0.0], [0.0, 1.0]]), g=np.asarray([[1.0], [2.0]]))
    >>> state = method.accumulate(state, {fc: record}, hyper)
    >>> state, info = method.refresh(state, hyper)
    >>> state = method.accumulate(state, {fc: record}, hyper._replace(decay=0.0))
    >>> state.layers[fc].scales  # K-FAC's would be [[1.25, 5]]
    array([[2., 2.]])
    >>> u, _ = method.direction(state, {fc: np.ones((1, 2))}, {}, hyper)
    >>> u[fc].round(6)
    array([[0.333333, 0.333333]])
    """

    kinds: ClassVar[tuple[str, ...]] = ("dense", "conv2d", "scale")

    solve_dtype: Literal["float32", "float64"] | None = None
    ops: Ops = PURE

    def __post_init__(self) -> None:
        _checks.one_of("solve_dtype", self.solve_dtype, ("float32", "float64", None))

    def init(
        self, specs: Iterable[LayerSpec], like: Array, *, xp: Namespace | None = None
    ) -> EKFACState:
        """State before any statistics.

        Parameters
        ----------
        specs : iterable of LayerSpec
            Layers to precondition.
        like : array
            Template of dtype (at least float32 is used) and device, for example a parameter.
        xp : namespace, optional
            Array namespace; found from `like` if not given.

        Returns
        -------
        EKFACState
            Zero averages of zero weight and identity bases: directions are plain gradients until
            the first `refresh` after statistics.

        Raises
        ------
        TypeError
            If `like` is not a real floating array.
        ValueError
            If there is no layer, a name comes twice, or a layer is an embedding.
        """
        xp = _checks.common_namespace(xp, like=like)
        _checks.floating(xp, like=like)
        like = _xp.zeros((), like=like, dtype=_xp.working(like.dtype, xp=xp), xp=xp)
        specs = check_specs(specs)
        refuse_kinds(specs, self.kinds, "whose vocabulary is too wide for a basis in EKFAC")
        return EKFACState({spec: _init_layer(spec, like, xp=xp) for spec in specs})

    def accumulate(
        self,
        state: EKFACState,
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> EKFACState:
        """Fold a batch's factors, and its scales in the present basis, into the averages.

        Parameters
        ----------
        state : EKFACState
            State.
        records : mapping of LayerSpec to LayerRecord
            From a backward pass of the vectors of `ngd_core.losses.fisher_vectors`. Layers may be
            missing: their averages stay.
        hyper : Hyper
            ``hyper.decay`` is used; 1 for every micro-batch of a step after its first.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        EKFACState
            New averages. A layer whose factor or scale is not finite in the state's dtype (to which
            records are cast) keeps its old ones and counts that.

        Raises
        ------
        TypeError, ValueError
            As `ngd_core.factors.rows`; for a layer the state does not know; for a Python decay
            outside [0, 1].

        Notes
        -----
        Without shared positions the scales cost two rotations and a product, as much again as the
        factors. With T positions per-example gradients are formed, some examples at a time (see
        `ngd_core.factors.eigen.eigen_scales`).
        """
        _checks.same_layers("records", records, state.layers)
        xp = record_namespace(xp, records, next(iter(state.layers.values())).a)
        layers = dict(state.layers)
        for spec, record in records.items():
            layers[spec] = _accumulate_layer(spec, layers[spec], record, hyper, ops=self.ops, xp=xp)
        return EKFACState(layers)

    def refresh(
        self, state: EKFACState, hyper: Hyper, *, xp: Namespace | None = None
    ) -> tuple[EKFACState, dict[LayerSpec, Info]]:
        """Take the eigenvectors of the averaged factors as basis, and express S in it.

        Layers with equal shapes are decomposed in one call.

        Parameters
        ----------
        state : EKFACState
            State.
        hyper : Hyper
            ``hyper.damping`` is kept for directions whose own is no number.
        xp : namespace, optional
            Array namespace; found from the state if not given.

        Returns
        -------
        state : EKFACState
            With new bases and scales. A layer without finite ones (or with a damping that is not a
            finite number >= 0) keeps its old ones.
        info : dict of LayerSpec to Info
            Code 3 if old ones were kept, 4 if there are none yet; measures ``rejected`` (batches
            refused so far) and ``weight`` (examples in the averages).

        Raises
        ------
        ValueError
            For a negative Python damping; if `solve_dtype` is not to be had.
        """
        _checks.nonnegative(damping=hyper.damping)
        xp = _checks.common_namespace(xp, state=next(iter(state.layers.values())).a)

        def refreshed(layer: EKFACLayer) -> tuple[EKFACLayer, Array]:
            return _refresh_layer(layer, hyper, dtype=self.solve_dtype, xp=xp)

        arguments = {spec: (layer,) for spec, layer in state.layers.items()}
        layers, infos = {}, {}
        for spec, (layer, code) in batched(refreshed, arguments, xp=xp).items():
            layers[spec] = layer
            measures = {
                "rejected": _xp.astype(layer.rejected, layer.a.dtype, xp=xp),
                "weight": layer.weight,
            }
            infos[spec] = Info(xp.max(code), measures)
        return EKFACState(layers), infos

    def direction(
        self,
        state: EKFACState,
        grads: Mapping[LayerSpec, Array],
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> tuple[dict[LayerSpec, Array], dict[LayerSpec, Info]]:
        """Preconditioned gradients with the basis and scales as they are now.

        Parameters
        ----------
        state : EKFACState
            State.
        grads : mapping of LayerSpec to array, shape spec.block_shape
            Gradients of the mean loss, blocks ``[W b]``. Layers may be missing.
        records : mapping
            Not used.
        hyper : Hyper
            ``hyper.damping`` is used: ``lambda``, added to the Fisher of the mean loss, of this
            step and not of the last refresh.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        directions : dict of LayerSpec to array
            ``(Q diag(S) Q^T + lambda I)^-1 grad`` in the gradients' dtype; subtract it, times a
            step size.
        info : dict of LayerSpec to Info
            Code 1 if ``lambda`` was raised to ``10 eps tr(F)``, 3 if it is not a finite number >= 0
            and that of the last refresh was taken, 4 while there is no basis or nothing to divide
            by (no Fisher and no damping) and the direction is the gradient, 5 and a zero direction
            if the gradient, its direction in the gradient's dtype or their product is not finite;
            the measure ``inner`` is that product ``<direction, gradient>``.

        Raises
        ------
        TypeError, ValueError
            For integer or mixed arrays, wrong shapes, a layer the state does not know, or a
            negative Python damping.
        """
        _checks.nonnegative(damping=hyper.damping)
        _checks.same_layers("grads", grads, state.layers)
        xp = check_grads(xp, grads, next(iter(state.layers.values())).a)
        directions, infos = {}, {}
        for spec, grad in grads.items():
            layer = state.layers[spec]
            v = _xp.astype(grad, layer.a.dtype, xp=xp)
            u, code = _solve(layer, v, hyper, ops=self.ops, xp=xp)
            directions[spec], infos[spec] = guarded(u, grad, code, ops=self.ops, xp=xp)
        return directions, infos


def _init_layer(spec: LayerSpec, like: Array, *, xp: Namespace) -> EKFACLayer:
    d, o, stack = spec.columns, spec.rows, spec.stack

    def zeros(*shape: int) -> Array:
        return _xp.zeros((*stack, *shape), like=like, xp=xp)

    return EKFACLayer(
        a=zeros(d, d),
        g=zeros(o, o),
        scales=zeros(o, d),
        weight=_xp.zeros((), like=like, xp=xp),
        rejected=_xp.zeros((), like=like, dtype=xp.int32, xp=xp),
        a_basis=_xp.eye(d, like=like, xp=xp) + zeros(d, d),
        g_basis=_xp.eye(o, like=like, xp=xp) + zeros(o, o),
        damping=zeros(),
        good=_xp.zeros(stack, like=like, dtype=xp.bool, xp=xp),
    )


def _accumulate_layer(
    spec: LayerSpec,
    layer: EKFACLayer,
    record: LayerRecord,
    hyper: Hyper,
    *,
    ops: Ops,
    xp: Namespace,
) -> EKFACLayer:
    canonical = rows(spec, record, dtype=layer.a.dtype, xp=xp)
    if spec.kind == "scale":
        A, G = kronecker_factors(spec, record, dtype=layer.a.dtype, xp=xp)
    else:
        A = input_moment(spec, record, dtype=layer.a.dtype, xp=xp)
        G = output_factor(canonical, sharing=spec.sharing, xp=xp)
    batch = {
        "a": A,
        "g": G,
        "scales": eigen_scales(canonical, layer.a_basis, layer.g_basis, bias=spec.bias, xp=xp),
    }
    new: EKFACLayer
    new, _ = folded(layer, batch, record.a.shape[0] * hyper.share, hyper.decay, ops=ops, xp=xp)
    return new


def _refresh_layer(
    layer: EKFACLayer, hyper: Hyper, *, dtype: str | None, xp: Namespace
) -> tuple[EKFACLayer, Array]:
    """Layer, or layers along a leading axis, in a new basis, with codes of their members."""
    a_values, a_basis, a_ok = safe_eigh(layer.a, dtype=dtype, xp=xp)
    g_values, g_basis, g_ok = safe_eigh(layer.g, dtype=dtype, xp=xp)
    scales = xp.where(
        layer.good[..., None, None],
        rebase_scales(layer.scales, (layer.a_basis, layer.g_basis), (a_basis, g_basis), xp=xp),
        g_values[..., :, None] * a_values[..., None, :],
    )
    damping, usable = _damping(layer, hyper, xp=xp)
    ok = a_ok & g_ok & usable & xp.all(xp.isfinite(scales), axis=(-2, -1))
    # one weight a layer, whatever its stack
    weight = xp.reshape(layer.weight, (*layer.weight.shape, *(ok.ndim - layer.weight.ndim) * (1,)))
    ok = ok & (weight > 0)
    failed = ~ok[..., None, None]
    # the old first: torch lays out the result like it, and another layout would be compiled anew
    new = layer._replace(
        scales=xp.where(failed, layer.scales, scales),
        a_basis=xp.where(failed, layer.a_basis, a_basis),
        g_basis=xp.where(failed, layer.g_basis, g_basis),
        damping=xp.where(ok, damping, layer.damping),
        good=layer.good | ok,
    )
    mild = _xp.full(ok.shape, OK, like=layer.rejected, xp=xp)
    return new, fallback_code(ok, layer.good, mild, xp=xp)


def _damping(layer: EKFACLayer, hyper: Hyper, *, xp: Namespace) -> tuple[Array, Array]:
    """Damping in force, and whether it is the one asked for."""
    asked = _xp.scalar(hyper.damping, like=layer.damping, xp=xp)
    usable = xp.isfinite(asked) & (asked >= 0)
    return xp.where(usable, asked, layer.damping), usable


def _solve(
    layer: EKFACLayer, v: Array, hyper: Hyper, *, ops: Ops, xp: Namespace
) -> tuple[Array, Array]:
    """Direction, and its code for each member of the stack."""
    damping, usable = _damping(layer, hyper, xp=xp)
    eps = FLOOR * _xp.eps(v.dtype, xp=xp)
    floor = xp.sum(eps * layer.scales, axis=(-2, -1))  # the sum alone might overflow
    raised = damping < floor
    damping = xp.where(raised, floor, damping)
    ok = layer.good & (damping > 0)
    matrix = ok[..., None, None]
    safe = xp.where(ok, damping, _xp.ones((), like=v, xp=xp))[..., None, None]
    u = eigenbasis_solve(layer.g_basis, layer.a_basis, v, layer.scales + safe, xp=xp)
    mild, harsh, kept, none = (
        _xp.full((), c, like=layer.rejected, xp=xp) for c in (OK, RAISED, KEPT, IDENTITY)
    )
    code = xp.where(usable, xp.where(raised, harsh, mild), kept)
    chosen = ops.select(matrix if layer.good.ndim else ok, u, v, xp=xp)
    return chosen, xp.where(ok, code, none)
