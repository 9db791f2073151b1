"""Questions and their expected answers. To add a source, add its key to DATA_LOADERS."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from stages.core.errors import UsageError
from stages.tasks.attributes import detail_columns, details
from stages.tasks.chat.conversation import FIELDS, VERSIONS, Conversation, Right, read_conversation
from stages.tasks.chat.measures import compared_words, pattern_error
from stages.tasks.contract import SPLITS
from stages.tasks.language.articles import DATA_LOADERS as ARTICLE_LOADERS
from stages.tasks.language.articles import ArticleSource
from stages.tasks.rows import HubDataSource, JsonLinesSource, check_lines_file
from stages.tasks.sources import ItemCounts, Source, check_excluded, collect, parse_source, source_errors

ARTICLES = "prepare.data.articles"
TURNS = "turns"  # field of a conversation in place of the question


@dataclass(frozen=True)
class Question:
    """One item.

    Args:
        id: unique.
        question: the question's text; of a conversation, what the user says last.
        context: the passage it is about; "" for none.
        answers: right answers; empty if there is a pattern.
        pattern: a regular expression that is found in right answers; "" if there are answers.
        group: the id of its article, if it has one.
        details: the source's other fields, by name.
        conversation: what precedes the question, and tools; None if there are neither.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    pattern: str
    group: str
    details: Mapping[str, Any] = field(default_factory=dict)
    conversation: Conversation | None = None

    def is_answered_in(self, text: str) -> bool:
        """Whether a text gives a right answer away."""
        return any(
            Right(answers=one.answers, pattern=one.pattern).is_in(text) for one in (self, *self.versions().values())
        )

    def versions(self) -> "dict[str, Question]":
        """Return the question with other right answers, by the field of the conversation that says them."""
        found = {name: getattr(self.conversation, name, None) for name in VERSIONS}
        return {
            name: replace(self, answers=right.answers, pattern=right.pattern) for name, right in found.items() if right
        }


class QuestionSource(Source):
    """Base of the data loaders: the names of the fields, and the source of passages that several questions share."""

    question: str = Field("question", description="field with the question")
    context: str = Field("context", description="field with the passage the question is about; it may be missing")
    answers: str = Field("answers", description="field with a right answer, or a list of them")
    pattern: str = Field("pattern", description="field with a regular expression that right answers match")
    articles: dict[str, Any] | None = Field(
        None, description="a source of articles as of summarization; the field `article` of a question names one by id"
    )
    max_excluded: float = Field(0.2, ge=0, le=1, description="share of lines that may be left out; more is an error")

    @abstractmethod
    def rows(self, inputs: Path) -> Iterator[tuple[str, Any]]:
        """Yield (place, row) of every row; a text instead of a row says why it cannot be read."""

    def article_errors(self, inputs: Path) -> list[str]:
        return [] if self.articles is None else source_errors(self.articles, ARTICLE_LOADERS, ARTICLES, inputs)

    def _articles(self, inputs: Path) -> dict[str, str]:
        if self.articles is None:
            return {}
        source: ArticleSource = parse_source(self.articles, ARTICLE_LOADERS, ARTICLES)
        return {article.id: article.text for article in source.load(inputs)[0]}

    def load(self, inputs: Path) -> tuple[list[Question], list[dict[str, str]]]:
        """Return the usable questions, and what was left out as {file, reason}.

        Raises a UsageError when there are none, or more were left out than `max_excluded` allows.
        """
        articles = self._articles(inputs)
        questions: list[Question] = []
        skipped: list[dict[str, str]] = []
        for where, row in self.rows(inputs):
            try:
                questions.append(self._question(where, row, articles))
            except ValueError as error:
                skipped.append({"file": where, "reason": str(error)})
        check_excluded("questions", len(questions), skipped, self.max_excluded)
        return questions, skipped

    def _question(self, where: str, row: Any, articles: Mapping[str, str]) -> Question:
        """Convert a row to a question. Raises a ValueError when it cannot be used; the message gives the reason."""
        if not isinstance(row, dict):
            raise ValueError(row if isinstance(row, str) else f"found {type(row).__name__}, expected an object")
        question, context = (row.get(name) or "" for name in (self.question, self.context))
        before, talks = list[str](), any(isinstance(row.get(name), list) for name in (TURNS, "tools"))
        if talks and (turns := row.get(TURNS)):
            if question or not isinstance(turns, list) or len(turns) < 2 or not all(map(_is_text, turns)):
                raise ValueError(f"expected {TURNS}, two texts or more, or a {self.question}")
            *before, question = turns
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"no text in the field {self.question!r}")
        if not isinstance(context, str):
            raise ValueError(f"the field {self.context!r} holds no text")
        article = row.get("article") if self.articles is not None else None
        if article is not None and str(article) not in articles:
            raise ValueError(f"there is no article {str(article)!r}")
        right = _right(row, self.answers, self.pattern)
        others = {name: row[name] for name in VERSIONS if isinstance(row.get(name), dict)}
        others = {name: {**one, **_right(one, "answers", "pattern").model_dump()} for name, one in others.items()}
        conversation = read_conversation({**row, **others}, before, right) if talks else None
        name, own = str(row.get("id", where)), {"id", "article", self.question, self.context, self.answers}
        own |= set(FIELDS) if talks else set()
        context = articles[str(article)] if article is not None else context.strip()
        group = str(article) if article is not None else ""
        more = details(row, own | {self.pattern})
        question = " ".join(question.split())
        return Question(name, question, context, right.answers, right.pattern, group, more, conversation)

    def prefetch(self, inputs: Path) -> list[str]:
        return parse_source(self.articles, ARTICLE_LOADERS, ARTICLES).prefetch(inputs) if self.articles else []


def _right(row: Mapping[str, Any], answers_field: str, pattern_field: str) -> Right:
    answers, pattern = _texts(row.get(answers_field)), row.get(pattern_field) or ""
    if bool(answers) == bool(pattern):
        raise ValueError(f"expected either {answers_field} or {pattern_field}")
    if lacking := next((answer for answer in answers if not compared_words(answer)), None):
        raise ValueError(f"the answer {lacking!r} has no words")
    if not isinstance(pattern, str) or (error := pattern_error(pattern)):
        raise ValueError(error if isinstance(pattern, str) else f"the field {pattern_field!r} holds no text")
    return Right(answers=answers, pattern=pattern)


def _is_text(found: Any) -> bool:
    return isinstance(found, str) and bool(found.strip())


def _texts(found: Any) -> tuple[str, ...]:
    """Convert answers as data sets store them: text, list of texts, or {"text": [...]} as in SQuAD; numbers are texts.

    Raises a ValueError when it is none of these.
    """
    found = found.get("text") if isinstance(found, dict) else found
    given = [] if found is None else list(found) if isinstance(found, list | tuple | np.ndarray) else [found]
    if odd := next((one for one in given if isinstance(one, bool) or not isinstance(one, str | int | float)), None):
        raise ValueError(f"an answer is {odd!r}, expected a text")
    return tuple(text for one in given if (text := str(one).strip()))


class JsonQuestions(JsonLinesSource, QuestionSource):
    """{jsonl: FILE}: one JSON object per line, under the audit's inputs."""

    def named(self) -> Mapping[str, str | None]:
        return {"question": self.question}

    def errors(self, inputs: Path) -> list[str]:
        no_turns = collect(lambda: check_lines_file(inputs, self.jsonl, {TURNS: TURNS}, "prepare.data"))
        return (super().errors(inputs) if no_turns else []) + self.article_errors(inputs)

    def rows(self, inputs: Path) -> Iterator[tuple[str, Any]]:
        for stem, number, row in self.numbered(inputs):
            yield f"{stem}-{number}", f"it is not JSON: {row}" if isinstance(row, ValueError) else row


class HubQuestions(HubDataSource, QuestionSource):
    """{datasets: ID_OR_FOLDER, split: SPLIT}: anything the `datasets` library reads; SQuAD needs no field names."""

    extra = "text"

    split: str

    def errors(self, inputs: Path) -> list[str]:
        return super().errors(inputs) + self.article_errors(inputs)

    def prefetch(self, inputs: Path) -> list[str]:
        return super().prefetch(inputs) + QuestionSource.prefetch(self, inputs)

    def rows(self, inputs: Path) -> Iterator[tuple[str, Any]]:
        for stem, number, row in self.numbered(inputs, self.split, {"question": self.question}):
            yield f"{stem}-{number}", row


DATA_LOADERS: Mapping[str, type[QuestionSource]] = {"jsonl": JsonQuestions, "datasets": HubQuestions}


def choose_items(questions: list[Question], counts: ItemCounts, seed: int) -> pd.DataFrame:
    """Draw the items of each split in a random order given by the seed.

    Raises a UsageError when there are too few questions.

    Returns:
        Columns id, split, label (the first answer, or the pattern), group (the article, or else the first question with
        the same context), question, context, answers (a list), pattern, and those of details.
    """
    wanted = {split: getattr(counts, split) for split in SPLITS}
    if (total := sum(wanted.values())) > len(questions):
        raise UsageError(f"prepare.items: {total} items wanted, the data have {len(questions)}")
    first: dict[str, str] = {}
    for one in questions:
        first.setdefault(one.context, one.id)
    order = np.random.default_rng([seed, 1]).permutation(len(questions))[:total]
    chosen = [questions[i] for i in order]
    table = pd.DataFrame(
        {
            "id": [one.id for one in chosen],
            "split": np.repeat(list(wanted), list(wanted.values())),
            "label": [one.answers[0] if one.answers else one.pattern for one in chosen],
            "group": [one.group or (first[one.context] if one.context else one.id) for one in chosen],
            "question": [one.question for one in chosen],
            "context": [one.context for one in chosen],
            "answers": [list(one.answers) for one in chosen],
            "pattern": [one.pattern for one in chosen],
        }
    )
    if any(one.conversation for one in chosen):
        table["conversation"] = [one.conversation.model_dump_json() if one.conversation else "" for one in chosen]
    return table.assign(**detail_columns([one.details for one in chosen]))


def questions_of(items: pd.DataFrame) -> list[Question]:
    """Return the questions of a table that `choose_items` made."""
    talks = items.get("conversation", [""] * len(items))
    return [
        Question(
            *(row.id, row.question, row.context, tuple(row.answers), row.pattern, row.group),
            conversation=Conversation.model_validate_json(talk) if talk else None,
        )
        for row, talk in zip(items.itertuples(), talks, strict=True)
    ]
