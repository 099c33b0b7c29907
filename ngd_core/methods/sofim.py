"""SOFIM: momentum divided by its own squared norm.

Source: Sen et al., "SOFIM" (arXiv 2403.02833), as restated by code of the same group; its text was
not at hand, so neither its theorem nor its hyper-parameters are quoted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors import mean_gradient
from ngd_core.factors.average import new_share
from ngd_core.inversion.ops import PURE, Ops, all_fit
from ngd_core.methods._common import check_specs, guarded
from ngd_core.rank_one import rank_one_divisor, rank_one_solve
from ngd_core.types import IDENTITY, KINDS, OK, Hyper, Info, LayerRecord, LayerSpec

__all__ = ["SOFIM", "SOFIMState", "SOFIMTensor"]


class SOFIMTensor(NamedTuple):
    """State of one array.

    Parameters
    ----------
    moment : array
        Bias-corrected average of the gradients, the paper's ``M / (1 - beta^t)``.
    weight : array, shape ()
        Gradients in it, older ones discounted: ``(1 - beta^t) / (1 - beta)``.
    rejected : array of int32, shape ()
        Gradients refused because they were not finite.
    """

    moment: Array
    weight: Array
    rejected: Array


class SOFIMState(NamedTuple):
    """State of all arrays.

    Parameters
    ----------
    tensors : dict to SOFIMTensor
        Keyed by layers, or by whatever names the caller's arrays.
    """

    tensors: dict[Any, SOFIMTensor]


@dataclass(frozen=True)
class SOFIM:
    """Momentum over ``rho + |momentum|^2``: the inverse of a rank-one Fisher, in closed form.

    With the bias-corrected average ``M`` of the gradients and ``F = M M^T + rho I``, the step
    ``F^-1 M`` equals ``M / (rho + |M|^2)``, since M is an eigenvector of F. **The step is
    collinear with the momentum**: SOFIM is momentum SGD with one adaptive scalar rate. It never
    turns the momentum, and uses no curvature across it; F stands for ``E[g] E[g]^T``, the second
    moment of the gradients without their covariance.

    Parameters
    ----------
    rho : float or None
        Added to the diagonal of F, above 0; None: ``hyper.damping``. It has the units of a squared
        gradient norm and no good default: far from a minimum a step of size ``eta`` has the
        norm ``eta / |M|``, close to one its rate is ``eta / rho``. Code of the authors' group for
        another problem used 0.5 to 10.
    beta : float or None
        Weight kept by older gradients, in [0, 1]; None: ``hyper.decay``.
    scope : "global" or "tensor"
        Whether all arrays are one vector with one norm, as the paper has it, or each its own.
    precondition : "momentum" or "gradient"
        ``F^-1 M``, or ``F^-1 g`` with the gradient g handed to `direction`: the one choice here
        that changes a direction, dividing the gradient's part along M by ``rho + |M|^2`` and the
        rest by ``rho``.
    ops : Ops
        Replaceable operations.

    Raises
    ------
    ValueError
        For an unknown option, or a number outside its range.

    Notes
    -----
    A step's norm, ``eta |M| / (rho + |M|^2)``, is at most ``eta / (2 sqrt(rho))``, reached at
    ``|M|^2 = rho``; above that, smaller gradients make larger steps. Multiplying the loss by k
    changes nothing if ``rho`` is multiplied by ``k^2`` and ``eta`` by k, so sums in place of
    means change ``|M|^2`` by the square of the batch size.

    Where ``|gradient|^2 <= Gamma`` on the way, f is L-smooth and mu-strongly convex, ``beta = 0``
    and ``eta <= rho / L``, each step shrinks ``f - f*`` by ``1 - eta mu / (rho + Gamma)``; with
    momentum a minimum of curvature L is stable if ``eta / rho < 2 (1 + beta) / ((1 - beta) L)``
    [both derived here, not the paper's theorem].

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Hyper
    >>> method, grads = SOFIM(rho=1.0), {"w": np.asarray([3.0, 0.0]), "b": np.asarray([4.0])}
    >>> state = method.accumulate(method.init(grads), grads, Hyper())
    >>> u, _ = method.direction(state, grads, {}, Hyper())
    >>> (26 * u["w"]).round(6).tolist(), (26 * u["b"]).round(6).tolist()
    ([3.0, 0.0], [4.0])
    """

    kinds: ClassVar[tuple[str, ...]] = KINDS

    rho: float | None
    beta: float | None = 0.9
    scope: Literal["global", "tensor"] = "global"
    precondition: Literal["momentum", "gradient"] = "momentum"
    ops: Ops = PURE

    def __post_init__(self) -> None:
        _checks.one_of("scope", self.scope, ("global", "tensor"))
        _checks.one_of("precondition", self.precondition, ("momentum", "gradient"))
        if self.rho is not None:
            _checks.positive(rho=self.rho)
        if self.beta is not None:
            _checks.unit_interval(beta=self.beta)

    def init(
        self,
        specs: Iterable[LayerSpec] | Mapping[Any, Array],
        like: Array | None = None,
        *,
        xp: Namespace | None = None,
    ) -> SOFIMState:
        """State before any gradient.

        Parameters
        ----------
        specs : iterable of LayerSpec, or mapping of arrays
            Layers, or parameters under any keys: biases, embeddings and norm layers too.
        like : array or None
            Template of dtype (at least float32 is used) and device; with layers only.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        SOFIMState
            No momentum: directions are gradients until the first `accumulate`.

        Raises
        ------
        TypeError
            If an array is not real floating.
        ValueError
            If there is nothing, a layer's name comes twice, or layers come without `like`.
        """
        if not isinstance(specs, Mapping):
            specs = check_specs(specs)
            if like is None:
                msg = (
                    "like is missing; with layers it gives dtype and device, for example a weight."
                )
                raise ValueError(msg)
            shapes = {spec: (spec.block_shape, like) for spec in specs}
        else:
            if not specs:
                msg = "specs is empty; expected at least one layer or array."
                raise ValueError(msg)
            shapes = {key: (tuple(x.shape), x) for key, x in specs.items()}
        xp = _checks.common_namespace(xp, **{_name(key): x for key, (_, x) in shapes.items()})
        tensors = {}
        for key, (shape, x) in shapes.items():
            _checks.floating(xp, **{_name(key): x})
            scalar = _xp.zeros((), like=x, dtype=_xp.working(x.dtype, xp=xp), xp=xp)
            tensors[key] = SOFIMTensor(
                moment=_xp.zeros(shape, like=scalar, xp=xp),
                weight=_xp.zeros((), like=scalar, xp=xp),
                rejected=_xp.zeros((), like=scalar, dtype=xp.int32, xp=xp),
            )
        return SOFIMState(tensors)

    def accumulate(
        self,
        state: SOFIMState,
        records: Mapping[Any, Array | LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> SOFIMState:
        """Fold a batch's gradient into the momentum; once a step, before `direction`.

        Parameters
        ----------
        state : SOFIMState
            State.
        records : mapping of array or LayerRecord
            Gradients of the mean loss over the whole batch, or records of a layer, of which the
            mean gradient is taken. All of the state's for the global scope.
        hyper : Hyper
            ``hyper.decay`` is used if ``beta`` is None.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        SOFIMState
            New averages. A gradient that is not finite is refused and counted: alone for the
            tensor scope, with all others of its step for the global one.

        Raises
        ------
        TypeError, ValueError
            For integer or mixed arrays, wrong shapes, an unknown key, or one that is missing for
            the global scope.
        """
        grads = {
            key: mean_gradient(key, x, xp=xp) if isinstance(x, LayerRecord) else x
            for key, x in records.items()
        }
        xp = self._check(xp, state, grads)
        decay = hyper.decay if self.beta is None else self.beta
        tensors = dict(state.tensors)
        finite = {
            key: all_fit(grad, tensors[key].moment.dtype, ops=self.ops, xp=xp)
            for key, grad in grads.items()
        }
        if self.scope == "global":
            together = xp.all(xp.stack(list(finite.values())))
            finite = dict.fromkeys(finite, together)
        for key, grad in grads.items():
            old, ok = tensors[key], finite[key]
            grad = self.ops.select(ok, grad, _xp.zeros((), like=grad, xp=xp), xp=xp)
            grad = _xp.astype(grad, old.moment.dtype, xp=xp)
            share, weight = new_share(old.weight, 1, decay, xp=xp)
            share = _xp.astype(share, grad.dtype, xp=xp)
            share = xp.where(ok, share, _xp.zeros((), like=grad, xp=xp))
            tensors[key] = SOFIMTensor(
                self.ops.mix(old.moment, grad, share, xp=xp),
                xp.where(ok, weight, old.weight),
                old.rejected + _xp.astype(~ok, old.rejected.dtype, xp=xp),
            )
        return SOFIMState(tensors)

    def refresh(
        self, state: SOFIMState, hyper: Hyper, *, xp: Namespace | None = None
    ) -> tuple[SOFIMState, dict[Any, Info]]:
        """Report; there is nothing to factorise.

        Parameters
        ----------
        state : SOFIMState
            State.
        hyper : Hyper
            Not used.
        xp : namespace, optional
            Array namespace; found from the state if not given.

        Returns
        -------
        state : SOFIMState
            As it came.
        info : dict of Info
            Code 0, or 4 without momentum; measures ``rejected`` and ``weight``.
        """
        xp = _checks.common_namespace(xp, state=next(iter(state.tensors.values())).moment)
        infos = {}
        for key, tensor in state.tensors.items():
            rejected = _xp.astype(tensor.rejected, tensor.weight.dtype, xp=xp)
            measures = {"rejected": rejected, "weight": tensor.weight}
            infos[key] = Info(_code(tensor, xp=xp), measures)
        return state, infos

    def direction(
        self,
        state: SOFIMState,
        grads: Mapping[Any, Array],
        records: Mapping[Any, Any],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> tuple[dict[Any, Array], dict[Any, Info]]:
        """Momentum, or gradients, times the inverse of the rank-one Fisher.

        Parameters
        ----------
        state : SOFIMState
            State, after `accumulate` of this step's gradient.
        grads : mapping of array
            Gradients of the mean loss. All of the state's for the global scope.
        records : mapping
            Not used.
        hyper : Hyper
            ``hyper.damping`` is ``rho`` if ``rho`` is None.
        xp : namespace, optional
            Array namespace; found from the arrays if not given.

        Returns
        -------
        directions : dict of array
            In the gradients' dtypes; subtract them, times a step size.
        info : dict of Info
            Code 4 and the gradient itself without momentum, 5 and a zero direction if the gradient
            is not finite. Measures: ``inner``, ``<direction, gradient>``, which may be negative,
            the momentum being older; ``norm``, ``|M|`` over the scope.

        Raises
        ------
        TypeError, ValueError
            As for `accumulate`; for a Python ``hyper.damping`` in use that is not above 0.
        """
        xp = self._check(xp, state, grads)
        rho = self._rho(hyper)
        _checks.positive(rho=rho)
        scopes = [list(grads)] if self.scope == "global" else [[key] for key in grads]
        directions, infos = {}, {}
        for keys in scopes:
            moments = {key: state.tensors[key].moment for key in keys}
            other = None
            if self.precondition == "gradient":
                other = {key: grads[key] for key in keys}
            solved, norm = rank_one_solve(moments, rho, other, ops=self.ops, xp=xp)
            for key in keys:
                u, code = solved[key], _code(state.tensors[key], xp=xp)
                grad = _xp.astype(grads[key], u.dtype, xp=xp)
                u = self.ops.select(code == OK, u, grad, xp=xp)
                directions[key], infos[key] = guarded(u, grads[key], code, ops=self.ops, xp=xp)
                infos[key].measures["norm"] = _xp.astype(norm, u.dtype, xp=xp)
        return directions, infos

    def divisors(
        self, state: SOFIMState, hyper: Hyper, *, xp: Namespace | None = None
    ) -> dict[Any, Array]:
        """Tell what `direction` divides the momentum by, ``rho + |M|^2``.

        For a step that takes the quotient into its rate and forms no direction.

        Parameters
        ----------
        state : SOFIMState
            State, after `accumulate` of this step's gradient.
        hyper : Hyper
            ``hyper.damping`` is ``rho`` if ``rho`` is None.
        xp : namespace, optional
            Array namespace; found from the state if not given.

        Returns
        -------
        dict of array, shape ()
            One for each array; of the scope, so all are the same for the global one. Infinite
            where it is too large a number.

        Raises
        ------
        ValueError
            For a Python ``hyper.damping`` in use that is not above 0.
        """
        moments = {key: tensor.moment for key, tensor in state.tensors.items()}
        xp = _checks.common_namespace(xp, state=next(iter(moments.values())))
        rho = self._rho(hyper)
        if self.scope == "global":
            return dict.fromkeys(moments, rank_one_divisor(moments, rho, ops=self.ops, xp=xp))
        return {
            key: rank_one_divisor({key: moment}, rho, ops=self.ops, xp=xp)
            for key, moment in moments.items()
        }

    def _rho(self, hyper: Hyper) -> Any:
        return hyper.damping if self.rho is None else self.rho

    def _check(
        self, xp: Namespace | None, state: SOFIMState, grads: Mapping[Any, Array]
    ) -> Namespace:
        _checks.same_layers("grads", grads, state.tensors)
        if self.scope == "global":
            _checks.same_layers("the state", state.tensors, grads)
        moment = next(iter(state.tensors.values())).moment
        arrays = {f"gradient of {_name(key)}": grad for key, grad in grads.items()}
        xp = _checks.common_namespace(xp, **{"the state": moment}, **arrays)
        _checks.floating(xp, **arrays)
        for key, grad in grads.items():
            shape = tuple(state.tensors[key].moment.shape)
            _checks.shape(f"gradient of {_name(key)}", grad, shape, "the shape it was made for")
        return xp


def _name(key: Any) -> str:
    return repr(getattr(key, "name", key))


def _code(tensor: SOFIMTensor, *, xp: Namespace) -> Array:
    codes = [_xp.full((), c, like=tensor.rejected, xp=xp) for c in (OK, IDENTITY)]
    return xp.where(tensor.weight > 0, *codes)
