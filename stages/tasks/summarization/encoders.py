"""Loaders of text encoders in the format of transformers, which are read completely or not at all."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field

from stages.errors import UsageError
from stages.tasks.hub import NAME, Repository
from stages.tasks.source import Source, collect

_FILES = ("config.json", "tokenizer.json", "model.safetensors")


class EncoderSource(Source):
    """Base of the loaders of encoders; `where` is their key in params.yaml."""

    where: ClassVar[str]

    @abstractmethod
    def folder(self, inputs: Path) -> tuple[Path, str]:
        """Return the encoder's folder, and its origin for people and for the record.

        Raises:
            UsageError: when something is missing.
        """

    def errors(self, inputs: Path) -> list[str]:
        """See Source: missing files; nothing is loaded."""
        return collect(lambda: self.whole(self.folder(inputs)[0]))

    def origin(self, inputs: Path) -> str:
        return self.folder(inputs)[1]

    def whole(self, folder: Path) -> Path:
        """Return the folder if no file is missing.

        Raises:
            UsageError: when a file is missing.
        """
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

    Args:
        folder: in the format of transformers.
        kind: the Auto class of transformers to read the model with.
        where: the encoder's key in params.yaml, for messages.
        unused: prefixes of the names of weights that are not needed.

    Raises:
        UsageError: when they cannot be read, or weights are missing, which transformers fills at random with only a
            warning.
    """
    from safetensors import SafetensorError
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    mine = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **mine)
        model, told = kind.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **mine
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{where}: {folder} cannot be loaded: {' '.join(str(error).split())[:400]}") from None
    if lost := sorted(name for name in told["missing_keys"] if not name.startswith(unused)):
        raise UsageError(
            f"{where}: {folder}/model.safetensors does not fit config.json: {len(lost)} weights are missing,"
            f" {lost[0]} among them"
        )
    return tokenizer, model.eval()
