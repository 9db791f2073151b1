"""Is a repair what it says it is? A fresh process reads its folder and draws beside the pipeline in memory.

A repair that was written wrongly would be judged by `re_evaluate` as if it were none. So it is read as any user reads
it, and the pictures it draws have to be those of the pipeline in memory and not those of the base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from stages.errors import UsageError
from stages.tasks.contract import Compute
from stages.tasks.read_back import command_line, compare, compare_in_fresh_process
from stages.tasks.text_to_image.config import SamplingConfig
from stages.tasks.text_to_image.models import load_pipeline
from stages.tasks.text_to_image.sample import Painter


def verify(
    folder: Path, base: Path, before: Painter, after: Painter, prompts: Sequence[str], seeds: Sequence[int]
) -> None:
    """Read a repaired pipeline in a fresh process and compare what it draws with what the one in memory draws.

    Args:
        folder: the written repair, see `load_pipeline`.
        base: the folder of the pipeline it was made for.
        before: the pipeline under test.
        after: the repaired pipeline in memory.
        prompts: a few prompts whose pictures are compared.
        seeds: seeds of their noise.

    Raises:
        UsageError: when the repaired pipeline draws as its base does, to the last pixel.
        BugError: when what was written is not what is in memory, or cannot be read.
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

    Raises:
        BugError: when they differ from those after the repair by more than a small part of what the repair changed.
    """
    told = json.loads(asked.read_text(encoding="utf-8"))
    compute, sampling = Compute(**told["compute"]), SamplingConfig.model_validate(told["sampling"])
    torch.set_num_threads(compute.threads)
    painter = Painter(load_pipeline(base, compute, sampling, lora=folder), sampling, compute)
    compare("pixels", torch.from_numpy(pixels(painter, told["prompts"], told["seeds"])), load_file(tensors))


if __name__ == "__main__":
    command_line(__doc__, main)
