"""Collect people's scores of examples from the decisions on all landscapes of an audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stages.decisions import counting, listed_keys, read_chain
from stages.decisions.files import Kept, scale_hash
from stages.decisions.model import Recorded
from stages.params import Params
from stages.ratings.apply import Target


@dataclass(frozen=True)
class Scored:
    """One person's score of one example, 1 to 10, with its automatic discrepancy."""

    discrepancy: float
    score: int
    item: str
    reviewer: str


@dataclass(frozen=True)
class Evidence:
    """All valid scores of one target.

    Args:
        scored: the scores.
        decisions: the decisions that contain them.
        of_another_scale: number of scores left out because their discrepancies were measured differently.
    """

    scored: Sequence[Scored]
    decisions: Sequence[Kept[Recorded]]
    of_another_scale: int

    @property
    def reviewers(self) -> dict[str, int]:
        """Number of scores by reviewer."""
        return dict(sorted(Counter(scored.reviewer for scored in self.scored).items()))


def gather(params: Params, audit: str, target: Target) -> Evidence:
    """Collect the scores in an audit's decisions, including rejections but not revised decisions.

    Raises:
        UsageError: if a decision cannot be read, or was changed.
    """
    scale, scored, used, others = scale_hash(params, audit), [], [], 0
    for kept in counting(read_chain(audit), listed_keys(params, audit), audit):
        decision = kept.decision
        found = [
            Scored(example.discrepancy, score, example.item, decision.reviewer)
            for example in decision.examples
            if (score := example.rating if target == "quality" else example.bias) is not None
        ]
        if decision.scale != scale:
            others += len(found)
        elif found:
            scored += found
            used.append(kept)
    return Evidence(scored, used, others)
