"""Damping, safe inverses and Kronecker algebra."""

from ngd_core.inversion.damping import factored_damping, mean_diagonal
from ngd_core.inversion.kronecker import kronecker_dense, kronecker_product, kronecker_solve_eigh
from ngd_core.inversion.ops import EAGER, PURE, Ops
from ngd_core.inversion.spd import damped_inverse, fallback_code, safe_eigh, solve_dtype
from ngd_core.inversion.triangular import spd_inverse, triangular_inverse

__all__ = [
    "EAGER",
    "PURE",
    "Ops",
    "damped_inverse",
    "factored_damping",
    "fallback_code",
    "kronecker_dense",
    "kronecker_product",
    "kronecker_solve_eigh",
    "mean_diagonal",
    "safe_eigh",
    "solve_dtype",
    "spd_inverse",
    "triangular_inverse",
]
