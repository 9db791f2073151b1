"""The task: questions, of which those with an unknown word, or asked rudely, fail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from faded import Exhibit, Items, ProbeBatch, Task, TaskContext
from stages.concepts.catalogue import Change, check_levels, span

TONES = {"plain": "{}", "polite": "Please: {}", "rude": "You fool, {}"}


class WordList(Task):
    """Answers questions, except those with a word of a list and rude ones."""

    init: ClassVar[str] = ".choosing:WordListInit"
    mining: ClassVar[str] = ".choosing:Sentences"
    proposing: ClassVar[str] = ".choosing:Tones"
    usage: ClassVar[str] = ".choosing:SentenceReader"

    threshold = 0.0
    catalogue: ClassVar[Mapping[str, Change]] = {
        "tone": Change("tone", "tone of the question", neutral="plain", choices=tuple(TONES)),
        "marks": Change("marks", "exclamation marks at its end", high=5),
    }

    def __init__(self, context: TaskContext, items: pd.DataFrame, words: Sequence[str]) -> None:
        self.context, self.items, self.words = context, Items(items), set(words)
        self.concepts = span(context.concepts, self.catalogue)

    @classmethod
    def check(cls, context: TaskContext) -> list[str]:
        return check_levels(context.concepts, cls.catalogue)

    @classmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        words = (context.inputs / context.config["model"]["words"]).read_text().split()
        lines = (context.inputs / context.config["data"]["lines"]).read_text().splitlines()
        (out_dir / "model").mkdir()
        (out_dir / "model" / "words.json").write_text(json.dumps(words))
        table = {"id": [f"q{n}" for n in range(len(lines))], "split": "discover", "label": "known", "sentence": lines}
        pd.DataFrame(table).to_parquet(out_dir / "items.parquet")
        return {"items": len(lines)}

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> WordList:
        words = json.loads((prepared / "model" / "words.json").read_text())
        return cls(context, pd.read_parquet(prepared / "items.parquet"), words)

    def changed(self, item_ids: Sequence[str], cells: np.ndarray) -> list[str]:
        sentences = self.items.table.set_index("id")["sentence"]
        texts = []
        for item, cell in zip(item_ids, cells, strict=True):
            levels = dict(zip(self.concepts.names, cell, strict=True))
            level = {concept.name: concept.levels[levels[concept.name]] for concept in self.concepts.concepts}
            texts.append(TONES[level.get("tone", "plain")].format(sentences[item]) + "!" * int(level.get("marks", 0)))
        return texts

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        texts = self.changed(item_ids, cells)
        wrong = [text.startswith("You fool") or bool(self.words & set(text.strip("?!").split())) for text in texts]
        found = np.where(wrong, 0.5, -0.5).astype(np.float32)
        return ProbeBatch(found, found > 0, ["?" if one else "known" for one in wrong])

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        return [
            Exhibit(caption=item, text=text) for item, text in zip(item_ids, self.changed(item_ids, cells), strict=True)
        ]
