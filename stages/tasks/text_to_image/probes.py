"""The text-to-image task without its repairs: what a probe is, and what counts as a failure."""

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch

from stages.concepts.prompts import check_slots, fill, pieces, prompt_space, read_templates
from stages.core.errors import UsageError
from stages.core.files import read_table
from stages.tasks.attributes import MOST_VALUES, free_name
from stages.tasks.base import Task
from stages.tasks.contract import ASSETS, SPLITS, Exhibit, Items, ProbeBatch, Quality, Split, TaskContext
from stages.tasks.sources import Source, source_errors
from stages.tasks.text_to_image.config import TextToImageDiscrepancy, TextToImagePrepare, TextToImageRepair, conflicts
from stages.tasks.text_to_image.items import choose_items, misfits, noise_seed, template_errors, unchecked
from stages.tasks.text_to_image.judge_models import JUDGE_LOADERS, JudgeSource, load_judge
from stages.tasks.text_to_image.judges import expected_values, judge_notes, load_quality, quality_errors
from stages.tasks.text_to_image.models import MODEL_LOADERS, scheduler_errors
from stages.tasks.text_to_image.pictures import PICTURE_LOADERS, PictureSource, from_png, strip
from stages.tasks.text_to_image.sample import ModelSource
from stages.tasks.text_to_image.studio import (
    Judged,
    PictureCalibration,
    PictureOrder,
    Studio,
    calibration_records,
    discrepancy,
    measures_of,
    said,
    share_out,
)

UNREADABLE = {"ignored": "not held against the model", "failure": "wrong"}  # in words
ASKED_AGAIN = 1  # salt of the noise seeds of `again`
TIMED = 8  # probes that `prepare` times


class PainterProbes(Task):
    """A text-to-image pipeline under test with its prompts.

    A probe fills an item's template with one level of each slot and draws a few pictures; a judge rates how well they
    show what was asked for (see `measures`).
    """

    init: ClassVar[str] = ".init:PromptsInit"
    mining: ClassVar[str] = ".init:PromptTexts"
    proposing: ClassVar[str] = ".init:PromptVocabulary"
    usage: ClassVar[str] = ".init:PromptReader"

    prepare_block = TextToImagePrepare
    discrepancy_block = TextToImageDiscrepancy
    repair_block = TextToImageRepair
    loaders: ClassVar[Mapping[str, Mapping[str, type[Source]]]] = {
        "model": MODEL_LOADERS,
        "data": PICTURE_LOADERS,
        "judge": JUDGE_LOADERS,
    }
    dtypes = ("float32", "float16", "bfloat16")
    gpu_dtype = "float16"
    learns_from_examples = ("lora",)
    heeds_dose = ("lora", "dpo")
    not_valid = "left pictures that cannot be read where it matters, or that a safety checker blanked"

    def __init__(self, context: TaskContext, items: pd.DataFrame, studio: Studio, pictures: pd.DataFrame) -> None:
        """See Task.load.

        Args:
            items: the table that `prepare` writes.
            studio: the model, with the judges of its pictures.
            pictures: real captioned pictures that repairs can learn from, see `picture_sources.PICTURE_LOADERS`.
        """
        torch.set_num_threads(context.compute.threads)
        self.context, self.studio, self.pictures = context, studio, pictures
        self.painter, self.judge, self.model_hash = studio.painter, studio.judge, studio.painter.hash
        self.config = TextToImagePrepare.model_validate(dict(context.config))
        self.settings = TextToImageDiscrepancy.model_validate(dict(context.discrepancy))
        self.items = Items(items)
        self.concepts = prompt_space(context.concepts)
        self.reference = self.config.bias.shares(self.judge.attributes) if self.config.bias else None
        records = pd.DataFrame(items.attrs["calibration"])
        if self.settings.unreadable == "ignored":
            records["misalignment"] *= ~records["unreadable"]
        self.calibration = PictureCalibration(records, self.config.images, self.reference)
        threshold, alarms = self.settings.threshold, self.settings.false_alarms
        automatic = threshold == "auto"
        self.threshold = self.calibration.threshold(self.settings.weights, alarms) if automatic else float(threshold)
        self._rows = {item: row for row, item in enumerate(items["id"])}
        self._templates, self._seeds = items["template"].tolist(), items["seed"].tolist()
        self.salt = 0  # see `again`
        studio.copies, studio.shared = context.compute.processes, self._look_with_others

    def false_alarms(self) -> dict[str, dict[str, Any]]:
        found = self.calibration.false_alarms(self.settings.weights, self.threshold)
        return {"real captioned pictures in place of drawn ones": found}

    def notes(self) -> list[str]:
        return [
            *judge_notes(self.judge, UNREADABLE[self.settings.unreadable]),
            *(f"Nobody checks {gap}." for gap in unchecked(self.concepts, self.judge)),
        ]

    # Configuration

    @classmethod
    def conflicts(
        cls, context: TaskContext, prepare: TextToImagePrepare | None, discrepancy: TextToImageDiscrepancy | None
    ) -> list[str]:
        errors = slots = check_slots(context.concepts)
        if prepare is not None:
            errors = (
                slots + scheduler_errors(prepare.sampling) + template_errors(prepare.templates, prepare.items, context)
            )
            if discrepancy is not None and not slots:
                errors += conflicts(prepare, discrepancy, prompt_space(context.concepts))
                errors += quality_errors(discrepancy.quality, prepare.judge)
        return errors

    @classmethod
    def repair_conflicts(cls, context: TaskContext, asked: TextToImageRepair) -> list[str]:
        if asked.folder is None:
            return []
        return source_errors(asked.folder, PICTURE_LOADERS, "restructure.settings.folder", context.inputs)

    # Preparation

    @classmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        """See Task: writes model/ and items.parquet, and the judge and real pictures to assets/.

        Raises a UsageError when something is missing, unreadable or does not fit, or prompts exceed the token limit.
        """
        cls.require_valid(context)
        torch.set_num_threads(context.compute.threads)
        config = TextToImagePrepare.model_validate(dict(context.config))
        templates = read_templates(config.templates, context.inputs)
        items = choose_items(templates, config.items, context.seed)
        model: ModelSource = cls.source(context, "model")
        shown: PictureSource = cls.source(context, "data")
        judge: JudgeSource = cls.source(context, "judge")
        pictures, skipped = shown.load(context.inputs)
        pictures = share_out(pictures, context.seed)
        model.build(context.inputs, out_dir / "model", config.sampling)
        judge.build(context.inputs, out_dir / ASSETS / "judge")
        studio = cls._studio(context, pictures, out_dir)
        if lines := misfits(prompt_space(context.concepts), templates, studio.painter, studio.judge):
            raise UsageError("\n".join(lines))
        items.attrs["skipped"] = skipped  # kept in the file, so that the report can list them
        items.attrs["calibration"] = calibration_records(studio, pictures)
        items.to_parquet(out_dir / "items.parquet", compression="zstd", index=False)
        pictures.to_parquet(out_dir / ASSETS / "pictures.parquet", compression="zstd", index=False)
        task = cls(context, items, studio, pictures)
        return {**task._numbers(len(skipped)), "origin": cls.origin(context)}

    def _numbers(self, skipped: int) -> dict[str, Any]:
        """Return what `prepare` reports about the audit."""
        ids = self.items.ids("discover")[:TIMED]
        rng = np.random.default_rng(self.context.seed)
        self.judged(ids[:1], self.concepts.sample(1, rng))  # the very first call takes far longer
        started = time.monotonic()
        drawn = self.judged(ids, self.concepts.sample(len(ids), rng))
        took = time.monotonic() - started
        if all(picture.broken for pictures in drawn for picture in pictures):
            raise UsageError(
                f"prepare.model: all {len(ids) * self.config.images} pictures it drew are {drawn[0][0].fault}"
            )
        by_split = self.items.table["split"].value_counts()
        real = self.calibration.records
        return {
            "items": {split: int(by_split[split]) for split in SPLITS if split in by_split},
            "templates": {s: int(part["template"].nunique()) for s, part in self.items.table.groupby("split")},
            "pictures": {str(split): int(n) for split, n in self.pictures["split"].value_counts().items()},
            "threshold": self.threshold,
            "false_alarms": next(iter(self.false_alarms().values())),
            "real_pictures": {m: float(real[m].mean()) for m in ("misalignment", "unreadable", "poor_quality")},
            "judge": dict(self.judge.note),
            "parameters": self.painter.parameters,
            "skipped": skipped,
            "seconds_per_probe": took / len(ids),
        }

    @classmethod
    def _studio(cls, context: TaskContext, pictures: pd.DataFrame, prepared: Path, model: Path | None = None) -> Studio:
        config = TextToImagePrepare.model_validate(dict(context.config))
        source: ModelSource = cls.source(context, "model")
        painter = source.load(prepared / "model", context.compute, config.sampling, model)
        judge = load_judge(prepared / ASSETS / "judge", context.compute.device)
        quality = TextToImageDiscrepancy.model_validate(dict(context.discrepancy)).quality
        real = [from_png(image) for image in pictures.loc[pictures["split"] == "reference", "image"]]
        return Studio(painter, judge, load_quality(quality, judge, real))

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Self:
        """See Task; `model` may be a pipeline, or LoRA weights for the model under test."""
        items, pictures = read_table(prepared / "items.parquet"), read_table(prepared / ASSETS / "pictures.parquet")
        return cls(context, items, cls._studio(context, pictures, prepared, model), pictures)

    # Prompts

    def words(self, cell: np.ndarray) -> dict[str, str]:
        """Return the phrase that a cell gives each slot."""
        return {c.name: str(c.levels[int(level)]) for c, level in zip(self.concepts.concepts, cell, strict=True)}

    def prompt(self, template: str, cell: np.ndarray) -> str:
        return fill(template, self.words(cell))

    def expected(self, cell: np.ndarray) -> dict[str, str]:
        """Return what a cell lets people expect of a picture, by attribute of the judge."""
        return expected_values(self.judge.attributes, self.words(cell))

    def order(self, template: str, cell: np.ndarray, seed: int) -> PictureOrder:
        """Return a picture to draw: a template filled with a cell, from the noise of a seed."""
        return PictureOrder(self.prompt(template, cell), seed, tuple(self.expected(cell).items()))

    def orders(
        self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None
    ) -> list[list[PictureOrder]]:
        """Return the pictures that each of n probes draws."""
        repeats = np.zeros(len(item_ids), dtype=np.int64) if repeats is None else np.asarray(repeats)
        asked = []
        for item, cell, repeat in zip(item_ids, np.asarray(cells), repeats.tolist(), strict=True):
            row = self._rows[item]
            seeds = [
                noise_seed(self.context.seed, self._seeds[row], repeat, n, self.salt) for n in range(self.config.images)
            ]
            first = self.order(self._templates[row], cell, seeds[0])
            asked.append([first._replace(seed=seed) for seed in seeds])
        return asked

    # Probing

    def judged(
        self,
        item_ids: Sequence[str],
        cells: np.ndarray,
        repeats: np.ndarray | None = None,
        label: str | None = None,
    ) -> list[list[Judged]]:
        """Judge the pictures of each of n probes; `label` names a progress bar."""
        asked = self.orders(item_ids, cells, repeats)
        found = iter(self.studio.look([order for orders in asked for order in orders], label))
        return [[next(found) for _ in orders] for orders in asked]

    def _look_with_others(self, parts: Sequence[Sequence[PictureOrder]]) -> list[list[Judged]]:
        return self.shared(self.look_anew, [(part,) for part in parts])

    def look_anew(self, orders: Sequence[PictureOrder]) -> list[Judged]:
        return self.studio.look_anew(orders)

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """See Task. Outputs describe what was read of the pictures.

        Pictures that the pipeline's safety checker blanked do not count; a probe without any other is not valid. If
        unreadable pictures are ignored, a probe that fails only because of them is not valid either.
        """
        probes = self.judged(item_ids, cells, repeats)
        seen = [[picture for picture in pictures if not picture.blanked] for pictures in probes]
        found = np.array([self._discrepancy(pictures) for pictures in seen], dtype=np.float32)
        outputs = [said(pictures, self.settings.weights, self._attribute) for pictures in probes]
        valid = np.array([bool(pictures) for pictures in seen], dtype=bool)
        if self.settings.unreadable == "ignored":
            kind = [self._discrepancy([picture.charitable for picture in pictures]) for pictures in seen]
            ignoring = np.array(kind, dtype=np.float32)
            valid &= ~((found > self.threshold) & (ignoring <= self.threshold))
            found = ignoring
        return ProbeBatch(found, found > self.threshold, outputs, valid)

    def _discrepancy(self, pictures: Sequence[Judged]) -> float:
        if not pictures:
            return 0.0
        return discrepancy(pictures, self.settings.weights, self._attribute, self.reference)

    @property
    def _attribute(self) -> str:
        return self.config.bias.attribute if self.config.bias else ""

    def clean_quality(self, split: Split) -> Quality:
        """See Task: quality of the pictures of one cell of each item; the cells are the same for every model."""
        ids = self.items.ids(split)
        cells = self.concepts.sample(len(ids), np.random.default_rng([self.context.seed, len(ids)]))
        quality = [
            np.mean([p.quality for p in pictures if not p.blanked] or [0.0])
            for pictures in self.judged(ids, cells, label="quality")
        ]
        return Quality(f"{self.settings.quality} of the pictures", np.array(quality, dtype=np.float64), ids)

    # What explorers and people see

    def features(self, item_ids: Sequence[str]) -> np.ndarray:
        start = self.concepts.start
        prompts = [self.prompt(self._templates[self._rows[item]], start) for item in item_ids]
        return self.painter.embed(prompts).astype(np.float64)

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        """See Task: the template, however long; noise seeds are not groups of items."""
        templates = pd.Series(self._templates, self.items.table["id"])
        few = 2 <= templates.nunique() <= MOST_VALUES
        found = {free_name("template", self.concepts.names): templates[list(item_ids)].tolist()} if few else {}
        return pd.DataFrame(found, index=range(len(item_ids)))

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        asked = self.orders(item_ids, cells)
        drawings = iter(self.studio.show([order for orders in asked for order in orders], "examples"))
        answer = self.probe(item_ids, cells)
        assert answer.valid is not None
        shown = []
        for n, (item, cell) in enumerate(zip(item_ids, np.asarray(cells), strict=True)):
            caption = (
                f"{answer.outputs[n]} (discrepancy {answer.discrepancy[n]:.2f}, a failure above {self.threshold:.2f})"
            )
            if not answer.valid[n]:
                caption = f"{answer.outputs[n]}: not held against the model"
            words = pieces(self._templates[self._rows[item]], self.words(cell))
            drawn = strip([next(drawings).pixels for _ in asked[n]])
            shown.append(Exhibit(caption, drawn=drawn, words=words))
        return shown

    def recalled(self, item_ids: Sequence[str], cells: np.ndarray, answers: ProbeBatch) -> list[Exhibit]:
        """See Task: the prompt alone, as pictures are not kept."""
        return [
            Exhibit(output, words=pieces(self._templates[self._rows[item]], self.words(cell)))
            for item, cell, output in zip(item_ids, np.asarray(cells), answers.outputs, strict=True)
        ]

    # Further measures

    def measure(self, item_ids: Sequence[str], cells: np.ndarray, outputs: Sequence[str]) -> pd.DataFrame:
        """See Task: shares of the pictures of each probe; nan for attributes that the prompt leaves unsaid."""
        return measures_of(
            self.judged(item_ids, cells, label="measures"), tuple(self.judge.attributes), self.settings.quality
        )

    def again(self) -> Self:
        """See Task: the same model with other start noise."""
        other = copy.copy(self)
        other.salt = ASKED_AGAIN
        return other
