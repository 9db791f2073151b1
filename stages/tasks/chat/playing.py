"""Plays conversations with a model: its own replies become part of the history, and scripted tools answer its calls.

A reply is a text. It calls a tool by `<tool_call>{"name": NAME, "arguments": {...}}</tool_call>`, as Qwen, Hermes and
SmolLM write it. Calls that a server returns apart, and those of Llama 3 and Mistral, whose whole reply is the call, are
written so, too, and given back to the model apart.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from stages.core.errors import UsageError
from stages.tasks.chat.conversation import CALLS, Script
from stages.tasks.language.chats import ServedChat
from stages.tasks.language.generate import Chats, LanguageModel
from stages.tasks.openai_chat import ChatEndpoint

if TYPE_CHECKING:
    import httpx

MARK = "<tool_call>"
BARE = LIST, PARAMETERS = "[TOOL_CALLS]", '"parameters": '  # in the templates of Mistral, and of Llama 3
_CALL = re.compile(rf"{MARK}\s*(\{{.*?\}})\s*</tool_call>", re.DOTALL)
BEST_OF = 0.7  # temperature at which answers are drawn of which the best is taken
_ANSWER = "\n[answer] "
_DRAW = "\n[again] "


class Asked(NamedTuple):
    """What the model replies to: messages, each a role and a text, and the tools it may call, each as JSON.

    Replies to the same messages differ between draws, unless they are greedy.
    """

    history: tuple[tuple[str, str], ...]
    tools: tuple[str, ...]
    draw: int = 0


class Draws(NamedTuple):
    """How replies are drawn: greedily at temperature 0, else `number` times, always the same for one seed."""

    temperature: float = 0.0
    number: int = 1
    seed: int = 0

    def seed_of(self, *numbers: int) -> int:
        """Return a seed of 31 bits."""
        return int(np.random.SeedSequence([self.seed, *numbers]).generate_state(1)[0] >> 1)


class Player:
    """Plays with one model, and asks nothing twice."""

    def __init__(self, model: Chats, draws: Draws) -> None:
        plays = _Served(model, draws) if isinstance(model, ServedChat) else _Local(model, draws)
        self._replies, self._draws = plays.replies, draws.number
        self._known: dict[Asked, str] = {}

    def play(self, scripts: Sequence[Script]) -> list[str]:
        """Play n conversations, each as often as there are draws.

        Raises a UsageError if there are tools and the model cannot call any.

        Returns:
            What the model and the tools said in each, see `draws_in` and `answer_in`.
        """
        told = self._played([_game(script, draw) for script in scripts for draw in range(self._draws)])
        each = (told[k : k + self._draws] for k in range(0, len(told), self._draws))
        return [_DRAW.join(text.replace(_DRAW, " ") for text in texts) for texts in each]

    def _played(self, games: Sequence[Generator[Asked, str, str]]) -> list[str]:
        told = [""] * len(games)
        waiting = {n: next(game) for n, game in enumerate(games)}
        while waiting:
            if new := [asked for asked in dict.fromkeys(waiting.values()) if asked not in self._known]:
                self._known.update(zip(new, self._replies(new), strict=True))
            for n, asked in list(waiting.items()):
                try:
                    waiting[n] = games[n].send(self._known[asked])
                except StopIteration as ended:
                    told[n] = ended.value
                    del waiting[n]
        return told


def _game(script: Script, draw: int) -> Generator[Asked, str, str]:
    """Yield what the model has to reply to, receive its replies, and return the transcript."""
    specs, tools = tuple(tool.spec for tool in script.tools), {tool.name: tool.answers for tool in script.tools}
    history, lines, calls = [("system", script.system)] if script.system else [], list[str](), Counter[str]()
    for number, said in enumerate((*script.before, script.said), start=1):
        history.append(("user", said))
        called = True
        while called:
            reply = yield Asked(tuple(history), specs, draw)
            called = bool(specs) and calls.total() < CALLS and bool(calls_in(reply))
            history.append(("assistant", reply))
            lines.append(f"[turn {number}] {reply}")
            for name in (call["name"] for call in calls_in(reply) if called):
                answers = tools.get(name, (f"Error: there is no tool {name}.",))
                history.append(("tool", answers[min(calls[name], len(answers) - 1)]))
                calls[name] += 1
                lines.append(f"[{name}] {history[-1][1]}")
    *earlier, _ = lines
    return "\n".join(earlier) + (_ANSWER if earlier else "") + reply.replace(_ANSWER, " ")


def last_prompts(model: LanguageModel, scripts: Sequence[Script]) -> list[str]:
    """Return what a model reads before its last reply in n conversations without tools, after its earlier replies.

    Raises a UsageError if the model has no chat template.
    """
    local = _Local(model, Draws())
    games = [_game(script, 0) for script in scripts]
    asked = list(map(next, games))
    for turn in range(max((len(script.before) for script in scripts), default=0)):
        going = [n for n, script in enumerate(scripts) if turn < len(script.before)]
        for n, reply in zip(going, local.replies([asked[n] for n in going]), strict=True):
            asked[n] = games[n].send(reply)
    return list(map(local._prompt, asked))


def draws_in(output: str) -> list[str]:
    """Return what was said in each draw of a probe."""
    return output.split(_DRAW)


def answer_in(transcript: str) -> str:
    """Return the model's reply to the last turn, which is judged."""
    return transcript.rpartition(_ANSWER)[2]


def calls_in(reply: str) -> list[dict[str, Any]]:
    """Return the calls of tools in a reply; what is not valid is mere text."""
    found = map(_parsed, _CALL.findall(reply))
    return [call for call in found if isinstance(call, dict) and isinstance(call.get("name"), str)]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _marked(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{MARK}{json.dumps(call, ensure_ascii=False)}</tool_call>" for call in calls]


def _with_marks(reply: str, form: str) -> str:
    """Write the calls that a whole reply consists of as `calls_in` reads them: one of Llama 3, a list of Mistral.

    The tokens that precede them, <|python_tag|> and [TOOL_CALLS], are special in most tokenizers, and so not in texts.
    """
    found = _parsed(reply.removeprefix("<|python_tag|>").removeprefix(LIST)) if form in BARE else None
    calls = found if isinstance(found, list) and form == LIST else [found]
    told = []
    for call in calls:
        match call:
            case {"name": str(name), "arguments": dict(given)} | {"name": str(name), "parameters": dict(given)}:
                told.append({"name": name, "arguments": given})
    return "\n".join(_marked(told)) if len(told) == len(calls) > 0 else reply


def _apart(
    history: Sequence[tuple[str, str]], id_form: str, written: Callable[[Any], Any] = lambda given: given or {}
) -> list[dict[str, Any]]:
    """Return messages whose calls, with ids of a form and arguments as `written`, stand apart from their texts."""
    messages, waiting = list[dict[str, Any]](), list[dict[str, Any]]()  # calls without an answer
    for number, (role, text) in enumerate(history):
        messages.append({"role": role, "content": text})
        if role == "tool":
            messages[-1]["tool_call_id"] = waiting.pop(0)["id"]
        elif history[number + 1 : number + 2] and history[number + 1][0] == "tool":
            sent = [{"name": call["name"], "arguments": written(call.get("arguments"))} for call in calls_in(text)]
            waiting = [
                {"id": id_form.format(number, k), "type": "function", "function": call} for k, call in enumerate(sent)
            ]
            messages[-1] |= {"content": _CALL.sub("", text).strip(), "tool_calls": list(waiting)}
    return messages


class _Local:
    """A model whose weights are here."""

    def __init__(self, model: Chats, draws: Draws) -> None:
        assert isinstance(model, LanguageModel)
        self._model, self._draws = model, draws
        if not (model.form.generation.chat and model.tokenizer.chat_template):
            raise UsageError("prepare.generation.chat: conversations and tools need the model's chat template")

    def replies(self, asked: Sequence[Asked]) -> list[str]:
        given = [self._model.encode(self._prompt(one)) for one in asked]
        room, most = self._model.room, max(map(len, given)) + self._model.form.generation.max_new_tokens
        if room is not None and most > room:
            raise UsageError(f"prepare.model: a conversation takes {most} tokens, and the model has room for {room}")
        if self._draws.temperature:
            drawn = {tuple(ids): self._drawn(ids) for ids in given}
            replies = [drawn[tuple(ids)][one.draw] for ids, one in zip(given, asked, strict=True)]
        else:
            replies = self._model.complete(given)
        return [_with_marks(reply, self._form(one)) for reply, one in zip(replies, asked, strict=True)]

    def _drawn(self, ids: Sequence[int]) -> list[str]:
        """Return all draws for a prompt, which is alone, as draws depend on what is generated beside them."""
        temperature, number, _ = self._draws
        return self._model.complete([ids], samples=number, temperature=temperature, seed=self._draws.seed_of(*ids))

    def _form(self, asked: Asked) -> str:
        """Return by what the model's chat template shows how it calls tools; "" if there are none."""
        if not (tools := list(map(json.loads, asked.tools))):
            return ""
        template, forms = self._model.tokenizer.get_chat_template(tools=tools), (MARK, LIST, PARAMETERS)
        if form := next((form for form in forms if form in template), ""):
            return form
        raise UsageError(
            f"prepare.model: the data have tools, but the model's chat template has none of {', '.join(forms)}"
        )

    def _prompt(self, asked: Asked) -> str:
        from jinja2 import TemplateError

        tokenizer, tools = self._model.tokenizer, list(map(json.loads, asked.tools))
        messages = [{"role": role, "content": text} for role, text in asked.history]
        if self._form(asked) in BARE:
            messages = _apart(asked.history, "{:05}{:04}")  # of Mistral, ids have nine digits or letters
        options = {"add_generation_prompt": True, "enable_thinking": False}
        try:
            text: str = tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, **options)
        except TemplateError as error:
            raise UsageError(
                f"prepare.model: its chat template refuses a conversation: {error}; if it knows no system message, set"
                ' system: ""'
            ) from None
        return text


class _Served:
    """A model behind chat completions."""

    def __init__(self, model: ServedChat, draws: Draws) -> None:
        self._model, self._draws = model, draws
        self._endpoint = _ToolEndpoint(model.endpoint.config, model.endpoint.account)

    def replies(self, asked: Sequence[Asked]) -> list[str]:
        answers = self._endpoint.answers(list(map(self._request, asked)))
        return [self._endpoint.text_of(answer, self._model.form.revision) for answer in answers]

    def _request(self, asked: Asked) -> dict[str, Any]:
        messages = _apart(asked.history, "call_{}_{}", _as_text)
        body = self._endpoint.request("", "", self._model.form.generation.max_new_tokens) | {"messages": messages}
        if self._draws.temperature:
            body |= {"temperature": self._draws.temperature, "seed": self._draws.seed_of(asked.draw)}
        return body | ({"tools": [json.loads(tool) for tool in asked.tools]} if asked.tools else {})


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)


class _ToolEndpoint(ChatEndpoint):
    """An endpoint whose answers hold the calls of tools in their texts."""

    def _read(self, content: bytes, n: int) -> list[dict[str, Any]]:
        [answer] = super()._read(content, n)
        try:
            calls = [
                call for one in json.loads(content)["choices"][:1] for call in one["message"].get("tool_calls") or ()
            ]
            told = [{name: call["function"][name] for name in ("name", "arguments")} for call in calls]
        except (LookupError, TypeError):
            self._wrong(self.quoted(content))
        return [answer | {"text": "\n".join(filter(None, [answer["text"], *_marked(told)]))}]

    def _refused(self, status: int, headers: "httpx.Headers", content: bytes) -> NoReturn:
        if b"tool" in content.lower():
            raise UsageError(f"{self.name} cannot call tools, which the data have: {self._said(status, content)}")
        super()._refused(status, headers, content)
