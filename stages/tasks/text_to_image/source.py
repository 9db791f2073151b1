"""Base class of the loaders of text-to-image models."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from stages.tasks.contract import Compute
from stages.tasks.source import Source
from stages.tasks.text_to_image.config import SamplingConfig
from stages.tasks.text_to_image.sample import Paints


class ModelSource(Source):
    """Base of the model loaders."""

    @abstractmethod
    def build(self, inputs: Path, out_dir: Path, sampling: SamplingConfig | None = None) -> None:
        """Write the model folder.

        Args:
            inputs: data/<audit>/inputs.
            out_dir: the model folder.
            sampling: how pictures will be drawn; by default `SamplingConfig()`.

        Raises:
            UsageError: when the model cannot be read, or does not draw from text alone.
        """

    @abstractmethod
    def load(self, folder: Path, compute: Compute, sampling: SamplingConfig, repaired: Path | None = None) -> Paints:
        """Read a model folder that `build` wrote, or a repair of it.

        Args:
            folder: the model folder.
            compute: device and batch size.
            sampling: how pictures are drawn.
            repaired: a whole pipeline to read instead, or LoRA weights for the one in `folder`.

        Raises:
            UsageError: when a file is missing or damaged, or the repair was made for another model.
        """
