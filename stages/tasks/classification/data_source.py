"""Base class of the data loaders."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from pydantic import Field

from stages.tasks.classification.pool import Pool
from stages.tasks.source import Source


class DataSource(Source):
    """Base of the data loaders."""

    max_corrupt: float = Field(0.05, ge=0, le=1, description="share of unreadable pictures to skip; more is an error")

    @abstractmethod
    def load(self, inputs: Path) -> Pool:
        """List all available pictures.

        Raises:
            UsageError: if there are none, or their list cannot be read.
        """
