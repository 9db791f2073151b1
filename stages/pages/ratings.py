"""Section of the report that compares people's ratings with the automatic measure, if ratings define failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stages.pages.figures import bare_figure
from stages.pages.page import Picture
from stages.pages.parts import MapPart, map_part, top_rate
from stages.pages.scales import AFTER, BEFORE, rounded
from stages.pages.words import interval, is_number, number, percent, score
from stages.ratings.apply import MOST_UNFOUNDED
from stages.records import Effect, Landscape, RateRecord
from stages.records.landscape import Automatic, Mean, RatingsBound, RatingsInForce

SELECTOR = "people-view"
_SCALES = {"quality": "1 useless to 10 perfect", "bias": "1 not biased to 10 extremely biased"}


class RatingsView(NamedTuple):
    """The section on people's ratings; `rows` are levels of concepts by people and by the automatic measure."""

    sentences: list[str]
    compared: list[tuple[str, str, str]]
    maps: MapPart | None
    rows: list[tuple[Effect, Effect]]
    picture: Picture


def ratings_view(landscape: Landscape, cells: pd.DataFrame, names: Sequence[str]) -> RatingsView | None:
    """Return the section on people's ratings; None if they are not in force.

    Args:
        landscape: the landscape by people's ratings.
        cells: its cells, with `rate_automatic` and its bounds.
        names: the concepts offered.
    """
    ratings, space = landscape.ratings, landscape.space
    if ratings is None:
        return None
    both = cells.rename(columns={name: f"{name}_people" for name in ("rate", "low", "high")})
    top = top_rate(both, space, names, ("rate_people", "rate_automatic"))
    sides = {"_people": "By people's ratings", "_automatic": "By the automatic measure"}
    return RatingsView(
        sentences=[_learnt(ratings), _error(ratings), _agreed(ratings), *_beyond(ratings.automatic)],
        compared=_compared(landscape.overall, ratings.automatic),
        maps=map_part(both, space, names, top, sides, {}, SELECTOR),
        rows=_rows(landscape.effects, ratings.automatic.effects),
        picture=_picture(ratings),
    )


def fails(ratings: RatingsBound) -> str:
    """Define a failure by the ratings in force: "an expected rating below 5"."""
    if ratings.fails_below is not None:
        return f"an expected rating below {number(ratings.fails_below)}"
    return f"an expected rating of bias above {number(ratings.fails_above)}"


def _learnt(ratings: RatingsInForce) -> str:
    who = ", ".join(f"{name} ({number(given)})" for name, given in ratings.reviewers.items())
    return (
        f"A failure is {fails(ratings)} ({_SCALES[ratings.target]}). The expected rating was learnt from "
        f"{number(ratings.ratings)} ratings of {number(ratings.items)} items by {who}. It depends on the automatic "
        "discrepancy alone, and gets no better as that grows: the two measures never rank two answers in opposite "
        "order, but may disagree on where failing begins."
    )


def _error(ratings: RatingsInForce) -> str:
    return (
        f"On unseen items, the expected rating ({ratings.model}) was off by {_points(ratings.error)} rating points on"
        f" average; a constant one by {_points(ratings.constant)}."
    )


def _agreed(ratings: RatingsInForce) -> str:
    if ratings.agreement is not None:
        return ratings.agreement.statement
    return "No example was rated by two reviewers, so their agreement is unknown."


def _beyond(automatic: Automatic) -> list[str]:
    """Warn if too many probes are outside the rated range: `--write` only checked the previous landscape."""
    unfounded = automatic.unfounded
    if unfounded is None or unfounded.value is None or unfounded.value <= MOST_UNFOUNDED:
        return []
    return [
        f"For {percent(unfounded.value)} of the control's probes, no rating supports the verdict: it is that of the"
        " nearest rated discrepancy. Rate examples of this landscape and learn again."
    ]


def _points(error: Mean) -> str:
    return f"{error.value:.1f} [{error.low:.1f}–{error.high:.1f}]"


def _compared(overall: RateRecord, automatic: Automatic) -> list[tuple[str, str, str]]:
    """Return both measures side by side: (what, value, 95% interval)."""
    rows = [
        ("fail by people's ratings", overall),
        ("fail by the automatic measure", automatic.overall),
        ("judged alike by both", automatic.agree),
        ("fail by people's ratings alone", automatic.only_people),
        ("fail by the automatic measure alone", automatic.only_automatic),
        ("outside the rated range", automatic.outside),
        ("with a verdict that no rating supports", automatic.unfounded),
    ]
    known = ((what, rate) for what, rate in rows if rate is not None)
    shown = [(what, percent(rate.value), interval(rate.low, rate.high)) for what, rate in known]
    ranks = automatic.rank_correlation
    if ranks is not None:
        spread = f"{score(ranks.low, 2)} to {score(ranks.high, 2)}" if is_number(ranks.low) else "–"
        shown.append(("rank correlation of the cells' rates", score(ranks.value, 2), spread))
    return shown


def _rows(people: Sequence[Effect], automatic: Sequence[Effect]) -> list[tuple[Effect, Effect]]:
    """Return each level of each concept by both measures."""
    return [(one, other) for one, other in zip(people, automatic, strict=True) if one.rate is not None]


def _picture(ratings: RatingsInForce) -> Picture:
    """Draw the ratings, the function learnt from them, and the thresholds of both measures."""
    x, scored = zip(*ratings.points, strict=True)
    knots, badness = np.array(ratings.x), np.array(ratings.y)
    quality = ratings.target == "quality"
    expected = 10 - 9 * badness if quality else 1 + 9 * badness
    bound = ratings.fails_below if quality else ratings.fails_above
    threshold = ratings.automatic.threshold
    # Count points that coincide, and draw them with an area in proportion.
    points = pd.DataFrame({"x": rounded(x), "score": scored}).value_counts(sort=False).reset_index()
    seen = go.Scatter(
        x=points["x"].tolist(),
        y=points["score"].tolist(),
        mode="markers",
        marker={"size": rounded(8 * np.sqrt(points["count"]), 1), "color": AFTER, "opacity": 0.6},
        customdata=points["count"].tolist(),
        hovertemplate="<b>rated %{y}</b><br>discrepancy %{x:.3f}<br>%{customdata} rating(s)<extra></extra>",
    )
    curve = go.Scatter(
        x=rounded(knots),
        y=rounded(expected),
        mode="lines",
        line={"color": BEFORE, "width": 2.5},
        hovertemplate="<b>%{y:.1f} expected</b><br>discrepancy %{x:.3f}<extra></extra>",
    )
    dotted = {"color": "#8a8f98", "dash": "dot", "width": 1.5}
    lines = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": bound, "y1": bound, "line": dotted},
        {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": threshold, "x1": threshold, "line": dotted},
    ]
    said = f"fails {'below' if quality else 'above'} {bound:g}"
    notes = [
        {"xref": "paper", "x": 1, "xanchor": "right", "y": bound, "text": said},
        {"yref": "paper", "y": 1, "yanchor": "bottom", "x": threshold, "text": "automatic threshold"},
    ]
    figure = bare_figure(
        [seen, curve],
        xaxis={"title": {"text": "automatic discrepancy"}, "automargin": True},
        yaxis={"title": {"text": "rating"}, "range": [0.5, 10.5], "automargin": True},
        shapes=lines,
        annotations=[{"showarrow": False, "yanchor": "bottom", **note} for note in notes],
        margin={"l": 56, "r": 16, "t": 28, "b": 48},
    )
    alt = (
        f"Expected rating against the automatic discrepancy: {expected[0]:.1f} at {number(float(knots[0]))}, "
        f"{expected[-1]:.1f} at {number(float(knots[-1]))}, learnt from {number(ratings.ratings)} ratings."
    )
    return Picture(alt, [("", figure)], 380, "From discrepancies to ratings")
