"""What `ngd inspect` found as one HTML page that needs nothing else: no script, no network."""

from __future__ import annotations

import math
import statistics
from html import escape

from ngd_core.lab import html, svg
from ngd_core.lab.inspection import BLOCKS, EXACT, Beside, Inspection, Layer
from ngd_core.lab.style import STYLE
from ngd_core.lab.svg import Bar, number

__all__ = ["SECTIONS", "covered", "page", "share"]

DECADES = 12
"""Of eigenvalues that are drawn, at most; float64 knows some more."""

SECTIONS = {
    "layers": ("Layers", "Information by layer"),
    "units": ("Units", "Information by unit"),
    "spectra": ("Spectra", "Spectra"),
    "dimension": ("Effective dimension", "Effective dimension"),
    "agreement": ("Agreement", "Agreement with the exact natural gradient"),
    "coverage": ("Coverage", "Coverage"),
}
"""Short and full headings by the names of their anchors."""


def share(part: float, whole: float) -> str:
    """Write a part in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "none"


def covered(beside: Beside, parameters: int) -> str:
    """Say in a few words what a method knows."""
    if beside.refused is not None:
        return "left out"
    if beside.covered is None:
        return "all numbers alike"
    if beside.covered == parameters:
        return f"all {parameters:,}"
    return f"{beside.covered:,} of {parameters:,}"


def page(found: Inspection) -> str:
    """Write the page.

    Parameters
    ----------
    found : Inspection
        What was seen.

    Returns
    -------
    str
        HTML; the same for the same inspection.
    """
    bodies = (
        _layers(found),
        _units(found),
        _spectra(found),
        _dimension(found),
        _agreement(found),
        _coverage(found),
    )
    sections = "\n".join(
        f'<section id="{key}">\n<h2>{heading}</h2>\n{body}\n</section>'
        for (key, (_, heading)), body in zip(SECTIONS.items(), bodies, strict=True)
    )
    links = "".join(
        f'<li><a href="#{key}">{short}</a></li>' for key, (short, _) in SECTIONS.items()
    )
    about = found.about
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(about.title)}: Fisher information</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{escape(about.title)}: Fisher information</h1>
<p>{_opening(found)}</p>
{_facts(found)}
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
{sections}
<footer>
<p>This page again:</p>
<pre class="scroll" tabindex="0" role="region" aria-label="Command">{escape(about.command)}</pre>
<p>{escape(versions)}. All numbers are in <code>inspect.json</code> beside this page.</p>
</footer>
</main>
</body>
</html>
"""


def _opening(found: Inspection) -> str:
    about = found.about
    weights = (
        f"its initial values of seed {about.seed}"
        if about.weights is None
        else f"the weights in {about.weights}"
    )
    note = about.note.partition(";")[0]
    note = note[:1].upper() + note[1:]
    return escape(
        f"{note}. With {weights}, on the first {about.examples} training examples of {about.data}: "
        "the exact Fisher of the mean loss, blocks between layers included, in float64."
    )


def _facts(found: Inspection) -> str:
    rows, whole = min(found.about.examples * found.about.classes, found.all.parameters), found.all
    facts = {
        "parameters": f"{whole.parameters:,}",
        "mean loss": number(found.loss),
        "classified rightly": f"{100 * found.accuracy:.1f} %",
        "trace of the Fisher": number(whole.information),
        "largest eigenvalue": number(whole.eigenvalues[0]),
        f"effective dimension at damping {found.about.damping:g}, of at most {rows:,}": number(
            whole.effective_dimension
        ),
    }
    pairs = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f"<dl>{''.join(pairs)}</dl>"


def _layers(found: Inspection) -> str:
    total = found.all.information
    most = max(layer.information for layer in found.layers.values())
    parts = {name: share(layer.information, total) for name, layer in found.layers.items()}
    rows = [
        Bar(
            name,
            layer.information / most if most else 0.0,
            f"{number(layer.information)}  ({parts[name]})",
        )
        for name, layer in found.layers.items()
    ]
    said = "; ".join(f"{name} {row.label}" for name, row in zip(found.layers, rows, strict=True))
    picture = svg.bars("layers-picture", "Fisher information of each layer", f"{said}.", rows)
    table = html.table(
        "Fisher information by layer",
        ("layer", "parameters", "information", "share", "per parameter"),
        [
            (
                name,
                f"{layer.parameters:,}",
                number(layer.information),
                parts[name],
                number(layer.information / layer.parameters),
            )
            for name, layer in found.layers.items()
        ],
    )
    words = (
        "The trace of each layer's block of the Fisher, which is the mean squared norm of an "
        "example's gradient there: how much the outputs feel a small change of the layer."
    )
    return f"<p>{words}</p>\n{html.pair(html.Figure(picture), table)}"


def _units(found: Inspection) -> str:
    figures, rows, all_rows = [], [], []
    for k, (name, layer) in enumerate(found.layers.items()):
        units = layer.units
        best = max(range(len(units)), key=units.__getitem__)
        least, most = min(units), max(units)
        middle = statistics.median(units)
        said = (
            f"{len(units)} units; the least has {number(least)}, the median {number(middle)}, the "
            f"most, unit {best}, {number(most)}."
        )
        picture = svg.columns(
            f"units-{k}", f"Fisher information of the units of {name}", said, units
        )
        figures.append(html.Figure(picture, f"{len(units)} units, the most in unit {best}", name))
        rows.append((name, f"{len(units)}", number(least), number(middle), number(most), f"{best}"))
        all_rows += [(name, str(unit), number(x)) for unit, x in enumerate(units)]
    words = (
        "The trace for the weights and the bias that lead into each unit, filter or, of an "
        "embedding, belong to each row. A unit near 0 hardly moves the outputs. Each picture has "
        "its own scale; the dashed line is the mean of the layer."
    )
    table = html.table(
        "Fisher information by unit, a summary",
        ("layer", "units", "least", "median", "most", "in unit"),
        rows,
    )
    every = html.table(
        "Fisher information of every unit", ("layer", "unit", "information"), all_rows
    )
    return (
        f"<p>{words}</p>\n{html.grid(figures)}\n{table}\n"
        f"<details><summary>Every unit</summary>\n{every}\n</details>"
    )


def _spectra(found: Inspection) -> str:
    damping, largest = found.about.damping, found.all.eigenvalues[0]
    high = 10.0 ** math.ceil(math.log10(max(largest, damping)))
    low = 10.0 ** math.floor(math.log10(max(high * 10.0**-DECADES, min(damping, largest) * 1e-3)))
    figures = []
    for k, (name, layer) in enumerate([("All layers", found.all), *found.layers.items()]):
        values, over = layer.eigenvalues, sum(x > damping for x in layer.eigenvalues)
        told = f"{over} of {len(values)} above the damping"
        said = f"The largest is {number(values[0])}, {told}, {damping:g}."
        picture = svg.curve(
            f"spectrum-{k}",
            f"Eigenvalues of the Fisher: {name}",
            said,
            [(float(i), x) for i, x in enumerate(values, start=1)],
            x_label="number of the eigenvalue (log scale)",
            at=(None, damping),
            log=(True, True),
            y_range=(low, high),
        )
        figures.append(html.Figure(picture, told, name))
    words = (
        "Eigenvalues, the largest first, on one logarithmic scale for all pictures: curvature "
        "along the principal directions. The dashed line is the damping; directions far below it "
        f"are as good as flat. Those below {number(low, 1)} are not drawn."
    )
    rows = [
        (
            name,
            number(layer.eigenvalues[0]),
            number(layer.eigenvalues[len(layer.eigenvalues) // 2]),
            f"{sum(x > damping for x in layer.eigenvalues)} of {len(layer.eigenvalues)}",
        )
        for name, layer in [("all layers", found.all), *found.layers.items()]
    ]
    table = html.table("Eigenvalues", ("layer", "largest", "median", "above the damping"), rows)
    return f"<p>{words}</p>\n{html.grid(figures)}\n{table}"


def _dimension(found: Inspection) -> str:
    damping = found.about.damping

    def words(layer: Layer) -> str:
        return f"{number(layer.effective_dimension)} of {layer.parameters:,}"

    rows = [
        Bar(name, layer.effective_dimension / layer.parameters, words(layer))
        for name, layer in found.layers.items()
    ]
    said = "; ".join(f"{row.name} {row.label} ({100 * row.share:.1f} %)" for row in rows)
    by_layer = svg.bars(
        "dimension-layers",
        "Effective dimension of each layer beside its parameters",
        f"{said}.",
        rows,
    )
    points = list(zip(found.dampings, found.dimensions, strict=True))
    ends = "; ".join(f"{number(y)} at damping {number(x)}" for x, y in (points[0], points[-1]))
    top = max(found.dimensions)
    over = svg.curve(
        "dimension-curve",
        "Effective dimension of all layers at other dampings",
        f"{number(found.all.effective_dimension)} at damping {damping:g}; {ends}.",
        points,
        x_label="damping",
        at=(damping, None),
        log=(True, False),
        y_range=(0.0, top if top > 0 else 1.0),
    )
    told = (
        "How many directions of parameter space these examples determine at the damping "
        f"{damping:g}: an eigenvalue s counts s / (s + damping). "
        f"All layers together have {number(found.all.effective_dimension)}."
    )
    figures = [
        html.Figure(by_layer, "Bars: part of the layer's parameters", "Layer by layer"),
        html.Figure(over, "Dashed: the damping of this page", "All layers, other dampings"),
    ]
    return f"<p>{told}</p>\n{html.grid(figures, wide=True)}"


def _agreement(found: Inspection) -> str:
    rows, cells = [], []
    for title, beside in found.methods.items():
        if beside.decrease is None or beside.cosine is None:
            continue
        rows.append(
            Bar(
                title,
                beside.decrease,
                f"{100 * beside.decrease:.1f} %",
                mark=beside.cosine,
                strong=title in (EXACT, BLOCKS),
            )
        )
        error = "" if beside.relative_error is None else number(beside.relative_error)
        damping = "none" if beside.damping is None else f"{beside.damping:g}"
        cells.append(
            (title, damping, f"{100 * beside.decrease:.1f} %", f"{beside.cosine:.3f}", error)
        )
    said = "; ".join(f"{row.name} {row.label}" for row in rows)
    picture = svg.bars(
        "agreement-picture",
        "Share of the exact natural gradient's decrease that each method reaches",
        f"{said}.",
        rows,
    )
    words = (
        "Each method's direction after these examples alone, with the exact Fisher where it would "
        "sample labels, beside the exact natural gradient at the damping "
        f"{found.about.damping:g}. Decrease: what share of the exact direction's decrease of "
        "the damped quadratic model one step of the method reaches, at its best step size. This is "
        "the number to rank methods by. Cosine: of the angle to the exact direction."
    )
    caption = "Bars: decrease; rings: cosine, from 0 at the left to 1 at the right"
    head = ("method", "damping", "decrease", "cosine", "relative error")
    table = html.table("Methods beside the exact natural gradient", head, cells)
    return f"<p>{words}</p>\n{html.pair(html.Figure(picture, caption), table)}"


def _coverage(found: Inspection) -> str:
    rows: list[tuple[str, ...]] = []
    why: dict[tuple[str, str], list[str]] = {}
    methods = {t: b for t, b in found.methods.items() if t not in (EXACT, BLOCKS)}
    for title, beside in methods.items():
        rest = sorted({*beside.uncovered.values(), *filter(None, [beside.refused])})
        rows.append((title, covered(beside, found.all.parameters), "; ".join(rest)))
        for name, reason in beside.uncovered.items():
            why.setdefault((name, reason), []).append(title)
    words = (
        "For which numbers each method has curvature; the others follow their gradients. Methods "
        "without curvature of layers treat all numbers alike."
    )
    head: tuple[str, ...] = ("method", "has curvature for", "why not for all")
    if not any(reason for *_, reason in rows):
        head, rows = head[:2], [row[:2] for row in rows]
    table = html.table("Coverage by method", head, rows, words=True)
    if not why:
        return f"<p>{words}</p>\n{table}"
    parts = [(name, reason, ", ".join(titles)) for (name, reason), titles in why.items()]
    every = html.table(
        "Parameters without curvature", ("parameter", "why", "with"), parts, words=True
    )
    return f"<p>{words}</p>\n{table}\n{every}"
