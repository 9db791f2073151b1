"""The report on a landscape: where the model fails, how certain that is, and examples of failures."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd

from stages.concepts.grids import UNCHANGED
from stages.core.intervals import COUNTED
from stages.landscape.corruptions import CorruptionErrors, TooFew
from stages.pages import figures
from stages.pages.bias import HOW, landscape_bias
from stages.pages.examples import ExampleSource, explore_modes
from stages.pages.first_page import ABOUT_NOTHING, About, landscape_page
from stages.pages.gallery import ExhibitView, PicturedCell, Shrinker, show_sheets, strips
from stages.pages.maps import policy_maps, rate_maps, shown_concepts, top_rate
from stages.pages.page import PAGE_BYTES, PackedTable, Picture, html_of, pack_probes, save
from stages.pages.sections import (
    NOTHING_KNOWN,
    corruption_sentences,
    limits_of_steps,
    ratings_view,
    search_view,
    smallest_changes,
    steps_picture,
    worse_slices,
)
from stages.pages.words import interval, marked, number, percent, unshown_said
from stages.records import Effect, Landscape, Verdict
from stages.records.landscape import Invalid, InvalidLevel, LevelAlone
from stages.records.tables import ShownExample
from stages.tasks.contract import Exhibit, Sheet

LIMITS = (
    "A rate belongs to this model, items like these and this grid. It says nothing about other levels or concepts.",
    "Most cells were probed a few times or not at all; their rate is an estimate based on neighbouring cells. "
    "Read regions and their intervals, not single cells.",
    "Intervals are 95% intervals for other items like these; those of single cells are for these items. They do not "
    "cover items unlike the ones used here.",
    "The agent looks for failures on purpose: the share of its probes that fail does not estimate the failure rate.",
)
ASSUMED = {  # by whether there is a usage
    True: "Rates follow how common changes were taken to be. Intervals do not cover that this may be wrong.",
    False: "Averages give every level the same weight. In use, some levels are rarer than others.",
}

LEAST_ROOM = 50_000  # minimum bytes for a sample of the probes to be worth a download
INVALID_ROWS = 8
_INNER = ("hyperparameters", "calibration")  # keys of the estimator that are only in landscape.json


class EffectPart(NamedTuple):
    """One concept: its picture, and the rates of its levels.

    Args:
        picture: of the rates alone if they are known, else of the averages.
        levels: averaged over everything else in use.
        alone: with everything else unchanged; empty if too few were probed so.
        some: the same for some of the items, by what they have in common.
    """

    name: str
    picture: Picture
    levels: list[Effect]
    alone: list[LevelAlone]
    some: dict[str, list[LevelAlone]]


def write_landscape_report(
    out: Path,
    *,
    landscape: Landscape,
    cells: pd.DataFrame,
    verdict: Verdict,
    probes: pd.DataFrame,
    galleries: Mapping[str, Sequence[ShownExample]],
    provenance: Mapping[str, Any],
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
        cells: one row per cell, as in landscape.parquet.
        probes: as in discover's probes.parquet.
        galleries: examples by the id of their mode.
        corruptions: error by corruption, if the grid has one corruption at a time.
        unchanged: the unchanged items of the examples, by id.
        attributes: attributes of the items, one row per item id.
        nearest: the smallest failing changes.
        kinds: unchanged items of each kind, with its name as their id.
        extremes: the cells that fail most ("worst") and least ("best"), for tasks whose outputs are pictures.
        proposed: who proposed a concept or an attribute, by its name.
        skipped: files that could not be used, as {file, reason}.
    """
    space = landscape.space
    concepts = shown_concepts(cells, space)
    top = top_rate(cells, space, concepts)
    shown = [one.exhibit for gallery in galleries.values() for one in gallery]
    items = {one.id: one.item for mode in landscape.modes for one in mode.examples}
    names = [one.id for gallery in galleries.values() for one in gallery]
    beside = [unchanged[items[name]] for name in names if items.get(name) in unchanged]
    picked = [cell.exhibit for side in (extremes or {}).values() for cell in side if cell.exhibit]
    typical = [one.exhibit for one in kinds]
    more = [*strips({"": sheets}), *(e.image for e in beside if e.image is not None)]
    shrinker = Shrinker([*shown, *nearest, *typical, *picked], more)
    source = ExampleSource(space, shrinker, unchanged, attributes)
    slices, robustness, invalid = landscape.slices, landscape.robustness, landscape.invalid
    page = partial(
        html_of,
        "landscape.html.j2",
        audit=landscape.audit,
        record=landscape,
        first=landscape_page(landscape, verdict, about, galleries, unchanged, shrinker),
        verdict=verdict,
        landscape=rate_maps(cells, space, concepts, top, {"": ""}, {mode.id: mode.cells for mode in landscape.modes}),
        names=concepts,
        corruptions=corruptions,
        corruption_sentences=corruption_sentences(corruptions) if corruptions else [],
        unchanged_level=UNCHANGED,
        modes=landscape.modes,
        modes_skipped=[" × ".join(names) for names in landscape.modes_skipped],
        explorer=explore_modes(landscape.modes, galleries, source),
        again=landscape.modes_found_again,
        suspected=landscape.suspected,
        unshown=unshown_said(landscape, verdict.unshown),
        slices=slices if slices and any(of.values for of in slices.attributes) else None,
        worse_slices=worse_slices(landscape) if slices else "",
        kinds=list(zip([one.id for one in kinds], shrinker.show_all(typical), strict=True)),
        effects=_effects(landscape, top, proposed),
        alone=_known_alone(landscape),
        ratings=ratings_view(landscape, cells, concepts),
        bias=landscape_bias(landscape.bias or []),
        bias_how=HOW,
        extremes=_extremes(extremes or {}, shrinker),
        sheets=show_sheets({"": sheets}, shrinker),
        invalid=invalid if invalid.count else None,
        invalid_levels=_invalid_levels(invalid),
        robustness=robustness,
        smallest_changes=smallest_changes(robustness, robustness.items == landscape.items) if robustness else "",
        limits_of_steps=limits_of_steps(robustness) if robustness else "",
        steps_picture=steps_picture(robustness.within) if robustness else None,
        nearest=shrinker.show_all(nearest),
        search=search_view(probes, landscape.search),
        trust=_trust(landscape, cells),
        certain=float(cells["use"] @ cells["certain"]),
        estimator={key: value for key, value in landscape.estimator.to_json().items() if key not in _INNER},
        policy=policy_maps(cells, space, concepts),
        proposed=proposed,
        exact=landscape.exact,
        usage=landscape.usage is not None,
        counted=COUNTED,
        skipped=skipped,
        provenance=provenance,
        limits=[*LIMITS, ASSUMED[landscape.usage is not None]],
    )
    room = PAGE_BYTES - len(page(packed=PackedTable("", len(probes), len(probes))).encode())
    save(out, page(packed=pack_probes(probes, space, room) if room > LEAST_ROOM else None))


def _effects(landscape: Landscape, top: float, proposed: Mapping[str, str]) -> list[EffectPart]:
    """Return the curve of each concept: alone where most levels were probed so, else averaged over everything else."""
    parts, known = [], _known_alone(landscape)
    highest = max((one.high or 0.0 for one in (landscape.alone if known else landscape.effects)), default=0.0)
    for concept in landscape.space.concepts:
        name = marked(concept.name, proposed)
        levels = [effect for effect in landscape.effects if effect.concept == concept.name]
        some = _alone(landscape, concept.name) if known else {}
        alone = some.pop("", [])
        shown: Sequence[LevelAlone | Effect] = alone or levels
        if not levels or all(level.rate is None for level in shown):
            continue
        alt = f"Failure rate of each level of {concept.name}: " + ", ".join(
            f"{concept.label(level.level)} {percent(level.rate)}" for level in shown
        )
        others = {items: _table(lines) for items, lines in some.items()}
        figure = figures.effect_view(concept, _table(shown), top, highest, others)
        parts.append(EffectPart(name, Picture(alt, figure, name), levels, alone, some))
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


def _extremes(
    extremes: Mapping[str, Sequence[PicturedCell]], shrinker: Shrinker
) -> list[tuple[str, str, list[ExhibitView]]]:
    """Return the worst and the best cells, each with its example, or only in words if it was not probed."""
    titles = {"worst": ("Fails most", "failing"), "best": ("Fails least", "passing")}

    def show(cell: PicturedCell) -> ExhibitView:
        text = f"{percent(cell.rate)} fail ({interval(cell.low, cell.high)}): {cell.text}"
        if cell.exhibit is None:
            return ExhibitView(f"{text} (not probed)")
        shown = shrinker.show(cell.exhibit)
        return shown._replace(caption=f"{text}. {shown.caption}")

    return [(*titles[side], [show(cell) for cell in cells]) for side, cells in extremes.items() if cells]


def _invalid_levels(invalid: Invalid) -> list[InvalidLevel]:
    """Return the levels with a higher share of invalid probes than average, worst first."""
    if invalid.value is None:
        return []
    more = [row for row in invalid.levels if row.value is not None and row.value > invalid.value]
    return sorted(more, key=lambda row: -(row.value or 0.0))[:INVALID_ROWS]


def _trust(landscape: Landscape, cells: pd.DataFrame) -> list[str]:
    """State how far to trust the rates."""
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
    probed = cells["probes"] > 0
    which = "of these cells" if landscape.sampled else "of the cells"
    if landscape.usage:
        which += f", which make up {percent(cells['use'] @ probed)} of use,"
    sentences.append(
        f"{percent(float(probed.mean()))} {which} were probed at least once, and a cell {cells['probes'].mean():.1f}"
        " times on average. In cells without probes, the rate is an estimate only."
    )
    sentences += [*_false_alarms(landscape), *landscape.notes]
    loss, constant = estimator.log_loss, estimator.log_loss_constant
    if loss is not None and constant is not None:
        sentences.append(
            f"On held-out probes the estimator has a log loss of {number(loss)}; always predicting "
            f"the overall rate has {number(constant)}. The estimator does "
            + ("better." if loss < constant else "no better: trust the counts, not the map.")
        )
    return sentences


def _false_alarms(landscape: Landscape) -> list[str]:
    """State how often a calibrated threshold reports a failure where there is none."""
    ratings = landscape.ratings
    threshold = ratings.automatic.threshold if ratings else landscape.threshold
    return [
        f"False alarms: with {change}, which nobody would hold against the model,"
        f" {percent(alarm.rate)} ({interval(alarm.low, alarm.high)}) of"
        f" {number(alarm.articles)} {'' if alarm.held_out else 'the '}{alarm.unit} that"
        f" {'did not set' if alarm.held_out else 'set'} the threshold count as failures"
        f" (discrepancy above {number(threshold)}{', by the automatic measure' if ratings else ''})."
        for change, alarm in landscape.false_alarms.items()
    ]
