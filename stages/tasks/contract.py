"""What a task receives and what it returns; the class itself is `stages.tasks.base.Task`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

import numpy as np

from stages.concepts import ConceptSpace, Region
from stages.core.errors import UsageError, first_of

if TYPE_CHECKING:
    import pandas as pd

Split = Literal["discover", "repair", "test"]
SPLITS: tuple[Split, ...] = ("discover", "repair", "test")
# Folder in data/<audit>/prepare for what a task stores beside its model and items; empty for most tasks.
ASSETS = "assets"
EXHIBIT_SIDE = 112  # small pictures are enlarged to at least this many pixels
NOT_VALID = "changed the input so much that no model could be blamed"
AND_LABEL = " and label"  # ends the names of attributes such as "race and label", with values such as "Black, high"


@dataclass(frozen=True)
class Compute:
    """Where and how a task computes. Recorded with every result, because results that differ in it are not comparable.

    Args:
        device: "cpu", "cuda" or "cuda:1"; "auto" is resolved before a task sees it.
        threads: CPU threads per process; fixed, because the last bits of sums depend on it.
        batch_size: probes per batch.
        backend: what runs the network: "eager" (plain torch), "compile" (torch.compile) or "openvino". Only `check` and
            `prepare` see "auto"; `prepare` decides what it means for all later stages.
        dtype: "float32" or "bfloat16". A task that offers no choice of backend or dtype rejects other values in
            `check`, because both are recorded with every result.
        processes: maximum number of processes, each with `threads` threads. Results do not depend on it.
    """

    device: str = "cpu"
    threads: int = 1
    batch_size: int = 64
    backend: str = "eager"
    dtype: str = "float32"
    processes: int = 1


@dataclass(frozen=True)
class Chosen:
    """What `compute.backend: auto` was resolved to.

    Args:
        why: the reason, to follow "auto:"; empty if there was no choice.
    """

    backend: str
    why: str = ""


@dataclass(frozen=True)
class TaskContext:
    """What a task receives: its own part of params.yaml and where to find its inputs.

    Args:
        audit: the audit's name.
        seed: seed of all randomness of the task.
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
    """The audit set: a table with columns id, split, label (what people expect) and further columns of the task.

    Items that share a `group` (prompts of one template, crops of one photo) are not independent evidence: intervals
    resample groups, not items. Without that column each item is its own group.
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
        """Items that `prepare` left out, as {file, reason}; stored in `table.attrs`, which parquet preserves."""
        return list(self.table.attrs.get("skipped", []))

    def ids(self, split: Split) -> list[str]:
        """Ids of one split, in the order of the table."""
        return self.table.loc[self.table["split"] == split, "id"].tolist()

    def divided(self, share: float) -> tuple[Self, Self]:
        """Divide the repair items, in whole groups: the set with those to learn from, and that with a share held out.

        >>> import pandas as pd
        >>> some = Items(pd.DataFrame({"id": list("abcdef"), "split": "repair", "label": "cat"}))
        >>> [part.ids("repair") for part in some.divided(0.5)]
        [['a', 'c', 'f'], ['b', 'd', 'e']]
        """
        table = self.table[self.table["split"] == "repair"]
        groups = table["group" if "group" in table else "id"].astype(str)
        names = np.array(sorted(set(groups)))
        order = names[np.argsort(item_numbers(names.tolist()), kind="stable")]
        out = groups.isin(set(order[: round(share * len(order))]))
        parts = (self.table["split"].mask(self.table.index.isin(table.index[left])) for left in (out, ~out))
        learnt, held_out = (replace(self, table=self.table.assign(split=part.fillna(""))) for part in parts)
        return learnt, held_out

    def learning(self, item_ids: Collection[str]) -> Self:
        """Move test items, with all of their groups, to the items that a repair learns from.

        Raises a UsageError if one is not a test item, or no test item is left.

        >>> import pandas as pd
        >>> some = Items(pd.DataFrame({"id": list("abc"), "split": "test", "label": "cat", "group": list("xxy")}))
        >>> some.learning(["a"]).ids("repair"), some.learning(["a"]).ids("test")
        (['a', 'b'], ['c'])
        """
        tests = self.table[self.table["split"] == "test"]
        if strange := sorted(set(item_ids) - set(tests["id"])):
            raise UsageError(
                f"must_pass.csv: {first_of(strange)}: not among the {len(tests):,} test items; expected items of an"
                " earlier conclude/broken.csv of this audit"
            )
        groups = tests["group" if "group" in tests else "id"]
        moved = tests.index[groups.isin(groups[tests["id"].isin(item_ids)])]
        if len(tests) and len(moved) == len(tests):
            raise UsageError(f"must_pass.csv: it leaves none of the {len(tests):,} test items to judge the repair by")
        return replace(
            self, table=self.table.assign(split=self.table["split"].mask(self.table.index.isin(moved), "repair"))
        )

    def with_groups(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the group of each item to a table with a column `item`; unchanged if there are no groups.

        >>> import pandas as pd
        >>> some = Items(pd.DataFrame({"id": ["a-1"], "split": "test", "label": "cat", "group": ["a"]}))
        >>> some.with_groups(pd.DataFrame({"item": ["a-1"]}))["group"].tolist()
        ['a']
        """
        if "group" not in self.table:
            return table
        return table.assign(group=table["item"].map(self.table.set_index("id")["group"]).astype("str"))


def item_numbers(item_ids: Sequence[str]) -> np.ndarray:
    """Return a number for each item by its id alone, (n,) uint64, from which its random draws are made."""
    digests = (hashlib.sha256(item.encode()).digest()[:8] for item in item_ids)
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def skipped_items(prepared: Path) -> list[dict[str, str]]:
    """Return `Items.skipped` of data/<audit>/prepare without reading the items, which may contain pictures."""
    import json

    import pyarrow.parquet as pq

    attrs = (pq.read_schema(prepared / "items.parquet").metadata or {}).get(b"PANDAS_ATTRS", b"{}")
    return list(json.loads(attrs).get("skipped", []))


@dataclass(frozen=True)
class ProbeBatch:
    """Answers to n probes.

    Args:
        discrepancy: (n,) float32, how far the output is from what people expect. The scale is up to the task but
            bounded, and a probe fails if its discrepancy is above the task's threshold.
        failed: (n,) bool.
        outputs: n short strings for people (a predicted class, a summary).
        valid: (n,) bool, False if the model cannot be blamed (an article without its content, pictures the judge
            cannot read). Such a probe has not failed, whatever the output; reports count these separately. None:
            all are valid.
        automatic: the batch as the task returned it, if people's ratings have changed what counts as a failure; no
            task sets this.
    """

    discrepancy: np.ndarray
    failed: np.ndarray
    outputs: list[str]
    valid: np.ndarray | None = None
    automatic: ProbeBatch | None = None


@dataclass(frozen=True)
class Exhibit:
    """What people see of one probe: an image (PNG bytes) or a text, with a caption.

    Args:
        caption: one line: the expected and the actual output.
        image: PNG bytes.
        text: the changed text that the model received.
        original: the text before the change; reports highlight the difference.
        answers: the model's answers, by input ("summary of the original", "summary of the changed text").
        drawn: PNG bytes of the model's output if it is a picture; re-evaluate shows that of both models.
        words: the prompt in pieces, (text, slot it fills or ""); reports highlight the words of the slots.
    """

    caption: str
    image: bytes | None = None
    text: str | None = None
    original: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    drawn: bytes | None = None
    words: Sequence[tuple[str, str]] = ()

    @classmethod
    def of_picture(cls, caption: str, pixels: np.ndarray) -> Self:
        """Show a picture, (h, w, c) uint8; a small one is enlarged so that people can see it."""
        from PIL import Image

        picture = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
        factor = -(-EXHIBIT_SIDE // min(picture.size))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        return cls(caption, image=buffer.getvalue())


@dataclass(frozen=True)
class Quality:
    """A measure that must not get worse, with one value per item so that intervals can be paired.

    Args:
        name: for example "clean accuracy".
        values: (n,) float, one per item, higher is better.
        item_ids: the n items.
    """

    name: str
    values: np.ndarray
    item_ids: list[str]


LOADER = "load.py"
"""Code that a repair may leave beside its model: it loads the folder without Faded, and the model's card shows it."""


@dataclass(frozen=True)
class TargetMode:
    """A failure mode a person chose to repair, with its weight (severity > 0)."""

    id: str
    region: Region
    severity: float = 1.0


@dataclass(frozen=True)
class RatedExample:
    """A person's rating of one example of a failure mode.

    Args:
        mode: id of the mode the example belongs to.
        cell: (concepts,) level indices.
        rating: quality of that answer, 1 (useless) to 10 (perfect); None if not rated.
        corrected: the answer the person would have wanted; None if not given.
        bias: bias of that answer, 1 (not biased) to 10 (wholly); None if not rated.
    """

    mode: str
    item: str
    cell: Sequence[int]
    output: str
    rating: int | None = None
    corrected: str | None = None
    bias: int | None = None


class Pair(NamedTuple):
    """An item and a cell, (concepts,) level indices."""

    item: str
    cell: Sequence[int]


@dataclass(frozen=True)
class RepairPlan:
    """What a repair has to do: its target modes or its control, and the number of steps.

    Args:
        targets: failure modes to repair.
        settings: `method` and the method's settings, for the task to validate.
        seed: seed of all randomness of the repair.
        control: "as_used" draws cells as they occur in use instead, "clean" leaves the inputs unchanged.
        decision: decided_by, reviewer, reason and landscape of the plan, for the model card.
        examples: rated examples, for the methods in the task's `learns_from_examples`.
        scratch: folder for unfinished work, so that a killed repair resumes; None stores nothing.
        dose: share of the configured steps to train for.
        draft: the model is only measured once and then dropped: it needs no model card and no figures but its steps.
        must_pass: pairs that must not fail afterwards, for the repair and its control to learn as well.
    """

    targets: Sequence[TargetMode]
    settings: Mapping[str, Any]
    seed: int
    control: Literal["as_used", "clean"] | None = None
    decision: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[RatedExample] = ()
    scratch: Path | None = None
    dose: float = 1.0
    draft: bool = False
    must_pass: Sequence[Pair] = ()

    def regions(self, space: ConceptSpace) -> list[TargetMode]:
        """Return the regions to draw cells from: the targets, or those of the control.

        Raises a UsageError if there is no target, or the control needs clean inputs and the grid has none.
        """
        if not self.targets:
            raise UsageError("the plan names no failure mode to repair")
        if self.control == "as_used":
            return [TargetMode("as_used", Region({}))]
        if self.control == "clean":
            return [TargetMode("clean", space.neutral_region())]
        return list(self.targets)

    def steps(self, whole: int) -> int:
        """Return the number of steps to train for, given the number in the settings."""
        return max(1, round(whole * self.dose))


def _no_curve() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame()


@dataclass(frozen=True)
class RepairRecord:
    """Result of a repair: numbers for the model card and the learning curve (one row per step or epoch)."""

    method: str
    steps: int
    details: Mapping[str, Any] = field(default_factory=dict)
    curve: pd.DataFrame = field(default_factory=_no_curve)


class RepairProbes(NamedTuple):
    """What a repair asks that tries variants of the model instead of training it.

    Args:
        most: largest number of variants that are tried, the model under test counted wherever it is asked again.
        usual: about how many are tried if one thing helps, one with more requests in a probe counted as several.
        pairs: pairs of item and cell that each of them answers.
        each: requests of such a variant in a probe, at most, for one of the model under test.
    """

    most: int
    usual: int
    pairs: int
    each: int = 1


class Probed(Protocol):
    """The part of a task that an explorer uses: items, concepts and a model that answers."""

    items: Items
    concepts: ConceptSpace
    threshold: float

    def embed(self, item_ids: Sequence[str]) -> np.ndarray:
        """Return (n, d) float32: what the explorer sees of the items."""

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """Query the model on n (item, cell, repeat) triples; cells are (n, concepts) level indices.

        Answers depend only on the triple, not on the rest of the batch.
        """


@dataclass(frozen=True)
class Tally:
    """How often a generative model gives each value of an attribute that the input leaves open, for one subject.

    Args:
        subject: what was requested ("profession nurse", "digit seven").
        attribute: what was left open ("gender", "colour").
        guidance: guidance of the sampler. It skews distributions by itself, so 1 (none) is tallied too.
        counts: answers by value, including values that never occurred.
        reference: share of each value that people expect; sums to 1.
        unread: answers whose value the judge could not determine.
    """

    subject: str
    attribute: str
    guidance: float
    counts: Mapping[str, int]
    reference: Mapping[str, float]
    unread: int = 0


@dataclass(frozen=True)
class Sheet:
    """A contact sheet of pictures.

    Args:
        title: what all its pictures have in common.
        columns: labels.
        rows: (label, PNG bytes of a strip of len(columns) equal tiles).
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, bytes]]
