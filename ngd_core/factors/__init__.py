"""Fisher factors and gradients from layer inputs and output gradients."""

from ngd_core.factors.average import average
from ngd_core.factors.directional import directional_derivatives, fisher_inner, fisher_product
from ngd_core.factors.eigen import eigen_scales, rebase_scales
from ngd_core.factors.gram import embedding_gram, gram, gram_route, norm_scale_gram
from ngd_core.factors.kronecker import (
    factor_shapes,
    input_factor,
    input_moment,
    kronecker_factors,
    output_factor,
    output_moment,
    token_frequencies,
)
from ngd_core.factors.lags import image_moment, image_moment_products
from ngd_core.factors.local import linear_fisher, relu_fisher
from ngd_core.factors.moment import cross_moment, second_moment
from ngd_core.factors.per_example import mean_gradient, per_example_gradients, weighted_gradient
from ngd_core.factors.records import batch_shape, check_batch, check_record, several_vectors
from ngd_core.factors.samples import input_samples, output_samples
from ngd_core.factors.sharing import Rows, gradient_rows, join, rows, split, token_rows
from ngd_core.factors.tied import product_of_marginals
from ngd_core.factors.uses import joined, unfolded

__all__ = [
    "Rows",
    "average",
    "batch_shape",
    "check_batch",
    "check_record",
    "cross_moment",
    "directional_derivatives",
    "eigen_scales",
    "embedding_gram",
    "factor_shapes",
    "fisher_inner",
    "fisher_product",
    "gradient_rows",
    "gram",
    "gram_route",
    "image_moment",
    "image_moment_products",
    "input_factor",
    "input_moment",
    "input_samples",
    "join",
    "joined",
    "kronecker_factors",
    "linear_fisher",
    "mean_gradient",
    "norm_scale_gram",
    "output_factor",
    "output_moment",
    "output_samples",
    "per_example_gradients",
    "product_of_marginals",
    "rebase_scales",
    "relu_fisher",
    "rows",
    "second_moment",
    "several_vectors",
    "split",
    "token_frequencies",
    "token_rows",
    "unfolded",
    "weighted_gradient",
]
