"""What `ngd inspect` looks at: a model on some examples, ready for `ngd_core.analysis`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from ngd_core import Hyper, analysis, losses, nn
from ngd_core._typing import Array
from ngd_core.inversion import EAGER
from ngd_core.lab.methods import METHODS, Plan
from ngd_core.lab.train import LOSS, Coverage, Params, mean, measure
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["RELATIVE", "Subject", "damping_of", "of_network"]

RELATIVE = ("sngd", "fngd", "sofim")
"""Methods whose damping is not a number added to the Fisher, so that it stays their own."""


class Subject(NamedTuple):
    """A model on N examples.

    Parameters
    ----------
    records : mapping of LayerSpec to LayerRecord
        Of the exact Fisher, one a layer and all its parameters in it.
    units : mapping of LayerSpec to array, shape (units,)
        Trace of the Fisher of each unit's own parameters.
    grads : mapping of LayerSpec to array, shape spec.block_shape
        Of the mean loss.
    loss, accuracy : float
        Mean loss, and part of the examples classified rightly.
    beside : callable
        ``beside(method)``: its direction beside the exact natural gradient, or why it has none.
    coverage : callable
        ``coverage(method)``: what it knows of the layers; None if it treats all numbers alike.
    """

    records: Mapping[LayerSpec, LayerRecord]
    units: Mapping[LayerSpec, Array]
    grads: Mapping[LayerSpec, Array]
    loss: float
    accuracy: float
    beside: Callable[[str], analysis.Agreement | str]
    coverage: Callable[[str], Coverage | None]


def damping_of(method: str, damping: float) -> float | None:
    """Damping of a method beside an exact natural gradient with some damping; None if it has none.

    Parameters
    ----------
    method : str
        A key of `methods.METHODS`.
    damping : float
        Of the exact one.

    Returns
    -------
    float or None
        The same, or for the methods in `RELATIVE` their own.
    """
    own = METHODS[method].damping
    return own if own is None or method in RELATIVE else damping


def of_network(
    network: nn.Sequential, params: Params, x: Array, y: Array, damping: float
) -> Subject:
    """Look at a network of the core.

    Parameters
    ----------
    network : ngd_core.nn.Sequential
        Of dense and convolutional layers.
    params : mapping of str to array
        Its values.
    x, y : array
        Inputs and labels of N examples.
    damping : float
        Of the exact natural gradient.

    Returns
    -------
    Subject
        In the dtype of the values. Methods have seen these examples alone: the exact Fisher, or
        the labels' own gradients where they take those.
    """
    outputs, tape = nn.forward(network, params, x)
    vectors = losses.fisher_vectors("exact", LOSS, outputs)
    exact = nn.backward(network, params, tape, vectors, grads=False).records
    back = nn.backward(network, params, tape, LOSS.gradient(outputs, y))
    grads = {spec: back.grads[spec.name] for spec in exact}
    kinds = {spec.kind for spec in exact}

    def beside(method: str) -> analysis.Agreement | str:
        entry = METHODS[method]
        if entry.curvature is None:
            scaled = entry.rule.scaled(entry.rule.init(back.grads), back.grads)
            directions = {spec: scaled[spec.name] for spec in exact}
            return analysis.agreement(directions, grads, exact, damping)
        if not kinds <= set(entry.kinds):
            return "it does not take all layers of this model"
        return analysis.method_agreement(
            entry.curvature(Plan(EAGER, len(y), 1)),
            exact if entry.observes == "samples" else back.records,
            grads,
            _hyper(method, damping),
            exact_records=exact,
            damping=damping,
        )

    def coverage(method: str) -> Coverage | None:
        entry = METHODS[method]
        if entry.curvature is None or entry.observes == "gradients":
            return None
        total = sum(grads[spec].size for spec in exact)
        return Coverage(total, total, {})

    loss, accuracy = mean(measure(partial(nn.predict, network, params)), (x, y))
    units = analysis.unit_information(exact)
    return Subject(exact, units, grads, loss, accuracy, beside, coverage)


def _hyper(method: str, damping: float) -> Any:
    own = damping_of(method, damping)
    return Hyper() if own is None else Hyper(damping=own)
