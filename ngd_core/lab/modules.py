"""What training modules of PyTorch and of JAX share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from ngd_core import LayerRecord, LayerSpec, Method, _xp, analysis
from ngd_core._typing import Array
from ngd_core.lab.methods import Entry
from ngd_core.lab.train import EXACT_DAMPING, Coverage
from ngd_core.methods import SNGD

__all__ = ["beside_exact", "covered", "fisher_of"]


def fisher_of(entry: Entry, method: Method) -> Literal["mc", "empirical"]:
    """Name the records a method takes, as the adapters do; SNGD looks at inputs alone."""
    sampled = entry.observes == "samples" and not isinstance(method, SNGD)
    return "mc" if sampled else "empirical"


def covered(sizes: Mapping[str, int], uncovered: dict[str, str]) -> Coverage:
    """Count what has curvature.

    Parameters
    ----------
    sizes : mapping of str to int
        Numbers in each parameter.
    uncovered : dict of str to str
        For each parameter without curvature, why.

    Returns
    -------
    Coverage
        Of all parameters.
    """
    total = sum(sizes.values())
    return Coverage(total - sum(sizes[name] for name in uncovered), total, uncovered)


def beside_exact(
    directions: Mapping[str, Array], grads: Mapping[str, Array], each: Mapping[str, Array]
) -> analysis.Agreement:
    """Compare a module's direction with the exact natural gradient of all parameters.

    Parameters
    ----------
    directions, grads : mapping of str to array
        By parameter, of its shape.
    each : mapping of str to array, shape (N, M, ...)
        Gradients of each example's outputs along the M vectors of the exact Fisher.

    Returns
    -------
    Agreement
        At `train.EXACT_DAMPING`.
    """
    records, named = {}, {}
    for name, gradients in each.items():
        xp = _xp.namespace_of(gradients)
        spec = LayerSpec(name, "dense", math.prod(gradients.shape[2:]), 1, bias=False)
        rows = xp.reshape(gradients, (-1, spec.in_features)) * gradients.shape[1] ** 0.5
        records[spec], named[spec] = LayerRecord(rows, xp.ones_like(rows[:, :1])), name
    flat_directions, flat_grads = (
        {spec: xp.reshape(tree[name], spec.block_shape) for spec, name in named.items()}
        for tree in (directions, grads)
    )
    return analysis.agreement(flat_directions, flat_grads, records, EXACT_DAMPING)
