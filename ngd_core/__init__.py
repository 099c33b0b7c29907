"""Natural-gradient methods written once against the Python Array API standard."""

from ngd_core import factors, inversion, losses, reconstruction, step
from ngd_core.methods import KFAC, SNGD, DenseNGD
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
    "Hyper",
    "Info",
    "KFAC",
    "LayerRecord",
    "LayerSpec",
    "Method",
    "SNGD",
    "factors",
    "inversion",
    "losses",
    "reconstruction",
    "step",
]
