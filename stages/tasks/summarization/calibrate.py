"""Calibration of the failure threshold on changes that nobody would hold against the model.

Summaries change even if only a space is added, so a threshold of 0 would count noise as failures. `prepare` summarizes
articles again after a benign edit and keeps every discrepancy. From these the threshold follows for any measure and any
rate of false alarms, without querying the model again.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.core.errors import UsageError
from stages.core.intervals import wilson
from stages.core.progress import progress
from stages.tasks.language.encoders import Embedder
from stages.tasks.language.generate import Summarizes
from stages.tasks.summarization import support
from stages.tasks.summarization.config import too_few
from stages.tasks.summarization.measures import (
    ABSOLUTE,
    DISCREPANCIES,
    NEEDS_REFERENCE,
    SummaryCase,
    Unsupported,
    degenerate,
    discrepancy,
    weighted,
)

BENIGN, NO_OP = "benign", "no_op"
QUOTED = 0.05  # rate of false alarms of the thresholds in metrics; an audit sets its own under discrepancy:


def space_doubled(article: str) -> str:
    """Double the first space between two words: the no-op, which nobody would notice.

    A space after the last word would not reach the model if an article is cut or the template trims it.
    """
    return re.sub(r"(?<=\S) (?=\S)", "  ", article, count=1)


@dataclass(frozen=True)
class NoiseCalibration:
    """Discrepancies of the model under test when nothing that matters changed.

    Args:
        records: one row for each (condition, split, item): its condition (`BENIGN` or `NO_OP`), split, item, why the
            summary is degenerate ("" if it is not), and each measure by its name.
    """

    records: pd.DataFrame

    def discrepancies(self, condition: str, split: str, weights: Mapping[str, float]) -> np.ndarray:
        """Return the discrepancies (n,) of a split's articles under a condition; 1 for a degenerate summary."""
        rows = self.records[(self.records["condition"] == condition) & (self.records["split"] == split)]
        return np.array(
            [1.0 if row["degenerate"] else weighted(row, weights) for row in rows.to_dict("records")], dtype=np.float32
        )

    def threshold(self, weights: Mapping[str, float], false_alarms: float) -> float:
        """Return the threshold that the benign edit alone exceeds in at most `false_alarms` of the articles.

        It is the order statistic of split conformal prediction (Vovk et al. 2005; Angelopoulos and Bates 2021, section
        1): for articles like those of discover, the rate of false alarms is no higher on average. It is at least 0, so
        that an unchanged summary passes. The absolute measure has its own fixed threshold for every model. Raises a
        UsageError when there are too few articles for so low a rate, or too many degenerate summaries.
        """
        if weights.keys() == {ABSOLUTE}:
            return support.THRESHOLD
        values = np.sort(self.discrepancies(BENIGN, "discover", weights))
        if error := too_few(len(values), false_alarms):
            raise UsageError(error)
        rank = int(np.ceil((len(values) + 1) * (1 - false_alarms) - 1e-9))
        found = float(values[rank - 1])
        if found >= 1:
            share = float((values >= 1).mean())
            raise UsageError(
                f"discrepancy.threshold: after a benign edit {share:.0%} of the summaries are degenerate, more than"
                f" false_alarms, {false_alarms:g}: no threshold can reach it; raise prepare.generation.max_new_tokens"
                " if they are cut, take another model, or set discrepancy.threshold to a number"
            )
        return max(found, 0.0)

    def false_alarms(self, weights: Mapping[str, float], threshold: float) -> dict[str, dict[str, Any]]:
        """Return how often each condition exceeds a threshold, if possible on articles that did not set it.

        Returns:
            Condition -> rate with its 95% interval (Wilson) as low and high, number of articles, and whether they were
            held out.
        """
        found: dict[str, dict[str, Any]] = {}
        for condition, split in ((c, s) for c in (BENIGN, NO_OP) for s in ("repair", "discover")):
            values = self.discrepancies(condition, split, weights)
            if condition not in found and len(values):
                value, low, high, n = wilson(int((values > threshold).sum()), len(values))
                held_out = split == "repair"
                found[condition] = {"rate": value, "low": low, "high": high, "articles": n, "held_out": held_out}
        return found

    def quoted(self) -> dict[str, Any]:
        """Return each measure's threshold at 5% false alarms, and how often it is exceeded, for metrics.

        Measures that cannot be calibrated are left out: too few articles, no references, or too many degenerate
        summaries.
        """
        quoted = {}
        for name in DISCREPANCIES.keys() & self.records.dropna(axis="columns").columns:
            with contextlib.suppress(UsageError):
                threshold = self.threshold({name: 1.0}, QUOTED)
                quoted[name] = {"threshold": threshold, **self.false_alarms({name: 1.0}, threshold)}
        return dict(sorted(quoted.items()))


def measure_noise(
    items: pd.DataFrame,
    summarizer: Summarizes,
    embedder: Embedder,
    benign: Callable[[str, str], str],
    articles: int,
    unsupported: Unsupported = support.unsupported,
) -> tuple[pd.DataFrame, NoiseCalibration]:
    """Summarize all articles, and some of them again after changes that should not matter.

    Raises a UsageError when the model cannot see the benign edit in any article.

    Args:
        items: columns id, split, article, reference.
        benign: (article, item) -> the article after the benign edit.
        articles: number of articles of discover, and of repair, to summarize again, at most.
        unsupported: measures how little an article supports a summary, see `SummaryCase`.

    Returns:
        The items with their summary and its faithfulness, and the calibration.
    """
    some = {split: items[items["split"] == split].head(articles) for split in ("discover", "repair")}
    held_out = "repair" if len(some["repair"]) else "discover"
    asked = [
        (condition, split, row, benign(row.article, row.id) if condition == BENIGN else space_doubled(row.article))
        for condition, split in ((BENIGN, "discover"), (BENIGN, "repair"), (NO_OP, held_out))
        for row in some[split].itertuples()
    ]
    edited = ((row.article, text) for condition, _, row, text in asked if condition == BENIGN)
    if all(summarizer.inputs(article) == summarizer.inputs(text) for article, text in edited):
        raise UsageError(
            "prepare.calibrate.benign: it changes nothing of what this model is given, so it says nothing about noise"
            " (some tokenizers drop double spaces); name a change it can see, such as {typos: 0.05}"
        )
    answers = _summarize(summarizer, [*items["article"], *(text for *_, text in asked)])
    clean = dict(zip(items["id"], answers, strict=False))
    records = []
    for (condition, split, row, _), answer in zip(asked, answers[len(items) :], strict=True):
        case = SummaryCase(row.article, clean[row.id], answer, row.reference, unsupported)
        names = [name for name in DISCREPANCIES if case.reference or name not in NEEDS_REFERENCE]
        values = {name: discrepancy(case, {name: 1.0}, embedder) for name in names}
        reason = degenerate(answer, summarizer.unfinished(answer))
        records.append({"condition": condition, "split": split, "item": row.id, "degenerate": reason, **values})
    faithfulness = [embedder.cosine(clean[row.id], row.article) for row in items.itertuples()]
    return items.assign(summary=list(clean.values()), faithfulness=faithfulness), NoiseCalibration(
        pd.DataFrame(records)
    )


def _summarize(summarizer: Summarizes, texts: Sequence[str]) -> list[str]:
    """Summarize n texts with a progress bar; texts of similar length go together, which saves padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    size = summarizer.compute.batch_size
    answers = [""] * len(texts)
    with progress("summaries", len(texts)) as tell:
        for start in range(0, len(texts), size):
            part = order[start : start + size]
            for i, answer in zip(part, summarizer.summarize([texts[i] for i in part]), strict=True):
                answers[i] = answer
            tell(start + len(part), "")
    return answers
