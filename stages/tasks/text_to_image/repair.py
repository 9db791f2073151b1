"""Repair of a text-to-image pipeline in chosen failure modes: a low-rank adapter (LoRA, Hu et al. 2022) of its UNet.

- lora: it learns pictures that show what the prompts of the target modes ask for, and pictures of everything else, so
  that the rest does not change.
- dpo: it learns to prefer, of two pictures for such a prompt, the one that shows what was asked for (Diffusion-DPO,
  Wallace et al. 2023).

A control as used learns as much from cells as they occur: what the repair gains beyond it is due to aiming.

A repaired pipeline is written to its own folder and does not replace the base: the adapter, and faded.json, which names
the base by its content hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import UsageError
from stages.files import write_json
from stages.params import checked
from stages.tasks.base import known_attributes
from stages.tasks.cells import PairSampler
from stages.tasks.contract import RepairPlan, RepairRecord
from stages.tasks.hub import repository_of
from stages.tasks.text_to_image.adapter import check_trainable
from stages.tasks.text_to_image.album import GOOD, build_album, praised, vocabulary
from stages.tasks.text_to_image.captions import Lessons
from stages.tasks.text_to_image.dpo import DpoTraining
from stages.tasks.text_to_image.lora import LoraTraining
from stages.tasks.text_to_image.models import LORA, Form, load_form
from stages.tasks.text_to_image.pairs import Pairs
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.text_to_image.repair_config import RepairSettings
from stages.tasks.text_to_image.sample import Painter, with_pipeline
from stages.tasks.text_to_image.studio import Order, Studio
from stages.tasks.text_to_image.verify import verify
from stages.tasks.text_to_image.vocabulary import repair_templates
from stages.tasks.training import write_card, write_loader

COMPARED = 4  # pictures on which to compare the written pipeline with the one in memory
LOOKED_AT = 64  # pictures of the targets that are judged before and after


def repair(task: PainterProbes, plan: RepairPlan, out_dir: Path) -> RepairRecord:
    """Train an adapter of the task's pipeline, write it with its card, and check what was written.

    Raises:
        UsageError: when the settings are wrong, the pipeline is of another kind, or there is nothing to learn from.
    """
    settings = checked(RepairSettings, plan.settings, "restructure.settings")
    painter = with_pipeline(task.painter)
    check_trainable(painter.pipeline)
    if not repair_templates(task):
        raise UsageError("prepare.items.repair: a repair needs items, whose templates it learns; found 0")
    training, learnt = _training(task, painter, plan, settings)
    curve = training.run(f"{'control' if plan.control else 'repair'}, {settings.method}")

    out_dir.mkdir(parents=True, exist_ok=True)
    training.save(out_dir)
    write_json(out_dir / "faded.json", {"base": painter.hash, "settings": settings.used(), "control": plan.control})
    if plan.draft:
        return RepairRecord(settings.method, len(curve), {}, curve)
    after = Painter(training.repaired(), painter.sampling, painter.compute)
    orders = _orders(task, plan)
    few = orders[:COMPARED]
    base = Path(painter.pipeline.name_or_path)
    verify(out_dir, base, painter, after, [o.prompt for o in few], [o.seed for o in few])
    numbers = learnt | _numbers(plan, training, curve["loss"].to_numpy())
    for name, studio in (("before", task.studio), ("after", Studio(after, task.judge, task.studio.quality))):
        numbers[f"aligned_{name}"] = float(
            np.mean([judged.alignment for judged in studio.look(orders, f"{name} the repair")])
        )
    write_card(
        out_dir,
        __file__,
        plan,
        base=painter.hash,
        pipeline=type(painter.pipeline).__name__,
        method=settings.method,
        settings=settings.used(),
        steps=len(curve),
        examples=plan.examples,
        good=GOOD,
        looked_at=LOOKED_AT,
        space=task.concepts,
        numbers=numbers,
    )
    variant = task.context.config["model"].get("variant")
    write_loader(out_dir, __file__, **loading(load_form(base), painter, task.context.audit, variant))
    return RepairRecord(settings.method, len(curve), numbers, curve)


def _training(
    task: PainterProbes, painter: Painter, plan: RepairPlan, settings: RepairSettings
) -> tuple[LoraTraining | DpoTraining, dict[str, Any]]:
    """Return the method's training, and the card's numbers on what it learns."""
    words, steps = vocabulary(task), range(plan.steps(settings.steps))
    of_run = (settings, painter.compute, plan.seed, plan.scratch / "adapter.safetensors" if plan.scratch else None)
    if settings.method == "dpo":
        pairs = Pairs(task, plan, settings, words)
        return DpoTraining(painter.pipeline, pairs.images, [pairs(n) for n in steps], *of_run), pairs.numbers()
    lessons = Lessons(task, plan, settings, build_album(task, plan, settings, words), words)
    batches = [lessons(n) for n in steps]
    return LoraTraining(painter.pipeline, lessons.images, batches, *of_run), lessons.numbers(batches)


def _orders(task: PainterProbes, plan: RepairPlan) -> list[Order]:
    """Return pictures of the targets to draw, also for a control, with fresh seeds."""
    rng = np.random.default_rng([plan.seed, 9])
    templates = repair_templates(task)
    known = known_attributes(task, task.items.ids("repair"))
    rows, cells = PairSampler(task.concepts, plan.targets, known).draw(LOOKED_AT, rng)
    return [
        Order(task.prompt(templates[row], cell), int(rng.integers(2**31)), tuple(task.expected(cell).items()))
        for row, cell in zip(rows.tolist(), cells, strict=True)
    ]


def loading(form: Form, painter: Painter, audit: str, variant: str | None) -> dict[str, Any]:
    """Return the values for templates/load.py.j2.

    Args:
        form: faded.json of the pipeline under test.
        painter: that pipeline.
        audit: the audit's name.
        variant: of the weights on the hub.
    """
    sampling = painter.sampling
    changed = sampling.scheduler is not None or bool(sampling.scheduler_options)
    settings = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "negative_prompt": sampling.negative_prompt or None,
        "height": sampling.height,
        "width": sampling.width,
    }
    return {
        "name": repository_of(form.origin),
        "form": form,
        "audit": audit,
        "variant": variant,
        "scheduler": type(painter.pipeline.scheduler).__name__ if changed else None,
        "sampling": sampling,
        "lora": LORA,
        "settings": {name: value for name, value in settings.items() if value is not None},
    }


def _numbers(plan: RepairPlan, training: LoraTraining | DpoTraining, losses: np.ndarray) -> dict[str, Any]:
    some = max(1, len(losses) // 10)
    return {
        "examples": {"praised": sum(map(praised, plan.examples)), "given": len(plan.examples)},
        "trained_parameters": sum(tensor.numel() for tensor in training.trained.values()),
        "loss_first": float(losses[:some].mean()),
        "loss_last": float(losses[-some:].mean()),
    }
