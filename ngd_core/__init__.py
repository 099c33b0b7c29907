"""Natural-gradient methods written once against the Python Array API standard."""

from ngd_core import factors, inversion, losses, step
from ngd_core.methods import KFAC, BasisNoise, DenseNGD, ProjectiveKFAC
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
    "Hyper",
    "Info",
    "KFAC",
    "LayerRecord",
    "LayerSpec",
    "Method",
    "ProjectiveKFAC",
    "factors",
    "inversion",
    "losses",
    "step",
]
