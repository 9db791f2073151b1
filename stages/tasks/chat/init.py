"""`faded init` for a chat model: which fields contain questions, answers and passages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

from stages.core.errors import UsageError, first_of
from stages.params import checked
from stages.tasks.account import Account
from stages.tasks.chat.concepts import catalogue_of
from stages.tasks.chat.config import AnswerConfig
from stages.tasks.chat.conversation import Conversation, possible_events
from stages.tasks.chat.data import DATA_LOADERS
from stages.tasks.init import (
    Ask,
    Data,
    Init,
    Model,
    Option,
    Proposal,
    Seen,
    first_rows,
    json_lines,
    load_data,
    one_of,
    writing_model,
)
from stages.tasks.language.chats import KNOWN
from stages.tasks.openai_chat import PATH, ChatConfig, ChatEndpoint

_SHOWN = 10  # names of models that a question lists
_PATIENCE = 20.0  # seconds for the list of a server's models
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
    """The questions found, whether all of them have a context, and what may happen in all of them."""

    contexts: bool = False
    events: Mapping[str, Sequence[str]] = field(default_factory=dict)


class QuestionsInit(Init):
    """Questions with expected answers, and a chat model."""

    options: ClassVar[Mapping[str, Option]] = {
        "question": Option("Field with the questions.", "FIELD"),
        "model-name": Option("Name of the model at a URL; the only one that it lists by default.", "NAME"),
    }
    wants = "Questions: a .jsonl file, one object a line with a question and its answers, or a pattern"
    most: ClassVar[Mapping[str, int]] = {"discover": 60, "repair": 60, "test": 60}
    discrepancy: ClassVar[Mapping[str, Any]] = {"measure": "contains", "threshold": 0.5}
    meaning = "0 where an answer holds the expected words, or matches the pattern, else 1."
    method, needs_weights = "prompt", False
    restructure: ClassVar[Mapping[str, Any]] = {"harm": {"pairs": 200}}

    def model(self, path: Path, ask: Ask) -> Model | None:
        """See Init: summarizers look the same, so the kind or the data must decide."""
        return writing_model(path) if ask.said("kind") == "chat" or _are_questions(ask.said("data")) else None

    def data(self, path: Path, given: str, ask: Ask) -> Data:
        if path.suffix != ".jsonl":
            raise UsageError(f"--data {given}: expected a .jsonl file, one JSON object a line")
        block = _fields(first_rows(path, given), ask)
        questions, skipped = load_data({"jsonl": path.name, **block}, DATA_LOADERS, path.parent, given)
        contexts = all(one.context for one in questions)
        parts = [f"{len(questions):,} questions in {block.get('question', 'question')!r}"]
        parts += ["each with a context"] if contexts else []
        parts += [f"{len(skipped)} that cannot be used ({skipped[0]['reason']})"] if skipped else []
        events = possible_events([one.conversation or Conversation() for one in questions])
        return _Questions(
            ", ".join(parts), block, path, "jsonl", items=len(questions), contexts=contexts, events=events
        )

    def propose(self, seen: Seen) -> Proposal:
        if "endpoint" not in seen.model.block and seen.ask.said("model-name") is not None:
            raise UsageError(f"--model-name is for a model behind a URL; found {seen.model.said}")
        data = _Questions.of(seen.data)
        concepts = {**(data.events or _QUESTION), **(_CONTEXT if data.contexts else {})}
        prepare = {"prompt": "{question}"} if data.events and not data.contexts else {}
        notes = {name: catalogue_of(None)[name].doc for name in concepts}
        return Proposal(concepts, notes, prepare=prepare, batch_size=32)

    def served(self, block: Mapping[str, Any], seen: Seen) -> dict[str, Any]:
        """See Init: a chat completions API, which is asked a question at once."""
        url, key = str(block["endpoint"]), {name: value for name, value in block.items() if name != "endpoint"}
        listed, why = _models_at(ChatConfig(openai=url, model="?", **key))
        asked = f"Name of the model at the server ({why or first_of(listed, _SHOWN)})"
        name = seen.ask.text("model-name", asked, listed[0] if len(listed) == 1 else None)
        chosen = {"openai": url, "model": name, **key}
        return chosen | _tried(checked(ChatConfig, chosen, "--model"), seen.said)


def _models_at(config: ChatConfig) -> tuple[list[str], str]:
    """Return the names of the models that a server lists, and why there are none.

    Raises a UsageError if it cannot be reached, or refuses the key.
    """
    import httpx

    completions, key = httpx.URL(config.endpoint), config.key()
    url = completions.copy_with(path=completions.path.removesuffix(PATH) + "/models")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    where = f"{config.base}/models"
    try:
        response = httpx.get(url, headers=headers, timeout=_PATIENCE, trust_env=not config.local)
    except httpx.HTTPError as error:
        raise UsageError(f"--model: {where} cannot be read ({type(error).__name__}: {error})") from None
    answers = f"{where} answers {response.status_code} {response.reason_phrase}".strip()
    if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        refused = f"the key in {config.key_env}" if key else "a request without a key, expected --key-env NAME"
        raise UsageError(f"--model: {answers}; it refuses {refused}")
    if response.status_code != HTTPStatus.OK:
        return [], answers
    try:
        entries = response.json()["data"]
        names = [entry["id"] for entry in entries if isinstance(entry["id"], str) and entry["id"].isprintable()]
    except (ValueError, LookupError, TypeError):
        return [], f"{where} lists none"
    return names, "" if names else f"{where} lists none"


def _tried(config: ChatConfig, said: list[str]) -> dict[str, Any]:
    """Ask a served model a question twice; return what its answers say about it as keys of `prepare.model`.

    Raises a UsageError if it rejects the question, or its answers are empty; an UnavailableError if it does not answer.
    """
    endpoint = ChatEndpoint(config.model_copy(update={"retries": 1}), Account())
    first, second = endpoint.ask([endpoint.request("", KNOWN[0], AnswerConfig().max_new_tokens)] * 2)
    if not (first["text"] or second["text"]):
        raise UsageError(
            f"{config.told} gives an empty answer to a plain question (finish_reason: {first['finish']}). If it reasons"
            " before it answers, switch that off at the server, or write the audit by hand, with prepare.model.settings"
        )
    said.append(f"tried: {config.told} answers {KNOWN[0]!r} with {endpoint.quoted(first['text'])!r}")
    if first == second:
        return {}
    said.append("it answered that in two ways, so its block says deterministic: false")
    return {"deterministic": False}


def _fields(rows: Sequence[Mapping[str, Any]], ask: Ask) -> dict[str, str]:
    """Return the fields whose names are not the usual ones, by key of `prepare.data`."""
    found = list(rows[0])
    named = {key: next((name for name in names if name in found), None) for key, names in _FIELDS.items()}
    # Passages rather than their ids.
    if named["context"] and not any(len(str(row.get(named["context"]) or "").split()) > 1 for row in rows):
        named["context"] = None
    if (named["question"] is None and "turns" not in found) or ask.said("question") is not None:
        asked = f"Which field holds the questions ({', '.join(found)})"
        named["question"] = ask.text("question", asked, None, one_of("question", found, "field"))
    return {key: name for key, name in named.items() if name not in (None, key)}


def _are_questions(data: object) -> bool:
    """Whether the first line of a file has a question."""
    path = Path(str(data)).expanduser()
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    return not next(json_lines(path, str(data)), {}).keys().isdisjoint(("question", "turns"))
