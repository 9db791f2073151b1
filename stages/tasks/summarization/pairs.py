"""What a repair learns: the summary to give of a changed article and, with method dpo, the one to reject.

Changed articles are the repair items under cells of the target modes; the summaries to give are good ones of the same
articles unchanged. Examples that people judged are added: a corrected answer is learnt instead of the model's, and an
answer rated `GOOD` or better is learnt unchanged. For pairs that must pass, the model's own summary of the article so
changed is learnt, so that it stays.
"""

import json
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from stages.concepts.texts import sentences
from stages.core.errors import UsageError
from stages.core.files import append_sealed, read_sealed
from stages.core.progress import progress
from stages.tasks.contract import RatedExample, RepairPlan
from stages.tasks.language.articles import Article
from stages.tasks.language.generate import with_weights
from stages.tasks.language.training import Lesson
from stages.tasks.summarization.config import SummaryRepair
from stages.tasks.summarization.labelled import falsified
from stages.tasks.summarization.probes import SummarizerProbes
from stages.tasks.training import PairSampler, sampler

GOOD = 8  # rating from which an answer is learnt unchanged
TRIED = 2  # changes of each article that are tried for a summary to reject
MUST_PASS = 4  # one in so many changed articles, rounded up, is of a pair that must pass

NO_ITEMS = "prepare.items.repair: a repair needs items to learn from, found 0"

_FINISHED = re.compile(r"[.!?…]\W*$")


@dataclass(frozen=True)
class TrainingPair:
    """An item, and the summary to give of it, however it is changed.

    Args:
        faithfulness: cosine of the summary and the unchanged article.
        cell: the only change to learn it for: that of an example people judged, or that under which the model gave the
            rejected summary; None for any of the target modes.
        rejected: the summary to reject in its favour, with method dpo.
    """

    item: str
    summary: str
    faithfulness: float
    cell: tuple[int, ...] | None = None
    rejected: str | None = None


def whole_sentences(summary: str) -> str:
    """Return a summary without an unfinished last sentence; "" if no sentence is finished."""
    found = sentences(summary)
    if found and not _FINISHED.search(found[-1]):
        found.pop()
    return " ".join(found)


def build_pairs(task: SummarizerProbes, plan: RepairPlan, settings: SummaryRepair) -> list[TrainingPair]:
    """Choose a summary to learn for every repair item, and for every example people judged.

    Summaries are trimmed to whole sentences. Left out are unusable ones, those that fail by the absolute measure if the
    audit uses it, and those less faithful than `min_faithfulness`; what a person wrote or praised is kept. Raises a
    UsageError when there are no repair items, no references although they are to be learnt, no summary is left, or with
    method dpo none to reject.
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
    if plan.control is not None:  # a control must not know the modes of the examples
        judged = [replace(pair, cell=None) for pair in judged]
    if settings.method != "dpo":
        return pairs + judged
    judged = [pair for pair in judged if pair.rejected is not None]
    preferred = (_falsified if settings.rejected == "falsified" else _degraded)(task, plan, pairs) + judged
    if not preferred:
        control = f", to the control (restructure.control: {plan.control})" if plan.control else ""
        raise UsageError(
            f"restructure.settings.rejected: {settings.rejected} gives nothing to reject{control}, of {len(pairs)}"
            " summaries to learn; take more repair items, or method lora"
        )
    return preferred


def build_must_pass(task: SummarizerProbes, plan: RepairPlan, settings: SummaryRepair) -> list[TrainingPair]:
    """Choose a summary to keep for every pair that must pass: the model's own, trimmed to whole sentences.

    Left out are pairs that fail before, and those whose change leaves too little of the article. With method dpo the
    summary is to be preferred to a falsified copy; where no error is possible, the pair is left out as well.
    """
    if not plan.must_pass:
        return []
    answer = task.probe([pair.item for pair in plan.must_pass], np.array([pair.cell for pair in plan.must_pass]))
    assert answer.valid is not None
    kept = [
        replace(best, cell=tuple(pair.cell))
        for pair, summary, passes in zip(plan.must_pass, answer.outputs, answer.valid & ~answer.failed, strict=True)
        if passes and (best := _best(task, pair.item, [summary], -1.0)) is not None
    ]
    return _falsified(task, plan, kept) if settings.method == "dpo" else kept


def _falsified(task: SummarizerProbes, plan: RepairPlan, pairs: Sequence[TrainingPair]) -> list[TrainingPair]:
    """Reject a copy of each summary with an error; pairs in which no error is possible are left out."""
    rng = Random(plan.seed)
    articles = [Article(pair.item, _article(task, pair.item)) for pair in pairs]
    others = articles[1:] + articles[:1]
    return [
        replace(pair, rejected=wrong)
        for pair, article, other in zip(pairs, articles, others, strict=True)
        if (wrong := falsified(pair.summary, article, other, rng))
    ]


def _degraded(task: SummarizerProbes, plan: RepairPlan, pairs: Sequence[TrainingPair]) -> list[TrainingPair]:
    """Reject the model's own summaries of the changed articles, if they fail."""
    if not pairs:
        return []
    rng = np.random.default_rng([plan.seed, 8])
    rows, cells = _draws(task, plan, pairs).draw(TRIED * len(pairs), rng)
    asked = [pairs[row] for row in rows.tolist()]
    answer = task.probe([pair.item for pair in asked], cells)
    return [
        replace(pair, cell=tuple(cell), rejected=output)
        for pair, cell, output, failed in zip(asked, cells.tolist(), answer.outputs, answer.failed, strict=True)
        if failed
    ]


def _draws(task: SummarizerProbes, plan: RepairPlan, pairs: Sequence[TrainingPair]) -> PairSampler:
    """Return the sampler of pairs and cells; that of a clean control is the repair's, for unchanged articles."""
    aimed = replace(plan, control=None) if plan.control == "clean" else plan
    return sampler(task, aimed, [pair.item for pair in pairs])


def _candidates(
    task: SummarizerProbes, plan: RepairPlan, settings: SummaryRepair, items: Sequence[str]
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
    task: SummarizerProbes, plan: RepairPlan, settings: SummaryRepair, articles: Mapping[str, str]
) -> dict[str, list[str]]:
    """Draw summaries of each article; those that an earlier run drew are taken from scratch."""
    size = task.summarizer.compute.batch_size
    kept = plan.scratch / "draws.jsonl" if plan.scratch else None  # one line for each batch
    drawn: dict[str, list[str]] = dict(ChainMap(*map(json.loads, read_sealed(kept))))
    open_items = [item for item in articles if item not in drawn]
    with progress("repair, drawing summaries", len(articles)) as tell:
        for start in range(0, len(open_items), size):
            part = open_items[start : start + size]
            # Seeded by the batch's position among all items, so that a resumed run draws the same as an uninterrupted
            # one.
            answers = with_weights(task.summarizer).summarize(
                [articles[item] for item in part],
                samples=settings.samples,
                temperature=settings.temperature,
                seed=plan.seed + len(drawn),
            )
            new = {item: answers[i * settings.samples : (i + 1) * settings.samples] for i, item in enumerate(part)}
            drawn |= new
            append_sealed(kept, json.dumps(new).encode())
            tell(len(drawn), "")
    return drawn


def _best(task: SummarizerProbes, item: str, choices: Sequence[str], at_least: float) -> TrainingPair | None:
    article = _article(task, item)
    usable = [text for choice in choices if (text := whole_sentences(choice)) and not task.wrong(text, article)]
    pairs = [TrainingPair(item, text, task.embedder.cosine(text, article)) for text in usable]
    best = max(pairs, key=lambda pair: pair.faithfulness, default=None)
    return best if best is not None and best.faithfulness >= at_least else None


def _judged(task: SummarizerProbes, example: RatedExample) -> TrainingPair | None:
    """Return what to learn from an example: the corrected answer, or the model's if it was rated well."""
    praised = example.rating is not None and example.rating >= GOOD
    summary = example.corrected or (whole_sentences(example.output) if praised else "")
    if not summary:
        return None
    faithfulness = task.embedder.cosine(summary, _article(task, example.item))
    rejected = example.output if example.corrected else None
    return TrainingPair(example.item, summary, faithfulness, tuple(int(level) for level in example.cell), rejected)


def _article(task: SummarizerProbes, item: str) -> str:
    return str(task.items.table["article"].iloc[int(task.rows([item])[0])])


class Lessons:
    """The lessons of each step: changed articles with the summaries to give, and unchanged ones (replay).

    A step depends only on the seed and its number. In an epoch every pair that a mode is about is seen about equally
    often, each time under another cell and with new random draws. If a cell leaves too little of an article
    (`validity`), the article is replayed unchanged: summarizing what is not there would teach the model to make things
    up. A clean control learns the same summaries in the same order, from unchanged articles.

    Pairs that must pass take the place of some changed articles, in turn, under their own cells and in controls too.

    Args:
        plan: target modes, or what the control trains on; seed.
        must_pass: see `build_must_pass`.
    """

    def __init__(
        self,
        task: SummarizerProbes,
        plan: RepairPlan,
        settings: SummaryRepair,
        pairs: Sequence[TrainingPair],
        must_pass: Sequence[TrainingPair] = (),
    ) -> None:
        self.task, self.settings, self.seed, self.pairs = task, settings, plan.seed, list(pairs)
        order = np.random.default_rng([plan.seed, 9]).permutation(len(must_pass))
        self.must_pass = [must_pass[row] for row in order]
        self.draws = _draws(task, plan, pairs)
        self.clean = plan.control == "clean"

    def __call__(self, step: int) -> list[Lesson]:
        size = self.settings.batch_size
        steps = -(-len(self.pairs) // size)  # of an epoch
        epoch, place = divmod(step, steps)
        rows, cells = self.draws.draw(steps * size, np.random.default_rng([self.seed, 5, epoch]))
        part = slice(place * size, (place + 1) * size)
        order = np.random.default_rng([self.seed, 6, step]).permutation(size).tolist()
        unchanged, changed = order[: self.settings.replayed], order[self.settings.replayed :]
        lessons = []
        for number, (row, cell) in enumerate(zip(rows[part].tolist(), cells[part], strict=True)):
            pair = self.pairs[row]
            article = _article(self.task, pair.item)
            if not self.clean and number not in unchanged:
                article = self._changed(pair, cell, epoch, article)
            lessons.append(Lesson(article, pair.summary, pair.rejected))
        n = min(len(self.must_pass), -(-len(changed) // MUST_PASS))
        for k, number in enumerate(changed[1:][:n]):  # the first stays that of a target
            pair = self.must_pass[(step * n + k) % len(self.must_pass)]
            [article] = self.task.changed([pair.item], np.array([pair.cell]))
            lessons[number] = Lesson(article, pair.summary, pair.rejected)
        return lessons

    def _changed(self, pair: TrainingPair, cell: np.ndarray, epoch: int, article: str) -> str:
        if pair.cell is not None:
            cell = np.array(pair.cell, dtype=np.int64)
        # The epoch is the repeat, so that the same item and cell get new random draws each time.
        changed = self.task.changed([pair.item], cell[None], np.array([epoch]))[0]
        valid = self.task.embedder.cosine(changed, article) >= self.task.settings.validity
        return changed if valid else article
