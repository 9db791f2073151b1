"""What an audit begins with, by its kind: concepts with moderate levels, items, compute, gates, and what they mean.

Levels are only where calibration starts: it measures how often the model fails with them, and draws them in or out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from flows.init.block import Draft
from flows.init.model import Kind, Model
from stages.errors import UsageError

SEED = 7
SEARCH_SECONDS = 600.0  # what a search is meant to take
PROBES_OF_SEARCH = 2.5  # for each one of its budget: two explorers, and half as many in small steps
BUDGETS = (200, 4000)  # at least, for anything to be learnt; at most, for more seldom shows more
# Of each split at least: fewer tell nothing, and intervals over items would be wide as the range.
FEWEST = 10
MOST: Mapping[Kind, Mapping[str, int]] = {
    "image-classification": {"discover": 200, "repair": 2000, "test": 1000},
    "summarization": {"discover": 60, "repair": 80, "test": 50},
    "text-to-image": {"discover": 60, "repair": 20, "test": 60},
}
# Of few pictures or articles an interval is wide, and a strict bound would fail for want of evidence.
_FEW = 500

_IMAGES: Mapping[str, list[float]] = {
    "rotation": [0, 5, 10, 20],
    "occlusion": [0, 0.04, 0.08, 0.15],
    "darkening": [0, 0.2, 0.4, 0.6],
    "saturation": [1, 0.7, 0.4, 0.1],
    "blur": [0, 0.5, 1, 1.5],
    "noise": [0, 0.03, 0.06, 0.1],
}
_SIDE = 32.0  # pixels of the pictures that the blur above is meant for
_TEXTS: Mapping[str, list[float | str]] = {
    "letter_case": ["as_is", "upper"],
    "typos": [0, 0.05, 0.1, 0.2],
    "word_order": [0, 2, 4],
    "drop_nouns": [0, 0.1, 0.2, 0.3],
    "lost_spaces": [0, 0.05, 0.1],
}


@dataclass(frozen=True)
class Wanted:
    """What a person asked for, as far as it is not the model's and the data's.

    Args:
        name: of the audit.
        kind: what the model does.
        model: `prepare.model`.
        data: `prepare.data`, or of text-to-image `prepare.pictures`.
        repair: whether a repair is to follow.
        budget: unique probes of the search; None: by what a probe takes.
        items: how many items there are to draw from; None where nobody knows yet.
        pools: how many of these are meant for which split; {} where the audit draws them.
        prepare: further keys of `prepare`.
        concepts: levels, where the kind has none of its own.
    """

    name: str
    kind: Kind
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    repair: bool
    budget: int | None
    items: int | None
    pools: Mapping[str, int] = field(default_factory=dict)
    prepare: Mapping[str, Any] = field(default_factory=dict)
    concepts: Mapping[str, Sequence[float | str]] = field(default_factory=dict)


def propose(wanted: Wanted, model: Model, shape: Sequence[int | None]) -> Draft:
    """An audit that is whole and valid, before anything was measured.

    Args:
        wanted: what was asked for.
        model: the model under test.
        shape: channels, height, width of the pictures the model sees, each None where unknown.

    Raises:
        UsageError: when there are too few items.
    """
    items = count_items(wanted)
    concepts: Mapping[str, Sequence[Any]] = wanted.concepts
    if wanted.kind == "image-classification":
        concepts = image_concepts(shape)
    elif wanted.kind == "summarization":
        concepts = _TEXTS
    data = "pictures" if wanted.kind == "text-to-image" else "data"
    audit = {
        "seed": SEED,
        "task": wanted.kind,
        "compute": compute(wanted.kind, model, shape),
        "prepare": {"model": dict(wanted.model), data: dict(wanted.data), **wanted.prepare, "items": items},
        "concepts": {name: list(levels) for name, levels in concepts.items()},
        "discrepancy": dict(_DISCREPANCY[wanted.kind]),
        "discover": {"explorer": "auto", "control": "random", "budget": wanted.budget or BUDGETS[0]},
        "summarize": {"modes": 6},
        **({} if wanted.repair else {"gates": {"max_failure_rate": 0.5}}),
    }
    notes = {
        "compute": "auto takes a GPU, if there is one",
        **({} if "endpoint" in wanted.model else {"prepare.model": f"files lie under data/{wanted.name}/inputs"}),
        "prepare.items": _said_items(wanted),
        "concepts": "Weakest level first. Not calibrated yet: `faded init` was stopped, and goes on when called again.",
        "discrepancy": _MEANT[wanted.kind],
        "discover": "unique probes for each of the two",
        **{f"concepts.{name}": note for name in concepts if (note := concept_note(wanted.kind, name))},
        **({} if wanted.repair else {"gates": "passes if at most half of the grid fails, by its whole interval"}),
        **_REPAIR_NOTES,
    }
    repair = repair_block(wanted.kind, items, wanted.budget or BUDGETS[0]) if wanted.repair else None
    above = frozenset({"concepts", "discrepancy", "repair.gates"})
    return Draft(wanted.name, audit, repair, notes, above)


_DISCREPANCY: Mapping[Kind, Mapping[str, Any]] = {
    "image-classification": {"threshold": 0},
    "summarization": {"measure": "faithfulness_loss", "threshold": "auto", "false_alarms": 0.1},
    "text-to-image": {"measure": "misalignment", "threshold": "auto"},
}
_MEANT: Mapping[Kind, str] = {
    "image-classification": """\
How wrong an answer is, from -1 to 1. At a threshold of 0 whatever is misclassified is a failure, below 0 near
misses are, too.""",
    "summarization": """\
How much less a summary is about the article than that of the unchanged article is. A failure is what goes beyond
the loss that typos in 5% of the words bring in one article of ten (false_alarms).""",
    "text-to-image": """\
How much of its prompt the judge does not see in a picture. A failure is what real captioned pictures exceed in 5%
of the probes.""",
}
_REPAIR_NOTES = {
    "repair.feedback": "a rule decides; {policy: wait} asks a person",
    "repair.gates": "A gate passes only if the whole 95% interval is on the right side of its bound.",
}


def image_concepts(shape: Sequence[int | None]) -> dict[str, list[float]]:
    """Changes of pictures that a picture of this shape can show: grey ones have no colour to lose."""
    channels, height, width = shape
    sides = [side for side in (height, width) if side]
    larger = max(1.0, (min(sides) / _SIDE) ** 0.5) if sides else 1.0
    concepts = {name: levels for name, levels in _IMAGES.items() if name != "saturation" or channels != 1}
    return {**concepts, "blur": [round(level * larger, 1) for level in _IMAGES["blur"]]}


def count_items(wanted: Wanted) -> dict[str, int]:
    """Items of each split: as many as are useful, of few a third each.

    Raises:
        UsageError: when there are too few.
    """
    most, splits = MOST[wanted.kind], ("discover", "repair", "test") if wanted.repair else ("discover",)
    if wanted.items is None or wanted.kind == "text-to-image":  # an item is a prompt with a seed: there are enough
        return {split: most[split] for split in splits}
    counts, left = {}, wanted.items
    for n, split in enumerate(splits):
        there = wanted.pools.get(split, 0) if wanted.pools else left // (len(splits) - n)
        counts[split] = min(most[split], there)
        left -= counts[split]
    if few := [f"{n:,} for {split}" for split, n in counts.items() if n < FEWEST]:
        ready = f"; its own splits are {', '.join(wanted.pools)}" if wanted.pools else ""
        if wanted.pools and not wanted.pools.get("discover"):
            ready += ", none of them (discover, or val) to search for failures"
        without = ", or --no-repair" if wanted.repair and counts["discover"] >= FEWEST else ""
        raise UsageError(
            f"--data: too few items, {', '.join(few)}, where {FEWEST} are the least for each of {', '.join(splits)}"
            f"{ready}: give more data{without}"
        )
    if "repair" in counts and not wanted.pools:  # a repair learns from whatever is left
        counts["repair"] = min(most["repair"], counts["repair"] + left)
    return counts


def compute(kind: Kind, model: Model, shape: Sequence[int | None]) -> dict[str, Any]:
    """Where and how many at once; more threads than two seldom make small networks faster.

    Beside a model behind HTTP there is next to nothing to compute, and two threads wait for each other on a busy
    machine.
    """
    side = max((n for n in shape[1:] if n), default=224)
    small = kind == "image-classification" and side <= 64
    url = "endpoint" in model.block
    size = 16 if url else 128 if small else 32 if kind == "image-classification" else 48
    return {"device": "auto", "threads": 1 if url else min(2, os.cpu_count() or 1), "batch_size": size, "gpus": 0}


def search_budget(probe_seconds: float) -> int:
    """Unique probes so that both explorers and the small steps take about SEARCH_SECONDS, in two digits."""
    probes = SEARCH_SECONDS / (PROBES_OF_SEARCH * probe_seconds)
    low, high = BUDGETS
    bounded = min(high, max(low, probes))
    digits = 10 ** (len(str(int(bounded))) - 2)
    return int(bounded // digits * digits)


def all_pairs(audit: Mapping[str, Any]) -> int:
    """Pairs of an item to search and a cell of the grid: a search cannot spend more."""
    return int(audit["prepare"]["items"]["discover"]) * prod(len(levels) for levels in audit["concepts"].values())


def repair_block(kind: Kind, items: Mapping[str, int], budget: int) -> dict[str, Any]:
    """How the model is repaired, and what the repair has to reach."""
    few = items["test"] < _FEW
    method = "risk-weighted" if kind == "image-classification" else "lora"
    return {
        "gpus": 0,
        "feedback": {"policy": "top-k", "modes": 3},
        "restructure": {"method": method, "control": "clean" if kind == "summarization" else "uniform", "settings": {}},
        "re_evaluate": {"paired_probes": pairs(budget)},
        "gates": {
            "target_failure_rate": {"change_max": -0.05},
            "other_failure_rate": {"change_max": 0.05 if few else 0.0},
            "newly_failing": {"max": 0.1 if few else 0.05},
            "clean_quality": {"change_min": -0.1 if few else -0.02},
        },
    }


def pairs(budget: int) -> int:
    """Common probes of both models, inside and outside the target modes, for a search of that budget."""
    return max(100, min(2000, budget // 2))


def _said_items(wanted: Wanted) -> str:
    of = f"of {wanted.items:,}; " if wanted.items is not None and wanted.kind != "text-to-image" else ""
    splits = "no item is in two of them" if wanted.repair else "an audit that ends with its landscape needs no others"
    return of + splits


def concept_note(kind: Kind, name: str) -> str:
    """What the levels of a concept are, with their unit."""
    if kind == "text-to-image":
        return ""
    if kind == "summarization":
        from stages.concepts.texts import CATALOGUE as TEXTS

        return TEXTS[name].doc
    from stages.concepts.images import CATALOGUE as IMAGES

    unit = {"°": ", in degrees"}.get(IMAGES[name].unit, "")
    return IMAGES[name].doc + unit
