"""Probe a task with changed texts: as additional items, or through an additional concept."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts.texts import TextConcept
from stages.concepts.texts.document import Token
from stages.concepts.texts.lexicon import missing_libraries
from stages.core.errors import UsageError
from stages.core.files import content_hash, read_table
from stages.core.ledger import Key, Ledger
from stages.explorers.prober import Prober
from stages.mining import facts
from stages.mining.mine import Answered, MinableTexts, WordProbe
from stages.tasks.base import LoadedTask, Task
from stages.tasks.choosing import ITEMS, MinedTexts, part_of, with_items
from stages.tasks.contract import TaskContext

_AS_IS = "as it is"
_WORDING = "wording"  # the concept that replaces words
_MOST_LEVELS = 12  # maximum number of levels added to a concept


class TextProber:
    """A task whose items can be probed with other words.

    Args:
        form: what the kind of task says about its texts.
        prepared: the folder that `prepare` wrote.
        folder: keeps answers, so that an interrupted run can resume.
        tell: called with (unique probes asked, their purpose).
    """

    def __init__(
        self,
        form: MinedTexts,
        task: type[Task],
        context: TaskContext,
        prepared: Path,
        folder: Path,
        tell: Callable[[int, str], None],
    ) -> None:
        self.form, self.task, self.prepared, self.folder, self.tell = form, task, prepared, folder, tell
        self.items = read_table(prepared / ITEMS)
        self.own = self.items[self.items["split"] == "discover"].reset_index(drop=True)
        self.context = self._with_levels(context)
        loaded, ids = task.load(self.context, prepared), self.own["id"].tolist()
        self.concepts = loaded.concepts
        self.originals = form.given(loaded, ids, np.tile(self.concepts.start, (len(ids), 1)))
        self.spent = 0

    def _with_levels(self, context: TaskContext) -> TaskContext:
        """Return the configuration with more levels to mine, if the kind allows any that the task accepts."""
        if not self.form.may_add_levels(self.task.load(context, self.prepared)):
            return context
        for name, own in dict(context.concepts).items():
            others = [other for level in own if level for other in facts.other_levels(str(level))]
            new = [other for other in dict.fromkeys(others) if other not in own][:_MOST_LEVELS]
            wider = replace(context, concepts={**context.concepts, name: [*own, *new]})
            context = context if self.task.check(wider) else wider
        return context

    def texts(self) -> MinableTexts:
        texts = self.own[self.form.column].tolist()
        groups = self.own["group"] if "group" in self.own else self.own["id"]
        return MinableTexts(
            ids=self.own["id"].tolist(),
            texts=texts,
            given=self.originals,
            expected=self.form.expected(self.own),
            groups=groups.astype(str).tolist(),
            options=list(map(facts.alternatives if self.form.templates else facts.synonyms_by_word, texts)),
            facts=facts.facts,
        )

    def __call__(self, asks: Sequence[WordProbe]) -> list[Answered]:
        """Run n probes and return their results."""
        worded = self._worded_by_concept if self.form.before_concepts else self._worded_items
        task, ids, cells = worded(asks)
        key = content_hash([], sorted({ask.words for ask in asks}), self.context.concepts)
        row = {item: n for n, item in enumerate(sorted(set(ids)))}
        with closing(Ledger(self.folder / f"{key}.jsonl")) as ledger:
            prober = Prober(
                task,
                list(row),
                len(asks),
                ledger,
                self.context.compute,
                lambda n, _: self.tell(self.spent + n, "mine"),
            )
            prober.ask(np.array([row[item] for item in ids]), cells)
        self.spent += prober.spent
        keys = map(Key, ids, task.concepts.flat(cells).tolist())
        given = self.form.given(task, ids, cells)
        return [Answered(ledger[key].failed, text, ledger[key].output) for key, text in zip(keys, given, strict=True)]

    def _worded_items(self, asks: Sequence[WordProbe]) -> tuple[LoadedTask, list[str], np.ndarray]:
        """Return a task that has the words of n probes, with their n item ids and cells (n, concepts)."""
        added: dict[str, Mapping[str, Any]] = {}
        ids, column = [], self.form.column
        for ask in asks:
            item = self.own.iloc[ask.item]
            ids.append(item["id"] + "".join(f"~{new} for {old}" for old, new in ask.words))
            if ask.words:
                text = facts.replaced(item[column], dict(ask.words))
                added[ids[-1]] = {**item, "id": ids[-1], column: text}
        new = pd.DataFrame(added.values(), columns=self.items.columns).astype(self.items.dtypes)
        # Stored answers to unchanged questions do not apply to changed ones.
        items = pd.concat([self.items, new], ignore_index=True).drop(columns="answer", errors="ignore")
        items.attrs = self.items.attrs
        folder = with_items(items, self.prepared, self.folder / content_hash([], sorted(added)))
        return self.task.load(self.context, folder), ids, np.array([ask.cell for ask in asks])

    def _worded_by_concept(self, asks: Sequence[WordProbe]) -> tuple[LoadedTask, list[str], np.ndarray]:
        # No replacement first; at least two, as a concept needs two levels.
        wordings_ = [(), *sorted({ask.words for ask in asks if ask.words} or {(("", ""),)})]
        names = {words: "; ".join(f"{new} for {old}" for old, new in words) or _AS_IS for words in wordings_}
        words_of = {name: dict(words) for words, name in names.items()}

        def apply(tokens: Sequence[Token], level: Any, _chance: Any) -> list[Token]:
            words = words_of[level]
            return [replace(token, text=words.get(token.text, token.text)) for token in tokens]

        concept = TextConcept(
            _WORDING, "words replaced by others", neutral=_AS_IS, choices=tuple(words_of), apply=apply
        )
        catalogue = {_WORDING: concept, **self.task.catalogue}
        task: type[Task] = type(self.task.__name__, (self.task,), {"catalogue": catalogue})
        concepts = {_WORDING: list(words_of), **self.context.concepts}
        rows = list(names)
        cells = np.array([[rows.index(ask.words), *ask.cell] for ask in asks])
        ids = [self.own["id"][ask.item] for ask in asks]
        return task.load(replace(self.context, concepts=concepts), self.prepared), ids, cells


def texts_of(task: type[Task], name: str) -> MinedTexts:
    """Return what a kind of task says about its texts.

    Raises a UsageError if it has no texts to mine, or libraries are missing.
    """
    form: type[MinedTexts] | None = part_of(task, "mining")
    if form is None:
        raise UsageError(
            f"audits.{name}.task: {task.__name__} has no texts to mine; expected chat, summarization or text-to-image,"
            " or a task that names its texts as mining (docs/own-task.md)"
        )
    if missing := missing_libraries():
        raise UsageError(f"mining needs {', '.join(missing)}: pip install 'faded[text]'")
    return form()
