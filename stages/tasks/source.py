"""What all ways to name a model, data or a judge have in common, whatever the task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from stages.errors import UsageError
from stages.params import Strict


class Named(Strict):
    """A block of params.yaml that names one. A task's loaders add how it is read."""

    @abstractmethod
    def errors(self, inputs: Path) -> list[str]:
        """Say what is missing, without reading weights or data, or asking anybody; empty if nothing is.

        A key in the environment is not asked for: the machine that plans or fetches need not hold it.
        """

    def prefetch(self, inputs: Path) -> list[str]:
        """Fetch what has to come from elsewhere, so that reading it needs no network; one line for each thing."""
        return []


class Source(Named):
    """One that says by itself where it comes from."""

    @abstractmethod
    def origin(self, inputs: Path) -> str:
        """Where it comes from, for people and for the record: the commit, where it is one of the hub."""

    def available(self, inputs: Path, enough: int) -> Mapping[str, int] | None:
        """Count the items there are at most, by split ("" for those that are of none), where that is cheap.

        Args:
            inputs: the folder of the audit's own files.
            enough: how many are wanted; counting may stop there.

        Returns:
            None where it is not cheap.

        Raises:
            UsageError: when what is counted cannot be read.
        """
        return None


def collect(check: Callable[[], object]) -> list[str]:
    """What a check raises, as lines."""
    try:
        check()
    except UsageError as error:
        return str(error).splitlines()
    return []
