"""Natural-gradient methods written once against the Python Array API standard."""

from ngd_core import factors, inversion, losses, rank_one, reconstruction, step, weighting
from ngd_core.methods import FNGD, KFAC, SNGD, SOFIM, BasisNoise, DenseNGD, ProjectiveKFAC
from ngd_core.types import (
    CODE_MEANING,
    Conv2dGeometry,
    Hyper,
    Info,
    LayerRecord,
    LayerSpec,
    Method,
)

__all__ = [
    "BasisNoise",
    "CODE_MEANING",
    "Conv2dGeometry",
    "DenseNGD",
    "FNGD",
    "Hyper",
    "Info",
    "KFAC",
    "LayerRecord",
    "LayerSpec",
    "Method",
    "ProjectiveKFAC",
    "SNGD",
    "SOFIM",
    "factors",
    "inversion",
    "losses",
    "rank_one",
    "reconstruction",
    "step",
    "weighting",
]
