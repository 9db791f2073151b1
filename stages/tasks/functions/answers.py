"""Answers of a function to a batch, and how far they are from what people expect.

Also what the answers to unchanged items say against the model, the expected answers or the number of items.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.core.errors import UsageError
from stages.core.intervals import Rate, wilson
from stages.tasks.labels import ClassOrder, spelled

SCALE = 5.0  # margin of logits at which the discrepancy begins to saturate, as in image classification
LONG = 4  # an answer with more words is a text, in which a single different word is not a failure
THRESHOLDS = {"labels": 0.0, "scores": 0.0, "probabilities": 0.0, "texts": 0.5}
"""Threshold of a failure by kind of answers."""

Measure = Callable[[Any, str], float]
"""The user's own function (answer, expected) -> discrepancy."""


def call_model(model: Callable[..., Any], batch: Any) -> Any:
    """Return the model's answers to a batch, as a numpy array whose first axis is the batch; see `read` for dicts.

    A torch module is run on its own device, in evaluation mode and without gradients. Raises a UsageError if there is
    not one answer per item, or a torch module does not take the batch.
    """
    answers = _of_module(model, batch) if hasattr(model, "parameters") else model(batch)
    answers = getattr(answers, "logits", answers)  # models of transformers
    if hasattr(answers, "detach"):
        answers = answers.detach().float().cpu().numpy() if answers.is_floating_point() else answers.cpu().numpy()
    if isinstance(answers, list | tuple) and any(_scores_of(answer) for answer in answers):
        answers = np.fromiter(answers, dtype=object, count=len(answers))
    answers = np.asarray(answers)
    if not answers.ndim or len(answers) != len(batch):
        raise UsageError(
            f"the model was given {len(batch):,} items and answered with shape {answers.shape}, expected one answer"
            f" each: labels or texts ({len(batch)},), or scores ({len(batch)}, classes)"
        )
    return answers


def ask_all(
    model: Callable[..., Any], batch_of: Callable[[np.ndarray], Any], rows: np.ndarray, batch_size: int
) -> np.ndarray:
    """Return the model's answers to rows (n,) of the items, in batches that a function makes of rows."""
    batches = np.array_split(rows, -(-len(rows) // batch_size))
    return np.concatenate([call_model(model, batch_of(some)) for some in batches])


def _of_module(model: Any, batch: Any) -> Any:
    import torch

    weights = next(iter(model.parameters()), None)
    given = batch
    if not isinstance(batch, list):
        given = torch.as_tensor(np.array(batch), device=None if weights is None else weights.device)
        if given.is_floating_point() and weights is not None:
            given = given.to(weights.dtype)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model(given)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(batch, list):
            raise
        raise UsageError(
            f"the model does not take a batch of shape {tuple(given.shape)} and {given.dtype}{_channels(model, given)}:"
            f" {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        ) from error
    finally:
        model.train(training)


def _channels(model: Any, given: Any) -> str:
    """Return what a network of pictures expects, if the batch has another number of channels; else nothing."""
    import torch

    first = next((layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)), None)
    if first is None or (given.ndim == 4 and given.shape[1] == first.in_channels):
        return ""
    return (
        f"; its first convolution has {first.in_channels} input channel(s), expected items"
        f" (n, {first.in_channels}, h, w)"
    )


def read(answers: np.ndarray) -> np.ndarray | pd.DataFrame:
    """Read what pipelines of transformers return, {"label", "score"} or a list of them for each item.

    Raises a UsageError if they are dicts of another kind.

    Returns:
        Scores by label, (n, labels), NaN where an item has none; texts (n,) for {"generated_text"} and the like; other
        answers as they are.
    """
    if answers.ndim != 1 or not any(_scores_of(answer) for answer in answers):
        return answers
    rows = [_scores_of(answer) for answer in answers]
    keys = set().union(*(scored for row in rows for scored in row))
    if keys == {"label", "score"}:
        table = pd.DataFrame([{str(one.get("label")): one.get("score") for one in row} for row in rows], dtype=float)
        return table[sorted(table)]
    texts = {key for key in keys if key.endswith("_text")}
    if len(texts) == 1 and all(row and isinstance(row[0].get(*texts), str) for row in rows):
        return np.array([row[0][next(iter(texts))] for row in rows], dtype=object)
    raise UsageError(
        f"the model answers dicts with {', '.join(map(repr, sorted(map(str, keys))))}, expected 'label' and 'score'"
        " alone, or a label or scores themselves; of another kind of answer say how wrong it is:"
        " discrepancy=lambda answer, expected: ..."
    )


def _scores_of(answer: Any) -> list[Mapping[str, Any]]:
    """Return the dicts of one answer: itself, or those in its list; none if it is of another kind."""
    dicts = answer if isinstance(answer, list) else [answer]
    return dicts if dicts and all(isinstance(one, Mapping) for one in dicts) else []


def labels_in(answers: np.ndarray | pd.DataFrame) -> list[str]:
    """Return answers as text: the label with the highest score if they are scores by label."""
    if not isinstance(answers, pd.DataFrame):
        return [spelled(answer) for answer in answers]
    best = answers.fillna(-np.inf).to_numpy().argmax(1)
    unknown = answers.isna().all(axis=1)
    return ["nan" if none else str(answers.columns[k]) for none, k in zip(unknown, best, strict=True)]


def answer_kind(answers: np.ndarray | pd.DataFrame) -> str:
    """Return whether answers are labels, scores, probabilities or texts.

    Scores by label are probabilities if every item has all of them and they sum to 1; else the highest is its label.
    Raises a UsageError if they are none of these.
    """
    if isinstance(answers, pd.DataFrame):
        whole = answers.shape[1] > 1 and np.allclose(answers.to_numpy().sum(1), 1, atol=1e-3)
        return "probabilities" if whole else "labels"
    if answers.ndim == 1 and answers.dtype.kind in "OU":
        return "texts" if any(len(str(answer).split()) > LONG for answer in answers) else "labels"
    if answers.ndim == 1 and answers.dtype.kind in "iub":
        return "labels"
    if answers.ndim == 2 and answers.shape[1] > 1 and answers.dtype.kind in "fiu":
        shares = (answers >= 0).all() and np.allclose(answers.sum(1), 1, atol=1e-3)
        return "probabilities" if shares else "scores"
    raise UsageError(
        f"the model answers with shape {answers.shape} of {answers.dtype}, expected labels or texts (n,), or scores or"
        " probabilities (n, classes) of at least two classes; of another kind of answer say how wrong it is:"
        " discrepancy=lambda answer, expected: ..."
    )


class AnswerScorer:
    """Computes how far answers are from what is expected, and formats them.

    Args:
        kind: kind of the answers, see `kind_of`; "own" for a measure of the user.
        classes: names of scores, in the order of their columns.
        measure: the user's own measure.
    """

    def __init__(self, kind: str, classes: Sequence[str] = (), measure: Measure | None = None) -> None:
        self.kind, self.classes, self.measure = kind, list(classes), measure

    def __call__(self, answers: np.ndarray, expected: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Return (n,) float32 discrepancies, and n answers for people.

        Scores that are not finite are the largest discrepancy, 1. Raises a UsageError if the user's own measure is not
        finite, or the number of scores is not that of the classes.
        """
        if self.measure is not None:
            found = [float(self.measure(answer, label)) for answer, label in zip(answers, expected, strict=True)]
            for answer, value in zip(answers, found, strict=True):
                if not np.isfinite(value):
                    raise UsageError(f"discrepancy: found {value} for the answer {spelled(answer)}, expected a number")
            return np.array(found, dtype=np.float32), [spelled(answer) for answer in answers]
        answers = read(answers)
        if self.kind in ("scores", "probabilities"):
            return self._margins(self.scores(answers), expected)
        said = labels_in(answers)
        if self.kind == "texts":
            found = [1 - overlap(str(answer), label) for answer, label in zip(answers, expected, strict=True)]
        else:
            found = [-1.0 if answer == label else 1.0 for answer, label in zip(said, expected, strict=True)]
        return np.array(found, dtype=np.float32), said

    def scores(self, answers: np.ndarray | pd.DataFrame) -> np.ndarray:
        """Return scores (n, classes) float64 in the order of the classes.

        Raises a UsageError if there is not one per class.
        """
        if isinstance(answers, pd.DataFrame):
            answers = answers.reindex(columns=self.classes).to_numpy()
        if answers.shape != (len(answers), len(self.classes)):
            raise UsageError(
                f"the model answers with shape {answers.shape}, expected {(len(answers), len(self.classes))}: a score"
                f" for each of {', '.join(self.classes[:10])}"
            )
        return answers.astype(np.float64)

    def _margins(self, scores: np.ndarray, expected: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        highest = scores.max(1)
        finite = np.isfinite(highest)  # not with NaN, after an overflow, or if every class is ruled out
        logits = np.where(finite[:, None], scores, 0.0)
        if self.kind == "probabilities":
            logits = np.log(np.clip(logits, 1e-6, None))
        rows, true = np.arange(len(logits)), np.array([self.classes.index(label) for label in expected], dtype=int)
        others = logits.copy()
        others[rows, true] = -np.inf
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        best = logits.argmax(1)
        outputs = [
            f"{self.classes[k]} ({p:.0%})" if known else f"{score:g}"
            for k, p, known, score in zip(best, shares[rows, best], finite, highest, strict=True)
        ]
        discrepancy = np.tanh((others.max(1) - logits[rows, true]) / SCALE)
        return np.where(finite, discrepancy, 1.0).astype(np.float32), outputs

    def labels(self, answers: np.ndarray) -> list[str]:
        """Return n answers as labels: that of the highest score, if there are scores."""
        if self.kind == "own":
            return [spelled(answer) for answer in answers]
        found = read(answers)
        if self.kind in ("scores", "probabilities"):
            return [self.classes[k] for k in self.scores(found).argmax(1)]
        return [str(answer) for answer in found] if self.kind == "texts" else labels_in(found)


def check_unchanged(found: np.ndarray | pd.DataFrame) -> None:
    """Refuse a model that has no answer to an unchanged item: NaN, None, or scores that are not finite.

    Raises a UsageError with the first such item, and what was found.
    """
    if isinstance(found, pd.DataFrame):
        none = found.isna().all(axis=1).to_numpy()
    elif found.ndim == 2 and found.dtype.kind == "f":
        none = ~np.isfinite(found.max(1))
    else:
        none = pd.isna(found) if found.ndim == 1 else np.zeros(len(found), dtype=bool)
    if none.any():
        first, more = int(none.argmax()), int(none.sum()) - 1
        raise UsageError(
            f"items[{first}]: the model answers {np.asarray(found)[first]} to this unchanged item"
            f"{f' (and the like to {more:,} more)' if more else ''}, expected a label, a text or finite scores"
        )


def overlap(one: str, other: str) -> float:
    """Return the similarity of two texts: the F1 of the words they share, 1 if they have the same words."""
    a, b = Counter(one.lower().split()), Counter(other.lower().split())
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0


def classes_of(answers: np.ndarray | pd.DataFrame, kind: str, given: Sequence[Any] | None) -> list[str]:
    """Return names of the columns of scores: those given, else the model's, else numbers; empty for other answers.

    Raises a UsageError if those given do not fit.
    """
    if kind not in ("scores", "probabilities"):
        if given is not None:
            raise UsageError(f"classes: the model answers with {kind}, only columns of scores have names")
        return []
    if isinstance(answers, pd.DataFrame):
        if given is not None and {*map(spelled, given)} != {*answers}:
            raise UsageError(f"classes: the model names its classes itself, {', '.join(answers)}: leave classes out")
        return list(answers)
    names = [spelled(name) for name in (range(answers.shape[1]) if given is None else given)]
    if len(names) != answers.shape[1] or len(set(names)) < len(names):
        raise UsageError(f"classes: found {', '.join(names)}, expected {answers.shape[1]} different names")
    return names


def labels_of(expected: Sequence[Any], n: int, classes: Sequence[str]) -> list[str]:
    """Convert what people expect to labels for tables; `expected` may be a tensor.

    Raises a UsageError if there is not one per item, or one is unknown, or one is not among the classes.
    """
    if hasattr(expected, "detach"):
        expected = expected.detach().cpu().numpy()
    if len(shape := getattr(expected, "shape", (n,))) != 1:
        raise UsageError(f"expected: found shape {tuple(shape)}, expected one answer for each item, ({n},)")
    if (unknown := pd.isna(pd.Series(list(expected), dtype=object))).any():
        raise UsageError(f"expected[{unknown.argmax()}] is missing: expected an answer for each item")
    labels = [label if isinstance(label, str) else spelled(label) for label in expected]
    if len(labels) != n:
        raise UsageError(f"expected: found {len(labels):,} answers for {n:,} items")
    if classes and (strange := sorted(set(labels) - set(classes))):
        raise UsageError(
            f"expected: the model scores no class {', '.join(strange[:5])}, its classes are {', '.join(classes[:10])}:"
            " classes=[...] names the columns of its scores"
        )
    return labels


FEW = 30  # items; with fewer, people are told how wide an interval becomes
ASKED_TWICE = 8  # number of items
_SAME = 0.01  # difference of two discrepancies, in [-1, 1], which rounding on a GPU does not reach
_MOST = 2000  # classes; of more, each has too few items, and the best order takes minutes
_NAMED = 12  # classes; an order of more is not written out
_MOVED = 3  # classes that are named as mistaken for others


def doubts(
    judge: AnswerScorer,
    threshold: float,
    answers: np.ndarray,
    labels: Sequence[str],
    ask: Callable[[np.ndarray], np.ndarray],
) -> list[str]:
    """Return sentences for people, empty if there is nothing to say.

    Args:
        threshold: discrepancies above it are failures.
        answers: to all n unchanged items.
        labels: n expected answers.
        ask: asks the model again about rows of the items, for a few of them twice.
    """
    found = (_few(len(labels)), _wrong(judge, threshold, answers, labels), _twice(judge, labels, ask))
    return [said for said in found if said]


def _few(n: int) -> str:
    if n >= FEW:
        return ""
    half = wilson(n // 2, n)
    return (
        f"{n} items are few: if {half.value:.0%} of them fail, the 95% interval is {half.low:.1%} to {half.high:.1%},"
        f" whatever the budget; {FEW} or more would be better."
    )


def _wrong(judge: AnswerScorer, threshold: float, answers: np.ndarray, labels: Sequence[str]) -> str:
    """Say whether unchanged items are answered by chance, or as if the classes had another order."""
    if judge.kind in ("own", "texts"):
        failed = wilson(int((judge(answers, labels)[0] > threshold).sum()), len(labels))
        return f"{_of_items(failed)} fail already." if failed.low > 0.5 else ""
    said = judge.labels(answers)
    classes = judge.classes or sorted({*labels, *said})
    if len(classes) > _MOST:
        return ""
    counts = pd.crosstab(pd.Categorical(labels, classes), pd.Categorical(said, classes), dropna=False)
    order = ClassOrder(classes, counts.to_numpy())
    right, chance = order.named_rate, 1 / len(classes)
    if order.sure and order.proposed_rate.low > counts.sum(axis=1).max() / len(labels):  # better than any constant
        pairs = [(counts.iloc[i, order.outputs[i]], classes[i], classes[order.outputs[i]]) for i in order.moved]
        mistaken = ", ".join(f"{n:,} items of {one!r} as {other!r}" for n, one, other in pairs[:_MOVED])
        named = judge.classes and len(classes) <= _NAMED and not isinstance(read(answers), pd.DataFrame)
        other = f"with classes={order.proposed}" if named else "in another order of the classes"
        return (
            f"{_of_items(right)} are answered right; {other} {order.proposed_rate.value:.1%} would be. The model"
            f" answers {mistaken}."
        )
    if right.low <= chance and right.value < 1:
        return (
            f"{_of_items(right)} are answered right, which guessing among {len(classes)} classes could reach"
            f" too ({chance:.1%}): are the expected answers right, and the items as the model was trained on?"
        )
    return ""


def _twice(judge: AnswerScorer, labels: Sequence[str], ask: Callable[[np.ndarray], np.ndarray]) -> str:
    rows = np.unique(np.linspace(0, len(labels) - 1, ASKED_TWICE).astype(int))
    expected = [labels[row] for row in rows]
    one, other = ask(rows), ask(rows)
    different = np.abs(judge(one, expected)[0] - judge(other, expected)[0]) > _SAME
    if judge.kind != "own":
        different |= np.array(judge.labels(one)) != np.array(judge.labels(other))
    if not different.any():
        return ""
    return (
        f"The model answered {different.sum()} of {len(rows)} unchanged items differently when it was asked twice:"
        " failures are then partly chance, and other runs find other ones. Fix its seed, or switch dropout and sampling"
        " off."
    )


def _of_items(rate: Rate) -> str:
    return f"{rate.value:.1%} of {rate.n:,} unchanged items (95% interval {rate.low:.1%} to {rate.high:.1%})"
