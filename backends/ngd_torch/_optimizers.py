"""The methods of the core as `torch.optim.Optimizer`, and in front of any other optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self, TypedDict, Unpack

import torch
from torch import nn

import ngd_core
from ngd_core import Method, step
from ngd_torch._curvature import Curvature, trainable
from ngd_torch._guard import Move, dense, take
from ngd_torch._layers import LayerRule
from ngd_torch._ops import NATIVE
from ngd_torch._report import Report, report
from ngd_torch._shards import part, resharded, whole
from ngd_torch._stored import check_groups
from ngd_torch._trees import rebuilt

__all__ = [
    "EKFAC",
    "FNGD",
    "KFAC",
    "NaturalGradient",
    "Options",
    "Preconditioner",
    "ProjectiveKFAC",
    "SNGD",
]


class Options(TypedDict, total=False):
    """What all optimizers here take.

    Parameters
    ----------
    damping : float
        Added to the Fisher of the mean loss (1e-3).
    momentum : float
        Heavy-ball momentum of the directions (0.9).
    weight_decay : float
        Decoupled: parameters shrink by ``1 - lr * weight_decay`` (0).
    decay : float
        Weight kept by older statistics (0.95).
    factor_every, inverse_every : int
        Steps between two statistics (10) and two refreshes (100).
    early : bool
        Further statistics and refreshes at steps 1, 4, 16, 64, ... below these intervals, see
        `ngd_core.step.due` (False).
    fisher : "mc", "exact" or "empirical"
        Sampled labels, the exact Fisher, or the training labels ("mc").
    likelihood : "categorical", "bernoulli" or "gaussian"
        What the model's outputs are parameters of ("categorical"). A pair ``("gaussian", 0.5)``
        gives the weight of its loss. For several outputs a mapping or a sequence of these, as the
        model returns them, None for an output without a loss: the Fisher is that of the sum.
    sharing : "expand" or "reduce"
        Treatment of shared positions ("expand").
    kl_clip : float or None
        Bound on a step's estimated KL divergence, see `ngd_core.step.kl_clip_scale`: 1e-3 for
        K-FAC and its kin, which need it where a batch is small, and for SNGD, where it bounds the
        step's length in SNGD's metric; None for the others.
    uncovered : "gradient" or "error"
        What happens to parameters in no layer that has curvature ("gradient").
    loss_reduction : "mean" or "sum"
        Of the training loss over the batch, for ``fisher="empirical"`` ("mean").
    loss_scale : callable or None
        Factor of the loss under mixed precision, for ``fisher="empirical"``:
        ``loss_scale=scaler.get_scale`` (None).
    class_axis : int or None
        Axis of the outputs that holds the classes of a categorical likelihood; needed for outputs
        of more than two axes (None).
    examples : "rows", "positions" or None
        What one example is: all at one index of the outputs' first axis, its loss the sum over
        positions, or every position, so that the Fisher is that of a loss averaged over positions
        too; needed for sampled and exact Fishers of outputs of more than two axes (None).
    mask : callable or None
        ``mask(*args, **kwargs)`` of the model's arguments, of the shape of the outputs without
        their classes: true where there is a loss (None: everywhere).
    factor_dtype : "float32", "float64" or None
        Of factors and inverses; None: that of the parameters, at least float32.
    chunk_bytes : int
        A layer's inputs (patches of convolutions) and gradients are turned into factors some
        examples at a time, as many as their rows take so many bytes, at least one (2**28).
    layers : mapping of type to LayerRule
        Rules for further types of modules.
    params : iterable
        Parameters, or groups of them, to train; all that need a gradient otherwise.
    seed : int
        Of the sampled labels, which touch no other random stream (0); each rank adds its number.
    inverse_ranks : int, "each" or None
        Of several processes, how many keep each layer's inverse. 1 needs least memory and sends
        directions at every step, more send inverses at refreshes too, and with all of them these
        alone; "each": every rank makes every inverse itself and nothing is sent. None: the least
        that the method allows if parameters are sharded, otherwise "each". The parameters come out
        the same.
    process_group : ProcessGroup or None
        Processes that train the model together. None: those of a `DistributedDataParallel`,
        otherwise all, if `torch.distributed` was initialised.
    weighted_backward : bool
        For FNGD alone: in later epochs form the weighted gradients of `nn.Linear`, `nn.Embedding`,
        `nn.MultiheadAttention`, layer, group and batch norms and convolutions padded with zeros *in
        place* of the gradients, in the same backward pass and at about its cost. Their ``.grad``
        then is the direction, not the gradient: so are its norm, what clips it and what
        `torch.amp.GradScaler` sees; `stats` has nothing of these layers, ``kl_clip`` is not to be
        had, nor gradients of gradients, activation checkpoints around such layers, or several
        processes (False).
    stagger : bool
        After the first refresh, of all layers, refresh each at a step of its own within
        ``inverse_every``, so that no step pays for all: evenly apart in the order of the layers,
        a step late rather than at one with statistics where ``factor_every`` divides it (False).
    """

    damping: float
    momentum: float
    weight_decay: float
    decay: float
    factor_every: int
    inverse_every: int
    early: bool
    fisher: Literal["mc", "exact", "empirical"]
    likelihood: Any
    sharing: Literal["expand", "reduce"]
    kl_clip: float | None
    uncovered: Literal["gradient", "error"]
    loss_reduction: Literal["mean", "sum"]
    loss_scale: Callable[[], float] | None
    class_axis: int | None
    examples: Literal["rows", "positions"] | None
    mask: Callable[..., torch.Tensor] | None
    factor_dtype: Literal["float32", "float64"] | None
    chunk_bytes: int
    layers: Mapping[type, LayerRule] | None
    params: Iterable[Any] | None
    seed: int
    inverse_ranks: int | Literal["each"] | None
    process_group: Any
    weighted_backward: bool
    stagger: bool


CURVATURE: dict[str, Any] = {
    "damping": 1e-3,
    "decay": 0.95,
    "factor_every": 10,
    "inverse_every": 100,
    "early": False,
    "fisher": "mc",
    "likelihood": "categorical",
    "sharing": "expand",
    "uncovered": "gradient",
    "loss_reduction": "mean",
    "loss_scale": None,
    "class_axis": None,
    "examples": None,
    "mask": None,
    "factor_dtype": None,
    "chunk_bytes": 2**28,
    "layers": None,
    "seed": 0,
    "inverse_ranks": None,
    "process_group": None,
    "weighted_backward": False,
    "stagger": False,
}
STEP: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.0, "kl_clip": None, "params": None}


NOT_PICKLED = (
    "{} hangs on its model by hooks, which go into no file and no shallow copy; store its "
    "state_dict() and load that into a new one, or copy.deepcopy it together with the model."
)


def _known(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in CURVATURE and name not in STEP:
            msg = f"Unknown option {name!r}; known are {', '.join([*CURVATURE, *STEP])}."
            raise TypeError(msg)


def _members(groups: Iterable[Mapping[str, Any]]) -> set[nn.Parameter]:
    return {p for group in groups for p in group["params"]}


def _inside(model: nn.Module, params: Iterable[nn.Parameter]) -> None:
    """Reject parameters that are in no module of a model."""
    known = set(model.parameters())
    for p in params:
        if p not in known:
            msg = (
                f"A parameter of shape {tuple(p.shape)} is in no module of the model; add its "
                "module to the model first, or give it to another optimizer."
            )
            raise ValueError(msg)


class NaturalGradient(torch.optim.Optimizer):  # type: ignore[misc]
    """Train a model with a method of `ngd_core`.

    Parameters
    ----------
    model : nn.Module
        Network. Call it as a whole (``model(x)``) in training mode.
    method : Method
        For example ``ngd_core.KFAC(damping_split="exact")``.
    lr : float
        Learning rate.
    **options
        As in `Options`.

    Raises
    ------
    TypeError, ValueError
        For an unknown option, or one outside its range; with ``uncovered="error"`` if a trained
        parameter has no curvature.

    Examples
    --------
    >>> import torch
    >>> from ngd_torch import KFAC
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = KFAC(model, lr=0.1)
    >>> x, y = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
    >>> loss = torch.nn.functional.cross_entropy(model(x), y)
    >>> loss.backward()
    >>> optimizer.step()
    """

    def __init__(
        self, model: nn.Module, method: Method, lr: float, **options: Unpack[Options]
    ) -> None:
        given: dict[str, Any] = dict(options)
        _known(given)
        settings = {**STEP, **given}
        if not 0 <= lr < float("inf"):
            msg = f"lr is {lr}; expected a finite number >= 0."
            raise ValueError(msg)
        if not 0 <= settings["momentum"] < 1:
            msg = f"momentum is {settings['momentum']}; expected a number >= 0 and < 1."
            raise ValueError(msg)
        if not 0 <= settings["weight_decay"] < float("inf"):
            msg = f"weight_decay is {settings['weight_decay']}; expected a finite number >= 0."
            raise ValueError(msg)
        if settings["kl_clip"] is not None and not settings["kl_clip"] > 0:
            msg = f"kl_clip is {settings['kl_clip']}; expected a number > 0, or None."
            raise ValueError(msg)
        if settings["kl_clip"] is not None and given.get("weighted_backward"):
            msg = "kl_clip needs the gradient, which weighted_backward replaces; leave one out."
            raise ValueError(msg)
        params = settings["params"]
        if params is None:
            params = trainable(model.parameters())
        group = {"lr": lr, "momentum": settings["momentum"]}
        super().__init__(params, {**group, "weight_decay": settings["weight_decay"]})
        self.kl_clip: float | None = settings["kl_clip"]
        chosen = {name: given.get(name, default) for name, default in CURVATURE.items()}
        self._options = given
        self._skipped: torch.Tensor | int = 0
        trained = _members(self.param_groups)
        _inside(model, trained)
        self.curvature = Curvature(model, method, trained=trained, **chosen)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train further parameters of the model: of layers new in it, or thawed.

        Layers that were there keep their statistics. With new ones the next step takes statistics
        and a refresh out of turn.

        Parameters
        ----------
        param_group : dict
            As for every torch optimizer: ``{"params": new.parameters(), "lr": ...}``.

        Raises
        ------
        ValueError
            If a parameter is in no module of the model.
        """
        super().add_param_group(param_group)
        if not hasattr(self, "curvature"):  # called by torch's constructor
            return
        try:
            _inside(self.curvature.model, self.param_groups[-1]["params"])
            self.curvature.look_again(_members(self.param_groups))
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step, or none: where a number is not finite no parameter and no momentum moves.

        That is so if a gradient or a direction is not finite, or if a parameter would not be, by
        norms whose squares have to be finite too (below about 1e19 in float32); `skipped` counts
        such steps. Statistics that are not finite were refused before, layer by layer. The schedule
        begins with the first step whose gradients are finite.

        Parameters
        ----------
        closure : callable, optional
            Clears gradients, computes the loss, back-propagates and returns it.

        Returns
        -------
        float or None
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        directions = self.curvature.directions()
        scale, vouched = self._clip(), self.curvature.sound()
        moves = []
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                d = directions.get(p)
                known = d is not None
                d = part(d) if known else dense(part(p.grad))
                state = self.state[p] if mu else {}
                if mu and "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state.get("momentum_buffer")
                shrink = 1 - lr * group["weight_decay"]
                facts = (scale, vouched) if known else ()
                moves.append(Move(p, d, lr, shrink, mu, buffer, *facts))
        if moves:
            self._skipped = self._skipped + ~take(moves, moves[0].p, self.curvature.ranks.together)
        return loss

    @property
    def skipped(self) -> int:
        """Steps left out since construction, see `step`; waits for the device."""
        return int(self._skipped)

    def _clip(self) -> torch.Tensor | None:
        """Factor of all directions, with the rate of each layer's weight, or else its bias."""
        if self.kl_clip is None or not self.curvature.info:
            return None
        rates = {p: group["lr"] for group in self.param_groups for p in group["params"]}
        parts = []
        for spec, info in self.curvature.info.items():
            own = self.curvature.by_name[spec.name].parameters
            rate = next((rates[p] for p in own if p in rates), 0.0)
            parts.append(info.measures["inner"] * rate**2)
        return step.constraint_scale(torch.stack(parts).sum(), self.kl_clip)

    @property
    def stats(self) -> dict[str, dict[str, float]]:
        """Code and measures of the last step, layer by layer, as numbers; waits for the device."""
        return _numbers(self.curvature)

    def report(self) -> Report:
        """Tell what happens to each parameter; see `Report`."""
        momentum = sum(
            p.numel() * p.element_size()
            for group in self.param_groups
            for p in group["params"]
            if group["momentum"]
        )
        return report(self.curvature, momentum)

    def state_dict(self) -> dict[str, Any]:
        """State of momentum and curvature; `torch.load` reads it with ``weights_only=True``."""
        stored = super().state_dict()
        stored["state"] = rebuilt(stored["state"], lambda _, x: whole(x))
        return {**stored, "curvature": self.curvature.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state of `state_dict`.

        Parameters
        ----------
        state_dict : dict
            From an optimizer of the same kind on the same model.

        Raises
        ------
        ValueError
            If it does not fit, or something is missing; then nothing of it is taken.
        """
        rest = dict(state_dict)
        if "curvature" not in rest:
            msg = (
                "The state holds no curvature; it is of another optimizer. Load one that "
                f"{type(self).__name__}.state_dict() gave."
            )
            raise ValueError(msg)
        curvature = rest.pop("curvature")
        check_groups(self, rest, "load a state of an optimizer with the same groups")
        self.curvature.check(curvature)
        super().load_state_dict(rest)
        self.curvature.load_state_dict(curvature)
        for p, kept in self.state.items():
            kept.update({name: resharded(p, x) for name, x in kept.items()})

    def close(self) -> None:
        """Remove every hook from the model; the optimizer is of no further use."""
        self.curvature.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(NOT_PICKLED.format(type(self).__name__))

    def __deepcopy__(self, memo: dict[int, Any]) -> NaturalGradient:
        model = copy.deepcopy(self.curvature.model, memo)
        twins = dict(zip(self.curvature.model.parameters(), model.parameters(), strict=True))
        for lost in (p for group in self.param_groups for p in group["params"] if p not in twins):
            msg = (
                f"A parameter of shape {tuple(lost.shape)} was taken out of the model, so the "
                "optimizer cannot be copied with it; make a new optimizer of the model."
            )
            raise ValueError(msg)
        groups = [
            {**group, "params": [twins[p] for p in group["params"]]} for group in self.param_groups
        ]
        new = NaturalGradient.__new__(type(self))
        memo[id(self)] = new
        together = self.curvature.ranks.asked
        options: Any = {**self._options, "params": groups, "process_group": together}
        NaturalGradient.__init__(new, model, self.curvature.method, self.defaults["lr"], **options)
        new.load_state_dict(copy.deepcopy(self.state_dict(), memo))
        return new


def _numbers(curvature: Curvature) -> dict[str, dict[str, float]]:
    return {
        spec.name: {"code": int(info.code)}
        | {name: float(value) for name, value in info.measures.items()}
        for spec, info in curvature.info.items()
    }


class KFAC(NaturalGradient):
    """K-FAC for linear layers and KFC for convolutions; see `ngd_core.KFAC`.

    Parameters
    ----------
    model : nn.Module
        Network.
    lr : float
        Learning rate.
    damping_split : "pi" or "exact"
        As in `ngd_core.KFAC`.
    factored_gradient : bool
        Whether the inverses are applied to the rows whose product an `nn.Linear`'s gradient is,
        rather than to the gradient, where a batch has so few rows that this costs less
        (`ngd_core.KFAC.factors_gradient`). ``.grad`` and the steps are the same, up to rounding.
        Taken in steps alone whose ``weight.grad`` is what one backward pass made: with a penalty
        in the loss, accumulation (also by ``zero_grad(set_to_none=False)``), clipping, unscaling,
        weights that several layers share or mixed precision, layers go the usual way, and
        ``stats[name]["factored"]`` is 0 instead of 1. What is written to ``.grad.data`` or by a
        gradient scaler, of which PyTorch keeps no count, is seen where it is more than rounding
        sums may do (some 1e-5 of a gradient in float32); less is not in the direction. Costs the
        memory of the layers' inputs and output gradients until the step, and on a GPU a wait for
        each layer. Compiled models go the usual way, several processes are refused, and the split
        "exact" (False).
    **options
        As in `Options`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        damping_split: Literal["pi", "exact"] = "pi",
        factored_gradient: bool = False,
        **options: Unpack[Options],
    ) -> None:
        method = ngd_core.KFAC(
            damping_split=damping_split, ops=NATIVE, factored_gradient=factored_gradient
        )
        settings: Options = {"kl_clip": 1e-3, **options}
        super().__init__(model, method, lr, **settings)


class EKFAC(NaturalGradient):
    """K-FAC with the Fisher's own diagonal in its eigenbasis; see `ngd_core.EKFAC`.

    Parameters
    ----------
    model : nn.Module
        Network.
    lr : float
        Learning rate.
    **options
        As in `Options`.
    """

    def __init__(self, model: nn.Module, lr: float, **options: Unpack[Options]) -> None:
        settings: Options = {"kl_clip": 1e-3, **options}
        super().__init__(model, ngd_core.EKFAC(ops=NATIVE), lr, **settings)


class SNGD(NaturalGradient):
    """Structured natural gradient descent, from the layers' inputs alone; see `ngd_core.SNGD`.

    Parameters
    ----------
    model : nn.Module
        Network.
    lr : float
        Learning rate.
    metric : "linear" or "relu"
        As in `ngd_core.SNGD`.
    damping_mode : "relative", "absolute" or "trace"
        As in `ngd_core.SNGD`.
    **options
        As in `Options`; the damping is 1e-2 unless given. The Fisher's kind plays no part.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        metric: Literal["linear", "relu"] = "linear",
        damping_mode: Literal["relative", "absolute", "trace"] = "relative",
        **options: Unpack[Options],
    ) -> None:
        method = ngd_core.SNGD(metric=metric, damping_mode=damping_mode, ops=NATIVE)
        settings: Options = {"damping": 1e-2, "kl_clip": 1e-3, **options}
        settings["fisher"] = "empirical"
        super().__init__(model, method, lr, **settings)


class FNGD(NaturalGradient):
    """Weighted sums of per-example gradients, the weights of the first epoch; see `ngd_core.FNGD`.

    Call `epoch_end` after each epoch.

    Parameters
    ----------
    model : nn.Module
        Network.
    lr : float
        Learning rate.
    batch_size : int or None
        Examples of a full batch; needed but for ``share="sample"``.
    damping_mode : "relative" or "absolute"
        As in `ngd_core.FNGD`.
    gain : "unit" or "natural"
        As in `ngd_core.FNGD`.
    share : "position", "iteration" or "sample"
        As in `ngd_core.FNGD`. For "sample" set `index` before each backward pass.
    iterations : int or None
        Steps of an epoch; needed for ``share="iteration"``.
    dataset_size : int or None
        Examples of the data set; needed for ``share="sample"``.
    refresh_epochs : int or None
        As in `ngd_core.FNGD`.
    **options
        As in `Options`; the damping is 10 unless given.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        batch_size: int | None = None,
        damping_mode: Literal["relative", "absolute"] = "relative",
        gain: Literal["unit", "natural"] = "unit",
        share: Literal["position", "iteration", "sample"] = "position",
        iterations: int | None = None,
        dataset_size: int | None = None,
        refresh_epochs: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        method = ngd_core.FNGD(
            share=share,
            batch_size=batch_size,
            iterations=iterations,
            dataset_size=dataset_size,
            damping_mode=damping_mode,
            gain=gain,
            refresh_epochs=refresh_epochs,
            ops=NATIVE,
        )
        settings: Options = {"damping": 10.0, **options}
        settings["fisher"] = "empirical"
        super().__init__(model, method, lr, **settings)

    def epoch_end(self) -> None:
        """Close an epoch; from the first call on the recorded weights are used."""
        self.curvature.epoch_end()

    @property
    def index(self) -> torch.Tensor | None:
        """Numbers in the data set of the examples of the step at hand, for ``share="sample"``."""
        return self.curvature.index

    @index.setter
    def index(self, index: torch.Tensor) -> None:
        self.curvature.index = index


class ProjectiveKFAC(NaturalGradient):
    """K-FAC with projected factors and recursive inverses; see `ngd_core.ProjectiveKFAC`.

    Parameters
    ----------
    model : nn.Module
        Network.
    lr : float
        Learning rate.
    rank : float or int
        As in `ngd_core.ProjectiveKFAC`.
    sides : "both" or "inputs"
        As in `ngd_core.ProjectiveKFAC`.
    complement : bool
        As in `ngd_core.ProjectiveKFAC`.
    basis : "top", "gaussian" or "range"
        As in `ngd_core.ProjectiveKFAC`; the noise of the last two is drawn once, from ``seed``.
    recursive : bool or "auto"
        As in `ngd_core.ProjectiveKFAC`.
    **options
        As in `Options`.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        rank: float = 0.125,
        sides: Literal["both", "inputs"] = "inputs",
        complement: bool = True,
        basis: Literal["top", "gaussian", "range"] = "top",
        recursive: bool | Literal["auto"] = "auto",
        **options: Unpack[Options],
    ) -> None:
        method = ngd_core.ProjectiveKFAC(
            rank=rank,
            sides=sides,
            complement=complement,
            basis=basis,
            recursive=recursive,
            ops=NATIVE,
        )
        settings: Options = {"kl_clip": 1e-3, **options}
        super().__init__(model, method, lr, **settings)


class Preconditioner:
    """Natural-gradient directions in place of gradients, for any optimizer that comes after.

    Parameters
    ----------
    model : nn.Module
        Network.
    method : Method
        For example ``ngd_core.KFAC()``.
    **options
        As in `Options`, but for those of steps: momentum, weight_decay, kl_clip and params.

    Raises
    ------
    TypeError, ValueError
        As `NaturalGradient`.

    Examples
    --------
    >>> import ngd_core, torch
    >>> from ngd_torch import Preconditioner
    >>> model = torch.nn.Linear(3, 2)
    >>> adam = torch.optim.Adam(model.parameters())
    >>> preconditioner = Preconditioner(model, ngd_core.KFAC())
    >>> x, y = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
    >>> loss = torch.nn.functional.cross_entropy(model(x), y)
    >>> loss.backward()
    >>> preconditioner.step()
    >>> adam.step()
    """

    def __init__(self, model: nn.Module, method: Method, **options: Unpack[Options]) -> None:
        given: dict[str, Any] = dict(options)
        _known(given)
        for name in STEP:
            if name in given:
                msg = f"{name} is an option of the optimizer that comes after; give it there."
                raise TypeError(msg)
        chosen = {name: given.get(name, default) for name, default in CURVATURE.items()}
        self._options = given
        self.curvature = Curvature(model, method, **chosen)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self) -> None:
        """Replace the gradients of covered parameters by their directions.

        A gradient that is not finite stays, so that a gradient scaler, or a guard of yours, sees
        it and leaves the step out.
        """
        for p, d in self.curvature.directions().items():
            if p.grad is not None:
                p.grad.copy_(torch.where(torch.isfinite(p.grad).all(), d, p.grad))

    @property
    def stats(self) -> dict[str, dict[str, float]]:
        """Code and measures of the last step, layer by layer, as numbers; waits for the device."""
        return _numbers(self.curvature)

    def report(self) -> Report:
        """Tell what happens to each parameter; see `Report`."""
        return report(self.curvature)

    def look_again(self) -> None:
        """Take the model's layers as they are now: added, taken out, frozen or thawed.

        Layers that were there keep their statistics. With new ones the next step takes statistics
        and a refresh out of turn.

        Raises
        ------
        ValueError
            If no layer with curvature is left, or over several processes.
        """
        self.curvature.look_again(None)

    def state_dict(self) -> dict[str, Any]:
        """State of the curvature; `torch.load` reads it with ``weights_only=True``."""
        return self.curvature.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state of `state_dict`.

        Parameters
        ----------
        state_dict : mapping
            From the same method on the same model.

        Raises
        ------
        ValueError
            If it does not fit, or something is missing; then nothing of it is taken.
        """
        self.curvature.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(NOT_PICKLED.format(type(self).__name__))

    def __deepcopy__(self, memo: dict[int, Any]) -> Preconditioner:
        model = copy.deepcopy(self.curvature.model, memo)
        options: Any = {**self._options, "process_group": self.curvature.ranks.asked}
        new = Preconditioner(model, self.curvature.method, **options)
        memo[id(self)] = new
        new.load_state_dict(copy.deepcopy(self.state_dict(), memo))
        return new

    def close(self) -> None:
        """Remove every hook from the model."""
        self.curvature.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
