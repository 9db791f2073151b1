"""Try a classifier on clean pictures: its accuracy by class, and whether its outputs have the order of the classes."""

import shlex
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from stages.core.errors import first_of
from stages.tasks.classification import ImageClassification
from stages.tasks.classification.config import PrepareConfig
from stages.tasks.classification.data import DATA_LOADERS
from stages.tasks.classification.init.models import RecognisedClassifier
from stages.tasks.classification.init.pictures import LabelledPictures
from stages.tasks.classification.loaders import MODEL_LOADERS
from stages.tasks.classification.pictures import choose_items
from stages.tasks.contract import TaskContext
from stages.tasks.init import Seen, Trial
from stages.tasks.labels import ClassOrder
from stages.tasks.sources import ItemCounts, parse_source

MOST_OF_A_SERVICE = 200  # pictures of a trial; a service may charge for them
_OF_EACH_CLASS = 20  # number of pictures, enough to determine its output if most of them agree
_LEAST, _MOST = 100, 500  # total pictures of a trial
_ROWS = 20  # number of classes in a table
_HARDLY = 1.25  # times the accuracy of guessing
_GOOD = 0.5  # accuracy in the most likely order from which size and normalisation are hardly wrong
_CHECKED = "the labels, the size (--size) and the normalisation (--normalise imagenet, half or none)"


class Order(ClassOrder):
    """Clean pictures by the class they show and the output the model gives, and what people are told of it."""

    @property
    def unseen(self) -> list[str]:
        """Classes without pictures whose output is assigned to another class, so that their output is unknown."""
        return [name for i, name in enumerate(self.classes) if self.outputs[i] != i and not self.counts[i].any()]

    @property
    def at_chance(self) -> bool:
        """Whether accuracy in the named order is no better than guessing, or hardly, and not for certain."""
        rate, chance = self.named_rate, 1 / len(self.classes)
        return rate.value <= chance or (rate.low <= chance and rate.value < _HARDLY * chance)

    @property
    def likely(self) -> bool:
        """Whether a person has to look: another order is sure, or the named one is hardly better than guessing."""
        return self.sure or self.at_chance

    @property
    def statement(self) -> str:
        """The likely order and its certainty, in plain words."""
        now, then = self.named_rate, self.proposed_rate
        told = (
            f"with the classes in the order named, {now.value:.0%} of {now.n} unchanged pictures are right"
            f" ({now.low:.0%} to {now.high:.0%}); in the most likely order {then.value:.0%} would be"
        )
        if not self.moved:
            return (
                f"{now.value:.0%} of {now.n} unchanged pictures are right ({now.low:.0%} to {now.high:.0%}), hardly"
                f" more than by guessing, and no other order of the classes is better: check {_CHECKED}"
            )
        if self.at_chance and then.value < _GOOD:
            told += f", hardly more than by guessing. First check {_CHECKED}"
        if self.sure:
            (given, other), closest = min((self._margin(i), i) for i in self.moved)
            told += f". That is sure: the closest call is {self.classes[closest]!r}, {given} pictures against {other}"
            belong = ", ".join(map(repr, self.unseen))
            return told + (
                f". Nothing tells where {belong} belong: the data have no pictures of them" if belong else ""
            )
        names = first_of([repr(self.classes[i]) for i in self.doubtful], 5)
        return f"{told}. That is not sure: there are too few pictures of {names}, or they are mistaken for several"

    @property
    def advice(self) -> str:
        if not self.moved:
            return "Use --no-reorder to audit it anyway"
        take = "--reorder" if any("," in name for name in self.proposed) else ""
        take = take or f"--classes {shlex.quote(','.join(self.proposed))}"
        return f"Say {take}, or --no-reorder to keep the classes as they are named"

    def _margin(self, i: int) -> tuple[int, int]:
        """Return the number of pictures of class i for its proposed output, and for the runner-up."""
        given = int(self.counts[i, self.outputs[i]])
        return given, int(np.delete(self.counts[i], self.outputs[i]).max())


def try_classifier(context: TaskContext, seen: Seen) -> Trial:
    """See Init.trial: whether the order of the classes is that of the model's outputs."""
    data = LabelledPictures.of(seen.data)
    available = data.pools.get("discover") if data.pools else data.items
    order = order_of(context, RecognisedClassifier.of(seen.model).n_classes or len(data.labels), available)
    worst, more = _by_class(order)
    rate = order.named_rate
    told = [f"clean accuracy: {rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%}) of {rate.n:,} pictures"]
    trial = Trial("Unchanged pictures, by class", worst, [*more, *told])
    if order.likely:
        trial = replace(trial, doubt=order.statement, option="reorder", advice=order.advice)
    if order.likely and order.moved:
        names, question = order.proposed, "Take the classes in that order"
        answers = {"classes": ",".join(names)}
        trial = replace(trial, question=question, likely=order.sure, model={"classes": names}, answers=answers)
    return trial


def _by_class(order: Order) -> tuple[list[Sequence[str]], list[str]]:
    """Return how often unchanged pictures of each class are right, and what they are mistaken for; the worst first."""
    rows: list[Sequence[str]] = [("class", "pictures", "right", "most are mistaken for")]
    n, right = order.counts.sum(axis=1), order.counts.diagonal()
    seen = [int(i) for i in np.argsort(right / np.maximum(n, 1), kind="stable") if n[i]]
    for i in seen[:_ROWS]:
        most = int(order.counts[i].argmax())
        taken = "" if most == i else f"{order.classes[most]} ({order.counts[i, most]:,})"
        rows.append((order.classes[i], f"{n[i]:,}", f"{right[i] / n[i]:.0%}", taken))
    more = len(seen) - _ROWS
    return rows, [f"and {more:,} more classes, of which more is right"] if more > 0 else []


def order_of(context: TaskContext, classes: int, available: int | None) -> Order:
    """Query a classifier on clean pictures.

    Raises a FadedError if the model or the data cannot be prepared.

    Args:
        context: the audit's, in a temporary workspace.
        classes: approximate number of its classes.
        available: number of pictures available to search; None if unknown.
    """
    torch.set_num_threads(context.compute.threads)
    context = replace(context, compute=replace(context.compute, backend="eager"))  # others start too slowly for this
    config = PrepareConfig.model_validate(dict(context.config))
    most = MOST_OF_A_SERVICE if "endpoint" in config.model else _MOST
    wanted = min(available or config.items.discover, most, max(_LEAST, _OF_EACH_CLASS * classes))
    pool = parse_source(config.data, DATA_LOADERS, "prepare.data").load(context.inputs)
    source = parse_source(config.model, MODEL_LOADERS, "prepare.model")
    model = source.build(context.inputs, pool, context.seed, context.compute.device)
    form = model.form
    items = choose_items(pool, ItemCounts(discover=wanted), form.classes, context.seed, form.shape, form.view)
    task = ImageClassification(context, items, model, "")
    rows = np.arange(len(items))
    parts = np.array_split(rows, -(-len(rows) // context.compute.batch_size))
    with torch.inference_mode(), task.backend.threads():
        answers = [task.backend(task.clean(part)).argmax(1).numpy() for part in parts]
    counts = np.zeros((len(form.classes), len(form.classes)), dtype=np.int64)
    np.add.at(counts, (items["target"].to_numpy(), np.concatenate(answers)), 1)
    return Order(form.classes, counts)
