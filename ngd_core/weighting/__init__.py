"""Weighted sums of per-example gradients: their coefficients, and tables that keep them."""

from ngd_core.factors.per_example import weighted_gradient
from ngd_core.weighting.tables import (
    PositionMean,
    WeightTable,
    close_epoch,
    empty_table,
    look_up,
    record_weights,
    table_slots,
)
from ngd_core.weighting.woodbury import (
    coefficients,
    descent_guard,
    layer_damping,
)

__all__ = [
    "PositionMean",
    "WeightTable",
    "close_epoch",
    "coefficients",
    "descent_guard",
    "empty_table",
    "layer_damping",
    "look_up",
    "record_weights",
    "table_slots",
    "weighted_gradient",
]
