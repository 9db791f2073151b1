"""Base classes of the loaders of language models."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from stages.tasks.account import Account
from stages.tasks.contract import Compute
from stages.tasks.source import Source
from stages.tasks.summarization.form import GenerationConfig
from stages.tasks.summarization.generate import Summarizes


class LanguageModelSource(Source):
    """Base of the loaders of language models for all tasks."""

    @abstractmethod
    def build(
        self,
        inputs: Path,
        out_dir: Path,
        generation: GenerationConfig,
        dtype: str = "float32",
        account: Account | None = None,
    ) -> None:
        """Write the model folder.

        Args:
            inputs: data/<audit>/inputs.
            out_dir: the model folder.
            generation: how it is queried.
            dtype: dtype of the weights.
            account: stores the answers and costs of a paid model.

        Raises:
            UsageError: when the model cannot be read, or cannot be queried as `generation` says.
        """


class ModelSource(LanguageModelSource):
    """Base of the loaders of summarizers."""

    @abstractmethod
    def load(
        self, folder: Path, compute: Compute, base: Path | None = None, account: Account | None = None
    ) -> Summarizes:
        """Read a model folder that `build` wrote, or a repair together with the model folder it belongs to.

        Args:
            folder: the model folder, or the repair.
            compute: device, dtype and batch size.
            base: the model folder a repair belongs to.
            account: the same as for `build`.

        Raises:
            UsageError: when a file is missing or damaged, or the repair was made for another model.
        """
