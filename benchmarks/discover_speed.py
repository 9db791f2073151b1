"""Probes per CPU-second of discover, against bare inference of the same model and a loop like the authors'.

    .venv/bin/python benchmarks/discover_speed.py [imagenet] [--probes 600]

Needs the audit's prepare stage (run `faded audit imagenet` once). The three are measured in turn, in one process, on
the same threads; in CPU time, because cores may be shared:

- *bare*: the model alone on batches in memory, at the audit's batch size. Nothing can be faster.
- *discover*: `stages.explorers.search` as the stage runs it: agent and control, transforms, ledger on disk, learning.
- *authors' loop*: as in the released code (FailureShiftRL): one item per step, PIL transforms, the clean and the
  changed image each through the model separately, and a DQN with an MLP on raw pixels; once with updates from step 16
  on, once without any, as the released agents were trained. It counts unique probes too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from PIL import Image, ImageEnhance
from stable_baselines3 import DQN

from stages.explorers.search import search
from stages.files import stage_dir
from stages.ledger import Ledger
from stages.params import load_params
from stages.tasks.load import task_class, task_context

ROUNDS = 3


class AuthorsLoop(gym.Env):
    """One image, one discrete action over rotation x darkening x saturation (27 actions), two forwards a step."""

    def __init__(self, images: np.ndarray, answer, rng: np.random.Generator) -> None:
        self.images, self.answer, self.rng = images, answer, rng
        self.actions = [(r, d, s) for r in (-10, 0, 10) for d in (0.1, 0.3, 0.5) for s in (0.5, 0.6, 0.7)]
        self.observation_space = gym.spaces.Box(0, 255, images.shape[1:], np.uint8)
        self.action_space = gym.spaces.Discrete(len(self.actions))
        self.asked: set[tuple[int, int]] = set()

    def reset(self, *, seed=None, options=None):
        """Draw an image."""
        super().reset(seed=seed)
        self.item = int(self.rng.integers(len(self.images)))
        return self.images[self.item], {}

    def step(self, action):
        """Run two forward passes, one on the unchanged image, as in the released code."""
        rotation, darkening, saturation = self.actions[int(action)]
        image = Image.fromarray(self.images[self.item].transpose(1, 2, 0))
        changed = ImageEnhance.Color(ImageEnhance.Brightness(image.rotate(rotation)).enhance(1 - darkening)).enhance(
            saturation
        )
        clean = self.answer(image)
        wrong = self.answer(changed)
        self.asked.add((self.item, int(action)))
        return self.images[self.item], float(clean.max() - wrong.max()), True, False, {}


def cpu(work) -> float:
    """Measure the CPU-seconds of this process, all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audit", nargs="?", default="imagenet")
    parser.add_argument("--probes", type=int, default=512)
    parser.add_argument("--steps", type=int, default=60, help="steps of the authors' loop in each round")
    args = parser.parse_args()

    audit = load_params().audit(args.audit)
    prepared = stage_dir(args.audit, "prepare")
    context = task_context(args.audit, audit, prepared)
    task = task_class(args.audit, audit).load(context, prepared)
    ids, compute = task.items.ids("discover"), context.compute
    config = audit.discover.model_copy(update={"budget": args.probes})
    torch.set_num_threads(compute.threads)

    clean = task.inputs(ids, np.tile(task.concepts.neutral, (len(ids), 1)))
    layout = torch.channels_last if clean.shape[1] > 1 else torch.contiguous_format
    batch = clean[: compute.batch_size].contiguous(memory_format=layout)
    pixels = (clean * 255).byte().numpy()

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(args.probes // len(batch)):
                task.model(batch)

    def answer(image: Image.Image) -> torch.Tensor:
        with torch.inference_mode():
            tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
            return task.model(tensor.float() / 255)[0]

    loops = {"authors' loop": 16, "authors' loop, no updates": 50_000}
    rates: dict[str, list[float]] = {name: [] for name in ("bare", "discover", *loops)}
    task.embed(ids)  # computed once per audit, not per probe
    bare()
    for n in range(ROUNDS):
        rates["bare"].append(args.probes // len(batch) * len(batch) / cpu(bare))

        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder) / "ledger.jsonl")
            seconds = cpu(lambda: search(task, ids, config, seed=n, ledger=ledger, compute=compute))  # noqa: B023
            rates["discover"].append(len(ledger) / seconds)

        for name, starts in loops.items():
            env = AuthorsLoop(pixels, answer, np.random.default_rng(n))
            agent = DQN("MlpPolicy", env, buffer_size=256, learning_starts=starts, batch_size=32, seed=n, device="cpu")
            seconds = cpu(lambda: agent.learn(args.steps))  # noqa: B023
            rates[name].append(len(env.asked) / seconds)

    median = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "audit": args.audit,
        "threads": compute.threads,
        "batch_size": compute.batch_size,
        "probes": args.probes,
        "unique_probes_per_cpu_second": median,
        "discover_to_bare": median["discover"] / median["bare"],
        "discover_to_authors": {name: median["discover"] / median[name] for name in loops},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
