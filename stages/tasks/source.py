"""Base class of sources: the ways to name a model, data or a judge in params.yaml, for all tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import UsageError
from stages.params import Strict


class Source(Strict):
    """A block of params.yaml that names a model, data or a judge. Loaders of a task add how to read it."""

    @abstractmethod
    def errors(self, inputs: Path) -> list[str]:
        """Return what is missing, without reading weights or data or using the network; empty if nothing is.

        API keys in the environment are not checked: the machine that plans or downloads need not have them.
        """

    def require(self, inputs: Path) -> None:
        """Raise an error if `errors` finds any.

        Raises:
            UsageError: one line per error.
        """
        if errors := self.errors(inputs):
            raise UsageError("\n".join(errors))

    def prefetch(self, inputs: Path) -> list[str]:
        """Download what is needed, so that reading it needs no network; return one line per download."""
        return []

    def origin(self, inputs: Path) -> str:
        """Return the origin for people and the record, with the commit for the hub; "" if unknown before it is read."""
        return ""

    def available(self, inputs: Path, enough: int) -> Mapping[str, int] | None:
        """Count the available items by split ("" for items without a split) as an upper bound, if that is cheap.

        Args:
            inputs: the folder of the audit's own files.
            enough: number of items wanted; counting may stop there.

        Returns:
            None if counting is not cheap.

        Raises:
            UsageError: if the data cannot be read.
        """
        return None

    def repair_errors(self, audit: str, settings: Mapping[str, Any]) -> list[str]:
        """Return why this model or data cannot be repaired; empty if they can.

        Args:
            audit: the audit's name.
            settings: the repair's method and its settings, not checked yet.
        """
        return []


def collect(check: Callable[[], object]) -> list[str]:
    """Return the lines of the UsageError that a check raises; empty if it raises none."""
    try:
        check()
    except UsageError as error:
        return str(error).splitlines()
    return []
