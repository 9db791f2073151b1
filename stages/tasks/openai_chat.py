"""Client for chat completions, the API of OpenAI, vLLM, Ollama, llama.cpp, LiteLLM and hosted services.

    POST BASE/chat/completions {"model": NAME, "messages": [...], "temperature": 0, "seed": 0, "max_tokens": 64}
      ->  {"choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}], "usage": {...}}

Retries, rates, the key and the rules for URLs are those of any model behind HTTP (`endpoint`). The differences: a
request has one input, errors are structured, and tokens may cost money (`account`).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import Field, field_validator, model_validator

from stages.core.errors import UsageError
from stages.tasks.account import Account, Expected, Price, RecordedAnswer, request_key
from stages.tasks.endpoint import Endpoint, EndpointConfig, safe_url
from stages.tasks.known_answers import ANSWERS, check_answers, keep_answers

if TYPE_CHECKING:
    import httpx

PATH = "/chat/completions"
SET_HERE = frozenset({"model", "messages", "stream", "stream_options", "n"})
NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})  # a 429 that waiting does not resolve
TOO_LONG = frozenset({"context_length_exceeded", "string_above_max_length"})
FILTERED = "content_filter"
CHARACTERS = 4  # characters of English text per token, until tokens are counted
# Replaces an error that says an input was filtered (Azure), to treat it like a filtered answer.
_REFUSAL = {
    "choices": [{"message": {"content": None}, "finish_reason": FILTERED}],
    "usage": {"prompt_tokens": 0, "completion_tokens": 0},
}


class ChatConfig(EndpointConfig):
    """{openai: BASE_URL, model: NAME, ...}: address of a model, settings of its requests, and limit of its cost."""

    endpoint: str = Field(alias="openai", description="base URL, such as http://localhost:8000/v1")
    model: str = Field(min_length=1, description="its name there")
    settings: dict[str, Any] = Field(
        {}, description="sent with every request as they are; null leaves out what would be sent: {seed: null}"
    )
    batch_size: Literal[1] = Field(1, description="a request has one input; concurrency sends several at once")
    concurrency: int = Field(4, ge=1, le=64, description="requests on their way at once")
    timeout: float = Field(120.0, gt=0, description="seconds for one request")
    price: Price | None = Field(None, description="of a million tokens, {prompt: 0.15, completion: 0.6}")
    max_cost: float | None = Field(None, gt=0, description="what all requests of the audit may cost, in that currency")

    @field_validator("endpoint")
    @classmethod
    def _is_of_completions(cls, endpoint: str) -> str:
        import httpx

        url = httpx.URL(endpoint)
        path = url.path.rstrip("/").removesuffix(PATH) + PATH
        return str(url.copy_with(raw_path=path.encode() + (b"?" + url.query if url.query else b"")))

    @field_validator("settings")
    @classmethod
    def _leave_the_rest_alone(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(SET_HERE & settings.keys()):
            raise ValueError(f"{', '.join(taken)} is set by Faded")
        return settings

    @model_validator(mode="after")
    def _cost_needs_a_price(self) -> ChatConfig:
        if self.max_cost is not None and self.price is None:
            raise ValueError("max_cost needs price: {prompt: ..., completion: ...}, what a million tokens cost")
        return self

    @property
    def told(self) -> str:
        return f"{self.model} behind {self.base}"

    @property
    def base(self) -> str:
        """The base URL, safe to display."""
        return safe_url(self.endpoint).removesuffix(PATH)


def expected_requests(
    config: ChatConfig, audit: str, preparing: int, guess: Callable[[], tuple[float, float]]
) -> Expected:
    """Estimate tokens and cost of an audit's requests, from those so far if there are any, else from a guess.

    Args:
        preparing: maximum number of requests in prepare.
        guess: returns the expected prompt and completion tokens of a request.
    """
    bill = Account.of(audit).bill
    measured = bill.requests - bill.uncounted
    prompt, completion = (bill.prompt / measured, bill.completion / measured) if measured > 0 else guess()
    return Expected(preparing, prompt, completion, measured, config.price, config.max_cost, bill)


class ChatEndpoint(Endpoint):
    """A model behind chat completions; safe to share between threads.

    Raises a UsageError if the key is not in the environment, or is not valid.

    Args:
        account: where its answers and their tokens are recorded.
    """

    config: ChatConfig

    def __init__(self, config: ChatConfig, account: Account) -> None:
        super().__init__(config)
        self.account = account

    def request(self, system: str, user: str, max_tokens: int) -> dict[str, Any]:
        """Return the body of a request.

        Args:
            system: the system message; "" sends none.
            max_tokens: maximum number of tokens of the answer.
        """
        messages = [{"role": "system", "content": system}] if system else []
        sent = {
            "model": self.config.model,
            "messages": [*messages, {"role": "user", "content": user}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": max_tokens,
            "stream": False,
            **self.config.settings,
        }
        return {name: value for name, value in sent.items() if value is not None}

    def prepare(self, requests: Sequence[dict[str, Any]], folder: Path, what: str) -> str:
        """Write answers that identify the model later, and begin its account.

        Raises a UsageError if all of its answers are empty, or max_cost is reached; an InfrastructureError if the model
        cannot be reached.

        Args:
            requests: few, because every later stage repeats them.
            folder: folder of the prepared model.
            what: subject of the requests, in the plural.

        Returns:
            The name that the model gives itself.
        """
        answers = self.ask(requests)
        if not any(answer["text"] for answer in answers):
            ended = ", ".join(sorted({answer["finish"] for answer in answers}))
            raise UsageError(
                f"{self.config.told} gives an empty answer to {len(requests)} plain {what} (finish_reason: {ended}). If"
                " it reasons before it answers, switch that off with a field of prepare.model.settings, or raise"
                " prepare.generation.max_new_tokens"
            )
        keep_answers(self, requests, folder)
        known, name = (folder / ANSWERS).read_text(encoding="utf-8"), str(answers[0]["model"])
        self.account.begin(request_key(known, name))
        return name

    def check(self, folder: Path) -> None:
        """Check that the model is the one that was prepared.

        Raises a UsageError if it answers differently, or max_cost is reached; an InfrastructureError if it cannot be
        reached.
        """
        if not self.account.preparing:
            self.account.use()
        check_answers(self, folder)

    def text_of(self, answer: Mapping[str, Any], prepared: str) -> str:
        """Return the text of an answer.

        Raises a UsageError if the model reports another name than when it was prepared.
        """
        today = answer["model"]
        if prepared and today and today != prepared:
            raise UsageError(
                f"{self.name} calls itself {self.quoted(today)}, and {prepared} when it was prepared: name one version"
                " in prepare.model.model, and run prepare again (faded audit --force)"
            )
        return str(answer["text"])

    def answers(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Query as `ask` does, but reuse recorded answers; if the model is not deterministic, only in prepare.

        Raises a UsageError, also if max_cost is reached; an InfrastructureError if the model cannot be reached.
        """
        again = self.config.deterministic or self.account.preparing
        known = [self.account.known(self._key_of(one)) if again else None for one in requests]
        fresh = iter(self.ask([one for one, answer in zip(requests, known, strict=True) if answer is None]))
        return [next(fresh) if answer is None else _told(answer) for answer in known]

    def _key_of(self, request: Mapping[str, Any]) -> str:
        return request_key(self.config.endpoint, self.config.headers, request)

    def _answer(self, batch: Sequence[Mapping[str, Any]], stop: threading.Event) -> list[dict[str, Any]]:
        if stop.is_set():
            return []
        self.account.check(self.name, self.config.price, self.config.max_cost)
        answers = [RecordedAnswer.model_validate(answer) for answer in super()._answer(batch, stop)]
        for request, answer in zip(batch, answers, strict=False):  # no answers if another request failed
            self.account.add(self._key_of(request), answer, self.config.price)
        return [_told(answer) for answer in answers]

    async def _post(self, body: bytes) -> tuple[int, httpx.Headers, bytes]:
        (request,) = json.loads(body)["inputs"]
        status, headers, content = await super()._post(json.dumps(request, ensure_ascii=False).encode())
        error = _error(content)
        if error is None:
            return status, headers, content
        if error.code == FILTERED:
            return HTTPStatus.OK, headers, json.dumps(_REFUSAL).encode()
        if error.code in NO_MONEY:
            raise UsageError(
                f"{self.name} answers {self._said(status, content)}: the money of its account is spent. What it"
                " answered so far is kept: run the stage again when there is more"
            )
        if status == HTTPStatus.OK:  # routers may report errors with status 200
            status = int(error.code) if error.code in _STATUSES else HTTPStatus.BAD_REQUEST
        return status, headers, content

    def _read(self, content: bytes, n: int) -> list[dict[str, Any]]:
        answer = _json(content)
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
            self._wrong(self.quoted(content))
        choice = answer["choices"][0] if answer["choices"] else {"message": {}, "finish_reason": "no choice"}
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            self._wrong(self.quoted(json.dumps(choice, ensure_ascii=False)))
        refusal = message.get("refusal")
        text = _text(message.get("content")) or (refusal if isinstance(refusal, str) else "")
        finish = "refusal" if refusal else _whole(str(choice.get("finish_reason")))
        usage = answer.get("usage")
        if finish != FILTERED and not _count(usage, "prompt_tokens"):
            usage = None  # a prompt of 0 tokens that was answered has not been counted
        return [
            {
                "text": _whole(text).strip(),
                "finish": finish,
                "model": _whole(str(answer.get("model") or "")),
                "prompt_tokens": _count(usage, "prompt_tokens"),
                "completion_tokens": _count(usage, "completion_tokens"),
            }
        ]

    def _wrong(self, found: str) -> NoReturn:
        raise UsageError(
            f'{self.name}: expected a chat completion, {{"choices": [{{"message": {{"content": TEXT}}}}], ...}};'
            f" found {found}. prepare.model.openai is the base URL, such as http://localhost:8000/v1"
        )

    def _said(self, status: int, content: bytes) -> str:
        error = _error(content)
        return super()._said(status, content if error is None else _whole(error.told).encode())

    def _refused(self, status: int, headers: httpx.Headers, content: bytes) -> NoReturn:
        said, error = self._said(status, content), _error(content)
        if status == HTTPStatus.NOT_FOUND:
            raise UsageError(f"{self.name} answers {said}: {_OF_MODEL.format(self.config.base)}")
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or (error is not None and error.code in TOO_LONG):
            raise UsageError(f"{self.name} answers {said}: {_OF_LENGTH}")
        if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
            raise UsageError(f"{self.name} answers {said}: {_remedy(error, self.config.base)}")
        super()._refused(status, headers, content)


# Advice on rejected requests. OpenAI gives codes for the reason, llama.cpp (and so Ollama) a type for requests that are
# too long, vLLM the name of the field, and LiteLLM only a message.
_OF_MODEL = (
    "expected its base URL in openai, such as http://localhost:8000/v1, and in model a name that GET {}/models lists"
)
_OF_LENGTH = (
    "the request is too long, so start the server with a longer context, or lower prepare.data.max_words (of summaries)"
    " or levels of context_length and distractor (of chat)"
)
_OF_FIELDS = (
    "a field that it does not take can be left out, or be called otherwise: prepare.model.settings: {seed: null,"
    " max_tokens: null, max_completion_tokens: 64}"
)
_TOO_LONG = re.compile(r"context[ _]?(length|size|window)|max_model_len", re.IGNORECASE)


def _remedy(error: _Error | None, base: str) -> str:
    """Return advice on a request that was rejected with status 400 or 422."""
    if error is not None and (error.field == "model" or "Invalid model name" in error.message):
        return _OF_MODEL.format(base)
    return _OF_LENGTH if error is not None and _TOO_LONG.search(error.told) else _OF_FIELDS


_STATUSES = frozenset(str(int(status)) for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST)


@dataclass(frozen=True)
class _Error:
    """An error reported by a server: a message, and if given a type, a code and the name of a field."""

    message: str
    code: str
    kind: str
    field: str

    @property
    def told(self) -> str:
        more = {"type": self.kind, "code": self.code, "field": self.field}
        return "; ".join([self.message, *(f"{name} {value}" for name, value in more.items() if value)])


def _error(content: bytes) -> _Error | None:
    """Return the error in a response, None if there is none: {"error": {...} or TEXT}, {"message"} or {"detail"}."""
    answer = _json(content)
    if isinstance(answer, list) and answer:  # Google wraps it in a list
        answer = answer[0]
    if isinstance(answer, dict) and "choices" in answer:  # routers put the error into the first choice
        first = answer["choices"][0] if isinstance(answer["choices"], list) and answer["choices"] else None
        answer = {"error": first["error"]} if isinstance(first, dict) and first.get("error") else None
    if not isinstance(answer, dict):
        return None
    said = answer.get("error") or (answer if {"message", "detail"} & answer.keys() else None)
    if isinstance(said, str):
        return _Error(said, "", "", "")
    if not isinstance(said, dict):
        return None
    message = said.get("message") or said.get("detail") or json.dumps(said, ensure_ascii=False)
    code, kind, field = (str(said.get(name) or "") for name in ("code", "type", "param"))
    return _Error(message if isinstance(message, str) else json.dumps(message, ensure_ascii=False), code, kind, field)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _whole(text: str) -> str:
    """Replace unpaired surrogates, which cannot be encoded."""
    return text.encode(errors="replace").decode()


def _text(content: Any) -> str:
    """Return the text of a message, which is a string or a list of parts, some of them texts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _count(usage: Any, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def _told(answer: RecordedAnswer) -> dict[str, Any]:
    """Return what identifies the model in an answer: without token counts, which depend on the server's cache."""
    return answer.model_dump(include={"text", "finish", "model"})
