"""The questions in their order, what is looked at in between, and what comes of it: all that an audit is made from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from flows.init.architectures import Candidates
from flows.init.classifier import IMAGENET, ask_classes, ask_classifier, ask_view, counted, usual_pictures
from flows.init.data import SPLIT_FOLDERS, Data, existing, look_at_articles, look_at_captions, look_at_pictures
from flows.init.files import Placed, place_name
from flows.init.formats import notes
from flows.init.key import ask_key
from flows.init.labels import match_labels, read_labels, refuse_unsaid, some
from flows.init.model import KINDS, Kind, Model, Shape, cached, hub_key, look_at_model
from flows.init.prompts import Prompts, ask_prompts
from flows.init.propose import FEWEST, Wanted
from flows.init.questions import Check, Questions
from stages.errors import UsageError, did_you_mean
from stages.params import DATA

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Answers:
    """What an audit is made from.

    Args:
        wanted: what was asked for.
        model: the model, as it was recognised.
        data: the data, as they were recognised.
        placed: what has to lie under inputs.
        said: what was seen, a line each.
    """

    wanted: Wanted
    model: Model
    data: Data
    placed: Sequence[Placed]
    said: Sequence[str]

    @property
    def searched(self) -> int | None:
        """Items there are to search; None where nobody knows."""
        return self.data.pools.get("discover") if self.data.pools else self.data.items


def ask(
    questions: Questions,
    workspace: Path,
    audits: Sequence[str],
    *,
    labels: Sequence[str],
    words: Sequence[str],
    budget: int | None,
) -> Answers:
    """Ask what is not said, and look at the model and the data.

    Args:
        questions: asks, or takes options.
        workspace: where the audit will be.
        audits: names that are taken.
        labels: LABEL=CLASS of the command line.
        words: SLOT=WORD,WORD of it.
        budget: of the search, if it was given.

    Raises:
        UsageError: when an answer is missing, or will not do.
    """
    model = _model(questions)
    kind = _kind(questions, model)
    _refuse_idle(questions, kind, words)
    data = _data(questions, kind)
    said = [f"model: {model.said}", f"data:  {data.said}"]
    if data.labels:
        said.append(f"by class: {counted(data)}")
    prompts = ask_prompts(questions, data, words) if kind == "text-to-image" else None
    classifies = kind == "image-classification"
    classes = ask_classes(questions, model, data) if classifies else []
    mapping = _labels(questions, model, classes, data, labels, said) if classifies else {}
    name = questions.text("name", "Name of the audit", _guess_name(model, data, audits), _name_check(audits))
    repair = _repair(questions, kind, model, data, said)
    files = _Files(workspace, name)
    source = model.named(files.add(model.path, "--model", model.beside))
    if model.absent:
        given = str(questions.answers["model"])
        source = {hub_key(kind, given): given}
    block = data.named(files.add(data.path, "--data", data.beside))
    if "endpoint" in source:
        source |= ask_key(questions, model)
    elif questions.said("key-env") is not None:
        raise UsageError(f"--key-env is of a model behind a URL; found {model.said}")
    if classifies:
        source |= {"classes": classes} if classes else {}
        source |= ask_classifier(questions, model, data)
        block |= ask_view(questions, model, data)
    if mapping:
        block["labels"] = mapping
    wanted = Wanted(
        name, kind, source, block, repair, budget, data.items, data.pools, *_more(kind, source, prompts, files)
    )
    if data.traits:
        answers = Answers(wanted, model, data, files.placed, said)
        said += notes(
            data.traits, data.sides, model.shape[0], max(filter(None, shape_shown(answers)[1:]), default=None)
        )
    if questions.unasked:
        taken = ", ".join(f"{name}: {answer}" for name, answer in questions.unasked.items())
        said.append(f"guessed: {taken}; options say otherwise")
    return Answers(wanted, model, data, files.placed, said)


def _refuse_idle(questions: Questions, kind: Kind, words: Sequence[str]) -> None:
    """Refuse options that are of another kind of model: they would be passed over."""
    of: Mapping[Kind, Sequence[str]] = {
        "image-classification": ("classes", "size", "normalise", "outputs"),
        "summarization": ("text",),
        "text-to-image": ("templates", "judge"),
    }
    idle = [f"--{name}" for other, names in of.items() if other != kind for name in names if questions.said(name)]
    idle += ["--words"] if words and kind != "text-to-image" else []
    if idle:
        raise UsageError(f"{', '.join(idle)}: not of a model for {kind}")


def _model(questions: Questions) -> Model:
    seen: dict[str, Model] = {}

    def architecture(found: Candidates, check: Check) -> str:
        more = f"; {found.told}" if found.told else ""
        asked = f"Which architecture are these weights of (timm, torchvision{more})"
        return questions.text("architecture", asked, found.guess, check)

    def look(answer: str) -> None:
        seen[answer] = look_at_model(answer, architecture)

    answer = questions.text(
        "model", "The model: a file, a folder, ORG/NAME of the Hugging Face hub, or a URL", None, look
    )
    return seen[answer]


def _kind(questions: Questions, model: Model) -> Kind:
    if model.kind is not None and questions.said("kind") is None:
        return model.kind
    answer = questions.choice("kind", "What does it do", KINDS)
    kind = next(kind for kind in KINDS if kind == answer)
    if model.kind is not None and kind != model.kind:
        raise UsageError(f"--kind {kind}: the model is {model.said}, which is for {model.kind}")
    return kind


_WHAT: Mapping[Kind, str] = {
    "image-classification": "Pictures with labels: a folder of each class, a .jsonl or .parquet file",
    "summarization": "Articles: a .jsonl file, or a folder of a data set",
    "text-to-image": "Real captioned pictures: a folder with metadata.jsonl, or a .parquet file",
}


def _data(questions: Questions, kind: Kind) -> Data:
    seen: dict[str, Data] = {}

    def articles(path: Path, given: str) -> Data:
        return look_at_articles(path, given, partial(_column_of_articles, questions))

    looks: Mapping[Kind, Callable[[Path, str], Data]] = {
        "image-classification": look_at_pictures,
        "summarization": articles,
        "text-to-image": look_at_captions,
    }

    def look(answer: str) -> None:
        path = existing(answer, "--data")
        seen[answer] = _of_the_hub(questions, kind, answer) if path is None else looks[kind](path, answer)

    return seen[questions.text("data", _WHAT[kind], None, look)]


def _column_of_articles(questions: Questions, columns: Sequence[str], likely: str | None) -> str:
    """The column that an option names, or the likely one; where there is none, the one a person says."""
    said = questions.said("text")
    if said is None and likely is not None:
        return likely

    def check(answer: str) -> None:
        if answer not in columns:
            raise UsageError(
                f"--text {answer}: the data have no such column{did_you_mean(answer, columns)};"
                f" found {', '.join(columns) or 'none'}"
            )

    return questions.text("text", f"Which column holds the articles ({', '.join(columns)})", None, check)


def _of_the_hub(questions: Questions, kind: Kind, name: str) -> Data:
    """A data set of the hub, of which nothing is known before it is fetched."""
    said, absent = f"{name} of the Hugging Face hub", cached(name, "dataset") is None
    said += ", not fetched yet" if absent else ""
    if kind == "text-to-image":
        split = questions.text("split", "Which split of it", "train")
        return Data(said, {"dataset": name, "split": split}, absent=absent)
    split = questions.text("split", "Which split of it", "validation")
    block: dict[str, Any] = {"datasets": name, "split": split}
    if kind == "summarization":
        block["text"] = questions.text("text", "Which column holds the articles", "article")
    return Data(said, block, absent=absent)


def _labels(
    questions: Questions, model: Model, named: Sequence[str], data: Data, given: Sequence[str], said: list[str]
) -> dict[str, str]:
    """Which class of the model a label of the data is, where they differ; nothing where they are the same.

    Args:
        questions: asks, or takes options.
        model: with its classes, if it has names of them.
        named: classes as a person named them, if one did.
        data: with their labels.
        given: LABEL=CLASS of the command line.
        said: what was seen, to which a line is added.

    Raises:
        UsageError: when a label is like no class, and nobody says which it is.
    """
    classes = list(named or model.classes)
    if not classes and model.n_classes == IMAGENET:
        from stages.tasks.classification.imagenet import class_names

        classes = class_names()
    told = read_labels(given, data.labels, classes)
    if not classes and data.classes:
        said.append(
            f"classes: {some(data.classes)}: the data's, in their order, for nothing names the model's; see --classes"
        )
    if not classes or not data.labels:
        return told
    from stages.tasks.classification.pool import class_indices

    known = class_indices(classes)
    asked = [label for label in data.labels if label not in known and label not in told]
    taken = [*told.values(), *(classes[known[label]] for label in data.labels if label in known and label not in told)]
    matched = match_labels(asked, classes, taken)
    refuse_unsaid({label: near for label, near in matched.open.items() if not questions.asked(_key(label))}, classes)
    for label, near in matched.open.items():
        told[label] = questions.text(_key(label), f"Which class is the label {label!r}", near, _one_of(classes))
    pairs = {**matched.sure, **told}
    seen = {pairs.get(label) or classes[known[label]] for label in data.labels}
    if len(seen) < len(classes) != IMAGENET:
        missing = [name for name in classes if name not in seen]
        said.append(f"classes: the model has {len(classes):,}, of which the data have no picture of {some(missing)}")
    if pairs:
        said.append(
            f"labels: {len(pairs)} are written otherwise than the model's classes: "
            + ", ".join(f"{label} is {name}" for label, name in pairs.items())
        )
    return pairs


def _key(label: str) -> str:
    return f"label {label}="


def _one_of(classes: Sequence[str]) -> Check:
    def check(answer: str) -> None:
        if answer not in classes:
            raise UsageError(
                f"the model has no class {answer!r}{did_you_mean(answer, classes)}; it has {some(classes)}"
            )

    return check


def _guess_name(model: Model, data: Data, audits: Sequence[str]) -> str:
    path = data.path or model.path
    if path is not None and path.name in SPLIT_FOLDERS:  # of a set, whose folder has the better name
        path = path.resolve().parent
    stem = (re.sub(r"[^a-z0-9_]+", "-", path.stem.lower()).strip("-_") if path else "") or "audit"
    stem = stem if _is_text(stem) else f"audit-{stem}"
    name, n = stem, 1
    while name in audits:
        n += 1
        name = f"{stem}-{n}"
    return name


def _name_check(audits: Sequence[str]) -> Check:
    def check(name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(f"--name {name}: expected letters, digits, - and _")
        if not _is_text(name):
            raise UsageError(f"--name {name}: YAML does not read that as text but as {yaml.safe_load(name)!r}")
        if name in audits:
            raise UsageError(f"--name {name}: params.yaml has an audit of that name already; choose another")

    return check


def _is_text(name: str) -> bool:
    """Whether params.yaml can name an audit so without quotes."""
    return isinstance(yaml.safe_load(name), str)


def _repair(questions: Questions, kind: Kind, model: Model, data: Data, said: list[str]) -> bool:
    """Whether a repair is to follow; where none is possible, why."""
    why = None
    if model.black_box:
        why = "a model whose weights are not seen cannot be repaired"
    elif data.items is not None and kind != "text-to-image" and not _enough(data):
        why = f"a repair needs {FEWEST} items for each of discover, repair and test"
    if why is None:
        return questions.confirm("repair", "Repair the model as well, and compare", True)
    if questions.said("repair") is True:
        raise UsageError(f"--repair: {why}")
    said.append(f"repair: none, {why}; the audit ends with the failure landscape")
    return False


def _enough(data: Data) -> bool:
    if data.pools:
        return all(data.pools.get(split, 0) >= FEWEST for split in ("discover", "repair", "test"))
    return (data.items or 0) >= 3 * FEWEST


class _Files:
    """Gives files of a person their names under the audit's inputs."""

    def __init__(self, workspace: Path, audit: str) -> None:
        self._inputs = (workspace / DATA / audit / "inputs").resolve()
        self.placed: list[Placed] = []

    def add(self, path: Path | None, option: str = "", beside: Sequence[str] | None = None) -> str | None:
        """The name of a file or folder; one that names others `beside` it gets a folder, in which they lie, too.

        Raises:
            UsageError: when it is a folder that holds the workspace, or somebody's home.
        """
        if path is None:
            return None
        if path.resolve().is_relative_to(self._inputs):
            return path.resolve().relative_to(self._inputs).as_posix()
        path = path.absolute() if beside else path.resolve()
        inside = self._inputs.is_relative_to(path)
        if path.is_dir() and (inside or Path.home().resolve().is_relative_to(path)):
            raise UsageError(
                f"{option} {path}: this folder holds {'the inputs of the audit itself' if inside else 'a home'}, and"
                " all of it would be linked or copied; put what the audit is to read into a folder of its own"
            )
        known = next((one.name for one in self.placed if one.source == path), None)
        name = known or place_name(path.with_suffix("") if beside else path, [one.name for one in self.placed])
        if known is None:
            self.placed.append(Placed(name, path, tuple(beside or ())))
        return f"{name}/{path.name}" if beside else name


def _more(
    kind: Kind, source: Mapping[str, Any], prompts: Prompts | None, files: _Files
) -> tuple[dict[str, Any], Mapping[str, Sequence[float | str]]]:
    """Further keys of `prepare`, and levels of concepts, that only some kinds have."""
    if prompts is None:
        return {}, {}
    judge = {prompts.judge_key: files.add(prompts.judge, "--judge") or prompts.judge_name}
    prepare = {"judge": judge, "templates": files.add(prompts.templates, "--templates")}
    return prepare, {slot: list(words) for slot, words in prompts.words.items()}


def shape_shown(answers: Answers) -> Shape:
    """Channels, height, width of the pictures a model is shown: its own, where they are known, else the data's."""
    model, data, asked = answers.model, answers.data, answers.wanted
    side = asked.data.get("size") or asked.model.get("size")
    if side is None and model.key == "weights":
        side = usual_pictures(model).side
    height, width = (side, side) if side else model.shape[1:] if model.shape[1] else data.shape[1:]
    # A network for colour is shown grey pictures as they are: there is no colour to take away.
    channels = 1 if 1 in (model.shape[0], data.shape[0]) else model.shape[0] or data.shape[0]
    return channels, height, width
