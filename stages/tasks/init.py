"""Interface for `faded init`: a kind of task recognises models and data, and proposes an audit of them.

A task names its class as `init` (`stages.tasks.choosing`).
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from stages.core.errors import UsageError, did_you_mean
from stages.tasks.contract import TaskContext

Check = Callable[[str], object]
"""Raises a UsageError if an answer is not acceptable; what it returns is ignored."""

Answer = str | bool | Sequence[str]

_HUB = re.compile(r"(hf-hub:)?[\w-][\w.-]*/[\w.-]+")
_ROWS = 200  # lines read to find the fields of a file
_WRITES = ("ForCausalLM", "ForConditionalGeneration", "ForSeq2SeqLM", "LMHeadModel")


@dataclass(frozen=True)
class Option:
    """A command-line option that only one kind of task has.

    Args:
        many: whether it may be given several times.
    """

    help: str
    metavar: str = "TEXT"
    many: bool = False
    switch: bool = False


class Ask(Protocol):
    """Source of answers: a person at a terminal, or the command-line options."""

    def text(self, name: str, question: str, guess: str | None = None, check: Check = ...) -> str:
        """Get a text; `check` raises a UsageError if an answer is not acceptable."""

    def choice(self, name: str, question: str, choices: Sequence[str], guess: str | None = None) -> str:
        """Get one of several choices."""

    def said(self, name: str) -> Answer | None:
        """Return the value given on the command line; None if there is none."""

    def many(self, name: str) -> Sequence[str]:
        """Return the values of a command-line option that may be given several times."""

    def asked(self, name: str) -> bool:
        """Whether a person can be asked, or has already answered."""


@dataclass(frozen=True)
class Recognised:
    """A recognised model, or recognised data.

    Args:
        said: description for people.
        block: its block of params.yaml, without its file or folder.
        path: its file or folder, which the audit expects under its inputs; None if it has none.
        key: key of the block that names this file or folder.
        beside: files that it names, relative to its folder, which have to be placed beside it.
        absent: whether it is on a hub and has to be downloaded before anything is known about it.
    """

    said: str
    block: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    key: str = ""
    beside: Sequence[str] = ()
    absent: bool = False

    @classmethod
    def of(cls, other: "Recognised") -> Self:
        """Convert to this class, with defaults for additional fields."""
        return other if isinstance(other, cls) else cls(**vars(other))


@dataclass(frozen=True)
class Model(Recognised):
    """A recognised model; `black_box`: it has no accessible weights to repair."""

    black_box: bool = False

    def named(self, name: str | None) -> dict[str, Any]:
        """Return `prepare.model` of params.yaml, with its file or folder under the name it has in inputs."""
        return {**self.block, **({self.key: name} if name else {})}


@dataclass(frozen=True)
class Data(Recognised):
    """Recognised data.

    Args:
        items: number of usable items; None if unknown before a download.
        pools: number of these items per split; {} if the audit draws the splits.
    """

    items: int | None = None
    pools: Mapping[str, int] = field(default_factory=dict)

    def named(self, name: str | None) -> dict[str, Any]:
        """Return the block of params.yaml, with the file or folder under the name it has in inputs."""
        return {**({self.key: name} if name else {}), **self.block}


@dataclass(frozen=True)
class Seen:
    """What was recognised, and where to get further answers.

    Args:
        said: lines for people, which may be extended.
        place: places a file of the user, named in an option, and returns its name under the audit's inputs.
    """

    model: Model
    data: Data
    ask: Ask
    said: list[str]
    place: Callable[[Path, str], str]


@dataclass(frozen=True)
class Proposal:
    """Initial settings of an audit.

    Args:
        concepts: the level that changes nothing, then three or four more, evenly up to the end of what people accept.
        notes: comments on concepts: the meaning of levels, with their unit.
        model: further keys of `prepare.model`.
        data: further keys of the block of the data.
        prepare: further keys of `prepare`.
    """

    concepts: Mapping[str, Sequence[float | str]]
    notes: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    prepare: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 64


@dataclass(frozen=True)
class Trial:
    """The model's results on unchanged items, before anything is written.

    Args:
        rows: rows of the table; the first contains the column names.
        told: lines below the table.
        doubt: what seems wrong; "" if nothing does.
        option: option that settles the doubt without a question.
        advice: what to type.
        question: whether to take another `prepare.model`, which did better: "Take the classes in that order"; "" if
            none is known.
        likely: whether yes is the likely answer.
        model: keys of that `prepare.model`.
        answers: answers to questions that lead to it, as if a person had given them.
    """

    title: str
    rows: Sequence[Sequence[str]]
    told: Sequence[str] = ()
    doubt: str = ""
    option: str = ""
    advice: str = ""
    question: str = ""
    likely: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)


class Init(ABC):
    """The part of `faded init` that is specific to one kind of task.

    Attributes:
        options: command-line options that no other kind has, by name.
        wants: the question for the data.
        suffixes: suffixes of files that may be a model.
        folders: what a folder with a model contains, for people.
        hub_split: default split of a data set on the hub.
        limited: whether the number of items is limited by the data; otherwise any number can be made.
        most: useful number of items per split.
        discrepancy: the audit's block.
        meaning: what the discrepancy means, for people.
        method: method of the repair; "" if there is none.
        needs_weights: whether it needs a model whose weights are seen.
        control: control of the repair.
        restructure: further keys of the repair's `restructure`.
        trying: what the model is tried on, for people; "" if there is no trial.
        trial_of_service: how many requests a trial makes to a service, which may cost money.
    """

    options: ClassVar[Mapping[str, Option]] = {}
    wants: ClassVar[str]
    suffixes: ClassVar[Sequence[str]] = ()
    folders: ClassVar[str] = ""
    hub_split: ClassVar[str] = "validation"
    limited: ClassVar[bool] = True
    # Of few items many answers say little about others, see "Intervals over items" in docs/method.md.
    most: ClassVar[Mapping[str, int]] = {"discover": 1000, "repair": 2000, "test": 1000}
    discrepancy: ClassVar[Mapping[str, Any]]
    meaning: ClassVar[str]
    method: ClassVar[str]
    needs_weights: ClassVar[bool] = True
    control: ClassVar[str] = "as_used"
    restructure: ClassVar[Mapping[str, Any]] = {}
    trying: ClassVar[str] = ""
    trial_of_service: ClassVar[str] = ""

    def model(self, path: Path, ask: Ask) -> Model | None:
        """Recognise a file or folder by its name and header, without running any of it; None: not of this kind."""
        return None

    def named_model(self, name: str) -> Model | None:
        """Recognise a model that is not a file, such as one that is trained on the data."""
        return None

    def usual_model(self, data: str) -> str | None:
        """Return the default model if only data are named."""
        return None

    def hub_model(self, name: str) -> dict[str, Any]:
        """Return `prepare.model` of a model on a hub."""
        return {"transformers": name}

    def served(self, block: Mapping[str, Any], seen: Seen) -> dict[str, Any]:
        """Return `prepare.model` of a model behind a URL.

        Raises a FadedError if an answer is missing, or the model cannot be used.

        Args:
            block: its URL as `endpoint`, and as `key_env` the environment variable with its key, if it has one.
            seen: where to get further answers, and what people are told.
        """
        return dict(block)

    @abstractmethod
    def data(self, path: Path, given: str, ask: Ask) -> Data:
        """Recognise a file or folder. Raises a UsageError if it is not of this kind."""

    def named_data(self, name: str) -> Data | None:
        """Recognise data that are not a file, such as a data set that a library provides."""
        return None

    def hub_data(self, name: str, ask: Ask) -> dict[str, Any]:
        """Return the block of a data set on the hub."""
        return {"datasets": name, "split": ask.text("split", "Which split of it", self.hub_split)}

    @abstractmethod
    def propose(self, seen: Seen) -> Proposal:
        """Propose an audit, and get answers that only a person can give.

        Raises a UsageError if an answer is missing or not acceptable.
        """

    def trial(self, context: TaskContext, seen: Seen) -> Trial | None:
        """Query the model on unchanged items, in a temporary workspace; None: there is nothing to show.

        Raises a FadedError if the model or the data cannot be prepared.
        """
        return None


def existing(given: str, option: str) -> Path | None:
    """Return the file or folder of this name; None if it can only be an ID on a hub.

    Raises a UsageError if it can be neither.
    """
    path = Path(given).expanduser()
    if path.exists():
        return path
    if _HUB.fullmatch(given) and not path.parent.exists():
        return None
    there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    url = ", or a URL" if option == "--model" else ""
    raise UsageError(
        f"{option} {given}: there is no such file or folder, and it is not ORG/NAME on the Hugging Face hub{url}"
        f"{did_you_mean(path.name, there)}"
    )


def one_of(option: str, names: Sequence[str], what: str = "column") -> Check:
    """Return a check that an answer is one of the columns, or fields, of the data."""

    def check(answer: str) -> None:
        if answer not in names:
            mark = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
            advice = f"; a CSV has commas between its columns, not {mark!r}" if mark is not None else ""
            raise UsageError(
                f"--{option} {answer}: the data have no such {what}{did_you_mean(answer, names)};"
                f" found {', '.join(names) or 'none'}{advice}"
            )

    return check


def load_data(block: Mapping[str, Any], loaders: Mapping[str, Any], folder: Path, given: str) -> Any:
    """Load data as an audit would. Raises a UsageError if they cannot be used."""
    from stages.tasks.sources import parse_source

    try:
        return parse_source(block, loaders, "--data").load(folder)  # type: ignore[attr-defined]
    except UsageError as error:
        raise UsageError(f"--data {given}: {error}") from None


def first_rows(path: Path, given: str) -> list[dict[str, Any]]:
    """Return the first objects of a file with one per line, to find its fields.

    Raises a UsageError if there are none.
    """
    if rows := list(islice(json_lines(path, given), _ROWS)):
        return rows
    raise UsageError(f"--data {given} holds no JSON objects, one a line")


def cached(name: str, kind: Literal["model", "dataset"] = "model") -> Path | None:
    """Return the folder of a hub repository in the local cache; None if it is not there."""
    from stages.tasks.hub import DATASET_FILES, MODEL_FILES, Repository

    wanted = MODEL_FILES if kind == "model" else DATASET_FILES
    try:
        return Repository(name.removeprefix("hf-hub:"), wanted=wanted, kind=kind).cached(Path(), "").folder
    except UsageError:
        return None


def read_config(path: Path, option: str = "--model") -> dict[str, Any]:
    """Read a JSON object that describes a model; {} if there is no such file.

    Raises a UsageError if it is not valid JSON.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{option} {path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        return {}
    if not isinstance(names := data.get("architectures") or [], list):
        raise UsageError(f"{option} {path}: architectures: expected a list of names, found {names!r:.80}")
    return data


def json_lines(path: Path, given: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file with one per line; other lines are left for the loader to report.

    Raises a UsageError if the file is not UTF-8 text.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for line in filter(str.strip, lines):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):  # also numbers and nesting without end
                    continue
                if isinstance(row, dict):
                    yield row
    except UnicodeDecodeError as error:
        raise UsageError(f"--data {given} is not UTF-8 text: {error.reason}") from None


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a .safetensors file by name; only its header is read.

    Raises a UsageError if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"--model {path} is not a readable safetensors file: {error}") from None


def writing_model(path: Path) -> Model | None:
    """Recognise the folder of a transformers model that writes text; None if it is not one."""
    config = read_config(path / "config.json")
    names = [str(name) for name in config.get("architectures") or []]
    if not (config.get("is_encoder_decoder") or any(name.endswith(_WRITES) for name in names)):
        return None
    files = sorted(path.glob("*.safetensors"))
    n = sum(prod(shape) for file in files for shape in tensor_shapes(file).values())
    size = f", {n / 1e6:,.1f} million parameters" if n else ""
    said = f"{names[0] if names else 'a model'} of transformers{size}"
    return Model(said, path=path, key="transformers")
