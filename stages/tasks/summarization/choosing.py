"""What `faded mine` and `faded usage` have to know about articles and their summaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stages.tasks.choosing import MinedTexts
from stages.usage.readers import WordReader

if TYPE_CHECKING:
    from stages.tasks.summarization.probes import SummarizerProbes


class ArticleTexts(MinedTexts):
    """Articles for a summarizer: the summary of a changed article is judged against the unchanged one."""

    column = "article"
    fields = ("article", "reference")
    before_concepts = True

    def given(self, task: SummarizerProbes, item_ids: Sequence[str], cells: np.ndarray) -> list[str]:
        return task.changed(item_ids, cells)

    def expected(self, items: pd.DataFrame) -> list[str]:
        return [f"said of the unchanged article: {summary}" for summary in items["summary"]]

    def source(self, items: pd.DataFrame) -> Mapping[str, str]:
        summary = {"summary": "reference"} if (items["reference"] != "").all() else {}
        return {"text": "article", "split": "split", **summary}


class ArticleReader(WordReader):
    """Articles for a summarizer."""

    of, fields = "article", ("article", "text", "document")
    task: SummarizerProbes

    def changed(self, ids: Sequence[str], cells: np.ndarray) -> list[str]:
        return self.task.changed(ids, cells)
