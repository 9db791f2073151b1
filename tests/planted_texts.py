"""A planted summarizer: texts, measures besides the failure rate, and answers that change on a second request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from stages.tasks.contract import Exhibit, ProbeBatch
from tests.planted import PlantedTask

ARTICLE = "In {town} the river rose by {n} metres. Nobody was hurt. Schools stay closed until the water is gone."


class PlantedTexts(PlantedTask):
    """Answers with the first sentence of an article if the probe passes, and with "the" if it fails.

    If asked again, it fails with the probability `again` instead of `noise` outside the planted regions.
    """

    def article(self, item: str) -> str:
        return ARTICLE.format(town=item, n=self._rows[item] % 7 + 2)

    def changed(self, item: str, cell: np.ndarray) -> str:
        """Remove words from an article, as many as the level of the first concept."""
        return " ".join(self.article(item).split()[int(cell[0]) :])

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        batch = super().probe(item_ids, cells, repeats)
        said = [self.article(item).split(". ")[0] for item in item_ids]
        return replace(batch, outputs=["the" if f else s for s, f in zip(said, batch.failed, strict=True)])

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        clean = self.probe(item_ids, np.zeros_like(cells)).outputs
        now = self.probe(item_ids, cells)
        return [
            Exhibit(
                f"{item}: discrepancy {d:+.2f}",
                text=self.changed(item, cell),
                original=self.article(item),
                answers={"summary of the original": before, "summary of the changed text": after},
            )
            for item, cell, d, before, after in zip(item_ids, cells, now.discrepancy, clean, now.outputs, strict=True)
        ]

    def measure(self, item_ids: Sequence[str], cells: np.ndarray, outputs: Sequence[str]) -> pd.DataFrame:
        words = [output.split() for output in outputs]
        found = [np.mean([w in self.article(i) for w in ws]) for i, ws in zip(item_ids, words, strict=True)]
        known = np.array([self._rows[item] % 2 == 0 for item in item_ids])  # half of the items are measured
        return pd.DataFrame(
            {"words": [float(len(ws)) for ws in words], "in the article": np.where(known, found, np.nan)}
        )

    def baselines(self, item_ids: Sequence[str], cells: np.ndarray) -> Mapping[str, Sequence[str]]:
        return {"first two words": [" ".join(self.article(item).split()[:2]) for item in item_ids]}

    def again(self) -> PlantedTexts:
        model = {**self.model, "noise": self.model.get("again", self.model["noise"])}
        return type(self)(self.items, self.concepts, model, self.seed)
