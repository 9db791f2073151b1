"""A model of textual entailment that says, in place of rules on words, whether an article supports a summary."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from stages.concepts.texts import sentences
from stages.errors import UsageError
from stages.tasks.hub import NAME, Repository
from stages.tasks.source import Source, collect

WHERE = "prepare.entailment"
_FILES = ("config.json", "tokenizer.json", "model.safetensors")


class EntailmentSource(Source):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or a model of the hub."""

    transformers: str = Field(pattern=NAME)
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")

    @property
    def _repository(self) -> Repository:
        wanted = ("*.json", "*.txt", "*.model", "model.safetensors")
        return Repository(self.transformers, self.revision, wanted, ignored=("*/*",))

    def errors(self, inputs: Path) -> list[str]:
        """See Source; the cache of the hub is not asked before the audit runs."""
        return collect(lambda: self._require_whole(self._repository.local(inputs, f"{WHERE}.transformers")))

    def _require_whole(self, folder: Path | None) -> None:
        if folder is not None and (lacking := [name for name in _FILES if not (folder / name).is_file()]):
            raise UsageError(f"{WHERE}: {folder} has no {', '.join(lacking)}")

    def prefetch(self, inputs: Path) -> list[str]:
        """See Source."""
        return self._repository.prefetch(inputs, f"{WHERE}.transformers")

    def origin(self, inputs: Path) -> str:
        """See Source."""
        return self._repository.found(inputs, f"{WHERE}.transformers")[1]

    def load(self, inputs: Path, device: str) -> Entailment:
        """Load the model; the tasks of one process share it with what it has answered."""
        folder, _ = self._repository.found(inputs, f"{WHERE}.transformers")
        self._require_whole(folder)
        return _shared(folder.resolve(), device)


ENTAILMENT_LOADERS: Mapping[str, type[EntailmentSource]] = {"transformers": EntailmentSource}


class Entailment:
    """How likely it is that a summary says what its article does not, by a classifier of pairs of texts.

    A sentence of the summary is supported as much as the sentence of the article, or the article as a whole, that
    entails it most; the summary as much as its sentences on average (SummaC-ZS, Laban et al. 2022, section 3.1, which
    takes sentences alone).
    """

    def __init__(self, folder: Path, device: str) -> None:
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, told = AutoModelForSequenceClassification.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            why = " ".join(str(error).split())[:400]
            raise UsageError(f"{WHERE}: {folder} cannot be loaded: {why}") from None
        if lost := sorted(told["missing_keys"]):
            raise UsageError(
                f"{WHERE}: {folder}/model.safetensors does not fit config.json: {len(lost)} weights are missing,"
                f" {lost[0]} among them"
            )
        labels = {str(label).lower(): number for number, label in model.config.id2label.items()}
        if "entailment" not in labels:
            raise UsageError(f"{WHERE}: {folder} has no label entailment, it has {', '.join(labels)}")
        self._entails = int(labels["entailment"])
        self._model = model.eval().to(device)
        self._device = device
        positions = getattr(model.config, "max_position_embeddings", 514) - 2  # RoBERTa counts from 2
        self._window = min(self._tokenizer.model_max_length, positions)
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, summary: str, article: str) -> float:
        """How little of a summary is entailed, in [0, 1]; 0 of one without a sentence, which claims nothing."""
        premises = list(dict.fromkeys([*sentences(article), article]))
        claims = sentences(summary)
        return 1 - float(np.mean([max(self._entailed(p, c) for p in premises) for c in claims])) if claims else 0.0

    def _entailed(self, premise: str, claim: str) -> float:
        if (premise, claim) not in self._known:
            self._known[premise, claim] = self._answer(premise, claim)
        return self._known[premise, claim]

    @torch.inference_mode()
    def _answer(self, premise: str, claim: str) -> float:
        pair = self._tokenizer(premise, claim, truncation=True, max_length=self._window, return_tensors="pt")
        return float(self._model(**pair.to(self._device)).logits[0].softmax(-1)[self._entails])


@cache
def _shared(folder: Path, device: str) -> Entailment:
    return Entailment(folder, device)
