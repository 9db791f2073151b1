"""What all ways to name a model, data or a judge have in common, whatever the task."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from stages.params import Strict


class Source(Strict):
    """A block of params.yaml that names one. A task's loaders add how it is read."""

    @abstractmethod
    def errors(self, inputs: Path) -> list[str]:
        """Say what is missing, without reading weights or data, or asking anybody; empty if nothing is."""

    @abstractmethod
    def origin(self, inputs: Path) -> str:
        """Where it comes from, for people and for the record: the commit, where it is one of the hub."""

    def prefetch(self, inputs: Path) -> list[str]:
        """Fetch what has to come from elsewhere, so that reading it needs no network; one line for each thing."""
        return []
