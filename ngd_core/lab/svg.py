"""Small pictures as inline SVG, each with a title and a description in words.

They are 360 units wide, the width of a phone, and take their colours from the page's style sheet,
so that they follow its light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Bar", "bars", "columns", "curve", "number", "text"]

WIDTH, ROW, LEFT, RIGHT, TOP = 360, 38, 54, 12, 10
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Bar(NamedTuple):
    """One line of `bars`.

    Parameters
    ----------
    name : str
        What it is of.
    share : float
        Length, from 0 to 1.
    label : str
        Its number, for people.
    mark : float, optional
        Place of a further mark, from 0 to 1.
    strong : bool
        Whether it stands out.
    """

    name: str
    share: float
    label: str
    mark: float | None = None
    strong: bool = False


def number(x: float, digits: int = 3) -> str:
    """Write a number for people: 0.0123, 18.1, 1,898, 4.2 × 10⁻⁷."""
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    power = math.floor(math.log10(abs(float(f"{x:.{digits - 1}e}"))))
    if not -4 <= power < 6:
        mantissa = f"{x:.{digits - 1}e}".partition("e")[0]
        return f"{mantissa} × {_power(power)}".replace("-", "−", 1 if x < 0 else 0)
    return f"{x:,.{max(0, digits - 1 - power)}f}".replace("-", "−")


def _power(power: int) -> str:
    return f"10{str(power).translate(RAISED)}"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Place words; `kind` is a class of the style sheet."""
    named = f' class="{kind}"' if kind else ""
    where = f'x="{x:g}" y="{y:g}"'
    placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f"<text {where}{named}{placed}>{escape(words)}</text>"


def _picture(key: str, title: str, description: str, height: float, parts: Iterable[str]) -> str:
    names = f"{key}-title {key}-desc"
    return "\n".join(
        (
            f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{names}">',
            f'<title id="{key}-title">{escape(title)}</title>',
            f'<desc id="{key}-desc">{escape(description)}</desc>',
            *parts,
            "</svg>",
        )
    )


def bars(key: str, title: str, description: str, rows: Sequence[Bar]) -> str:
    """Draw bars that lie, each below its name and its number.

    Parameters
    ----------
    key : str
        Of the picture, unique in the page.
    title, description : str
        What it shows, and what is to be seen there.
    rows : sequence of Bar
        From the top.

    Returns
    -------
    str
        An ``svg`` element.
    """
    parts = []
    for k, row in enumerate(rows):
        y = k * ROW
        kind = "bar strong" if row.strong else "bar"
        parts += [
            text(0, y + 14, row.name, "name"),
            text(WIDTH, y + 14, row.label, "value", "end"),
            f'<rect x="0" y="{y + 21}" width="{WIDTH}" height="8" rx="2" class="track"/>',
            f'<rect x="0" y="{y + 21}" width="{_held(row.share) * WIDTH:.1f}" height="8" rx="2" '
            f'class="{kind}"/>',
        ]
        if row.mark is not None:
            x = 5 + _held(row.mark) * (WIDTH - 10)
            parts.append(f'<circle cx="{x:.1f}" cy="{y + 25}" r="4.5" class="mark"/>')
    return _picture(key, title, description, ROW * len(rows), parts)


def columns(key: str, title: str, description: str, heights: Sequence[float]) -> str:
    """Draw bars that stand side by side, on a scale from 0 to the highest, and their mean.

    Parameters
    ----------
    key, title, description : str
        As for `bars`.
    heights : sequence of float
        At least 0.

    Returns
    -------
    str
        An ``svg`` element.
    """
    height, below = 110, 22
    top, mean = max(heights), sum(heights) / len(heights)
    wide, floor = (WIDTH - LEFT - RIGHT) / len(heights), height - below
    span, most = floor - TOP, top or 1.0
    gap = min(2.0, 0.2 * wide)
    boxes = "".join(
        f"M{LEFT + k * wide + gap / 2:.1f} {floor}v-{h / most * span:.1f}h{wide - gap:.1f}V{floor}z"
        for k, h in enumerate(heights)
    )
    line = floor - mean / most * span
    parts = [
        f'<path d="{boxes}" class="bar"/>',
        f'<path d="M{LEFT} {floor}H{WIDTH - RIGHT}" class="axis"/>',
        f'<path d="M{LEFT} {line:.1f}H{WIDTH - RIGHT}" class="line"/>',
        text(LEFT - 6, TOP + 6, number(top, 2).replace(" × ", "·"), "tick", "end"),
        text(LEFT - 6, floor, "0", "tick", "end"),
        text(LEFT, height - 5, "unit 0", "tick"),
        text(WIDTH - RIGHT, height - 5, f"{len(heights) - 1}", "tick", "end"),
    ]
    return _picture(key, title, description, height, parts)


def curve(
    key: str,
    title: str,
    description: str,
    points: Sequence[tuple[float, float]],
    *,
    x_label: str,
    at: tuple[float | None, float | None] = (None, None),
    log: tuple[bool, bool] = (False, True),
    y_range: tuple[float, float] | None = None,
) -> str:
    """Draw a line through points.

    Parameters
    ----------
    key, title, description : str
        As for `bars`.
    points : sequence of pair of float
        From left to right; above 0 on a logarithmic axis.
    x_label : str
        What the horizontal axis tells.
    at : pair of float or None
        Where a dashed line crosses the horizontal and the vertical axis.
    log : pair of bool
        Whether the horizontal and the vertical axis are logarithmic.
    y_range : pair of float, optional
        Ends of the vertical axis; beyond them the line is cut off.

    Returns
    -------
    str
        An ``svg`` element.
    """
    height, below = 170, 36
    floor, right = height - below, WIDTH - RIGHT
    low, high = y_range or (min(y for _, y in points), max(y for _, y in points))
    first, last = points[0][0], points[-1][0]
    across, up = (math.log10 if on else float for on in log)

    def place(value: float, ends: tuple[float, float], to: tuple[float, float], f: object) -> float:
        a, b, v = (f(x) for x in (*ends, value))  # type: ignore[operator]
        return to[0] + (to[1] - to[0]) * _held((v - a) / (b - a) if b > a else 0.5)

    def x_of(x: float) -> float:
        return place(x, (first, last), (LEFT, right), across)

    def y_of(y: float) -> float:
        return place(max(y, low), (low, high), (floor, TOP), up)

    shown = [(x, y) for x, y in points if y >= low]
    drawn = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in shown)
    parts = []
    for tick in _ticks(low, high, log=log[1], most=5):
        y = y_of(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" class="rule"/>')
        parts.append(text(LEFT - 6, y + 4, _tick(tick, log[1]), "tick", "end"))
    for tick in _ticks(first, last, log=log[0], most=4):
        parts.append(text(x_of(tick), floor + 15, _tick(tick, log[0]), "tick", "middle"))
    parts.append(f'<path d="M{LEFT} {floor}H{right}" class="axis"/>')
    if at[0] is not None:
        parts.append(f'<path d="M{x_of(at[0]):.1f} {TOP}V{floor}" class="line"/>')
    if at[1] is not None and low <= at[1] <= high:
        parts.append(f'<path d="M{LEFT} {y_of(at[1]):.1f}H{right}" class="line"/>')
    if len(shown) == 1:
        x, y = shown[0]
        parts.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" class="bar"/>')
    elif shown:
        parts.append(f'<path d="M{drawn}" class="curve"/>')
    parts.append(text((LEFT + right) / 2, height - 4, x_label, "tick", "middle"))
    return _picture(key, title, description, height, parts)


def _held(share: float) -> float:
    return min(1.0, max(0.0, share))


def _tick(value: float, log: bool) -> str:
    plain = not log or 0 <= math.log10(value) < 5
    return f"{value:,.12g}" if plain else _power(round(math.log10(value)))


def _ticks(low: float, high: float, *, log: bool, most: int) -> list[float]:
    """Round numbers in a range, at most so many."""
    if log:
        powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
        every = max(1, math.ceil(len(powers) / most))
        return [10.0**power for power in powers if power % every == 0]
    if high <= low:
        return [low]
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s for s in (power, 2 * power, 5 * power, 10 * power) if s >= raw)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
