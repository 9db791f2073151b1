"""A task whose failures are what people would call so, by a map from its automatic discrepancy to their ratings.

The map knows nothing but the automatic discrepancy, and never falls: of two probes both measures find the same one
worse. What people change is where failing begins, and how far apart answers are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from stages.errors import UsageError
from stages.params import AuditConfig, RatingsConfig, Strict, validation_lines
from stages.provenance import scale_of
from stages.records import Agreement
from stages.tasks.base import LoadedTask
from stages.tasks.contract import ProbeBatch

SCHEMA = 1
BEST, WORST = 10, 1  # of quality; of bias it is the other way round
MOST_UNFOUNDED = 0.05  # share of uniform probes whose verdict no rating speaks for
Target = Literal["quality", "bias"]


class Interval(Strict):
    """A mean in rating points with its 95% interval over items."""

    value: float
    low: float
    high: float


class Ratings(Strict):
    """What was learnt from people's scores of examples: data/<audit>/ratings.json.

    Args:
        target: what they scored.
        scale: of the discrepancies, see `stages.provenance.scale_of`.
        model: the kind of map that predicted scores best on items it had not seen.
        x: knots of the map, automatic discrepancies; between them it is linear, beyond them flat.
        y: badness there, 0 (the best score) to 1 (the worst).
        ratings: how many scores.
        items: of how many items.
        reviewers: how many by whom.
        decisions: SHA-256 of the decision files they stand in, by name.
        error, constant, gain: how far off the map is on items it has not seen, see `stages.ratings.fit.Fit`.
        agreement: of the reviewers, see `stages.decisions.agreement`; None with one alone.
        points: what was learnt from, (automatic discrepancy, score) each.
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
        """What people would make of automatic discrepancies (n,): 0 the best score, 1 the worst.

        In single precision, as tables keep it: a rating at the bound is told alike wherever one asks.
        """
        return np.interp(np.asarray(discrepancy, dtype=float), self.x, self.y).astype(np.float32)

    def score(self, badness: np.ndarray) -> np.ndarray:
        """The same as people say it: 1 to 10."""
        return scores(badness, self.target)

    def threshold(self, config: RatingsConfig) -> float:
        """The badness above which a probe fails."""
        bound = config.fails_below if self.target == "quality" else config.fails_above
        assert bound is not None
        return float(np.float32(badness_of(np.array(bound), self.target)))

    def outside(self, discrepancy: np.ndarray) -> np.ndarray:
        """Which (n,) lie outside of what was rated."""
        return (discrepancy < self.x[0]) | (discrepancy > self.x[-1])

    def unfounded(self, discrepancy: np.ndarray, failed: np.ndarray) -> np.ndarray:
        """Which verdicts (n,) by this map no rating speaks for.

        Below what was rated, passing follows from the lowest rated discrepancy that passes, as the map never falls;
        failing follows from nothing. Above it is the other way round.
        """
        return np.where(failed, discrepancy < self.x[0], discrepancy > self.x[-1])


def badness_of(score: np.ndarray, target: Target) -> np.ndarray:
    """Scores, 1 to 10, as badness: 0 the best, 1 the worst."""
    return (BEST - score) / (BEST - WORST) if target == "quality" else (score - WORST) / (BEST - WORST)


def scores(badness: np.ndarray, target: Target) -> np.ndarray:
    """The inverse of `badness_of`."""
    return BEST - (BEST - WORST) * badness if target == "quality" else WORST + (BEST - WORST) * badness


def read_ratings(name: str, audit: AuditConfig) -> Ratings:
    """Read and check the file that an audit's `discrepancy.ratings` names.

    Raises:
        UsageError: when it is missing, another one, of another scale, or of a target that the bound is not for.
    """
    config = audit.ratings
    assert config is not None
    where, path = f"audits.{name}.discrepancy.ratings", Path(config.file)
    again = f"`faded ratings {name} --write` writes both"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{where}.file: {path} cannot be read ({error.strerror}): restore it from git") from None
    if (found := hashlib.sha256(data).hexdigest()) != config.sha256:
        raise UsageError(f"{where}: {path} has sha256 {found[:12]}…, params.yaml names {config.sha256[:12]}…; {again}")
    ratings = parse_ratings(data, path)
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

    Raises:
        UsageError: when they are none.
    """
    try:
        raw = dict(json.loads(data))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from None
    if (schema := raw.pop("schema", None)) != SCHEMA:
        raise UsageError(f"{path} has schema {schema}, this version reads {SCHEMA}")
    try:
        return Ratings.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"{path}: " + "; ".join(validation_lines(error, Ratings))) from None


class RatedTask(LoadedTask):
    """A task as people would judge it; all but what counts as failure is the task's own.

    Repairs and captions know the automatic measure only.

    Args:
        task: the task.
        ratings: what people's scores have taught.
        threshold: the badness above which a probe fails.
    """

    def __init__(self, task: LoadedTask, ratings: Ratings, threshold: float) -> None:
        self.task, self.ratings, self.threshold = task, ratings, threshold
        self.items, self.concepts = task.items, task.concepts
        # What reports and `faded tune` ask of a task beside probes is answered by its own.
        for name in _OWN:
            setattr(self, name, getattr(task, name))

    @property
    def automatic_task(self) -> LoadedTask:
        """The task itself."""
        return self.task

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """See Task: discrepancies are badness, the task's own are in `automatic`."""
        own = self.task.probe(item_ids, cells, repeats)
        badness = self.ratings.badness(own.discrepancy)
        if own.valid is not None:  # the model cannot be blamed for those, whatever came out
            badness = np.where(own.valid, badness, np.minimum(badness, np.float32(self.threshold)))
        return ProbeBatch(badness, badness > self.threshold, own.outputs, own.valid, own)

    def again(self) -> RatedTask | None:
        """See Task."""
        other = self.task.again()
        return None if other is None else RatedTask(other, self.ratings, self.threshold)


_OWN = (
    *("embed", "exhibit", "clean_quality", "notes", "false_alarms", "measure", "baselines", "tallies", "sheets"),
    *("logits", "repair", "attributes", "attacked"),
)


def rated(task: LoadedTask, name: str, audit: AuditConfig) -> LoadedTask:
    """The task as people would judge it where the audit's `discrepancy.ratings` says so, else the task itself.

    Raises:
        UsageError: see `read_ratings`.
    """
    if audit.ratings is None:
        return task
    ratings = read_ratings(name, audit)
    return RatedTask(task, ratings, ratings.threshold(audit.ratings))
