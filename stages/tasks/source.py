"""What all ways to name a model, data or a judge have in common, whatever the task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stages.errors import UsageError
from stages.params import Strict


class Source(Strict):
    """A block of params.yaml that names one. A task's loaders add how it is read."""

    @abstractmethod
    def errors(self, inputs: Path) -> list[str]:
        """Say what is missing, without reading weights or data, or asking anybody; empty if nothing is.

        A key in the environment is not asked for: the machine that plans or fetches need not hold it.
        """

    def require(self, inputs: Path) -> None:
        """Stop where `errors` finds anything.

        Raises:
            UsageError: one line per error.
        """
        if errors := self.errors(inputs):
            raise UsageError("\n".join(errors))

    def prefetch(self, inputs: Path) -> list[str]:
        """Fetch what has to come from elsewhere, so that reading it needs no network; one line for each thing."""
        return []

    def origin(self, inputs: Path) -> str:
        """Where it comes from, for people and for the record: the commit, where it is one of the hub.

        "" where that is known only once it was read.
        """
        return ""

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

    def repair_errors(self, audit: str, settings: Mapping[str, Any]) -> list[str]:
        """Say why what it names cannot be repaired; empty if it can.

        Args:
            audit: the audit's name.
            settings: the repair's method and its settings, not checked yet.
        """
        return []


def collect(check: Callable[[], object]) -> list[str]:
    """What a check raises, as lines."""
    try:
        check()
    except UsageError as error:
        return str(error).splitlines()
    return []
