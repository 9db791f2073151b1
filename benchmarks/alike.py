"""What the same bytes on every CPU cost: CPU time to draw, to write and to classify, beside what torch would choose.

    python -m benchmarks.alike

The audits `images` and `news` have to be prepared. Each measurement is the least of three in a process of its own.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.core.environment import is_alike, let_torch_choose, set_defaults
from stages.core.files import stage_dir

ROUNDS = 3


def drawing() -> Callable[[], object]:
    """16 pictures of the diffusion model of `images`."""
    from stages.tasks.contract import Compute
    from stages.tasks.text_to_image.config import SamplingConfig
    from stages.tasks.text_to_image.models import load_pipeline
    from stages.tasks.text_to_image.sample import Painter

    sampling, compute = SamplingConfig(steps=10, guidance=3), Compute(batch_size=16)
    painter = Painter(load_pipeline(_prepared("images"), compute, sampling), sampling, compute)
    return lambda: painter.draw(["a red seven"] * 16, range(16))


def writing() -> Callable[[], object]:
    """Summaries of 8 articles by the language model of `news`."""
    import pandas as pd

    from stages.tasks.contract import Compute
    from stages.tasks.language.models import load_summarizer

    model = load_summarizer(_prepared("news"), Compute(batch_size=64))
    articles = list(pd.read_parquet(_prepared("news").parent / "items.parquet")["article"][:8])
    return lambda: model.summarize(articles)


def classifying() -> Callable[[], object]:
    """8 pictures by a vision transformer, with gradients; random weights take as long as others."""
    import timm
    import torch

    from stages.core.arithmetic import compute_alike

    net, pictures = timm.create_model("vit_tiny_patch16_224").eval(), torch.rand(8, 3, 224, 224)
    compute_alike()
    return lambda: net(pictures).sum().backward()


def _prepared(audit: str) -> Path:
    return stage_dir(audit, "prepare") / "model"


WORK = {"drawing": drawing, "writing": writing, "a ViT and its gradients": classifying}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("WORK", "HOW"), help=argparse.SUPPRESS)
    if one := parser.parse_args().one:
        measure(*one)
        return
    table = Table("", "torch's choice, CPU-s", "the same bytes, CPU-s", "times")
    for work in WORK:
        command = [sys.executable, "-m", "benchmarks.alike", "--one", work]
        fast, same = (
            float(subprocess.run([*command, how], capture_output=True, text=True, check=True).stdout)
            for how in ("chosen", "alike")
        )
        table.add_row(work, f"{fast:.2f}", f"{same:.2f}", f"{same / fast:.2f}")
    Console().print(table)


def measure(work: str, how: str) -> None:
    """Print the CPU-seconds of one kind of work."""
    set_defaults()
    if how == "chosen":
        let_torch_choose()
    assert is_alike() == (how == "alike"), "this CPU has no AVX2, or is no x86-64"
    import torch

    torch.set_num_threads(1)
    do, found = WORK[work](), []
    for _ in range(ROUNDS):
        start = time.process_time()
        do()
        found.append(time.process_time() - start)
    print(min(found))


if __name__ == "__main__":
    main()
