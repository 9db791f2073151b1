"""Fine-tuning a copy of a classifier away from chosen failure modes.

Each step sees repair items changed by cells of the target modes and, against forgetting, clean repair items (replay).
Three methods:

- risk-weighted: the whole network. Changed images by cross-entropy, their cells drawn in proportion to severity x
  estimated failure risk; clean ones distilled to the answers the model under test gives them (Li and Hoiem, Learning
  without Forgetting, 2016), which keeps clean accuracy better than their labels do.
- self-distilled: the whole network; it learns to answer changed and clean images as it answered the clean ones.
- last-layer: cross-entropy on the last layer only, as in Sagar et al. (ICML 2024); `reinitialise` starts it from random
  weights as the paper does, which costs much clean accuracy when repair items are few.

Dropout and batch normalisation stay as in deployment: batches are part changed and part clean, and running statistics
of such a mixture would shift the model's answers to clean images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from stages.concepts import ConceptSpace
from stages.errors import UsageError
from stages.params import checked
from stages.progress import progress
from stages.tasks.base import known_attributes
from stages.tasks.cells import PairSampler
from stages.tasks.classification.config import RepairSettings
from stages.tasks.classification.models import Classifier, clone, save_model, seeded
from stages.tasks.classification.probes import ClassifierProbes
from stages.tasks.contract import RepairPlan, RepairRecord
from stages.tasks.training import rate, resume, save_checkpoint, write_card

RISK_PROBES = 2000  # enough for a logistic model of a handful of concepts


def repair(task: ClassifierProbes, plan: RepairPlan, out_dir: Path) -> RepairRecord:
    """Fine-tune a copy of the task's model and write it with its card; see the module for the methods.

    Raises:
        UsageError: when the settings are wrong, or there is nothing to repair or to learn from.
    """
    settings = checked(RepairSettings, plan.settings, "restructure.settings")
    items = np.array(task.items.ids("repair"))
    if len(items) == 0:
        raise UsageError("prepare.items.repair: a repair needs items to learn from, found 0")
    targets = plan.regions(task.concepts)
    rng = np.random.default_rng([plan.seed, 4])
    attributes = known_attributes(task, items.tolist())
    rows, cells = PairSampler(task.concepts, targets, attributes).draw(RISK_PROBES, rng)
    asked = items[rows].tolist()
    failed = task.probe(asked, cells).failed
    weighted = settings.method == "risk-weighted" and plan.control is None
    risk = _risk(task.concepts, cells, failed) if weighted else None
    sampler = PairSampler(task.concepts, targets, attributes, risk)

    before = task.clean_quality("repair").values.mean()
    teacher, task_model = task.model, clone(task.model)
    with seeded(plan.seed):
        curve = FineTuning(task, task_model, teacher, sampler, settings, plan).run()
    try:
        task.model = task_model
        numbers = {
            "items": len(items),
            "failures_before": float(failed.mean()),
            "failures_after": float(task.probe(asked, cells).failed.mean()),
            "clean_before": float(before),
            "clean_after": float(task.clean_quality("repair").values.mean()),
        }
    finally:
        task.model = teacher
    save_model(task_model, out_dir)
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
    return RepairRecord(settings.method, len(curve), numbers, curve)


class FineTuning:
    """One run of fine-tuning. Epoch by epoch it depends on nothing but the seed and the state, so it can be resumed.

    Args:
        task: gives images.
        model: the copy to change.
        teacher: the model under test, for self-distillation.
        sampler: draws rows of the repair items, and cells.
        settings: see RepairSettings.
        plan: seed, and where to keep checkpoints.
    """

    def __init__(
        self,
        task: ClassifierProbes,
        model: Classifier,
        teacher: Classifier,
        sampler: PairSampler,
        settings: RepairSettings,
        plan: RepairPlan,
    ) -> None:
        self.task, self.model, self.teacher = task, model, teacher
        self.sampler, self.settings, self.seed = sampler, settings, plan.seed
        self.what = "control" if plan.control else "repair"
        self.items = np.array(task.items.ids("repair"))
        self.changed = max(1, round(settings.batch_size * (1 - settings.replay)))
        self.steps = -(-len(self.items) // self.changed)  # an epoch is as many changed items as there are
        self.checkpoint = plan.scratch / "epoch.safetensors" if plan.scratch else None
        self.model.requires_grad_(settings.method != "last-layer")
        if settings.method == "last-layer":
            self.model.head.requires_grad_(True)
            if settings.reinitialise:
                self.model.head.reset_parameters()
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.losses: list[float] = []

    def run(self) -> pd.DataFrame:
        """Train to the end; return the loss of each step."""
        device, epochs = self.task.context.compute.device, self.settings.epochs
        done, self.losses = resume(self.checkpoint, self.trained, self.optimizer, device)
        with progress(f"{self.what}, {self.settings.method}", epochs * self.steps) as tell:
            for epoch in range(done, epochs):
                for loss in self._epoch(epoch):
                    tell(len(self.losses), f"epoch {epoch + 1} of {epochs}, loss {loss:.3f}")
                save_checkpoint(self.checkpoint, self.trained, self.optimizer, epoch + 1, self.losses)
        return pd.DataFrame({"step": np.arange(1, len(self.losses) + 1), "loss": self.losses})

    def _epoch(self, epoch: int) -> Iterator[float]:
        """Train for one epoch; yields the loss of each step."""
        rng = np.random.default_rng([self.seed, 5, epoch])
        rows, cells = self.sampler.draw(self.steps * self.changed, rng)
        items = self.items[rows]
        replayed = rng.choice(self.items, (self.steps, self.settings.batch_size - self.changed))
        self.model.eval()  # see the module: no running statistics, no dropout
        for step in range(self.steps):
            part = slice(step * self.changed, (step + 1) * self.changed)
            # The epoch as the repeat: the same item and cell get new noise each time they are seen.
            changed = self.task.inputs(items[part].tolist(), cells[part], np.full(self.changed, epoch))
            loss = self._loss(changed, self.task.rows(items[part].tolist()), self.task.rows(replayed[step].tolist()))
            for group in self.optimizer.param_groups:
                group["lr"] = rate(
                    epoch * self.steps + step, self.settings.epochs * self.steps, self.settings.learning_rate
                )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(float(loss.detach()))
            yield self.losses[-1]

    def _loss(self, changed: Tensor, rows: np.ndarray, replayed: np.ndarray) -> Tensor:
        both = np.concatenate([rows, replayed])
        logits = self.model(torch.cat([changed, self.task.clean(replayed)]))
        # How many of the batch, from the front, learn their label; the others learn the teacher's answer.
        labelled = {"risk-weighted": len(rows), "self-distilled": 0, "last-layer": len(both)}[self.settings.method]
        loss = functional.cross_entropy(logits[:labelled], self.task.targets(both[:labelled]), reduction="sum")
        if labelled < len(both):
            soft = self.settings.temperature
            with torch.no_grad():
                wanted = functional.log_softmax(self.teacher(self.task.clean(both[labelled:])) / soft, 1)
            told = functional.log_softmax(logits[labelled:] / soft, 1)
            loss = loss + functional.kl_div(told, wanted, reduction="sum", log_target=True) * soft**2
        return loss / len(both)


def _risk(space: ConceptSpace, cells: np.ndarray, failed: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The model's own failure risk by cell, estimated by logistic regression on concept coordinates."""
    from sklearn.linear_model import LogisticRegression

    if failed.all() or not failed.any():
        return lambda asked: np.ones(len(asked))
    model = LogisticRegression(max_iter=1000).fit(space.coordinates(cells), failed)
    return lambda asked: model.predict_proba(space.coordinates(asked))[:, 1]
