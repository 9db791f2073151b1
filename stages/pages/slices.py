"""Sections of both reports on failure rates by attributes of the items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from stages.pages.words import interval, listed, number, percent, points, points_interval
from stages.records import Comparison, Landscape
from stages.records.repair import AttributeDifferences
from stages.records.slices import AttributeRates, AttributeSlices, Confusion, Slice, SliceRate

SHOWN_INSIDE = 3  # number of values whose rates inside modes are shown
CONFUSIONS = 12


class AttributeView(NamedTuple):
    """One attribute: the rates of its values, worst first, and a sentence on items without a value."""

    name: str
    rows: list[Slice]
    note: str


class InsideView(NamedTuple):
    """Rates of the worst values of an attribute inside modes: (mode, a cell for each value)."""

    name: str
    values: list[str]
    rows: list[tuple[str, list[str]]]


class SlicesView(NamedTuple):
    """The section of the report on a landscape."""

    sentence: str
    attributes: list[AttributeView]
    inside: list[InsideView]
    confusions: list[Confusion]
    hidden: int
    exact: bool


def slices_view(landscape: Landscape, proposed: Mapping[str, str] = MappingProxyType({})) -> SlicesView | None:
    """Return the section on failure rates by attribute; None if items have no attributes.

    Args:
        landscape: the record.
        proposed: who proposed an attribute, by its name.
    """
    slices = landscape.slices
    if slices is None or not any(of.values for of in slices.attributes):
        return None
    confusions = slices.confusions or []
    texts = {mode.id: listed(mode.text) for mode in landscape.modes}
    return SlicesView(
        sentence=_sentence(landscape),
        attributes=[
            AttributeView(marked(of.attribute, proposed), of.values, _missing(of.missing)) for of in slices.attributes
        ],
        inside=[
            view
            for of in slices.attributes
            if (view := _inside(of, [(f"{m}: {texts.get(m, '')}", rates) for m, rates in slices.modes.items()]))
        ],
        confusions=confusions[:CONFUSIONS],
        hidden=len(confusions) - len(confusions[:CONFUSIONS]),
        exact=landscape.exact,
    )


def marked(name: str, proposed: Mapping[str, str]) -> str:
    """Return the name of a concept or an attribute, with who proposed it, if it was proposed."""
    return f"{name} (proposed by {proposed[name]})" if name in proposed else name


def _sentence(landscape: Landscape) -> str:
    assert landscape.slices is not None
    worse = landscape.slices.worse
    tests = sum(one.p is not None for of in landscape.slices.attributes for one in of.values)
    if not worse:
        return (
            f"Of {number(tests)} values tested, none fails significantly more often than all other items. Where a value"
            " has few items, only large differences show."
        )
    *first, last = [f"{attribute} {one.value}" for attribute, one in worse]
    named = f"{', '.join(first)} and {last}" if first else last
    fail = "fails" if len(worse) == 1 else "fail"
    return f"Of {number(tests)} values tested, {named} {fail} significantly more often than all other items."


def _missing(missing: int) -> str:
    if not missing:
        return ""
    return "One item has no value." if missing == 1 else f"{number(missing)} items have no value."


def _inside(of: AttributeSlices, modes: Sequence[tuple[str, Sequence[AttributeRates]]]) -> InsideView | None:
    """Return rates inside modes for the values that fail most."""
    values = [one.value for one in of.values[:SHOWN_INSIDE]]
    rows = []
    for name, attributes in modes:
        rates = {one.value: one for same in attributes if same.attribute == of.attribute for one in same.values}
        rows.append((name, [_cell(rates.get(value)) for value in values]))
    return InsideView(of.attribute, values, rows) if rows and values else None


def _cell(one: SliceRate | None) -> str:
    if one is None or one.rate is None:
        return "not probed"
    return f"{percent(one.rate)} [{interval(one.low, one.high)}] of {number(one.probes)}"


class ComparedRow(NamedTuple):
    """A value before and after; `others` are the changes of the models besides the repair."""

    value: str
    items: str
    before: str
    after: str
    change: str
    spread: str
    others: list[tuple[str, str]]
    pairs: str
    worse: bool


class ComparedView(NamedTuple):
    """One attribute before and after, with the names of the models besides the repair."""

    name: str
    others: list[str]
    rows: list[ComparedRow]
    note: str


_OTHERS = {"control": "control change", "noise": "queried again"}


def compared_view(comparison: Comparison) -> list[ComparedView]:
    """Return each attribute before and after a repair."""
    return [_compared(of) for of in comparison.slices or () if of.values]


def compared_sentence(comparison: Comparison) -> str:
    """State which items got worse, or that none did."""
    worse = [(of.attribute, one) for of in comparison.slices or () for one in of.values if one.worse]
    if not worse:
        return "Failures have not risen significantly for any value."
    named = "; ".join(
        f"{attribute} {one.value}, by {points(one.change)} points [{points_interval(one.low, one.high)}]"
        for attribute, one in worse
    )
    return f"Failures have risen significantly for {named}."


def _compared(of: AttributeDifferences) -> ComparedView:
    others = [name for name in _OTHERS if any(name in one.others for one in of.values)]
    return ComparedView(
        name=of.attribute,
        others=[_OTHERS[name] for name in others],
        rows=[
            ComparedRow(
                value=one.value,
                items=number(one.items),
                before=percent(one.before),
                after=percent(one.after),
                change=points(one.change),
                spread=points_interval(one.low, one.high),
                others=[
                    (points(other.change), points_interval(other.low, other.high)) if other else ("–", "")
                    for other in map(one.others.get, others)
                ],
                pairs=number(one.pairs),
                worse=one.worse,
            )
            for one in of.values
        ],
        note=_missing(of.missing),
    )
