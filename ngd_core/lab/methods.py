"""The methods that can be compared; one more is one more entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ngd_core import step
from ngd_core.inversion import EAGER, PURE
from ngd_core.methods import KFAC, SNGD, ProjectiveKFAC
from ngd_core.types import Method

__all__ = ["METHODS", "Entry", "Rule"]


@dataclass(frozen=True)
class Rule:
    """How directions become steps: `init` of the parameters, `apply` to a state and directions."""

    init: Callable[..., Any]
    apply: Callable[..., Any]


MOMENTUM = Rule(step.momentum_init, step.momentum)
ADAM = Rule(step.adam_init, step.adam)


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
        ``curvature(eager)``: the method that makes directions of gradients; without it the
        gradient is the direction. `eager` tells that arrays are computed at once on the host.
    damping : float, optional
        Damping unless another is asked for; methods with curvature have one.
    observe_every, refresh_every : int
        Steps between two statistics and between two inversions.
    clip : float, optional
        Bound of `ngd_core.step.kl_clip_scale` on a step before momentum.
    """

    title: str
    note: str
    rule: Rule
    rates: tuple[float, ...]
    curvature: Callable[[bool], Method] | None = None
    damping: float | None = None
    observe_every: int = 1
    refresh_every: int = 1
    clip: float | None = None


METHODS = {
    "kfac": Entry(
        title="K-FAC",
        note="Monte Carlo Fisher (one sample), factors every step, inverses every 5 steps, "
        "pi-damping, momentum 0.9, steps clipped at a KL of 1e-3",
        rule=MOMENTUM,
        rates=(0.1, 0.3, 1.0),
        curvature=lambda eager: KFAC(ops=EAGER if eager else PURE),
        damping=0.001,
        refresh_every=5,
        clip=1e-3,
    ),
    "sngd": Entry(
        title="SNGD",
        note="local Fisher of the layers' inputs every step, inverses every 5 steps, damping "
        "relative to the mean eigenvalue, momentum 0.9",
        rule=MOMENTUM,
        rates=(0.03, 0.1, 0.3, 1.0),
        curvature=lambda eager: SNGD(ops=EAGER if eager else PURE),
        damping=0.01,
        refresh_every=5,
    ),
    "projective": Entry(
        title="Projective K-FAC",
        note="as K-FAC, each factor inverted in its top half of eigenvectors and by one number "
        "elsewhere",
        rule=MOMENTUM,
        rates=(0.1, 0.3, 1.0),
        curvature=lambda eager: ProjectiveKFAC(rank=0.5, min_size=16, ops=EAGER if eager else PURE),
        damping=0.001,
        refresh_every=5,
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
