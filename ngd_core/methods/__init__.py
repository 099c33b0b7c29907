"""Natural-gradient methods: frozen dataclasses of static options, pure functions of arrays."""

from ngd_core.methods.dense import DenseNGD
from ngd_core.methods.fngd import FNGD
from ngd_core.methods.kfac import KFAC
from ngd_core.methods.projective import BasisNoise, ProjectiveKFAC
from ngd_core.methods.sngd import SNGD
from ngd_core.methods.sofim import SOFIM

__all__ = ["FNGD", "KFAC", "SNGD", "SOFIM", "BasisNoise", "DenseNGD", "ProjectiveKFAC"]
