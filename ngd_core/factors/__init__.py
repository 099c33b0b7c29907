"""Fisher factors and gradients from layer inputs and output gradients."""

from ngd_core.factors.average import average
from ngd_core.factors.gram import embedding_gram, gram, gram_route, norm_scale_gram
from ngd_core.factors.kronecker import input_factor, kronecker_factors, output_factor
from ngd_core.factors.local import linear_fisher, relu_fisher
from ngd_core.factors.moment import second_moment
from ngd_core.factors.per_example import mean_gradient, per_example_gradients
from ngd_core.factors.samples import input_samples, output_samples
from ngd_core.factors.sharing import Rows, join, rows, split

__all__ = [
    "Rows",
    "average",
    "embedding_gram",
    "gram",
    "gram_route",
    "input_factor",
    "input_samples",
    "join",
    "kronecker_factors",
    "linear_fisher",
    "mean_gradient",
    "norm_scale_gram",
    "output_factor",
    "output_samples",
    "per_example_gradients",
    "relu_fisher",
    "rows",
    "second_moment",
    "split",
]
