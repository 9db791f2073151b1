"""Probe a task with changed texts: as additional items, or through an additional concept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pandas as pd

from stages.concepts import Level
from stages.concepts.texts import TextConcept
from stages.concepts.texts.document import Token
from stages.concepts.texts.lexicon import missing_libraries
from stages.core.errors import UsageError
from stages.core.files import content_hash, read_table
from stages.core.ledger import Key, Ledger
from stages.explorers.prober import Prober
from stages.mining import wordings
from stages.mining.mine import Answered, Ask, Texts
from stages.tasks.base import LoadedTask, Task
from stages.tasks.chat import Chat
from stages.tasks.contract import TaskContext
from stages.tasks.summarization.probes import SummarizerProbes
from stages.tasks.text_to_image.probes import PainterProbes

_ITEMS = "items.parquet"
_AS_IS = "as it is"
_WORDING = "wording"  # the concept that replaces words of articles
_MOST_LEVELS = 12  # maximum number of levels added to a slot

Words: TypeAlias = tuple[tuple[str, str], ...]


@dataclass
class Asked(ABC):
    """A task whose items can be probed with other words.

    Args:
        task: class of the task.
        context: its configuration.
        prepared: the folder that `prepare` wrote.
        folder: keeps answers, so that an interrupted run can resume.
        tell: called with (unique probes asked, their purpose).
    """

    task: type[Task]
    context: TaskContext
    prepared: Path
    folder: Path
    tell: Callable[[int, str], None]

    column: ClassVar[str]  # the column of the items with their texts

    def __post_init__(self) -> None:
        self.items = read_table(self.prepared / _ITEMS)
        self.own = self.items[self.items["split"] == "discover"].reset_index(drop=True)
        self.context = replace(self.context, concepts=self.levels())
        task, ids = self.task.load(self.context, self.prepared), self.own["id"].tolist()
        self.concepts = task.concepts
        self.originals = self.given(task, ids, np.tile(self.concepts.start, (len(ids), 1)))
        self.expects = self.expected(task)
        self.spent = 0

    def levels(self) -> dict[str, Sequence[Level]]:
        """Return the levels of the concepts: those in params.yaml and additional ones to mine."""
        return dict(self.context.concepts)

    def texts(self) -> Texts:
        """Return the discover items."""
        texts = self.own[self.column].tolist()
        groups = self.own["group"] if "group" in self.own else self.own["id"]
        return Texts(
            ids=self.own["id"].tolist(),
            texts=texts,
            given=self.originals,
            expected=self.expects,
            groups=groups.astype(str).tolist(),
            options=[self.options(text) for text in texts],
            facts=wordings.facts,
        )

    def options(self, text: str) -> Mapping[str, Sequence[str]]:
        """Return, by word of a text, replacements that do not make the task harder."""
        return wordings.synonyms(text)

    def __call__(self, asks: Sequence[Ask]) -> list[Answered]:
        """Run n probes and return their results."""
        task, ids, cells = self.worded(asks)
        key, compute = (
            content_hash([], sorted({ask.words for ask in asks}), self.context.concepts),
            self.context.compute,
        )
        row = {item: n for n, item in enumerate(sorted(set(ids)))}
        with closing(Ledger(self.folder / f"{key}.jsonl")) as ledger:
            prober = Prober(task, list(row), len(asks), ledger, compute, lambda n, _: self.tell(self.spent + n, "mine"))
            prober.ask(np.array([row[item] for item in ids]), cells)
        self.spent += prober.spent
        keys = map(Key, ids, task.concepts.flat(cells).tolist())
        given = self.given(task, ids, cells)
        return [Answered(ledger[key].failed, text, ledger[key].output) for key, text in zip(keys, given, strict=True)]

    @abstractmethod
    def worded(self, asks: Sequence[Ask]) -> tuple[LoadedTask, list[str], np.ndarray]:
        """Return a task that has the words of n probes, with their n item ids and cells (n, concepts)."""

    @abstractmethod
    def given(self, task: LoadedTask, ids: Sequence[str], cells: np.ndarray) -> list[str]:
        """Return the inputs of the model in n probes of a task as readable text; cells are (n, concepts)."""

    @abstractmethod
    def expected(self, task: LoadedTask) -> list[str]:
        """Describe the expected answer to each discover item."""


class ByItems(Asked):
    """Add changed texts as items, for tasks that read the text of an item only from their table."""

    def worded(self, asks: Sequence[Ask]) -> tuple[LoadedTask, list[str], np.ndarray]:
        added: dict[str, Mapping[str, Any]] = {}
        ids = []
        for ask in asks:
            item = self.own.iloc[ask.item]
            ids.append(item["id"] + "".join(f"~{new} for {old}" for old, new in ask.words))
            if ask.words:
                added[ids[-1]] = {
                    **item,
                    "id": ids[-1],
                    self.column: wordings.replaced(item[self.column], dict(ask.words)),
                }
        # Stored answers to unchanged questions do not apply to changed ones.
        new = pd.DataFrame(added.values(), columns=self.items.columns).astype(self.items.dtypes)
        items = pd.concat([self.items, new], ignore_index=True)
        items = items.drop(columns="answer", errors="ignore")
        items.attrs = self.items.attrs
        folder = self.folder / content_hash([], sorted(added))
        folder.mkdir(exist_ok=True)
        for path in self.prepared.resolve().iterdir():
            if path.name != _ITEMS and not (folder / path.name).is_symlink():
                (folder / path.name).symlink_to(path)
        items.to_parquet(folder / _ITEMS, index=False)
        return self.task.load(self.context, folder), ids, np.array([ask.cell for ask in asks])


class Questions(ByItems):
    """Questions to a chat model: only synonyms, as the expected answer has to stay right."""

    column = "question"

    def given(self, task: LoadedTask, ids: Sequence[str], cells: np.ndarray) -> list[str]:
        assert isinstance(task, Chat)
        return [f"[{t.system}]\n\n{t.said}" if t.system else t.said for t in task.changed(ids, cells)]

    def expected(self, task: LoadedTask) -> list[str]:
        told = zip(self.own["answers"], self.own["pattern"], strict=True)
        return [f"a match of {pattern}" if pattern else " or ".join(answers) for answers, pattern in told]


class Prompts(ByItems):
    """Prompts of a text-to-image model: other words in templates, and more slot levels if the judge reads prompts."""

    column = "template"

    def levels(self) -> dict[str, Sequence[Level]]:
        found = dict(super().levels())
        painter = self.task.load(self.context, self.prepared)
        if not getattr(getattr(painter, "judge", None), "reads_prompts", False):
            return found
        for name, own in found.items():
            others = [other for level in own if level for other in wordings.other_levels(str(level))]
            new = [other for other in dict.fromkeys(others) if other not in own][:_MOST_LEVELS]
            wider = {**found, name: [*own, *new]}
            if not self.task.check(replace(self.context, concepts=wider)):
                found = wider
        return found

    def options(self, text: str) -> Mapping[str, Sequence[str]]:
        """See Asked: any word will do, as the prompt itself defines the expected picture."""
        return wordings.alternatives(text)

    def given(self, task: LoadedTask, ids: Sequence[str], cells: np.ndarray) -> list[str]:
        assert isinstance(task, PainterProbes)
        return [orders[0].prompt for orders in task.orders(ids, cells)]

    def expected(self, task: LoadedTask) -> list[str]:
        return ["pictures of what the prompt says"] * len(self.own)


class Articles(Asked):
    """Articles for a summarizer: the summary of a changed article is judged against the unchanged one."""

    column = "article"

    def worded(self, asks: Sequence[Ask]) -> tuple[LoadedTask, list[str], np.ndarray]:
        """See Asked: the words are levels of an additional concept, applied before all others."""
        names = {words: "; ".join(f"{new} for {old}" for old, new in words) or _AS_IS for words in _words(asks)}
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

    def given(self, task: LoadedTask, ids: Sequence[str], cells: np.ndarray) -> list[str]:
        assert isinstance(task, SummarizerProbes)
        return task.changed(ids, cells)

    def expected(self, task: LoadedTask) -> list[str]:
        return [f"said of the unchanged article: {summary}" for summary in self.own["summary"]]


def _words(asks: Sequence[Ask]) -> list[Words]:
    """Return the distinct words of probes, no replacement first; at least two, as a concept needs two levels."""
    return [(), *sorted({ask.words for ask in asks if ask.words} or {(("", ""),)})]


_KINDS: Mapping[type[Task], type[Asked]] = {Chat: Questions, PainterProbes: Prompts, SummarizerProbes: Articles}


def asked_as(task: type[Task], name: str) -> type[Asked]:
    """Return the class that probes this kind of task with other words.

    Raises:
        UsageError: if this kind of task has no texts to mine, or libraries are missing.
    """
    if (found := next((asked for kind, asked in _KINDS.items() if issubclass(task, kind)), None)) is None:
        raise UsageError(
            f"audits.{name}.task: {task.__name__} has no texts to mine; expected chat, summarization or text-to-image"
        )
    if missing := missing_libraries():
        raise UsageError(f"mining needs {', '.join(missing)}: pip install 'faded[text]'")
    return found
