"""Damping, safe inverses and Kronecker algebra."""

from ngd_core.inversion.damped_kronecker import (
    ExactInverse,
    PiInverse,
    apply_inverse,
    identity_inverse,
    refresh_inverse,
)
from ngd_core.inversion.damping import factored_damping, mean_diagonal
from ngd_core.inversion.kronecker import kronecker_dense, kronecker_product, kronecker_solve_eigh
from ngd_core.inversion.ops import EAGER, PURE, Ops
from ngd_core.inversion.spd import damped_inverse, fallback_code, safe_eigh, solve_dtype
from ngd_core.inversion.triangular import spd_inverse

__all__ = [
    "EAGER",
    "ExactInverse",
    "Ops",
    "PURE",
    "PiInverse",
    "apply_inverse",
    "damped_inverse",
    "factored_damping",
    "fallback_code",
    "identity_inverse",
    "kronecker_dense",
    "kronecker_product",
    "kronecker_solve_eigh",
    "mean_diagonal",
    "refresh_inverse",
    "safe_eigh",
    "solve_dtype",
    "spd_inverse",
]
