"""Fisher information of a batch without the matrix, from the records of one backward pass.

All of it is about the joint Fisher of the given layers, blocks between layers included, of the
mean loss: ``F = (1/N) sum_mn u_mn u_mn^T``. Which Fisher it is (exact, sampled, empirical) is
decided by the vectors that were carried back to make the records.
"""

from ngd_core.analysis.comparison import Agreement, agreement, layer_agreements, method_agreement
from ngd_core.analysis.duality import (
    LIMIT,
    eigenvalues,
    fisher_gram,
    frobenius_norm,
    natural_gradient,
)
from ngd_core.analysis.estimates import (
    Quadrature,
    hutchinson_trace,
    hutchinson_variance,
    spectral_density,
    spectral_quadrature,
)
from ngd_core.analysis.kronecker import KroneckerSpectrum, kfac_trace_error, kronecker_spectrum
from ngd_core.analysis.krylov import Lanczos, lanczos
from ngd_core.analysis.marginals import (
    diagonal,
    example_norms,
    layer_traces,
    trace,
    unit_information,
)
from ngd_core.analysis.spectrum import condition_number, effective_dimension, log_determinant

__all__ = [
    "Agreement",
    "KroneckerSpectrum",
    "LIMIT",
    "Lanczos",
    "Quadrature",
    "agreement",
    "condition_number",
    "diagonal",
    "effective_dimension",
    "eigenvalues",
    "example_norms",
    "fisher_gram",
    "frobenius_norm",
    "hutchinson_trace",
    "hutchinson_variance",
    "kfac_trace_error",
    "kronecker_spectrum",
    "lanczos",
    "layer_agreements",
    "layer_traces",
    "log_determinant",
    "method_agreement",
    "natural_gradient",
    "spectral_density",
    "spectral_quadrature",
    "trace",
    "unit_information",
]
