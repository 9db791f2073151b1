"""Examples on a page, and the rows by which its script filters, sorts and exports them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from stages.concepts import ConceptSpace, Region
from stages.pages.gallery import ExhibitView, Shrinker
from stages.pages.page import json_block
from stages.pages.words import number
from stages.records import ModeRecord, PairedProbe, ShownExample
from stages.records.landscape import Example
from stages.tasks.contract import Exhibit

if TYPE_CHECKING:
    import pandas as pd

LABEL = "label"  # attribute with the expected answer, if items have one
_MOST_VALUES = 30  # maximum number of values of an attribute offered as a filter
OUTCOMES = {"fixed": "F", "newly_failing": "N"}  # outcomes of a repair, with the prefix of their examples' ids
_OWN = frozenset({"id", "mode", "outcome", "item", "answer", "discrepancy", "before", "after"})  # columns of rows

Cell = str | float | None


class Case(NamedTuple):
    """An example ready for the page.

    Args:
        id: by which links and decisions refer to it.
        outcome: "failed", "passed", "fixed" or "newly failing".
        good: whether the outcome is desirable.
        levels: concepts with their levels, except neutral ones.
        facts: expected and actual answers, by name.
        row: the same data for a table.
    """

    id: str
    outcome: str
    good: bool
    shown: ExhibitView
    levels: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    row: dict[str, Cell]


class ExampleSet(NamedTuple):
    """All examples of a page.

    Args:
        groups: examples by the mode or outcome under which they are shown.
        facets: filters: the number of a column of the rows, its name, and its values.
        rows: of all examples, for the page's script.
        sortable: name of the column of discrepancies; None if there is none.
    """

    groups: dict[str, list[Case]]
    facets: list[tuple[int, str, list[str]]]
    rows: Markup
    sortable: int | None


def changed_levels(space: ConceptSpace, cell: Sequence[int]) -> list[tuple[str, str]]:
    """Return the concepts of a cell that are not neutral, with their levels as text."""
    return [
        (concept.name, concept.label(level))
        for concept, level in zip(space.concepts, cell, strict=True)
        if concept.neutral is None or concept.levels[level] != concept.neutral
    ]


class ExampleSource(NamedTuple):
    """The data from which examples are made.

    Args:
        attributes: attributes of the items, one row per item id.
    """

    space: ConceptSpace
    shrinker: Shrinker
    unchanged: Mapping[str, Exhibit]
    attributes: pd.DataFrame

    def about(self, item: str) -> dict[str, str]:
        known = self.attributes.loc[item].items() if item in self.attributes.index else ()
        return {str(name): value for name, value in known if isinstance(value, str)}

    def levels(self, cell: Sequence[int]) -> dict[str, Cell]:
        """Return all concepts with their levels."""
        return {concept.name: concept.label(level) for concept, level in zip(self.space.concepts, cell, strict=True)}


def explore_modes(
    modes: Iterable[ModeRecord], galleries: Mapping[str, Sequence[ShownExample]], source: ExampleSource
) -> ExampleSet:
    """Return the examples of failure modes, which `galleries` has by mode, each beside its unchanged item."""
    groups = {}
    for mode in modes:
        known = {one.id: one for one in mode.examples}
        groups[mode.id] = [_of_mode(mode.id, one, known.get(one.id), source) for one in galleries.get(mode.id, ())]
    return _explorer(groups, source)


def _of_mode(mode: str, example: ShownExample, known: Example | None, source: ExampleSource) -> Case:
    name, failed, exhibit = example
    outcome = "failed" if failed else "passed"
    shown = source.shrinker.show(exhibit, unchanged=source.unchanged.get(known.item) if known else None)
    shown = shown._replace(caption=shown.caption.removeprefix(f"{name} - "))
    row: dict[str, Cell] = {"id": name, "mode": mode, "outcome": outcome}
    if known is None:
        return Case(name, outcome, not failed, shown, [], [], row)
    details, facts = source.about(known.item), [("discrepancy", number(known.discrepancy))]
    if label := details.get(LABEL):
        facts = [("expected", label), ("answered", known.output), *facts]
        shown = shown._replace(caption=_rest(shown.caption, label, known.output))
    row |= {"item": known.item, **_columns(details), **_columns(source.levels(known.cell))}
    row |= {"answer": known.output, "discrepancy": known.discrepancy}
    return Case(name, outcome, not failed, shown, changed_levels(source.space, known.cell), facts, row)


def explore_changes(
    galleries: Mapping[str, Sequence[PairedProbe]], source: ExampleSource, modes: Mapping[str, Region]
) -> ExampleSet:
    """Return the examples of what a repair changed, by outcome, each beside its unchanged item."""
    groups = {
        outcome: [_of_change(outcome, f"{letter}{n}", one, source, modes) for n, one in enumerate(shelf, 1)]
        for outcome, letter in OUTCOMES.items()
        if (shelf := galleries.get(outcome, ()))
    }
    return _explorer(groups, source)


def _of_change(outcome: str, name: str, one: PairedProbe, source: ExampleSource, modes: Mapping[str, Region]) -> Case:
    words, good = outcome.replace("_", " "), outcome == "fixed"
    details, unchanged = source.about(one.item), source.unchanged.get(one.item)
    shown, facts = source.shrinker.show(one.exhibit, one.before, one.after, one.drawn, unchanged), []
    if label := details.get(LABEL):
        facts = [("expected", label), ("before the repair", one.before), ("after the repair", one.after)]
        shown = shown._replace(caption=_rest(shown.caption, label, one.before), answers=())
    row: dict[str, Cell] = {"id": name, "outcome": words}
    row |= {"mode": _holding(modes, one.cell, details, source.space), "item": one.item, **_columns(details)}
    row |= _columns(source.levels(one.cell)) | {"before": one.before, "after": one.after}
    return Case(name, words, good, shown, changed_levels(source.space, one.cell), facts, row)


def _columns(given: Mapping[str, Any]) -> dict[str, Cell]:
    """Rename attributes or levels that have the name of one of Faded's columns: "outcome" becomes "outcome_"."""
    return {f"{name}_" if name in _OWN else name: value for name, value in given.items()}


def _holding(modes: Mapping[str, Region], cell: Sequence[int], details: Mapping[str, str], space: ConceptSpace) -> str:
    """Return the modes that contain this cell of an item with these attributes."""
    at = np.array([cell])
    held = [
        name
        for name, region in modes.items()
        if region.in_box(space, at)[0] and all(details.get(key) in values for key, values in region.items.items())
    ]
    return ", ".join(held) or "outside all modes"


def _rest(caption: str, label: str, output: str) -> str:
    """Return what remains of a caption without the expected and the actual answer."""
    rest = caption.removeprefix(f"label {label} → ")
    return rest.removeprefix("predicted ").removeprefix(output).strip() if rest != caption else caption


def _explorer(groups: Mapping[str, list[Case]], source: ExampleSource) -> ExampleSet:
    rows = [case.row for cases in groups.values() for case in cases]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    facets = []
    for name in ("mode", "outcome", *_columns(dict.fromkeys(map(str, source.attributes)))):
        values = {str(row[name]) for row in rows if row.get(name) is not None}
        if 1 < len(values) <= _MOST_VALUES:
            facets.append((columns.index(name), name, sorted(values, key=lambda v: (len(v), v))))
    sortable = columns.index("discrepancy") if "discrepancy" in columns else None
    table = [[row.get(name) for name in columns] for row in rows]
    return ExampleSet(dict(groups), facets, json_block({"columns": columns, "rows": table}), sortable)
