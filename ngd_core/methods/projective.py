"""Projective K-FAC: Kronecker factors inverted within a basis, by recursion where that pays.

Kaul and Lall, "Projective Fisher Information for Natural Gradient Descent" (2023). The paper's text
could not be had. What is here is a reconstruction from the first author's published code: bases
from eigenvectors or Gaussian noise, the lifted inverse without a complement, and the recursion are
theirs; the complement, the change of basis, the damping, the account of what the recursion forgets
and everything done about failures are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.inversion import PURE, Ops, orthonormal_basis, recursion_pays
from ngd_core.methods._basis_noise import BasisNoise, Shapes, Side, check_noise, noise_shapes
from ngd_core.methods._common import check_grads, check_specs, record_namespace, refuse_kinds
from ngd_core.methods._projected_factor import Factor, ProjectedFactor, init_factor
from ngd_core.methods._projective_layer import (
    ProjectiveLayer,
    accumulate_layer,
    direct_layer,
    refresh_layer,
)
from ngd_core.types import Hyper, Info, LayerRecord, LayerSpec

__all__ = ["BasisNoise", "ProjectiveKFAC", "ProjectiveLayer", "ProjectiveState"]

BASES = ("top", "gaussian", "range")
SIDES = ("both", "inputs")


class ProjectiveState(NamedTuple):
    """State of all layers.

    Parameters
    ----------
    layers : dict of LayerSpec to ProjectiveLayer
        One entry a layer.
    """

    layers: dict[LayerSpec, ProjectiveLayer]


@dataclass(frozen=True)
class ProjectiveKFAC:
    """K-FAC with factors compressed to a basis and inverses that may follow every batch.

    A factor M of order d becomes ``C = P^T M P`` of order r, its inverse
    ``P (C + delta I)^-1 P^T + c (I - P P^T)``, with K-FAC's factored damping ``delta``: pi from
    the traces of the whole factors, each divided by its order. A factor of order r = d, or below
    `min_size`, is not projected; with none projected the method is `KFAC` with its "pi" split.

    Parameters
    ----------
    rank : int or float
        Columns r of every basis: an integer, or a fraction in (0, 1] of the order of each factor,
        rounded down. 1 is one column, 1.0 all of them.
    basis : "top", "gaussian" or "range"
        "top": dominant eigenvectors of the averaged factor, one eigendecomposition of order d a
        refresh. "range": a randomised range finder on the averaged factor, O(d^2 r), which goes
        on from the basis it has. "gaussian": a random subspace; no matrix of order d is ever made
        or kept, but the basis knows nothing of the data. The last two need noise in `init`.
    complement : bool
        True: ``c = 1 / (delta + tau)``, with tau the factor's mean eigenvalue outside the basis.
        False: c = 0, so parameters outside the bases do not move (the authors' code); the
        direction is then the natural gradient within the bases.
    recursive : bool or "auto"
        Whether inverses follow each batch between refreshes, by
        `ngd_core.inversion.recursive_update`. "auto": those of projected factors, for batches of
        up to about r / 3 samples (`ngd_core.inversion.recursion_pays`). True: those of all
        factors, for batches of fewer samples than the inverse has rows. Otherwise, and where
        False, an inverse stays as the last refresh made it. A sample is a row of a factor: each
        position of each example for ``sharing="expand"``.
    min_size : int
        Factors of a smaller order are not projected: there is nothing to be saved.
    halt_below : float
        Share of the damping below which an inverse stops to follow; see
        `ngd_core.inversion.follow`. At a decay of 0.95 one half is left after 13 batches.
    solve_dtype : "float32", "float64" or None
        As for `KFAC`; of bases, None means float64 where the library has it.
    ops : Ops
        As for `KFAC`.
    sides : "both" or "inputs"
        Which factors of a layer are projected: both, or the input factor A alone. A loss bears a
        small basis for A far better than one for G; see Notes.

    Raises
    ------
    ValueError
        For an unknown or impossible option.

    Notes
    -----
    Properties [derived and checked]. After k batches since a refresh an inverse that followed
    them is that of ``C + delta prod(alpha) I`` for the present average C, alpha the weight each
    batch left to older ones; `direction` reports the product as ``remaining``. Splitting a batch
    into micro-batches changes nothing in it, unless one side of the split follows and the other
    is too large to. For c = 0 a direction u is the minimiser of the quadratic model within the
    bases: ``<u, grad> = u^T F u``, at most ``grad^T F^-1 grad``.

    A direction costs ``2 d r + r^2`` multiply-adds a row of a projected factor and ``d^2`` of one
    that is whole, so a basis saves from ``r < 0.41 d`` on, and at ``r = d / 2`` it costs 1.25
    times as much. On a deep autoencoder of MNIST half the eigenvectors of both factors kept
    K-FAC's curve and a quarter did not; an eighth of those of A alone did [measured].

    Cost. "top" costs as much at a refresh as K-FAC's inverses and saves in every `direction`;
    "range" and "gaussian" save in both. The recursion saves against new inverses at every batch,
    not against new inverses now and then.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Hyper, LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 3, 1, bias=False)
    >>> method, hyper = ProjectiveKFAC(rank=1, min_size=2), Hyper(damping=1.0)
    >>> state = method.init([fc], like=np.zeros(()))
    >>> record = LayerRecord(a=np.asarray([[3.0, 0.0, 0.0]]), g=np.ones((1, 1)))
    >>> state = method.accumulate(state, {fc: record}, hyper)
    >>> state, info = method.refresh(state, hyper)
    >>> u, _ = method.direction(state, {fc: np.ones((1, 3))}, {}, hyper)
    >>> u[fc].round(4)
    array([[0.0591, 0.366 , 0.366 ]])
    """

    kinds: ClassVar[tuple[str, ...]] = ("dense", "conv2d")

    rank: int | float
    basis: Literal["top", "gaussian", "range"] = "top"
    complement: bool = True
    recursive: bool | Literal["auto"] = "auto"
    min_size: int = 64
    halt_below: float = 0.5
    solve_dtype: Literal["float32", "float64"] | None = None
    ops: Ops = PURE
    sides: Literal["both", "inputs"] = "both"

    def __post_init__(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool) and self.rank >= 1
        if not whole and not (isinstance(self.rank, float) and 0 < self.rank <= 1):
            msg = f"rank is {self.rank!r}; expected an integer >= 1 or a fraction in (0, 1]."
            raise ValueError(msg)
        _checks.one_of("sides", self.sides, SIDES)
        _checks.one_of("basis", self.basis, BASES)
        _checks.one_of("complement", self.complement, (True, False))
        _checks.one_of("recursive", self.recursive, (True, False, "auto"))
        _checks.positive(min_size=self.min_size)
        _checks.unit_interval(halt_below=self.halt_below)
        _checks.one_of("solve_dtype", self.solve_dtype, ("float32", "float64", None))

    def rank_of(self, d: int, side: Side = "a") -> int:
        """Columns of the basis for a factor of order `d`; `d` itself if it is not projected."""
        if d < self.min_size or (side == "g" and self.sides == "inputs"):
            return d
        r = math.floor(self.rank * d + 1e-9) if isinstance(self.rank, float) else self.rank
        return min(max(r, 1), d)

    def noise_shapes(self, specs: Iterable[LayerSpec]) -> Shapes:
        """Shapes of the noise that `init` needs and `refresh` takes.

        Parameters
        ----------
        specs : iterable of LayerSpec
            Layers.

        Returns
        -------
        dict of LayerSpec to (shape or None, shape or None)
            For A and G of every layer; None where a factor needs none.
        """
        if self.basis == "top":
            return dict.fromkeys(specs, (None, None))
        return noise_shapes(specs, self.rank_of)

    def init(
        self,
        specs: Iterable[LayerSpec],
        like: Array,
        *,
        noise: Mapping[LayerSpec, BasisNoise] | None = None,
        xp: Namespace | None = None,
    ) -> ProjectiveState:
        """State before any statistics.

        Parameters
        ----------
        specs : iterable of LayerSpec
            Layers to precondition.
        like : array
            Template of dtype (at least float32 is used) and device, for example a parameter.
        noise : mapping of LayerSpec to BasisNoise, or None
            Draws of the shapes that `noise_shapes` gives; needed exactly where it gives any.
        xp : namespace, optional
            Array namespace; found from `like` if not given.

        Returns
        -------
        ProjectiveState
            Zero factors of zero weight and identity inverses: directions are plain gradients
            until the first `refresh` after statistics.

        Raises
        ------
        TypeError
            If `like` is not a real floating array.
        ValueError
            If there is no layer, a name comes twice, or a layer is an embedding or a scale; if
            noise is missing, not wanted, or of another shape.
        """
        xp = _checks.common_namespace(xp, like=like)
        _checks.floating(xp, like=like)
        like = _xp.zeros((), like=like, dtype=_xp.working(like.dtype, xp=xp), xp=xp)
        specs = check_specs(specs)
        refuse_kinds(specs, self.kinds, "whose factors ProjectiveKFAC cannot project or follow")
        drawn = check_noise(noise, self.noise_shapes(specs), needed=True)
        return ProjectiveState(
            {spec: self._init_layer(spec, drawn[spec], like, xp=xp) for spec in specs}
        )

    def _init_layer(
        self, spec: LayerSpec, noise: BasisNoise, like: Array, *, xp: Namespace
    ) -> ProjectiveLayer:
        def factor(d: int, side: Side, draws: Array | None) -> Factor:
            basis = None
            if draws is not None:
                basis = orthonormal_basis(_xp.astype(draws, like.dtype, xp=xp), xp=xp)
            r, compressed = self.rank_of(d, side), self.basis == "gaussian"
            return init_factor(spec.stack, d, r, basis, compressed=compressed, like=like, xp=xp)

        return ProjectiveLayer(
            a=factor(spec.columns, "a", noise.a),
            g=factor(spec.rows, "g", noise.g),
            weight=_xp.zeros((), like=like, xp=xp),
            rejected=_xp.zeros((), like=like, dtype=xp.int32, xp=xp),
        )

    def accumulate(
        self,
        state: ProjectiveState,
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> ProjectiveState:
        """Fold a batch's factors into the averages; inverses follow where `recursive` says so.

        Parameters
        ----------
        state : ProjectiveState
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
        ProjectiveState
            New averages. A layer whose factor is not finite keeps its old ones and counts that.

        Raises
        ------
        TypeError, ValueError
            As `ngd_core.factors.rows`; for a layer the state does not know; for a Python decay
            outside [0, 1].
        """
        _checks.same_layers("records", records, state.layers)
        xp = record_namespace(xp, records, _like(state))
        layers = dict(state.layers)
        for spec, record in records.items():
            layers[spec] = accumulate_layer(
                spec,
                layers[spec],
                record,
                hyper,
                follows=self._follows,
                halt_below=self.halt_below,
                dtype=self.solve_dtype,
                ops=self.ops,
                xp=xp,
            )
        return ProjectiveState(layers)

    def _follows(self, factor: Factor, m: int) -> bool:
        order = factor.inverse.matrix.shape[-1]
        if self.recursive == "auto":
            return isinstance(factor, ProjectedFactor) and recursion_pays(order, m)
        return self.recursive and m < order

    def refresh(
        self,
        state: ProjectiveState,
        hyper: Hyper,
        *,
        noise: Mapping[LayerSpec, BasisNoise] | None = None,
        rebase: bool = True,
        xp: Namespace | None = None,
    ) -> tuple[ProjectiveState, dict[LayerSpec, Info]]:
        """Choose bases, damp, and make all inverses anew.

        Parameters
        ----------
        state : ProjectiveState
            State.
        hyper : Hyper
            ``hyper.damping`` is used: ``lambda``, added to the Fisher of the mean loss (a
            quadratic penalty's coefficient included, if the loss has one).
        noise : mapping of LayerSpec to BasisNoise, or None
            New draws for any of the random bases. Without them "range" goes on from its last
            basis and "gaussian" stays.
        rebase : bool
            Whether bases may change. False keeps them, which costs O(r^3) and some products, and
            renews the damping of inverses that follow; the first refresh needs True.
        xp : namespace, optional
            Array namespace; found from the state if not given.

        Returns
        -------
        state : ProjectiveState
            With new inverses; `direction` keeps to this damping until the next refresh.
        info : dict of LayerSpec to Info
            Codes; measures ``rejected`` (batches refused so far), ``weight`` (examples in the
            averages), ``captured_a`` and ``captured_g`` (part of each factor's trace that is in
            its basis; 1 if it has none).

        Raises
        ------
        ValueError
            For a negative Python damping; if `solve_dtype` is not to be had; for noise that is
            not wanted, of another shape, or given although bases are to stay.
        """
        _checks.nonnegative(damping=hyper.damping)
        if noise and not rebase:
            msg = "noise is given, but rebase is False; leave one of them out."
            raise ValueError(msg)
        drawn = check_noise(noise, self.noise_shapes(state.layers), needed=False)
        xp = _checks.common_namespace(xp, state=_like(state))
        layers, infos = {}, {}
        for spec, layer in state.layers.items():
            layers[spec], infos[spec] = refresh_layer(
                layer,
                hyper,
                drawn[spec],
                kind=self.basis,
                rebase=rebase,
                complement=self.complement,
                dtype=self.solve_dtype,
                ops=self.ops,
                xp=xp,
            )
        return ProjectiveState(layers), infos

    def direction(
        self,
        state: ProjectiveState,
        grads: Mapping[LayerSpec, Array],
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> tuple[dict[LayerSpec, Array], dict[LayerSpec, Info]]:
        """Preconditioned gradients ``M_G^-1 grad M_A^-1`` with the inverses as they are.

        Parameters
        ----------
        state : ProjectiveState
            State.
        grads : mapping of LayerSpec to array, shape spec.block_shape
            Gradients of the mean loss, blocks ``[W b]``. Layers may be missing.
        records : mapping
            Not used.
        hyper : Hyper
            Not used: the damping is the one of the last refresh.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        directions : dict of LayerSpec to array
            In the gradients' dtype; subtract it, times a step size.
        info : dict of LayerSpec to Info
            Code 3 after a recursive update that could not be used, 4 while an inverse is the
            identity, 5 and a zero direction if the gradient, its direction or their product is not
            finite. Measures: ``inner`` is that product; ``remaining`` the least share of the
            damping that is left in an inverse, 1 where none follows.

        Raises
        ------
        TypeError, ValueError
            For integer or mixed arrays, wrong shapes, or a layer the state does not know.
        """
        _checks.same_layers("grads", grads, state.layers)
        xp = check_grads(xp, grads, _like(state))
        directions, infos = {}, {}
        for spec, grad in grads.items():
            directions[spec], infos[spec] = direct_layer(
                state.layers[spec], grad, ops=self.ops, xp=xp
            )
        return directions, infos


def _like(state: ProjectiveState) -> Array:
    return next(iter(state.layers.values())).weight
