"""`faded init` for a chat model: which fields contain questions, answers and passages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from stages.errors import UsageError, did_you_mean
from stages.tasks.init import Ask, Data, Init, Model, Option, Proposal, Seen, json_lines
from stages.tasks.summarization.init import writing_model

_ROWS = 200  # lines read to find the columns of a table
_FIELDS: Mapping[str, Sequence[str]] = {
    "question": ("question", "prompt", "instruction", "query", "input"),
    "answers": ("answers", "answer", "target", "expected", "output"),
    "context": ("context", "passage", "article", "text"),
}
_QUESTION: Mapping[str, Sequence[float | str]] = {
    "letter_case": ["as_is", "upper"],
    "typos": [0, 0.1, 0.2, 0.3],
    "drop_stop_words": [0, 0.25, 0.5],
    "politeness": ["neutral", "polite", "rude"],
}
_CONTEXT: Mapping[str, Sequence[float | str]] = {
    "distractor": [0, 2, 4],
    "context_length": [0, 1, 2],
    "evidence_position": ["start", "middle", "end"],
    "injection": ["none", "ignore", "refuse", "false_answer"],
}


@dataclass(frozen=True)
class _Questions(Data):
    """The questions found, and whether all of them have a context."""

    contexts: bool = False


class QuestionsInit(Init):
    """Questions with expected answers, and a chat model."""

    options: ClassVar[Mapping[str, Option]] = {"question": Option("Field with the questions.", "FIELD")}
    wants = "Questions: a .jsonl file, one object a line with a question and its answers, or a pattern"
    most: ClassVar[Mapping[str, int]] = {"discover": 60}
    discrepancy: ClassVar[Mapping[str, Any]] = {"measure": "contains", "threshold": 0.5}
    meaning = "0 where an answer holds the expected words, or matches the pattern, else 1."
    method = ""

    def model(self, path: Path, ask: Ask) -> Model | None:
        """See Init: summarizers look the same, so the kind or the data must decide."""
        return writing_model(path) if ask.said("kind") == "chat" or _are_questions(ask.said("data")) else None

    def data(self, path: Path, given: str, ask: Ask) -> Data:
        """See Init: fields are recognised by their names; an option can name that of the question."""
        from stages.tasks.chat.data import DATA_LOADERS
        from stages.tasks.sources import parse_source

        if path.suffix != ".jsonl":
            raise UsageError(f"--data {given}: expected a .jsonl file, one JSON object a line")
        rows = list(islice(json_lines(path, given), _ROWS))
        if not rows:
            raise UsageError(f"--data {given} holds no JSON objects, one a line")
        block = _fields(rows, ask)
        try:
            questions, skipped = parse_source({"jsonl": path.name, **block}, DATA_LOADERS, "--data").load(path.parent)
        except UsageError as error:
            raise UsageError(f"--data {given}: {error}") from None
        contexts = all(one.context for one in questions)
        parts = [f"{len(questions):,} questions in {block.get('question', 'question')!r}"]
        parts += ["each with a context"] if contexts else []
        parts += [f"{len(skipped)} that cannot be used ({skipped[0]['reason']})"] if skipped else []
        return _Questions(", ".join(parts), block, path, "jsonl", items=len(questions), contexts=contexts)

    def propose(self, seen: Seen) -> Proposal:
        """See Init: changes of the context only if all questions have one."""
        from stages.tasks.chat.concepts import catalogue_of

        concepts = {**_QUESTION, **(_CONTEXT if _Questions.of(seen.data).contexts else {})}
        return Proposal(concepts, {name: catalogue_of(None)[name].doc for name in concepts}, batch_size=32)


def _fields(rows: Sequence[Mapping[str, Any]], ask: Ask) -> dict[str, str]:
    """Return the fields whose names are not the usual ones, by key of `prepare.data`."""
    found = list(rows[0])

    def check(answer: str) -> None:
        if answer not in found:
            hint = did_you_mean(answer, found)
            raise UsageError(f"--question {answer}: the data have no such field{hint}; found {', '.join(found)}")

    named = {key: next((name for name in names if name in found), None) for key, names in _FIELDS.items()}
    if named["context"] is not None and not _holds_text(rows, named["context"]):
        named["context"] = None
    if named["question"] is None or ask.said("question") is not None:
        asked = f"Which field holds the questions ({', '.join(found)})"
        named["question"] = ask.text("question", asked, None, check)
    return {key: name for key, name in named.items() if name not in (None, key)}


def _holds_text(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a field contains passages rather than their ids."""
    return any(len(str(row.get(name) or "").split()) > 1 for row in rows)


def _are_questions(data: object) -> bool:
    """Whether the first line of a file has a question."""
    path = Path(str(data)).expanduser()
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open("rb") as lines:
        first = next(filter(bytes.strip, lines), b"")
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and "question" in row
