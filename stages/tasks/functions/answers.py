"""Answers of a function to a batch, and how far they are from what people expect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stages.errors import UsageError

SCALE = 5.0  # margin of logits at which the discrepancy begins to saturate, as in image classification
LONG = 4  # an answer with more words is a text, in which a single different word is not a failure
LONGEST = 500  # characters of an answer that are stored
THRESHOLDS = {"labels": 0.0, "scores": 0.0, "probabilities": 0.0, "texts": 0.5}
"""Threshold of a failure by kind of answers."""

Measure = Callable[[Any, str], float]
"""The user's own function (answer, expected) -> discrepancy."""


def ask(model: Callable[..., Any], batch: Any) -> Any:
    """Return the model's answers to a batch, as a numpy array or a list of texts.

    A torch module is run on its own device, in evaluation mode and without gradients.

    Raises:
        UsageError: if there is not one answer per item, or the answers cannot be judged.
    """
    answers = _of_module(model, batch) if hasattr(model, "parameters") else model(batch)
    answers = getattr(answers, "logits", answers)  # models of transformers
    if hasattr(answers, "detach"):
        answers = answers.detach().float().cpu().numpy() if answers.is_floating_point() else answers.cpu().numpy()
    answers = np.asarray(answers)
    if not answers.ndim or len(answers) != len(batch):
        raise UsageError(
            f"the model was given {len(batch):,} items and answered with shape {answers.shape}, expected one answer"
            f" each: labels or texts ({len(batch)},), or scores ({len(batch)}, classes)"
        )
    return answers


def _of_module(model: Any, batch: Any) -> Any:
    import torch

    weights = next(iter(model.parameters()), None)
    given = batch
    if not isinstance(batch, list):
        given = torch.as_tensor(np.asarray(batch), device=None if weights is None else weights.device)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model(given)
    finally:
        model.train(training)


def kind_of(answers: np.ndarray) -> str:
    """Return whether answers are labels, scores, probabilities or texts.

    Raises:
        UsageError: if they are none of these.
    """
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


def spelled(answer: Any) -> str:
    """Convert a label or other answer to text for people and tables: 3.0 is the class 3."""
    plain = answer.item() if isinstance(answer, np.generic) else answer
    return str(int(plain) if isinstance(plain, float) and plain.is_integer() else plain)[:LONGEST]


class Judge:
    """Computes how far answers are from what is expected, and formats them.

    Args:
        kind: kind of the answers, see `kind_of`; "own" for a measure of the user.
        classes: names of scores, in the order of their columns.
        measure: the user's own measure.
    """

    def __init__(self, kind: str, classes: Sequence[str] = (), measure: Measure | None = None) -> None:
        self.kind, self.classes, self.measure = kind, list(classes), measure

    def __call__(self, answers: np.ndarray, expected: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Return (n,) float32 discrepancies, and n answers for people."""
        if self.kind in ("scores", "probabilities"):
            return self._margins(answers, expected)
        if self.measure is not None:
            found = [float(self.measure(answer, label)) for answer, label in zip(answers, expected, strict=True)]
        elif self.kind == "texts":
            found = [1 - overlap(str(answer), label) for answer, label in zip(answers, expected, strict=True)]
        else:
            found = [-1.0 if spelled(a) == label else 1.0 for a, label in zip(answers, expected, strict=True)]
        return np.array(found, dtype=np.float32), [spelled(answer) for answer in answers]

    def _margins(self, answers: np.ndarray, expected: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        logits = answers.astype(np.float64)
        if self.kind == "probabilities":
            logits = np.log(np.clip(logits, 1e-6, None))
        rows, true = np.arange(len(logits)), np.array([self.classes.index(label) for label in expected], dtype=int)
        others = logits.copy()
        others[rows, true] = -np.inf
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        best = logits.argmax(1)
        outputs = [f"{self.classes[k]} ({p:.0%})" for k, p in zip(best, shares[rows, best], strict=True)]
        return np.tanh((others.max(1) - logits[rows, true]) / SCALE).astype(np.float32), outputs


def own_labels(answers: np.ndarray, kind: str, classes: Sequence[str]) -> list[str]:
    """Return the model's answers to unchanged items as labels, if people have not said what they expect."""
    if kind in ("scores", "probabilities"):
        return [classes[k] for k in answers.argmax(1)]
    return [str(answer) if kind == "texts" else spelled(answer) for answer in answers]


def overlap(one: str, other: str) -> float:
    """Return the similarity of two texts: the F1 of the words they share, 1 if they have the same words."""
    a, b = Counter(one.lower().split()), Counter(other.lower().split())
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0


def classes_of(answers: np.ndarray, kind: str, given: Sequence[Any] | None) -> list[str]:
    """Return names of the columns of scores: those given, else their numbers; empty for other kinds of answers.

    Raises:
        UsageError: if those given do not fit.
    """
    if kind not in ("scores", "probabilities"):
        if given is not None:
            raise UsageError(f"classes: the model answers with {kind}, only columns of scores have names")
        return []
    names = [spelled(name) for name in (range(answers.shape[1]) if given is None else given)]
    if len(names) != answers.shape[1] or len(set(names)) < len(names):
        raise UsageError(f"classes: found {', '.join(names)}, expected {answers.shape[1]} different names")
    return names


def labels_of(expected: Sequence[Any], n: int, classes: Sequence[str]) -> list[str]:
    """Convert what people expect to labels for tables.

    Raises:
        UsageError: if there is not one per item, or one is not among the classes.
    """
    labels = [label if isinstance(label, str) else spelled(label) for label in expected]
    if len(labels) != n:
        raise UsageError(f"expected: found {len(labels):,} answers for {n:,} items")
    if classes and (unknown := sorted(set(labels) - set(classes))):
        raise UsageError(
            f"expected: the model scores no class {', '.join(unknown[:5])}, its classes are {', '.join(classes[:10])}:"
            " classes=[...] names the columns of its scores"
        )
    return labels
