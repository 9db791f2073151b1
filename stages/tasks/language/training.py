"""Resumable training of a copy of a language model: a low-rank adapter (LoRA, Hu et al. 2022), or all weights.

The loss is the cross-entropy of the summaries to give, or that of preferences between two summaries of an article
(direct preference optimisation, DPO: Rafailov et al. 2023). To a chat model, prompts are articles, and answers
summaries. Both losses use one loop. Its checkpoints contain tensors and no pickles, and a run that was killed ends in
the same bytes; trainers of libraries guarantee neither.

What was written is read by a fresh process, as any user reads it: `load_summarizer` refuses missing and unexpected
keys, and its logits have to be those of the model in memory and not those of the base. A repair that was written
wrongly would otherwise be judged by `re_evaluate` as if it were none.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from stages.core.errors import UsageError
from stages.tasks.contract import Compute
from stages.tasks.language.generate import IGNORED, LanguageModel
from stages.tasks.language.models import load_summarizer
from stages.tasks.training import StepwiseTraining, command_line, compare_answers, compare_in_fresh_process

MICRO_BATCH = 4  # texts that go through the model at once; more would need more padding, as lengths differ more


class Lesson(NamedTuple):
    """An article and the summary to give of it, and the one to reject, if there is one."""

    article: str
    summary: str
    rejected: str | None = None


class LanguageTraining(StepwiseTraining):
    """One training run; the loss is in nats: per token of the summary, or with method dpo per preference.

    Args:
        learner: the model to train; its `model` is the caller's own copy and is changed in place.
        lessons: step -> the lessons of that step.
        settings: with `method`, `rank` and `peak_rate`; with method dpo, also `beta` and `per_token`.
        checkpoint: file for unfinished work; None keeps none.
    """

    save_every = 20
    shown = 10

    def __init__(
        self,
        learner: LanguageModel,
        lessons: Callable[[int], Sequence[Lesson]],
        settings: Any,
        steps: int,
        seed: int,
        checkpoint: Path | None = None,
    ) -> None:
        self.learner, self.lessons, self.settings = learner, lessons, settings
        self._dtype = learner.model.dtype
        # Training all weights takes steps too small for bfloat16. Weights that a model keeps fixed (sinusoids) stay so.
        whole = settings.method == "full"
        self.model: Any = learner.model.float() if whole else _adapted(learner, settings, seed)
        # No dropout: a resumed run would draw other random numbers, and the model must learn to answer as it does when
        # deployed.
        self.model.eval()
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        super().__init__(trained, steps, settings.peak_rate, checkpoint, learner.compute.device)

    def save(self, folder: Path) -> None:
        if self.settings.method == "full":
            self.model.to(self._dtype).save_pretrained(folder)
            self.learner.tokenizer.save_pretrained(folder)
        else:
            adapter = self.model.peft_config["default"]
            adapter.target_modules = sorted(adapter.target_modules)  # a set, whose order in the file would vary
            self.model.save_pretrained(folder, save_embedding_layers=False)

    def whole(self) -> Any:
        """Return the trained model without an adapter around it; it cannot be trained after this."""
        return self.model if self.settings.method == "full" else self.model.merge_and_unload()

    def run(self, what: str) -> pd.DataFrame:
        with quick(self.model):
            return super().run(what)

    def backward(self, step: int) -> float:
        tokens = self.learner.tokenizer
        ordered = sorted(self.lessons(step), key=lambda lesson: len(tokens(lesson.article)["input_ids"]))
        if self.settings.method == "dpo":
            return self._prefer(ordered)
        parts = [ordered[i : i + MICRO_BATCH] for i in range(0, len(ordered), MICRO_BATCH)]
        batches = [
            self.learner.training_batch([one.article for one in part], [one.summary for one in part]) for part in parts
        ]
        total = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        loss = 0.0
        for batch in batches:
            logits, wanted = told_and_wanted(self.model, self.learner.form.kind, batch)
            part_loss = functional.cross_entropy(logits, wanted, reduction="sum") / total
            part_loss.backward()  # type: ignore[no-untyped-call]
            loss += float(part_loss.detach())
        return loss

    def _prefer(self, lessons: Sequence[Lesson]) -> float:
        """Add up the gradients of the mean loss of preferences, and return the loss."""
        size, loss = MICRO_BATCH // 2, 0.0
        for part in (lessons[i : i + size] for i in range(0, len(lessons), size)):
            margins = self.margins(part)
            part_loss = -functional.logsigmoid(self.settings.beta * margins).sum() / len(lessons)
            part_loss.backward()  # type: ignore[no-untyped-call]
            loss += float(part_loss.detach())
        return loss

    def margins(self, lessons: Sequence[Lesson]) -> Tensor:
        """Return how much more likely each summary has become than the one to reject, in nats: (n,) float32.

        Times beta this is the argument of the sigmoid in eq. 7 of Rafailov et al. (2023), or with `per_token` that of
        its length-normalised form (Lambert et al. 2024). The reference is the model without its adapter. It is computed
        each time: stored answers would come from other batches in a resumed run, and differ in the last bits.
        """
        summaries = [one.summary for one in lessons] + [one.rejected or "" for one in lessons]
        batch = self.learner.training_batch([one.article for one in lessons] * 2, summaries)
        with torch.no_grad(), self.model.disable_adapter():
            before = self._likelihoods(batch)
        better, worse = (self._likelihoods(batch) - before).chunk(2)
        return better - worse

    def _likelihoods(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-probability of each summary of a batch, in nats; the mean per token with `per_token`: (n,) float32."""
        logits, wanted = told_and_wanted(self.model, self.learner.form.kind, batch)
        of_tokens = -functional.cross_entropy(logits, wanted, reduction="none")
        lengths = (batch["labels"] != IGNORED).sum(1).tolist()
        parts = of_tokens.split(lengths)
        return torch.stack([part.mean() if self.settings.per_token else part.sum() for part in parts])


def _adapted(learner: LanguageModel, settings: Any, seed: int) -> Any:
    """Add an adapter to the model that at first changes nothing."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM" if learner.form.kind == "causal" else "SEQ_2_SEQ_LM",
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses names of transformers that will change
        torch.manual_seed(seed)
        return get_peft_model(learner.model, config)


@contextlib.contextmanager
def quick(trained: Any) -> Iterator[None]:
    """Make training as fast as possible inside the block; weights that are not trained are the same afterwards.

    The backward pass of "eager" attention is the fastest on a CPU, and deterministic on a GPU. A CPU without AMX
    multiplies matrices of bfloat16 at half the speed of float32.
    """
    attention = trained.config._attn_implementation
    frozen = [weights for weights in trained.parameters() if not weights.requires_grad]
    dtypes = [weights.dtype for weights in frozen]
    trained.set_attn_implementation("eager")
    of_cpu: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if trained.device.type == "cpu" and not of_cpu.get("amx_bf16"):
        for weights in frozen:
            weights.data = weights.data.float()  # exact in both directions
    try:
        yield
    finally:
        for weights, dtype in zip(frozen, dtypes, strict=True):
            weights.data = weights.data.to(dtype)
        trained.set_attn_implementation(attention)


def told_and_wanted(model: Any, kind: str, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return a model's logits for the tokens of the summaries, and those tokens.

    In decoder-only models, the output layer, as wide as the vocabulary, is computed for the summaries only.

    Args:
        model: a model of transformers, or of peft around one.
        kind: "causal" or "seq2seq".
        batch: returned by `LanguageModel.training_batch`.

    Returns:
        Logits (k, vocabulary) float32 and token ids (k,) of the k tokens of all summaries.
    """
    labels = batch["labels"]
    if kind == "seq2seq":
        logits = model(**batch).logits
    else:
        first = int((labels != IGNORED).any(0).nonzero()[0])
        labels = labels[:, first:]
        keep = labels.shape[1] + 1  # a token is predicted at the position before it
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits[:, -keep:-1]
    counted = labels != IGNORED
    return logits[counted].float(), labels[counted]


# Is a repair what it says it is?


def verify(folder: Path, base: Path, before: LanguageModel, after: LanguageModel, lessons: Sequence[Lesson]) -> None:
    """Read a repaired model in a fresh process and compare it with the one in memory.

    Raises a UsageError when the repaired model answers as its base does, to the last bit; a BugError when what was
    written is not what is in memory, or cannot be read.

    Args:
        folder: the written repair, see `load_summarizer`.
        base: the model folder it was made for.
        before: the model under test.
        after: the repaired model in memory.
        lessons: a few articles with summaries, to compare logits on.
    """
    known = {"before": token_logits(before, lessons), "after": token_logits(after, lessons)}
    if torch.equal(known["before"], known["after"]):
        raise UsageError(
            "restructure: the repaired model answers exactly as before, so training changed less than its weights can"
            " hold; raise restructure.settings.learning_rate or steps"
        )
    question = {"lessons": list(lessons), "compute": asdict(after.compute)}
    compare_in_fresh_process(__name__, folder, base, known, question)


def token_logits(summarizer: LanguageModel, lessons: Sequence[Lesson]) -> Tensor:
    """Return the logits (k, vocabulary) float32 at the tokens of all summaries."""
    with torch.inference_mode():
        batch = summarizer.training_batch([one.article for one in lessons], [one.summary for one in lessons])
        return told_and_wanted(summarizer.model, summarizer.form.kind, batch)[0].cpu()


def main(folder: Path, base: Path, tensors: Path, asked: Path) -> None:
    """Compare the logits of the model in a folder with the expected ones.

    Raises a BugError when they differ from those after the repair by more than a small part of what the repair changed.
    """
    told = json.loads(asked.read_text(encoding="utf-8"))
    compute = Compute(**told["compute"])
    torch.set_num_threads(compute.threads)
    lessons = [Lesson(*lesson) for lesson in told["lessons"]]
    compare_answers("logits", token_logits(load_summarizer(folder, compute, base), lessons), load_file(tensors))


if __name__ == "__main__":
    command_line(__doc__, main)
