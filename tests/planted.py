"""A task with planted failures: it fails exactly inside known regions, so results can be compared with the truth.

It needs no torch, so a workspace with it runs in seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts import Concept, ConceptSpace, Region
from stages.tasks.base import Task
from stages.tasks.contract import LOADER, Exhibit, Items, ProbeBatch, Quality, RepairPlan, RepairRecord, TaskContext


class PlantedTask(Task):
    """Fails in cells of a planted region, and with probability `noise` elsewhere.

    `prepare:` takes `items` (a count per split), `regions` ({concept: [level indices]}, and {"label": [values]} for
    some items only), `noise`, `file`, a JSON file under data/<audit>/inputs with further regions (to change an input),
    `delay`, the seconds a model call takes (to be killed in), and `invalid`, regions whose probes are not valid.
    A repair removes the planted regions that overlap a target mode, so its effect is known too.
    """

    threshold = 0.0

    def __init__(self, items: Items, concepts: ConceptSpace, model: dict[str, Any], seed: int) -> None:
        self.items, self.concepts, self.model, self.seed = items, concepts, model, seed
        self.queries = 0
        self._rows = {item: i for i, item in enumerate(items.table["id"])}
        self._regions = [Region.from_json(r) for r in model["regions"]]
        self._invalid = [Region.from_json(r) for r in model.get("invalid", [])]

    @classmethod
    def check(cls, context: TaskContext) -> list[str]:
        known = {"items", "regions", "noise", "file", "delay", "invalid"}
        return [f"prepare.{key}: unknown key, expected one of {sorted(known)}" for key in set(context.config) - known]

    @classmethod
    def check_repair(cls, context: TaskContext, settings: Mapping[str, Any]) -> list[str]:
        return [f"restructure.settings.{key}: unknown key, there are none" for key in set(settings) - {"method"}]

    @classmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        config = dict(context.config)
        regions = list(config.get("regions", []))
        if "file" in config:
            regions += json.loads((context.inputs / config["file"]).read_text())
        (out_dir / "model").mkdir()
        model = {"noise": 0.0, "delay": 0.0, "invalid": [], **config, "regions": regions}
        (out_dir / "model" / "config.json").write_text(json.dumps(model))
        rows = [
            {"id": f"{split}-{i:04d}", "split": split, "label": str(i % 3)}
            for split, n in config["items"].items()
            for i in range(n)
        ]
        pd.DataFrame(rows).to_parquet(out_dir / "items.parquet")
        return {"items": len(rows)}

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> PlantedTask:
        config = json.loads(((model or prepared / "model") / "config.json").read_text())
        space = ConceptSpace(
            tuple(Concept(n, tuple(levels), neutral=levels[0]) for n, levels in context.concepts.items())
        )
        return cls(Items(pd.read_parquet(prepared / "items.parquet")), space, config, context.seed)

    def embed(self, item_ids: Sequence[str]) -> np.ndarray:
        rows = np.array([self._rows[i] for i in item_ids])
        return np.stack([np.sin(rows), np.cos(rows), rows % 3 / 2], axis=1).astype(np.float32)

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        self.queries += len(item_ids)
        time.sleep(self.model.get("delay", 0.0))
        cells = np.asarray(cells)
        rows = np.array([self._rows[i] for i in item_ids], dtype=np.int64)
        inside, invalid = self._in(self._regions, rows, cells), self._in(self._invalid, rows, cells)
        # A hash of the probe replaces chance, so that a probe has the same answer in any batch.
        pair = rows.astype(np.uint64) * np.uint64(1_000_003) + self.concepts.flat(cells).astype(np.uint64)
        mixed = pair * np.uint64(2654435761)
        chance = (mixed % np.uint64(10_007)).astype(float) / 10_007
        failed = inside | (chance < self.model["noise"])
        failed &= ~invalid
        discrepancy = np.where(failed, 0.2 + 0.6 * chance, -0.2 - 0.6 * chance).astype(np.float32)
        return ProbeBatch(discrepancy, failed, ["wrong" if f else "right" for f in failed], ~invalid)

    def _in(self, regions: Sequence[Region], rows: np.ndarray, cells: np.ndarray) -> np.ndarray:
        inside = np.zeros(len(cells), dtype=bool)
        for region in regions:
            inside |= region.contains(self.concepts, cells, self.items.table.iloc[rows])
        return inside

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        return [
            Exhibit(caption=item, text=self.concepts.describe(cell)) for item, cell in zip(item_ids, cells, strict=True)
        ]

    def clean_quality(self, split: str) -> Quality:
        ids = self.items.ids(split)
        clean = np.zeros((len(ids), len(self.concepts)), dtype=int)
        return Quality("clean accuracy", 1.0 - self.probe(ids, clean).failed, ids)

    def repair(self, plan: RepairPlan, out_dir: Path) -> RepairRecord:
        cells = self.concepts.cells()
        kept = [
            region.to_json()
            for region in self._regions
            if plan.control
            or not any(
                (region.in_box(self.concepts, cells) & target.region.in_box(self.concepts, cells)).any()
                for target in plan.targets
            )
        ]
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "config.json").write_text(json.dumps({**self.model, "regions": kept}))
        if plan.control is None:
            (out_dir / LOADER).write_text('"""Loads nothing, as there is nothing to load."""\n')
        curve = pd.DataFrame({"step": [1], "loss": [0.0]})
        return RepairRecord(method="planted", steps=1, details={"regions_left": len(kept)}, curve=curve)
