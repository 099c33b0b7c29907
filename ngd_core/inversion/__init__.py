"""Damping, safe inverses, square roots and Kronecker algebra."""

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
from ngd_core.inversion.roots import (
    Roots,
    condition_bound,
    damped_roots,
    denman_beavers,
    landmarks,
    newton_schulz,
    nystrom,
    shifted_power,
)
from ngd_core.inversion.spd import damped_inverse, fallback_code, safe_eigh, solve_dtype
from ngd_core.inversion.triangular import spd_inverse

__all__ = [
    "EAGER",
    "ExactInverse",
    "Ops",
    "PURE",
    "PiInverse",
    "Roots",
    "apply_inverse",
    "condition_bound",
    "damped_inverse",
    "damped_roots",
    "denman_beavers",
    "factored_damping",
    "fallback_code",
    "identity_inverse",
    "kronecker_dense",
    "kronecker_product",
    "kronecker_solve_eigh",
    "landmarks",
    "mean_diagonal",
    "newton_schulz",
    "nystrom",
    "refresh_inverse",
    "safe_eigh",
    "shifted_power",
    "solve_dtype",
    "spd_inverse",
]
