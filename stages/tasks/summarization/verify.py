"""Is a repair what it says it is? Its folder is read by a fresh process and asked beside the model in memory.

A repair that was written wrongly would be judged by `re_evaluate` as if it were none. So it is read as any user reads
it: `load_summarizer` refuses missing and unexpected keys, and here its logits have to be those of the model in memory
and not those of the base.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.errors import UsageError
from stages.tasks.contract import Compute
from stages.tasks.language.generate import Summarizer
from stages.tasks.language.models import load_summarizer
from stages.tasks.read_back import command_line, compare, compare_in_fresh_process
from stages.tasks.summarization.training import Lesson, told_and_wanted


def verify(folder: Path, base: Path, before: Summarizer, after: Summarizer, lessons: Sequence[Lesson]) -> None:
    """Read a repaired model in a fresh process and compare it with the one in memory.

    Args:
        folder: the written repair, see `load_summarizer`.
        base: the model folder it was made for.
        before: the model under test.
        after: the repaired model in memory.
        lessons: a few articles with summaries, to compare logits on.

    Raises:
        UsageError: when the repaired model answers as its base does, to the last bit.
        BugError: when what was written is not what is in memory, or cannot be read.
    """
    known = {"before": answers(before, lessons), "after": answers(after, lessons)}
    if torch.equal(known["before"], known["after"]):
        raise UsageError(
            "restructure: the repaired model answers exactly as before, so training changed less than its weights can"
            " hold; raise restructure.settings.learning_rate or steps"
        )
    question = {"lessons": list(lessons), "compute": asdict(after.compute)}
    compare_in_fresh_process(__name__, folder, base, known, question)


def answers(summarizer: Summarizer, lessons: Sequence[Lesson]) -> Tensor:
    """Return the logits (k, vocabulary) float32 at the tokens of all summaries."""
    with torch.inference_mode():
        batch = summarizer.training_batch([one.article for one in lessons], [one.summary for one in lessons])
        return told_and_wanted(summarizer.model, summarizer.form.kind, batch)[0].cpu()


def main(folder: Path, base: Path, tensors: Path, asked: Path) -> None:
    """Compare the logits of the model in a folder with the expected ones.

    Raises:
        BugError: when they differ from those after the repair by more than a small part of what the repair changed.
    """
    told = json.loads(asked.read_text(encoding="utf-8"))
    compute = Compute(**told["compute"])
    torch.set_num_threads(compute.threads)
    lessons = [Lesson(*lesson) for lesson in told["lessons"]]
    compare("logits", answers(load_summarizer(folder, compute, base), lessons), load_file(tensors))


if __name__ == "__main__":
    command_line(__doc__, main)
