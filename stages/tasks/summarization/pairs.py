"""What a repair learns: which summary to give of which changed article.

Changed articles are the repair items under cells of the target modes; the summaries to give of them are good ones of
the same articles unchanged. What people said of examples comes on top: a corrected answer is learnt, and an answer
rated `GOOD` or better is learnt as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from stages.concepts.texts import sentences
from stages.errors import UsageError
from stages.files import put_aside, replace_file, seal, unseal
from stages.progress import progress
from stages.tasks.base import known_attributes
from stages.tasks.cells import PairSampler
from stages.tasks.contract import RatedExample, RepairPlan
from stages.tasks.summarization.generate import with_weights
from stages.tasks.summarization.probes import SummarizerProbes
from stages.tasks.summarization.repair_config import RepairSettings
from stages.tasks.summarization.training import Lesson

GOOD = 8  # rating from which an answer is learnt as it is

NO_ITEMS = "prepare.items.repair: a repair needs items to learn from, found 0"

_FINISHED = re.compile(r"[.!?…]\W*$")


@dataclass(frozen=True)
class Pair:
    """An item, and the summary to give of it however it is changed.

    Args:
        item: id of the item.
        summary: what is to be learnt.
        faithfulness: cosine of the summary and the unchanged article.
        cell: the one change to learn it for, of a person's example; None: any of the target modes.
    """

    item: str
    summary: str
    faithfulness: float
    cell: tuple[int, ...] | None = None


def whole_sentences(summary: str) -> str:
    """As much of a summary as ends with a sentence; "" if no sentence is finished."""
    found = sentences(summary)
    if found and not _FINISHED.search(found[-1]):
        found.pop()
    return " ".join(found)


def build_pairs(task: SummarizerProbes, plan: RepairPlan, settings: RepairSettings) -> list[Pair]:
    """Choose what is to be learnt of every repair item, and of every example people judged.

    Summaries are trimmed to whole sentences. Those nobody could use are left out, and those that are less faithful than
    `min_faithfulness`, unless a person wrote or praised them.

    Raises:
        UsageError: when there are no repair items, no references where these are to be learnt, or no summary is left.
    """
    items = task.items.ids("repair")
    if not items:
        raise UsageError(NO_ITEMS)
    judged = [pair for example in plan.examples if (pair := _judged(task, example)) is not None]
    choices = _candidates(task, plan, settings, items)
    chosen = (_best(task, item, summaries, settings.min_faithfulness) for item, summaries in choices.items())
    pairs = [pair for pair in chosen if pair is not None]
    if not pairs and not judged:
        raise UsageError(
            f"restructure.settings.min_faithfulness: of {len(items)} repair items none has a usable summary of at least"
            f" {settings.min_faithfulness:g} (targets: {settings.targets}); lower it, or learn other targets"
        )
    return pairs + judged


def _candidates(
    task: SummarizerProbes, plan: RepairPlan, settings: RepairSettings, items: Sequence[str]
) -> Mapping[str, Sequence[str]]:
    table = task.items.table.set_index("id").loc[list(items)]
    if settings.targets == "reference":
        lacking = int((table["reference"] == "").sum())
        if lacking:
            raise UsageError(
                f"restructure.settings.targets: {lacking} of {len(items)} repair items have no reference summary"
                " (prepare.data.summary names the field); learn targets own or best-of instead"
            )
        return {item: [text] for item, text in table["reference"].items()}
    own = {item: [text] for item, text in table["summary"].items()}
    if settings.targets == "own":
        return own
    drawn = _draw(task, plan, settings, table["article"].to_dict())
    return {item: own[item] + drawn[item] for item in items}


def _draw(
    task: SummarizerProbes, plan: RepairPlan, settings: RepairSettings, articles: Mapping[str, str]
) -> dict[str, list[str]]:
    """Summaries drawn of each article; those that an earlier run drew are taken from scratch."""
    size = task.summarizer.compute.batch_size
    kept = plan.scratch / "drawn.jsonl" if plan.scratch else None
    drawn: dict[str, list[str]] = {}
    if kept is not None and kept.exists():
        lines = kept.read_bytes().splitlines(keepends=True)
        good = list(takewhile(lambda data: data is not None, (unseal(kept, line) for line in lines)))
        if len(good) < len(lines) and lines[-1].endswith(b"\n"):  # else a kill cut the last one short
            put_aside(kept)
        if len(good) < len(articles):  # what a kill left of a last batch is drawn again, with the seed of that batch
            good = good[: len(good) // size * size]
        drawn = dict(json.loads(data) for data in good if data is not None)
        replace_file(kept, b"".join(lines[: len(good)]))
    open_items = [item for item in articles if item not in drawn]
    with progress("repair, drawing summaries", len(articles)) as tell:
        for start in range(0, len(open_items), size):
            part = open_items[start : start + size]
            # Seeded by where the batch begins among all items, so that a resumed run draws what an unbroken one does.
            answers = with_weights(task.summarizer).summarize(
                [articles[item] for item in part],
                samples=settings.samples,
                temperature=settings.temperature,
                seed=plan.seed + len(drawn),
            )
            new = {item: answers[i * settings.samples : (i + 1) * settings.samples] for i, item in enumerate(part)}
            drawn |= new
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                with kept.open("ab") as file:
                    file.writelines(seal(kept, json.dumps(entry).encode()) for entry in new.items())
            tell(len(drawn), "")
    return drawn


def _best(task: SummarizerProbes, item: str, choices: Sequence[str], at_least: float) -> Pair | None:
    article = _article(task, item)
    usable = [text for choice in choices if (text := whole_sentences(choice)) and not task.broken(text)]
    pairs = [Pair(item, text, task.embedder.cosine(text, article)) for text in usable]
    best = max(pairs, key=lambda pair: pair.faithfulness, default=None)
    return best if best is not None and best.faithfulness >= at_least else None


def _judged(task: SummarizerProbes, example: RatedExample) -> Pair | None:
    """What there is to learn of an example: the corrected answer, or the model's where it was rated well."""
    praised = example.rating is not None and example.rating >= GOOD
    summary = example.corrected or (whole_sentences(example.output) if praised else "")
    if not summary:
        return None
    faithfulness = task.embedder.cosine(summary, _article(task, example.item))
    return Pair(example.item, summary, faithfulness, tuple(int(level) for level in example.cell))


def _article(task: SummarizerProbes, item: str) -> str:
    return str(task.items.table["article"].iloc[int(task.rows([item])[0])])


class Lessons:
    """The lessons of each step: changed articles with what is to be said of them, and unchanged ones (replay).

    A step depends on the seed and its number alone. Every pair that a mode is about is seen once before any is seen
    twice, each time under another cell and with other random draws; of several modes each has an order of its own. An
    article of which a cell leaves too little (`validity`) is replayed unchanged instead: to summarize what is not there
    would teach the model to make things up.

    Args:
        task: gives the changed articles.
        plan: target modes, or what the control trains on; seed.
        settings: batch size and replay.
        pairs: what is to be learnt.
    """

    def __init__(
        self, task: SummarizerProbes, plan: RepairPlan, settings: RepairSettings, pairs: Sequence[Pair]
    ) -> None:
        self.task, self.settings, self.seed, self.pairs = task, settings, plan.seed, list(pairs)
        attributes = known_attributes(task, [pair.item for pair in self.pairs])
        self.sampler = PairSampler(task.concepts, plan.regions(task.concepts), attributes)
        self.control = plan.control is not None

    def __call__(self, step: int) -> list[Lesson]:
        """The lessons of a step."""
        rng = np.random.default_rng([self.seed, 6, step])
        size = self.settings.batch_size
        seen = np.arange(step * size, (step + 1) * size)
        unchanged = set(rng.permutation(size)[: self.settings.replayed].tolist())
        lessons = []
        for place, number in enumerate(seen.tolist()):
            target, cell = self.sampler.draw_one(rng)
            rows = self.sampler.rows[target]
            epoch, index = divmod(number, len(rows))
            pair = self.pairs[rows[self._order(epoch, len(rows))[index]]]
            article = _article(self.task, pair.item)
            if place not in unchanged:
                article = self._changed(pair, cell, epoch, article)
            lessons.append((article, pair.summary))
        return lessons

    def _order(self, epoch: int, pairs: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 5, epoch]).permutation(pairs)

    def _changed(self, pair: Pair, cell: np.ndarray, epoch: int, article: str) -> str:
        if pair.cell is not None and not self.control:
            cell = np.array(pair.cell, dtype=np.int64)
        # The epoch as the repeat: the same item and cell get new random draws each time they are seen.
        changed = self.task.changed([pair.item], cell[None], np.array([epoch]))[0]
        valid = self.task.embedder.cosine(changed, article) >= self.task.settings.validity
        return changed if valid else article


def save_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """Write what was learnt as JSON lines, one pair a line."""
    path.write_text("".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
