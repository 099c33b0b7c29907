"""The methods that can be compared; one more is one more entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ngd_core import step
from ngd_core.inversion import PURE, Ops
from ngd_core.methods import EKFAC, FNGD, KFAC, SNGD, SOFIM, ProjectiveKFAC, TridiagonalKFAC
from ngd_core.types import KINDS, Method

__all__ = ["ADAM", "METHODS", "MOMENTUM", "REFRESH_EVERY", "Entry", "Plan", "Rule", "Turn"]

REFRESH_EVERY = 5
"""Steps between two inversions."""


@dataclass(frozen=True)
class Rule:
    """How directions become steps.

    Parameters
    ----------
    init : callable
        ``init(params)``: what is remembered at the start.
    apply : callable
        ``apply(memory, directions)``: steps, and what is remembered next.
    scaled : callable
        ``scaled(memory, directions)``: directions as the rule rescales them, momentum left out.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    scaled: Callable[..., Any] = lambda _, directions: directions


MOMENTUM = Rule(step.momentum_init, step.momentum)
ADAM = Rule(step.adam_init, step.adam, lambda memory, grads: step.adam(memory, grads)[0])
PLAIN = Rule(lambda _: None, lambda memory, directions: (directions, memory))


class Plan(NamedTuple):
    """What a method may have to know of a run.

    Parameters
    ----------
    ops : Ops
        Replaceable operations that suit the array library.
    batch_size : int
        Examples a step.
    epoch : int
        Steps until every example has come once.
    """

    ops: Ops
    batch_size: int
    epoch: int


class Turn(NamedTuple):
    """What a method does in a step besides giving a direction."""

    observe: bool
    refresh: bool


Schedule = Callable[[int, Plan], Turn]


def every_five(k: int, _: Plan) -> Turn:
    """Statistics in each step, inversions in the first and every fifth after it."""
    return Turn(observe=True, refresh=k % REFRESH_EVERY == 0)


def first_epoch(k: int, plan: Plan) -> Turn:
    """Statistics in each step of the first epoch, which is closed by one refresh."""
    return Turn(k < plan.epoch, k == plan.epoch)


@dataclass(frozen=True)
class Entry:
    """A method with all that is not tuned.

    Parameters
    ----------
    title : str
        Name for people.
    note : str
        Its fixed settings in words.
    rule : Rule
        Makes steps of directions.
    rates : tuple of float
        Learning rates tried unless others are asked for.
    curvature : callable, optional
        ``curvature(plan)``: the method that makes directions of gradients; without it the
        gradient is the direction.
    observes : "samples", "labels" or "gradients"
        Of what it takes statistics: records of labels sampled from the model, or of the training
        labels, or the gradients alone.
    schedule : callable
        ``schedule(k, plan)``: the turn of step k.
    damping : float, optional
        Damping unless another is asked for; methods with curvature have one.
    clip : float, optional
        Bound of `ngd_core.step.kl_clip_scale` on a step before momentum.
    """

    title: str
    note: str
    rule: Rule
    rates: tuple[float, ...]
    curvature: Callable[[Plan], Method] | None = None
    observes: Literal["samples", "labels", "gradients"] = "samples"
    schedule: Schedule = every_five
    damping: float | None = None
    clip: float | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of layers it takes; a gradient takes all."""
        return KINDS if self.curvature is None else self.curvature(Plan(PURE, 1, 1)).kinds


METHODS = {
    "kfac": Entry(
        title="K-FAC",
        note="Monte Carlo Fisher (one sample), factors every step, inverses every 5 steps, "
        "pi-damping, momentum 0.9, steps clipped at a KL of 1e-3",
        rule=MOMENTUM,
        rates=(0.1, 0.3, 1.0),
        curvature=lambda plan: KFAC(ops=plan.ops),
        damping=0.001,
        clip=1e-3,
    ),
    "ekfac": Entry(
        title="EKFAC",
        note="as K-FAC, with eigenbases every 5 steps, the Fisher's diagonal in them every step, "
        "and the damping added to that",
        rule=MOMENTUM,
        rates=(0.1, 0.3, 1.0),
        curvature=lambda _: EKFAC(),
        damping=0.001,
        clip=1e-3,
    ),
    "sngd": Entry(
        title="SNGD",
        note="local Fisher of the layers' inputs every step, inverses every 5 steps, damping "
        "relative to the mean eigenvalue, momentum 0.9",
        rule=MOMENTUM,
        rates=(0.03, 0.1, 0.3, 1.0),
        curvature=lambda plan: SNGD(ops=plan.ops),
        damping=0.01,
    ),
    "fngd": Entry(
        title="FNGD",
        note="coefficients from the training labels in the first epoch, their mean by position in "
        "the batch later, damping relative to the mean eigenvalue, unit gain, momentum 0.9",
        rule=MOMENTUM,
        rates=(0.5, 1.0, 1.5, 2.0, 3.0),
        curvature=lambda plan: FNGD(batch_size=plan.batch_size, ops=plan.ops),
        observes="labels",
        schedule=first_epoch,
        damping=10.0,
    ),
    "sofim": Entry(
        title="SOFIM",
        note="its momentum 0.9 over the regularised rank-one Fisher of that momentum, one norm for "
        "all parameters",
        rule=PLAIN,
        rates=(0.2, 0.3, 0.4, 0.5, 0.75),
        curvature=lambda _: SOFIM(rho=None),
        observes="gradients",
        damping=0.05,
    ),
    "tridiagonal": Entry(
        title="Tridiagonal K-FAC",
        note="as K-FAC, and each layer's step depends on the next layer's; chains of dense layers "
        "alone",
        rule=MOMENTUM,
        rates=(0.1, 0.3, 1.0),
        curvature=lambda plan: TridiagonalKFAC(ops=plan.ops),
        damping=0.001,
        clip=1e-3,
    ),
    "projective": Entry(
        title="Projective K-FAC",
        note="as K-FAC, each factor inverted in its top half of eigenvectors and by one number "
        "elsewhere",
        rule=MOMENTUM,
        rates=(0.1, 0.3, 1.0),
        curvature=lambda plan: ProjectiveKFAC(rank=0.5, min_size=16, ops=plan.ops),
        damping=0.001,
        clip=1e-3,
    ),
    "sgd": Entry(
        title="SGD + momentum",
        note="momentum 0.9",
        rule=MOMENTUM,
        rates=(0.3, 0.5, 1.0, 1.5, 2.0),
    ),
    "adam": Entry(
        title="Adam",
        note="betas 0.9 and 0.999",
        rule=ADAM,
        rates=(0.01, 0.02, 0.03, 0.05, 0.1),
    ),
}
"""Methods by the name the command line knows."""
