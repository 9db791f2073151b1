"""What a task is given and what it answers with; the class itself is `stages.tasks.base.Task`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.errors import UsageError

Split = Literal["discover", "repair", "test"]
SPLITS: tuple[Split, ...] = ("discover", "repair", "test")
# What a task keeps beside its model and items, in data/<audit>/prepare; empty for most tasks.
ASSETS = "assets"
NOT_VALID = "changed the input so much that no model could be blamed"


@dataclass(frozen=True)
class Compute:
    """Where a task computes. Recorded with every result, because results that differ in it are not alike.

    Args:
        device: "cpu", "cuda" or "cuda:1"; "auto" was resolved before a task sees it.
        threads: CPU threads of a process; fixed, because sums depend on it in their last bits.
        batch_size: probes the model answers at once.
        backend: what runs the network: "eager" (torch as it is), "compile" (torch.compile) or "openvino". Only `check`
            and `prepare` see "auto": what that stands for is settled by `prepare`, once for all stages.
        dtype: what it computes with: "float32" or "bfloat16". A task that leaves no choice in these two refuses others
            in `check`, for they are recorded with every result.
        processes: how many processes may answer at once, each with so many threads. Results do not depend on it.
    """

    device: str = "cpu"
    threads: int = 1
    batch_size: int = 64
    backend: str = "eager"
    dtype: str = "float32"
    processes: int = 1


@dataclass(frozen=True)
class Chosen:
    """What `compute.backend: auto` stands for.

    Args:
        backend: the backend.
        why: in words, to follow "auto:"; empty where there was nothing to choose from.
    """

    backend: str
    why: str = ""


@dataclass(frozen=True)
class TaskContext:
    """What a task is given: its own part of params.yaml and where it finds its inputs.

    Args:
        audit: the audit's name.
        seed: all randomness of the task derives from it.
        config: the audit's `prepare:` block, for the task to validate.
        concepts: {name: levels} as in params.yaml, for the task to validate.
        discrepancy: the audit's `discrepancy:` block.
        inputs: folder of the user's own files, data/<audit>/inputs: every local path is relative to it.
        compute: device, threads, batch size, backend, dtype.
    """

    audit: str
    seed: int
    config: Mapping[str, Any]
    concepts: Mapping[str, Any]
    discrepancy: Mapping[str, Any]
    inputs: Path
    compute: Compute


@dataclass(frozen=True)
class Items:
    """The audit set: a table with columns id, split, label (what people expect) and whatever the task adds.

    Items that share a `group` (prompts of one template, crops of one photo) are not independent evidence: intervals
    resample groups, not items. Without that column each item stands for itself.
    """

    table: pd.DataFrame

    def __post_init__(self) -> None:
        missing = {"id", "split", "label"} - set(self.table.columns)
        if missing:
            raise UsageError(f"items lack the column(s) {sorted(missing)}, found {list(self.table.columns)}")
        if self.table["id"].duplicated().any():
            twice = self.table.loc[self.table["id"].duplicated(), "id"].iloc[0]
            raise UsageError(f"item ids must be unique, found {twice!r} more than once")

    @property
    def skipped(self) -> list[dict[str, str]]:
        """What `prepare` left out, as {file, reason}: a task keeps it in `table.attrs`, which parquet carries."""
        return list(self.table.attrs.get("skipped", []))

    def ids(self, split: Split) -> list[str]:
        """Ids of one split, in the order of the table."""
        return self.table.loc[self.table["split"] == split, "id"].tolist()

    def with_groups(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table with a column `item`, and one more with the group of each; the same where items stand for themselves.

        >>> some = Items(pd.DataFrame({"id": ["a-1"], "split": "test", "label": "cat", "group": ["a"]}))
        >>> some.with_groups(pd.DataFrame({"item": ["a-1"]}))["group"].tolist()
        ['a']
        """
        if "group" not in self.table:
            return table
        return table.assign(group=table["item"].map(self.table.set_index("id")["group"]).astype("str"))


def skipped_items(prepared: Path) -> list[dict[str, str]]:
    """The same of the items in data/<audit>/prepare, without reading them: they may hold pictures."""
    import json

    import pyarrow.parquet as pq

    attrs = (pq.read_schema(prepared / "items.parquet").metadata or {}).get(b"PANDAS_ATTRS", b"{}")
    return list(json.loads(attrs).get("skipped", []))


@dataclass(frozen=True)
class ProbeBatch:
    """Answers to n probes.

    Args:
        discrepancy: (n,) float32, how far the output is from what people expect. The scale is the task's own, but
            bounded, and a probe fails where it is above the task's threshold.
        failed: (n,) bool.
        outputs: n short strings people can read (a predicted class, a summary).
        valid: (n,) bool, False where nothing can be held against the model (an article without its content, pictures
            that the judge cannot read). Such a probe has not failed, whatever the output; reports count these apart.
            None: all are valid.
        automatic: the batch as the task answered it, where people's ratings have changed what counts as failure; no
            task sets this.
    """

    discrepancy: np.ndarray
    failed: np.ndarray
    outputs: list[str]
    valid: np.ndarray | None = None
    automatic: ProbeBatch | None = None


@dataclass(frozen=True)
class Exhibit:
    """What a person is shown of one probe: an image (PNG bytes) or a text, with a caption.

    Args:
        caption: one line: what was expected, what came out.
        image: PNG bytes.
        text: the changed text the model was given.
        original: the text before the change; reports mark what differs.
        answers: what the model said, by what it was asked ("summary of the original", "summary of the changed text").
        drawn: PNG bytes of what the model drew, where its answer is a picture; re-evaluate shows that of both models.
        words: the prompt in pieces, (text, slot it fills or ""); reports highlight the words of the slots.
    """

    caption: str
    image: bytes | None = None
    text: str | None = None
    original: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    drawn: bytes | None = None
    words: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Quality:
    """The measure that must not get worse, item by item so that intervals can be paired.

    Args:
        name: e.g. "clean accuracy".
        values: (n,) float, one per item, higher is better.
        item_ids: the n items.
    """

    name: str
    values: np.ndarray
    item_ids: list[str]


@dataclass(frozen=True)
class TargetMode:
    """A failure mode a person chose to repair, with its weight (severity > 0)."""

    id: str
    region: Region
    severity: float = 1.0


@dataclass(frozen=True)
class RatedExample:
    """What a person said of one shown example of a failure mode.

    Args:
        mode: id of the mode it was shown for.
        item: id of the item.
        cell: (concepts,) level indices.
        output: what the model had answered.
        rating: quality of that answer, 1 (useless) to 10 (perfect); None if it was not rated.
        corrected: the answer the person would have wanted; None if none was given.
        bias: of that answer, 1 (not biased) to 10 (wholly); None if it was not rated.
    """

    mode: str
    item: str
    cell: Sequence[int]
    output: str
    rating: int | None = None
    corrected: str | None = None
    bias: int | None = None


class Proposer(Protocol):
    """What a search has learnt: where a model is likely to fail, item by item, without asking it."""

    def sample(self, embedding: np.ndarray, k: int, seed: int) -> np.ndarray:
        """Draw k cells for each item, with replacement: embeddings (n, d) -> (n, k, concepts) level indices."""
        ...


@dataclass(frozen=True)
class RepairPlan:
    """What a repair is to do: the target modes, or what the control trains on, with the same number of steps.

    Args:
        targets: failure modes to repair.
        settings: `method` and the method's settings, for the task to validate.
        seed: all randomness of the repair derives from it.
        control: "uniform" draws cells from the whole grid instead, "clean" leaves the inputs unchanged.
        decision: decided_by, reviewer, reason and landscape of the plan, for the model card.
        examples: what people said of examples, for methods the task's `learns_from_examples` names.
        scratch: where unfinished work may be kept, so that a killed repair resumes; None keeps nothing.
        policy: what the search learnt, to aim by, for methods the task's `follows_policy` names; None for a uniform
            control. A clean one may be given the same of the same items, unchanged.
        spared: modes that people accept or ignore: what the policy draws there is not learnt.
        dose: share of the steps of the settings to train for.
        draft: the model is measured once and then left: it needs no card, and no numbers beside its steps.
    """

    targets: Sequence[TargetMode]
    settings: Mapping[str, Any]
    seed: int
    control: Literal["uniform", "clean"] | None = None
    decision: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[RatedExample] = ()
    scratch: Path | None = None
    policy: Proposer | None = None
    spared: Sequence[Region] = ()
    dose: float = 1.0
    draft: bool = False

    def regions(self, space: ConceptSpace) -> list[TargetMode]:
        """Where cells are drawn from: the targets, or the control's.

        Raises:
            UsageError: when there is no target, or the control wants clean inputs and the grid has none.
        """
        if not self.targets:
            raise UsageError("the plan names no failure mode to repair")
        if self.control == "uniform":
            return [TargetMode("uniform", Region({}))]
        if self.control == "clean":
            return [TargetMode("clean", space.neutral_region())]
        return list(self.targets)

    def steps(self, whole: int) -> int:
        """How many steps to train for where the settings say so many."""
        return max(1, round(whole * self.dose))


@dataclass(frozen=True)
class RepairRecord:
    """What a repair did: numbers for the model card and the learning curve (one row a step or epoch)."""

    method: str
    steps: int
    details: Mapping[str, Any] = field(default_factory=dict)
    curve: pd.DataFrame = field(default_factory=pd.DataFrame)


class Probed(Protocol):
    """What an explorer meets of a task: items, concepts and a model that answers."""

    items: Items
    concepts: ConceptSpace
    threshold: float

    def embed(self, item_ids: Sequence[str]) -> np.ndarray:
        """Return (n, d) float32: what the explorer sees of the items."""
        ...

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """Query the model on n (item, cell, repeat) triples; cells are (n, concepts) level indices.

        Answers depend on the triple alone, not on what else is in the batch.
        """
        ...


@dataclass(frozen=True)
class Tally:
    """What a generative model makes of one subject where the input does not say: a value of an attribute each time.

    Args:
        subject: what was asked for ("profession nurse", "digit seven").
        attribute: what was left unsaid ("gender", "colour").
        guidance: of the sampler; guidance skews distributions by itself, so 1 (none) is tallied beside it.
        counts: answers by value, values that never came included.
        reference: share of each value that people expect; sums to 1.
        unread: answers whose value the judge could not tell.
    """

    subject: str
    attribute: str
    guidance: float
    counts: Mapping[str, int]
    reference: Mapping[str, float]
    unread: int = 0


@dataclass(frozen=True)
class Sheet:
    """A contact sheet, for people who would rather look than read.

    Args:
        title: what is the same on all of it.
        columns: labels.
        rows: (label, PNG bytes of a strip of len(columns) equal tiles).
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, bytes]]
