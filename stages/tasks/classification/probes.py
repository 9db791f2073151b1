"""Image classification under test: what a probe is, and what counts as a failure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages.concepts.catalogue import with_plugins
from stages.concepts.images import CATALOGUE, ImageConcept, ImageTransforms, check_concepts, image_space, probe_chance
from stages.core.errors import UsageError
from stages.core.files import content_hash, read_table
from stages.core.intervals import wilson
from stages.tasks.base import Task
from stages.tasks.classification.backends import BACKENDS, PICTURES, Backend, choose_backend, compute_errors, only_eager
from stages.tasks.classification.black_boxes import BLACK_BOXES
from stages.tasks.classification.config import DiscrepancyConfig, PrepareConfig, RepairSettings
from stages.tasks.classification.data import DATA_LOADERS
from stages.tasks.classification.gradient import MISSING, has_foolbox, noisy
from stages.tasks.classification.loaders import MODEL_LOADERS
from stages.tasks.classification.models import Classifier, ModelSource, load_model, save_model
from stages.tasks.classification.pictures import DataSource, choose_items
from stages.tasks.classification.reference import READABLE, REFERENCE_LOADERS, LoaderData, Reference, add_readable
from stages.tasks.contract import SPLITS, Chosen, Exhibit, Items, ProbeBatch, Quality, Split, TaskContext, item_numbers
from stages.tasks.sources import Source

COMPARED = 500  # maximum number of pictures on which the reference and the model under test are compared
COMPARISON = b"reference"  # seeds the random draws of that comparison
_UNREADABLE = "; the reference cannot read it either, so it is not held against the model"


class ClassifierProbes(Task):
    """A classifier under test with its images.

    The discrepancy of a probe is tanh((best other logit - true logit) / scale), in [-1, 1]: above 0 the model is wrong.
    With a reference (`prepare.reference`), failures on unreadable pictures do not count.
    Subclasses may extend `catalogue` with their own concepts, see `stages.concepts.images`.
    """

    init: ClassVar[str] = ".init:PicturesInit"
    proposing: ClassVar[str] = ".init:PictureVocabulary"
    usage: ClassVar[str] = ".init:PictureReader"

    catalogue: ClassVar[Mapping[str, ImageConcept]] = with_plugins(CATALOGUE, ImageConcept)

    prepare_block = PrepareConfig
    discrepancy_block = DiscrepancyConfig
    repair_block = RepairSettings
    heeds_dose = ("all-layers", "self-distilled", "last-layer")
    loaders: ClassVar[Mapping[str, Mapping[str, type[Source]]]] = {
        "model": MODEL_LOADERS,
        "reference": REFERENCE_LOADERS,
        "data": DATA_LOADERS,
    }
    backends = BACKENDS

    def __init__(self, context: TaskContext, items: pd.DataFrame, model: Classifier, model_hash: str) -> None:
        torch.set_num_threads(context.compute.threads)
        self.context = context
        self.model_hash = model_hash
        self.model = model.to(context.compute.device)
        self.settings = DiscrepancyConfig.model_validate(dict(context.discrepancy))
        self.threshold = self.settings.threshold
        self.items = Items(items.drop(columns=["image", "target", READABLE], errors="ignore"))
        self._seen = LoaderData.of(items)
        self._readable = items[READABLE].to_numpy(dtype=bool) if self._seen else np.empty(0, dtype=bool)
        self.concepts = image_space(context.concepts, self.catalogue)
        self._transforms = ImageTransforms(self.concepts, self.catalogue)
        device = context.compute.device
        pixels = np.frombuffer(b"".join(items["image"]), np.uint8).reshape(-1, *model.form.shape)
        self._pixels = torch.tensor(pixels, device=device)
        self._targets = torch.tensor(items["target"].to_numpy(np.int64), device=device)
        self._rows = {item: row for row, item in enumerate(items["id"])}
        self._numbers = item_numbers(items["id"])
        self._features: dict[int, np.ndarray] = {}
        # Convolutions and pooling are faster if the channels of a pixel are contiguous.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        """The backend that runs the model; recreated if the model is replaced."""
        if self._backend is None or self._backend.model is not self.model:
            self._backend = Backend(self.model, self.context.compute)
        return self._backend

    @cached_property
    def reference(self) -> Reference:
        """The reference that decides which pictures are readable; loaded on first use."""
        context, seen = self.context, self._seen
        assert seen is not None
        model = self.source(context, "reference").build(context.inputs, seen.pool, context.seed, context.compute.device)
        return Reference(model, self.model.form.classes, self.items.table["label"], context.compute)

    # Configuration

    @classmethod
    def conflicts(cls, context: TaskContext, prepare: PrepareConfig | None, discrepancy: Any) -> list[str]:
        return check_concepts(context.concepts, cls.catalogue)

    @classmethod
    def compute_errors(cls, context: TaskContext) -> list[str]:
        return compute_errors(context.compute, _black_box(context))

    @classmethod
    def only_eager(cls, context: TaskContext) -> str:
        return only_eager(context.compute, _black_box(context))

    @classmethod
    def attack_errors(cls, context: TaskContext) -> list[str]:
        if kind := _black_box(context):
            return [f"a model that runs by itself (prepare.model.{kind}) provides no gradients"]
        return [] if has_foolbox() else [MISSING]

    # Preparation

    @classmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        """See Task: writes model/ and items.parquet, returns items and clean accuracy per split.

        Raises a UsageError when data or weights are missing, corrupt or do not fit each other.
        """
        cls.require_valid(context)
        torch.set_num_threads(context.compute.threads)
        config = PrepareConfig.model_validate(dict(context.config))
        data: DataSource = cls.source(context, "data")
        source: ModelSource = cls.source(context, "model")
        pool = data.load(context.inputs)
        model = source.build(context.inputs, pool, context.seed, context.compute.device)
        classes = model.form.classes
        items = choose_items(pool, config.items, classes, context.seed, model.form.shape, model.form.view)
        save_model(model, out_dir / "model")
        stronger: ModelSource | None = cls.source(context, "reference")
        if stronger is not None:
            add_readable(items, stronger, pool, model.form, context)
        items.to_parquet(out_dir / "items.parquet", compression="zstd", index=False)
        task = cls.load(context, out_dir)
        chosen = {"chosen_backend": task.choose_backend()} if context.compute.backend == "auto" else {}
        present = [split for split in SPLITS if task.items.ids(split)]
        return {
            "items": {split: len(task.items.ids(split)) for split in present},
            "clean_accuracy": {split: float(task.clean_quality(split).values.mean()) for split in present},
            "classes": len(classes),
            "parameters": sum(p.numel() for p in model.parameters()),
            "skipped": len(items.attrs["skipped"]),
            "origin": {
                "model": f"{model.form.architecture}, {model.form.origin}",
                **task.judged_by,
                **cls.origin(context),
            },
            **chosen,
        }

    def choose_backend(self) -> Chosen:
        """Resolve `compute.backend: auto` on clean pictures of this audit, and use the result from now on."""
        rows = np.linspace(0, len(self._rows) - 1, PICTURES).astype(np.int64)
        chosen = choose_backend(self.model, self.context.compute, self.clean(rows), _black_box(self.context))
        self.context = replace(self.context, compute=replace(self.context.compute, backend=chosen.backend))
        return chosen

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Self:
        path = prepared / "items.parquet"
        items = read_table(path)
        folder = model or prepared / "model"
        named = context.config.get("model")
        loaded = load_model(folder, named if isinstance(named, Mapping) else None)
        expected = int(np.prod(loaded.form.shape))
        if len(items["image"].iloc[0]) != expected:
            raise UsageError(
                f"{path} holds images of {len(items['image'].iloc[0])} bytes, the model takes {loaded.form.shape}"
            )
        return cls(context, items, loaded, content_hash([folder]))

    # Probing

    def inputs(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> Tensor:
        """Return the changed pictures that the model sees: (n, c, h, w) float32 in [0, 1]."""
        rows = self.rows(item_ids)
        cells = np.asarray(cells, dtype=np.int64)
        repeats = np.zeros(len(rows), dtype=np.int64) if repeats is None else np.asarray(repeats)
        chance = probe_chance(self._numbers[rows], self.concepts.flat(cells), repeats, self.context.seed)
        # Process channels as separate planes: most changes of pixels are several times as fast that way.
        changed = self._transforms(self._unchanged(rows), cells, chance)
        return changed.contiguous(memory_format=torch.channels_last)

    def rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """Return the rows of items in the table: (n,) int64."""
        return np.array([self._rows[item] for item in item_ids], dtype=np.int64)

    def clean(self, rows: np.ndarray) -> Tensor:
        """Return the unchanged images of some rows: (n, c, h, w) float32 in [0, 1]."""
        return self._unchanged(rows).contiguous(memory_format=torch.channels_last)

    def _unchanged(self, rows: np.ndarray) -> Tensor:
        return self._pixels[torch.from_numpy(rows).to(self._pixels.device)].float().div_(255)

    def targets(self, rows: np.ndarray) -> Tensor:
        """Return the class indices of some rows: (n,) int64."""
        return self._targets[torch.from_numpy(rows).to(self._targets.device)]

    def _batches(self, n: int) -> Iterator[slice]:
        size = self.context.compute.batch_size
        return (slice(start, start + size) for start in range(0, n, size))

    def logits(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> Tensor:
        """Return the model's logits for n probes: (n, classes) float32 on the CPU."""
        batches = [
            (item_ids[batch], cells[batch], None if repeats is None else repeats[batch])
            for batch in self._batches(len(item_ids))
        ]
        answers = self.shared(self.answer, batches)
        return torch.from_numpy(np.concatenate(answers or [np.empty((0, len(self.model.form.classes)), np.float32)]))

    @torch.inference_mode()
    def answer(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None) -> np.ndarray:
        """Return `logits` of at most one batch."""
        with self.backend.threads():
            return self.backend(self.inputs(item_ids, cells, repeats)).numpy()

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """See Task. Outputs are the predicted class and its probability: "7 (83%)".

        If the model fails on a changed picture that the reference cannot read either, the probe is not valid and has
        not failed (see `reference`).
        """
        logits = self.logits(item_ids, np.asarray(cells), repeats)
        found = self._discrepancy(logits, self.targets(self.rows(item_ids)).cpu()).numpy()
        valid = self._valid(found > self.threshold, item_ids, cells, repeats)
        if valid is not None:
            found = np.where(valid, found, np.minimum(found, np.float32(self.threshold)))
        shares, predicted = logits.softmax(1).max(1)
        names = self.model.form.classes
        outputs = [f"{names[k]} ({p:.0%})" for k, p in zip(predicted.tolist(), shares.tolist(), strict=True)]
        return ProbeBatch(found, found > self.threshold, outputs, valid)

    def _valid(
        self, failed: np.ndarray, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None
    ) -> np.ndarray | None:
        """Return the probes for which the model can be blamed, (n,) bool; None if there is no reference.

        The reference is only queried where the model fails.
        """
        if self._seen is None:
            return None
        valid, cells = np.ones(len(item_ids), dtype=bool), np.asarray(cells)
        doubtful = np.flatnonzero(failed & self._readable[self.rows(item_ids)])
        asked, cells = [item_ids[n] for n in doubtful.tolist()], cells[doubtful]
        repeats = None if repeats is None else np.asarray(repeats)[doubtful]
        labels = self.targets(self.rows(asked)).cpu().numpy()
        right = self._reference_says(asked, cells, repeats) == labels
        guessed = self._reference_says(self._of_other_labels(asked), cells, repeats) == labels
        valid[doubtful] = right & ~guessed
        return valid

    def _reference_says(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None) -> np.ndarray:
        """Return the reference's answers to n changed pictures: (n,) class indices."""
        said = np.empty(len(item_ids), dtype=np.int64)
        for batch in self._batches(len(item_ids)):
            pixels = self.inputs(item_ids[batch], cells[batch], None if repeats is None else repeats[batch])
            said[batch] = self.reference.answers(pixels)
        return said

    def _of_other_labels(self, item_ids: Sequence[str]) -> list[str]:
        """Return for each of n items one of the same split with another label, which the reference reads unchanged.

        The choice depends only on the item. Raises a UsageError if the split has none.
        """
        table, others = self.items.table, []
        ids, splits, labels = (table[column].to_numpy() for column in ("id", "split", "label"))
        for row in self.rows(item_ids).tolist():
            there = np.flatnonzero(self._readable & (splits == splits[row]) & (labels != labels[row]))
            if not len(there):
                raise UsageError(
                    f"prepare.reference: the split {splits[row]} has no items of another label than {labels[row]!r}"
                    " that the reference reads, so its answers tell nothing of changes; expected two labels"
                )
            others.append(str(ids[there[int(self._numbers[row] % len(there))]]))
        return others

    def attacked(self, item_ids: Sequence[str], attack: str, epsilon: float, steps: int) -> np.ndarray:
        failed = []
        for batch in self._batches(len(item_ids)):
            rows = self.rows(item_ids[batch])
            targets = self.targets(rows)
            pixels = noisy(self.model, self.clean(rows), targets, attack, epsilon, steps, self.context.seed)
            with torch.inference_mode():
                logits = self.model(pixels).float()
            failed.append(self._discrepancy(logits, targets) > self.threshold)
        return torch.cat(failed).cpu().numpy()

    def _discrepancy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return how wrong logits (n, classes) are: (n,) in [-1, 1]."""
        true = logits.gather(1, targets[:, None])[:, 0]
        best_other = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
        return torch.tanh((best_other - true) / self.settings.scale)

    def clean_quality(self, split: Split) -> Quality:
        ids = self.items.ids(split)
        rows = self.rows(ids)
        with torch.inference_mode(), self.backend.threads():
            right = [
                self.backend(self.clean(rows[b])).argmax(1) == self.targets(rows[b]).cpu()
                for b in self._batches(len(rows))
            ]
        values = torch.cat(right).numpy().astype(np.float64) if right else np.empty(0)
        return Quality("clean accuracy", values, ids)

    # What explorers and people see

    @torch.inference_mode()
    def features(self, item_ids: Sequence[str]) -> np.ndarray:
        rows = [self._rows[item] for item in item_ids]
        missing = sorted({row for row in rows if row not in self._features})
        for batch in self._batches(len(missing)):
            part = np.array(missing[batch])
            vectors = self.model.features(self.clean(part)).float().cpu().numpy()
            self._features.update(zip(part.tolist(), vectors, strict=True))
        return np.stack([self._features[row] for row in rows]).astype(np.float64)

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        """See Task: PNG images with a caption like "label 7 → predicted 1 (83%)"."""
        pixels = (self.inputs(item_ids, cells) * 255).round().byte().cpu().permute(0, 2, 3, 1).numpy()
        labels = self.items.table["label"].to_numpy()
        answer = self.probe(item_ids, cells)
        valid = np.ones(len(item_ids), dtype=bool) if answer.valid is None else answer.valid
        return [
            Exhibit.of_picture(
                f"label {labels[self._rows[item]]} → predicted {output}{'' if fair else _UNREADABLE}", image
            )
            for item, output, fair, image in zip(item_ids, answer.outputs, valid, pixels, strict=True)
        ]

    @property
    def judged_by(self) -> dict[str, str]:
        """Return the origin of the reference, by its key of `prepare:`; empty without one."""
        return {"reference": self._seen.origin} if self._seen else {}

    def notes(self) -> Sequence[str]:
        """See Task: what decides what is readable, and whether it reads changed pictures better than the model.

        Accuracy on unchanged pictures is no indication: a network that never saw changed ones excuses nearly all
        failures.
        """
        if self._seen is None:
            return ()
        ids = self.items.ids("discover")[:COMPARED]
        cells = self.concepts.sample(len(ids), np.random.default_rng([self.context.seed, *COMPARISON]))
        labels = self.targets(self.rows(ids)).cpu().numpy()
        own = self.logits(ids, cells).argmax(1).numpy() == labels
        theirs = self._reference_says(ids, cells, None) == labels
        drawn = "as they occur in use" if self.concepts.usage else "drawn uniformly"
        rate, unchanged = wilson(int(theirs.sum()), len(ids)), self._readable[self.rows(ids)].mean()
        said = (
            f"Whether a changed picture can be read at all was asked of a reference, {self._seen.origin}, wherever the"
            f" model failed. Of {len(ids)} pictures under cells {drawn} the reference gets {rate.value:.1%}"
            f" right (95% interval {rate.low:.1%} to {rate.high:.1%}), the model under test {own.mean():.1%};"
            f" unchanged, the reference gets {unchanged:.1%} of them right."
        )
        weak = (
            " So it reads changed pictures no better than the model under test, and excuses failures at pictures that"
            " people can read: name another reference, or none."
        )
        return (said + (weak if theirs.mean() <= own.mean() else ""),)


def _black_box(context: TaskContext) -> str | None:
    """Return the kind of a model that runs by itself; None for others."""
    model = context.config.get("model")
    return next((kind for kind in BLACK_BOXES if isinstance(model, Mapping) and kind in model), None)
