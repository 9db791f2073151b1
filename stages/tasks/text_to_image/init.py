"""`faded init` for text-to-image generation: templates of prompts, words for their slots, and a judge.

Also what `faded mine`, `faded propose` and `faded usage` have to know about prompts.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.concepts import Level
from stages.concepts.prompts import UNSAID, check_slots, check_templates, read_templates
from stages.core.errors import UsageError, did_you_mean
from stages.core.files import parquet_metadata, read_table
from stages.tasks.choosing import ITEMS, Draft, MinedTexts, Vocabulary, with_items
from stages.tasks.init import Ask, Data, Init, Model, Option, Proposal, Seen, existing, json_lines, read_config
from stages.tasks.text_to_image.items import FEWEST, misfits
from stages.tasks.text_to_image.probes import PainterProbes
from stages.usage import measures
from stages.usage.measures import TextReader

_FEW = 30  # values that a column of words has at most
_MOST_WORDS = 6  # words proposed for a slot from the table of the pictures: each enlarges the grid


@dataclass(frozen=True)
class Captions(Data):
    """Captioned pictures; `columns` are the values of the other columns of their table."""

    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


class PromptsInit(Init):
    """Prompts with slots for words, and a model that draws them."""

    options: ClassVar[Mapping[str, Option]] = {
        "templates": Option("A file of prompts with a {slot} for every word that changes."),
        "words": Option("Words that can fill a slot; repeatable.", "SLOT=WORD,WORD", many=True),
        "judge": Option("Folder of a judge, or a CLIP model on the hub."),
    }
    wants = "Real captioned pictures: a folder with metadata.jsonl, or a .parquet file"
    folders = "model_index.json of diffusers"
    hub_split, limited = "train", False
    most: ClassVar[Mapping[str, int]] = {"discover": 60, "repair": 20, "test": 60}
    discrepancy: ClassVar[Mapping[str, Any]] = {"measure": "misalignment", "threshold": "auto"}
    meaning = """\
How much of its prompt the judge does not see in a picture. A failure is what real captioned pictures exceed in 5%
of the probes."""
    method = "lora"

    def model(self, path: Path, ask: Ask) -> Model | None:
        if not (index := read_config(path / "model_index.json")):
            return None
        unet = read_config(path / "unet" / "config.json")
        side = f", {unet['sample_size']} latent pixels" if isinstance(unet.get("sample_size"), int) else ""
        return Model(f"{index.get('_class_name', 'pipeline')} of diffusers{side}", path=path, key="diffusers")

    def hub_model(self, name: str) -> dict[str, Any]:
        return {"diffusers": name}

    def data(self, path: Path, given: str, ask: Ask) -> Captions:
        if path.is_dir() and (path / "metadata.jsonl").exists():
            key, rows = "imagefolder", list(json_lines(path / "metadata.jsonl", given))
        elif path.suffix == ".parquet":
            key, rows = "parquet", _table_rows(path, given)
        else:
            raise UsageError(
                f"--data {given}: expected a folder of pictures with a metadata.jsonl (file_name and text of each), or"
                " a .parquet file with the columns image and text"
            )
        if not rows or "text" not in rows[0]:
            found = ", ".join(rows[0]) if rows else "no rows"
            raise UsageError(f"--data {given}: expected captions in a column `text`, found {found}")
        told = {
            name: Counter(str(row[name]) for row in rows if row.get(name))
            for name in rows[0]
            if name not in ("text", "file_name", "image", "split", "id")
        }
        few = {name: [value for value, _ in n.most_common()] for name, n in told.items() if 2 <= len(n) <= _FEW}
        said = f"{len(rows):,} captioned pictures" + (f", whose table also says {', '.join(few)}" if few else "")
        return Captions(said, path=path, key=key, items=len(rows), columns=few)

    def propose(self, seen: Seen) -> Proposal:
        ask, asked = seen.ask, "File of prompts, one a line, with a {slot} for every word that is to change"
        given = ask.text("templates", asked, check=lambda answer: _slots(Path(answer).expanduser()))
        templates = Path(given).expanduser()
        slots = _slots(templates)
        told = _read_words(ask.many("words"), slots)
        words = {slot: told.get(slot) or _ask_words(ask, slot, Captions.of(seen.data)) for slot in slots}
        asked = "Who looks at the pictures (folder of a judge, or a CLIP model of the hub)"
        judge = ask.text("judge", asked, check=_check_judge)
        key = "clip"
        if (path := existing(judge, "--judge")) is not None:
            key = "attributes" if "attributes" in read_config(path / "config.json", "--judge") else "clip"
            judge = seen.place(path, "--judge")
        prepare = {"judge": {key: judge}, "templates": seen.place(templates, "--templates")}
        return Proposal(words, prepare=prepare, batch_size=16 if "endpoint" in seen.model.block else 48)


def _table_rows(path: Path, given: str) -> list[dict[str, Any]]:
    schema = parquet_metadata(path, "--data").schema.to_arrow_schema()
    try:
        names = [name for name in schema.names if name != "image"]
        rows: list[dict[str, Any]] = pq.read_table(path, columns=names).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"--data {given} is not a readable parquet file: {error}") from None
    return rows


def _slots(path: Path) -> list[str]:
    """Return the names of the slots of a file of templates.

    Raises a UsageError when there is no such file, no slot in it, or one that is not in every prompt.
    """
    if not path.is_file():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"--templates {path}: there is no such file{did_you_mean(path.name, there)}")
    templates = read_templates(path.name, path.parent, "--templates")
    try:
        slots = dict.fromkeys(name for line in templates for _, name, _, _ in Formatter().parse(line) if name)
    except ValueError as error:
        raise UsageError(f"--templates {path}: {error}") from None
    if not slots:
        raise UsageError(f"--templates {path}: no prompt has a slot, as in 'a photo of a {{colour}} {{animal}}'")
    if errors := check_slots({slot: ["", "a word"] for slot in slots}):
        raise UsageError(f"--templates {path}: {'; '.join(errors)}")
    if errors := check_templates(templates, list(slots), f"--templates {path}"):
        raise UsageError("\n".join(errors))
    if len(templates) < (fewest := sum(FEWEST.values())):
        each = ", ".join(f"{split} {count}" for split, count in FEWEST.items())
        raise UsageError(
            f"--templates {path}: expected {fewest} prompts or more, as none is in two splits and these need {each};"
            f" found {len(templates)}"
        )
    return list(slots)


def _read_words(given: Sequence[str], slots: Sequence[str]) -> dict[str, list[str]]:
    told = {}
    for one in given:
        slot, equals, words = one.partition("=")
        if not equals or slot not in slots:
            raise UsageError(
                f"--words {one}: expected SLOT=WORD,WORD with a slot of the templates, which are"
                f" {', '.join(slots)}{did_you_mean(slot, slots)}"
            )
        told[slot] = _listed(words)
    return told


def _ask_words(ask: Ask, slot: str, data: Captions) -> list[str]:
    known = data.columns.get(slot) or data.columns.get(slot.replace("_", " ")) or ()
    guess = ", ".join(known[:_MOST_WORDS]) or None

    def check(answer: str) -> None:
        if errors := check_slots({slot: _listed(answer)}):
            raise UsageError("; ".join(errors))

    asked = ask.text(f"words {slot}=", f"Words for {{{slot}}}, separated by commas", guess, check)
    return _listed(asked)


def _listed(words: str) -> list[str]:
    """Split words at commas, and add "" first: a prompt that leaves the slot unsaid is the plainest."""
    return ["", *(word.strip() for word in words.split(",") if word.strip())]


def _check_judge(answer: str) -> None:
    path = existing(answer, "--judge")
    if path is not None and not read_config(path / "config.json", "--judge"):
        raise UsageError(
            f"--judge {answer}: expected a folder with config.json, of a CLIP model or of a judge of Faded's"
        )


_MANY = 12  # maximum number of a slot's levels that are sent


class PromptTexts(MinedTexts):
    """Templates of prompts: other words in them, and more slot levels if the judge reads prompts."""

    column = "template"
    templates = True

    def given(self, task: PainterProbes, item_ids: Sequence[str], cells: np.ndarray) -> list[str]:
        return [orders[0].prompt for orders in task.orders(item_ids, cells)]

    def expected(self, items: pd.DataFrame) -> list[str]:
        return ["pictures of what the prompt says"] * len(items)

    def may_add_levels(self, task: PainterProbes) -> bool:
        return bool(getattr(getattr(task, "judge", None), "reads_prompts", False))


class PromptVocabulary(Vocabulary):
    """Further phrases for slots, and further slots at the end of every template."""

    def lines(self) -> list[str]:
        slots = [
            f"{slot}: a slot of the prompts, has {', '.join(map(repr, levels[:_MANY]))}; levels are further phrases"
            for slot, levels in self.audit.concepts.items()
        ]
        return [
            *slots,
            "any other name in lower case: a new slot; levels are phrases that end a prompt well after a comma, as in"
            ' "a photo of a dog, at night"',
        ]

    def with_concept(self, draft: Draft, concept: str, levels: Sequence[Level] | Mapping[str, str]) -> Draft:
        if isinstance(levels, Mapping) or not all(isinstance(level, str) for level in levels):
            raise UsageError("expected levels that are phrases")
        own = draft.concepts.get(concept, [UNSAID])
        if not (new := [level for level in dict.fromkeys(levels) if level not in own]):
            raise UsageError("the audit has these levels, or they were proposed before")
        if concept in draft.concepts:
            return draft.plus(concept, [*own, *new], new)
        templates = [_with_slot(template, concept) for template in self._templates(draft)]
        return draft.plus(concept, [*own, *new], new, templates=templates)

    def items(self, draft: Draft, prepared: Path, folder: Path) -> Path:
        """See Vocabulary: the items contain the templates."""
        before, after = self._templates(self.start), self._templates(draft)
        if before == after:
            return prepared
        items = read_table(prepared / ITEMS)
        items["template"] = items["template"].map(dict(zip(before, after, strict=True)))
        return with_items(items, prepared, folder)

    def require_fit(self, task: PainterProbes) -> None:
        """See Vocabulary: prompts must not be longer than the model can read."""
        templates = task.items.table["template"].tolist()
        if lines := misfits(task.concepts, templates, task.painter, task.judge):
            raise UsageError("\n".join(lines))

    def _templates(self, draft: Draft) -> list[str]:
        return read_templates(draft.config["templates"], self.context.inputs)


def _with_slot(template: str, slot: str) -> str:
    said = re.sub(r"[.!?]*$", "", template)
    return f"{said}, {{{slot}}}{template[len(said) :]}"


class PromptReader(TextReader):
    """Prompts of a text-to-image model: the words of its slots are counted."""

    fields = ("prompt", "text", "caption")
    task: PainterProbes

    def measured_by(self) -> Mapping[str, Sequence[str]]:
        return {name: (f"{name} first",) for name in self.task.concepts.names}

    def own(self, ids: Sequence[str], cells: np.ndarray) -> pd.DataFrame:
        return self.measure([orders[0].prompt for orders in self.task.orders(ids, cells)])

    def measure(self, texts: Sequence[str]) -> pd.DataFrame:
        levels = {concept.name: [str(level) for level in concept.levels] for concept in self.task.concepts.concepts}
        return measures.of_prompts(texts, levels)
