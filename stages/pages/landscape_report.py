"""The report on a landscape: where the model fails, how certain that is, and examples of failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.intervals import COUNTED, wilson
from stages.landscape.corruptions import CorruptionErrors, TooFew
from stages.pages import figures
from stages.pages.bias import HOW, landscape_bias
from stages.pages.corruptions import corruptions_view
from stages.pages.embedded import PAGE_BYTES, Packed, pack_probes
from stages.pages.examples import NOTHING_KNOWN, Source, explore_modes
from stages.pages.first_page import ABOUT_NOTHING, About, landscape_page
from stages.pages.gallery import Gallery, PicturedCell, Shown, Shrinker
from stages.pages.marginals import marginal, shown_concepts, views
from stages.pages.page import LAST_TITLES, Picture, contents_of, html_of, save
from stages.pages.parts import heat_tables, label_of, map_part, space_of, space_part, top_rate
from stages.pages.ratings import ratings_view
from stages.pages.robustness import robustness_view
from stages.pages.searches import search_view
from stages.pages.sheets import show_sheets, strips
from stages.pages.slices import marked, slices_view
from stages.pages.verdicts import verdict_view
from stages.pages.words import flatten, interval, number, percent
from stages.records import Effect, Landscape, ModeRecord, Verdict
from stages.records.base import FlatMetrics
from stages.records.landscape import Invalid, InvalidLevel, LevelAlone, NamedAgain
from stages.records.tables import ShownExample
from stages.tasks.contract import Exhibit, Sheet

LIMITS = (
    "A rate belongs to this model, these items and this grid. It says nothing about other levels or concepts.",
    "Most cells were probed a few times or not at all; their rate is an estimate based on neighbouring cells. "
    "Read regions and their intervals, not single cells.",
    "Intervals are 95% intervals for the sampling of probes, or of items if everything was probed. They do "
    "not cover items unlike the ones used here.",
    "The agent looks for failures on purpose: the share of its probes that fail does not estimate the failure rate.",
)
ASSUMED = {  # by whether there is a usage
    True: "Rates follow how common changes were taken to be. Intervals do not cover that this may be wrong.",
    False: "Averages give every level the same weight. In use, some levels are rarer than others.",
}

TITLES = {  # of the sections, in order; the table of contents uses the same words
    "gates": "Gates",
    "landscape": "The landscape",
    "corruptions": "Corruption by corruption",
    "modes": "Failure modes",
    "slices": "Which items fail",
    "effects": "One concept at a time",
    "ratings": "People's ratings against the automatic measure",
    "bias": "Bias",
    "extremes": "Best and worst cells",
    "sheets": "Contact sheets",
    "invalid": "Invalid probes",
    "robustness": "Smallest failing changes",
    "search": "The search",
    "trust": "How far to trust the rates",
    "policy": "Where the agent looks",
    **LAST_TITLES,
}
LEAST_ROOM = 50_000  # minimum bytes for a sample of the probes to be worth a download
CONFUSIONS = 3  # listed for each mode
INVALID_ROWS = 8
_INNER = ("hyperparameters", "calibration")  # keys of the estimator that are only in landscape.json


class EffectRow(NamedTuple):
    """One level of a concept: its rate alone and averaged over everything else in use; None if that is unknown.

    `items` names the items; empty for all.
    """

    label: str
    items: str
    alone: LevelAlone | None
    average: Effect | None


class EffectPart(NamedTuple):
    """One concept: its picture, and its levels."""

    name: str
    picture: Picture
    rows: list[EffectRow]


class ModePart(NamedTuple):
    """A failure mode, whether halves of the items name it again, and the wrong answers."""

    mode: ModeRecord
    again: str
    confused: str


class InvalidPart(NamedTuple):
    """Probes that are not valid, and the levels where they are most common."""

    sentence: str
    rows: list[InvalidLevel]


class Trust(NamedTuple):
    """How far to trust the rates; `certain` is the share of use in cells with a narrow interval."""

    sentences: list[str]
    certain: float | None
    picture: Picture | None
    caption: str
    estimator: list[tuple[str, str]]


class PolicyPart(NamedTuple):
    """Where the agent looks, and how much that depends on the item, with labels for their selector."""

    mean: Picture
    deviation: Picture
    labels: list[str]


def write_landscape_report(
    out: Path,
    *,
    landscape: Landscape,
    cells: pd.DataFrame,
    verdict: Verdict,
    probes: pd.DataFrame,
    galleries: Mapping[str, Gallery],
    provenance: Mapping[str, Any],
    metrics: FlatMetrics,
    corruptions: CorruptionErrors | TooFew | None = None,
    unchanged: Mapping[str, Exhibit] = MappingProxyType({}),
    attributes: pd.DataFrame = NOTHING_KNOWN,
    nearest: Sequence[Exhibit] = (),
    kinds: Sequence[ShownExample] = (),
    extremes: Mapping[str, Sequence[PicturedCell]] | None = None,
    sheets: Sequence[Sheet] = (),
    about: About = ABOUT_NOTHING,
    proposed: Mapping[str, str] = MappingProxyType({}),
    skipped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the landscape as one self-contained page.

    Args:
        out: the page; the same inputs give the same bytes.
        landscape: the record.
        cells: one row per cell, as in landscape.parquet.
        verdict: the verdict on it.
        probes: as in discover's probes.parquet.
        galleries: examples by the id of their mode.
        provenance: as in provenance.json.
        metrics: the stage's metrics.
        corruptions: error by corruption, if the grid has one corruption at a time.
        unchanged: the unchanged items of the examples, by id.
        attributes: attributes of the items, one row per item id.
        nearest: the smallest failing changes.
        kinds: unchanged items of each kind, with its name as their id.
        extremes: the cells that fail most ("worst") and least ("best"), for tasks whose outputs are pictures.
        sheets: contact sheets.
        about: what was audited.
        proposed: who proposed a concept or an attribute, by its name.
        skipped: files that could not be used, as {file, reason}.
    """
    space = landscape.space
    names = shown_concepts(cells, space)
    top = top_rate(cells, space, names)
    search = search_view(probes, landscape.search)
    shown = [e for gallery in galleries.values() for e in (*gallery.failing, *gallery.passing)]
    asked = {one.id: one.item for mode in landscape.modes for one in mode.examples}
    beside = [unchanged[asked[i]] for gallery in galleries.values() for i in gallery.ids if asked.get(i) in unchanged]
    picked = [cell.exhibit for side in (extremes or {}).values() for cell in side if cell.exhibit]
    typical = [one.exhibit for one in kinds]
    more = [*strips({"": sheets}), *(e.image for e in beside if e.image is not None)]
    shrinker = Shrinker([*shown, *nearest, *typical, *picked], more)
    judged = verdict_view(verdict)
    source = Source(space, shrinker, unchanged, attributes)
    sides = {"": ""}
    parts = {
        "landscape": map_part(cells, space, names, top, sides, {mode.id: mode.cells for mode in landscape.modes}),
        "corruptions": corruptions_view(corruptions, exact=landscape.exact),
        "effects": _effects(landscape, top, proposed),
        "modes": _modes(landscape),
        "slices": slices_view(landscape, proposed),
        "bias": landscape_bias(landscape.bias or []),
        "ratings": ratings_view(landscape, cells, names),
        "extremes": _extremes(extremes or {}, shrinker),
        "sheets": show_sheets({"": sheets}, shrinker),
        "invalid": _invalid(landscape.invalid, "of use" if landscape.usage else "of the grid"),
        "robustness": robustness_view(landscape),
        "search": search,
        "trust": _trust(landscape, cells, probes),
        "policy": _policy(cells, space, names),
    }
    ends = {"gates": judged.gates, "modes": True, "skipped": skipped, "provenance": provenance}
    page = partial(
        html_of,
        "landscape.html.j2",
        titles=TITLES,
        audit=landscape.audit,
        first=landscape_page(landscape, judged, about, galleries, unchanged, shrinker),
        verdict=judged,
        contents=contents_of(TITLES, parts | ends),
        points=space_part(cells, space, names, top, sides),
        tables=heat_tables(cells, space, names),
        explorer=explore_modes(landscape.modes, galleries, source),
        again=_again(landscape.modes_found_again),
        top=top,
        exact=landscape.exact,
        usage=landscape.usage is not None,
        alone=_known_alone(landscape),
        counted=COUNTED,
        suspected=landscape.suspected,
        modes_skipped=[" × ".join(names) for names in landscape.modes_skipped],
        skipped=[(entry["file"], entry["reason"]) for entry in skipped],
        provenance=list(flatten(provenance)),
        metrics=list(flatten(metrics.to_json())),
        nearest=shrinker.show_all(nearest),
        kinds=list(zip([one.id for one in kinds], shrinker.show_all(typical), strict=True)),
        bias_how=HOW,
        limits=[*LIMITS, ASSUMED[landscape.usage is not None]],
        **parts,
    )
    room = PAGE_BYTES - len(page(packed=Packed("", len(probes), len(probes))).encode())
    save(out, page(packed=pack_probes(probes, space, room) if room > LEAST_ROOM else None))


def _effects(landscape: Landscape, top: float, proposed: Mapping[str, str]) -> list[EffectPart]:
    """Return the curve of each concept: alone where most levels were probed so, else averaged over everything else."""
    parts, drawn_alone = [], _known_alone(landscape)
    for concept in landscape.space.concepts:
        name = marked(concept.name, proposed)
        average = [effect for effect in landscape.effects if effect.concept == concept.name]
        lines = _alone(landscape, concept.name) if drawn_alone else {}
        shown: Sequence[LevelAlone | Effect] = lines.pop("", average)
        if not average or all(level.rate is None for level in shown):
            continue
        alt = f"Failure rate of each level of {concept.name}: " + ", ".join(
            f"{concept.label(level.level)} {percent(level.rate)}" for level in shown
        )
        others = {items: _table(levels) for items, levels in lines.items()}
        figure = figures.effect_view(concept, _table(shown), top, others=others)
        first = [shown, average] if drawn_alone else [[None] * len(average), average]
        rows = [EffectRow(effect.label, "", one, effect) for one, effect in zip(*first, strict=True)]
        rows += [
            EffectRow(concept.label(one.level), items, one, None) for items, levels in lines.items() for one in levels
        ]
        parts.append(EffectPart(name, Picture(alt, [("", figure)], 270, name), rows))
    return parts


def _table(levels: Sequence[LevelAlone | Effect]) -> pd.DataFrame:
    return pd.DataFrame([level.to_json() for level in levels])


def _known_alone(landscape: Landscape) -> bool:
    """Whether at least half of all levels were probed with everything else unchanged."""
    probed = [one.probes > 0 for one in landscape.alone if not one.attribute]
    return 2 * sum(probed) >= len(probed) > 0


def _alone(landscape: Landscape, concept: str) -> dict[str, list[LevelAlone]]:
    """Return the rates of a concept's levels alone: of all items (""), of those a mode is about, and of the others."""
    found: dict[str, list[LevelAlone]] = {}
    kinds: dict[str, list[list[LevelAlone]]] = {}
    for one in landscape.alone:
        if one.concept == concept:
            found.setdefault(f"{one.attribute} {one.value}".strip(), []).append(one)
    for levels in list(found.values())[1:]:
        kinds.setdefault(levels[0].attribute, []).append(levels)
    for attribute, values in kinds.items():
        found[f"any other {attribute}"] = [
            _rest(level, of_values) for level, *of_values in zip(found[""], *values, strict=True)
        ]
    return found


def _rest(everyone: LevelAlone, some: Sequence[LevelAlone]) -> LevelAlone:
    """Return the rate of all other items at a level; its interval is not recorded."""
    probes = everyone.probes - sum(one.probes for one in some)
    failures = (everyone.rate or 0.0) * everyone.probes - sum((one.rate or 0.0) * one.probes for one in some)
    rate = round(failures) / probes if probes else None
    return everyone.model_copy(update={"rate": rate, "low": None, "high": None, "probes": probes})


def _modes(landscape: Landscape) -> list[ModePart]:
    halves, again = ("neither half", "one half", "both halves"), landscape.modes_found_again.in_halves
    return [
        ModePart(mode, f"Found again in {halves[again[mode.id]]} of the items.", landscape.confused(mode, CONFUSIONS))
        for mode in landscape.modes
    ]


def _extremes(extremes: Mapping[str, Sequence[PicturedCell]], shrinker: Shrinker) -> list[tuple[str, str, list[Shown]]]:
    """Return the worst and the best cells, each with its example, or only in words if it was not probed."""
    titles = {"worst": ("Fails most", "failing"), "best": ("Fails least", "passing")}

    def show(cell: PicturedCell) -> Shown:
        said = f"{percent(cell.rate)} fail [{interval(cell.low, cell.high)}]: {cell.text}"
        if cell.exhibit is None:
            return Shown(f"{said} (not probed)")
        shown = shrinker.show(cell.exhibit)
        return shown._replace(caption=f"{said}. {shown.caption}")

    return [(*titles[side], [show(cell) for cell in cells]) for side, cells in extremes.items() if cells]


def _again(again: NamedAgain) -> str:
    """State whether other items would give the same modes."""
    between = (
        f"of the {number(again.named)} found in one half, the other half has {number(again.again)} again"
        if again.named
        else "one of the halves has none"
    )
    return (
        "Would other items give the same modes? Modes were also sought in each of two halves of the items, with the"
        f" same estimator but half of the probes, which understates the agreement: {between}. A mode counts as found"
        " again if at least half of the pairs of item and cell that either covers are covered by both."
    )


def _invalid(invalid: Invalid, where: str) -> InvalidPart | None:
    """Return how many probes are not valid, and where; None if all are."""
    if not invalid.count:
        return None
    said = (
        f"{number(invalid.count)} of all {number(invalid.probes)} probes {invalid.what}. "
        "They are invalid: they are not held against the model, and count as passed."
    )
    if invalid.value is None:
        return InvalidPart(said, [])
    said += (
        f" They make up {percent(invalid.value)} [{interval(invalid.low, invalid.high)}] {where}, by the control's"
        f" {number(invalid.n)} probes."
    )
    if (without := invalid.left_out) and (counted := invalid.as_failures) and without.value is not None:
        said += (
            f" Of the others {percent(without.value)} [{interval(without.low, without.high)}] fail; if invalid probes"
            f" counted as failures, {percent(counted.value)} [{interval(counted.low, counted.high)}] of all would fail."
        )
    more = [row for row in invalid.levels if row.value is not None and row.value > invalid.value]
    return InvalidPart(said, sorted(more, key=lambda row: -(row.value or 0.0))[:INVALID_ROWS])


def _trust(landscape: Landscape, cells: pd.DataFrame, probes: pd.DataFrame) -> Trust:
    space, estimator = landscape.space, landscape.estimator
    sentences = []
    if landscape.exact:
        sentences.append("The budget covered every pair of item and cell: these rates are counted, not estimated.")
    if landscape.sampled:
        sentences.append(
            f"A sample of {number(len(cells))} of the {number(space.n_used)} cells that"
            f" {'occur in use' if landscape.usage else 'the grid has'} is shown, weighted to stand for all."
        )
    if landscape.items_averaged is not None:
        sentences.append(
            f"Rates of cells are averaged over a sample of {number(landscape.items_averaged)} of the"
            f" {number(landscape.items)} items; their intervals allow for it."
        )
    asked, each = float((cells["probes"] > 0).mean()), cells["probes"].mean()
    of_what = "of these cells" if landscape.sampled else "of the cells"
    if landscape.usage:
        of_what += f", which make up {percent(cells['use'] @ (cells['probes'] > 0))} of use,"
    sentences.append(
        f"{percent(asked)} {of_what} were probed at least once, and a cell {each:.1f} times on average. "
        "In cells without probes, the rate is an estimate only."
    )
    bins = _calibration_bins(cells, space, probes)
    picture, caption = None, ""
    if bins is not None:
        alt = "Observed against estimated failure rate: " + "; ".join(
            f"estimated {percent(e)}, observed {percent(o)} of {n} probes"
            for e, o, n in zip(bins["estimated"], bins["observed"], bins["probes"], strict=True)
        )
        picture = Picture(alt, [("", figures.calibration(bins))], 380, "Estimated against counted")
        caption = (
            "Cells grouped by their estimated rate, against the control's probes there, with 95% "
            "intervals; on the dotted line the two agree. The estimator has seen these probes, so this shows that it "
            "fits, not that it predicts."
        )
    sentences += [*_false_alarms(landscape), *landscape.notes]
    loss, constant = estimator.log_loss, estimator.log_loss_constant
    if loss is not None and constant is not None:
        sentences.append(
            f"On held-out probes the estimator has a log loss of {number(loss)}; always predicting "
            f"the overall rate has {number(constant)}. "
            + (
                "The estimator does better."
                if loss < constant
                else "The estimator does no better: trust the counts, not the map."
            )
        )
    scores = list(flatten({key: value for key, value in estimator.to_json().items() if key not in _INNER}))
    return Trust(sentences, float(cells["use"] @ cells["certain"]), picture, caption, scores)


def _false_alarms(landscape: Landscape) -> list[str]:
    """State how often a calibrated threshold reports a failure where there is none."""
    said = []
    ratings = landscape.ratings
    threshold = ratings.automatic.threshold if ratings else landscape.threshold
    by = ", by the automatic measure" if ratings else ""
    for change, alarm in landscape.false_alarms.items():
        of = (
            f"{alarm.unit} that did not set the threshold"
            if alarm.held_out
            else f"the {alarm.unit} that set the threshold"
        )
        said.append(
            f"False alarms: with {change}, which nobody would hold against the model, {percent(alarm.rate)} "
            f"[{interval(alarm.low, alarm.high)}] of {number(alarm.articles)} {of} count as failures "
            f"(discrepancy above {number(threshold)}{by})."
        )
    return said


def _calibration_bins(cells: pd.DataFrame, space: ConceptSpace, probes: pd.DataFrame) -> pd.DataFrame | None:
    """Group the control's probes into ten bins by estimated rate; the agent's would be biased towards failures."""
    control = probes[probes["role"] == "control"]
    rates = pd.Series(cells["rate"].to_numpy(), index=space.flat(cells[space.names].to_numpy()))
    estimated = rates.reindex(space.flat(control[space.names].to_numpy())).to_numpy()
    seen = np.isfinite(estimated)
    if not seen.any():
        return None
    table = pd.DataFrame({"estimated": estimated[seen], "failed": control["failed"].to_numpy()[seen].astype(int)})
    groups = table.groupby((table["estimated"] * 10).clip(0, 9.999).astype(int))
    bins = groups.agg(
        estimated=("estimated", "mean"), failures=("failed", "sum"), probes=("failed", "size")
    ).reset_index(drop=True)
    seen_rates = [wilson(int(k), int(n)) for k, n in zip(bins["failures"], bins["probes"], strict=True)]
    observed, low, high, _ = zip(*seen_rates, strict=True)
    return bins.assign(observed=observed, low=low, high=high)


def _policy(cells: pd.DataFrame, space: ConceptSpace, names: Sequence[str]) -> PolicyPart | None:
    if cells["policy_mean"].isna().all() or len(names) < 2:
        return None
    pairs = views(names, 2)
    first, labels = label_of(pairs[0]), [label_of(view) for view in pairs]

    def picture(what: str, alt: str, title: str) -> Picture:
        variants = []
        for view in pairs:
            row, column = space_of(space, view).concepts
            variants.append((label_of(view), figures.policy_map(row, column, marginal(cells, space, view), what)))
        return Picture(alt, variants, 400, title, selector="policy-view")

    return PolicyPart(
        picture(
            "policy_mean",
            f"Heat map of how often the policy probes each combination of {first}, relative to chance.",
            "Mean over items",
        ),
        picture(
            "policy_std",
            f"Heat map of how much this differs between items, for each combination of {first}.",
            "Standard deviation over items",
        ),
        labels,
    )
