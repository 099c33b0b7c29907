"""K-FAC for dense layers and KFC for convolutions, and what belongs beside them in a network.

Sources: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate
Curvature" (2015); Grosse and Martens, "A Kronecker-factored approximate Fisher matrix for
convolution layers" (2016); weight sharing after Eschenhagen et al. (2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.factors import factor_shapes, kronecker_factors
from ngd_core.inversion import (
    PURE,
    ExactInverse,
    Ops,
    PiInverse,
    apply_inverse,
    identity_inverse,
    refresh_inverse,
)
from ngd_core.methods import _gradient_factors
from ngd_core.methods._batched import batched
from ngd_core.methods._common import check_grads, check_specs, folded, guarded, record_namespace
from ngd_core.types import IDENTITY, KINDS, OK, Hyper, Info, LayerRecord, LayerSpec

__all__ = ["KFAC", "KFACLayer", "KFACState"]


class KFACLayer(NamedTuple):
    """State of one layer.

    Parameters
    ----------
    a : array, shape (*stack, columns, columns) or (columns,)
        Averaged input factor A; a vector, its diagonal, for an embedding.
    g : array, shape (*stack, rows, rows)
        Averaged output-gradient factor G.
    weight : array, shape ()
        Examples in the averages, older ones discounted.
    rejected : array of int32, shape ()
        Batches refused because a factor was not finite.
    inverse : PiInverse or ExactInverse
        What `KFAC.direction` applies.
    """

    a: Array
    g: Array
    weight: Array
    rejected: Array
    inverse: PiInverse | ExactInverse


class KFACState(NamedTuple):
    """State of all layers.

    Parameters
    ----------
    layers : dict of LayerSpec to KFACLayer
        One entry a layer.
    """

    layers: dict[LayerSpec, KFACLayer]


@dataclass(frozen=True)
class KFAC:
    """Kronecker-factored approximate curvature, layer by layer.

    The Fisher of a layer's block ``[W b]`` is taken as ``G (x) A`` (row-major), the direction is
    ``(G (x) A + lambda I)^-1 grad``, with ``lambda`` in the units of the mean loss' Fisher.

    Parameters
    ----------
    damping_split : "pi" or "exact"
        "pi": each factor damped by its share of ``sqrt(lambda)`` (the papers' factored Tikhonov
        with the trace norm), two Cholesky inverses a layer. "exact": ``lambda`` added to the
        product's eigenvalues, two eigendecompositions a layer. A scale always has the exact
        damping, which costs nothing there: its G is 1.
    solve_dtype : "float32", "float64" or None
        Dtype of factorisations. None: that of the factor where its damping allows it and `ops` can
        choose at once (`ngd_core.inversion.damped_inverse`), otherwise and for the "exact" split
        float64 where the library has it. Factors and inverses stay in the parameters' dtype, at
        least float32; directions have the gradients' dtype.
    ops : Ops
        Replaceable operations; `ngd_core.inversion.EAGER` saves the fallbacks' cost where arrays
        are computed at once on the host.
    factored_gradient : bool
        Whether a dense layer's direction is made from the rows of its record, where `direction` is
        given one whose product is the gradient: ``(G^-1 g^T) (a A^-1) / N``, the same up to
        rounding, at less cost as `factors_gradient` counts. A product with one vector tells whether
        it is: what adds less to the gradient than rounding its sums may (some 1e-5 of it in
        float32) is not seen and not in the direction, so give no records if you add anything. `ops`
        should be `EAGER` or faster, as `PURE` computes both ways. With the split "pi" alone.

    Raises
    ------
    ValueError
        For an unknown option, or `factored_gradient` with the split "exact".

    Notes
    -----
    Without damping the block is the exact Fisher's for one example without shared positions, and
    for deep linear networks with square loss: with shared positions by "expand" if the loss is
    taken at every position and nothing mixes positions behind the layer, by "reduce" if they are
    pooled behind maps that treat all of them alike (tests/core/test_exactness.py, both ways).
    For zero-padded convolutions the invariance to affine reparametrisation needs maps without a
    shift, or valid padding: this qualifier is ours [derived and measured], not the paper's.

    Embeddings keep a diagonal input factor, scales the exact Fisher of each feature
    (`ngd_core.factors.kronecker`) [derived here]. A token that was never seen has the frequency 0
    and is damped alone.

    Where T, the number of positions, enters is a choice that cancels in the product; here it is
    in G (`ngd_core.factors.kronecker`), so the papers' separate scalar T is not kept.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Hyper, LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> method, hyper = KFAC(), Hyper(damping=0.0)
    >>> state = method.init([fc], like=np.zeros(()))
    >>> record = LayerRecord(a=np.asarray([[2.0, 0.0], [0.0, 1.0]]), g=np.ones((2, 1)))
    >>> state = method.accumulate(state, {fc: record}, hyper)
    >>> state, info = method.refresh(state, hyper)
    >>> u, _ = method.direction(state, {fc: np.ones((1, 2))}, {}, hyper)
    >>> u[fc].round(6)
    array([[0.5, 2. ]])
    """

    kinds: ClassVar[tuple[str, ...]] = KINDS

    damping_split: Literal["pi", "exact"] = "pi"
    solve_dtype: Literal["float32", "float64"] | None = None
    ops: Ops = PURE
    factored_gradient: bool = False

    def __post_init__(self) -> None:
        _checks.one_of("damping_split", self.damping_split, ("pi", "exact"))
        _checks.one_of("solve_dtype", self.solve_dtype, ("float32", "float64", None))
        if self.factored_gradient and self.damping_split != "pi":
            msg = (
                f"factored_gradient is True with damping_split={self.damping_split!r}, whose "
                "inverse is no product of two; use 'pi', or leave factored_gradient out."
            )
            raise ValueError(msg)

    def init(
        self, specs: Iterable[LayerSpec], like: Array, *, xp: Namespace | None = None
    ) -> KFACState:
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
        KFACState
            Zero factors of zero weight and identity inverses: directions are plain gradients
            until the first `refresh` after statistics.

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
        return KFACState({spec: self._init_layer(spec, like, xp=xp) for spec in check_specs(specs)})

    def _init_layer(self, spec: LayerSpec, like: Array, *, xp: Namespace) -> KFACLayer:
        a, g = factor_shapes(spec)
        return KFACLayer(
            a=_xp.zeros(a, like=like, xp=xp),
            g=_xp.zeros(g, like=like, xp=xp),
            weight=_xp.zeros((), like=like, xp=xp),
            rejected=_xp.zeros((), like=like, dtype=xp.int32, xp=xp),
            inverse=identity_inverse(
                "exact" if spec.kind == "scale" else self.damping_split,
                spec.stack,
                spec.columns,
                spec.rows,
                diagonal=len(a) < len(g),
                like=like,
                xp=xp,
            ),
        )

    def accumulate(
        self,
        state: KFACState,
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> KFACState:
        """Fold a batch's factors into the averages.

        Parameters
        ----------
        state : KFACState
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
        KFACState
            New averages. A layer whose factor is not finite in the state's dtype (to which records
            are cast) keeps its old ones and counts that.

        Raises
        ------
        TypeError, ValueError
            As `ngd_core.factors.rows`; for a layer the state does not know; for a Python decay
            outside [0, 1].
        """
        _checks.same_layers("records", records, state.layers)
        like = next(iter(state.layers.values())).a
        xp = record_namespace(xp, records, like)
        layers = dict(state.layers)
        for spec, record in records.items():
            layers[spec] = self._accumulate_layer(spec, layers[spec], record, hyper, xp=xp)
        return KFACState(layers)

    def _accumulate_layer(
        self,
        spec: LayerSpec,
        layer: KFACLayer,
        record: LayerRecord,
        hyper: Hyper,
        *,
        xp: Namespace,
    ) -> KFACLayer:
        A, G = kronecker_factors(spec, record, dtype=layer.a.dtype, xp=xp)
        count = record.a.shape[0] * hyper.share
        new: KFACLayer
        new, _ = folded(layer, {"a": A, "g": G}, count, hyper.decay, ops=self.ops, xp=xp)
        return new

    def refresh(
        self, state: KFACState, hyper: Hyper, *, xp: Namespace | None = None
    ) -> tuple[KFACState, dict[LayerSpec, Info]]:
        """Damp and factorise the averages, those of layers with equal shapes in one call.

        Parameters
        ----------
        state : KFACState
            State.
        hyper : Hyper
            ``hyper.damping`` is used: ``lambda``, added to the Fisher of the mean loss (a
            quadratic penalty's coefficient included, if the loss has one).
        xp : namespace, optional
            Array namespace; found from the state if not given.

        Returns
        -------
        state : KFACState
            With new inverses; `direction` keeps to this damping until the next refresh.
        info : dict of LayerSpec to Info
            Codes; measures ``rejected`` (batches refused so far) and ``weight`` (examples in the
            averages).

        Raises
        ------
        ValueError
            For a negative Python damping; if `solve_dtype` is not to be had.
        """
        _checks.nonnegative(damping=hyper.damping)
        xp = _checks.common_namespace(xp, state=next(iter(state.layers.values())).a)

        def refreshed(inverse: Any, a: Array, g: Array, damping: Array) -> Any:
            return refresh_inverse(
                inverse, a, g, damping, dtype=self.solve_dtype, ops=self.ops, xp=xp
            )

        arguments = {}
        for spec, layer in state.layers.items():
            damping = _damping(spec, layer, hyper.damping, xp=xp)
            arguments[spec] = layer.inverse, layer.a, layer.g, damping
        layers, infos = {}, {}
        for spec, (inverse, code) in batched(refreshed, arguments, xp=xp).items():
            layer = state.layers[spec]
            layers[spec] = layer._replace(inverse=inverse)
            measures = {
                "rejected": _xp.astype(layer.rejected, layer.a.dtype, xp=xp),
                "weight": layer.weight,
            }
            infos[spec] = Info(xp.max(code), measures)
        return KFACState(layers), infos

    def direction(
        self,
        state: KFACState,
        grads: Mapping[LayerSpec, Array],
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> tuple[dict[LayerSpec, Array], dict[LayerSpec, Info]]:
        """Preconditioned gradients with the inverses of the last refresh.

        Parameters
        ----------
        state : KFACState
            State.
        grads : mapping of LayerSpec to array, shape spec.block_shape
            Gradients of the mean loss, blocks ``[W b]``. Layers may be missing.
        records : mapping of LayerSpec to LayerRecord
            Used with `factored_gradient` alone: inputs and output gradients of the very pass that
            gave `grads`, of some layers or none. Those whose product is not the gradient, which is
            looked at, are left aside.
        hyper : Hyper
            Not used: the damping is the one of the last refresh.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        directions : dict of LayerSpec to array
            ``(F + lambda I)^-1 grad`` in the gradients' dtype; subtract it, times a step size.
        info : dict of LayerSpec to Info
            Code 4 while the inverse is the identity, 5 and a zero direction if the gradient, its
            direction in the gradient's dtype or their product is not finite; the measure
            ``inner`` is that product ``<direction, gradient>``. With `factored_gradient` also the
            measure ``factored``, 1 where the direction was made from the record, otherwise 0.

        Raises
        ------
        TypeError, ValueError
            For integer or mixed arrays, wrong shapes, or a layer the state does not know.
        """
        _checks.same_layers("grads", grads, state.layers)
        xp = check_grads(xp, grads, next(iter(state.layers.values())).a)
        directions, infos = {}, {}
        for spec, grad in grads.items():
            layer = state.layers[spec]
            good = layer.inverse.good
            u, factored = self._applied(spec, layer, grad, records.get(spec), xp=xp)
            codes = [_xp.full(good.shape, c, like=layer.rejected, xp=xp) for c in (OK, IDENTITY)]
            code = self.ops.select(good, *codes, xp=xp)
            directions[spec], info = guarded(u, grad, code, ops=self.ops, xp=xp)
            infos[spec] = info._replace(measures=info.measures | factored)
        return directions, infos

    def _applied(
        self,
        spec: LayerSpec,
        layer: KFACLayer,
        grad: Array,
        record: LayerRecord | None,
        *,
        xp: Namespace,
    ) -> tuple[Array, dict[str, Array]]:
        """Direction, and with `factored_gradient` how it was made."""
        inverse = layer.inverse
        v = _xp.astype(grad, layer.a.dtype, xp=xp)
        if not self.factored_gradient:
            return apply_inverse(inverse, v, xp=xp)[0], {}
        if (
            record is None
            or not isinstance(inverse, PiInverse)
            or not _gradient_factors.usable(spec, record, grad, layer.a)
        ):
            u, _ = apply_inverse(inverse, v, xp=xp)
            return u, {"factored": _xp.zeros((), like=layer.a, xp=xp)}
        factored = _gradient_factors.is_product(spec, record, v, xp=xp)
        (u,) = self.ops.cond(
            factored,
            lambda: (_gradient_factors.applied(spec, inverse.g, inverse.a, record, v, xp=xp),),
            lambda: (apply_inverse(inverse, v, xp=xp)[0],),
            xp=xp,
        )
        return u, {"factored": _xp.astype(factored, layer.a.dtype, xp=xp)}

    def factors_gradient(self, spec: LayerSpec, rows: int) -> bool:
        """Tell whether a direction is made from so many rows of a record, by what both ways cost.

        Parameters
        ----------
        spec : LayerSpec
            Layer.
        rows : int
            R: examples times positions of a batch.

        Returns
        -------
        bool
            With `factored_gradient`, for a dense layer of o outputs and d inputs, the bias counted:
            ``R (o^2 + d^2 + o d) < o d (o + d)``, up to what the bias adds.

        Examples
        --------
        >>> from ngd_core import KFAC, LayerSpec
        >>> method, spec = KFAC(factored_gradient=True), LayerSpec("fc", "dense", 784, 512)
        >>> method.factors_gradient(spec, 256), method.factors_gradient(spec, 1024)
        (True, False)
        """
        return self.factored_gradient and _gradient_factors.rows_pay(spec, rows)


def _damping(spec: LayerSpec, layer: KFACLayer, damping: Scalar, *, xp: Namespace) -> Array:
    """Damping of each block, NaN as long as there are no statistics, so that nothing is taken."""
    nan = _xp.full(spec.stack, float("nan"), like=layer.a, xp=xp)
    return xp.where(layer.weight > 0, _xp.scalar(damping, like=layer.a, xp=xp), nan)
