"""Fine-tuning a copy of a classifier away from chosen failure modes.

Each step sees repair items changed by cells of the target modes (aimed), repair items changed as they are in use
(`as_used`) and, against forgetting, clean repair items (`replay`). A control as used draws all changed items as used.
Three methods:

- all-layers: the whole network. Changed images by cross-entropy; clean ones distilled to the answers of the model
  under test (Li and Hoiem, Learning without Forgetting, 2016), which preserves clean accuracy better than their
  labels do. With `own_answers`, changed ones that it gets right are distilled to its answers as well.
- self-distilled: the whole network; it learns to answer changed and clean images as it answered the clean ones.
- last-layer: cross-entropy on the last layer only, as in Sagar et al. (ICML 2024); `reinitialise` starts it from random
  weights as the paper does, which costs much clean accuracy if repair items are few.

Pairs that must pass, if there are any, take the place of at most a quarter of the changed images, those as used first.

With several `candidates`, only the changed image with the highest current loss is learnt (online hard example mining:
Shrivastava et al. 2016), among aimed ones and among those as used, by controls too, so that both cost the same.

Dropout and batch normalisation stay in evaluation mode: batches mix changed and clean images, and running statistics
of such a mixture would shift the model's answers to clean images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from stages.core.errors import UsageError
from stages.core.progress import progress
from stages.params import checked
from stages.tasks.classification.config import RepairSettings
from stages.tasks.classification.families import loading
from stages.tasks.classification.models import Classifier, clone, save_model, seeded
from stages.tasks.classification.probes import ClassifierProbes
from stages.tasks.contract import RepairPlan, RepairRecord
from stages.tasks.training import PairSampler, rate, resume, sampler, save_checkpoint, write_card, write_loader

MUST_PASS = 4  # at most one in so many changed images is a pair that must pass
LOOKED_AT = 2000  # pairs from the targets that are evaluated before and after


def repair(task: ClassifierProbes, plan: RepairPlan, out_dir: Path) -> RepairRecord:
    """Fine-tune a copy of the task's model and write it with its card; see the module for the methods.

    Raises a UsageError if the settings are wrong, or there is nothing to repair or to learn from.
    """
    settings = checked(RepairSettings, plan.settings, "restructure.settings")
    items = task.items.ids("repair")
    if not items:
        raise UsageError("prepare.items.repair: a repair needs items to learn from, found 0")
    model = clone(task.model)
    with seeded(plan.seed):
        curve = FineTuning(task, model, task.model, samplers(task, plan, items), settings, plan).run()
    save_model(model, out_dir)
    numbers = {} if plan.draft else _numbers(task, model, plan, items)
    if numbers:
        write_card(
            out_dir,
            __file__,
            plan,
            base=task.model_hash,
            form=task.model.form,
            settings=settings.model_dump(),
            steps=len(curve),
            space=task.concepts,
            numbers=numbers,
        )
        write_loader(out_dir, __file__, **loading(model.form, model.net))
    return RepairRecord(settings.method, len(curve), numbers, curve)


def samplers(task: ClassifierProbes, plan: RepairPlan, items: Sequence[str]) -> tuple[PairSampler, PairSampler]:
    """Return what draws the aimed pairs and the pairs as used; a control draws both alike."""
    return sampler(task, plan, items), sampler(task, replace(plan, control=plan.control or "as_used"), items)


def _numbers(task: ClassifierProbes, model: Classifier, plan: RepairPlan, items: list[str]) -> dict[str, float]:
    """Return rates before and after on the items it learnt from, in the targets and unchanged."""
    rows, cells = sampler(task, plan, items).draw(LOOKED_AT, np.random.default_rng([plan.seed, 4]))
    asked, under_test = np.array(items)[rows].tolist(), task.model
    numbers: dict[str, float] = {"items": len(items)}
    try:
        for name, one in (("before", under_test), ("after", model)):
            task.model = one
            numbers[f"failures_{name}"] = float(task.probe(asked, cells).failed.mean())
            numbers[f"clean_{name}"] = float(task.clean_quality("repair").values.mean())
    finally:
        task.model = under_test
    return numbers


class FineTuning:
    """One run of fine-tuning. Each epoch depends only on the seed and the state, so a killed run can resume.

    Args:
        model: the copy to change.
        teacher: the model under test, for self-distillation.
        pairs: draw rows of the repair items, and cells: aimed ones, and as used.
        plan: seed, dose, and folder of checkpoints.
    """

    def __init__(
        self,
        task: ClassifierProbes,
        model: Classifier,
        teacher: Classifier,
        pairs: tuple[PairSampler, PairSampler],
        settings: RepairSettings,
        plan: RepairPlan,
    ) -> None:
        self.task, self.model, self.teacher = task, model, teacher
        self.settings, self.seed = settings, plan.seed
        self.what = "control" if plan.control else "repair"
        self.items = np.array(task.items.ids("repair"))
        self.changed = max(1, round(settings.batch_size * (1 - settings.replay)))
        as_used = min(self.changed - 1, round(settings.batch_size * settings.as_used))
        self.aimed = self.changed - as_used
        self.pairs = [(one, n) for one, n in zip(pairs, (self.aimed, as_used), strict=True) if n]
        at = {item: row for row, item in enumerate(self.items.tolist())}
        self.must_pass = [(at[pair.item], *pair.cell) for pair in plan.must_pass]
        self.epoch = -(-len(self.items) // self.aimed)  # steps per epoch: as many aimed images as there are items
        self.steps = plan.steps(settings.epochs * self.epoch)
        self.checkpoint = plan.scratch / "epoch.safetensors" if plan.scratch else None
        self.model.requires_grad_(settings.method != "last-layer")
        if settings.method == "last-layer":
            self.model.head.requires_grad_(True)
            if settings.reinitialise:
                self.model.head.reset_parameters()
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.losses: list[float] = []

    def run(self) -> pd.DataFrame:
        """Train to the end; return the loss of each step."""
        done, self.losses = resume(self.checkpoint, self.trained, self.optimizer, self.task.context.compute.device)
        epochs = -(-self.steps // self.epoch)
        with progress(f"{self.what}, {self.settings.method}", self.steps) as tell:
            for epoch in range(done, epochs):
                for loss in self._epoch(epoch):
                    tell(len(self.losses), f"epoch {epoch + 1} of {epochs}, loss {loss:.3f}")
                save_checkpoint(self.checkpoint, self.trained, self.optimizer, epoch + 1, self.losses)
        return pd.DataFrame({"step": np.arange(1, len(self.losses) + 1), "loss": self.losses})

    def _epoch(self, epoch: int) -> Iterator[float]:
        """Train for one epoch; yield the loss of each step."""
        rng, candidates = np.random.default_rng([self.seed, 5, epoch]), self.settings.candidates * self.changed
        rows, cells = self._draw(rng, np.random.default_rng([self.seed, 6, epoch]))
        replayed = rng.choice(self.items, (self.epoch, self.settings.batch_size - self.changed))
        self.model.eval()  # no running statistics, no dropout, see the module
        for step in range(min(self.epoch, self.steps - epoch * self.epoch)):
            part = slice(step * candidates, (step + 1) * candidates)
            ids = self.items[rows[part]].tolist()
            # Pass the epoch as the repeat, so that the same item and cell get new noise each time.
            changed, of_items = self.task.inputs(ids, cells[part], np.full(candidates, epoch)), self.task.rows(ids)
            worst = self._worst(changed, of_items)
            loss = self._loss(changed[worst], of_items[worst], self.task.rows(replayed[step].tolist()))
            for group in self.optimizer.param_groups:
                group["lr"] = rate(epoch * self.epoch + step, self.steps, self.settings.learning_rate)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(float(loss.detach()))
            yield self.losses[-1]

    def _draw(self, rng: np.random.Generator, other: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw all candidates of an epoch: rows (n,) and cells (n, d).

        Each step has `candidates` times a whole batch of changed images, the aimed ones first, and last those that must
        pass, which `other` draws.
        """
        shape, rows, cells = (self.epoch, self.settings.candidates, -1), [], []
        for pairs, n in self.pairs:
            drawn, at = pairs.draw(self.epoch * self.settings.candidates * n, rng)
            rows.append(drawn.reshape(shape))
            cells.append(at.reshape(*shape, at.shape[1]))
        of_items, of_cells = np.concatenate(rows, axis=2), np.concatenate(cells, axis=2)
        if self.must_pass:
            n = min(len(self.must_pass), -(-self.changed // MUST_PASS))
            chosen = other.choice(self.must_pass, (*of_items.shape[:2], n))
            of_items[..., -n:], of_cells[..., -n:, :] = chosen[..., 0], chosen[..., 1:]
        return of_items.reshape(-1), of_cells.reshape(-1, of_cells.shape[-1])

    def _worst(self, changed: Tensor, rows: np.ndarray) -> np.ndarray:
        """Return, for each place in the batch, the index of the candidate with the highest loss."""
        if self.settings.candidates == 1:
            return np.arange(self.changed)
        with torch.no_grad():
            losses = self._losses(self.model(changed), rows, self.settings.method != "self-distilled")
        return losses.reshape(-1, self.changed).argmax(0).cpu().numpy() * self.changed + np.arange(self.changed)

    def _loss(self, changed: Tensor, rows: np.ndarray, replayed: np.ndarray) -> Tensor:
        both = np.concatenate([rows, replayed])
        logits = self.model(torch.cat([changed, self.task.clean(replayed)]))
        # Number of images at the front of the batch that learn their label; the others learn the teacher's answer.
        labelled = {"all-layers": len(rows), "self-distilled": 0, "last-layer": len(both)}[self.settings.method]
        of_labels = self._losses(logits[:labelled], both[:labelled], True)
        if self.settings.own_answers:
            with torch.no_grad():
                before = self.teacher(changed)
            right = before.argmax(1) == self.task.targets(rows)
            of_labels = torch.where(right, self._distilled(logits[:labelled], before), of_labels)
        return torch.cat([of_labels, self._losses(logits[labelled:], both[labelled:], False)]).mean()

    def _losses(self, logits: Tensor, rows: np.ndarray, labelled: bool) -> Tensor:
        """Return the loss of each logit (n, classes) for n rows: against the label, or the teacher's clean answer."""
        if labelled or not len(rows):
            return functional.cross_entropy(logits, self.task.targets(rows), reduction="none")
        with torch.no_grad():
            answers = self.teacher(self.task.clean(rows))
        return self._distilled(logits, answers)

    def _distilled(self, logits: Tensor, answers: Tensor) -> Tensor:
        """Return the loss of each logit (n, classes) against the teacher's, which has no gradient."""
        soft = self.settings.temperature
        told, wanted = functional.log_softmax(logits / soft, 1), functional.log_softmax(answers / soft, 1)
        return functional.kl_div(told, wanted, reduction="none", log_target=True).sum(1) * soft**2
