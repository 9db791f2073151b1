"""What aiming gains a text-to-image repair: each method and aim against its control with the same number of steps.

    .venv/bin/python -m benchmarks.aimed_pictures [--audit images] [--seeds 3] [--steps 40 120 480] [--pictures 160]

Needs the audit's stages up to collect_feedback (run `faded audit images` once): it uses the audit's model and plan.
Every model draws the same single pictures for the templates of the split `test`, with noise that no audit uses, half of
them inside the target modes. A picture is wrong if the judge does not find everything its prompt names. Each
answer is a line of the file `--answers`, and answers in it are not measured again. Prints a Markdown table.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks._shared import in_points, targets_of
from stages.core.intervals import Resampler
from stages.params import load_params
from stages.records import audit_folder
from stages.tasks.base import LoadedTask
from stages.tasks.contract import RepairPlan, TargetMode
from stages.tasks.load import load_alone
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.text_to_image.studio import PictureOrder

AIMS = ("as_used", "modes")
SEED = 20260301  # determines the pictures that all models draw


def main() -> None:
    """Train and measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audit", default="images")
    parser.add_argument("--methods", nargs="+", default=["lora", "dpo"])
    parser.add_argument("--aims", nargs="+", default=AIMS, choices=AIMS)
    parser.add_argument("--steps", nargs="+", type=int, default=[40, 120, 480])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=160, help="inside the target modes, and as many elsewhere")
    parser.add_argument("--settings", type=json.loads, default={}, help="of all repairs, as JSON")
    parser.add_argument("--answers", type=Path, default=Path(".faded/aimed_pictures.jsonl"))
    args = parser.parse_args()

    audit, here = load_params().audit(args.audit), audit_folder(args.audit)
    task = load_alone(args.audit, audit, here.prepare.path)
    targets = targets_of(args.audit)
    plan = RepairPlan(targets, {}, audit.seed, draft=True)
    asked = orders(task, targets, args.pictures)
    args.answers.parent.mkdir(parents=True, exist_ok=True)
    todo = [("before", "", 0, 0)]
    todo += [
        (method, aim, steps, seed)
        for steps in args.steps
        for method in args.methods
        for seed in range(args.seeds)
        for aim in args.aims
    ]
    done = answers(args.answers)
    for method, aim, steps, seed in todo:
        key = {"method": method, "aim": aim, "steps": steps, "seed": seed}
        if len(done) and (done[list(key)] == pd.Series(key)).all(axis=1).any():
            continue
        model = task
        with tempfile.TemporaryDirectory() as folder:
            if steps:
                settings = {**args.settings, "method": method, "steps": steps}
                asked_for = replace(plan, settings=settings, seed=audit.seed + seed)
                task.repair(replace(asked_for, control="as_used" if aim == "as_used" else None), Path(folder))
                model = load_alone(args.audit, audit, here.prepare.path, Path(folder))
            found = {part: looked(model, parts) for part, parts in asked.items()}
        with args.answers.open("a") as file:
            file.write(json.dumps(key | found) + "\n")
    print(table(answers(args.answers)))


def orders(
    task: PainterProbes, targets: list[TargetMode], n: int, split: str = "test"
) -> dict[str, list[PictureOrder]]:
    """Return the pictures that all models draw: n in the targets, in equal numbers, and n elsewhere."""
    rng = np.random.default_rng(SEED)
    inside = np.concatenate([target.region.sample(task.concepts, -(-n // len(targets)), rng) for target in targets])
    cells = task.concepts.sample(20 * n, rng)
    outside = cells[~np.any([target.region.in_box(task.concepts, cells) for target in targets], axis=0)]
    table = task.items.table
    templates = sorted(set(table.loc[table["split"] == split, "label"]))
    return {
        part: [
            PictureOrder(
                task.prompt(templates[k % len(templates)], cell),
                int(rng.integers(2**31)),
                tuple(task.expected(cell).items()),
            )
            for k, cell in enumerate(some[:n])
        ]
        for part, some in (("targets", rng.permutation(inside)), ("others", outside))
    }


def looked(task: LoadedTask, asked: list[PictureOrder]) -> dict[str, list[float]]:
    """Return for each picture whether it is wrong, and how realistic it looks."""
    found = task.studio.look(asked)
    return {
        "wrong": [float(bool(j.fault) or not all(j.right.values())) for j in found],
        "realism": [j.quality for j in found],
    }


def answers(path: Path) -> pd.DataFrame:
    """Read the existing measurements, one row each."""
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [])


def table(found: pd.DataFrame) -> str:
    """Compare each method and aim with its control in the same training by wrong pictures: overall and each."""
    lines = ["| steps | method | aim | targets wrong | minus control | in each training | others wrong | realism |"]
    lines += ["|---" * 8 + "|"]
    for (steps, method, aim), rows in found.groupby(["steps", "method", "aim"], sort=False):
        told = [f"{np.mean([r['wrong'] for r in rows['targets']]):.1%}", "", ""]
        control = found[(found["steps"] == steps) & (found["method"] == method) & (found["aim"] == "as_used")]
        both = rows.merge(control, on="seed", suffixes=("", "_control"))
        if aim not in ("", "as_used") and len(both):
            changes = [
                np.subtract(one["wrong"], other["wrong"])
                for one, other in zip(both["targets"], both["targets_control"], strict=True)
            ]
            told[1:] = [interval(changes), "; ".join(interval([change]) for change in changes)]
        told += [f"{np.mean([r['wrong'] for r in rows['others']]):.1%}"]
        told += [f"{np.mean([[*r['targets']['realism'], *r['others']['realism']] for _, r in rows.iterrows()]):.3f}"]
        lines.append(f"| {steps} | {method} | {aim} | {' | '.join(told)} |")
    return "\n".join(lines)


def interval(changes: list[np.ndarray]) -> str:
    """Format the mean over some trainings on the same pictures, in points, with its interval over pictures."""
    pictures = np.tile(np.arange(len(changes[0])), len(changes))
    values = np.concatenate(changes)
    rate = Resampler(pictures, 2000, 0).mean(values, np.ones(len(values)))
    return in_points(rate)


if __name__ == "__main__":
    main()
