"""From directions to parameters: momentum, first-order rules, trust in the Fisher's metric."""

from ngd_core.step.clip import constraint_scale, kl_clip_scale
from ngd_core.step.momentum import AdamState, adam, adam_init, momentum, momentum_init, sgd

__all__ = [
    "AdamState",
    "adam",
    "adam_init",
    "constraint_scale",
    "kl_clip_scale",
    "momentum",
    "momentum_init",
    "sgd",
]
