"""Natural-gradient methods: frozen dataclasses of static options, pure functions of arrays."""

from ngd_core.methods.cost import LayerCost, layer_cost
from ngd_core.methods.dense import DenseNGD
from ngd_core.methods.ekfac import EKFAC
from ngd_core.methods.fngd import FNGD
from ngd_core.methods.kfac import KFAC
from ngd_core.methods.projective import BasisNoise, ProjectiveKFAC
from ngd_core.methods.sngd import SNGD
from ngd_core.methods.sofim import SOFIM
from ngd_core.methods.tridiagonal import TridiagonalKFAC

__all__ = [
    "BasisNoise",
    "DenseNGD",
    "EKFAC",
    "FNGD",
    "KFAC",
    "LayerCost",
    "ProjectiveKFAC",
    "SNGD",
    "SOFIM",
    "TridiagonalKFAC",
    "layer_cost",
]
