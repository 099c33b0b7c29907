"""FNGD: natural-gradient coefficients of the first epoch, reused as fixed weights.

Source: "Fast natural gradient descent" in its abstracts (arXiv 2403.03473): the natural gradient
as a weighted sum of per-example gradients, coefficients computed in the first epoch alone and
shared with all later ones. How exactly they are shared, and how they are damped, could not be read:
what is here follows from the algebra, or is a choice, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors import batch_shape, check_record, gram, weighted_gradient
from ngd_core.inversion import PURE, Ops, solve_dtype
from ngd_core.methods._common import check_grads, check_specs, guarded, record_namespace
from ngd_core.types import IDENTITY, KINDS, OK, Hyper, Info, LayerRecord, LayerSpec
from ngd_core.weighting import (
    WeightTable,
    close_epoch,
    coefficients,
    descent_guard,
    empty_table,
    layer_damping,
    look_up,
    record_weights,
    table_slots,
)

__all__ = ["FNGD", "FNGDLayer", "FNGDState"]


class FNGDLayer(NamedTuple):
    """State of one layer.

    Parameters
    ----------
    table : WeightTable
        Weights ``n c``, times lambda for the unit gain.
    rejected : array of int32, shape ()
        Batches of which nothing was recorded.
    code : array of int32, shape ()
        Worst code of the batches recorded since the last refresh.
    """

    table: WeightTable
    rejected: Array
    code: Array


class FNGDState(NamedTuple):
    """State of all layers.

    Parameters
    ----------
    layers : dict of LayerSpec to FNGDLayer
        One entry a layer.
    """

    layers: dict[LayerSpec, FNGDLayer]


@dataclass(frozen=True)
class FNGD:
    """Natural gradient in the first epoch, its coefficients reused as fixed weights later.

    Layer by layer, ``(lambda I + U U^T / n)^-1 gbar = U c`` with ``c = (n lambda I + U^T U)^-1 1``
    (Sherman-Morrison-Woodbury), U the per-example gradients of the batch. In a recording epoch
    `accumulate` computes c, before each `direction`; `refresh` closes the epoch. After that
    `direction` alone is called: a weighted sum of per-example gradients, formed in one product,
    which factorises and inverts nothing.

    Parameters
    ----------
    share : "position", "iteration" or "sample"
        Which later example uses which coefficient: the one at its position in the batch, averaged
        over all full batches of the recording epoch; the one at its position in the batch of its
        iteration; or its own. Which of them is the authors' is not known.
    damping_mode : "relative" or "absolute"
        Meaning of ``hyper.damping``: ``rho`` in ``lambda = rho tr(U^T U) / n^2`` for each layer
        and batch, 10 being a good start, or ``lambda``.
    gain : "unit" or "natural"
        "natural" gives U c itself; "unit" multiplies by lambda, so that large damping gives the
        plain gradient and the step size keeps the meaning it has there.
    batch_size : int or None
        Examples of a full batch; needed for "position" and "iteration".
    iterations : int or None
        Iterations of an epoch, a short last one included; needed for "iteration".
    dataset_size : int or None
        Examples of the data set; needed for "sample".
    refresh_epochs : int or None
        Record again every so many epochs; None: in the first alone. See `recording`.
    guard : bool
        Replace a layer's direction by its gradient, times the mean weight, where stale
        coefficients give no descent direction for the batch; counted in ``guarded``.
    clip_negative : bool
        Set negative coefficients to 0. Then the first epoch is no natural gradient.
    floor : float
        Smallest lambda.
    solve_dtype : "float32", "float64" or None
        Dtype of Gram matrices and their factorisation. None: float64 where the library has it.
    ops : Ops
        Replaceable operations.

    Raises
    ------
    ValueError
        For an unknown option, or a size that `share` needs and that is missing.

    Notes
    -----
    The Fisher is the empirical one: records are of the training loss with its labels, not of
    sampled targets. Weights of later epochs are no preconditioner, and need not give descent.

    Where batches are reshuffled positions are exchangeable, so "position" tends to a constant
    vector as ``1 / sqrt(iterations)``: plain gradients with one frozen gain a layer, ``n mean(c)``
    [derived and measured]. Small damping gives large coefficients of both signs, which suit later
    batches badly.

    An example without a coefficient (left out of the recording epoch, or in a refused batch there)
    gets the layer's mean weight, 1 before the first `refresh`; measured as ``missing``. A batch is
    refused if a coefficient is not finite or all gradients of the layer are zero.

    What changes where the scale contract asks for no change: micro-batches have coefficients of
    their own unless their records are concatenated first; and the relative damping
    ``tr(U^T U) / n^2`` is halved by writing every example down twice (the absolute is not).

    Coefficients are tied to a batch size only through their place: they are kept as ``n c`` and
    divided by the size of the batch that uses them, so a short batch keeps its total weight.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Hyper, LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> method = FNGD(batch_size=2, damping_mode="absolute", gain="natural")
    >>> hyper, state = Hyper(damping=0.5), method.init([fc], like=np.zeros(()))
    >>> record = {fc: LayerRecord(a=np.diag([1.0, 2.0]), g=np.ones((2, 1)))}
    >>> grad = {fc: np.asarray([[0.5, 1.0]])}
    >>> state = method.accumulate(state, record, hyper)  # only in a recording epoch
    >>> method.direction(state, grad, record, hyper)[0][fc]
    array([[0.5, 0.4]])
    """

    kinds: ClassVar[tuple[str, ...]] = KINDS

    share: Literal["position", "iteration", "sample"] = "position"
    damping_mode: Literal["relative", "absolute"] = "relative"
    gain: Literal["unit", "natural"] = "unit"
    batch_size: int | None = None
    iterations: int | None = None
    dataset_size: int | None = None
    refresh_epochs: int | None = None
    guard: bool = False
    clip_negative: bool = False
    floor: float = 1e-8
    solve_dtype: Literal["float32", "float64"] | None = None
    ops: Ops = PURE

    def __post_init__(self) -> None:
        _checks.one_of("share", self.share, ("position", "iteration", "sample"))
        _checks.one_of("damping_mode", self.damping_mode, ("relative", "absolute"))
        _checks.one_of("gain", self.gain, ("unit", "natural"))
        _checks.one_of("solve_dtype", self.solve_dtype, ("float32", "float64", None))
        _checks.positive(floor=self.floor)
        needed = {
            "position": ("batch_size",),
            "iteration": ("batch_size", "iterations"),
            "sample": ("dataset_size",),
        }[self.share]
        for name in ("batch_size", "iterations", "dataset_size", "refresh_epochs"):
            value = getattr(self, name)
            if value is None and name in needed:
                msg = f"{name} is missing; share={self.share!r} keeps a table of that size."
                raise ValueError(msg)
            if value is not None and not (isinstance(value, int) and value >= 1):
                msg = f"{name} is {value!r}; expected an integer >= 1."
                raise ValueError(msg)

    def recording(self, epoch: int) -> bool:
        """Tell whether an epoch, counted from 0, is one in which `accumulate` is called.

        Parameters
        ----------
        epoch : int
            Number of the epoch.

        Returns
        -------
        bool
            True for the first, and for every `refresh_epochs`-th.
        """
        return epoch == 0 or (self.refresh_epochs is not None and epoch % self.refresh_epochs == 0)

    def init(
        self, specs: Iterable[LayerSpec], like: Array, *, xp: Namespace | None = None
    ) -> FNGDState:
        """State before any coefficients.

        Parameters
        ----------
        specs : iterable of LayerSpec
            Layers whose gradients are weighted.
        like : array
            Template of dtype (at least float32 is used) and device, for example a parameter.
        xp : namespace, optional
            Array namespace; found from `like` if not given.

        Returns
        -------
        FNGDState
            Empty tables: directions are plain mean gradients.

        Raises
        ------
        TypeError
            If `like` is not a real floating array.
        ValueError
            If there is no layer, or a name comes twice.
        """
        xp = _checks.common_namespace(xp, like=like)
        _checks.floating(xp, like=like)
        like = _xp.zeros((), like=like, dtype=_xp.working(like.dtype, xp=xp), xp=xp)
        return FNGDState({spec: self._init_layer(like, xp=xp) for spec in check_specs(specs)})

    def _init_layer(self, like: Array, *, xp: Namespace) -> FNGDLayer:
        by_position = self.share == "position"
        size = self.dataset_size if self.share == "sample" else self.batch_size
        if self.share == "iteration":
            size = (size or 0) * (self.iterations or 0)
        return FNGDLayer(
            table=empty_table(size or 0, by_position=by_position, like=like, xp=xp),
            rejected=_xp.zeros((), like=like, dtype=xp.int32, xp=xp),
            code=_xp.full((), OK, like=like, dtype=xp.int32, xp=xp),
        )

    def accumulate(
        self,
        state: FNGDState,
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        index: Array | None = None,
        xp: Namespace | None = None,
    ) -> FNGDState:
        """Compute and record the coefficients of a batch; dear, for recording epochs alone.

        One Gram matrix a layer, and one factorisation of their stack, ``(layers, n, n)``. The
        `direction` that follows, on the same batch, is the exact damped natural gradient of
        each layer.

        Parameters
        ----------
        state : FNGDState
            State.
        records : mapping of LayerSpec to LayerRecord
            From the backward pass of the training loss itself: one vector an example.
        hyper : Hyper
            ``hyper.damping`` is used, as `damping_mode` says.
        index : array of integers or None
            For ``share="iteration"`` the number of the iteration within the epoch, shape ``()``
            (taken modulo `iterations`); for "sample" the examples' indices in the data set, shape
            ``(n,)``; not looked at for "position".
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        FNGDState
            New tables. Calls may be left out at the start of a recording epoch, where gradients
            are wild; the batches without are plain mean gradients.

        Raises
        ------
        TypeError, ValueError
            As `ngd_core.factors.rows` and `ngd_core.weighting.table_slots`; for several
            back-propagated vectors, a layer the state does not know, a negative Python damping.
        """
        _checks.nonnegative(damping=hyper.damping)
        _checks.same_layers("records", records, state.layers)
        xp = record_namespace(xp, records, _template(state))
        layers = dict(state.layers)
        if not records:
            return state
        slots = self._slots(records, index, like=_template(state), xp=xp)
        weights, ok, code = self._weights(records, hyper, like=_template(state), xp=xp)
        for k, spec in enumerate(records):
            old = layers[spec]
            layers[spec] = FNGDLayer(
                table=record_weights(old.table, slots, weights[k, :], ok[k], xp=xp),
                rejected=old.rejected + _xp.astype(~ok[k], old.rejected.dtype, xp=xp),
                code=xp.where(ok[k], xp.maximum(old.code, code[k]), old.code),
            )
        return FNGDState(layers)

    def _weights(
        self,
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        like: Array,
        xp: Namespace,
    ) -> tuple[Array, Array, Array]:
        """Weights ``(layers, n)`` of a batch, whether they are usable, and codes."""
        dtype = solve_dtype(self.solve_dtype, like=like, xp=xp)
        grams = []
        for spec, record in records.items():
            grams.append(gram(spec, record, dtype=dtype, xp=xp))
        K = xp.stack(grams)
        damping = layer_damping(K, hyper.damping, mode=self.damping_mode, floor=self.floor, xp=xp)
        c, ok, code = coefficients(K, damping, dtype=self.solve_dtype, ops=self.ops, xp=xp)
        if self.clip_negative:
            c = xp.maximum(c, _xp.zeros((), like=c, xp=xp))
        weights = K.shape[-1] * c
        if self.gain == "unit":
            weights = weights * damping[:, None]
        weights = _xp.astype(weights, like.dtype, xp=xp)
        some = xp.any(xp.linalg.diagonal(K) > 0, axis=-1)
        return weights, ok & some & xp.all(xp.isfinite(weights), axis=-1), code

    def _slots(
        self,
        records: Mapping[LayerSpec, LayerRecord],
        index: Array | None,
        *,
        like: Array,
        xp: Namespace,
    ) -> Array:
        return self._slots_of(_batch_size(records, xp=xp), index, like=like, xp=xp)

    def _slots_of(self, count: int, index: Array | None, *, like: Array, xp: Namespace) -> Array:
        return table_slots(
            self.share,
            count,
            index,
            batch_size=self.batch_size or 0,
            iterations=self.iterations or 1,
            like=like,
            xp=xp,
        )

    def refresh(
        self, state: FNGDState, hyper: Hyper, *, xp: Namespace | None = None
    ) -> tuple[FNGDState, dict[LayerSpec, Info]]:
        """Close an epoch: cheap, and without effect after one in which nothing was recorded.

        Parameters
        ----------
        state : FNGDState
            State.
        hyper : Hyper
            Not used.
        xp : namespace, optional
            Array namespace; found from the state if not given.

        Returns
        -------
        state : FNGDState
            For ``share="position"`` the table now holds the means over full batches.
        info : dict of LayerSpec to Info
            Worst code of the batches recorded since the last call, 4 if there is no coefficient
            at all; measures ``rejected`` (batches refused so far), ``known`` (entries of the
            table) and ``gain`` (mean weight; the plain gradient is 1).
        """
        xp = _checks.common_namespace(xp, state=_template(state))
        layers, infos = {}, {}
        for spec, layer in state.layers.items():
            table, known, some = close_epoch(layer.table, xp=xp)
            nothing, ok = (_xp.full((), c, like=layer.code, xp=xp) for c in (IDENTITY, OK))
            measures = {
                "rejected": _xp.astype(layer.rejected, known.dtype, xp=xp),
                "known": known,
                "gain": table.gain,
            }
            infos[spec] = Info(xp.where(some, layer.code, nothing), measures)
            layers[spec] = layer._replace(table=table, code=ok)
        return FNGDState(layers), infos

    def weights(
        self,
        state: FNGDState,
        spec: LayerSpec,
        count: int,
        *,
        index: Array | None = None,
        xp: Namespace | None = None,
    ) -> tuple[Array, Array]:
        """Weights w of a batch's examples in a layer, whose direction is ``(1/n) sum_i w_i u_i``.

        For a backward pass that multiplies an example's part of a weight's gradient by its weight
        and passes the gradient at the layer's input on as it is: the gradient then is the direction
        of `direction`, for nothing.

        Parameters
        ----------
        state : FNGDState
            State, after a `refresh`.
        spec : LayerSpec
            Layer.
        count : int
            Examples n of the batch.
        index : array of integers or None
            As for `accumulate`.
        xp : namespace, optional
            Array namespace; found from the state if not given.

        Returns
        -------
        weights : array, shape (count,)
            1 is the plain mean gradient.
        found : array of bool, shape (count,)
            Which examples have a coefficient of their own.

        Raises
        ------
        TypeError, ValueError
            As `ngd_core.weighting.table_slots`; for a layer the state does not know.
        """
        _checks.same_layers("spec", {spec: None}, state.layers)
        table = state.layers[spec].table
        xp = _checks.common_namespace(xp, state=table.weights)
        return look_up(table, self._slots_of(count, index, like=table.weights, xp=xp), xp=xp)

    def direction(
        self,
        state: FNGDState,
        grads: Mapping[LayerSpec, Array],
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        index: Array | None = None,
        xp: Namespace | None = None,
    ) -> tuple[dict[LayerSpec, Array], dict[LayerSpec, Info]]:
        """Weighted sums of the batch's per-example gradients; factorises and inverts nothing.

        Parameters
        ----------
        state : FNGDState
            State; in a recording epoch after `accumulate` of the same batch.
        grads : mapping of LayerSpec to array, shape spec.block_shape
            Gradients of the mean loss. Layers may be missing. Directions come from the records;
            gradients serve the guard and the measure ``inner``.
        records : mapping of LayerSpec to LayerRecord
            The batch's records, at least for the layers of `grads`.
        hyper : Hyper
            Not used: the damping is in the coefficients.
        index : array of integers or None
            As for `accumulate`.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        directions : dict of LayerSpec to array
            ``(1/n) sum_i w_i u_i`` in the gradients' dtype; subtract it, times a step size.
            Parameters that are in no layer go along their plain gradient, times ``1 / lambda``
            for the natural gain.
        info : dict of LayerSpec to Info
            Code 4 if no example has a coefficient, 5 and a zero direction if the gradient or the
            record is not finite. Measures: ``inner``, ``<direction, gradient>``; ``missing``,
            examples without a coefficient; ``guarded``, 1 if the guard replaced the direction.

        Raises
        ------
        TypeError, ValueError
            As for `accumulate`; for gradients of integers or of the wrong shape, or without a
            record.
        """
        _checks.same_layers("grads", grads, state.layers)
        missing = [spec.name for spec in grads if spec not in records]
        if missing:
            msg = f"records lack the layers {missing}; directions are made of them: pass them."
            raise ValueError(msg)
        records = {spec: records[spec] for spec in grads}
        record_namespace(xp, records, _template(state))
        xp = check_grads(xp, grads, _template(state))
        directions: dict[LayerSpec, Array] = {}
        infos: dict[LayerSpec, Info] = {}
        if not grads:
            return directions, infos
        slots = self._slots(records, index, like=_template(state), xp=xp)
        n = slots.shape[0]
        for spec, grad in grads.items():
            layer = state.layers[spec]
            weights, found = look_up(layer.table, slots, xp=xp)
            u = weighted_gradient(spec, records[spec], weights, xp=xp) / n
            u = _xp.astype(u, weights.dtype, xp=xp)
            fired = _xp.zeros((), like=found, xp=xp)
            if self.guard:
                u, fired = descent_guard(
                    u, _xp.astype(grad, u.dtype, xp=xp), layer.table.gain, xp=xp
                )
            codes = [_xp.full((), c, like=layer.code, xp=xp) for c in (OK, IDENTITY)]
            directions[spec], info = guarded(
                u, grad, xp.where(xp.any(found), *codes), ops=self.ops, xp=xp
            )
            info.measures["missing"] = n - xp.sum(_xp.astype(found, u.dtype, xp=xp))
            info.measures["guarded"] = _xp.astype(fired, u.dtype, xp=xp)
            infos[spec] = info
        return directions, infos


def _template(state: FNGDState) -> Array:
    return next(iter(state.layers.values())).table.weights


def _batch_size(records: Mapping[LayerSpec, LayerRecord], *, xp: Namespace) -> int:
    """Examples of the batch, after a look at all records."""
    for spec, record in records.items():
        check_record(spec, record, xp=xp)
        vectors, _ = batch_shape(spec, record)
        if vectors != 1:
            msg = (
                f"g of {spec.name!r} has shape {tuple(record.g.shape)}, {vectors} back-propagated "
                "vectors; FNGD weights the gradients of the training loss itself: one."
            )
            raise ValueError(msg)
    counts: list[int] = sorted({record.a.shape[0] for record in records.values()})
    if len(counts) > 1:
        msg = f"records hold {counts} examples; expected those of one batch in every layer."
        raise ValueError(msg)
    return counts[0]
