"""Damping, safe, projected and recursive inverses, and Kronecker algebra."""

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
from ngd_core.inversion.projection import (
    apply_projected,
    change_basis,
    compress,
    orthonormal_basis,
    range_basis,
    top_basis,
)
from ngd_core.inversion.recursion_cost import (
    inversion_flops,
    recursion_flops,
    recursion_pays,
    resync_period,
)
from ngd_core.inversion.recursive import (
    RecursiveInverse,
    follow,
    identity_recursive,
    lag,
    recursive_update,
    resync,
)
from ngd_core.inversion.spd import damped_inverse, fallback_code, safe_eigh, solve_dtype
from ngd_core.inversion.triangular import spd_inverse, triangular_inverse

__all__ = [
    "EAGER",
    "ExactInverse",
    "Ops",
    "PURE",
    "PiInverse",
    "RecursiveInverse",
    "apply_inverse",
    "apply_projected",
    "change_basis",
    "compress",
    "damped_inverse",
    "factored_damping",
    "fallback_code",
    "follow",
    "identity_inverse",
    "identity_recursive",
    "inversion_flops",
    "kronecker_dense",
    "kronecker_product",
    "kronecker_solve_eigh",
    "lag",
    "mean_diagonal",
    "orthonormal_basis",
    "range_basis",
    "recursion_flops",
    "recursion_pays",
    "recursive_update",
    "refresh_inverse",
    "resync",
    "resync_period",
    "safe_eigh",
    "solve_dtype",
    "spd_inverse",
    "top_basis",
    "triangular_inverse",
]
