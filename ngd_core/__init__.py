"""Natural-gradient methods written once against the Python Array API standard."""

from ngd_core import factors, inversion, losses, rank_one, reconstruction, step, weighting
from ngd_core.methods import FNGD, KFAC, SNGD, SOFIM, DenseNGD
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
