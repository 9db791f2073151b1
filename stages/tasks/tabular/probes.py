"""Classification of rows under test: what a probe is, and what counts as a failure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field
from threadpoolctl import threadpool_limits

from stages.concepts.catalogue import check_levels, span
from stages.concepts.images import probe_chance
from stages.concepts.rows import CATALOGUE, RowChanges, idle_concepts, with_groups
from stages.core.errors import UsageError
from stages.core.files import content_hash, read_table
from stages.params import Strict
from stages.tasks.base import Task
from stages.tasks.contract import (
    AND_LABEL,
    SPLITS,
    Exhibit,
    Items,
    ProbeBatch,
    Quality,
    Split,
    TaskContext,
    item_numbers,
)
from stages.tasks.sources import ItemCounts, Source
from stages.tasks.tabular.data import DATA_LOADERS, Rows, Table, column_kind, without_gaps
from stages.tasks.tabular.models import MODEL_LOADERS, RowModel
from stages.tasks.tabular.own import NO_ANSWER, OwnModel, read_own_model

_X = "x "  # prefix of features in the table of items


class PrepareConfig(Strict):
    """The `prepare:` block; `model` and `data` are checked by the loader named by one of their keys."""

    model: dict[str, Any]
    data: dict[str, Any]
    items: ItemCounts
    groups: dict[str, list[str]] = Field(
        default_factory=dict, description="columns by patterns ('worst *'): drift_worst is drift of the group worst"
    )


class DiscrepancyConfig(Strict):
    """The `discrepancy:` block: tanh(log(best other probability / true probability) / scale), from -1 to 1."""

    threshold: float = Field(0.0, gt=-1, lt=1, description="0: whatever is misclassified; below 0: near misses too")
    scale: float = Field(5.0, gt=0, description="log odds at which the discrepancy begins to saturate")


class RepairSettings(Strict):
    """How the model is repaired."""

    method: Literal["risk-weighted", "threshold"] = Field(
        description="fitted again, also on changed rows; or with another threshold for each group that fails"
    )
    copies: int = Field(4, ge=1, le=1000, description="risk-weighted: changed copies of each repair row")


class RowProbes(Task):
    """A classifier of rows with its rows.

    The discrepancy of a probe is tanh(log(best other probability / true probability) / scale), in [-1, 1].
    """

    init: ClassVar[str] = ".init:RowsInit"
    usage: ClassVar[str] = ".init:RowReader"

    prepare_block = PrepareConfig
    discrepancy_block = DiscrepancyConfig
    repair_block = RepairSettings
    loaders: ClassVar[Mapping[str, Mapping[str, type[Source]]]] = {"model": MODEL_LOADERS, "data": DATA_LOADERS}
    catalogue: ClassVar[Mapping[str, Any]] = CATALOGUE

    def __init__(self, context: TaskContext, items: pd.DataFrame, model: RowModel | OwnModel, model_hash: str) -> None:
        self.context, self.model, self.model_hash = context, model, model_hash
        settings = DiscrepancyConfig.model_validate(dict(context.discrepancy))
        self.threshold, self._scale = settings.threshold, settings.scale
        self.protected: list[str] = context.config["data"].get("protected", [])
        features = [name for name in items if name.startswith(_X)]
        self.items = Items(items.drop(columns=features))
        frame = items[features].rename(columns=lambda name: name.removeprefix(_X))
        catalogue = with_groups(context.config.get("groups", {}))
        self.concepts = span(context.concepts, catalogue)
        gaps = model.gaps and any(catalogue[name].apply is CATALOGUE["missing"].apply for name in context.concepts)
        self.table = Rows(frame, gaps=gaps)
        self.rows = self.table.frame
        scales = self.table.scales((items["split"] == "discover").to_numpy(), gaps=model.gaps)
        self._changes = RowChanges(self.concepts, catalogue, self.table.kinds, *scales)
        usual = self.rows.loc[items["split"] == "discover", self.table.measured]
        self._standard = (usual.mean(), usual.std().replace(0.0, 1.0))
        self._at = {item: row for row, item in enumerate(items["id"])}
        self._numbers = item_numbers(items["id"])
        order = {name: i for i, name in enumerate(model.classes)}
        self._targets = np.array([order[label] for label in items["label"]])

    @classmethod
    def conflicts(cls, context: TaskContext, prepare: Any, discrepancy: Any) -> list[str]:
        catalogue = with_groups(prepare.groups if prepare else {})
        if (errors := check_levels(context.concepts, catalogue)) or prepare is None:
            return errors
        try:
            rows = cls.source(context, "data").load(context.inputs).rows.head()
        except UsageError:  # which `check` reports
            return []
        rows = without_gaps(rows) if "estimator" in prepare.model else rows
        return idle_concepts(context.concepts, catalogue, {str(name): column_kind(rows[name]) for name in rows})

    @classmethod
    def repair_conflicts(cls, context: TaskContext, asked: Any) -> list[str]:
        if asked.method != "threshold" or context.config["data"].get("protected"):
            return []
        return ["restructure.method: threshold needs columns with groups, expected prepare.data.protected"]

    @classmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        """See Task: draws the items, and fits the model on other rows unless it is the user's own."""
        cls.require_valid(context)
        threadpool_limits(context.compute.threads)
        data, source = cls.source(context, "data"), cls.source(context, "model")
        counts = PrepareConfig.model_validate(dict(context.config)).items.model_dump()
        table: Table = data.load(context.inputs)
        if source.rows:
            table = replace(table, rows=without_gaps(table.rows))
        splits = [split for split in SPLITS if counts[split]]
        wanted: dict[str, int] = {"train": source.rows} | {split: counts[split] for split in splits}
        if sum(wanted.values()) > len(table.labels):
            asked = " + ".join(f"{n} {split}" for split, n in wanted.items())
            raise UsageError(f"prepare: {asked} rows wanted, the data have {len(table.labels)}")
        rng = np.random.default_rng([context.seed, 1])
        drawn = np.split(rng.permutation(len(table.labels)), np.cumsum(list(wanted.values())))
        train, *parts = drawn[: len(wanted)]
        used = np.concatenate(parts)
        model = source.made(context.inputs, context.seed, table, train, used, out_dir / "model")
        if strange := sorted(set(table.labels[used]) - set(model.classes)):
            raise UsageError(source.lacks(strange, model.classes))
        items = pd.DataFrame(
            {
                "id": [f"row-{row:06d}" for part in parts for row in part],
                "split": [split for split, part in zip(list(wanted)[1:], parts, strict=True) for _ in part],
                "label": table.labels[used],
            }
        )
        chosen = table.rows.iloc[used].reset_index(drop=True).add_prefix(_X)
        items = pd.concat([items, chosen], axis=1)
        items.attrs["skipped"] = table.skipped
        items.to_parquet(out_dir / "items.parquet", compression="zstd", index=False)
        task = cls(context, items, model, "")
        return {
            "items": {split: len(task.items.ids(split)) for split in splits},
            "clean_accuracy": {split: float(task.clean_quality(split).values.mean()) for split in splits},
            "classes": len(set(model.classes) - {NO_ANSWER}),
            **({"rows_fitted": source.rows} if source.rows else {}),
            "skipped": len(table.skipped),
            "origin": cls.origin(context),
        }

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Self:
        threadpool_limits(context.compute.threads)
        folder, items = model or prepared / "model", read_table(prepared / "items.parquet")
        own = "estimator" not in context.config["model"]
        rows = items[[name for name in items if name.startswith(_X)]].rename(columns=lambda n: n.removeprefix(_X))
        found = read_own_model(folder, rows) if own else RowModel.read(folder)
        return cls(context, items, found, content_hash([folder]))

    def changed(
        self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None
    ) -> tuple[np.ndarray, pd.DataFrame]:
        """Return what the model sees in n probes: positions in the table (n,), and changed rows (n, d)."""
        at, cells = np.array([self._at[item] for item in item_ids], dtype=int), np.asarray(cells, dtype=np.int64)
        repeats = np.zeros(len(at), dtype=np.int64) if repeats is None else np.asarray(repeats)
        chance = probe_chance(self._numbers[at], self.concepts.flat(cells), repeats, self.context.seed)
        return at, self.table.changed(at, self._changes(self.table.numbers[at], cells, chance))

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """See Task. Outputs are the predicted class and its probability, if the model gives one: "benign (83%)"."""
        if not len(item_ids):
            return ProbeBatch(np.empty(0, np.float32), np.empty(0, bool), [])
        at, rows = self.changed(item_ids, cells, repeats)
        answers = self.model.log_odds(rows)
        discrepancy = np.tanh(self.margins(at, answers) / self._scale).astype(np.float32)
        best = answers.argmax(1)
        shares = [f" ({np.exp(answers[i, k]):.0%})" * self.model.shares for i, k in enumerate(best)]
        outputs = [f"{self.model.classes[k]}{share}" for k, share in zip(best, shares, strict=True)]
        return ProbeBatch(discrepancy, discrepancy > self.threshold, outputs)

    def margins(self, at: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Return log(best other probability / true probability) of n rows at positions `at`: (n,)."""
        each, others = np.arange(len(at)), answers.copy()
        others[each, self._targets[at]] = -np.inf
        return others.max(1) - answers[each, self._targets[at]]

    def clean_quality(self, split: Split) -> Quality:
        ids = self.items.ids(split)
        at = [self._at[item] for item in ids]
        right = self.model.log_odds(self.rows.iloc[at]).argmax(1) == self._targets[at] if ids else np.empty(0)
        return Quality("clean accuracy", right.astype(np.float64), ids)

    def features(self, item_ids: Sequence[str]) -> np.ndarray:
        """See Task: the measurements, in standard deviations."""
        mean, spread = self._standard
        measured = self.rows.iloc[[self._at[i] for i in item_ids]][self.table.measured]
        return ((measured - mean) / spread).fillna(0.0).to_numpy(dtype=float)

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        labels = self.items.table["label"]
        both = {f"{name}{AND_LABEL}": self.rows[name].astype("string") + ", " + labels for name in self.protected}
        return self._told_apart(pd.concat([labels, pd.DataFrame(both), self.table.about()], axis=1), item_ids)

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        at, rows = self.changed(item_ids, cells)
        outputs = self.probe(item_ids, cells).outputs
        labels = self.items.table["label"].to_numpy()
        return [
            Exhibit(f"label {labels[row]} → predicted {output}", text=_table(old, new))
            for row, output, (_, new), (_, old) in zip(
                at, outputs, rows.iterrows(), self.rows.iloc[at].iterrows(), strict=True
            )
        ]


def _shown(value: Any) -> str:
    if pd.isna(value):
        return "missing"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(old: pd.Series, new: pd.Series) -> str:
    """Format one line per feature: "mean radius: 13.14 → 32.87" if it was changed."""
    pairs = zip(new.index, *([_shown(value) for value in row] for row in (old, new)), strict=True)
    return "\n".join(f"{name}: {before if before == after else f'{before} → {after}'}" for name, before, after in pairs)
