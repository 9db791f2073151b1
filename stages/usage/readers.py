"""Measure inputs: an audit's own items, changed as its concepts change them, and files of production inputs.

A task names its reader as `usage` (`stages.tasks.choosing`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from stages.core.errors import UsageError, did_you_mean
from stages.core.files import parquet_metadata
from stages.usage import measures
from stages.usage.estimate import DRAWS, FEWEST, Shares, estimate_usage, spread_usage

MOST = 10_000  # production inputs that are measured
BATCH = 64
_NAMED = 3  # files that a message names
_FEW_GROUPS = 10  # with fewer, items are independent enough


class Reader(ABC):
    """Measures inputs of a task.

    Args:
        task: the loaded task; its model is not queried.
        column: the column or field of production texts, if several could be meant.
    """

    shown: ClassVar[Mapping[str, Sequence[str]]] = {}
    """By concept, the measures that show it."""

    def __init__(self, task: Any, column: str | None) -> None:
        self.task, self.column = task, column
        self.left_out: list[str] = []  # what could not be read, and why

    @abstractmethod
    def own(self, ids: Sequence[str], cells: np.ndarray) -> pd.DataFrame:
        """Measure n items of the audit, changed by cells (n, concepts)."""

    @abstractmethod
    def production(self, path: Path, rng: np.random.Generator) -> pd.DataFrame:
        """Measure production inputs, `MOST` of them at most, drawn at random.

        Raises:
            UsageError: if they cannot be read.
        """

    def measured_by(self) -> Mapping[str, Sequence[str]]:
        """Return the measures that show the concepts of this audit, by concept; those without any are left out."""
        return {name: self.shown[name] for name in self.task.concepts.names if name in self.shown}

    def estimate(self, path: Path, seed: int) -> tuple[list[Shares], int]:
        """Return how common the levels of concepts are in production, and the number of inputs.

        Raises:
            UsageError: if no concept can be measured, or the inputs cannot be read or are too few.
        """
        shown, space = self.measured_by(), self.task.concepts
        if not shown:
            raise UsageError(f"none of the concepts leaves a trace that can be measured: {', '.join(space.names)}")
        rng = np.random.default_rng([seed, DRAWS])
        found = self.production(path, rng)
        if len(found) < FEWEST:
            why = f"; left out: {'; '.join(self.left_out[:_NAMED])}" if self.left_out else ""
            raise UsageError(f"{path}: found {len(found)} inputs, expected {FEWEST} or more{why}")
        table = self.task.items.table
        ids, cells = table["id"].to_numpy()[rng.integers(0, len(table), DRAWS)], spread_usage(space).sample(DRAWS, rng)
        pieces = [slice(start, start + BATCH) for start in range(0, DRAWS, BATCH)]
        own = pd.concat([self.own(ids[piece].tolist(), cells[piece]) for piece in pieces], ignore_index=True)
        columns = {name: [own.columns.get_loc(column) for column in named] for name, named in shown.items()}
        group = table["group"] if "group" in table and table["group"].nunique() >= _FEW_GROUPS else table["id"]
        groups = group.astype(str).set_axis(table["id"]).loc[ids].tolist()
        return estimate_usage(space, cells, groups, own.to_numpy(), found.to_numpy(), columns, seed), len(found)


class TextReader(Reader):
    """A file of texts: lines, or a column of a table."""

    fields: ClassVar[tuple[str, ...]]  # names under which the texts may be found

    def production(self, path: Path, rng: np.random.Generator) -> pd.DataFrame:
        named = self.task.context.config.get("data", {})
        own = [named[key] for key in ("question", "text") if isinstance(named, Mapping) and key in named]
        texts = read_texts(path, self.column, [*own, *self.fields], self.left_out)
        return self.measure(sample(texts, rng))

    @abstractmethod
    def measure(self, texts: Sequence[str]) -> pd.DataFrame:
        """Measure n production texts."""


class WordReader(TextReader):
    """Texts that people write: what is measured are their letters, words and marks."""

    shown = measures.TEXTS

    def __init__(self, task: Any, column: str | None) -> None:
        super().__init__(task, column)
        table = task.items.table
        self._group = dict(zip(table["id"], table.get("group", table["id"]), strict=True))
        self._seen: dict[str, str | None] = {}  # the group whose texts have a word; None for several
        for item, text in zip(table["id"], table[self.of], strict=True):
            for word in {word.lower() for word in measures.words_of(text)}:
                group = self._group[item]
                self._seen[word] = group if self._seen.get(word, group) == group else None

    of: ClassVar[str]  # the column of the items with their texts

    @abstractmethod
    def changed(self, ids: Sequence[str], cells: np.ndarray) -> list[str]:
        """Return n changed texts of the audit."""

    def own(self, ids: Sequence[str], cells: np.ndarray) -> pd.DataFrame:
        return measures.of_texts(self.changed(ids, cells), [_Known(self._seen, self._group[item]) for item in ids])

    def measure(self, texts: Sequence[str]) -> pd.DataFrame:
        return measures.of_texts(texts, [self._seen] * len(texts))


class _Known(Container[str]):
    """Words of the audit's texts in other groups than one."""

    def __init__(self, seen: Mapping[str, str | None], group: str) -> None:
        self._seen, self._group = seen, group

    def __contains__(self, word: object) -> bool:
        return self._seen.get(str(word), self._group) != self._group


# Files of production inputs


def sample(inputs: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """Draw `MOST` inputs at most, and keep their order."""
    chosen = np.sort(rng.permutation(len(inputs))[:MOST])
    return [inputs[i] for i in chosen]


def read_texts(path: Path, column: str | None, known: Sequence[str], left_out: list[str]) -> list[str]:
    """Read texts from lines of a .txt file, or from a column of a table."""
    if path.suffix == ".txt":
        return [line.strip() for line in _text_of(path).splitlines() if line.strip()]
    frame = read_table_file(path)
    names = list(frame)
    wanted = column or next((name for name in known if name in names), names[0] if len(names) == 1 else None)
    if wanted not in names:
        hint = did_you_mean(wanted, names) if wanted else ""
        asked = (
            f"has no column {wanted!r}{hint}" if wanted else "has several columns: name that of the texts by --column"
        )
        raise UsageError(f"{path.name} {asked}; found {', '.join(names)}")
    texts = [str(value).strip() if isinstance(value, str) else "" for value in frame[wanted]]
    left_out += [f"row {row + 1} has no text" for row, text in enumerate(texts) if not text]
    return [text for text in texts if text]


def read_table_file(path: Path) -> pd.DataFrame:
    """Read a .csv, .tsv, .parquet, .json or .jsonl file.

    Raises:
        UsageError: if there is no such file, or it is not such a table.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": pd.read_parquet, ".json": _json, ".jsonl": _json}
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    if path.suffix not in readers:
        raise UsageError(f"{path.name}: expected a file that ends in .txt, {', '.join(readers)}")
    if path.suffix == ".parquet":
        parquet_metadata(path, "--from")
    try:
        return readers[path.suffix](path).rename(columns=str)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path.name} is not a table that can be read: {error}") from None


def _csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")


def _json(path: Path) -> pd.DataFrame:
    """Read a list, or one value a line: objects, or texts."""
    text = _text_of(path)
    rows = json.loads(text) if path.suffix == ".json" else list(_values(text))
    if not isinstance(rows, list) or not rows:
        raise ValueError("expected a list of objects or texts")
    if all(isinstance(row, str) for row in rows):
        return pd.DataFrame({"text": rows})
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected objects or texts, all of one kind")
    return pd.DataFrame(rows)


def _values(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from None


def _text_of(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start}") from None
