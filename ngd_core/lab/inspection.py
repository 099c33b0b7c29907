"""What `ngd inspect` finds, and its form in inspect.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ngd_core import _xp, analysis
from ngd_core._typing import Array
from ngd_core.lab.methods import METHODS
from ngd_core.lab.subject import Subject, damping_of
from ngd_core.types import LayerRecord, LayerSpec

__all__ = ["About", "Beside", "Inspection", "Layer", "as_json", "from_json", "look"]

FORMAT = 1
EXACT, BLOCKS = "Exact", "Exact, layer by layer"
"""The exact natural gradient itself, and that of each layer alone."""

DECADES, POINTS = 4, 33
"""Of dampings around the one asked for, at which the effective dimension is told."""


class About(NamedTuple):
    """What was looked at; plain values.

    Parameters
    ----------
    command : str
        Shell command that repeats it.
    model, title, note : str
        Key of the model, its name for people, its layers in words.
    data, backend : str
        As they were asked for.
    weights : str or None
        Path of the file; None for initial values.
    seed : int
        Of initial values.
    examples, classes : int
        Numbers of them.
    damping : float
        Added to the Fisher.
    versions : dict of str to str
        Of Python and of the libraries at work.
    """

    command: str
    model: str
    title: str
    note: str
    data: str
    backend: str
    weights: str | None
    seed: int
    examples: int
    classes: int
    damping: float
    versions: dict[str, str]


class Layer(NamedTuple):
    """Some parameters, one layer's or all.

    Parameters
    ----------
    parameters : int
        How many.
    information : float
        Trace of their Fisher.
    units : tuple of float
        Trace for each unit's own parameters; empty for all layers together.
    eigenvalues : tuple of float
        All that may differ from zero, the largest first.
    effective_dimension : float
        At the damping asked for.
    """

    parameters: int
    information: float
    units: tuple[float, ...]
    eigenvalues: tuple[float, ...]
    effective_dimension: float


class Beside(NamedTuple):
    """A method's direction beside the exact natural gradient; numbers are None where there is none.

    Parameters
    ----------
    damping : float or None
        Of the method.
    cosine, relative_error, decrease : float or None
        As in `ngd_core.analysis.Agreement`.
    refused : str or None
        Why it has no direction, in a sentence.
    covered : int or None
        Numbers in layers that it has curvature for; None if it treats all alike.
    uncovered : dict of str to str
        For each parameter that follows its gradient, why.
    """

    damping: float | None
    cosine: float | None
    relative_error: float | None
    decrease: float | None
    refused: str | None
    covered: int | None
    uncovered: dict[str, str]


class Inspection(NamedTuple):
    """All that was seen.

    Parameters
    ----------
    about : About
        What was looked at.
    loss, accuracy : float
        On the examples.
    all : Layer
        All parameters together.
    layers : dict of str to Layer
        In the order of the model.
    dampings, dimensions : tuple of float
        Effective dimension of all parameters at some dampings.
    methods : dict of str to Beside
        By title: the exact natural gradient, that of each layer alone, and `methods.METHODS`.
    """

    about: About
    loss: float
    accuracy: float
    all: Layer
    layers: dict[str, Layer]
    dampings: tuple[float, ...]
    dimensions: tuple[float, ...]
    methods: dict[str, Beside]


def look(about: About, subject: Subject) -> Inspection:
    """Compute everything with `ngd_core.analysis`.

    Parameters
    ----------
    about : About
        What is looked at.
    subject : Subject
        The model on the examples.

    Returns
    -------
    Inspection
        Plain values.
    """
    damping, records = about.damping, subject.records
    layers = {
        spec.name: _layer({spec: record}, _floats(subject.units[spec]), damping)
        for spec, record in records.items()
    }
    whole = _layer(records, (), damping)
    dampings = damping * np.logspace(-DECADES, DECADES, POINTS)
    values = np.asarray(whole.eigenvalues)
    dimensions = (analysis.effective_dimension(values, float(x)) for x in dampings)
    return Inspection(
        about,
        subject.loss,
        subject.accuracy,
        whole,
        layers,
        _floats(dampings),
        tuple(map(float, dimensions)),
        _exact(subject, damping)
        | {METHODS[name].title: _beside(name, subject, damping) for name in METHODS},
    )


def _layer(
    records: Mapping[LayerSpec, LayerRecord], units: tuple[float, ...], damping: float
) -> Layer:
    values = analysis.eigenvalues(records)
    return Layer(
        sum(math.prod(spec.block_shape) for spec in records),
        float(analysis.trace(records)),
        units,
        _floats(values),
        float(analysis.effective_dimension(values, damping)),
    )


def _exact(subject: Subject, damping: float) -> dict[str, Beside]:
    """Directions that need no method."""
    records, grads = subject.records, subject.grads
    joint = analysis.natural_gradient(records, grads, damping)
    alone = {
        spec: analysis.natural_gradient({spec: records[spec]}, {spec: grad}, damping)[spec]
        for spec, grad in grads.items()
    }
    return {
        title: _numbers(damping, analysis.agreement(directions, grads, records, damping))
        for title, directions in ((EXACT, joint), (BLOCKS, alone))
    }


def _beside(name: str, subject: Subject, damping: float) -> Beside:
    own, found = damping_of(name, damping), subject.beside(name)
    if isinstance(found, str):
        return Beside(own, None, None, None, found, None, {})
    coverage = subject.coverage(name)
    beside = _numbers(own, found)
    if coverage is None:
        return beside
    return beside._replace(covered=coverage.numbers, uncovered=coverage.uncovered)


def _numbers(damping: float | None, found: analysis.Agreement) -> Beside:
    cosine, error, decrease = (
        float(x) if math.isfinite(float(x)) else None
        for x in (found.cosine, found.relative_error, found.decrease)
    )
    return Beside(damping, cosine, error, decrease, None, None, {})


def _floats(values: Array | Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, np.asarray(_xp.on_host(values))))


def as_json(found: Inspection) -> dict[str, Any]:
    """Inspection as plain values for `json.dump`; equal runs give equal values."""
    parts = {
        "about": found.about._asdict(),
        "all": found.all._asdict(),
        "layers": {name: layer._asdict() for name, layer in found.layers.items()},
        "methods": {title: beside._asdict() for title, beside in found.methods.items()},
    }
    return {"format": FORMAT, **(found._asdict() | parts)}


def from_json(value: Mapping[str, Any]) -> Inspection:
    """Inspection of what `as_json` made of it, read back from a file."""

    def layer(of: Mapping[str, Any]) -> Layer:
        return Layer(**{**of, **{name: tuple(of[name]) for name in ("units", "eigenvalues")}})

    return Inspection(
        About(**value["about"]),
        value["loss"],
        value["accuracy"],
        layer(value["all"]),
        {name: layer(of) for name, of in value["layers"].items()},
        tuple(value["dampings"]),
        tuple(value["dimensions"]),
        {title: Beside(**of) for title, of in value["methods"].items()},
    )
