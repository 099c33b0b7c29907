"""SNGD: structured natural gradient descent, by local Fisher matrices.

Sources: arXiv 2109.10100 (2021) and 2412.07441 (2024), of which abstracts and figures were to be
had, and the authors' published code, which decides where they are silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from ngd_core import _checks, _xp, reconstruction
from ngd_core._typing import Array, Namespace, Scalar
from ngd_core.factors import linear_fisher, relu_fisher
from ngd_core.inversion import PURE, Ops, damped_inverse, mean_diagonal
from ngd_core.inversion.roots import RootKind, check_root
from ngd_core.methods._batched import batched
from ngd_core.methods._common import (
    check_grads,
    check_specs,
    guarded,
    record_namespace,
    refuse_kinds,
)
from ngd_core.methods.sngd_state import (
    LocalInverse,
    SNGDLayer,
    SNGDState,
    current_fisher,
    fold,
    init_layer,
)
from ngd_core.reconstruction import LocalFisherLayer, map_rows
from ngd_core.types import IDENTITY, OK, Hyper, Info, LayerRecord, LayerSpec

__all__ = ["LocalInverse", "SNGD", "SNGDLayer", "SNGDState"]


@dataclass(frozen=True)
class SNGD:
    """Natural gradient in the metric of local Fisher matrices, ``grad (G + eps I)^-1``.

    G is the second moment of a layer's inputs (`ngd_core.factors.linear_fisher`) or, under the
    ReLU metric, of its inputs weighted for each output (`ngd_core.factors.relu_fisher`). No loss
    enters, so this is K-FAC with the output factor replaced by the identity, or uncentred
    whitening of inputs; the curvature of the layers above is left out, and the step sizes of
    layers may be badly matched.

    Parameters
    ----------
    metric : "linear" or "relu"
        One matrix a layer; or one for each output, which takes ``rows`` times the memory and
        time and records with z. It is meant for layers followed by a ReLU.
    mode : "direct" or "literal"
        "direct": directions for the weights. "literal": the parameters that are trained are
        coordinates ``w'`` of `ngd_core.reconstruction`; directions are for them, `weights` gives
        the network its weights, and `reproject` carries coordinates and momentum over each
        refresh. Both make the same steps, with and without heavy-ball momentum.
    root : "eigh", "denman-beavers", "newton-schulz" or "nystrom"
        How ``(G + eps I)^(1/2)`` is computed. Direct mode needs none with "eigh", and inverts by
        Cholesky; with the others it applies the inverse root twice. "nystrom" replaces G by its
        approximation of rank `rank`: it is a different metric, in both modes.
    damping_mode : "relative", "absolute" or "trace"
        ``eps`` is ``hyper.damping`` times the mean eigenvalue ``tr G / columns``; itself; or
        times ``tr G``, as in the authors' code, where its strength grows with the layer's width.
        1e-2 is a good start for "relative", also of the matrices of single outputs.
    start : "corrected" or "identity"
        Average of the batches alone, the first one taken as it is; or the authors' moving average
        from ``G_0 = I``, by which G is close to I for about ``1 / (1 - decay)`` batches.
    linear_layers : tuple of str
        Names of layers that take the linear metric all the same.
    steps : int, optional
        Of the iterative roots; see `ngd_core.inversion.condition_bound`.
    rank : int, optional
        Of "nystrom".
    solve_dtype : "float32", "float64" or None
        Dtype of factorisations; as for `KFAC`. Of roots, None means float64 where there is one.
    ops : Ops
        Replaceable operations.

    Raises
    ------
    ValueError
        For an unknown option, or ones that contradict each other.

    Notes
    -----
    Where the notes of the method retry with tenfold damping, the damping is raised beforehand to
    what is safe; what is not usable then leaves the last good inverse, or the identity, for the
    layer or the output alone.

    An output whose units are all but dead has a tiny ``G_j``, and with it, under "relative" and
    "trace", a tiny ``eps``: its gain is large if it wakes before the next refresh. The remedy is
    "absolute".

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Hyper, LayerRecord, LayerSpec
    >>> fc = LayerSpec("fc", "dense", 2, 1, bias=False)
    >>> method, hyper = SNGD(damping_mode="absolute"), Hyper(damping=1.0)
    >>> state = method.init([fc], like=np.zeros(()))
    >>> record = LayerRecord(a=np.asarray([[2.0, 0.0], [0.0, 4.0]]), g=np.ones((2, 1)))
    >>> state = method.accumulate(state, {fc: record}, hyper)
    >>> state, info = method.refresh(state, hyper)
    >>> u, _ = method.direction(state, {fc: np.ones((1, 2))}, {}, hyper)
    >>> u[fc].round(6)
    array([[0.333333, 0.111111]])
    """

    kinds: ClassVar[tuple[str, ...]] = ("dense", "conv2d")

    metric: Literal["linear", "relu"] = "linear"
    mode: Literal["direct", "literal"] = "direct"
    root: RootKind = "eigh"
    damping_mode: Literal["relative", "absolute", "trace"] = "relative"
    start: Literal["corrected", "identity"] = "corrected"
    linear_layers: tuple[str, ...] = ()
    steps: int | None = None
    rank: int | None = None
    solve_dtype: Literal["float32", "float64"] | None = None
    ops: Ops = PURE

    def __post_init__(self) -> None:
        _checks.one_of("metric", self.metric, ("linear", "relu"))
        _checks.one_of("mode", self.mode, ("direct", "literal"))
        _checks.one_of("damping_mode", self.damping_mode, ("relative", "absolute", "trace"))
        _checks.one_of("start", self.start, ("corrected", "identity"))
        _checks.one_of("solve_dtype", self.solve_dtype, ("float32", "float64", None))
        check_root(self.root, self.steps, self.rank)
        if self.linear_layers and self.metric == "linear":
            msg = (
                f"linear_layers is {self.linear_layers!r}, but all layers are linear already; use "
                "metric='relu', or leave it out."
            )
            raise ValueError(msg)

    @staticmethod
    def authors(first: str, last: str) -> tuple[SNGD, Hyper]:
        """Give the settings of the authors' published code.

        The ReLU metric but for the first and last layer, ``eps = 1e-4 tr G`` for each matrix,
        and ``G <- 0.995 G + 0.005 G_batch`` from the identity.

        The rest of their recipe is the training loop's: plain steps without momentum, sizes 5e-3,
        1e-2 or 1e-1, batches of 50; ``accumulate`` after every step, with records of the
        same batch at the new weights; ``refresh`` after every hundredth step of an epoch,
        beginning with the epoch's first; a penalty of 5e-4 times the squared weights (biases
        left out) in the loss, so that its gradient is preconditioned. Not to be had here: after a
        failed inversion their code makes a second step on the same batch.

        Parameters
        ----------
        first, last : str
            Names of the first and the last layer.

        Returns
        -------
        method : SNGD
            Options.
        hyper : Hyper
            Damping and decay that go with them.

        Examples
        --------
        >>> method, hyper = SNGD.authors("fc1", "fc4")
        >>> method.linear_layers, hyper.damping, hyper.decay
        (('fc1', 'fc4'), 0.0001, 0.995)
        """
        method = SNGD(
            metric="relu", damping_mode="trace", start="identity", linear_layers=(first, last)
        )
        return method, Hyper(damping=1e-4, decay=0.995)

    def init(
        self, specs: Iterable[LayerSpec], like: Array, *, xp: Namespace | None = None
    ) -> SNGDState:
        """State before any statistics; see `ngd_core.KFAC.init`.

        Parameters
        ----------
        specs : iterable of LayerSpec
            Layers to precondition.
        like : array
            Template of dtype (at least float32 is used) and device.
        xp : namespace, optional
            Array namespace; found from `like` if not given.

        Returns
        -------
        SNGDState
            Identity inverses: directions are plain gradients, and coordinates are weights,
            until the first `refresh`.

        Raises
        ------
        TypeError
            If `like` is not a real floating array.
        ValueError
            If there is no layer, a name comes twice, `linear_layers` names an unknown one, or a
            layer is an embedding or a scale.
        """
        xp = _checks.common_namespace(xp, like=like)
        _checks.floating(xp, like=like)
        like = _xp.zeros((), like=like, dtype=_xp.working(like.dtype, xp=xp), xp=xp)
        specs = check_specs(specs)
        refuse_kinds(specs, self.kinds, "for which SNGD has no local Fisher layer")
        names = [spec.name for spec in specs]
        for name in self.linear_layers:
            _checks.one_of("linear_layers", name, names)
        prior = 1.0 if self.start == "identity" else 0.0
        return SNGDState(
            {
                spec: init_layer(spec, self._one_each(spec), self._roots, prior, like=like, xp=xp)
                for spec in specs
            }
        )

    def _one_each(self, spec: LayerSpec) -> bool:
        """Tell whether every output of the layer has a matrix of its own."""
        return self.metric == "relu" and spec.name not in self.linear_layers

    @property
    def _roots(self) -> bool:
        """Tell whether the state holds roots rather than an inverse."""
        return self.mode == "literal" or self.root != "eigh"

    def accumulate(
        self,
        state: SNGDState,
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> SNGDState:
        """Fold a batch's local Fisher matrices into the averages; see `ngd_core.KFAC.accumulate`.

        Parameters
        ----------
        state : SNGDState
            State.
        records : mapping of LayerSpec to LayerRecord
            Inputs, and outputs z for the ReLU metric; of g only the shape is looked at. Layers
            may be missing: their averages stay.
        hyper : Hyper
            ``hyper.decay`` is used; 1 for every micro-batch of a step after its first.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        SNGDState
            New averages. A layer whose matrix is not finite keeps its old one and counts that.

        Raises
        ------
        TypeError, ValueError
            As `ngd_core.factors.linear_fisher` and `relu_fisher`; for a layer the state does not
            know; for a Python decay outside [0, 1].
        """
        _checks.same_layers("records", records, state.layers)
        like = next(iter(state.layers.values())).fisher
        xp = record_namespace(xp, records, like)
        layers = dict(state.layers)
        for spec, record in records.items():
            local = relu_fisher if self._one_each(spec) else linear_fisher
            batch = local(spec, record, xp=xp)
            count = record.a.shape[0] * hyper.share
            layers[spec] = fold(layers[spec], batch, count, hyper, ops=self.ops, xp=xp)
        return SNGDState(layers)

    def refresh(
        self, state: SNGDState, hyper: Hyper, *, xp: Namespace | None = None
    ) -> tuple[SNGDState, dict[LayerSpec, Info]]:
        """Damp and invert the averages, or take their roots; see `ngd_core.KFAC.refresh`.

        Parameters
        ----------
        state : SNGDState
            State. In literal mode keep it until `reproject` was called.
        hyper : Hyper
            ``hyper.damping`` is used, in the units of `damping_mode`.
        xp : namespace, optional
            Array namespace; found from the state if not given.

        Returns
        -------
        state : SNGDState
            With new inverses or roots.
        info : dict of LayerSpec to Info
            Codes, the worst of a layer's matrices; measures ``rejected``, ``weight`` and
            ``damping`` (``eps``, the largest of a layer's matrices).

        Raises
        ------
        ValueError
            For a negative Python damping; if `solve_dtype` is not to be had.
        """
        _checks.nonnegative(damping=hyper.damping)
        xp = _checks.common_namespace(xp, state=next(iter(state.layers.values())).fisher)
        arguments = {}
        for spec, layer in state.layers.items():
            fisher = current_fisher(layer, xp=xp)
            arguments[spec] = layer.inverse, fisher, self._eps(fisher, hyper.damping, xp=xp)
        layers, infos = {}, {}
        invert = partial(self._invert, xp=xp)
        for spec, (inverse, code) in batched(invert, arguments, xp=xp).items():
            layer, (_, fisher, eps) = state.layers[spec], arguments[spec]
            layers[spec] = layer._replace(inverse=inverse)
            measures = {
                "rejected": _xp.astype(layer.rejected, fisher.dtype, xp=xp),
                "weight": layer.weight,
                "damping": xp.max(eps),
            }
            infos[spec] = Info(xp.max(code), measures)
        return SNGDState(layers), infos

    def _eps(self, fisher: Array, damping: Scalar, *, xp: Namespace) -> Array:
        """``eps`` of every matrix, 0 for one that is not finite."""
        mean = mean_diagonal(fisher, xp=xp)
        unit = {"relative": mean, "absolute": 1 + 0 * mean, "trace": fisher.shape[-1] * mean}
        eps = _xp.scalar(damping, like=fisher, xp=xp) * unit[self.damping_mode]
        return xp.where(xp.isfinite(mean), eps, _xp.zeros((), like=eps, xp=xp))

    def _invert(
        self, old: LocalInverse | LocalFisherLayer, fisher: Array, eps: Array, *, xp: Namespace
    ) -> tuple[LocalInverse | LocalFisherLayer, Array]:
        if isinstance(old, LocalFisherLayer):
            return reconstruction.refresh_layer(
                old,
                fisher,
                eps,
                root=self.root,
                steps=self.steps,
                rank=self.rank,
                dtype=self.solve_dtype,
                ops=self.ops,
                xp=xp,
            )
        matrix, good, code = damped_inverse(
            fisher, eps, old.matrix, old.good, dtype=self.solve_dtype, ops=self.ops, xp=xp
        )
        return LocalInverse(matrix, good), code

    def direction(
        self,
        state: SNGDState,
        grads: Mapping[LayerSpec, Array],
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> tuple[dict[LayerSpec, Array], dict[LayerSpec, Info]]:
        """Preconditioned gradients; see `ngd_core.KFAC.direction`.

        Parameters
        ----------
        state : SNGDState
            State.
        grads : mapping of LayerSpec to array, shape spec.block_shape
            Gradients of the mean loss at the *weights*, in both modes. Layers may be missing.
        records : mapping
            Not used.
        hyper : Hyper
            Not used: the damping is the one of the last refresh.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        directions : dict of LayerSpec to array
            ``grad (G + eps I)^-1``, to be subtracted from weights; in literal mode
            ``grad (G + eps I)^(-1/2)``, the gradient at the coordinates, for these.
        info : dict of LayerSpec to Info
            As `ngd_core.KFAC.direction`; ``inner`` is ``<grad (G + eps I)^-1, grad>`` in both
            modes.

        Raises
        ------
        TypeError, ValueError
            For integer or mixed arrays, wrong shapes, or a layer the state does not know.
        """
        _checks.same_layers("grads", grads, state.layers)
        xp = check_grads(xp, grads, next(iter(state.layers.values())).fisher)
        directions, infos = {}, {}
        for spec, grad in grads.items():
            layer = state.layers[spec]
            inverse = layer.inverse
            u = _xp.astype(grad, layer.fisher.dtype, xp=xp)
            if isinstance(inverse, LocalInverse):
                u = map_rows(u, inverse.matrix, xp=xp)
            else:
                u = reconstruction.pull_back(inverse, u, xp=xp)
                if self.mode == "direct":
                    u = reconstruction.weights(inverse, u, xp=xp)
            codes = [_xp.full((), c, like=layer.rejected, xp=xp) for c in (OK, IDENTITY)]
            u, info = guarded(u, grad, xp.where(inverse.good, *codes), ops=self.ops, xp=xp)
            if self.mode == "literal":
                own = _xp.astype(u, layer.fisher.dtype, xp=xp)
                info = Info(info.code, {"inner": xp.sum(own * own)})
            directions[spec], infos[spec] = u, info
        return directions, infos

    def weights(
        self,
        state: SNGDState,
        coordinates: Mapping[LayerSpec, Array],
        *,
        xp: Namespace | None = None,
    ) -> dict[LayerSpec, Array]:
        """Weights ``w' R^-1`` of given coordinates, which the network computes with."""
        return self._mapped(reconstruction.weights, (state,), coordinates, xp)

    def coordinates(
        self, state: SNGDState, weights: Mapping[LayerSpec, Array], *, xp: Namespace | None = None
    ) -> dict[LayerSpec, Array]:
        """Coordinates ``w R`` of given weights; the weights themselves before any refresh."""
        return self._mapped(reconstruction.coordinates, (state,), weights, xp)

    def reproject(
        self,
        old: SNGDState,
        new: SNGDState,
        coordinates: Mapping[LayerSpec, Array],
        *,
        xp: Namespace | None = None,
    ) -> dict[LayerSpec, Array]:
        """Coordinates, or momentum beside them, from before a `refresh` to after it."""
        return self._mapped(reconstruction.reproject, (old, new), coordinates, xp)

    def _mapped(
        self,
        f: Callable[..., Array],
        states: tuple[SNGDState, ...],
        blocks: Mapping[LayerSpec, Array],
        xp: Namespace | None,
    ) -> dict[LayerSpec, Array]:
        if self.mode == "direct":
            msg = (
                "SNGD has mode='direct', which trains the weights themselves and has no "
                "coordinates; use mode='literal'."
            )
            raise ValueError(msg)
        _checks.same_layers("blocks", blocks, states[0].layers)
        like = next(iter(states[0].layers.values())).fisher
        xp = check_grads(xp, blocks, like)
        mapped = {}
        for spec, block in blocks.items():
            maps = (state.layers[spec].inverse for state in states)
            own = f(*maps, _xp.astype(block, like.dtype, xp=xp), xp=xp)
            mapped[spec] = _xp.astype(own, block.dtype, xp=xp)
        return mapped
