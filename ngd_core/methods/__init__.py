"""Natural-gradient methods: frozen dataclasses of static options, pure functions of arrays."""

from ngd_core.methods.dense import DenseNGD
from ngd_core.methods.kfac import KFAC
from ngd_core.methods.projective import BasisNoise, ProjectiveKFAC

__all__ = ["KFAC", "BasisNoise", "DenseNGD", "ProjectiveKFAC"]
