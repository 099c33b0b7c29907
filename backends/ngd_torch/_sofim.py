"""SOFIM: gradients alone, so it takes parameters and no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn

import ngd_core
from ngd_core import Hyper
from ngd_core.methods.sofim import SOFIMState
from ngd_torch._curvature import trainable
from ngd_torch._guard import Move, dense, take
from ngd_torch._joined import Joined, apart, fits, flat, joined, views
from ngd_torch._ops import NATIVE, mix_in_place
from ngd_torch._ranks import ALONE, Group, group_of, summed
from ngd_torch._shards import copies, is_sharded, part, resharded, whole_of_part
from ngd_torch._stored import check_arrays, check_groups
from ngd_torch._trees import leaves, rebuilt

__all__ = ["SOFIM"]

T = TypeVar("T")


class Directions(NamedTuple):
    """Directions by the parameters' numbers, over a scale, and whether all gradients are finite."""

    found: dict[int, torch.Tensor]
    scale: torch.Tensor | None = None
    vouched: torch.Tensor | None = None


IN_PLACE = dataclasses.replace(NATIVE, mix=mix_in_place)
"""For a state that nobody else has."""
LIMITS = 2.0**-60, 2.0**60
"""Divisors of the momentum that a rate of any sensible size can be divided by in float32."""


def _beside(moment: Any, grad: torch.Tensor) -> Any:
    """Move momentum to where the gradient is, in its dtype or float32."""
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return rebuilt(moment, lambda _, x: x.to(grad.device, dtype if x.is_floating_point() else None))


class SOFIM(torch.optim.Optimizer):  # type: ignore[misc]
    """Momentum over a regularised rank-one Fisher of that momentum; see `ngd_core.SOFIM`.

    The step is collinear with the momentum: ``lr M / (rho + |M|^2)``, one norm for all parameters
    of all groups.

    Parameters
    ----------
    model_or_params : nn.Module or iterable
        Network, or parameters, or groups of them.
    lr : float
        Learning rate ``eta``; close to a minimum the rate is ``lr / rho``.
    beta : float
        Weight kept by older gradients.
    rho : float
        Regularisation, in the units of a squared gradient norm.
    scope : "global" or "tensor"
        As in `ngd_core.SOFIM`.
    weight_decay : float
        Decoupled: parameters shrink by ``1 - lr * weight_decay``.

    Raises
    ------
    ValueError
        For a number outside its range.

    Examples
    --------
    >>> import torch
    >>> from ngd_torch import SOFIM
    >>> p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = SOFIM([p], lr=26.0, rho=1.0)
    >>> p.square().sum().mul(0.5).backward()
    >>> optimizer.step()
    >>> p.detach()
    tensor([0., 0.])
    """

    def __init__(
        self,
        model_or_params: nn.Module | Iterable[Any],
        lr: float,
        *,
        beta: float = 0.9,
        rho: float,
        scope: Literal["global", "tensor"] = "global",
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < float("inf"):
                msg = f"{name} is {value}; expected a finite number >= 0."
                raise ValueError(msg)
        self.method = ngd_core.SOFIM(rho=rho, beta=beta, scope=scope, ops=NATIVE)
        params: Any = model_or_params
        if isinstance(model_or_params, nn.Module):
            params = trainable(model_or_params.parameters())
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._skipped: torch.Tensor | int = 0
        self._state: SOFIMState | Joined
        self.moments = self.method.init(self._numbered(lambda p: part(p.detach())))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train further parameters; those that were there keep their momentum.

        Parameters
        ----------
        param_group : dict
            As for every torch optimizer: ``{"params": new.parameters(), "lr": ...}``.
        """
        super().add_param_group(param_group)
        if not hasattr(self, "_state"):  # called by torch's constructor
            return
        fresh = self.method.init(self._numbered(lambda p: part(p.detach())))
        self.moments = fresh._replace(tensors={**fresh.tensors, **self.moments.tensors})

    def _numbered(self, f: Callable[[nn.Parameter], T]) -> dict[int, T]:
        every = [p for group in self.param_groups for p in group["params"]]
        return {k: f(p) for k, p in enumerate(every)}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step; a parameter without a gradient counts as one with a zero gradient.

        A step with a number that is not finite is left out: no parameter moves, and the momentum
        takes in every finite gradient, also that of a step whose parameters would not be finite.

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
        grads = self._numbered(
            lambda p: part(torch.zeros_like(p) if p.grad is None else dense(p.grad))
        )
        directions, scale, vouched = self._directions(grads)
        moves: list[Move] = []
        for group in self.param_groups:
            lr, shrink = group["lr"], 1 - group["lr"] * group["weight_decay"]
            moves += [
                Move(p, directions[len(moves) + k], lr, shrink, scale=scale, vouched=vouched)
                for k, p in enumerate(group["params"])
            ]
        self._skipped = self._skipped + ~take(moves, grads[0], group=self._group())
        return loss

    @property
    def skipped(self) -> int:
        """Steps left out since construction, see `step`; waits for the device."""
        return int(self._skipped)

    @property
    def moments(self) -> SOFIMState:
        """State of the method, a tensor a parameter by its number."""
        if isinstance(self._state, Joined):
            return apart(self._state)
        return self._state

    @moments.setter
    def moments(self, state: SOFIMState) -> None:
        self._state = state

    def _directions(self, grads: dict[int, torch.Tensor]) -> Directions:
        """Take the gradients in, and give the directions."""
        if not isinstance(self._state, Joined) or not fits(self._state, grads):
            tensors = self.moments.tensors
            if len(grads) != len(tensors):
                msg = "a group was added after construction; make a new SOFIM with all groups."
                raise RuntimeError(msg)
            self.moments = SOFIMState({k: _beside(x, grads[k]) for k, x in tensors.items()})
        if any(self._numbered(is_sharded).values()):
            return Directions(self._of_parts(grads))
        if self.method.scope == "global":
            return self._of_all(grads)
        self.moments = self.method.accumulate(self.moments, grads, Hyper())
        return Directions(self.method.direction(self.moments, grads, {}, Hyper())[0])

    def _of_all(self, grads: dict[int, torch.Tensor]) -> Directions:
        """Directions of all parameters end to end: their momentum itself, with a scale."""
        home = next(iter(grads.values())).device
        old = self._state if isinstance(self._state, Joined) else joined(self._state, grads)
        vectors = flat(grads, old)
        method = dataclasses.replace(self.method, ops=IN_PLACE)
        state = method.accumulate(old.state, vectors, Hyper())
        self._state = old._replace(state=state)
        taken = [
            (x.rejected == old.state.tensors[n].rejected).to(home) for n, x in state.tensors.items()
        ]
        vouched = torch.stack(taken).all()
        if home.type == "cpu" and all(x.dtype == grads[k].dtype for k, x in old.moments.items()):
            divisor = next(iter(method.divisors(state, Hyper()).values()))
            if LIMITS[0] <= float(divisor) <= LIMITS[1]:
                return Directions(old.moments, 1 / divisor, vouched)
        found, _ = method.direction(state, vectors, {}, Hyper())
        return Directions(views(found, old.members, grads), None, vouched)

    def _of_parts(self, grads: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Directions of what this process has of sharded parameters."""
        grads = self._refused_together(grads)
        self.moments = self.method.accumulate(self.moments, grads, Hyper())
        own = torch.stack([x.moment.double().square().sum() for x in self.moments.tensors.values()])
        norms = self._summed(own)
        if self.method.scope == "global":
            norms = norms.sum()
        # |M|^2 + rho = |part|^2 + (rho + what is elsewhere of |M|^2)
        rhos = self.method.rho + norms - own
        method = dataclasses.replace(self.method, rho=None, scope="tensor")
        found = dict(grads)
        for k, grad in grads.items():
            if grad.numel():  # a process may have nothing of a small parameter
                hyper = Hyper(damping=rhos[k])
                found |= method.direction(self.moments, {k: grad}, {}, hyper)[0]
        return found

    def _refused_together(self, grads: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Gradients, no number of which is finite where another process has one that is not."""
        bad = torch.stack([(~torch.isfinite(grad)).any().double() for grad in grads.values()])
        bad = self._summed(bad)
        return {k: torch.where(bad[k] > 0, torch.nan, grad) for k, grad in grads.items()}

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a number for each parameter over its parts, in whatever processes they are."""
        group = group_of(None)
        every = self._numbered(lambda p: copies(p, group.size)).values()
        return summed([values / values.new_tensor(list(every))], group.handle)[0]

    def _group(self) -> Group:
        """Find the processes that have to agree before a step."""
        return group_of(None) if any(self._numbered(is_sharded).values()) else ALONE

    def state_dict(self) -> dict[str, Any]:
        """State with the momentum; `torch.load` reads it with ``weights_only=True``."""
        arrays = {path: x.detach().clone() for path, x in leaves(self._everywhere(whole_of_part))}
        return {**super().state_dict(), "curvature": arrays}

    def _everywhere(self, f: Callable[[Any, torch.Tensor], torch.Tensor]) -> Any:
        """State with ``f(parameter, momentum)`` for each momentum."""
        every = self._numbered(lambda p: p)
        tensors = {
            k: x._replace(moment=f(every[k], x.moment)) for k, x in self.moments.tensors.items()
        }
        return type(self.moments)(tensors)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state of `state_dict`.

        Parameters
        ----------
        state_dict : dict
            From a SOFIM of as many parameters of the same shapes.

        Raises
        ------
        ValueError
            If it does not fit, or something is missing; then nothing of it is taken.
        """
        rest = dict(state_dict)
        arrays = rest.pop("curvature", {})
        wholes = self._everywhere(lambda p, _: p)
        advice = "load a state of a SOFIM of the same parameters in the same groups"
        check_arrays(arrays, leaves(wholes), advice)
        check_groups(self, rest, advice)
        super().load_state_dict(rest)
        self.moments = rebuilt(wholes, lambda path, x: arrays[path].to(x.device, copy=True))
        self.moments = self._everywhere(lambda p, x: part(resharded(p, x)))

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "method": self.method,
            "_state": self.moments,
            "_skipped": self._skipped,
        }
