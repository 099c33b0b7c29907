"""What will happen to each parameter, and what that costs, told before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ngd_core import FNGD, KFAC, layer_cost
from ngd_torch._curvature import Curvature
from ngd_torch._layers import UNTRAINED
from ngd_torch._rows import can_keep
from ngd_torch._trees import is_stand_in, leaves

__all__ = ["Report", "report"]

COLUMNS = ("layer", "parameters", "kind", "block", "state", "step", "row", "own")
TEXT = 4
"""Columns that are words; the others are numbers."""
LEGEND = """\
In multiply-adds, amortised over the schedule: step, at every step; row, further ones for each
example at each of its positions; own, the layer's own forward and backward for each such row."""


class Report(NamedTuple):
    """Parameters with and without curvature, and the cost; `str` of it is a table.

    ``rich.print(report)`` prints the same as a table of rich, which need not be installed
    otherwise; ``report._asdict()`` is a dict.

    Parameters
    ----------
    layers : dict of str to dict
        For each layer: ``parameters`` (names); ``kind``; ``block`` (shape); ``factors`` (shapes of
        the arrays in its state, by name); ``numbers`` in its state on this rank and the ``bytes``
        they take;
        multiply-adds ``step`` (of directions and refreshes, a step), ``row`` (of statistics,
        further backward passes for them, and FNGD's weighted sums, a step for each example at each
        of its positions) and ``own`` (of the layer's own forward and backward passes, for the
        same), None for methods that `ngd_core.layer_cost` does not know; and ``batch``, examples,
        positions and back-propagated vectors of the last step's batch recorded, None before.
    uncovered : dict of str to str
        For each other parameter why it is in no layer; "frozen" if it needs no gradient.
    momentum : int
        Bytes that momentum takes, once each parameter has had a gradient.

    Notes
    -----
    A step's ``row`` is the mean over steps with and without statistics. Before the first batch one
    example at one position with one back-propagated vector is counted (for FNGD, whose Gram
    matrices grow with the square of the batch, one of a full batch of single positions); after it
    the last batch's numbers are used. What a multiply-add is worth is told in
    `ngd_core.layer_cost`; products outside layers with curvature (attention scores, convolutions
    without a rule) are counted nowhere.
    """

    layers: dict[str, dict[str, Any]]
    uncovered: dict[str, str]
    momentum: int = 0

    @property
    def parameters(self) -> dict[str, str]:
        """Every parameter by name: "covered", "uncovered", "frozen" or "not trained"."""
        rows = self.layers.values()
        found = {name.partition("[")[0]: "covered" for row in rows for name in row["parameters"]}
        for name, why in self.uncovered.items():
            untrained = "frozen" if why == "frozen" else "not trained"
            found[name] = untrained if why in UNTRAINED else "uncovered"
        return found

    @property
    def bytes(self) -> int:
        """Bytes of the whole state, momentum included."""
        return self.momentum + sum(int(row["bytes"]) for row in self.layers.values())

    def __str__(self) -> str:
        lines = [COLUMNS, *self._rows()]
        widths = [max(len(line[k]) for line in lines) for k in range(len(COLUMNS))]
        text = []
        for line in lines:
            left = [cell.ljust(width) for cell, width in zip(line[:TEXT], widths, strict=False)]
            right = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)][TEXT:]
            text.append("  ".join([*left, *right]))
        return "\n".join([*text, "", *self._notes()])

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for k, name in enumerate(COLUMNS):
            table.add_column(name, justify="left" if k < TEXT else "right", overflow="fold")
        for row in self._rows():
            table.add_row(*row)
        return Group(table, "", *self._notes())

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for name, row in self.layers.items():
            own = f"{name}."
            names = ", ".join(p.removeprefix(own) for p in row["parameters"])
            block = "x".join(map(str, row["block"]))
            cost = (_count(row[key]) for key in ("step", "row", "own"))
            yield name, names, row["kind"], block, _size(row["bytes"]), *cost

    def _notes(self) -> Iterator[str]:
        """Lines below the table."""
        for name, why in self.uncovered.items():
            follows = "is not trained" if why in UNTRAINED else "follows its gradient"
            yield f"{name} {follows}: {why}"
        states = sorted(self.parameters.values())
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        with_momentum = f", {_size(self.momentum)} of it momentum" if self.momentum else ""
        yield f"Parameters: {counts}. State: {_size(self.bytes)}{with_momentum}."
        batches = [row["batch"] for row in self.layers.values()]
        if all(row["step"] is not None for row in self.layers.values()):
            yield LEGEND
            if all(batches):
                step, own = self.cost()
                yield (
                    f"A step on the last batch of {batches[0][0]}: {_count(step)}, beside "
                    f"{_count(own)} of the layers' own."
                )

    def cost(self) -> tuple[float, float]:
        """Multiply-adds of a step on the last recorded batch: the method's, and the layers' own.

        The mean of a long run, without `early` statistics and refreshes.

        Raises
        ------
        ValueError
            Before a batch was recorded for every layer, or if the method's cost is not known.
        """
        total = own = 0.0
        for name, row in self.layers.items():
            if row["batch"] is None or row["step"] is None:
                msg = (
                    f"The cost of layer {name!r} on a batch is not known; take a step with it, and "
                    "ask for methods of this library."
                )
                raise ValueError(msg)
            rows = row["batch"][0] * row["batch"][1]
            total += row["step"] + rows * row["row"]
            own += rows * row["own"]
        return total, own


def _size(count: int) -> str:
    """Bytes, for people."""
    if count < 1024:
        return f"{count} B"
    unit = "KiB" if count < 2**20 else "MiB" if count < 2**30 else "GiB"
    return f"{count / {'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30}[unit]:.1f} {unit}"


def _count(number: float | None) -> str:
    """Three digits and a unit: k, M, G, T."""
    if number is None:
        return "?"
    power = 0
    while abs(number) >= 999.5 and power < 4:
        number, power = number / 1000, power + 1
    return f"{number:.3g}{('', 'k', 'M', 'G', 'T')[power]}"


def report(curvature: Curvature, momentum: int = 0) -> Report:
    """Describe a model's parameters.

    Parameters
    ----------
    curvature : Curvature
        Of the model.
    momentum : int
        Bytes of momentum.

    Returns
    -------
    Report
        A row a layer and a row an uncovered parameter.
    """
    names = {p: name for name, p in curvature.model.named_parameters()}
    states = getattr(curvature.state, "layers", {})
    rows: dict[str, dict[str, Any]] = {}
    for layer in curvature.layers:
        if layer.weight not in names:  # taken out of the model since
            continue
        spec = layer.spec
        every = leaves(states.get(spec, ()))
        arrays = {path: x for path, x in every if not is_stand_in(x)}
        rows[spec.name] = {
            "parameters": [
                names[p] + ("" if rows is None else f"[{rows.start}:{rows.stop}]")
                for p, rows in zip(layer.parameters, (layer.rows, layer.bias_rows), strict=False)
                if p in names
            ],
            "kind": spec.kind,
            "block": spec.block_shape,
            "factors": {path: tuple(x.shape) for path, x in arrays.items() if x.ndim},
            "numbers": sum(x.numel() for x in arrays.values()),
            "bytes": sum(x.numel() * x.element_size() for x in arrays.values()),
            **_cost(curvature, spec),
        }
    covered = {names[p] for layer in curvature.layers for p in layer.parameters if p in names}
    uncovered = {
        name: curvature.uncovered.get(name, UNTRAINED[1])
        for name in names.values()
        if name in curvature.uncovered or name not in covered
    }
    return Report(rows, uncovered, momentum)


def _cost(curvature: Curvature, spec: Any) -> dict[str, Any]:
    method, seen = curvature.method, curvature.sizes.get(spec.name)
    if isinstance(method, KFAC) and not can_keep(curvature.by_name[spec.name]):
        method = replace(method, factored_gradient=False)
    full = method.batch_size if isinstance(method, FNGD) else None
    number, shape, vectors = seen or (full or 1, 1, 1)
    examples, positions = round(number), shape if isinstance(shape, int) else math.prod(shape)
    batch = None if seen is None else (examples, positions, vectors)
    cost = layer_cost(method, spec, examples=examples, positions=shape, vectors=vectors)
    if cost is None:
        return {"step": None, "row": None, "own": None, "batch": batch}
    further = 0.0 if curvature.capture.fisher == "empirical" else vectors * cost.own / 3
    statistics = cost.statistics if curvature.recording else 0.0
    in_backward = any(layer.spec == spec and curvature.weighs(layer) for layer in curvature.layers)
    weighting = 0.0 if in_backward else cost.weighting
    often = 1 if isinstance(method, FNGD) else curvature.factor_every
    rows = examples * positions
    return {
        "step": cost.direction + cost.refresh / curvature.inverse_every,
        "row": ((statistics + further) / often + weighting) / rows,
        "own": cost.own / rows,
        "batch": batch,
    }
