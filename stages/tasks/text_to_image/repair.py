"""Repair of a text-to-image pipeline in chosen failure modes: a low-rank adapter (LoRA, Hu et al. 2022) of its UNet.

- lora: it learns pictures that show what the prompts of the target modes ask for, and pictures of everything else, so
  that the rest does not change.
- dpo: it learns to prefer, of two pictures for such a prompt, the one that shows what was asked for (Diffusion-DPO,
  Wallace et al. 2023).

A control as used learns as much from cells as they occur: what the repair gains beyond it is due to aiming.

A repaired pipeline is written to its own folder and does not replace the base: the adapter, and faded.json, which names
the base by its content hash.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from stages.core.errors import UsageError
from stages.core.files import write_json
from stages.params import checked
from stages.tasks.base import known_attributes
from stages.tasks.contract import Compute, RepairPlan, RepairRecord
from stages.tasks.hub import repository_of
from stages.tasks.text_to_image.album import GOOD, build_album, orders_for, praised, repair_templates, vocabulary
from stages.tasks.text_to_image.config import SamplingConfig, TextToImageRepair
from stages.tasks.text_to_image.lessons import PictureLessons, PicturePairs
from stages.tasks.text_to_image.models import LORA, PipelineForm, load_pipeline, load_pipeline_form
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.text_to_image.sample import Painter
from stages.tasks.text_to_image.studio import PictureOrder, Studio
from stages.tasks.text_to_image.training import DpoTraining, LoraTraining, check_trainable
from stages.tasks.training import (
    PairSampler,
    command_line,
    compare_answers,
    compare_in_fresh_process,
    write_card,
    write_loader,
)

COMPARED = 4  # pictures on which to compare the written pipeline with the one in memory
LOOKED_AT = 64  # pictures of the targets that are judged before and after


def repair(task: PainterProbes, plan: RepairPlan, out_dir: Path) -> RepairRecord:
    """Train an adapter of the task's pipeline, write it with its card, and check what was written.

    Raises a UsageError when the settings are wrong, the pipeline is of another kind, or there is nothing to learn from.
    """
    settings = checked(TextToImageRepair, plan.settings, "restructure.settings")
    painter = task.painter
    if not isinstance(painter, Painter):
        raise UsageError("restructure: models behind HTTP cannot be repaired (no weights)")
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
    write_loader(out_dir, __file__, **loading(load_pipeline_form(base), painter, task.context.audit, variant))
    return RepairRecord(settings.method, len(curve), numbers, curve)


def _training(
    task: PainterProbes, painter: Painter, plan: RepairPlan, settings: TextToImageRepair
) -> tuple[LoraTraining | DpoTraining, dict[str, Any]]:
    """Return the method's training, and the card's numbers on what it learns."""
    words, steps = vocabulary(task), range(plan.steps(settings.steps))
    of_run = (settings, painter.compute, plan.seed, plan.scratch / "adapter.safetensors" if plan.scratch else None)
    if settings.method == "dpo":
        pairs = PicturePairs(task, plan, settings, words)
        return DpoTraining(painter.pipeline, pairs.images, [pairs(n) for n in steps], *of_run), pairs.numbers()
    lessons = PictureLessons(task, plan, settings, build_album(task, plan, settings, words), words)
    batches = [lessons(n) for n in steps]
    return LoraTraining(painter.pipeline, lessons.images, batches, *of_run), lessons.numbers(batches)


def _orders(task: PainterProbes, plan: RepairPlan) -> list[PictureOrder]:
    """Return pictures of the targets to draw, also for a control, with fresh seeds."""
    rng = np.random.default_rng([plan.seed, 9])
    known = known_attributes(task, task.items.ids("repair"))
    return orders_for(task, *PairSampler(task.concepts, plan.targets, known).draw(LOOKED_AT, rng), rng)


def loading(form: PipelineForm, painter: Painter, audit: str, variant: str | None) -> dict[str, Any]:
    """Return the values for templates/load.py.j2.

    Args:
        form: faded.json of the pipeline under test.
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


def verify(
    folder: Path, base: Path, before: Painter, after: Painter, prompts: Sequence[str], seeds: Sequence[int]
) -> None:
    """Read a repaired pipeline in a fresh process and compare what it draws with what the one in memory draws.

    Raises a UsageError when the repaired pipeline draws as its base does, to the last pixel; a BugError when what was
    written is not what is in memory, or cannot be read.

    Args:
        folder: the written repair, see `load_pipeline`.
        base: the folder of the pipeline it was made for.
        before: the pipeline under test.
        after: the repaired pipeline in memory.
        prompts: a few prompts whose pictures are compared.
    """
    known = {"before": pixels(before, prompts, seeds), "after": pixels(after, prompts, seeds)}
    if np.array_equal(known["before"], known["after"]):
        raise UsageError(
            "restructure: the repaired model draws exactly as before, so training changed less than a pixel can show;"
            " raise restructure.settings.learning_rate or steps"
        )
    question: Mapping[str, Any] = {
        "prompts": list(prompts),
        "seeds": [int(seed) for seed in seeds],
        "compute": asdict(after.compute),
        "sampling": after.sampling.model_dump(mode="json"),
    }
    tensors = {name: torch.from_numpy(drawn) for name, drawn in known.items()}
    compare_in_fresh_process(__name__, folder, base, tensors, question)


def pixels(painter: Painter, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
    """Draw pictures for n prompts: (n, h, w, 3) uint8."""
    return np.stack([drawing.pixels for drawing in painter.draw(prompts, seeds)])


def main(folder: Path, base: Path, tensors: Path, asked: Path) -> None:
    """Compare what the pipeline of a folder draws with the expected pictures.

    Raises a BugError when they differ from those after the repair by more than a small part of what the repair changed.
    """
    told = json.loads(asked.read_text(encoding="utf-8"))
    compute, sampling = Compute(**told["compute"]), SamplingConfig.model_validate(told["sampling"])
    torch.set_num_threads(compute.threads)
    painter = Painter(load_pipeline(base, compute, sampling, lora=folder), sampling, compute)
    compare_answers("pixels", torch.from_numpy(pixels(painter, told["prompts"], told["seeds"])), load_file(tensors))


if __name__ == "__main__":
    command_line(__doc__, main)
