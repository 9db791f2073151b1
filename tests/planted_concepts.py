"""A task whose catalogue includes concepts that make it fail, though no audit lists them."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from planted import PlantedTask

from stages.concepts.catalogue import Change, check_levels, span
from stages.tasks.contract import Items, ProbeBatch, TaskContext


class Glaring(PlantedTask):
    """A planted model that fails in glare, and where it is asked rudely.

    Every probe is appended to `asked.txt`. If a file `killed` contains a number, the process is killed at the first
    probe after that many.
    """

    catalogue: ClassVar[Mapping[str, Change]] = {
        change.name: change
        for change in (
            *(Change(name, f"how much {name} there is", 0, 10) for name in ("tilt", "fog", "glare", "dust")),
            Change("tone", "tone of the question", neutral="plain", choices=("plain", "polite", "rude")),
        )
    }

    @classmethod
    def check(cls, context: TaskContext) -> list[str]:
        return super().check(context) + check_levels(context.concepts, cls.catalogue)

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Any:
        loaded = PlantedTask.load(context, prepared)
        return cls(Items(pd.read_parquet(prepared / "items.parquet")), loaded.concepts, loaded.model, context.seed)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.concepts = span({c.name: c.levels for c in self.concepts.concepts}, self.catalogue)

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        asked = Path("asked.txt")
        lines = asked.read_text().splitlines() if asked.exists() else []
        if (limit := Path("killed")).exists() and len(lines) >= int(limit.read_text()):
            os.kill(os.getpid(), signal.SIGKILL)
        told = [f"{i} {self.concepts.describe(c)}" for i, c in zip(item_ids, np.asarray(cells), strict=True)]
        asked.write_text("".join(f"{line}\n" for line in (*lines, *told)))
        found = np.full(len(item_ids), -0.5)
        for concept, index in zip(self.concepts.concepts, np.asarray(cells).T, strict=True):
            if concept.name == "glare":
                found += 0.15 * np.array(concept.levels)[index]
            if concept.name == "tone":
                found += 0.7 * (np.array(concept.levels)[index] == "rude")
        found = np.clip(found, -1, 1).astype(np.float32)
        return ProbeBatch(found, found > 0, ["wrong" if one > 0 else "right" for one in found])
