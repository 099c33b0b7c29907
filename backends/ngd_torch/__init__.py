"""Natural-gradient optimizers for PyTorch models."""

from ngd_torch._files import load_curvature, save_curvature
from ngd_torch._layers import LayerRule
from ngd_torch._operators import fisher, kronecker
from ngd_torch._ops import NATIVE
from ngd_torch._optimizers import (
    EKFAC,
    FNGD,
    KFAC,
    SNGD,
    NaturalGradient,
    Options,
    Preconditioner,
    ProjectiveKFAC,
)
from ngd_torch._reconstruct import fold, left_out, reconstruct
from ngd_torch._refresh import attach, refresh
from ngd_torch._report import Report
from ngd_torch._sofim import SOFIM

__all__ = [
    "EKFAC",
    "FNGD",
    "KFAC",
    "LayerRule",
    "NATIVE",
    "NaturalGradient",
    "Options",
    "Preconditioner",
    "ProjectiveKFAC",
    "Report",
    "SNGD",
    "SOFIM",
    "attach",
    "fisher",
    "fold",
    "kronecker",
    "left_out",
    "load_curvature",
    "reconstruct",
    "refresh",
    "save_curvature",
]
