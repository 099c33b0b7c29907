"""Natural-gradient training of `ngd_core.nn` models on CuPy arrays."""

from ngd_cupy._fit import Epoch, evaluate, fit
from ngd_cupy._methods import EKFAC, FNGD, KFAC, SNGD, SOFIM, ProjectiveKFAC
from ngd_cupy._ops import NATIVE, cholesky_ops
from ngd_cupy._optimizers import NaturalGradient

__all__ = [
    "EKFAC",
    "Epoch",
    "FNGD",
    "KFAC",
    "NATIVE",
    "NaturalGradient",
    "ProjectiveKFAC",
    "SNGD",
    "SOFIM",
    "cholesky_ops",
    "evaluate",
    "fit",
]
