"""Text encoders in the format of transformers, which are read completely or not at all, and sentence embeddings."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from stages.core.arithmetic import compute_alike
from stages.core.errors import UsageError, one_line
from stages.core.files import local_file
from stages.tasks.hub import NAME, Repository
from stages.tasks.sources import Source, collect, package_folder

_WHERE = "prepare.embedder"
WINDOW = 256  # tokens MiniLM was trained to embed at once
_FILES = ("config.json", "tokenizer.json", "model.safetensors")


class EncoderSource(Source):
    """Base of the loaders of encoders; `where` is their key in params.yaml."""

    where: ClassVar[str]

    @abstractmethod
    def folder(self, inputs: Path) -> tuple[Path, str]:
        """Return the encoder's folder, and its origin for people and for the record.

        Raises a UsageError when something is missing.
        """

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self.whole(self.folder(inputs)[0]))

    def origin(self, inputs: Path) -> str:
        return self.folder(inputs)[1]

    def whole(self, folder: Path) -> Path:
        """Return the folder if no file is missing. Raises a UsageError when a file is missing."""
        if lacking := [name for name in _FILES if not (folder / name).is_file()]:
            raise UsageError(f"{self.where}: {folder} has no {', '.join(lacking)}")
        return folder.resolve()


class TransformersEncoder(EncoderSource):
    """A folder under data/<audit>/inputs, or a repository of the hub."""

    transformers: str = Field(pattern=NAME)
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")

    @property
    def _repository(self) -> Repository:
        wanted = ("*.json", "*.txt", "*.model", "model.safetensors")
        return Repository(self.transformers, self.revision, wanted, ignored=("*/*",))

    def folder(self, inputs: Path) -> tuple[Path, str]:
        return self._repository.found(inputs, f"{self.where}.transformers")

    def errors(self, inputs: Path) -> list[str]:
        """See EncoderSource; the hub's cache is not checked before the audit runs."""

        def look() -> None:
            if (folder := self._repository.local(inputs, f"{self.where}.transformers")) is not None:
                self.whole(folder)

        return collect(look)

    def prefetch(self, inputs: Path) -> list[str]:
        return self._repository.prefetch(inputs, f"{self.where}.transformers")


def read_encoder(folder: Path, kind: Any, where: str, unused: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """Read the tokenizer and the model of a folder, in float32, from safetensors only.

    Raises a UsageError when they cannot be read, or weights are missing, which transformers fills at random with only a
    warning.

    Args:
        folder: in the format of transformers.
        kind: the Auto class of transformers to read the model with.
        where: the encoder's key in params.yaml, for messages.
        unused: prefixes of the names of weights that are not needed.
    """
    from safetensors import SafetensorError
    from transformers import AutoTokenizer
    from transformers.utils import logging

    compute_alike()
    logging.disable_progress_bar()
    mine = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **mine)
        model, told = kind.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **mine
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{where}: {folder} cannot be loaded: {one_line(error)}") from None
    if lost := sorted(name for name in told["missing_keys"] if not name.startswith(unused)):
        raise UsageError(
            f"{where}: {folder}/model.safetensors does not fit config.json: {len(lost)} weights are missing,"
            f" {lost[0]} among them"
        )
    return tokenizer, model.eval()


# Sentence encoders


class EmbedderSource(EncoderSource):
    """Base of the loaders of sentence encoders."""

    where = _WHERE

    def load(self, inputs: Path, device: str) -> "Embedder":
        """Load the encoder; the models of one process share it and its embeddings."""
        return _shared(self.whole(self.folder(inputs)[0]), device)


class PackageEmbedder(EmbedderSource):
    """{package: NAME, subfolder: FOLDER}: an encoder that ships in an installed package."""

    package: str = Field(pattern=r"^\w+$")
    subfolder: str = Field("model", description="where in the package it lies")

    def folder(self, inputs: Path) -> tuple[Path, str]:
        return package_folder(inputs, self.package, _WHERE) / self.subfolder, f"the package {self.package}"


class TransformersEmbedder(TransformersEncoder, EmbedderSource):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or an encoder of the hub."""

    def errors(self, inputs: Path) -> list[str]:
        """See EncoderSource. Sentence encoders of the hub have an organisation; any other name is a folder's."""
        if "/" in self.transformers:
            return super().errors(inputs)
        return collect(lambda: self.whole(local_file(inputs, self.transformers, f"{_WHERE}.transformers")))


EMBEDDER_LOADERS: Mapping[str, type[EmbedderSource]] = {
    "package": PackageEmbedder,
    "transformers": TransformersEmbedder,
}


class Embedder:
    """A sentence encoder: mean of the last hidden states, normalised (Reimers and Gurevych 2019, section 3).

    Texts longer than the encoder's window are embedded window by window, and the mean is over all their tokens. Each
    text is embedded once, and alone: in a batch its last bits would depend on the other texts, and a probe whose
    discrepancy equals the threshold would fail in one batch and pass in another.
    """

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModel

        self._tokenizer, model = read_encoder(folder, AutoModel, _WHERE, unused=("pooler.",))
        self._model, self._device = model.to(device), device
        self._window = min(WINDOW, self._tokenizer.model_max_length, model.config.max_position_embeddings)
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed n texts: (n, d) float32 of length 1; a text without any word is 0, similar to nothing."""
        return np.stack([self._vector(text) for text in texts])

    def cosine(self, one: str, other: str) -> float:
        """Cosine similarity of two texts, in [-1, 1]."""
        return float(np.clip(self._vector(one) @ self._vector(other), -1, 1))

    def _vector(self, text: str) -> np.ndarray:
        if text not in self._known:
            self._known[text] = self._embed(text)
        return self._known[text]

    @torch.inference_mode()
    def _embed(self, text: str) -> np.ndarray:
        total = torch.zeros(self._model.config.hidden_size, device=self._device)
        if not re.search(r"\w", text):
            return total.cpu().numpy()
        windows = self._tokenizer(text, truncation=True, max_length=self._window, return_overflowing_tokens=True)
        for ids in windows["input_ids"]:
            total += self._model(input_ids=torch.tensor([ids], device=self._device)).last_hidden_state[0].sum(0)
        return (total / total.norm()).cpu().numpy()


@cache
def _shared(folder: Path, device: str) -> Embedder:
    return Embedder(folder, device)
