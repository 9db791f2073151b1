"""All probes of an audit in one table, to be filtered, sorted and paged: of its searches, and of models compared."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Self

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.core.files import read_table
from stages.records import AuditFolder, ModeRecord
from stages.tasks.contract import ProbeBatch

PAGE = 50  # probes
UNDER_TEST = "tested"
MODELS = {
    UNDER_TEST: "under test",
    "before": "before the repair",
    "after": "after the repair",
    "control": "control of the repair",
    "noise": "queried again",
}
CHOSEN_BY = {
    "agent": "explorer",
    "control": "control, drawn evenly",
    "measure": "fresh probes of modes",
    "paired": "pairs for all models",
    "clean": "unchanged items",
}
OUTCOMES = {
    "failed": "failed",
    "passed": "passed",
    "invalid": "not held against the model",
    "broken": "newly failing after the repair",  # some of the failed
}
ORDERS = {"": "largest discrepancy first", "smallest": "smallest discrepancy first", "asked": "as they were made"}
_LONGEST = 100  # characters of an expected answer; a longer label is the item itself


@dataclass(frozen=True)
class ProbeQuery:
    """Which probes to show, and in which order; "" does not filter."""

    outcome: str = ""  # a key of OUTCOMES
    by: str = ""  # a key of CHOSEN_BY
    model: str = ""  # a key of MODELS
    mode: str = ""  # the id of a failure mode that they lie in
    item: str = ""  # part of an item's id or of its expected answer
    answer: str = ""  # part of the model's answer
    order: str = ""  # a key of ORDERS
    levels: tuple[tuple[str, int], ...] = ()  # the level index of each named concept

    @classmethod
    def read(cls, query: Mapping[str, str], space: ConceptSpace) -> Self:
        """Read the query of an address; a level that is not one is left out."""
        given = {one.name: query.get(one.name, "") for one in fields(cls) if one.name != "levels"}
        asked = {concept.name: query.get(f"level.{concept.name}", "") for concept in space.concepts}
        levels = {name: number_in(level) for name, level in asked.items()}
        sizes = zip(space.names, space.sizes, strict=True)
        found = ((name, level) for name, size in sizes if (level := levels[name]) is not None and level < size)
        return cls(**given, levels=tuple(found))

    @property
    def query(self) -> dict[str, str]:
        """The same as the query of an address."""
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "levels"}
        levels = {f"level.{name}": str(level) for name, level in self.levels}
        return {name: value for name, value in {**given, **levels}.items() if value}


def number_in(text: str) -> int | None:
    """A whole number in a query; None if it is not one, or too large for any use."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


class ProbeTable:
    """The probes of an audit as one table; the number of a probe is its row, until a stage runs again.

    Raises a UsageError if the landscape or the probes are missing.
    """

    def __init__(self, here: AuditFolder) -> None:
        found = here.summarize.landscape
        self.space, self.threshold, self.modes = found.space, found.threshold, {mode.id: mode for mode in found.modes}
        parts = [here.discover.probes.assign(model=UNDER_TEST)]
        attributes = [here.discover.embedded.told_apart] if here.discover.has("embedded") else []
        if here.summarize.has("fresh"):
            parts.append(here.summarize.fresh.drop(columns="mode").assign(model=UNDER_TEST))
        if here.re_evaluate.has("probes"):
            parts.append(here.re_evaluate.probes)
            attributes += [here.re_evaluate.embedded.told_apart] if here.re_evaluate.has("embedded") else []
        table = pd.concat(parts, ignore_index=True)
        kinds = dict.fromkeys(("role", "model", "item"), "category")
        self.table = table.drop(columns=self.space.names).astype(kinds)
        self._cells = np.asfortranarray(table[self.space.names].to_numpy(np.int16))  # filters go by column
        items = self.table["item"].cat.categories
        self._attributes = pd.concat(attributes or [pd.DataFrame()]).reindex(items)
        self._expected = _expected(here, items)
        valid = self.table["valid"].to_numpy(bool) if "valid" in table else np.ones(len(table), dtype=bool)
        failed = self.table["failed"].to_numpy(bool)
        paired, broken = (self.table["role"] == "paired").to_numpy(), np.zeros(len(table), dtype=bool)
        # All models answered the same pairs in the same order.
        before, after = (np.flatnonzero(paired & (self.table["model"] == model)) for model in ("before", "after"))
        broken[after] = ~failed[before] & failed[after]
        self._outcomes = {"failed": failed, "passed": valid & ~failed, "invalid": ~valid, "broken": broken}
        worst = np.argsort(-self.table["discrepancy"].to_numpy(), kind="stable")
        self._orders = {"": worst, "smallest": worst[::-1], "asked": np.arange(len(table))}
        self.select = lru_cache(16)(self._select)

    def __len__(self) -> int:
        return len(self.table)

    def _select(self, wanted: ProbeQuery) -> np.ndarray:
        """Return the numbers of the probes that are wanted, in order; of none for what does not exist."""
        table, chosen = self.table, np.ones(len(self), dtype=bool)
        if wanted.outcome:
            chosen &= self._outcomes.get(wanted.outcome, False)
        for column, value in (("role", wanted.by), ("model", wanted.model)):
            if value:
                chosen &= (table[column] == value).to_numpy()
        for name, level in wanted.levels:
            chosen &= self._cells[:, self.space.names.index(name)] == level
        if wanted.item:
            items = table["item"].cat
            ids = pd.Series(items.categories.to_numpy(), self._expected.index)
            chosen &= (_has(ids, wanted.item) | _has(self._expected, wanted.item))[items.codes]
        if wanted.answer:
            chosen &= _has(table["output"], wanted.answer)
        if wanted.mode:
            mode = self.modes.get(wanted.mode)
            chosen &= self._in(mode) if mode else False
        order = self._orders.get(wanted.order, self._orders[""])
        return np.asarray(order[chosen[order]])

    def _in(self, mode: ModeRecord, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Return which probes lie in a failure mode, (n,) bool."""
        about = mode.cells.about(self._attributes)
        items = self.table["item"].cat.codes.to_numpy()[rows]
        return np.asarray(mode.cells.in_box(self.space, self._cells[rows]) & about[items])

    def cells(self, rows: np.ndarray) -> np.ndarray:
        """Return the cells of some probes: (n, concepts) int64."""
        return self._cells[rows].astype(np.int64)

    def expected(self, item: str) -> str:
        """Return the expected answer to an item; "" if none is stated, or if it is long."""
        return str(self._expected[item])

    def outcome(self, row: int) -> str:
        return next(name for name, among in self._outcomes.items() if among[row])

    def modes_of(self, row: int) -> list[str]:
        """Return the failure modes in which a probe lies."""
        return [name for name, mode in self.modes.items() if self._in(mode, np.array([row]))[0]]

    def alike(self, row: int) -> np.ndarray:
        """Return the numbers of all probes of the same item and cell, this one included."""
        codes = self.table["item"].cat.codes.to_numpy()
        found = np.flatnonzero(codes == codes[row])
        return found[(self._cells[found] == self._cells[row]).all(axis=1)]

    def answers(self, rows: np.ndarray) -> ProbeBatch:
        """Return the recorded answers of some probes, as the task gave them: before people's ratings."""
        some = self.table.iloc[rows]
        found, failed = ("automatic", "automatic_failed") if "automatic" in some else ("discrepancy", "failed")
        valid = ~self._outcomes["invalid"][rows]
        return ProbeBatch(some[found].to_numpy(np.float32), some[failed].to_numpy(bool), some["output"].tolist(), valid)


def _has(texts: pd.Series, part: str) -> np.ndarray:
    return texts.str.contains(part, case=False, regex=False).to_numpy(bool)


def _expected(here: AuditFolder, items: pd.Index) -> pd.Series:
    """Return the label of each item by id, "" where it is no short answer (an article, a template of prompts)."""
    table = read_table(here.prepare.path / "items.parquet").drop_duplicates("id").set_index("id")
    labels = table["label"].astype(str) if "label" in table else pd.Series("", table.index)
    other = labels.str.len() > _LONGEST
    if "template" in table:
        other |= labels == table["template"].astype(str)
    return labels.mask(other, "").reindex(items, fill_value="").astype(str)
