"""Inputs of the reports from synthetic landscapes, with hostile text on request."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.concepts import Concept, ConceptSpace, Region
from stages.landscape.robustness import reached, summarize_robustness
from stages.microscopic.walks import Moves
from stages.pages.comparison_report import write_comparison_report
from stages.pages.landscape_report import write_landscape_report
from stages.params.usage import UsageConfig, in_use
from stages.records import Comparison, Landscape, PairedProbe, Plan, RepairVerdict, ShownExample, Verdict
from stages.records.landscape import usage_record
from stages.records.repair import PlannedMode
from stages.records.search import Walks
from stages.tasks.contract import Exhibit

HOSTILE = "<script>alert(1)</script>"

FOUR = (
    Concept("rotation", (0, 10, 20, 30, 40, 50, 60), "°", neutral=0),
    Concept("darkening", (0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9), neutral=0),
    Concept("blur", (0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4), " px", neutral=0),
    Concept("noise", (0, 0.08, 0.16, 0.24, 0.32, 0.4, 0.48), neutral=0),
)
WEATHER = Concept("weather", ("sun", "rain", "snow", "fog"), ordered=False)


def measured(value: float, low: float, high: float, n: int = 1200) -> dict[str, Any]:
    """A rate of a record as plain data."""
    return {"value": value, "low": low, "high": high, "n": n}


def gate(name: str, bound: float, value: float, low: float, high: float, passed: bool) -> dict[str, Any]:
    """A gate of a verdict as plain data."""
    return {"gate": name, "bound": bound, "value": value, "low": low, "high": high, "passed": passed}


def shelf(mode: str, failing: Sequence[Exhibit], passing: Sequence[Exhibit]) -> list[ShownExample]:
    """The examples of a mode as in exhibits.parquet."""
    return [ShownExample(f"{mode}.{n}", n <= len(failing), shown) for n, shown in enumerate([*failing, *passing], 1)]


def picture(seed: int, side: int = 28) -> bytes:
    image = pytest.importorskip("PIL.Image")
    y, x = np.mgrid[:side, :side] / side - 0.5
    angle = seed * 0.7
    stroke = np.abs(x * np.cos(angle) + y * np.sin(angle) + 0.1 * np.sin(9 * y)) < 0.08
    noise = np.random.default_rng(seed).normal(0, 25, (side, side))
    buffer = io.BytesIO()
    image.fromarray((220 * stroke + noise).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def make_landscape(space: ConceptSpace, rng: np.random.Generator, strength: float = 1.0) -> pd.DataFrame:
    cells, use = space.used(space.n_cells, rng)
    push = space.coordinates(cells)
    score = 3.4 * strength * push[:, 0] + 2.6 * strength * (push[:, -1] * push[:, 0]) - 2.6
    rate = 1 / (1 + np.exp(-score - 1.2 * push[:, push.shape[1] // 2]))
    table = pd.DataFrame(cells, columns=space.names).assign(use=use)
    table["probes"] = rng.integers(0, 5, len(cells))
    table["failures"] = rng.binomial(table["probes"], rate)
    table["rate"] = rate
    table["low"], table["high"] = (rate - 0.06).clip(0, 1), (rate + 0.07).clip(0, 1)
    table["certain"] = table["probes"] > 1
    share = np.exp(2 * rate)
    table["policy_mean"] = share / share.sum()
    table["policy_std"] = table["policy_mean"] / 10
    return table


def make_probes(space: ConceptSpace, landscape: pd.DataFrame, rng: np.random.Generator, n: int = 1200) -> pd.DataFrame:
    parts = []
    for role, weights in (("agent", landscape["policy_mean"]), ("control", None)):
        rows = landscape.sample(n, replace=True, weights=weights, random_state=int(rng.integers(1 << 30)))
        part = rows[space.names].reset_index(drop=True)
        part["role"], part["explorer"] = role, {"agent": "ppo", "control": "random"}[role]
        part["order"], part["item"], part["repeat"] = range(n), [f"item-{i % 50}" for i in range(n)], 0
        part["failed"] = rng.random(n) < rows["rate"].to_numpy()
        part["discrepancy"], part["output"] = 0.1, HOSTILE
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def make_walked(space: ConceptSpace, rng: np.random.Generator, n: int = 25) -> pd.DataFrame:
    """Smallest failing changes as in robustness.parquet: some items fail unchanged, for two none were found."""
    moves = Moves(space, space.start)
    cells = space.cells(rng.choice(np.arange(1, space.n_cells), n))
    cells = np.where(rng.random(cells.shape) < 0.6, cells, moves.start)
    cells[0] = moves.start
    steps = moves.steps(cells)
    known = np.arange(n) < n - 2
    alone = (cells != moves.start).sum(axis=1) == 1
    status = np.select([~known, steps == 0], ["not found", "fails unchanged"], "found")
    numbers = {"radius": steps, **dict(zip(space.names, cells.T, strict=True))}
    used = {f"alone_{name}": np.where(cells[:, j] != moves.start[j], steps, -1) for j, name in enumerate(space.names)}
    return pd.DataFrame(
        {
            "item": [f"item-{k}" for k in range(n)],
            "status": status,
            **{name: pd.Series(values, dtype="Int64").where(known) for name, values in numbers.items()},
            "at_least": np.where(known, np.minimum(steps, 1), 1),
            "searched": np.where(known, np.maximum(steps - 1, 0), moves.longest),
            "tried_alone": status != "fails unchanged",
            **{
                name: pd.Series(values, dtype="Int64").where(known & alone & (values > 0))
                for name, values in used.items()
            },
        }
    )


def make_inputs(*concepts: Concept, hostile: bool = False, images: bool = True) -> dict[str, Any]:
    """Arguments of `write_landscape`, from a synthetic landscape over these concepts, whose usage is assumed."""
    space, rng = in_use(ConceptSpace(concepts), UsageConfig()), np.random.default_rng(3)
    landscape = make_landscape(space, rng)
    first, last = space.concepts[0], space.concepts[-1]
    regions = [
        Region(
            {first.name: tuple(range(len(first) // 2, len(first))), last.name: tuple(range(len(last) // 2, len(last)))}
        ),
        Region({first.name: tuple(range(len(first) - 2, len(first)))}),
        Region({last.name: (len(last) - 1,)}),
    ]
    overall = float(landscape["rate"] @ landscape["use"])
    modes, galleries = [], {}
    for i, region in enumerate(regions, 1):
        inside = region.contains(space, landscape[space.names].to_numpy())
        rate = float(landscape.loc[inside, "rate"].mean())
        mode_id = f"M{i}"
        modes.append(
            {
                "id": mode_id, "region": region.to_json(), "text": region.describe(space), "rate": rate,
                "low": rate - 0.06, "high": min(1.0, rate + 0.05), "probes": 180 + i, "failures": round(rate * 180),
                "estimate": rate, "lift": rate / overall, "share": region.share(space), "of_failures": 0.4 / i,
                "invalid": None,
            }
        )  # fmt: skip
        said = HOSTILE if hostile else "seen as 7, expected 1"
        shown = [
            Exhibit(f"item-{k}: {said}", image=picture(10 * i + k))
            if images
            else Exhibit(f"item-{k}", text=f"Text {k}: {said}")
            for k in range(6)
        ]
        galleries[mode_id] = shelf(mode_id, shown[:4], shown[4:])
    suspected = [
        {
            "id": f"S{i}", "region": region.to_json(), "text": region.describe(space), "probes": 40 * asked,
            "failures": 11 * asked, "estimate": 0.31 + 0.01 * i, "share": 0.05 * i,
            **({"rate": 0.275, "low": 0.146, "high": 0.439} if asked else dict.fromkeys(("rate", "low", "high"))),
        }
        for i, region, asked in ((1, Region({first.name: (0,)}), True), (2, Region({last.name: (0,)}), False))
    ]  # fmt: skip
    effects = [
        {
            "concept": c.name, "level": j, "label": c.label(j), "rate": float(part["rate"].mean()),
            "low": float(part["low"].mean()), "high": float(part["high"].mean()), "probes": 300, "failures": 61,
        }
        for c in space.concepts
        for j, part in landscape.groupby(c.name)
    ]  # fmt: skip
    alone = [
        {
            "concept": c.name, "level": j, "attribute": attribute, "value": value, "rate": failures / probes,
            "low": failures / probes / 2, "high": (failures + 4) / (probes + 4), "probes": probes,
        }
        for c in space.concepts
        for attribute, value, times in (("", "", 4), ("label", "9", 1)) if not value or c == first
        for j in range(len(c))
        for probes, failures in [(10 * times, (j + 1) * times)]
    ]  # fmt: skip
    probes = make_probes(space, landscape, rng)
    walked = make_walked(space, rng)
    for mode, region in zip(modes, regions, strict=True):
        mode["minimal"] = reached(walked, space, region).to_json()
    robustness = summarize_robustness(walked, space, Walks(method="beam", probes=1830, items=25))
    assert robustness is not None
    summary = {
        "audit": HOSTILE if hostile else "mnist",
        "concepts": space.to_json(),
        "usage": usage_of(space),
        "threshold": 0.0,
        "overall": measured(overall, overall - 0.02, overall + 0.02),
        "overall_estimated": measured(overall, overall - 0.02, overall + 0.02),
        "invalid": {"count": 0, "probes": 2400, **measured(0.0, 0.0, 0.01), "levels": []},
        "modes_skipped": [],
        "effects": effects,
        "alone": alone,
        "half_as_much": measured(overall / 2, overall / 3, overall),
        "twice_as_much": measured(overall * 1.5, overall, overall * 2),
        "modes": modes,
        "suspected": suspected,
        "modes_found_again": {"named": 3, "again": 2, "in_halves": {"M1": 2, "M2": 1, "M3": 0}},
        "robustness": robustness.to_json(),
        "items": 50,
        "estimator": {
            "name": "boosted trees", "log_loss": 0.412, "log_loss_constant": 0.553, "brier": 0.131,
            "log_losses": {"boosted trees": 0.412, "Gaussian process": 0.44},
            "calibration": {"slope": 1.1, "intercept": 0.02},
        },
        "search": {
            "agent": {
                "explorer": "model_based", "chosen": "model_based", "why": "it found most", "budget": 1200,
                "probes": 1200, "failures": 700, "failure_rate": 0.58, "failing_cells": 321,
                "surrogate": "process", "fits": 14, "random_probes": 310,
                "gradient_updates": 480, "policy_entropy": 0.41,
            },
            "control": {
                "explorer": "random", "budget": 1200, "probes": 1200, "failures": 400, "failure_rate": 0.33,
                "failing_cells": 288,
            },
        },
        "exact": False,
        "sampled": False,
    }  # fmt: skip
    gates = [
        gate("max_failure_rate", 0.5, overall, overall - 0.02, overall + 0.02, True),
        gate("max_mode_rate", 0.6, modes[0]["rate"], 0.64, 0.77, False),
    ]
    return {
        "landscape": landscape,
        "summary": summary,
        "verdict": {
            "audit": "mnist",
            "passed": False,
            "gates": gates,
            "unshown": {"at_most": 0.0123, "probes": 1620},
        },
        "probes": probes,
        "galleries": galleries,
        "nearest": [one.exhibit for one in galleries["M1"][:3]],
        "provenance": {
            "schema": 1, "seed": 7, "device": "cpu", "dtype": "float32", "batch_size": 64, "git": "8c1f0d2",
            "versions": {"python": "3.11.9", "torch": "2.5.1"}, "model": "4f1c22b9",
        },
        "skipped": [{"file": "img-17.png", "reason": "truncated"}],
    }  # fmt: skip


def usage_of(space: ConceptSpace) -> dict[str, Any]:
    """The record of a grid's usage, assumed, as plain data."""
    record = usage_record(space, UsageConfig())
    assert record is not None
    return record.to_json()


def uniform(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with `usage: uniform`."""
    without = {"usage": None, "half_as_much": None, "twice_as_much": None, "alone": []}
    cells = inputs["landscape"]
    return inputs | {"summary": inputs["summary"] | without, "landscape": cells.assign(use=1 / len(cells))}


def write_landscape(out: Path, *, summary: dict[str, Any], landscape: pd.DataFrame, **inputs: Any) -> None:
    """Write the report on plain data: `summary` as in landscape.json, `landscape` as in landscape.parquet."""
    inputs["verdict"] = Verdict.from_json(inputs["verdict"], "")
    write_landscape_report(out, landscape=Landscape.from_json(summary, "a sample"), cells=landscape, **inputs)


def write_comparison(out: Path, *, verdict: dict[str, Any], **inputs: Any) -> None:
    """Write the report on plain data: `verdict` combines comparison.json and verdict.json."""
    comparison, judged = records_of(verdict)
    write_comparison_report(
        out, comparison=comparison, verdict=judged, **{"plan": plan_of(comparison, judged), **inputs}
    )


def landscape_html(folder: Path, **inputs: Any) -> str:
    """The report on plain data as text."""
    write_landscape(folder / "landscape.html", **inputs)
    return (folder / "landscape.html").read_text(encoding="utf-8")


def comparison_html(folder: Path, **inputs: Any) -> str:
    """The report on a repair as text."""
    write_comparison(folder / "comparison.html", **inputs)
    return (folder / "comparison.html").read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    """One section of a page."""
    return page.split(f'<section id="{name}"')[1].split("</section>", maxsplit=1)[0]


def cells_of(page: str, name: str, row: str) -> list[str]:
    """The texts of one row of a section's table."""
    found = re.search(rf"<tr><th[^>]*>{row}</th>(.*?)</tr>", section(page, name), re.S)
    assert found is not None
    return [re.sub(r"<[^>]+>", " ", cell).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", found.group(1), re.S)]


def charts(page: str) -> dict[str, str]:
    """The charts of a page or section by their titles."""
    return dict(
        re.findall(r"<figure>\s*(?:<h3>(.*?)</h3>)?\s*<div class=\"chart\".*?>(<svg.*?</svg>)</div>", page, re.S)
    )


def plan_of(comparison: Comparison, verdict: RepairVerdict) -> Plan:
    """The plan behind a comparison: its first mode is the more severe one, and each mode contains every cell."""
    modes = [
        PlannedMode(id=mode.id, text=mode.text, region={}, action=mode.action, severity=9.0 - k, reason="")
        for k, mode in enumerate(comparison.modes)
    ]
    said = {"decided_by": verdict.decided_by, "reviewer": verdict.reviewer, "reason": verdict.reason}
    return Plan(landscape="0" * 16, statement="", modes=modes, **said)


def records_of(verdict: dict[str, Any]) -> tuple[Comparison, RepairVerdict]:
    """The two records whose keys a test has combined."""
    kinds = (Comparison, RepairVerdict)
    one, other = ({k: v for k, v in verdict.items() if k in kind.model_fields} for kind in kinds)
    return Comparison.from_json(one, "a sample"), RepairVerdict.from_json(other, "a sample")


def difference(
    after: float | None, change: float | None, low: float | None, high: float | None, pairs: int = 3000, **more: Any
) -> dict[str, Any]:
    """An entry of a comparison; without a change, `low` and `high` are those of the value."""
    ends = (low, high) if change is None else (after, after)
    moved = {} if change is None else {"change": change}
    return {
        **{"after": after, "after_low": ends[0], "after_high": ends[1], **moved},
        **{"low": low, "high": high, "pairs": pairs, **more},
    }


def floor(least: float, most: float) -> dict[str, float]:
    """A noise floor as plain data."""
    return {"min": least, "mean": (least + most) / 2, "max": most}


def make_comparison(*concepts: Concept, hostile: bool = False) -> dict[str, Any]:
    """Arguments of `write_comparison`."""
    space, rng = in_use(ConceptSpace(concepts), UsageConfig()), np.random.default_rng(5)
    before, after = make_landscape(space, rng), make_landscape(space, rng, strength=0.5)
    both = before[[*space.names, "use"]].copy()
    for suffix, table in (("before", before), ("after", after)):
        both = both.assign(**{f"{c}_{suffix}": table[c] for c in ("rate", "low", "high")})
    probes = pd.concat(
        [
            make_probes(space, table, rng, 500).assign(model=model, purpose="search")
            for model, table in (("before", before), ("after", after))
        ]
    )
    control = difference(0.316, -0.202, -0.23, -0.17)
    spread = measured(-0.289, -0.32, -0.26, 3000)
    reduced = {"holds": True, "beyond_chance": True, "change": spread}
    moved = difference(0.17, 0.07, 0.02, 0.1, pairs=400, before=0.1)
    one = {"explorer": "ppo", "budget": 500, "probes": 500, "failures": 100, "failure_rate": 0.2}
    verdict = {
        "audit": "mnist",
        "concepts": space.to_json(),
        "usage": usage_of(space),
        "control": "as_used",
        "passed": False,
        "gates": [
            gate("target_failure_rate.change_max", -0.05, -0.289, -0.32, -0.26, True),
            gate("newly_failing.max", 0.02, 0.024, 0.019, 0.03, False),
        ],
        "decided_by": "human" if hostile else "policy",
        "reviewer": HOSTILE if hostile else None,
        "reason": f"{HOSTILE} matters" if hostile else None,
        "statement": "Failed: newly_failing.max.",
        "differences": {
            "failure_rate": difference(0.15, -0.15, -0.17, -0.13, before=0.3),
            "target_failure_rate": difference(0.229, -0.289, -0.32, -0.26, before=0.518, control=control),
            "other_failure_rate": difference(0.116, -0.108, -0.12, -0.09, before=0.224),
            "newly_failing": difference(0.024, None, 0.019, 0.03),
            "clean_quality": difference(0.956, -0.011, -0.02, 0.001, pairs=300, before=0.967, name="clean accuracy"),
        },
        "modes": [
            {
                "id": "M1",
                "text": "rotation >= 40° and blur >= 1.2",
                "action": "repair",
                **difference(0.31, -0.4, -0.45, -0.34, before=0.71, control=difference(0.44, None, 0.4, 0.5)),
            },
            {
                "id": "M2",
                "text": HOSTILE if hostile else "noise >= 0.4",
                "action": "ignore",
                **difference(0.22, -0.33, -0.4, -0.3, before=0.55),
            },
        ],
        "invalid": {part: measured(0.0, 0.0, 0.01, 1000) for part in ("targets", "others")},
        "search": {
            model: {
                "enumerated": False,
                "agent": one | {"failing_cells": cells},
                "control": one | {"explorer": "random", "failing_cells": 20},
            }
            for model, cells in (("before", 77), ("after", 31))
        },
        "policy": [
            {
                "concept": concept.name,
                "before": [1 / len(concept)] * len(concept),
                "after": [1.0] + [0.0] * (len(concept) - 1),
                "mean_before": 1.5 if concept.ordered else None,
                "mean_after": 0.0 if concept.ordered else None,
                "distance": 0.1 * (j + 1),
                "noise_floor": floor(0.01, 0.12),
                "beyond_noise": j > 0,
            }
            for j, concept in enumerate(concepts)
        ],
        "shift": {
            "normalised": 0.091,
            "null_cell": 0.204,
            "noise_floor": {"splits": 5, "normalised": floor(0.021, 0.033), "null_cell": floor(0.025, 0.21)},
            "beyond_noise": False,
            "mean_rate_before": 0.3,
            "mean_rate_after": 0.15,
            "entropy_before": 6.91,
            "entropy_after": 7.3,
            "entropy_uniform": 7.8,
            "null_cost": 1.0,
            "blocks": 2401,
            "levels_merged": 1,
        },
        "reduced_failures": {
            "holds": True,
            "inequality": "mean over C of (rate_after - rate_before) < 0",
            "targets": reduced | {"before": 0.518, "after": 0.229},
            "total": reduced | {"before": 0.3, "after": 0.15},
        },
        "failures_moved": {"found": True, "regions": [{"region": {}, "text": "darkening >= 0.9", **moved}]},
        "targeting": {
            "helped": True,
            **measured(-0.087, -0.12, -0.05, 3000),
            "statement": "aiming the repair helped: -8.7 points",
        },
        "estimator": {"before": {"name": "boosted trees"}, "after": {"name": "boosted trees"}},
        "items": 50,
    }
    said = HOSTILE if hostile else "7"
    at = {"item": "item-0", "cell": (0,) * len(space)}
    shown = [PairedProbe(Exhibit(f"item-{k}", image=picture(k)), said, "1", **at) for k in range(4)]
    return {
        "verdict": verdict,
        "landscapes": both,
        "probes": probes,
        "galleries": {"fixed": shown, "newly_failing": [PairedProbe(Exhibit("a text", text=said), "1", said, **at)]},
        "provenance": {"seed": 7, "device": "cpu"},
        "skipped": [{"file": "img-17.png", "reason": "truncated"}],
    }


def with_examples(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with details of their examples: item, label, cell, answer, and the item unchanged."""
    space = ConceptSpace.from_json(inputs["summary"]["concepts"])
    rng, items = np.random.default_rng(2), [f"item-{k}" for k in range(6)]
    for mode in inputs["summary"]["modes"]:
        gallery = inputs["galleries"][mode["id"]]
        ids = [one.id for one in gallery]
        inputs["galleries"][mode["id"]] = [
            one._replace(exhibit=replace(one.exhibit, caption=f"{one.id} - label {k} → predicted 7 (5{k}%)"))
            for k, one in enumerate(gallery)
        ]
        cells = Region.from_json(mode["region"]).sample(space, 6, rng)
        cells[0] = np.where(space.names == np.array([*mode["region"]])[:1], cells[0], space.start)
        mode["examples"] = [
            {
                "id": i, "item": items[k], "cell": cells[k].tolist(), "output": f"7 (5{k}%)", "failed": k < 4,
                "discrepancy": (0.3, 0.1, 0.4, 0.2, -0.5, -0.1)[k],
            }
            for k, i in enumerate(ids)
        ]  # fmt: skip
    unchanged = {item: Exhibit("as it was", image=picture(90 + k)) for k, item in enumerate(items)}
    attributes = pd.DataFrame({"label": [str(k) for k in range(6)], "site": [*"nnnsss"]}, index=items)
    return inputs | {"unchanged": unchanged, "attributes": attributes}
