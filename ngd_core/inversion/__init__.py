"""Damping, safe, projected and recursive inverses, square roots and Kronecker algebra."""

from ngd_core.inversion.damped_kronecker import (
    ExactInverse,
    PiInverse,
    apply_inverse,
    identity_inverse,
    refresh_inverse,
)
from ngd_core.inversion.damping import factored_damping, mean_diagonal
from ngd_core.inversion.diagonal import diagonal_inverse, diagonal_spectrum, is_diagonal
from ngd_core.inversion.kronecker import (
    eigenbasis_solve,
    kronecker_dense,
    kronecker_product,
    kronecker_solve_eigh,
)
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
from ngd_core.inversion.schulz import (
    NewtonSchulz,
    frobenius_norm,
    newton_schulz_inverse,
    newton_schulz_ops,
)
from ngd_core.inversion.spd import damped_inverse, fallback_code, safe_eigh, solve_dtype
from ngd_core.inversion.triangular import spd_inverse
from ngd_core.inversion.tridiagonal import (
    ChainInverse,
    Link,
    apply_chain,
    identity_chain,
    kronecker_difference_solve,
    refresh_chain,
)

__all__ = [
    "ChainInverse",
    "EAGER",
    "ExactInverse",
    "Link",
    "NewtonSchulz",
    "Ops",
    "PURE",
    "PiInverse",
    "RecursiveInverse",
    "Roots",
    "apply_chain",
    "apply_inverse",
    "apply_projected",
    "change_basis",
    "compress",
    "condition_bound",
    "damped_inverse",
    "damped_roots",
    "denman_beavers",
    "diagonal_inverse",
    "diagonal_spectrum",
    "eigenbasis_solve",
    "factored_damping",
    "fallback_code",
    "follow",
    "frobenius_norm",
    "identity_chain",
    "identity_inverse",
    "identity_recursive",
    "inversion_flops",
    "is_diagonal",
    "kronecker_dense",
    "kronecker_difference_solve",
    "kronecker_product",
    "kronecker_solve_eigh",
    "lag",
    "landmarks",
    "mean_diagonal",
    "newton_schulz",
    "newton_schulz_inverse",
    "newton_schulz_ops",
    "nystrom",
    "orthonormal_basis",
    "range_basis",
    "recursion_flops",
    "recursion_pays",
    "recursive_update",
    "refresh_chain",
    "refresh_inverse",
    "resync",
    "resync_period",
    "safe_eigh",
    "shifted_power",
    "solve_dtype",
    "spd_inverse",
    "top_basis",
]
