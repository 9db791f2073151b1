"""What `faded init` asks a kind of task: to recognise a model and data, and to propose an audit of them.

A task names its class as `init = ".init:ArticlesInit"`, relative to its own module: by name, so that no stage depends
on what only proposes audits.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from stages.errors import UsageError, did_you_mean
from stages.tasks.contract import TaskContext

Check = Callable[[str], None]
"""Raises a UsageError where an answer will not do."""

Answer = str | bool | Sequence[str]


@dataclass(frozen=True)
class Option:
    """An option of the command line that only one kind of task has.

    Args:
        help: a sentence.
        metavar: what follows it.
        many: it may be given several times.
        switch: it is yes or no.
    """

    help: str
    metavar: str = "TEXT"
    many: bool = False
    switch: bool = False


class Ask(Protocol):
    """A person to ask, or the options in which they have answered already."""

    def text(self, name: str, question: str, guess: str | None = None, check: Check = ...) -> str:
        """Ask for a text; `check` raises a UsageError where an answer will not do."""
        ...

    def choice(self, name: str, question: str, choices: Sequence[str], guess: str | None = None) -> str:
        """Ask for one of some words."""
        ...

    def said(self, name: str) -> Answer | None:
        """What the command line says; None for nothing."""
        ...

    def many(self, name: str) -> Sequence[str]:
        """What the command line says in an option that may be given several times."""
        ...

    def asked(self, name: str) -> bool:
        """Whether a person can be asked, or has answered before."""
        ...


@dataclass(frozen=True)
class Model:
    """A model as it was recognised.

    Args:
        said: what it is, for people.
        block: `prepare.model` of params.yaml, but for its files.
        path: its file or folder, which the audit looks for under its inputs; None for one that is none.
        key: of `prepare.model`, which names that file or folder.
        beside: files that it names, relative to its folder, and that have to lie there with it.
        black_box: it shows no weights that a repair could change.
        absent: it is one of a hub, which has to be fetched before anything is known of it.
    """

    said: str
    block: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    key: str = ""
    beside: Sequence[str] = ()
    black_box: bool = False
    absent: bool = False

    @classmethod
    def of(cls, other: Model) -> Self:
        """The same as this kind of model, of which the rest is unknown."""
        return other if isinstance(other, cls) else cls(**vars(other))

    def named(self, name: str | None) -> dict[str, Any]:
        """`prepare.model` of params.yaml, with its file or folder by the name it has under inputs."""
        return {**self.block, **({self.key: name} if name else {})}


@dataclass(frozen=True)
class Data:
    """Data as they were recognised.

    Args:
        said: what they are, for people.
        block: the block of params.yaml, but for the file or folder.
        path: of the file or folder; None for those that are none.
        key: which names it in the block.
        beside: files that a list names, relative to its folder, which have to lie under inputs with it.
        items: how many can be used; None where that is not known before they are fetched.
        pools: how many of these are meant for which split; {} where the audit draws them.
        absent: they are of a hub, and have to be fetched before anything is known of them.
    """

    said: str
    block: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    key: str = ""
    beside: Sequence[str] = ()
    items: int | None = None
    pools: Mapping[str, int] = field(default_factory=dict)
    absent: bool = False

    @classmethod
    def of(cls, other: Data) -> Self:
        """The same as this kind of data, of which the rest is unknown."""
        return other if isinstance(other, cls) else cls(**vars(other))

    def named(self, name: str | None) -> dict[str, Any]:
        """The block of params.yaml, with the file or folder by the name it has under inputs."""
        return {**({self.key: name} if name else {}), **self.block}

    @property
    def searched(self) -> int | None:
        """Items there are to search; None where nobody knows."""
        return self.pools.get("discover") if self.pools else self.items


@dataclass(frozen=True)
class Seen:
    """What was recognised, and whom to ask what is not known yet.

    Args:
        model: the model.
        data: the data.
        ask: asks, or takes options.
        said: lines for people, to which more may be added.
        place: gives a file of a person, named in an option, its name under the audit's inputs.
    """

    model: Model
    data: Data
    ask: Ask
    said: list[str]
    place: Callable[[Path, str], str]


@dataclass(frozen=True)
class Proposal:
    """What an audit begins with.

    Args:
        concepts: moderate levels, weakest first: calibration draws them in or out.
        notes: comments on concepts: what levels are, with their unit.
        model: more of `prepare.model`.
        data: more of the block of the data.
        prepare: further keys of `prepare`.
        batch_size: probes per batch.
    """

    concepts: Mapping[str, Sequence[float | str]]
    notes: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    prepare: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 64


@dataclass(frozen=True)
class Change:
    """Something else to write in `prepare.model`, which is better by what a trial has shown.

    Args:
        question: for people: "Take the classes in that order".
        likely: whether yes is the answer to expect.
        model: keys of `prepare.model`.
        answers: to questions, as if a person had answered so.
    """

    question: str
    likely: bool
    model: Mapping[str, Any]
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Trial:
    """What the model makes of unchanged items, before anything is written.

    Args:
        title: of a table, whose first row names the columns.
        rows: of that table.
        told: lines beneath it.
        doubt: what seems wrong; "" for nothing.
        option: which settles the doubt unasked.
        advice: what to type.
        change: what would be better; None where nothing is known to be.
    """

    title: str
    rows: Sequence[Sequence[str]]
    told: Sequence[str] = ()
    doubt: str = ""
    option: str = ""
    advice: str = ""
    change: Change | None = None


class Init(ABC):
    """One kind of task, as `faded init` knows it.

    Attributes:
        options: of the command line that no other kind has, by name.
        wants: the question for the data.
        suffixes: of files that may be a model.
        folders: what a folder with a model holds, for people.
        hub_split: of a data set of the hub, the split that is guessed.
        limited: items are those of the data; otherwise there are as many as are wanted.
        most: items of each split that are useful.
        discrepancy: the audit's block.
        meaning: what it is, for people.
        method: of the repair; "" where there is none.
        control: of the repair.
        trying: what the model is tried on, for people; "" where there is no trial.
        trial_of_service: how much of it a trial asks a service about, which may cost money.
    """

    options: ClassVar[Mapping[str, Option]] = {}
    wants: ClassVar[str]
    suffixes: ClassVar[Sequence[str]] = ()
    folders: ClassVar[str] = ""
    hub_split: ClassVar[str] = "validation"
    limited: ClassVar[bool] = True
    most: ClassVar[Mapping[str, int]] = {"discover": 200, "repair": 2000, "test": 1000}
    discrepancy: ClassVar[Mapping[str, Any]]
    meaning: ClassVar[str]
    method: ClassVar[str]
    control: ClassVar[str] = "uniform"
    trying: ClassVar[str] = ""
    trial_of_service: ClassVar[str] = ""

    def model(self, path: Path, ask: Ask) -> Model | None:
        """Recognise a file or folder by its names and heads, without running anything of it; None: not of this kind."""
        return None

    def named_model(self, name: str) -> Model | None:
        """Recognise a model that is not a file: one that is trained on the data, perhaps."""
        return None

    def usual_model(self, data: str) -> str | None:
        """The model to guess where only data are named."""
        return None

    def hub_model(self, name: str) -> dict[str, Any]:
        """`prepare.model` of a model of a hub."""
        return {"transformers": name}

    @abstractmethod
    def data(self, path: Path, given: str, ask: Ask) -> Data:
        """Recognise a file or folder.

        Raises:
            UsageError: when it is none of this kind.
        """

    def named_data(self, name: str) -> Data | None:
        """Recognise data that are not a file: a set that comes with a library."""
        return None

    def hub_data(self, name: str, ask: Ask) -> dict[str, Any]:
        """The block of a data set of the hub."""
        return {"datasets": name, "split": ask.text("split", "Which split of it", self.hub_split)}

    @abstractmethod
    def propose(self, seen: Seen) -> Proposal:
        """Propose an audit, and ask what only a person knows.

        Raises:
            UsageError: when an answer is missing, or will not do.
        """

    def trial(self, context: TaskContext, seen: Seen) -> Trial | None:
        """Ask the model about unchanged items, in a temporary workspace; None: there is nothing to show.

        Raises:
            FadedError: when the model or the data cannot be prepared.
        """
        return None


def existing(given: str, option: str) -> Path | None:
    """The file or folder that is meant; None where it can only be a name of a hub.

    Raises:
        UsageError: when it can be neither.
    """
    path = Path(given).expanduser()
    if path.exists():
        return path
    if given.count("/") == 1 and not given.startswith((".", "/", "~")) and not path.parent.exists():
        return None
    there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UsageError(
        f"{option} {given}: there is no such file or folder, and it is not ORG/NAME on the Hugging Face hub"
        f"{did_you_mean(path.name, there)}"
    )


def cached(name: str, kind: Literal["model", "dataset"] = "model") -> Path | None:
    """Where the local cache has something of the hub; None where it has not."""
    from stages.tasks.hub import DATASET_FILES, MODEL_FILES, Repository

    wanted = MODEL_FILES if kind == "model" else DATASET_FILES
    try:
        return Repository(name.removeprefix("hf-hub:"), wanted=wanted, kind=kind).cached(Path(), "").folder
    except UsageError:
        return None


def read_config(path: Path, option: str = "--model") -> dict[str, Any]:
    """A JSON object that describes a model; {} where there is none.

    Raises:
        UsageError: when it is no JSON.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{option} {path} is not valid JSON: {error}") from None
    return data if isinstance(data, dict) else {}


def json_lines(path: Path, given: str) -> Iterator[dict[str, Any]]:
    """Lines of a table of JSON objects; those that are none are left to the loader to tell.

    Raises:
        UsageError: when it is not text.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for line in filter(str.strip, lines):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(row, dict):
                    yield row
    except UnicodeDecodeError as error:
        raise UsageError(f"--data {given} is not UTF-8 text: {error.reason}") from None


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a .safetensors file by name; only its head is read.

    Raises:
        UsageError: when it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"--model {path} is not a readable safetensors file: {error}") from None
