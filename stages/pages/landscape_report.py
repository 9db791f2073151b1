"""The report on a landscape: where the model fails, how sure we are, and what failing looks like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.landscape.describe import COUNTED
from stages.landscape.intervals import wilson
from stages.pages import figures
from stages.pages.bias import HOW, landscape_bias
from stages.pages.gallery import Gallery, PicturedCell, Shown, Shrinker
from stages.pages.marginals import marginal, shown_concepts, views
from stages.pages.page import Picture, render
from stages.pages.parts import label_of, landscape_part, pair_part, space_of, top_rate
from stages.pages.ratings import fails, ratings_view
from stages.pages.robustness import robustness_view
from stages.pages.searches import search_view
from stages.pages.sheets import show_sheets, strips
from stages.pages.verdicts import verdict_view
from stages.pages.words import flatten, interval, is_number, number, percent
from stages.tasks.contract import Exhibit, Sheet

LIMITS = (
    "A rate belongs to this model, these items and this grid. It says nothing about other levels or concepts.",
    "Most cells were probed a few times or not at all; their rate is an estimate based on neighbouring cells. "
    "Read regions and their intervals, not single cells.",
    "Intervals are 95% intervals for the sampling of probes, or of items if the whole grid was probed. They do "
    "not cover items unlike the ones used here.",
    "Averages give every level the same weight. In use, some levels are rarer than others.",
    "The agent looks for failures on purpose: the share of its probes that fail does not estimate the failure rate.",
)

INVALID_ROWS = 8
_INNER = ("hyperparameters", "calibration")  # of the estimator: for landscape.json, not for people


def write_landscape_report(
    out: Path,
    *,
    landscape: pd.DataFrame,
    summary: Mapping[str, Any],
    verdict: Mapping[str, Any],
    probes: pd.DataFrame,
    galleries: Mapping[str, Gallery],
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any],
    nearest: Sequence[Exhibit] = (),
    extremes: Mapping[str, Sequence[PicturedCell]] | None = None,
    sheets: Sequence[Sheet] = (),
    skipped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the landscape as one self-contained page. What is missing in the inputs is left out.

    Args:
        out: the page; the same inputs give the same bytes.
        landscape: one row a cell, as in landscape.parquet.
        summary: as in landscape.json.
        verdict: as in verdict.json.
        probes: as in discover's probes.parquet.
        galleries: examples for each mode's id.
        provenance: as in provenance.json.
        metrics: the stage's metrics.
        nearest: the smallest failing changes.
        extremes: the cells that fail most ("worst") and least ("best"), for tasks that draw.
        sheets: contact sheets.
        skipped: what could not be used, as {file, reason}.
    """
    space = ConceptSpace.from_json(summary["concepts"])
    names = shown_concepts(landscape, space)
    top = top_rate(landscape, space, names)
    modes, again = summary.get("modes"), summary.get("modes_found_again")
    search = search_view(probes, summary.get("search") or {})
    shown = [e for gallery in galleries.values() for e in (*gallery.failing, *gallery.passing)]
    picked = [cell.exhibit for cells in (extremes or {}).values() for cell in cells if cell.exhibit]
    shrinker = Shrinker([*shown, *nearest, *picked], strips({"": sheets}))
    parts = {
        "verdict": verdict_view(verdict),
        "landscape": landscape_part(landscape, space, names, top),
        "ratings": ratings_view(summary, landscape, space, names),
        "pairs": pair_part(landscape, space, names, top),
        "effects": _effects(space, summary.get("effects") or [], top),
        "modes": None if modes is None else _modes(modes, galleries, shrinker, again),
        "bias": landscape_bias(summary.get("bias") or []),
        "extremes": _extremes(extremes or {}, shrinker),
        "sheets": show_sheets({"": sheets}, shrinker),
        "invalid": _invalid(summary.get("invalid")),
        "robustness": robustness_view(summary),
        "again": _again(again),
        "search": search,
        "trust": _trust(landscape, space, probes, summary),
        "policy": _policy(landscape, space, names),
    }
    titles = {
        "landscape": "Landscape",
        "ratings": "People",
        "pairs": "Pairs",
        "effects": "Single concepts",
        "modes": "Failure modes",
        "bias": "Bias",
        "extremes": "Best and worst",
        "sheets": "Contact sheets",
        "invalid": "Beyond recognition",
        "robustness": "Smallest changes",
        "search": "Search",
        "trust": "Trust",
        "policy": "Policy",
    }
    render(
        "landscape.html.j2",
        out,
        audit=summary.get("audit", "audit"),
        finding=_finding(space, summary, search),
        tiles=_tiles(space, summary, probes),
        contents=[(key, title) for key, title in titles.items() if parts[key]],
        top=top,
        exact=bool(summary.get("exact")),
        counted=COUNTED,
        modes_skipped=[" × ".join(names) for names in summary.get("modes_skipped") or []],
        skipped=[(entry["file"], entry["reason"]) for entry in skipped],
        provenance=list(flatten(provenance)),
        metrics=list(flatten(metrics)),
        nearest=shrinker.show_all(nearest),
        bias_how=HOW,
        limits=LIMITS,
        **parts,
    )


def _effects(space: ConceptSpace, effects: Iterable[Mapping[str, Any]], top: float) -> list[dict[str, Any]]:
    table = pd.DataFrame(list(effects))
    if table.empty:
        return []
    parts = []
    for concept in space.concepts:
        rows = (
            table[table["concept"] == concept.name].sort_values("level").set_index("level").reindex(range(len(concept)))
        )
        if rows["rate"].isna().all():
            continue
        rows["label"] = [concept.label(i) for i in range(len(concept))]
        for count in ("probes", "failures"):
            rows[count] = rows[count].fillna(0).astype(int) if count in rows else None
        alt = f"Failure rate of each level of {concept.name}: " + ", ".join(
            f"{label} {percent(rate)}" for label, rate in zip(rows["label"], rows["rate"], strict=True)
        )
        figure = figures.effect_view(concept, rows, top)
        parts.append(
            {
                "name": concept.name,
                "picture": Picture(alt, [("", figure)], 250, concept.name),
                "rows": rows.to_dict("records"),
            }
        )
    return parts


def _modes(
    modes: Sequence[Mapping[str, Any]],
    galleries: Mapping[str, Gallery],
    shrinker: Shrinker,
    again: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    halves = ("Neither half", "One half", "Each half")
    chosen = {mode["id"]: galleries.get(mode["id"], Gallery([], [])) for mode in modes}
    return [
        {
            **mode,
            "again": f"{halves[again['in_halves'][mode['id']]]} of the items names it again." if again else "",
            "failing": shrinker.show_all(chosen[mode["id"]].failing),
            "passing": shrinker.show_all(chosen[mode["id"]].passing),
        }
        for mode in modes
    ]


def _extremes(extremes: Mapping[str, Sequence[PicturedCell]], shrinker: Shrinker) -> list[tuple[str, str, list[Shown]]]:
    """The worst and the best cells, each with its example, or with words alone where none was probed."""
    titles = {"worst": ("Fails most", "failing"), "best": ("Fails least", "passing")}

    def show(cell: PicturedCell) -> Shown:
        said = f"{percent(cell.rate)} fail [{interval(cell.low, cell.high)}]: {cell.text}"
        if cell.exhibit is None:
            return Shown(f"{said} (not probed)")
        shown = shrinker.show(cell.exhibit)
        return shown._replace(caption=f"{said}. {shown.caption}")

    return [(*titles[side], [show(cell) for cell in cells]) for side, cells in extremes.items() if cells]


def _again(again: Mapping[str, Any] | None) -> str:
    """Whether other items would tell the same story about modes."""
    if not again:
        return ""
    named = number(again["named"])
    between = (
        f"of the {named} that one half names, the other names {number(again['again'])} again"
        if again["named"]
        else "one of them names none"
    )
    return (
        "Would other items tell the same story? Modes were also named from each of two halves of the items, by the same"
        f" estimator but half of the probes, which understates it: {between}. A mode counts as named again where half"
        " of the cells that it or the other holds are in both."
    )


def _invalid(invalid: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How many probes left nothing a model could be blamed for, and where; None if there are none."""
    if not invalid or not invalid["count"]:
        return None
    said = (
        f"{number(invalid['count'])} of all {number(invalid['probes'])} probes changed the input so much that no model "
        "could be blamed. They are not held against this one: whatever it answered, they count as passed."
    )
    if is_number(invalid["value"]):
        said += (
            f" Of the control's {number(invalid['n'])} uniform probes these are {percent(invalid['value'])} "
            f"[{interval(invalid['low'], invalid['high'])}]."
        )
    more = [row for row in invalid["levels"] if row["value"] > invalid["value"]]
    return {"sentence": said, "rows": sorted(more, key=lambda row: -row["value"])[:INVALID_ROWS]}


def _trust(
    landscape: pd.DataFrame, space: ConceptSpace, probes: pd.DataFrame, summary: Mapping[str, Any]
) -> dict[str, Any] | None:
    sentences = []
    if summary.get("exact"):
        sentences.append("The budget covered every pair of item and cell: these rates are counted, not estimated.")
    if summary.get("sampled"):
        sentences.append(
            f"Of the {number(space.n_cells)} cells of the grid a uniform sample of {number(len(landscape))} is shown."
        )
    if "items_averaged" in summary:
        sentences.append(
            f"Rates of cells are averaged over a sample of {number(summary['items_averaged'])} of the"
            f" {number(summary['items'])} items; their intervals allow for it."
        )
    if "probes" in landscape and len(landscape):
        asked, each = float((landscape["probes"] > 0).mean()), landscape["probes"].mean()
        of_what = "of these cells" if summary.get("sampled") else "of the cells"
        sentences.append(
            f"{percent(asked)} {of_what} were probed at least once; the average cell {each:.1f} times. "
            "In cells without a probe the rate is the estimate alone."
        )
    certain = float(landscape["certain"].mean()) if "certain" in landscape and len(landscape) else None
    bins = _calibration_bins(landscape, space, probes)
    picture, caption = None, ""
    if bins is not None:
        alt = "Observed against estimated failure rate: " + "; ".join(
            f"estimated {percent(e)}, observed {percent(o)} of {n} probes"
            for e, o, n in zip(bins["estimated"], bins["observed"], bins["probes"], strict=True)
        )
        picture = Picture(alt, [("", figures.calibration(bins))], 380, "Estimated against counted")
        caption = (
            "Cells grouped by their estimated rate, against the control's probes there, with 95% "
            "intervals; on the dotted line both agree. The estimator has seen these probes: this shows that it fits, "
            "not that it predicts."
        )
    sentences += [*_false_alarms(summary), *summary.get("notes", ())]
    scores = summary.get("estimator") or {}
    estimator = list(flatten({key: value for key, value in scores.items() if key not in _INNER}))
    if is_number(scores.get("log_loss")) and is_number(scores.get("log_loss_constant")):
        better = scores["log_loss"] < scores["log_loss_constant"]
        sentences.append(
            f"On held-out probes the estimator has a log loss of {number(scores['log_loss'])}; always guessing "
            f"the overall rate has {number(scores['log_loss_constant'])}. "
            + ("It does better than that." if better else "It does no better than that: trust the counts, not the map.")
        )
    if not (sentences or certain is not None or picture or estimator):
        return None
    return {"sentences": sentences, "certain": certain, "picture": picture, "caption": caption, "estimator": estimator}


def _false_alarms(summary: Mapping[str, Any]) -> list[str]:
    """How often a calibrated threshold calls a failure what is none."""
    said = []
    ratings = summary.get("ratings")
    threshold = ratings["automatic"]["threshold"] if ratings else summary.get("threshold")
    by = ", by the automatic measure" if ratings else ""
    for change, alarm in (summary.get("false_alarms") or {}).items():
        unit = alarm.get("unit", "inputs")
        of = f"{unit} that did not set the threshold" if alarm["held_out"] else f"the {unit} that set the threshold"
        said.append(
            f"False alarms: with {change}, which nobody would hold against the model, {percent(alarm['rate'])} "
            f"[{interval(alarm['low'], alarm['high'])}] of {number(alarm['articles'])} {of} are called failures "
            f"(discrepancy above {number(threshold)}{by})."
        )
    return said


def _calibration_bins(landscape: pd.DataFrame, space: ConceptSpace, probes: pd.DataFrame) -> pd.DataFrame | None:
    """Probes of the control in ten groups by the estimated rate of their cell (the agent's are drawn to failures)."""
    if not {"role", "failed", *space.names} <= set(probes.columns) or "rate" not in landscape:
        return None
    control = probes[probes["role"] == "control"]
    rates = pd.Series(landscape["rate"].to_numpy(), index=space.flat(landscape[space.names].to_numpy()))
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


def _policy(landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str]) -> dict[str, Any] | None:
    if "policy_mean" not in landscape or landscape["policy_mean"].isna().all() or len(names) < 2:
        return None
    variants = []
    for view in views(names, 2):
        row, column = space_of(space, view).concepts
        variants.append((label_of(view), figures.policy_map(row, column, marginal(landscape, space, view))))
    alt = f"Heat map of how often the policy probes each combination of {variants[0][0]}, relative to chance."
    return {"picture": Picture(alt, variants, 400, selector="policy-view"), "labels": [label for label, _ in variants]}


def _worst(modes: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    rated = [mode for mode in modes if is_number(mode.get("rate"))]
    confirmed = [mode for mode in rated if mode.get("confirmed")]
    return max(confirmed or rated, key=lambda mode: mode["rate"], default=None)


def _finding(space: ConceptSpace, summary: Mapping[str, Any], search: Mapping[str, Any] | None) -> list[str]:
    """What the report says, in a few sentences."""
    said = []
    overall = summary.get("overall") or {}
    if is_number(overall.get("value")):
        bounds = f" [{interval(overall.get('low'), overall.get('high'))}]" if is_number(overall.get("low")) else ""
        said.append(
            f"This model fails on {percent(overall['value'])}{bounds} of the grid of {number(space.n_cells)} "
            f"combinations of {', '.join(space.names)}."
        )
    if ratings := summary.get("ratings"):
        rate = ratings["automatic"]["overall"]
        said.append(f"Failing here means {fails(ratings)}; by the automatic measure it is {percent(rate['value'])}.")
    worst = _worst(summary.get("modes") or [])
    if worst is not None:
        name = "Worst" if worst.get("confirmed") else "Worst, but not confirmed on fresh probes"
        said.append(
            f"{name}: {worst.get('text', worst['id'])}: {percent(worst['rate'])} fail, 95% interval "
            f"{interval(worst.get('low'), worst.get('high'))}, {number(worst.get('probes'))} probes."
        )
    elif summary.get("modes") is not None:
        said.append("No region stands out from the rest.")
    if search is not None:
        said.append(search["sentence"])
    return said


def _tiles(space: ConceptSpace, summary: Mapping[str, Any], probes: pd.DataFrame) -> list[tuple[str, str]]:
    tiles = []
    overall = summary.get("overall") or {}
    if is_number(overall.get("value")):
        tiles.append(
            (
                percent(overall["value"]),
                f"of the grid fails, 95% interval {interval(overall.get('low'), overall.get('high'))}",
            )
        )
    worst = _worst(summary.get("modes") or [])
    if worst is not None:
        tiles.append((percent(worst["rate"]), f"fails in the worst mode, {worst['id']}"))
        confirmed = sum(bool(mode.get("confirmed")) for mode in summary["modes"])
        tiles.append((f"{confirmed} of {len(summary['modes'])}", "failure modes confirmed on fresh probes"))
    if len(probes):  # not those of the landscape's cells, which may be a sample of the grid
        asked = [name for name in ("item", *space.names, "repeat") if name in probes]
        unique = int((~probes.duplicated(asked)).sum())
        tiles.append((number(unique), f"probes over {number(space.n_cells)} cells"))
    return tiles
