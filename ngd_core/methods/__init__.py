"""Natural-gradient methods: frozen dataclasses of static options, pure functions of arrays."""

from ngd_core.methods.dense import DenseNGD
from ngd_core.methods.kfac import KFAC

__all__ = ["KFAC", "DenseNGD"]
