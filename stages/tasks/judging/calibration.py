"""Calibration of a judge on labelled answers, which decides whether it may be used.

All intervals are 95% and resample items, because answers to one item are not independent evidence.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from stages.core.errors import UsageError
from stages.core.intervals import LEVEL, NO_RATE, RESAMPLES, SHARE, Rate, Resampler
from stages.params import Strict, validation_lines
from stages.tasks.judging.verdicts import JUDGE, AnswerToJudge, Judge, JudgeVerdict, Parts

# What a judge must achieve to be used (docs/judge.md gives the reasons).
LEAST_KAPPA = 0.4  # the lower end of its interval must be above
MOST_ABSTAINED = 0.2  # share of answers
MOST_BY_LENGTH = 0.2  # difference in acceptance between long and short answers of the same label
MOST_BY_PLACE = 0.2  # share of pairs in which the verdict follows the position
_SEED = 0  # of resampling
_NAMED = 3  # kinds of answers that a refusal names

About = Callable[[str], tuple[Parts, str] | None]
"""(id of an item) -> what an answer to it is about, and an answer to compare with; None if there is no such item."""


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer whose label is known.

    Args:
        item: the item it answers; intervals resample items.
        trial: the answer as the judge reads it.
        kind: how it was made, for people; "" if a person gave the label.
        by: who gave the label; "" if unknown.
    """

    item: str
    trial: AnswerToJudge
    acceptable: bool
    kind: str = ""
    by: str = ""


class _Line(Strict):
    item: str = Field(min_length=1)
    answer: str
    acceptable: bool
    by: str = ""
    baseline: str = ""


@dataclass(frozen=True)
class RaterAgreement:
    """How far two raters agree on the answers that both judged."""

    raters: tuple[str, ...]
    share: Rate
    kappa: Rate


@dataclass(frozen=True)
class JudgeCalibration:
    """How a judge does on labelled answers. All but `answers`, `abstains` and `by_place` are about answers it decided.

    Args:
        agrees: share of verdicts that match the label.
        kappa: Cohen's kappa of verdicts and labels: 0 is chance, 1 is full agreement.
        rejects_wrong: share of wrong answers that it rejects.
        accepts_right: share of right answers that it accepts.
        abstains: share of answers without a verdict.
        by_length: how much more often it accepts long answers than short ones, by their label; a long one has more
            words than the median of its label. NO_RATE if none is longer.
        by_place: share of pairs in which the verdict follows the position; NO_RATE if it does not judge pairs.
        itself: share of answers that get the same verdict when it is asked again; NO_RATE if its answers cannot vary.
        kinds: share of verdicts that match the label, by kind of answer.
        table: pairwise agreement of the judge and everyone who gave labels.
    """

    answers: int
    agrees: Rate
    kappa: Rate
    rejects_wrong: Rate
    accepts_right: Rate
    abstains: Rate
    by_length: Mapping[str, Rate]
    by_place: Rate = NO_RATE
    itself: Rate = NO_RATE
    kinds: Mapping[str, Rate] = field(default_factory=dict)
    table: Sequence[RaterAgreement] = ()

    def refusals(self) -> list[str]:
        """List why the judge must not decide, with numbers; empty if it may."""
        found = []
        if self.abstains.value > MOST_ABSTAINED:
            found.append(
                f"it abstains from {_percent(self.abstains)} of {self.answers} labelled answers (at most"
                f" {MOST_ABSTAINED:.0%} is allowed)"
            )
        if self.by_place.value > MOST_BY_PLACE:
            found.append(
                f"position: in {_percent(self.by_place)} of the pairs its verdict follows the position of the answers"
                f" (at most {MOST_BY_PLACE:.0%} is allowed)"
            )
        if self.agrees.n and not self.kappa.low > LEAST_KAPPA:
            found.append(
                f"it agrees too little with the labels: Cohen's kappa {_number(self.kappa)}, and the lower end must be"
                f" above {LEAST_KAPPA:g}; it rejects {_percent(self.rejects_wrong)} of the wrong answers and accepts"
                f" {_percent(self.accepts_right)} of the right ones{self._worst()}"
            )
        for label, rate in self.by_length.items():
            if abs(rate.value) > MOST_BY_LENGTH and not rate.low <= 0 <= rate.high:
                found.append(
                    f"length: it accepts long {label} answers more often than short ones by {_points(rate)} points (at"
                    f" most {100 * MOST_BY_LENGTH:.0f} either way are allowed)"
                )
        return found

    def _worst(self) -> str:
        worst = sorted((rate.value, kind) for kind, rate in self.kinds.items() if rate.value < 1)[:_NAMED]
        told = [f"{kind} ({(1 - value) * self.kinds[kind].n:.0f} of {self.kinds[kind].n})" for value, kind in worst]
        return f". Wrong verdicts on: {', '.join(told)}" if told else ""

    def sentences(self) -> list[str]:
        told = (
            f"Of {self.answers} labelled answers the judge abstains from {_percent(self.abstains)}. Its verdict matches"
            f" the label for {_percent(self.agrees)} (Cohen's kappa {_number(self.kappa)}). It rejects"
            f" {_percent(self.rejects_wrong)} of the wrong answers and accepts {_percent(self.accepts_right)} of the"
            " right ones."
        )
        lengths = [f"{_points(r)} points of {label} answers" for label, r in self.by_length.items() if r.n]
        found = (
            [told, f"It accepts long answers more often than short ones by {', '.join(lengths)}."]
            if lengths
            else [told]
        )
        if self.by_place.n:
            found.append(f"In {_percent(self.by_place)} of the pairs its verdict follows the position of the answers.")
        if self.itself.n:
            found.append(f"Asked again, it gives the same verdict for {_percent(self.itself)}.")
        if self.table:
            pairs = (f"{' and '.join(a.raters)} {_number(a.kappa)}, {_percent(a.share)} alike" for a in self.table)
            found.append(f"Agreement of the judge and of people, Cohen's kappa: {'; '.join(pairs)}.")
        return found

    def to_json(self) -> dict[str, Any]:
        return dict(_plain(asdict(self)))


def calibrate(judge: Judge, labelled: Sequence[LabelledAnswer], again: Judge | None = None) -> JudgeCalibration:
    """Calibrate a judge on labelled answers.

    Raises a UsageError when all have the same label.

    Args:
        again: the same judge, if its verdicts may vary; it is asked for all of them once more.
    """
    label = np.array([one.acceptable for one in labelled], dtype=bool)
    if label.all() or not label.any():
        raise UsageError(
            f"the judge cannot be calibrated on {len(labelled)} answers of which {label.sum()} are acceptable: both"
            " kinds are needed"
        )
    verdicts = judge.verdicts([one.trial for one in labelled])
    items = np.array([one.item for one in labelled])
    judged = np.array([verdict.acceptable is not None for verdict in verdicts], dtype=bool)
    said = np.array([bool(verdict.acceptable) for verdict in verdicts], dtype=bool)
    words = np.array([len(one.trial.answer.split()) for one in labelled])
    kinds = np.array([one.kind for one in labelled])

    def share(which: np.ndarray, of: np.ndarray) -> Rate:
        return _share(items, which, of)

    everything = np.ones(len(labelled), dtype=bool)
    by_place = np.array([verdict.by_place for verdict in verdicts], dtype=bool)
    repeated = verdicts if again is None else again.verdicts([one.trial for one in labelled])
    same = np.array([one.acceptable == other.acceptable for one, other in zip(verdicts, repeated, strict=True)])
    return JudgeCalibration(
        answers=len(labelled),
        agrees=share(said == label, judged),
        kappa=_kappa(items[judged], said[judged], label[judged]),
        rejects_wrong=share(~said, judged & ~label),
        accepts_right=share(said, judged & label),
        abstains=share(~judged, everything),
        by_length={
            name: _by_length(items[judged & of], said[judged & of], words[judged & of])
            for name, of in (("wrong", ~label), ("right", label))
        },
        by_place=share(by_place, everything) if judge.settings.pairwise else NO_RATE,
        itself=share(same, everything) if again is not None else NO_RATE,
        kinds={str(kind): share(said == label, judged & (kinds == kind)) for kind in np.unique(kinds) if kind},
        table=_table(labelled, verdicts),
    )


def read_labelled(path: Path, about: About, where: str) -> list[LabelledAnswer]:
    """Read answers that people labelled: {"item": ID, "answer": TEXT, "acceptable": true, "by": WHO} per line.

    Raises a UsageError when a line cannot be used, or there is none.

    Args:
        where: the key that names the file, for messages.
    """
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        at = f"{where}: {path}, line {number}"
        try:
            one = _Line.model_validate_json(line)
        except ValidationError as error:
            raise UsageError(f"{at}: {'; '.join(validation_lines(error, _Line))}") from None
        if (known := about(one.item)) is None:
            raise UsageError(f"{at}: prepare.data has no item {one.item!r}")
        trial = AnswerToJudge(known[0], one.answer, one.baseline or known[1])
        found.append(LabelledAnswer(one.item, trial, one.acceptable, by=one.by))
    if not found:
        raise UsageError(f"{where}: {path} holds no labelled answer")
    return found


# Numbers


def _share(items: np.ndarray, which: np.ndarray, of: np.ndarray) -> Rate:
    if not of.any():
        return NO_RATE
    sampler = Resampler(items[of], RESAMPLES, _SEED)
    return sampler.mean(which[of].astype(float), np.ones(int(of.sum())), SHARE)


def _kappa(items: np.ndarray, one: np.ndarray, other: np.ndarray) -> Rate:
    """Cohen's kappa of two raters (n,) bool (Cohen 1960); NO_RATE if both always give the same answer."""

    def statistic(agree: Any, first: Any, second: Any) -> Any:
        chance = first * second + (1 - first) * (1 - second)
        return (agree - chance) / (1 - chance)

    if not len(items) or (one.all() and other.all()) or not (one.any() or other.any()):
        return NO_RATE
    columns = np.stack([one == other, one, other]).astype(float)
    worst, best = np.array([[0, 0], [1, 0], [0, 1]]), np.array([[1, 1], [1, 0], [1, 0]])
    return _interval(items, columns, worst, best, statistic)


def _by_length(items: np.ndarray, said: np.ndarray, words: np.ndarray) -> Rate:
    """How much more often long answers are accepted than short ones; all have the same label."""

    def statistic(long_accepted: Any, long: Any, short_accepted: Any, short: Any) -> Any:
        return long_accepted / long - short_accepted / short

    long = words > np.median(words) if len(words) else np.zeros(0, dtype=bool)
    if long.all() or not long.any():
        return NO_RATE
    columns = np.stack([said & long, long, said & ~long, ~long]).astype(float)
    worst, best = np.array([[0, 0], [1, 0], [0, 1], [0, 1]]), np.array([[1, 0], [1, 0], [0, 0], [0, 1]])
    return _interval(items, columns, worst, best, statistic)


def _interval(
    items: np.ndarray, columns: np.ndarray, worst: np.ndarray, best: np.ndarray, statistic: Callable[..., Any]
) -> Rate:
    """A statistic of means, with its interval.

    As in `Resampler.mean`, each end counts one more item, with the worst or the best possible answers: if all answers
    agree, a plain bootstrap would give an interval of width 0.

    Args:
        items: (n,) items of the answers.
        columns: (k, n) values whose means the statistic takes.
        worst: (k, 2) answers of the added item for the lower end.
        best: the same for the upper end.
        statistic: function of k means, for many resamples at once; from -1 to 1.
    """
    times = max(1, round(len(items) / len(np.unique(items)) / 2))  # the added item has as many answers as a typical one
    value, ends = float(statistic(*columns.mean(axis=1))), []
    for added, tail in ((worst, (1 - LEVEL) / 2), (best, (1 + LEVEL) / 2)):
        sampler = Resampler(np.append(items, ["\0"] * 2 * times), RESAMPLES, _SEED)
        samples = statistic(*(sampler.samples(row) for row in np.hstack([columns, *[added] * times])))
        ends.append(float(np.quantile(samples, tail)))
    return Rate(value, max(min(ends[0], value), -1.0), min(max(ends[1], value), 1.0), len(items))


def _table(labelled: Sequence[LabelledAnswer], verdicts: Sequence[JudgeVerdict]) -> list[RaterAgreement]:
    """Pairwise agreement of the judge and those who gave labels, on the answers that both judged."""
    raters: dict[str, dict[AnswerToJudge, bool]] = {JUDGE: {}}
    item_of = {one.trial: one.item for one in labelled}
    for one, verdict in zip(labelled, verdicts, strict=True):
        if one.by:
            raters.setdefault(one.by, {})[one.trial] = one.acceptable
            if verdict.acceptable is not None:
                raters[JUDGE][one.trial] = verdict.acceptable
    return list(_pairs(raters, item_of)) if len(raters) > 1 else []


def _pairs(
    raters: Mapping[str, Mapping[AnswerToJudge, bool]], item_of: Mapping[AnswerToJudge, str]
) -> Iterator[RaterAgreement]:
    for (a, of_a), (b, of_b) in combinations(raters.items(), 2):
        both = [trial for trial in of_a if trial in of_b]
        one, other = (np.array([of[trial] for trial in both], dtype=bool) for of in (of_a, of_b))
        items = np.array([item_of[trial] for trial in both], dtype=str)
        yield RaterAgreement(
            (a, b), _share(items, one == other, np.ones(len(both), dtype=bool)), _kappa(items, one, other)
        )


# Words


def _percent(rate: Rate) -> str:
    return "an unknown share" if not rate.n else f"{rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%})"


def _number(rate: Rate) -> str:
    return "unknown" if not rate.n else f"{rate.value:.2f} ({rate.low:.2f} to {rate.high:.2f})"


def _points(rate: Rate) -> str:
    return f"{100 * rate.value:+.0f} ({100 * rate.low:+.0f} to {100 * rate.high:+.0f})"


def _plain(value: Any) -> Any:
    if isinstance(value, Rate):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
