"""The questions of `faded init` in order, and the inspection of the model and data between them.

Each answer is an option, or asked in the terminal with a guess as default.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm, Prompt

from flows.init.files import PlacedInputs
from flows.init.propose import FEWEST, Wanted, kinds
from flows.terminal import print_plain
from stages.core.errors import UsageError, did_you_mean
from stages.params import name_error, validation_lines
from stages.tasks.endpoint import EndpointConfig
from stages.tasks.init import Answer, Ask, Check, Data, Init, Model, Seen, cached, existing

_LONGEST = 40  # letters of a name that is guessed
_SPLITS = ("train", "val", "valid", "validation", "test", "discover", "repair")  # use their parent's name
_NONE = "none"


class Questions(Ask):
    """The questions to a person, and the answers.

    An answer is, in this order: the option; what is typed, if there is a terminal; the guess, with `--yes`.

    Args:
        options: answers on the command line, by name; None for an option that was not given.
        asks: whether there is a terminal to ask in.
        yes: whether guesses are accepted without asking.
        before: answers of a run that did not finish, which replace guesses.
    """

    def __init__(
        self,
        console: Console,
        options: Mapping[str, Answer | None],
        *,
        asks: bool,
        yes: bool,
        before: Mapping[str, str | bool] | None = None,
    ) -> None:
        self._console, self._options, self._asks, self._yes = console, options, asks and not yes, yes
        self._before = before or {}
        self.answers: dict[str, str | bool] = {}
        self.unasked: dict[str, str] = {}  # guesses that were accepted, to be shown

    def text(self, name: str, question: str, guess: str | None = None, check: Check = lambda _answer: None) -> str:
        """See Ask; in a terminal, ask again until the answer is usable, otherwise raise a UsageError."""
        earlier = self._before.get(name)
        guess = earlier if isinstance(earlier, str) else guess
        if self.said(name) is None and self._asks:
            answer = self._typed(question, guess, check)
        else:
            answer = str(self._unasked(name, guess, f"--{name}", question))
            check(answer)
        self.answers[name] = answer
        return answer

    def choice(self, name: str, question: str, choices: Sequence[str], guess: str | None = None) -> str:
        def check(answer: str) -> None:
            if answer not in choices:
                raise UsageError(
                    f"--{name} {answer}: expected one of {', '.join(choices)}{did_you_mean(answer, choices)}"
                )

        return self.text(name, f"{question} ({', '.join(choices)})", guess, check)

    def confirm(self, name: str, question: str, guess: bool) -> bool:
        """Ask for yes or no.

        Raises a UsageError if there is no answer.
        """
        earlier = self._before.get(name)
        guess = earlier if isinstance(earlier, bool) else guess
        if self.said(name) is None and self._asks:
            answer = self.go_on(question, guess)
        else:
            answer = bool(self._unasked(name, guess, f"--{name} or --no-{name}", question))
        self.answers[name] = answer
        return answer

    def said(self, name: str) -> Answer | None:
        return self._options.get(name)

    def many(self, name: str) -> Sequence[str]:
        said = self.said(name)
        return [] if said is None or isinstance(said, str | bool) else said

    def asked(self, name: str) -> bool:
        return self._asks or name in self._before

    def go_on(self, question: str, guess: bool = True) -> bool:
        """Ask whether to continue; the guess if nobody can be asked."""
        return Confirm.ask(escape(question), console=self._console, default=guess) if self._asks else guess

    def _typed(self, question: str, guess: str | None, check: Check) -> str:
        while True:
            typed = (Prompt.ask(escape(question), console=self._console, default=guess) or "").strip()
            try:
                if not typed:
                    raise UsageError("an answer is required")
                check(typed)
            except UsageError as error:
                print_plain(self._console, str(error), style="yellow")
            else:
                return typed

    def _unasked(self, name: str, guess: str | bool | None, options: str, question: str) -> str | bool:
        """The option, or else the guess, if it may be accepted without asking."""
        given = self.said(name)
        if isinstance(given, str | bool):
            return given
        shown = guess if isinstance(guess, str) else "yes" if guess else "no"
        if guess is None or not self._yes:
            accept = f", or --yes to accept the guess: {shown}" if guess is not None else ""
            raise UsageError(f"{question}? There is no terminal to ask in: use {options}{accept}")
        self.unasked[name] = shown
        return guess


def ask_questions(questions: Questions, workspace: Path, audits: Sequence[str], budget: int | None) -> Wanted:
    """Ask the questions that options leave open, and inspect the model and the data.

    Raises a UsageError if an answer is missing or unusable.
    """
    recognised, model = _model(questions)
    kind = _kind(questions, recognised, model)
    init = kinds()[kind]
    others = dict.fromkeys(name for other in kinds().values() for name in other.options if name not in init.options)
    if idle := [f"--{name}" for name in others if questions.said(name) is not None]:  # they would be ignored
        raise UsageError(f"{', '.join(idle)}: not of a model for {kind}")
    data = _data(questions, init)
    guess = _guess_name(model, data, audits)
    name = questions.text("name", "Name of the audit", guess, partial(_check_name, audits=audits))
    files = PlacedInputs(workspace, name)
    source = model.named(files.add(model.path, "--model", model.beside) if model.path else None)
    if model.absent:
        source = init.hub_model(str(questions.answers["model"]))
    block = data.named(files.add(data.path, "--data", data.beside) if data.path else None)
    seen = Seen(model, data, questions, [f"model: {model.said}", f"data:  {data.said}"], files.add)
    proposal = init.propose(seen)
    source |= proposal.model
    if "endpoint" in source:
        source |= _key(questions, str(source["endpoint"]))
        source = init.served(source, seen)
    elif questions.said("key-env") is not None:
        raise UsageError(f"--key-env is for a model behind a URL; found {model.said}")
    repair = _repair(questions, kind, seen)
    if questions.unasked:
        taken = ", ".join(f"{name}: {answer}" for name, answer in questions.unasked.items())
        seen.said.append(f"guessed: {taken}; options say otherwise")
    return Wanted(name, kind, seen, source, {**block, **proposal.data}, proposal, repair, budget, files.placed)


def _model(questions: Questions) -> tuple[str | None, Model]:
    found: dict[str, tuple[str | None, Model]] = {}
    data = questions.said("data")
    usual = (init.usual_model(data) for init in kinds().values() if isinstance(data, str))

    def look(answer: str) -> None:
        found[answer] = look_at_model(answer, questions)

    asked = "The model: a file, a folder, ORG/NAME of the Hugging Face hub, or a URL"
    return found[questions.text("model", asked, next(filter(None, usual), None), look)]


def look_at_model(given: str, questions: Questions) -> tuple[str | None, Model]:
    """Recognise a model, and its kind if its files show it.

    Raises a UsageError if there is nothing of that name, or it is not a model that Faded reads.

    Args:
        given: a file, a folder, ORG/NAME of a hub, a URL, or a name that some kind defines.
    """
    if re.match(r"https?://", given):
        return None, _behind(given)
    if not Path(given).expanduser().exists():
        for kind, init in _likely(questions):
            if (model := init.named_model(given)) is not None:
                return kind, model
    if (path := existing(given, "--model")) is not None:
        return _of_files(path, given, questions)
    if (folder := cached(given)) is None:
        return None, Model(f"{given} of the Hugging Face hub, not fetched yet", absent=True)
    found, model = _of_files(folder, str(folder), questions)
    said = f"{given} of the Hugging Face hub, {model.said}"
    return found, replace(model, said=said, path=None, key="", block={model.key: given})


def _of_files(path: Path, given: str, questions: Questions) -> tuple[str, Model]:
    for kind, init in _likely(questions):
        if (model := init.model(path, questions)) is not None:
            return kind, model
    if path.is_file():
        suffixes = dict.fromkeys(suffix for init in kinds().values() for suffix in init.suffixes)
        raise UsageError(
            f"--model {given}: expected a file that ends in {', '.join(suffixes)}, a folder, ORG/NAME of the"
            f" Hugging Face hub, or a URL"
        )
    known = "; or ".join(init.folders for init in kinds().values() if init.folders)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
    raise UsageError(f"--model {path}: expected a folder with {known}; found {found}")


def _likely(questions: Questions) -> list[tuple[str, Init]]:
    """All kinds, beginning with the one that the command line names."""
    return sorted(kinds().items(), key=lambda kind: kind[0] != questions.said("kind"))


def _behind(url: str) -> Model:
    """A model behind HTTP; a URL that contains a secret is refused before it is written anywhere."""
    try:
        config = EndpointConfig(endpoint=url)
    except ValidationError as error:
        raise UsageError(f"--model: {'; '.join(validation_lines(error, EndpointConfig))}") from None
    return Model(config.told, {"endpoint": url}, black_box=True)


def _key(questions: Questions, url: str) -> dict[str, str]:
    """The environment variable with the key of a model behind a URL; {} if it needs none."""

    def check(answer: str) -> None:
        if answer == _NONE:
            return
        try:
            EndpointConfig(endpoint=url, key_env=answer).key()
        except ValidationError as error:
            raise UsageError(f"--key-env: {'; '.join(validation_lines(error, EndpointConfig))}") from None
        except UsageError as error:
            raise UsageError(str(error).replace("prepare.model.key_env", "--key-env")) from None

    name = questions.text("key-env", "Environment variable that holds its key, or none", _NONE, check)
    return {} if name == _NONE else {"key_env": name}


def _kind(questions: Questions, recognised: str | None, model: Model) -> str:
    if recognised is not None and questions.said("kind") is None:
        return recognised
    kind = questions.choice("kind", "What does it do", list(kinds()))
    if recognised not in (None, kind):
        raise UsageError(f"--kind {kind}: the model is {model.said}, which is for {recognised}")
    return kind


def _data(questions: Questions, init: Init) -> Data:
    seen: dict[str, Data] = {}

    def look(answer: str) -> None:
        if (named := init.named_data(answer)) is not None:
            seen[answer] = named
        elif (path := existing(answer, "--data")) is not None:
            seen[answer] = init.data(path, answer, questions)
        else:  # nothing is known about it before it is fetched
            absent = cached(answer, "dataset") is None
            said = f"{answer} of the Hugging Face hub" + (", not fetched yet" if absent else "")
            seen[answer] = Data(said, init.hub_data(answer, questions), absent=absent)

    return seen[questions.text("data", init.wants, None, look)]


def _guess_name(model: Model, data: Data, audits: Sequence[str]) -> str:
    path = data.path or model.path
    if path is not None and path.name in _SPLITS:  # one split of a data set: its parent has the better name
        path = path.resolve().parent
    stem = (re.sub(r"[^a-z0-9_]+", "-", path.stem.lower())[:_LONGEST].strip("-_") if path else "") or "audit"
    stem = stem if _is_text(stem) and name_error(stem) is None else f"audit-{stem}"
    names = (f"{stem}-{n}" if n > 1 else stem for n in count(1))
    return next(name for name in names if name not in audits)


def _check_name(name: str, audits: Sequence[str]) -> None:
    if error := name_error(name):
        raise UsageError(f"--name {name}: {error}")
    if not _is_text(name):
        raise UsageError(f"--name {name}: YAML does not read that as text but as {yaml.safe_load(name)!r}")
    if name in audits:
        raise UsageError(f"--name {name}: params.yaml already has an audit of that name; choose another")


def _is_text(name: str) -> bool:
    """Whether params.yaml can use the name for an audit without quotes."""
    return isinstance(yaml.safe_load(name), str)


def _repair(questions: Questions, kind: str, seen: Seen) -> bool:
    """Whether a repair follows; if none is possible, the reason is added to what people read."""
    why, data = None, seen.data
    splits = (
        [data.pools.get(split, 0) for split in ("discover", "repair", "test")]
        if data.pools
        else [(data.items or 0) // 3]
    )
    if not kinds()[kind].method:
        why = f"a model for {kind} is searched, not repaired"
    elif seen.model.black_box and kinds()[kind].needs_weights:
        why = "a model whose weights are not seen cannot be repaired"
    elif data.items is not None and kinds()[kind].limited and min(splits) < FEWEST:
        why = f"a repair needs {FEWEST} items for each of discover, repair and test"
    if why is None:
        return questions.confirm("repair", "Repair the model as well, and compare", True)
    if questions.said("repair") is True:
        raise UsageError(f"--repair: {why}")
    seen.said.append(f"repair: none, {why}; the audit ends with the failure landscape")
    return False
