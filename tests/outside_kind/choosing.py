"""What commands that help to choose an audit's settings have to know about this kind; no stage imports it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from stages.tasks.choosing import MinedTexts, Vocabulary
from stages.tasks.init import Ask, Data, Init, Model, Option, Proposal, Seen
from stages.usage.measures import WordReader


class WordListInit(Init):
    options: ClassVar[Mapping[str, Option]] = {"shout": Option("Exclamation marks to try.")}
    wants = "Questions: a .txt file, one a line"
    suffixes = (".words",)
    most: ClassVar[Mapping[str, int]] = {"discover": 60}
    discrepancy: ClassVar[Mapping[str, Any]] = {}
    meaning = "Above 0 the answer is wrong."
    method = ""

    def model(self, path: Path, ask: Ask) -> Model | None:
        return Model(f"{path.name}, a list of words", path=path, key="words") if path.suffix == ".words" else None

    def data(self, path: Path, given: str, ask: Ask) -> Data:
        n = len(path.read_text().splitlines())
        return Data(f"{n} questions", path=path, key="lines", items=n)

    def propose(self, seen: Seen) -> Proposal:
        return Proposal(
            {"marks": [0, 1, int(seen.ask.text("shout", "How many marks", "3"))]}, {"marks": "marks at the end"}
        )


class Sentences(MinedTexts):
    column = "sentence"
    fields = ("sentence",)

    def given(self, task: Any, item_ids: Sequence[str], cells: np.ndarray) -> list[str]:
        return task.changed(item_ids, cells)

    def expected(self, items: pd.DataFrame) -> list[str]:
        return ["known"] * len(items)


class Tones(Vocabulary):
    def lines(self) -> list[str]:
        return [f"{line} (of any question)" for line in super().lines()]


class SentenceReader(WordReader):
    of, fields = "sentence", ("sentence",)
    shown: ClassVar[Mapping[str, Sequence[str]]] = {"marks": ("marks",)}

    def changed(self, ids: Sequence[str], cells: np.ndarray) -> list[str]:
        return self.task.changed(ids, cells)
