"""What all data loaders share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from stages.errors import UsageError
from stages.params import Strict
from stages.tasks.classification.pool import Pool


class DataSource(Strict):
    """Base of the data loaders."""

    max_corrupt: float = Field(0.05, ge=0, le=1, description="share of unreadable pictures to skip; more is an error")

    @abstractmethod
    def errors(self, inputs: Path) -> list[str]:
        """Say what is missing, without reading pictures."""

    @abstractmethod
    def load(self, inputs: Path) -> Pool:
        """List all pictures there are.

        Raises:
            UsageError: when there are none, or what lists them cannot be read.
        """

    @abstractmethod
    def origin(self, inputs: Path) -> str:
        """Where the pictures come from, for people and for the record."""

    def prefetch(self, inputs: Path) -> list[str]:
        """Fetch what it names on a hub into the local cache; a line for people each."""
        return []


def collect(check: Callable[[], object]) -> list[str]:
    """What a check raises, as lines."""
    try:
        check()
    except UsageError as error:
        return [str(error)]
    return []
