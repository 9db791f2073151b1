"""A task whose failures are what people would call failures, by a map from its automatic discrepancy to their ratings.

The map depends only on the automatic discrepancy, and never decreases: of two probes both measures consider the same
one worse. People's ratings change where failing begins, and how far apart answers are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from stages.core.errors import UsageError
from stages.core.files import parse_json, read_named
from stages.params import AuditConfig, RatingsConfig, Strict, checked
from stages.provenance import scale_of
from stages.records import Agreement
from stages.tasks.base import LoadedTask
from stages.tasks.contract import ProbeBatch

BEST, WORST = 10, 1  # for quality; reversed for bias
MOST_UNFOUNDED = 0.05  # share of the control's probes whose verdict no rating supports
Target = Literal["quality", "bias"]


class Interval(Strict):
    """A mean in rating points with its 95% interval over items."""

    value: float
    low: float
    high: float


class Ratings(Strict):
    """The map learnt from people's scores of examples: data/<audit>/ratings.json.

    Args:
        target: what they scored.
        scale: hash of the definition of the discrepancies, see `stages.provenance.scale_of`.
        model: the kind of map that best predicted scores of held-out items.
        x: knots of the map, automatic discrepancies; it is linear between them and flat beyond.
        y: badness there, from 0 (the best score) to 1 (the worst).
        reviewers: number of scores by reviewer.
        decisions: SHA-256 of the decision files with the scores, by name.
        error, constant, gain: errors on held-out items, see `stages.ratings.fit.Fit`.
        agreement: agreement of the reviewers, see `stages.decisions.merge`; None if there is only one.
        points: the training data, (automatic discrepancy, score) each.
    """

    target: Target
    scale: str
    model: Literal["linear", "isotonic"]
    x: list[float] = Field(min_length=2)
    y: list[float] = Field(min_length=2)
    ratings: int
    items: int
    reviewers: dict[str, int]
    decisions: dict[str, str]
    error: Interval
    constant: Interval
    gain: Interval
    agreement: Agreement | None = None
    points: list[Annotated[tuple[float, int], Field(strict=False)]]

    @model_validator(mode="after")
    def _monotone(self) -> Self:
        x, y = np.array(self.x), np.array(self.y)
        if len(x) != len(y) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any() or y[0] < 0 or y[-1] > 1:
            raise ValueError("expected as many x as y, x rising, y never falling and from 0 to 1")
        return self

    def badness(self, discrepancy: np.ndarray) -> np.ndarray:
        """Convert automatic discrepancies (n,) to badness: 0 is the best score, 1 the worst.

        Single precision, as in tables, so that a rating at the bound has the same verdict everywhere.
        """
        return np.interp(np.asarray(discrepancy, dtype=float), self.x, self.y).astype(np.float32)

    def score(self, badness: np.ndarray) -> np.ndarray:
        """Convert badness to people's scores, 1 to 10."""
        return scores(badness, self.target)

    def threshold(self, config: RatingsConfig) -> float:
        """Return the badness above which a probe fails."""
        bound = config.fails_below if self.target == "quality" else config.fails_above
        assert bound is not None
        return float(np.float32(badness_of(np.array(bound), self.target)))

    def outside(self, discrepancy: np.ndarray) -> np.ndarray:
        """Return which discrepancies (n,) are outside the rated range."""
        return (discrepancy < self.x[0]) | (discrepancy > self.x[-1])

    def unfounded(self, discrepancy: np.ndarray, failed: np.ndarray) -> np.ndarray:
        """Return which verdicts (n,) by this map no rating supports.

        Below the rated range, passing follows from the lowest rated discrepancy that passes, because the map never
        decreases; failing follows from nothing. Above the range it is the reverse.
        """
        return np.where(failed, discrepancy < self.x[0], discrepancy > self.x[-1])


def badness_of(score: np.ndarray, target: Target) -> np.ndarray:
    """Convert scores, 1 to 10, to badness: 0 the best, 1 the worst."""
    return (BEST - score) / (BEST - WORST) if target == "quality" else (score - WORST) / (BEST - WORST)


def scores(badness: np.ndarray, target: Target) -> np.ndarray:
    """Invert `badness_of`."""
    return BEST - (BEST - WORST) * badness if target == "quality" else WORST + (BEST - WORST) * badness


def read_ratings(name: str, audit: AuditConfig) -> Ratings:
    """Read and check the file that an audit's `discrepancy.ratings` names.

    Raises a UsageError if it is missing, changed, of another scale, or of a target that does not fit the bound.
    """
    config = audit.ratings
    assert config is not None
    where, path = f"audits.{name}.discrepancy.ratings", Path(config.file)
    again = f"`faded ratings {name} --write` writes both"
    ratings = parse_ratings(read_named(path, config.sha256, where, again), path)
    if ratings.scale != scale_of(audit):
        raise UsageError(
            f"{where}: {path} was learnt on another scale: audits.{name} has another task, discrepancy or prepare;"
            " remove `ratings` from its discrepancy, run the audit, and rate examples of that landscape"
        )
    key = "fails_below" if ratings.target == "quality" else "fails_above"
    if getattr(config, key) is None:
        raise UsageError(f"{where}: {path} predicts ratings of {ratings.target}, for which the bound is {key}")
    return ratings


def parse_ratings(data: bytes, path: Path) -> Ratings:
    """Read the bytes of a ratings file; `path` is for messages.

    Raises a UsageError if they are not a valid ratings file.
    """
    content = {key: value for key, value in parse_json(data, str(path)).items() if key != "schema"}
    return checked(Ratings, content, str(path))


class RatedTask(LoadedTask):
    """A task judged by people's ratings; everything except what counts as a failure is the task's own.

    Repairs and captions use only the automatic measure.

    Args:
        threshold: the badness above which a probe fails.
    """

    def __init__(self, task: LoadedTask, ratings: Ratings, threshold: float) -> None:
        self.task, self.ratings, self.threshold = task, ratings, threshold
        self.items, self.concepts = task.items, task.concepts
        # Reports and `faded tune` get everything besides probes from the task itself.
        for name in _OWN:
            setattr(self, name, getattr(task, name))

    @property
    def automatic_task(self) -> LoadedTask:
        return self.task

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """Discrepancies are badness; `automatic` contains the task's own."""
        own = self.task.probe(item_ids, cells, repeats)
        badness = self.ratings.badness(own.discrepancy)
        if own.valid is not None:  # the model cannot be blamed for invalid probes, whatever it answered
            badness = np.where(own.valid, badness, np.minimum(badness, np.float32(self.threshold)))
        return ProbeBatch(badness, badness > self.threshold, own.outputs, own.valid, own)

    def again(self) -> "RatedTask | None":
        other = self.task.again()
        return None if other is None else RatedTask(other, self.ratings, self.threshold)


_OWN = (
    *("embed", "exhibit", "clean_quality", "notes", "false_alarms", "measure", "baselines", "tallies", "sheets"),
    *("logits", "repair", "attributes", "attacked"),
)


def rated(task: LoadedTask, name: str, audit: AuditConfig) -> LoadedTask:
    """Wrap the task in people's ratings if the audit has `discrepancy.ratings`, otherwise return the task itself.

    Raises a UsageError as `read_ratings` does.
    """
    if audit.ratings is None:
        return task
    ratings = read_ratings(name, audit)
    return RatedTask(task, ratings, ratings.threshold(audit.ratings))
