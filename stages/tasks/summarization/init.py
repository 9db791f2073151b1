"""`faded init` for summarization: which column contains the articles.

Also what `faded mine` and `faded usage` have to know about articles and their summaries.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from stages.concepts.texts import CATALOGUE
from stages.core.errors import UsageError
from stages.tasks.choosing import MinedTexts
from stages.tasks.init import (
    Ask,
    Data,
    Init,
    Model,
    Option,
    Proposal,
    Seen,
    first_rows,
    load_data,
    one_of,
    writing_model,
)
from stages.tasks.language.articles import DATA_LOADERS
from stages.tasks.summarization.probes import SummarizerProbes
from stages.usage.measures import WordReader

_TEXT = ("article", "text", "document", "dialogue", "content", "body")
_SUMMARY = ("summary", "highlights", "abstract", "headline", "reference")
_CONCEPTS: Mapping[str, Sequence[float | str]] = {
    "letter_case": ["as_is", "upper"],
    "typos": [0, 0.05, 0.1, 0.15, 0.2],
    "word_order": [0, 2, 4],
    "drop_nouns": [0, 0.1, 0.2, 0.3],
    "lost_spaces": [0, 0.05, 0.1],
}


class ArticlesInit(Init):
    """Articles, and a model that writes text."""

    options: ClassVar[Mapping[str, Option]] = {"text": Option("Column with the articles.")}
    wants = "Articles: a .jsonl file, or a folder of a data set"
    folders = "config.json of a model of transformers that writes text (...ForCausalLM, ...ForConditionalGeneration)"
    most: ClassVar[Mapping[str, int]] = {"discover": 60, "repair": 80, "test": 50}
    discrepancy: ClassVar[Mapping[str, Any]] = {
        "measure": "faithfulness_loss",
        "threshold": "auto",
        "false_alarms": 0.1,
    }
    meaning = """\
How much less a summary is about the article than that of the unchanged article is. A failure is what goes beyond
the loss that typos in 5% of the words bring in one article of ten (false_alarms)."""
    method, control = "lora", "clean"

    def model(self, path: Path, ask: Ask) -> Model | None:
        return writing_model(path)

    def data(self, path: Path, given: str, ask: Ask) -> Data:
        if path.is_dir():
            key, block = "datasets", _of_data_set(path, given, ask)
        elif path.suffix == ".jsonl":
            key, block = "jsonl", _columns(first_rows(path, given), ask)
        else:
            raise UsageError(
                f"--data {given}: expected a .jsonl file, one JSON object a line, or a folder of a data set"
            )
        articles, skipped = load_data({key: path.name, **block}, DATA_LOADERS, path.parent, given)
        pools = Counter(article.pool for article in articles if article.pool)
        parts = [f"{len(articles):,} articles in {block['text']!r}"]
        if "summary" in block:
            parts.append(f"with summaries in {block['summary']!r}")
        if pools:
            parts.append(" + ".join(f"{n:,} {split}" for split, n in pools.items()))
        if skipped:
            parts.append(f"{len(skipped)} that cannot be used ({skipped[0]['file']}: {skipped[0]['reason']})")
        said = ", ".join(parts)
        return Data(said, block, path, key, items=len(articles), pools=pools if pools.total() == len(articles) else {})

    def hub_data(self, name: str, ask: Ask) -> dict[str, Any]:
        column = "Which column holds the articles"
        return {**super().hub_data(name, ask), "text": ask.text("text", column, "article")}

    def propose(self, seen: Seen) -> Proposal:
        batch_size = 16 if "endpoint" in seen.model.block else 48
        return Proposal(_CONCEPTS, {name: CATALOGUE[name].doc for name in _CONCEPTS}, batch_size=batch_size)


def _of_data_set(path: Path, given: str, ask: Ask) -> dict[str, str]:
    """Return the largest split of a folder of the library `datasets`, and its columns."""
    try:
        import datasets
    except ImportError:
        raise UsageError(f"--data {given}: reading it needs the library datasets: pip install 'faded[text]'") from None
    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(str(path))
    except (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError) as error:
        why = " ".join(f"{error} {error.__cause__ or ''}".split())[:400]
        raise UsageError(f"--data {given} is not a readable data set: {why}") from None
    name = str(max(splits, key=lambda split: len(splits[split])))
    return {"split": name, **_columns([splits[name][0]], ask)}


def _columns(rows: Sequence[Mapping[str, Any]], ask: Ask) -> dict[str, str]:
    """Return the column of the articles and, if there is one, that of their summaries.

    The former is the one that an option names, or else the likely one; if there is none, the user is asked.
    """
    columns, text = list(rows[0]), _column(rows, _TEXT)
    if text is None or ask.said("text") is not None:
        text = ask.text(
            "text", f"Which column holds the articles ({', '.join(columns)})", None, one_of("text", columns)
        )
    summary = _column(rows, [name for name in _SUMMARY if name != text])
    return {"text": text, **({"summary": summary} if summary else {})}


def _column(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """Return the first of these columns that every row has, whatever its capitals."""
    of = {key.lower(): key for key in rows[0]}
    return next((of[name] for name in names if name in of and all(of[name] in row for row in rows)), None)


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
