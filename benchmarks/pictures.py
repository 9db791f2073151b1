"""Pictures per CPU-second: `Painter.draw` against the bare diffusers pipeline of the same model.

    .venv/bin/python -m benchmarks.pictures [--model data/images/inputs/model] [--pictures 48] [--threads 1]

Both are measured in turn, in one process, with the same prompts, seeds, steps, guidance, scheduler and threads; in CPU
time, because cores may be shared:

- *bare*: prompts through `pipeline(...)` in float32, in batches of 8, 16, 32 and 48; the fastest counts.
- *draw*: the same prompts through `Painter.draw`, as a probe uses it: text embeddings are cached, every prompt is drawn
  three times, and every batch is filled. The cache is cleared before each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from stages.core.files import stage_dir
from stages.tasks.contract import Compute
from stages.tasks.text_to_image.config import SamplingConfig
from stages.tasks.text_to_image.models import DiffusersModel, load_pipeline, make_scheduler
from stages.tasks.text_to_image.sample import Painter

SIZES = (8, 16, 32, 48)
REPEATS = 3  # pictures per prompt
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross")


def cpu(work) -> float:
    """Measure the CPU-seconds of this process, all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=stage_dir("images", "inputs") / "model", help="a pipeline's folder"
    )
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--scheduler", default=None, help="a scheduler of diffusers; none is the model's own")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    sampling = SamplingConfig(steps=args.steps, guidance=args.guidance, scheduler=args.scheduler)
    compute = Compute(threads=args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        DiffusersModel(diffusers=args.model.name).build(args.model.parent, Path(scratch) / "model")
        painter = Painter(load_pipeline(Path(scratch) / "model", compute, sampling), sampling, compute)
    pipeline = DiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(pipeline.scheduler, sampling)

    said = [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]
    prompts = [said[n // REPEATS % len(said)] for n in range(args.pictures)]

    def bare(size: int) -> None:
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            pipeline(
                batch,
                generator=[torch.Generator().manual_seed(start + n) for n in range(len(batch))],
                num_inference_steps=args.steps,
                guidance_scale=args.guidance,
                output_type="np",
            )

    def draw() -> None:
        painter._states.clear()
        painter.draw(prompts, range(len(prompts)))

    works = {f"bare, batch {size}": lambda size=size: bare(size) for size in SIZES if size <= len(prompts)}
    works["draw"] = draw
    for work in works.values():  # initialises kernels and caches
        work()
    rates: dict[str, list[float]] = {name: [] for name in works}
    walls: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(args.rounds):
        for name, work in works.items():
            start = time.perf_counter()
            rates[name].append(len(prompts) / cpu(work))
            walls[name].append(len(prompts) / (time.perf_counter() - start))

    median = {name: statistics.median(values) for name, values in rates.items()}
    best = max((name for name in median if name != "draw"), key=median.__getitem__)
    result = {
        "model": str(args.model),
        "parameters": painter.parameters,
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": args.steps,
        "guidance": args.guidance,
        "threads": args.threads,
        "pictures": len(prompts),
        "batch_of_draw": painter.size,
        "pictures_per_cpu_second": median,
        "pictures_per_second": {name: statistics.median(values) for name, values in walls.items()},
        "best_bare": best,
        "draw_to_bare": median["draw"] / median[best],
    }
    print(json.dumps({k: _rounded(v) for k, v in result.items()}, indent=1))


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
