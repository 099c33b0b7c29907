"""Curvature as linear operators, for work besides training: posteriors, influence, pruning.

Both kinds act on blocks (mappings of `LayerSpec` to arrays of ``spec.block_shape``) with ``@``, and
both are closed under ``inverse`` and ``sqrt``, which change their eigenvalues alone. In a
`MappedOperator` the adapters give them the parameters of a model in place of blocks.
"""

from ngd_core.operators.fisher import FisherOperator, fisher
from ngd_core.operators.kronecker import EigenBlock, KroneckerOperator, kronecker
from ngd_core.operators.mapped import MappedOperator

__all__ = [
    "EigenBlock",
    "FisherOperator",
    "KroneckerOperator",
    "MappedOperator",
    "fisher",
    "kronecker",
]
