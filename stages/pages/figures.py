"""Charts as SVG, so that they need no script, print as they are, and follow the colours of the page."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from stages.concepts import Concept
from stages.pages.words import interval, is_number, number, percent, with_interval
from stages.records.repair import Frontier, FrontierPoint

RGB = tuple[int, int, int]
Scale = list[tuple[float, str]]  # (share, hexadecimal colour), from 0 to 1

# Plasma without its last, almost white part: perceptually uniform, safe for colour-blind readers, and visible on both
# white and black. Blue passes, orange fails.
RATE_SCALE: Scale = [
    (0.0, "#2d0594"), (0.17, "#6a00a8"), (0.33, "#9c179e"), (0.5, "#c5407e"),
    (0.67, "#e26561"), (0.83, "#f58b46"), (1.0, "#fdb42f"),
]  # fmt: skip
# Blue: fewer failures than before. Orange: more.
CHANGE_SCALE: Scale = [
    (0.0, "#0a4d8c"), (0.25, "#5fa2ce"), (0.5, "#f1f1ee"), (0.75, "#f1a35f"), (1.0, "#a63e00"),
]  # fmt: skip
# Cividis: a separate scale, because how often a policy looks somewhere is not a failure rate.
POLICY_SCALE: Scale = [
    (0.0, "#00224e"), (0.25, "#414d6b"), (0.5, "#7c7b78"), (0.75, "#bcae6c"), (1.0, "#fee838"),
]  # fmt: skip
# For values of an attribute that are not names of colours.
VALUE_COLOURS = ("#6a00a8", "#f58b46", "#2a7fbf", "#c5407e", "#0b6e4f", "#fdb42f", "#8a8f98", "#5fa2ce")
CSS_COLOURS = frozenset(
    (
        *("black", "silver", "gray", "grey", "white", "maroon", "red", "purple", "fuchsia", "magenta", "green", "lime"),
        *("olive", "yellow", "navy", "blue", "teal", "aqua", "cyan", "orange", "pink", "brown", "gold", "violet"),
        *("indigo", "turquoise", "crimson", "salmon", "khaki", "coral", "beige"),
    )
)
GREY = "#8a8f98"
BEFORE, AFTER, CONTROL = "#c5407e", "#2a7fbf", GREY
AGENT = BEFORE


def shade(rate: float, top: float) -> RGB:
    """Return the colour of RATE_SCALE for a rate, as red, green and blue."""
    return colour_at(RATE_SCALE, rate / top)


def colour_at(scale: Scale, share: float) -> RGB:
    """Interpolate a scale at a share, as red, green and blue; shares beyond its ends get the colour of the end."""
    share = min(1.0, max(0.0, share))
    upper = max(1, next(i for i, (at, _) in enumerate(scale) if at >= share))
    (a, first), (b, second) = scale[upper - 1], scale[upper]
    mix = (share - a) / (b - a)
    red, green, blue = (
        round(int(first[k : k + 2], 16) * (1 - mix) + int(second[k : k + 2], 16) * mix) for k in (1, 3, 5)
    )
    return red, green, blue


def ink_on(colour: RGB) -> str:
    """Return black or white, whichever is more readable on a colour; contrast is at least 4.58:1 (WCAG 2.2)."""
    parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return "#000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#fff"


def value_colours(values: Sequence[str]) -> dict[str, str]:
    """Return a colour for each value of an attribute: itself if all values are CSS colours, else from the palette."""
    if all(value.lower() in CSS_COLOURS for value in values):
        return {value: value.lower() for value in values}
    return {value: VALUE_COLOURS[k % len(VALUE_COLOURS)] for k, value in enumerate(values)}


def nice_ceiling(values: pd.Series | np.ndarray) -> float:
    """Return the next tenth above the largest value, as the end of a colour scale that several pictures share."""
    highest = float(np.nanmax(np.asarray(values, dtype=float), initial=0.0))
    return min(1.0, max(0.1, math.ceil(highest * 10 - 1e-9) / 10))


def short(text: str, limit: int) -> str:
    """Shorten a text to `limit` characters, with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


WIDE, SMALL = 460, 320  # widths of charts in their own units: two or three of them fill a row of the page
DASHED, DOTTED = "7 4", "2 3"
_LETTER = 7  # mean width of a letter, to make room for labels


class ChartAxis(NamedTuple):
    """An axis from `low` to `high`, with labels at some values."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


class Point(NamedTuple):
    """A point with the ends of its interval if it has one, and what it says to a mouse."""

    x: float
    y: float
    said: str = ""
    low: float | None = None
    high: float | None = None
    colour: str = ""  # instead of the line's
    radius: float = 4.5
    hollow: bool = False


class Line(NamedTuple):
    """Points of one kind; `dash` is that of the line through them, None for no line. Unnamed, it has no legend."""

    name: str
    colour: str
    points: Sequence[Point]
    dash: str | None = ""
    dots: bool = True


def svg(width: float, height: float, parts: Iterable[str]) -> Markup:
    """Return a drawing as wide as the page has room for, up to a little more than its own width."""
    box = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{1.15 * width:.0f}px"'
    return Markup(f"<svg {box}>{''.join(parts)}</svg>")


def svg_text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    """Return a text of a drawing, with `more` attributes."""
    return f'<text x="{x:.4g}" y="{y:.4g}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def room(labels: Iterable[str]) -> float:
    """Return the width that the longest of these labels needs."""
    return _LETTER * max(map(len, labels), default=0)


def legend(names: Sequence[tuple[str, str, str | None]], width: float) -> tuple[list[str], float]:
    """Return the names of lines (or of areas, if their dash is None), and the height they take."""
    parts, x, y = [], 4.0, 12.0
    for name, colour, dash in names:
        text = short(name, 40)
        if x > 4 and x + 30 + room([text]) > width:
            x, y = 4.0, y + 18
        if dash is None:
            parts.append(f'<rect x="{x + 8:.4g}" y="{y - 9:g}" width="11" height="11" fill="{colour}"/>')
        else:
            line = f'stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"'
            parts.append(f'<path d="M{x:.4g} {y - 4:g}h22" {line}/>')
        parts.append(svg_text(x + 26, y, text, "start"))
        x += 40 + room([text])
    return parts, y + 8 if names else 6.0


def shares_axis(title: str, values: Iterable[float | None]) -> ChartAxis:
    """Return an axis of percentages from 0 to just above the largest value, at most 100%."""
    return numbers_axis(title, values, lambda value: f"{100 * value:g}%", 1.0)


def numbers_axis(
    title: str, values: Iterable[float | None], said: Callable[[float], str] = number, most: float = math.inf
) -> ChartAxis:
    """Return an axis from 0 to just above the largest value, with about five round numbers."""
    known = [value for value in values if is_number(value)]
    top = min(most, max(known, default=0.0)) or 1.0
    power = 10.0 ** math.floor(math.log10(top / 4))
    step = next(k * power for k in (1, 2, 5, 10) if top / (k * power) <= 5)
    ticks = [(k * step, said(round(k * step, 9))) for k in range(math.floor(top / step + 1e-9) + 1)]
    return ChartAxis(title, 0.0, top * 1.04, ticks)


def levels_axis(concept: Concept) -> ChartAxis:
    """Return an axis with the levels of a concept."""
    return ChartAxis(concept.name, -0.3, len(concept) - 0.7, [(i, concept.label(i)) for i in range(len(concept))])


def chart(lines: Sequence[Line], x: ChartAxis, y: ChartAxis, width: float = WIDE, height: float = 150) -> Markup:
    """Draw lines of points over two axes; `height` is that of the area between them."""
    parts, top = legend([(line.name, line.colour, line.dash or "") for line in lines if line.name], width)
    left, right = (28 if y.title else 12) + room(text for _, text in y.ticks), width - 10
    bottom = top + height
    labels, total = _x_labels(x, left, right, bottom)
    parts += labels
    across, up = _scale(x, left, right), _scale(y, bottom, top)
    for value, text in y.ticks:
        parts.append(f'<path class="line" d="M{left:.4g} {up(value):.4g}H{right:g}"/>')
        parts.append(svg_text(left - 6, up(value) + 4, text, "end"))
    if y.title:
        parts.append(svg_text(-(top + bottom) / 2, 12, y.title, more=' transform="rotate(-90)"'))
    for line in lines:
        at = [(across(point.x), up(point.y)) for point in line.points]
        if line.dash is not None and len(at) > 1:
            path = f'd="M{"L".join(f"{a:.4g} {b:.4g}" for a, b in at)}" stroke="{line.colour}"'
            parts.append(f'<path fill="none" stroke-width="2" stroke-dasharray="{line.dash}" {path}/>')
        for point, (a, b) in zip(line.points, at, strict=True) if line.dots else ():
            colour = point.colour or line.colour
            if is_number(point.low) and is_number(point.high):
                ends = f"M{a:.4g} {up(point.low):.4g}V{up(point.high):.4g}"
                parts.append(f'<path d="{ends}" stroke="{line.colour}" stroke-width="1.5"/>')
            fill = f'fill="var(--card)" stroke="{colour}" stroke-width="2"' if point.hollow else f'fill="{colour}"'
            said = f"<title>{escape(point.said)}</title>" if point.said else ""
            parts.append(f'<circle cx="{a:.4g}" cy="{b:.4g}" r="{point.radius:.3g}" {fill}>{said}</circle>')
    return svg(width, total, parts)


def _scale(axis: ChartAxis, start: float, end: float) -> Callable[[float], float]:
    span = (axis.high - axis.low) or 1.0
    return lambda value: start + (end - start) * (min(max(value, axis.low), axis.high) - axis.low) / span


def _x_labels(axis: ChartAxis, left: float, right: float, bottom: float) -> tuple[list[str], float]:
    """Return the labels below a chart, as many as there is room for, slanted if they are long, and where they end."""
    ticks = axis.ticks[:: max(1, math.ceil(16 * len(axis.ticks) / (right - left)))]
    slanted = len(ticks) > 1 and room(text for _, text in ticks) + 4 > (right - left) / len(ticks)
    labels = [short(text, 14 if slanted else 30) for _, text in ticks]
    at, parts = _scale(axis, left, right), []
    for (value, _), text in zip(ticks, labels, strict=True):
        x, y = at(value), bottom + 14
        turn = f' transform="rotate(-30 {x:.4g} {y:.4g})"' if slanted else ""
        parts.append(svg_text(x, y, text, "end" if slanted else "middle", turn))
    end = bottom + 18 + (room(labels) / 2 if slanted else 0)
    if axis.title:
        parts.append(svg_text((left + right) / 2, end + 12, axis.title))
    return parts, end + (16 if axis.title else 0)


def tiles(
    row: ChartAxis,
    column: ChartAxis,
    values: Sequence[Sequence[float]],
    said: Callable[[int, int], str],
    colours: tuple[Scale, float, float],
    label: Callable[[float], str],
    outlines: Mapping[str, Sequence[tuple[int, int, int, int, bool]]],
) -> Markup:
    """Draw values over two axes as tiles, each with its number if there is room.

    Args:
        row: the axis upwards, with a label for each row of values.
        values: row by row, from the bottom; NaN for a gap.
        said: what a tile says to a mouse, by row and column.
        colours: the scale, and the values at its ends.
        outlines: rectangles by name, as (first row, last row, first column, last column, whether dashed).
    """
    rows, columns = len(values), len(values[0])
    left = 26 + room(short(text, 20) for _, text in row.ticks)
    high, wide = (30 if rows <= 6 else 22 if rows <= 12 else 12), (SMALL - left - 6) / columns
    top, readable = 12.0, rows <= 12 and wide >= 28
    scale, low, end = colours
    parts = _key(colours, label) if not readable else []
    top += 22 if parts else 0
    bottom = top + rows * high
    labels, total = _x_labels(column._replace(low=-0.5, high=columns - 0.5), left, SMALL - 6, bottom)
    parts += [*labels, svg_text(-(top + bottom) / 2, 12, row.title, more=' transform="rotate(-90)"')]
    for i, row_values in enumerate(values):
        y = bottom - (i + 1) * high
        parts.append(svg_text(left - 6, y + high / 2 + 4, short(row.ticks[i][1], 20), "end"))
        for j, value in enumerate(row_values):
            if not is_number(value):
                continue
            colour, x = colour_at(scale, (value - low) / (end - low)), left + j * wide
            box = f'x="{x:.4g}" y="{y:.4g}" width="{wide - 2:.4g}" height="{high - 2}" fill="rgb{colour}"'
            parts.append(f"<rect {box}><title>{escape(said(i, j))}</title></rect>")
            if readable:
                ink = f' fill="{ink_on(colour)}" class="in"'
                parts.append(svg_text(x + wide / 2 - 1, y + high / 2 + 3, label(value), more=ink))
    taken: dict[tuple[int, int], int] = {}
    names: list[str] = []  # above all outlines
    for name, boxes in outlines.items():
        for first, last, start, stop, dashed in boxes:
            x, y = left + start * wide - 1, bottom - (last + 1) * high - 1
            size = f'width="{(stop - start + 1) * wide:.4g}" height="{(last - first + 1) * high:g}" fill="none"'
            for ink, thick, dash in (("#fff", 5, ""), ("#000", 2, "5 3" if dashed else "")):
                stroke = f'stroke="{ink}" stroke-width="{thick}" stroke-dasharray="{dash}"'
                parts.append(f'<rect x="{x:.4g}" y="{y:.4g}" {size} {stroke}/>')
        (_, last, start, *_), *_ = boxes
        x = left + start * wide + 4 + 30 * taken.get((last, start), 0)
        taken[last, start] = taken.get((last, start), 0) + 1
        y, long = bottom - (last + 1) * high - 1, room([name]) + 8
        names.append(f'<rect x="{x:.4g}" y="{y - 8:.4g}" width="{long:g}" height="16" fill="#000" stroke="#fff"/>')
        names.append(svg_text(x + long / 2, y + 4, name, more=' fill="#fff" class="in"'))
    return svg(SMALL, total, [*parts, *names])


def _key(colours: tuple[Scale, float, float], label: Callable[[float], str]) -> list[str]:
    """Return five colours of a scale with their values, for tiles too small for numbers."""
    scale, low, high = colours
    parts = []
    for k in range(5):
        share, x = k / 4, 4 + k * (SMALL - 8) / 5
        parts.append(f'<rect x="{x:.4g}" y="2" width="11" height="11" fill="rgb{colour_at(scale, share)}"/>')
        parts.append(svg_text(x + 15, 12, label(low + share * (high - low)), "start"))
    return parts


def effect_view(
    concept: Concept,
    rates: pd.DataFrame,
    top: float,
    highest: float = 0.0,
    others: Mapping[str, pd.DataFrame] = MappingProxyType({}),
) -> Markup:
    """Draw the failure rate of each level of one concept with its interval; ordered levels are joined.

    Args:
        rates: one row per level, with rate, low and high.
        top: the rate at the end of the colour scale.
        highest: minimum end of the axis, so that two pictures are comparable.
        others: the same for some of the items, by their name.
    """
    joined, coloured = "" if concept.ordered else None, partial(shade, top=top)
    lines = [Line("all items" if others else "", GREY, _levels(concept, rates, coloured), joined)]
    for (name, table), colour in zip(others.items(), cycle((AFTER, CONTROL, BEFORE)), strict=False):
        lines.append(Line(name, colour, _levels(concept, table), DOTTED if concept.ordered else None))
    ends = [point.high or point.y for line in lines for point in line.points]
    return chart(lines, levels_axis(concept)._replace(title=""), shares_axis("", [top, highest, *ends]), SMALL, 120)


def _levels(concept: Concept, rates: pd.DataFrame, colour: Callable[[float], RGB] | None = None) -> list[Point]:
    table = rates[["rate", "low", "high"]].astype(float).to_numpy()
    return [
        Point(
            i,
            rate,
            f"{concept.name} {concept.label(i)}: {percent(rate)} fail ({interval(low, high)})",
            low,
            high,
            f"rgb{colour(rate)}" if colour else "",
        )
        for i, (rate, low, high) in enumerate(table.tolist())
        if is_number(rate)
    ]


def curves(lines: Sequence[tuple[str, str, str, pd.DataFrame]]) -> Markup:
    """Draw failures found against unique probes: one (name, colour, dash, table of probes and failures) per search."""
    drawn = []
    for name, colour, dash, table in lines:
        rows = sorted({*range(0, len(table), max(1, len(table) // 100)), len(table) - 1}) if len(table) else []
        pairs = table.iloc[rows][["probes", "failures"]].to_numpy().tolist()
        drawn.append(Line(name, colour, [Point(0, 0), *(Point(*pair) for pair in pairs)], dash, dots=False))
    ends = [line.points[-1] for line in drawn]
    x = numbers_axis("unique probes", [end.x for end in ends], lambda value: f"{value:,.0f}")
    return chart(drawn, x, numbers_axis("failures found", [end.y for end in ends], lambda value: f"{value:,.0f}"))


def frontier_chart(found: Frontier) -> Markup:
    """Draw failures in the target modes against what newly fails; a ring is the repair that is handed on."""
    origin = Point(0, found.before.value or 0.0, f"before: {with_interval(found.before)}")
    drawn = []
    kinds = (("repaired", False, "repair", AFTER, ""), ("control", False, "control", CONTROL, DASHED))
    for copy, longer, name, colour, dash in (*kinds, ("control", True, "control, more steps", CONTROL, DOTTED)):
        of = [point for point in found.points if point.copy_of == copy and (point.dose > 1) == longer]
        points, edge = [_on_frontier(point, name) for point in of], [origin]
        for point in sorted(points):
            if point.y < edge[-1].y:
                edge.append(point)
        if points:
            drawn.append(Line(name, colour, edge, dash))
            drawn.append(Line("", colour, [point for point in points if point not in edge], None))
    handed_on = _on_frontier(found.published, "the repair")._replace(radius=8, hollow=True)
    drawn.append(Line("", AFTER, [handed_on], None))
    points = [point for line in drawn for point in line.points]
    x = shares_axis("newly failing, of what passed", [point.x for point in points])
    return chart(drawn, x, shares_axis("fail in target modes", [point.high or point.y for point in points]))


def _on_frontier(point: FrontierPoint, name: str) -> Point:
    mended, broken = point.targets, point.newly_failing
    way = f"{point.steps:,} steps, {point.share:.0%} of the way"
    said = f"{name}, {way}: {with_interval(mended)} fail, {with_interval(broken)} newly fail"
    return Point(broken.value or 0.0, mended.value or 0.0, said, mended.low, mended.high)
