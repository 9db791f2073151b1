"""Data sets as the `datasets` library reads them: a folder of the user, or a repository of the hub in the local cache.

No code of a data set is run: of a repository only files that hold data are fetched, and they are read as a folder is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import UsageError, did_you_mean
from stages.tasks.hub import DATASET_FILES, Repository, local_folder, remedy


@dataclass(frozen=True)
class HubData:
    """A data set by its name in params.yaml.

    Args:
        name: a folder under data/<audit>/inputs, or an ID of the hub.
        where: key of params.yaml that holds the name, for messages.
        extra: the extra of faded that installs `datasets`.
        config: the configuration, where a data set has several.
        revision: commit, tag or branch; of the hub alone.
        files: patterns of the files to fetch; empty: all that hold data.
    """

    name: str
    where: str
    extra: str
    config: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()

    def errors(self, inputs: Path) -> list[str]:
        """Say what is missing, without reading rows or asking anybody."""
        try:
            local = local_folder(inputs, self.name, self.revision, self.where) is not None
            if local and self.files:
                return [f"{self.where.rpartition('.')[0]}.files: {self.name} is a folder, of which nothing is fetched"]
            self._repository()
        except UsageError as error:
            return [str(error)]
        return []

    def _repository(self) -> Repository:
        try:
            wanted = (*self.files, "README.md") if self.files else DATASET_FILES
            return Repository(self.name, self.revision, wanted, kind="dataset")
        except ValueError as error:
            raise UsageError(f"{self.where.rpartition('.')[0]}.files: {error}") from None

    def folder(self, inputs: Path) -> tuple[Path, str]:
        """Where its files lie, and where they come from, for people and for the record.

        Raises:
            UsageError: when they lie nowhere, with the command that fetches them.
        """
        local = local_folder(inputs, self.name, self.revision, self.where)
        if local is not None:
            return local, f"the folder {self.name}"
        found = self._repository().cached(inputs, self.where)
        return found.folder, found.origin

    def prefetch(self, inputs: Path) -> list[str]:
        """Fetch it, where it is one of the hub; a line for people."""
        local = local_folder(inputs, self.name, self.revision, self.where)
        return [] if local is not None else [self._repository().fetch(self.where)]

    def rows(self, inputs: Path, split: str) -> Any:
        """Read a split, or a slice of one as the library writes it ("train[:5000]").

        Returns:
            A `datasets.Dataset`.

        Raises:
            UsageError: when the library is missing, or there is no such split, configuration or data set.
        """
        try:
            import datasets
        except ImportError:
            raise UsageError(f"{self.where}: needs the library datasets: pip install 'faded[{self.extra}]'") from None
        folder, _ = self.folder(inputs)
        datasets.disable_progress_bars()
        try:
            return datasets.load_dataset(str(folder), self.config, split=split)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            local = local_folder(inputs, self.name, self.revision, self.where) is not None
            hint = "" if local else f" The cache may hold a part of it only. {remedy(inputs)}"
            why = " ".join(str(error).replace(str(folder), self.name).split())[:400]
            raise UsageError(f"{self.where}: {self.name}, split {split}, cannot be read: {why}{hint}") from None


def check_columns(found: Sequence[str], named: Mapping[str, str | None], where: str, what: str) -> None:
    """Say which columns params.yaml names and the data lack, before every row of them is left out.

    Args:
        found: columns there are.
        named: {key of the block: column}; None is none.
        where: the block, for messages.
        what: the data, for people.

    Raises:
        UsageError: one line per column.
    """
    lines = [
        f"{where}.{key}: {what} has no {column!r}{did_you_mean(column, found)}; found {', '.join(found) or 'none'}"
        for key, column in named.items()
        if column is not None and column not in found
    ]
    if lines:
        raise UsageError("\n".join(lines))
