"""From directions to parameters: momentum, first-order rules, trust in the Fisher's metric."""

from ngd_core.step.averaging import averaging_decay, iterate_average, iterate_average_init
from ngd_core.step.clip import constraint_scale, kl_clip_scale
from ngd_core.step.kfc_pre import KFCPreInfo, KFCPreState, kfc_pre, kfc_pre_init
from ngd_core.step.levenberg_marquardt import (
    levenberg_marquardt,
    pick_gamma,
    predicted_change,
    reduction_ratio,
    try_gammas,
)
from ngd_core.step.momentum import AdamState, adam, adam_init, momentum, momentum_init, sgd
from ngd_core.step.quadratic import QuadraticStep, quadratic_step
from ngd_core.step.schedule import due
from ngd_core.step.weight_decay import coupled_weight_decay, decoupled_weight_decay

__all__ = [
    "AdamState",
    "KFCPreInfo",
    "KFCPreState",
    "QuadraticStep",
    "adam",
    "adam_init",
    "averaging_decay",
    "constraint_scale",
    "coupled_weight_decay",
    "decoupled_weight_decay",
    "due",
    "iterate_average",
    "iterate_average_init",
    "kfc_pre",
    "kfc_pre_init",
    "kl_clip_scale",
    "levenberg_marquardt",
    "momentum",
    "momentum_init",
    "pick_gamma",
    "predicted_change",
    "quadratic_step",
    "reduction_ratio",
    "sgd",
    "try_gammas",
]
