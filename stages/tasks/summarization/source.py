"""What all ways to name a summarizer have in common: it is prepared and loaded."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from stages.tasks.contract import Compute
from stages.tasks.source import Source
from stages.tasks.summarization.form import GenerationConfig
from stages.tasks.summarization.generate import Summarizes


class ModelSource(Source):
    """Base of the model loaders."""

    @abstractmethod
    def build(self, inputs: Path, out_dir: Path, generation: GenerationConfig, dtype: str = "float32") -> None:
        """Write the model folder.

        Args:
            inputs: data/<audit>/inputs.
            out_dir: the model folder.
            generation: how summaries are asked for.
            dtype: of the weights.

        Raises:
            UsageError: when the model cannot be read, or cannot be asked as `generation` says.
        """

    @abstractmethod
    def load(self, folder: Path, compute: Compute, base: Path | None = None) -> Summarizes:
        """Read a model folder that `build` wrote, or a repair of one together with the model folder it belongs to.

        Raises:
            UsageError: when a file is missing or damaged, or the repair was made for another model.
        """
