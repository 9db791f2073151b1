"""A model of textual entailment that decides, instead of rules on words, whether an article supports a summary."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch

from stages.concepts.texts import sentences
from stages.errors import UsageError
from stages.tasks.summarization.encoders import TransformersEncoder, read_encoder

WHERE = "prepare.entailment"


class EntailmentSource(TransformersEncoder):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or a model of the hub."""

    where = WHERE

    def load(self, inputs: Path, device: str) -> Entailment:
        """Load the model; the tasks of one process share it and its answers."""
        return _shared(self.whole(self.folder(inputs)[0]), device)


ENTAILMENT_LOADERS: Mapping[str, type[EntailmentSource]] = {"transformers": EntailmentSource}


class Entailment:
    """How likely it is that a summary says what its article does not, by a classifier of pairs of texts.

    A sentence of the summary is supported as much as the best of the article's sentences, or the whole article, entails
    it; a summary as much as its sentences on average (SummaC-ZS, Laban et al. 2022, section 3.1, which uses sentences
    only).
    """

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForSequenceClassification

        self._tokenizer, self._model = read_encoder(folder, AutoModelForSequenceClassification, WHERE)
        config = self._model.config
        labels = {str(label).lower(): number for number, label in config.id2label.items()}
        if "entailment" not in labels:
            raise UsageError(f"{WHERE}: {folder} has no label entailment, it has {', '.join(labels)}")
        self._entails = int(labels["entailment"])
        self._model.to(device)
        self._device = device
        positions = getattr(config, "max_position_embeddings", 514) - 2  # RoBERTa counts from 2
        self._window = min(self._tokenizer.model_max_length, positions)
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, summary: str, article: str) -> float:
        """Return how little of a summary is entailed, in [0, 1]; 0 if it has no sentence, as it then claims nothing."""
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
