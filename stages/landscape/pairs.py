"""Pairs of item and cell: membership in regions, and common pairs for several models, inside and outside targets.

All trainings of a repair and its control, the whole way and half-way, are queried with the same pairs of unseen items.
What they mend against what they break shows what aiming is worth, see `stages.landscape.frontier`.
"""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from stages.concepts import ConceptSpace, Region
from stages.concepts.usage import chance_at_random, chance_in_turn
from stages.core.files import stage_dir
from stages.core.ledger import Ledger
from stages.core.processes import WORTH, Crew
from stages.explorers.prober import Prober
from stages.params import AuditConfig
from stages.params.repair import HALFWAY
from stages.ratings import rated
from stages.records import AuditFolder
from stages.records.repair import Training
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.load import load_alone, task_context

UNKNOWN = pd.DataFrame(index=range(1))  # attributes of items if nothing is known of them: they count as one
MOST_CELLS = 2_000_000  # cells for which shares are summed rather than sampled
MAX_DRAWS = 200  # rounds of drawing pairs before a side is considered exhausted


def half_of(item_ids: Sequence[str], probes: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Draw a random half of the items, with no group in both halves: (items,) bool."""
    if "group" in probes:
        groups = probes.drop_duplicates("item").set_index("item")["group"].reindex(item_ids).factorize()[0]
        if (n := groups.max(initial=-1) + 1) > 1:  # -1: never probed, so in neither half's evidence
            return (rng.permutation(n) < n // 2)[groups]
    return rng.permutation(len(item_ids)) < len(item_ids) // 2


def probes_inside(
    space: ConceptSpace, region: Region, probes: pd.DataFrame, attributes: pd.DataFrame = UNKNOWN
) -> np.ndarray:
    """Return which probes are in a region, given the attributes of items by id: (n,) bool."""
    of_probes = attributes.loc[probes["item"]] if region.items else None
    return region.contains(space, probes[space.names].to_numpy(dtype=np.int64), of_probes)


def draw_pairs(
    space: ConceptSpace, attributes: pd.DataFrame, targets: Sequence[Region], n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw common probes as they occur in use: n distinct (item, cell) pairs in the target regions, and n outside.

    Returns:
        Item numbers (pairs,) and cells (pairs, concepts). Fewer if a side has fewer pairs; none inside without targets.
    """
    rng = np.random.default_rng([seed, 1])
    everywhere = [Region({})]
    sides: list[np.ndarray] = []
    existing = _existing(space, targets, attributes)
    for regions, most in zip((list(targets), everywhere), existing, strict=True):
        wanted, chosen = min(n, most), dict[tuple[int, int], np.ndarray]()
        about = [np.flatnonzero(region.about(attributes)) for region in regions]
        sizes = np.array(
            [float(len(items)) * region.share(space) for items, region in zip(about, regions, strict=True)]
        )
        for _ in range(MAX_DRAWS if sizes.sum() else 0):
            counts = rng.multinomial(4 * n, sizes / sizes.sum())
            # Draw every item of a region equally often.
            items = np.concatenate([rng.permutation(np.resize(i, k)) for i, k in zip(about, counts, strict=True)])
            cells = np.concatenate([r.sample(space, k, rng) for r, k in zip(regions, counts, strict=True)])
            hits = np.sum([region.contains(space, cells, attributes.iloc[items]) for region in targets], axis=0)
            if regions is everywhere:
                kept = np.broadcast_to(hits == 0, len(items))
            else:  # pairs in two regions are drawn for both
                kept = rng.random(len(items)) * hits < 1
            for row in rng.permutation(np.flatnonzero(kept)):
                if len(chosen) < wanted:
                    pair = (int(items[row]), int(space.flat(cells[row : row + 1])[0]))
                    chosen.setdefault(pair, np.array([items[row], *cells[row]]))
            if len(chosen) == wanted:
                break
        sides += chosen.values()
    pairs = np.array(sides, dtype=np.int64).reshape(-1, 1 + len(space))
    return pairs[:, 0], pairs[:, 1:]


def _existing(space: ConceptSpace, regions: Sequence[Region], attributes: pd.DataFrame) -> tuple[float, float]:
    """Return how many pairs of an item and a cell in use are in any region, and how many in none; infinite if huge."""
    if space.n_used > MOST_CELLS:
        return np.inf, np.inf
    covered, which = _covered(space, regions, attributes, _cells_in_use(space, 0)[0])
    inside = int(covered.sum(axis=1)[which].sum())
    return inside, len(attributes) * space.n_used - inside


def inside_any(
    space: ConceptSpace, regions: Sequence[Region], cells: np.ndarray, attributes: pd.DataFrame
) -> np.ndarray:
    """Return which pairs, given their cells (n, concepts) and attributes (n rows), are in any region: (n,) bool."""
    inside = np.zeros(len(cells), dtype=bool)
    for region in regions:
        inside |= region.contains(space, cells, attributes)
    return inside


def covered_shares(space: ConceptSpace, regions: Sequence[Region], attributes: pd.DataFrame, seed: int) -> np.ndarray:
    """Share of use in any of the regions, per item (items,); on huge grids from a million seeded draws."""
    cells, use = _cells_in_use(space, seed)
    covered, which = _covered(space, regions, attributes, cells)
    return np.array([float(inside @ use) for inside in covered])[which]


def use_of_pairs(
    space: ConceptSpace,
    targets: Sequence[Region],
    attributes: pd.DataFrame,
    cells: np.ndarray,
    inside: np.ndarray,
    seed: int,
    *,
    in_turn: bool = False,
) -> np.ndarray:
    """Return weights (n,) under which the pairs of `draw_pairs` stand for use, those inside the targets and the others.

    A pair that is drawn again is not probed again, so common cells, the unchanged one above all, are rarer among
    distinct pairs than in use. The chance of a pair to be among them follows from how many there are.

    Args:
        attributes: attributes of the items that were drawn from, one row each.
        cells: (n, concepts) cells of the pairs.
        inside: (n,) whether each is in the targets.
        seed: seed of the cells by which their number is estimated on huge grids.
        in_turn: whether items had their turns one after the other, as in `draw_inside`.
    """
    if space.usage is None:
        return np.ones(len(cells))
    every, use = _cells_in_use(space, seed)
    density, share = space.density(every), space.density(cells)
    covered, which = _covered(space, targets, attributes, every)
    items = np.bincount(which, minlength=len(covered)) @ covered  # for which each cell is in the targets
    weights = share.copy()
    chance = chance_in_turn if in_turn else chance_at_random
    for side, of in ((inside, items), (~inside, len(attributes) - items)):
        pairs, n = of * use / density, int(side.sum())
        if 0 < n < pairs.sum():
            mass = float(of @ use) / float(of.max())  # of the cells that an item may be drawn with
            weights[side] /= chance(share[side] / mass, _turns(pairs, density / mass, n, chance))
    return weights


def _turns(pairs: np.ndarray, share: np.ndarray, n: int, chance: Callable[[np.ndarray, float], np.ndarray]) -> float:
    """Return after how many draws per item n distinct pairs are expected, of pairs (k,) with these shares of draws."""

    def too_many(turns: float) -> float:
        return float(pairs @ chance(share, turns)) - n

    low = high = float(n / (pairs @ share))  # too few, or just enough if no pair is drawn again
    while too_many(high) < 0 and high < 1e12 * low:
        high *= 2
    return float(brentq(too_many, low, high)) if too_many(low) < 0 < too_many(high) else high


def _cells_in_use(space: ConceptSpace, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all cells that occur in use with their shares, or on huge grids a million draws that count alike."""
    if space.n_used <= MOST_CELLS:
        return space.used(MOST_CELLS, np.random.default_rng(seed))
    return space.sample(1_000_000, np.random.default_rng(seed)), np.full(1_000_000, 1e-6)


def _covered(
    space: ConceptSpace, regions: Sequence[Region], attributes: pd.DataFrame, cells: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return which cells are in any region, for each kind of items alike (kinds, cells), and the kind of each item."""
    about = np.array([region.about(attributes) for region in regions]).reshape(-1, len(attributes)).astype(bool)
    kinds, which = np.unique(about, axis=1, return_inverse=True)
    boxes = np.array([region.in_box(space, cells) for region in regions]).reshape(-1, len(cells)).astype(bool)
    return np.array([(boxes & kind[:, None]).any(axis=0) for kind in kinds.T]), which.ravel()


_OF_MODEL = ("copy_of", "training", "dose", "share", "steps")
UNTRAINED = Training(folder="", copy_of="before", training=0, dose=0.0, steps=0, share=0.0)


class WeightedPairs(NamedTuple):
    """Pairs of items, by number (n,), and cells (n, concepts), and how much each counts (n,)."""

    items: np.ndarray
    cells: np.ndarray
    weights: np.ndarray


def ask_trainings(here: AuditFolder, audit: AuditConfig, task: LoadedTask, pairs: int, scratch: Path) -> pd.DataFrame:
    """Query the model before and all trained models with the same pairs, and with every unchanged test item.

    Models that were trained for as many steps as the repair, or more, are also asked half-way to what they learnt.

    Args:
        pairs: number of pairs in each part.
        scratch: folder of the ledgers.

    Returns:
        A table with `copy_of`, `training`, `dose`, `share`, `steps`, `published` (the repair and the control that are
        handed on), `part`, `item`, `weight`, `valid` and `value`: 1 for a failure and 0 otherwise, or the clean quality
        in the part `clean`. Empty if the plan repairs nothing, or there is neither a control nor a second training.
    """
    trainings = here.restructure.trainings
    trained, targets = trainings.models, here.collect_feedback.plan.targets
    if not targets or len({(model.copy_of, model.training) for model in trained}) == 1:
        return pd.DataFrame(columns=[*_OF_MODEL, "published", "part", "item", "weight", "value", "valid"])
    name, prepared = here.path.name, stage_dir(here.path.name, "prepare")
    models = {prepared / "model": UNTRAINED}
    models |= {here.restructure.path / "models" / model.folder: model for model in trained}
    if trainings.movable:
        models |= _halfway(task.automatic_task, models, scratch / "halfway")
    learnt = here.collect_feedback.plan.learnt
    ask = partial(_ask, name, audit, prepared, learnt, _parts(here, task, pairs, audit.seed), scratch)
    crew = Crew(task_context(name, audit, prepared).compute.processes, after=WORTH)
    tables = crew.ask(ask, [(folder, _ledger(model)) for folder, model in models.items()])
    told = [
        {column: getattr(model, column) for column in _OF_MODEL}
        | {"published": model.folder in ("repaired", "control")}
        for model in models.values()
    ]
    return pd.concat([table.assign(**about) for table, about in zip(tables, told, strict=True)], ignore_index=True)


def _halfway(task: LoadedTask, models: Mapping[Path, Training], out: Path) -> dict[Path, Training]:
    """Write the models half-way to those that were trained for at least the repair's steps."""
    found, known = {}, {_ledger(model) for model in models.values()}
    for folder, model in models.items():
        moved = model.model_copy(update={"folder": "", "share": HALFWAY})
        if model.dose >= 1 and model.share == 1 and _ledger(moved) not in known:
            there = out / _ledger(moved)
            shutil.rmtree(there, ignore_errors=True)
            task.move(folder, HALFWAY, there)
            found[there] = moved
    return found


def _ledger(model: Training) -> str:
    return f"{model.copy_of}-{model.dose:g}-{model.training}-{model.share:g}"


def _parts(here: AuditFolder, task: LoadedTask, n: int, seed: int) -> dict[str, WeightedPairs]:
    """Draw the pairs to query: `targets` and `others`."""
    space, item_ids = task.concepts, task.items.ids("test")
    targets = [mode.cells for mode in here.collect_feedback.plan.targets]
    known = known_attributes(task, item_ids)
    items, cells = draw_pairs(space, known, targets, n, seed + 1)
    inside = inside_any(space, targets, cells, known.iloc[items])
    use = use_of_pairs(space, targets, known, cells, inside, seed)
    sides = {"targets": inside, "others": ~inside}
    return {part: WeightedPairs(items[side], cells[side], use[side]) for part, side in sides.items()}


def _ask(
    name: str,
    audit: AuditConfig,
    prepared: Path,
    learnt: Collection[str],
    asked: Mapping[str, WeightedPairs],
    scratch: Path,
    folder: Path,
    ledger_name: str,
) -> pd.DataFrame:
    """Return the answers of one model: `part`, `item`, `weight`, `value`, `valid`."""
    task = rated(load_alone(name, audit, prepared, folder, learnt), name, audit)
    item_ids, compute = task.items.ids("test"), task_context(name, audit, prepared).compute
    ledger, tables = Ledger(scratch / f"training-{ledger_name}.jsonl"), []
    for part, (items, cells, weights) in asked.items():
        prober = Prober(task, item_ids, len(items), ledger, compute)
        prober.ask(items, cells)
        found = prober.table()
        failed, valid = found["failed"].astype(bool), found["valid"].astype(bool)
        value = failed.astype(float)
        tables.append(
            pd.DataFrame({"part": part, "item": found["item"], "weight": weights, "value": value, "valid": valid})
        )
    ledger.close()
    quality = task.clean_quality("test")
    clean = pd.DataFrame({"item": quality.item_ids, "value": quality.values})
    tables.append(clean.assign(part="clean", weight=1.0, valid=True))
    return task.items.with_groups(pd.concat(tables))
