"""The natural gradient by definition: dense Fisher, dense damped solve.

For models of up to some thousand parameters: the truth beside which approximations are judged on
the user's own device, where `ngd_core.reference` is the truth in NumPy float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors import check_batch, per_example_gradients, second_moment
from ngd_core.inversion import PURE, Ops, damped_inverse
from ngd_core.methods._common import check_grads, check_specs, folded, guarded, record_namespace
from ngd_core.types import IDENTITY, KINDS, OK, Hyper, Info, LayerRecord, LayerSpec

__all__ = ["DenseBlock", "DenseNGD", "DenseState"]


class DenseBlock(NamedTuple):
    """Fisher of one diagonal block of p parameters.

    Parameters
    ----------
    fisher : array, shape (p, p)
        Averaged Fisher of the mean loss, row-major ``[W b]`` blocks in the order of the layers.
    weight : array, shape ()
        Examples in the average, older ones discounted.
    rejected : array of int32, shape ()
        Batches refused because the Fisher was not finite.
    inverse : array, shape (p, p)
        ``(F + lambda I)^-1``, the identity before the first refresh.
    good : array of bool, shape ()
        Whether it was once computed.
    """

    fisher: Array
    weight: Array
    rejected: Array
    inverse: Array
    good: Array


class DenseState(NamedTuple):
    """State of all blocks.

    Parameters
    ----------
    blocks : dict of tuple of LayerSpec to DenseBlock
        Keyed by the layers that a block spans.
    """

    blocks: dict[tuple[LayerSpec, ...], DenseBlock]


@dataclass(frozen=True)
class DenseNGD:
    """Natural gradient with the dense Fisher, ``(F + lambda I)^-1 grad``.

    ``F = (1/N) sum_n sum_m u_nm u_nm^T`` from per-example gradients u, which are formed.

    Parameters
    ----------
    blocks : "full" or "layer"
        One matrix for all layers together, or one a layer.
    solve_dtype : "float32", "float64" or None
        Dtype of the factorisation; as for `KFAC`.
    ops : Ops
        Replaceable operations.

    Raises
    ------
    ValueError
        For an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Hyper, LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 1, 1, bias=False)
    >>> method, hyper = DenseNGD(), Hyper(damping=1.0)
    >>> state = method.init([fc], like=np.zeros(()))
    >>> record = LayerRecord(a=np.asarray([[1.0]]), g=np.asarray([[1.0]]))
    >>> state, _ = method.refresh(method.accumulate(state, {fc: record}, hyper), hyper)
    >>> method.direction(state, {fc: np.ones((1, 1))}, {}, hyper)[0][fc]
    array([[0.5]])
    """

    kinds: ClassVar[tuple[str, ...]] = KINDS

    blocks: Literal["full", "layer"] = "full"
    solve_dtype: Literal["float32", "float64"] | None = None
    ops: Ops = PURE

    def __post_init__(self) -> None:
        _checks.one_of("blocks", self.blocks, ("full", "layer"))
        _checks.one_of("solve_dtype", self.solve_dtype, ("float32", "float64", None))

    def init(
        self, specs: Iterable[LayerSpec], like: Array, *, xp: Namespace | None = None
    ) -> DenseState:
        """State before any statistics; see `ngd_core.KFAC.init`.

        Parameters
        ----------
        specs : iterable of LayerSpec
            Layers.
        like : array
            Template of dtype (at least float32 is used) and device.
        xp : namespace, optional
            Array namespace; found from `like` if not given.

        Returns
        -------
        DenseState
            Zero Fisher and identity inverse.

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
        specs = check_specs(specs)
        spans = [specs] if self.blocks == "full" else [(spec,) for spec in specs]
        return DenseState({span: _init_block(span, like, xp=xp) for span in spans})

    def accumulate(
        self,
        state: DenseState,
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> DenseState:
        """Fold a batch's Fisher into the average; see `ngd_core.KFAC.accumulate`.

        Parameters
        ----------
        state : DenseState
            State.
        records : mapping of LayerSpec to LayerRecord
            One for every layer of each block that is to be updated.
        hyper : Hyper
            ``hyper.decay`` is used.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        DenseState
            New averages.

        Raises
        ------
        TypeError, ValueError
            As `ngd_core.factors.rows`; for a layer the state does not know, or one that is
            missing from a block of which others are given.
        """
        known = {spec: None for span in state.blocks for spec in span}
        _checks.same_layers("records", records, known)
        like = next(iter(state.blocks.values())).fisher
        xp = record_namespace(xp, records, like)
        blocks = dict(state.blocks)
        for span, block in state.blocks.items():
            missing = [spec.name for spec in span if spec not in records]
            if len(missing) == len(span):
                continue
            if missing:
                msg = f"records lack the layers {missing}, which share a dense block with others."
                raise ValueError(msg)
            blocks[span] = _accumulate_block(span, block, records, hyper, xp=xp)
        return DenseState(blocks)

    def refresh(
        self, state: DenseState, hyper: Hyper, *, xp: Namespace | None = None
    ) -> tuple[DenseState, dict[LayerSpec, Info]]:
        """Damp and invert the averages; see `ngd_core.KFAC.refresh`.

        Parameters
        ----------
        state : DenseState
            State.
        hyper : Hyper
            ``hyper.damping`` is used: ``lambda``, added to the Fisher of the mean loss.
        xp : namespace, optional
            Array namespace; found from the state if not given.

        Returns
        -------
        state : DenseState
            With new inverses.
        info : dict of LayerSpec to Info
            Codes; measures ``rejected`` and ``weight``. Layers of one block share theirs.

        Raises
        ------
        ValueError
            For a negative Python damping; if `solve_dtype` is not to be had.
        """
        _checks.nonnegative(damping=hyper.damping)
        xp = _checks.common_namespace(xp, state=next(iter(state.blocks.values())).fisher)
        blocks: dict[tuple[LayerSpec, ...], DenseBlock] = {}
        infos: dict[LayerSpec, Info] = {}
        for span, block in state.blocks.items():
            nan = _xp.full((), float("nan"), like=block.fisher, xp=xp)
            fisher = xp.where(block.weight > 0, block.fisher, nan)
            inverse, good, code = damped_inverse(
                fisher,
                hyper.damping,
                block.inverse,
                block.good,
                dtype=self.solve_dtype,
                ops=self.ops,
                xp=xp,
            )
            blocks[span] = block._replace(inverse=inverse, good=good)
            measures = {
                "rejected": _xp.astype(block.rejected, block.fisher.dtype, xp=xp),
                "weight": block.weight,
            }
            infos |= dict.fromkeys(span, Info(code, measures))
        return DenseState(blocks), infos

    def direction(
        self,
        state: DenseState,
        grads: Mapping[LayerSpec, Array],
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> tuple[dict[LayerSpec, Array], dict[LayerSpec, Info]]:
        """Preconditioned gradients; see `ngd_core.KFAC.direction`.

        Parameters
        ----------
        state : DenseState
            State.
        grads : mapping of LayerSpec to array, shape spec.block_shape
            Gradients of the mean loss, for every layer of the state.
        records : mapping
            Not used.
        hyper : Hyper
            Not used: the damping is the one of the last refresh.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        directions : dict of LayerSpec to array
            ``(F + lambda I)^-1 grad`` in the gradients' dtype.
        info : dict of LayerSpec to Info
            As `ngd_core.KFAC.direction`.

        Raises
        ------
        TypeError, ValueError
            For integer or mixed arrays, wrong shapes, or layers other than the state's.
        """
        known = {spec: None for span in state.blocks for spec in span}
        _checks.same_layers("grads", grads, known)
        _checks.same_layers("the state", known, grads)
        xp = check_grads(xp, grads, next(iter(state.blocks.values())).fisher)
        directions, infos = {}, {}
        for span, block in state.blocks.items():
            parts = [xp.reshape(grads[spec], (-1,)) for spec in span]
            vector = _xp.astype(xp.concat(parts), block.fisher.dtype, xp=xp)
            u = (block.inverse @ vector[:, None])[:, 0]
            codes = [_xp.full((), c, like=block.rejected, xp=xp) for c in (OK, IDENTITY)]
            code = xp.where(block.good, *codes)
            start = 0
            for spec, part in zip(span, parts, strict=True):
                piece = xp.reshape(u[start : start + part.shape[0]], spec.block_shape)
                start += part.shape[0]
                directions[spec], infos[spec] = guarded(piece, grads[spec], code, xp=xp)
        return directions, infos


def _size(span: tuple[LayerSpec, ...]) -> int:
    return sum(math.prod(spec.block_shape) for spec in span)


def _init_block(span: tuple[LayerSpec, ...], like: Array, *, xp: Namespace) -> DenseBlock:
    p = _size(span)
    return DenseBlock(
        fisher=_xp.zeros((p, p), like=like, xp=xp),
        weight=_xp.zeros((), like=like, xp=xp),
        rejected=_xp.zeros((), like=like, dtype=xp.int32, xp=xp),
        inverse=_xp.eye(p, like=like, xp=xp),
        good=_xp.zeros((), like=like, dtype=xp.bool, xp=xp),
    )


def _accumulate_block(
    span: tuple[LayerSpec, ...],
    block: DenseBlock,
    records: Mapping[LayerSpec, LayerRecord],
    hyper: Hyper,
    *,
    xp: Namespace,
) -> DenseBlock:
    check_batch({spec: records[spec] for spec in span}, xp=xp)
    gradients = []
    for spec in span:
        u = per_example_gradients(spec, records[spec], dtype=block.fisher.dtype, xp=xp)
        gradients.append(xp.reshape(u, (*u.shape[:2], -1)))
    u = xp.concat(gradients, axis=-1)
    u = xp.reshape(u, (u.shape[0] * u.shape[1], -1))
    count = records[span[0]].a.shape[0]
    batch = second_moment(u, count, xp=xp)
    new: DenseBlock
    new, _ = folded(block, {"fisher": batch}, count * hyper.share, hyper.decay, xp=xp)
    return new
