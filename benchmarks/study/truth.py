"""Enumerate a real model once: `python -m benchmarks.study.truth NAME` queries every item under every cell."""

import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

from benchmarks.study.landscapes import save_enumerated
from stages.command import stage_main
from stages.core.errors import UsageError
from stages.core.files import content_hash, scratch
from stages.core.progress import progress
from stages.params import DATA
from stages.provenance import versions
from stages.tasks.classification import ImageClassification
from stages.tasks.contract import Compute, TaskContext

HERE = Path(__file__).parent
STAGES = HERE.parents[1] / "stages"
CODE = [STAGES / "concepts", STAGES / "tasks"]


def main(name: str) -> None:
    """Prepare the model as an audit does, and write truths/NAME.safetensors."""
    truths = yaml.safe_load((HERE / "params.yaml").read_text())["truths"]
    if name not in truths:
        raise UsageError(f"no truth {name!r} in {HERE / 'params.yaml'}, found: {', '.join(truths)}")
    config = truths[name]
    compute = Compute("cpu", config["threads"], config["batch_size"])
    context = TaskContext(
        audit=name,
        seed=config["seed"],
        config=config["prepare"],
        concepts=config["concepts"],
        discrepancy={"threshold": 0.0},
        inputs=DATA / config["inputs"] / "inputs",
        compute=compute,
    )
    with tempfile.TemporaryDirectory() as folder:
        ImageClassification.prepare(context, Path(folder))
        task = ImageClassification.load(context, Path(folder))
    torch.set_num_threads(compute.threads)
    searched, unseen = (task.items.ids(split)[config.get("skip", 0) :] for split in ("discover", "test"))
    cells = task.concepts.cells()
    ids, rows = [*searched, *unseen], []
    with scratch("study", f"truth-{name}", content_hash(CODE, config, task.model_hash, versions())) as kept:
        with progress(f"truth of {name}", len(ids)) as tell:
            for item in ids:
                rows.append(_answers(task, item, cells, compute.batch_size, kept / f"{item}.npy"))
                tell(len(rows), f"{(np.stack(rows) > 0).mean():.1%} fail")
        path = HERE / "truths" / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        save_enumerated(partial, task.concepts, task.embed(ids), np.stack(rows), len(searched))
        partial.replace(path)


def _answers(task: ImageClassification, item: str, cells: np.ndarray, batch_size: int, path: Path) -> np.ndarray:
    """Return margins of one item under all cells (cells,), stored in a file so that a killed run resumes."""
    if path.exists():
        return np.asarray(np.load(path, allow_pickle=False))
    parts = [cells[start : start + batch_size] for start in range(0, len(cells), batch_size)]
    margins = np.concatenate([task.probe([item] * len(part), part).discrepancy for part in parts])
    with path.with_suffix(".partial").open("wb") as file:
        np.save(file, margins)
    path.with_suffix(".partial").replace(path)
    return margins


if __name__ == "__main__":
    stage_main(main)
