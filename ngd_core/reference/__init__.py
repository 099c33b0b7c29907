"""The oracle: natural gradients by definition, in NumPy float64, slow and obvious.

Describe a network with `Layer` and `Network`, hand over its parameters as one block ``[W b]`` per
layer, and compare your own code with

- `parameter_jacobians`, `loss_gradients`, `output_gradients`: derivatives by the complex step;
- `exact_fisher`, `monte_carlo_fisher`, `empirical_fisher`, `natural_gradient`: dense matrices;
- `kronecker_factors`, `kfac_factors`, `damped`, `direction`: K-FAC and KFC by their definitions;
- `basis_diagonal`, `ekfac_fisher`, `ekfac_factors`, `ekfac_direction`: EKFAC, likewise;
- `embedding_factors`, `scale_factors`: the same for look-ups and elementwise scales;
- `chain_fisher`, `tridiagonal_fisher`, `tridiagonal_direction`: block-tridiagonal K-FAC;
- `local_fisher`, `local_fishers`, `local_direction`, `reconstructed_descent`: SNGD by its own;
- `fngd_directions`, `sofim_direction`: FNGD over epochs, SOFIM, by dense solves;
- `lifted_inverse`, `followed_inverse`, `projective_direction`: projected, recursive inverses;
- `log_determinant`, `effective_dimension`, `ritz_values`, `agreement`, `kl_divergence`: analysis.
- `quadratic_model`, `conjugate_gradients`, `kfc_pre_path`: the papers' step rules.

It imports NumPy alone and shares no code with the rest of the package. Scale: F is the Fisher of
the mean loss, ``F = (1/N) sum_n E[grad l_n grad l_n^T]``, and damping is added to that F.
"""

from ngd_core.reference.analysis import (
    DenseAgreement,
    agreement,
    effective_dimension,
    gradient_fisher,
    kl_divergence,
    log_determinant,
    ritz_values,
    sign_trace_variance,
    smoothed_density,
)
from ngd_core.reference.derivatives import (
    jacobian,
    loss_gradients,
    mean_loss_gradient,
    output_gradients,
    output_jacobians,
    parameter_jacobians,
)
from ngd_core.reference.ekfac import (
    basis_diagonal,
    block_fisher,
    ekfac_direction,
    ekfac_factors,
    ekfac_fisher,
)
from ngd_core.reference.elementwise import (
    embedding_factors,
    one_hot,
    scale_factors,
    scale_fisher,
)
from ngd_core.reference.fisher import (
    diagonal_blocks,
    empirical_fisher,
    exact_fisher,
    gauss_newton,
    monte_carlo_fisher,
    natural_gradient,
    second_moment,
    solve,
)
from ngd_core.reference.fngd import (
    embedding_example_gradients,
    example_gradients,
    fngd_coefficients,
    fngd_damping,
    fngd_direction,
    fngd_directions,
    norm_scale_example_gradients,
)
from ngd_core.reference.images import (
    avg_pool2d,
    conv2d,
    conv_patches,
    global_avg_pool2d,
    max_pool2d,
)
from ngd_core.reference.kfac import canonical_record, kfac_factors, kronecker_factors
from ngd_core.reference.kronecker import damped, direction, kron
from ngd_core.reference.layers import dense, flatten, gelu, layer_norm, relu, sigmoid, tanh
from ngd_core.reference.losses import (
    backpropagated_vectors,
    loss_gradient,
    loss_hessian,
    loss_hessian_root,
    loss_value,
    sample_targets,
)
from ngd_core.reference.network import Layer, Network
from ngd_core.reference.projective import (
    dominant_eigenvectors,
    followed_inverse,
    lifted_inverse,
    projective_direction,
    weighted_average,
)
from ngd_core.reference.sngd import (
    local_damping,
    local_direction,
    local_fisher,
    local_fishers,
    moving_average,
    reconstructed_descent,
    symmetric_power,
)
from ngd_core.reference.sofim import sofim_direction, sofim_fisher, sofim_moment
from ngd_core.reference.step import (
    conjugate_gradients,
    iterate_average,
    kfc_pre_path,
    levenberg_marquardt,
    quadratic_coefficients,
    quadratic_model,
)
from ngd_core.reference.tridiagonal import (
    chain_factors,
    chain_fisher,
    tridiagonal_direction,
    tridiagonal_fisher,
    tridiagonal_inverse,
)

__all__ = [
    "DenseAgreement",
    "Layer",
    "Network",
    "agreement",
    "avg_pool2d",
    "backpropagated_vectors",
    "basis_diagonal",
    "block_fisher",
    "canonical_record",
    "chain_factors",
    "chain_fisher",
    "conjugate_gradients",
    "conv2d",
    "conv_patches",
    "damped",
    "dense",
    "diagonal_blocks",
    "direction",
    "dominant_eigenvectors",
    "effective_dimension",
    "ekfac_direction",
    "ekfac_factors",
    "ekfac_fisher",
    "embedding_example_gradients",
    "embedding_factors",
    "empirical_fisher",
    "exact_fisher",
    "example_gradients",
    "flatten",
    "fngd_coefficients",
    "fngd_damping",
    "fngd_direction",
    "fngd_directions",
    "followed_inverse",
    "gauss_newton",
    "gelu",
    "global_avg_pool2d",
    "gradient_fisher",
    "iterate_average",
    "jacobian",
    "kfac_factors",
    "kfc_pre_path",
    "kl_divergence",
    "kron",
    "kronecker_factors",
    "layer_norm",
    "levenberg_marquardt",
    "lifted_inverse",
    "local_damping",
    "local_direction",
    "local_fisher",
    "local_fishers",
    "log_determinant",
    "loss_gradient",
    "loss_gradients",
    "loss_hessian",
    "loss_hessian_root",
    "loss_value",
    "max_pool2d",
    "mean_loss_gradient",
    "monte_carlo_fisher",
    "moving_average",
    "natural_gradient",
    "norm_scale_example_gradients",
    "one_hot",
    "output_gradients",
    "output_jacobians",
    "parameter_jacobians",
    "projective_direction",
    "quadratic_coefficients",
    "quadratic_model",
    "reconstructed_descent",
    "relu",
    "ritz_values",
    "sample_targets",
    "scale_factors",
    "scale_fisher",
    "second_moment",
    "sigmoid",
    "sign_trace_variance",
    "smoothed_density",
    "sofim_direction",
    "sofim_fisher",
    "sofim_moment",
    "solve",
    "symmetric_power",
    "tanh",
    "tridiagonal_direction",
    "tridiagonal_fisher",
    "tridiagonal_inverse",
    "weighted_average",
]
