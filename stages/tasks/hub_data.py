"""Data sets for the `datasets` library: a folder of the user, or a hub repository in the local cache.

No code of a data set is run: only data files of a repository are downloaded, and they are read like a local folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from stages.errors import UsageError, did_you_mean
from stages.files import content_hash
from stages.tasks.hub import DATASET_FILES, Repository, local_folder, remedy
from stages.tasks.source import Source


@dataclass(frozen=True)
class HubData:
    """A data set by its name in params.yaml.

    Args:
        name: a folder under data/<audit>/inputs, or an ID of the hub.
        where: key of params.yaml that holds the name, for messages.
        extra: the extra of faded that installs `datasets`.
        config: the configuration, if a data set has several.
        revision: commit, tag or branch; only for the hub.
        files: patterns of the files to download; empty for all data files.
    """

    name: str
    where: str
    extra: str
    config: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()

    def errors(self, inputs: Path) -> list[str]:
        """Return what is missing, without reading rows or using the network."""
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
        """Return the folder with its files, and their origin, for people and the record.

        Raises:
            UsageError: if there are none, with the command that downloads them.
        """
        return self._repository().found(inputs, self.where)

    def prefetch(self, inputs: Path) -> list[str]:
        """Download it if it is on the hub; return lines for people."""
        return self._repository().prefetch(inputs, self.where)

    def rows(self, inputs: Path, split: str) -> Any:
        """Read a split, or a slice in the syntax of the library ("train[:5000]").

        Returns:
            A `datasets.Dataset`.

        Raises:
            UsageError: if the library is missing, there is no such split, configuration or data set, or its
                README.md names files outside it.
        """
        try:
            import datasets
        except ImportError:
            raise UsageError(f"{self.where}: needs the library datasets: pip install 'faded[{self.extra}]'") from None
        folder, _ = self.folder(inputs)
        local = local_folder(inputs, self.name, self.revision, self.where) is not None
        datasets.disable_progress_bars()
        try:
            cache = str(Path(datasets.config.HF_DATASETS_CACHE) / _stamp(folder)) if local else None
            builder = datasets.load_dataset_builder(str(folder), self.config, cache_dir=cache)
            self._check_files(folder, builder.config.data_files or {})
            builder.download_and_prepare()
            return builder.as_dataset(split=split)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            hint = "" if local else f" The cache may hold a part of it only. {remedy(inputs)}"
            why = " ".join(str(error).replace(str(folder), self.name).split())[:400]
            raise UsageError(f"{self.where}: {self.name}, split {split}, cannot be read: {why}{hint}") from None

    def _check_files(self, folder: Path, named: Mapping[str, Sequence[str]]) -> None:
        for file in (file for files in named.values() for file in files):
            if not _lies_in(file, folder, folder.resolve()):
                raise UsageError(f"{self.where}: {self.name} names the file {file}, which lies outside it")


class HubDataSource(Source):
    """Base of the loaders {datasets: ID_OR_FOLDER}: a folder under the audit's inputs, or an ID of the hub."""

    extra: ClassVar[str]  # the extra of faded that installs `datasets`

    datasets: str
    name: str | None = Field(None, description="the configuration, where a data set has several")
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")
    files: tuple[str, ...] = Field(
        (), strict=False, description="hub: patterns of files to fetch; all that hold data by default"
    )

    @property
    def _data(self) -> HubData:
        return HubData(self.datasets, "prepare.data.datasets", self.extra, self.name, self.revision, self.files)

    def errors(self, inputs: Path) -> list[str]:
        return self._data.errors(inputs)

    def origin(self, inputs: Path) -> str:
        return self._data.folder(inputs)[1]

    def prefetch(self, inputs: Path) -> list[str]:
        return self._data.prefetch(inputs)


def row_file(folder: Path, name: str) -> Path:
    """Return the path of a file that a row names, provided that it is the data set's own.

    Data written by others must not be able to read other files. Links are not resolved for this check: those in the
    folder are the user's own, and the hub's cache consists of links.

    Args:
        folder: folder of the data set.
        name: the path.

    Raises:
        UsageError: if it is neither in that folder nor in the library's cache of unpacked files.
    """
    import datasets

    if not _lies_in(name, folder, folder.resolve(), Path(datasets.config.HF_DATASETS_CACHE)):
        raise UsageError(
            f"a row names the file {name}, which lies outside the data set's folder and the library's cache"
        )
    return Path(name)


def _stamp(folder: Path) -> str:
    """Hash of the files in a folder with their sizes and modification times.

    If a folder's README.md names the files, the library would otherwise reuse its cache whatever has changed.
    """
    files = sorted(Path(here, name) for here, _, names in os.walk(folder, followlinks=True) for name in names)
    return content_hash([], [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def _lies_in(name: str, *folders: Path) -> bool:
    path = Path(os.path.normpath(name))
    return any(path.is_relative_to(folder.absolute()) for folder in folders)


def check_columns(found: Sequence[str], named: Mapping[str, str | None], where: str, what: str) -> None:
    """Check that the data have the columns that params.yaml names, before every row is skipped for lack of them.

    Args:
        found: columns of the data.
        named: {key of the block: column}; None for no column.
        where: the block, for messages.
        what: the data, for people.

    Raises:
        UsageError: one line per missing column.
    """
    lines = [
        f"{where}.{key}: {what} has no {column!r}{did_you_mean(column, found)}; found {', '.join(found) or 'none'}"
        for key, column in named.items()
        if column is not None and column not in found
    ]
    if lines:
        raise UsageError("\n".join(lines))
