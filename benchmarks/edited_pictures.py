"""What an edit of cross-attention repairs in a text-to-image model: `python -m benchmarks.edited_pictures`.

Needs the stages of `images` up to restructure. Nothing is trained: the matrices that make keys and values of the text
are changed in closed form, as in unified concept editing (Gandikota et al., WACV 2024), so that prompts of the target
modes say their digit more strongly, and as many prompts as used stay as they are. A control says it more strongly in
prompts as used. How strongly is chosen by pictures of repair templates, within the audit's budget of harm; those of
test templates judge. Prints a Markdown table. Takes 10 minutes of CPU time.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks._shared import targets_of
from benchmarks.aimed_pictures import interval, orders
from stages.params import load_params
from stages.records import audit_folder
from stages.tasks.contract import TargetMode
from stages.tasks.load import load_alone
from stages.tasks.text_to_image.album import repair_templates
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.text_to_image.sample import Painter
from stages.tasks.text_to_image.studio import PictureOrder, Studio

AUDIT, SLOT = "images", "digit"
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
PROMPTS, CHOOSING, JUDGING = 2000, 300, 500  # prompts to edit; pictures in the modes, and as many elsewhere
SEED = 20261202
Wrong = Mapping[str, np.ndarray]  # whether each picture is wrong, in the targets and elsewhere


def main() -> None:
    """Edit, choose, judge, and print the table."""
    audit, here = load_params().audit(AUDIT), audit_folder(AUDIT)
    task = load_alone(AUDIT, audit, here.prepare.path)
    targets = targets_of(AUDIT)
    share, budget = inside(task, targets), load_params().repair(AUDIT).restructure.harm.newly_failing
    chosen, judging = (orders(task, targets, n, split) for n, split in ((CHOOSING, "repair"), (JUDGING, "test")))
    before = wrong(task.studio, chosen)
    judged = {"as it is": wrong(task.studio, judging)}
    repaired = load_alone(AUDIT, audit, here.prepare.path, here.restructure.path / "models" / "repaired")
    judged["the audit's repair"] = wrong(repaired.studio, judging)
    for copy_of in ("control", "repair"):
        best, fewest = 0.0, before["targets"].mean()
        for strength in STRENGTHS:
            studio = edited(task, targets if copy_of == "repair" else None, strength)
            found = wrong(studio, chosen)
            broken = newly(before, found, share)
            print(f"{copy_of}, {strength:g}: {found['targets'].mean():.1%} wrong, {broken:.2%} newly", flush=True)
            if broken <= budget and found["targets"].mean() < fewest:
                fewest, best = found["targets"].mean(), strength
        studio = edited(task, targets if copy_of == "repair" else None, best)
        judged[f"{copy_of}, {best:g} times"] = wrong(studio, judging) if best else judged["as it is"]
    start, control = judged["as it is"], list(judged.values())[2]
    print("\n| | targets wrong | change | minus control | others wrong | change | newly |\n" + "|---" * 7 + "|")
    for name, found in judged.items():
        columns = [name, f"{found['targets'].mean():.1%}", minus(found, start), minus(found, control)]
        columns += [f"{found['others'].mean():.1%}", minus(found, start, "others")]
        print("|", " | ".join([*columns, f"{newly(start, found, share):.2%}"]), "|")


def edited(task: PainterProbes, targets: Sequence[TargetMode] | None, strength: float) -> Studio:
    """Return what draws with an edited copy of the task's pipeline.

    Args:
        targets: where to edit; None for prompts as used.
        strength: how many times what the digit adds to the text is added again.
    """
    rng, pipeline = np.random.default_rng(SEED), task.painter.pipeline
    kept = task.concepts.sample(PROMPTS, rng)
    if targets is None:
        there = task.concepts.sample(PROMPTS, rng)
    else:
        kept = kept[~np.any([target.region.in_box(task.concepts, kept) for target in targets], axis=0)]
        parts = [target.region.sample(task.concepts, PROMPTS // len(targets), rng) for target in targets]
        there = np.concatenate(parts)
    said, unsaid = (states(task, there, without) for without in (None, SLOT))
    known = np.concatenate([said, states(task, kept, None)])
    # W' minimises |W' c - W (c + strength d)|^2 over prompts to edit and |W' c - W c|^2 over those to keep.
    moments = known.T @ known + 1e-6 * len(known) * np.eye(known.shape[1])
    change = strength * (said - unsaid).T @ said @ np.linalg.inv(moments)
    unet, add = copy.deepcopy(pipeline.unet), torch.from_numpy(change)
    for name, layer in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            layer.weight.data += (layer.weight.data.double() @ add).to(layer.weight.dtype)
    other = copy.copy(pipeline)
    other.register_modules(unet=unet)
    painter = Painter(other, task.painter.sampling, task.painter.compute)
    return Studio(painter, task.judge, task.studio.quality)


def states(task: PainterProbes, cells: np.ndarray, without: str | None) -> np.ndarray:
    """Return the text states of prompts for repair templates, (tokens, width), with one slot unsaid if asked for."""
    start, templates = task.concepts.start, sorted(set(repair_templates(task)))
    if without is not None:
        column = task.concepts.names.index(without)
        cells = np.where(np.arange(cells.shape[1]) == column, start[column], cells)
    prompts = [task.prompt(templates[k % len(templates)], cell) for k, cell in enumerate(cells)]
    known: dict[str, Any] = {}
    with torch.inference_mode():
        for prompt in dict.fromkeys(prompts):
            known[prompt] = task.painter.pipeline.encode_prompt(prompt, "cpu", 1, False)[0][0].double().numpy()
    return np.concatenate([known[prompt] for prompt in prompts])


def wrong(studio: Studio, asked: Mapping[str, list[PictureOrder]]) -> Wrong:
    """Judge the same pictures by one model."""
    found = {part: studio.look(some) for part, some in asked.items()}
    return {
        part: np.array([bool(j.fault) or not all(j.right.values()) for j in some], dtype=float)
        for part, some in found.items()
    }


def inside(task: PainterProbes, targets: Sequence[TargetMode]) -> float:
    """Return the share of use in the targets."""
    cells = task.concepts.sample(100_000, np.random.default_rng(SEED))
    return float(np.any([target.region.in_box(task.concepts, cells) for target in targets], axis=0).mean())


def newly(before: Wrong, after: Wrong, share: float) -> float:
    """Return which share of what was right in use is now wrong."""
    parts = {"targets": share, "others": 1 - share}
    right = {part: weight * float((1 - before[part]).mean()) for part, weight in parts.items()}
    now = {part: weight * float(((1 - before[part]) * after[part]).mean()) for part, weight in parts.items()}
    return sum(now.values()) / sum(right.values())


def minus(one: Wrong, other: Wrong, part: str = "targets") -> str:
    """Say by how much one is wrong more often than another, in points, with the interval over pictures."""
    return interval([one[part] - other[part]])


if __name__ == "__main__":
    main()
