"""Natural-gradient methods for JAX: records by tracing, directions as Optax transformations."""

from ngd_jax._capture import value_and_grad
from ngd_jax._operators import fisher, kronecker
from ngd_jax._ops import NATIVE
from ngd_jax._optimizers import ekfac, fngd, kfac, projective_kfac, sngd, sofim
from ngd_jax._report import Report, report
from ngd_jax._tag import tag
from ngd_jax._transform import PreconditionState, precondition

__all__ = [
    "NATIVE",
    "PreconditionState",
    "Report",
    "ekfac",
    "fisher",
    "fngd",
    "kfac",
    "kronecker",
    "precondition",
    "projective_kfac",
    "report",
    "sngd",
    "sofim",
    "tag",
    "value_and_grad",
]
