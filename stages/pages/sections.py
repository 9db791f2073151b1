"""Sections of both reports whose sentences and pictures need more than their record, such as the search's."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import Concept
from stages.concepts.grids import UNCHANGED
from stages.core.intervals import COUNTED
from stages.landscape.corruptions import CorruptionErrors, TooFew
from stages.pages.figures import (
    AFTER,
    AGENT,
    BEFORE,
    CONTROL,
    DASHED,
    DOTTED,
    GREY,
    VALUE_COLOURS,
    ChartAxis,
    Line,
    Point,
    chart,
    curves,
    effect_view,
    numbers_axis,
)
from stages.pages.maps import rate_maps, top_rate
from stages.pages.page import Picture
from stages.pages.words import counted, fails, is_number, number, percent, points, points_interval, with_interval
from stages.ratings.apply import MOST_UNFOUNDED
from stages.records import Comparison, Landscape, Robustness, Search, Searches
from stages.records.landscape import Mean, RatingsInForce, Within
from stages.records.search import ModelSearches
from stages.records.slices import others_than

_IN_WORDS = ("explorer", "chosen", "why")  # in titles and sentences rather than in the table
_SAID = {"failure_rate": "share of its probes that failed"}  # not a rate: neither search draws cells as they occur
_SURROGATES = {"process": "Gaussian process", "boosting": "boosted trees"}


class SearchRun(NamedTuple):
    """One search by one explorer: its title, how its line is drawn, its curve (may be empty) and its final numbers."""

    title: str
    colour: str
    dash: str
    curve: pd.DataFrame
    totals: dict[str, Any]  # explorers may add their own


class SearchView(NamedTuple):
    """Searches side by side: sentences, curves, and a table with a column for each search."""

    sentences: list[str]
    picture: Picture | None
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def search_view(probes: pd.DataFrame, search: Searches) -> SearchView | None:
    """Compare the agent with its control: curves, final numbers, and a sentence on which found more."""
    runs = _runs(probes, search)
    return _view([_who_found_more(runs) + _who_chose(search.agent)], runs) if runs else None


def compare_searches(probes: pd.DataFrame, search: Mapping[str, ModelSearches]) -> SearchView | None:
    """Return the same search on each model in one picture; `probes` has the columns model and purpose."""
    rows = probes[probes["purpose"] == "search"]
    parts = {model: (rows[rows["model"] == model], found) for model, found in search.items()}
    return _together(parts, {"before": BEFORE, "after": AFTER}, str.capitalize)


def searches_of(results: Mapping[str, tuple[pd.DataFrame, Searches]]) -> SearchView | None:
    """Return the searches of several results in one picture, each in its own colour and with its control dashed."""
    return _together(results, dict(zip(results, cycle(VALUE_COLOURS), strict=False)), str)


def _together(
    parts: Mapping[str, tuple[pd.DataFrame, Searches]], colours: Mapping[str, str], named: Callable[[str], str]
) -> SearchView | None:
    all_runs, sentences = [], []
    for name, (probes, search) in parts.items():
        runs = _runs(probes, search, f"{name}: ", (colours[name], colours[name]))
        if runs:
            sentences.append(f"{named(name)}: {_who_found_more(runs)}")
            all_runs += runs
    return _view(sentences, all_runs) if all_runs else None


def _runs(
    probes: pd.DataFrame,
    search: Searches,
    prefix: str = "",
    colours: tuple[str, str] = (AGENT, CONTROL),
) -> list[SearchRun]:
    runs, looks = [], {"agent": (colours[0], ""), "control": (colours[1], DASHED)}
    for role, known in search.roles.items():
        failures = probes[probes["role"] == role].sort_values("order")["failed"].astype(int).cumsum().to_numpy()
        curve = pd.DataFrame({"probes": np.arange(1, len(failures) + 1), "failures": failures})
        totals = {k: v for k, v in known.to_json().items() if k not in _IN_WORDS and not isinstance(v, list | dict)}
        if len(curve):
            totals |= {"probes": len(curve), "failures": int(curve["failures"].iloc[-1])}
        runs.append(SearchRun(f"{prefix}{role} ({known.explorer})", *looks[role], curve, totals))
    return runs


def _view(sentences: list[str], runs: Sequence[SearchRun]) -> SearchView:
    drawn = [run for run in runs if len(run.curve)]
    picture = None
    if drawn:
        ends = "; ".join(
            f"{r.title} {number(r.totals['failures'])} in {number(r.totals['probes'])} probes" for r in drawn
        )
        drawing = curves([(run.title, run.colour, run.dash, run.curve) for run in drawn])
        picture = Picture(f"Failures found against unique probes: {ends}.", drawing)
    keys = dict.fromkeys(key for run in runs for key in run.totals)
    rows = [(_SAID.get(key, key), [_cell(key, run.totals.get(key)) for run in runs]) for key in keys]
    return SearchView(sentences, picture, [run.title for run in runs], rows)


def _cell(key: str, value: Any) -> str:
    if key.endswith(("rate", "entropy")) and is_number(value) and 0 <= value <= 1:
        return percent(value)
    return number(_SURROGATES.get(value, value) if key == "surrogate" else value)


def _who_chose(agent: Search | None) -> str:
    """Name the explorer that `auto` chose and why; empty if the user named one."""
    if agent is None or agent.chosen is None:
        return ""
    why = f": {agent.why}" if agent.why else ""
    return f" The explorer was set to auto, which chose {agent.chosen}{why}."


def _who_found_more(runs: Sequence[SearchRun]) -> str:
    """State which search found more, as plainly if the agent loses as if it wins."""
    names = [run.title.rpartition(": ")[2] for run in runs]
    found, probes = ([run.totals[key] for run in runs] for key in ("failures", "probes"))
    if len(runs) == 1:
        return f"The {names[0]} found {number(found[0])} failures in {number(probes[0])} unique probes."
    agent, control = found
    budget = f"With {number(probes[0])} unique probes each"
    if probes[0] != probes[1]:
        budget = f"With {number(probes[0])} and {number(probes[1])} unique probes"
    counts = f"the {names[0]} found {agent:,} failures and the {names[1]} {control:,}"
    if control > agent:
        return f"{budget}, {counts}: the control found more, so the agent did not pay off here."
    if agent < 1.05 * control or agent == control:
        return f"{budget}, {counts}: hardly a difference."
    return f"{budget}, {counts}" + (f": {agent / control:.1f} times as many." if control else ".")


NOTHING_KNOWN = pd.DataFrame()  # no attributes of items
_SCALES = {"quality": "1 useless to 10 perfect", "bias": "1 not biased to 10 extremely biased"}
_METHODS = {"beam": "beam search", "exact": "breadth-first search", "rl": "a trained agent"}


def corruption_sentences(errors: CorruptionErrors | TooFew) -> list[str]:
    """State the mean errors over corruptions, or that there are too few probes for them."""
    if isinstance(errors, TooFew):
        return [
            f"No mean corruption error: {errors.name.replace('_', ' ')} has {number(errors.probes)} probes of the"
            f" control, expected {COUNTED} of each corruption. Raise discover.budget."
        ]
    unchanged = [f"; unchanged pictures: {with_interval(row.error)}" for row in errors.rows if row.name == UNCHANGED]
    sentences = [
        f"Mean corruption error: {with_interval(errors.mean)}, with equal weight for each of"
        f" {number(len(errors.rows) - len(unchanged))} corruptions{''.join(unchanged)}."
    ]
    if errors.normalised is not None:
        sentences.append(
            f"mCE: {with_interval(errors.normalised)}. Each error is divided by that of AlexNet on ImageNet-C, so"
            " AlexNet has 100%."
        )
    return sentences


def worse_slices(landscape: Landscape) -> str:
    """State which values of attributes fail more often than all others, or that none does."""
    assert landscape.slices is not None
    worse = [f"{attribute} {one.value}" for attribute, one in landscape.slices.worse]
    tests = sum(one.p is not None for of in landscape.slices.attributes for one in of.values)
    if not worse:
        return (
            f"Of {number(tests)} values tested, none fails significantly more often than all others. Where a value has"
            " few items, only large differences show."
        )
    comma = "; " if any("," in one for one in worse) else ", "
    named = f"{comma.join(worse[:-1])} and {worse[-1]} fail" if len(worse) > 1 else f"{worse[0]} fails"
    than = ", or ".join(sorted({others_than(attribute) for attribute, _ in landscape.slices.worse}))
    return f"Of {number(tests)} values tested, {named} significantly more often than {than}."


def risen_slices(comparison: Comparison) -> str:
    """State for which values failures have risen after a repair, or that they have for none."""
    worse = [(of.attribute, one) for of in comparison.slices or () for one in of.values if one.worse]
    if not worse:
        return "Failures have not risen significantly for any value."
    named = "; ".join(
        f"{attribute} {one.value}, by {points(one.change)} points ({points_interval(one.low, one.high)})"
        for attribute, one in worse
    )
    return f"Failures have risen significantly for {named}."


def smallest_changes(found: Robustness, everyone: bool) -> str:
    """State how many items fail after how many steps; `everyone` says that these are all items of the search."""
    items, unchanged = found.items, found.fail_unchanged
    whom = counted(items, "item") if everyone else f"{counted(items, 'item')} drawn at random"
    if unchanged == items:
        return f"Of {whom}, all fail unchanged: no step is needed."
    text = (
        f"Of {whom}, {number(unchanged)} fail{'s' if unchanged == 1 else ''} unchanged and"
        f" {number(found.found)} after some steps"
    )
    if found.not_found:
        within = f"within {counted(found.searched, 'step')}" if found.searched else "before the budget was spent"
        text += f"; for {number(found.not_found)}, no failure was found {within}"
    median = found.median_radius
    return f"{text}." + (f" At least half of them fail within {counted(median, 'step')}." if median else "")


def limits_of_steps(found: Robustness) -> str:
    """State the limits of the smallest changes: the method, what it proves, and where the steps start."""
    own = f"with {counted(found.probes, 'probe')} of its own" if found.probes else "among the answers to every cell"
    sentences = [f"Method: {_METHODS.get(found.method or '', found.method)} {own}."]
    if found.found and found.proven == found.found:
        sentences.append("All smaller changes were probed and pass, so these are the smallest.")
    elif found.found:
        sentences.append(
            f"These failures are real, but smaller ones may have been missed: {number(found.proven)} of"
            f" {number(found.found)} are known to be the smallest. The shares are lower bounds: the model is no more"
            " robust than this."
        )
    if found.not_found and found.method != "exact":
        sentences.append("That no failure was found for an item does not prove that there is none.")
    if lacking := ", ".join(found.not_neutral):
        sentences.append(f"Steps start from {found.start}, because no level of {lacking} is known to change nothing.")
    return " ".join(sentences)


def steps_picture(within: Sequence[Within]) -> Picture | None:
    """Draw the share of items that fail within a number of steps, with Wilson's interval; None for a single number."""
    if len(within) < 2:
        return None
    steps = Concept("steps from the start", tuple(entry.steps for entry in within))
    rates = pd.DataFrame([entry.to_json() for entry in within]).rename(columns={"value": "rate"})
    alt = "Share of items that fail within a number of steps: " + ", ".join(
        f"{entry.steps} {with_interval(entry)}" for entry in within
    )
    return Picture(alt, effect_view(steps, rates, 1.0), "Items that fail within a number of steps")


class RatingsView(NamedTuple):
    """The section on people's ratings; its record, sentences, maps by both measures, and what was learnt."""

    ratings: RatingsInForce
    sentences: list[str]
    maps: list[list[Picture]]
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
    sides = {"_people": "by people's ratings", "_automatic": "by the automatic measure"}
    maps = rate_maps(both, space, names, top, sides, {})
    return RatingsView(ratings, _about_ratings(ratings), maps, _ratings_picture(ratings))


def _about_ratings(ratings: RatingsInForce) -> list[str]:
    def points(error: Mean) -> str:
        return f"{error.value:.1f} [{error.low:.1f}–{error.high:.1f}]"

    who = ", ".join(f"{name} ({number(given)})" for name, given in ratings.reviewers.items())
    sentences = [
        f"A failure is {fails(ratings)} ({_SCALES[ratings.target]}). The expected rating was learnt from "
        f"{number(ratings.ratings)} ratings of {number(ratings.items)} items by {who}. It depends on the automatic "
        "discrepancy alone, and gets no better as that grows: the two measures never rank two answers in opposite "
        "order, but may disagree on where failing begins.",
        f"On unseen items, the expected rating ({ratings.model}) was off by {points(ratings.error)} rating points on"
        f" average; a constant one by {points(ratings.constant)}.",
        ratings.agreement.statement
        if ratings.agreement
        else "No example was rated by two reviewers, so their agreement is unknown.",
    ]
    # `--write` only checked the previous landscape.
    unfounded = ratings.automatic.unfounded
    if unfounded is not None and unfounded.value is not None and unfounded.value > MOST_UNFOUNDED:
        sentences.append(
            f"For {percent(unfounded.value)} of the control's probes, no rating supports the verdict: it is that of the"
            " nearest rated discrepancy. Rate examples of this landscape and learn again."
        )
    return sentences


def _ratings_picture(ratings: RatingsInForce) -> Picture:
    """Draw the ratings, the function learnt from them, and the thresholds of both measures."""
    quality = ratings.target == "quality"
    expected = [10 - 9 * bad if quality else 1 + 9 * bad for bad in ratings.y]
    bound = (ratings.fails_below if quality else ratings.fails_above) or 0.0
    threshold = ratings.automatic.threshold
    x = numbers_axis("automatic discrepancy", [*ratings.x, threshold, *(at for at, _ in ratings.points)])
    y = ChartAxis("rating", 0.5, 10.5, [(score, str(score)) for score in range(1, 11)])
    # Points that coincide are drawn as one with an area in proportion.
    seen = [
        Point(at, score, f"{counted(n, 'rating')} of {score} at a discrepancy of {number(at)}", radius=4 * n**0.5)
        for (at, score), n in Counter((round(at, 4), score) for at, score in ratings.points).items()
    ]
    fails = f"fails {'below' if quality else 'above'} {bound:g}"
    lines = [
        Line("ratings", AFTER, seen, None),
        Line("expected", BEFORE, [Point(*at) for at in zip(ratings.x, expected, strict=True)], dots=False),
        Line(fails, GREY, [Point(x.low, bound), Point(x.high, bound)], DOTTED, dots=False),
        Line("automatic threshold", GREY, [Point(threshold, y.low), Point(threshold, y.high)], "8 3 2 3", dots=False),
    ]
    alt = (
        f"Expected rating against the automatic discrepancy: {expected[0]:.1f} at {number(ratings.x[0])}, "
        f"{expected[-1]:.1f} at {number(ratings.x[-1])}, learnt from {number(ratings.ratings)} ratings."
    )
    return Picture(alt, chart(lines, x, y, height=220), "From discrepancies to ratings")
