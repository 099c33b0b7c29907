"""Figures and tables in HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Figure", "grid", "pair", "table"]


class Figure(NamedTuple):
    """A picture and what is said below it."""

    picture: str
    caption: str = ""
    heading: str = ""


def _figure(figure: Figure) -> str:
    heading = f"<h3>{escape(figure.heading)}</h3>" if figure.heading else ""
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
    return f"<figure>{heading}\n{figure.picture}\n{caption}</figure>"


def grid(figures: Iterable[Figure], *, wide: bool = False) -> str:
    """Put pictures side by side, as many as there is room for; two at most if they are wide."""
    kind = "grid wide" if wide else "grid"
    return f'<div class="{kind}">\n{"".join(map(_figure, figures))}\n</div>'


def pair(figure: Figure, table: str) -> str:
    """Put a picture beside a table, or above it on a phone."""
    return f'<div class="pair">\n{_figure(figure)}\n{table}\n</div>'


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False
) -> str:
    """Write a table that scrolls in its own frame.

    Parameters
    ----------
    caption : str
        What it tells.
    head : sequence of str
        Names of the columns.
    rows : iterable of sequence of str
        Cells; the first of each names its row.
    words : bool
        Whether the columns hold words, not numbers.

    Returns
    -------
    str
        HTML.
    """
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">\n'
        f"<table{kind}><caption>{escape(caption)}</caption>\n"
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
