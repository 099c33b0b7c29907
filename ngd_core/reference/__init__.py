"""The oracle: natural gradients by definition, in NumPy float64, slow and obvious.

Describe a network with `Layer` and `Network`, hand over its parameters as one block ``[W b]`` per
layer, and compare your own code with

- `parameter_jacobians`, `loss_gradients`, `output_gradients`: derivatives by the complex step;
- `exact_fisher`, `monte_carlo_fisher`, `empirical_fisher`, `natural_gradient`: dense matrices;
- `kronecker_factors`, `kfac_factors`, `damped`, `direction`: K-FAC and KFC by their definitions;
- `local_fisher`, `local_fishers`, `local_direction`, `reconstructed_descent`: SNGD by its own;
- `fngd_directions`, `sofim_direction`: FNGD over epochs, SOFIM, by dense solves;
- `lifted_inverse`, `followed_inverse`, `projective_direction`: projected, recursive inverses.

It imports NumPy alone and shares no code with the rest of the package. Scale: F is the Fisher of
the mean loss, ``F = (1/N) sum_n E[grad l_n grad l_n^T]``, and damping is added to that F.
"""

from ngd_core.reference.derivatives import (
    jacobian,
    loss_gradients,
    mean_loss_gradient,
    output_gradients,
    output_jacobians,
    parameter_jacobians,
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

__all__ = [
    "Layer",
    "Network",
    "avg_pool2d",
    "backpropagated_vectors",
    "canonical_record",
    "conv2d",
    "conv_patches",
    "damped",
    "dense",
    "diagonal_blocks",
    "direction",
    "dominant_eigenvectors",
    "embedding_example_gradients",
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
    "jacobian",
    "kfac_factors",
    "kron",
    "kronecker_factors",
    "layer_norm",
    "lifted_inverse",
    "local_damping",
    "local_direction",
    "local_fisher",
    "local_fishers",
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
    "output_gradients",
    "output_jacobians",
    "parameter_jacobians",
    "projective_direction",
    "reconstructed_descent",
    "relu",
    "sample_targets",
    "second_moment",
    "sigmoid",
    "sofim_direction",
    "sofim_fisher",
    "sofim_moment",
    "solve",
    "symmetric_power",
    "tanh",
    "weighted_average",
]
