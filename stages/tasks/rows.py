"""Rows of a user's data: JSON lines, and data sets of the `datasets` library, for all kinds of models.

A data set is a folder of the user, or a hub repository in the local cache. No code of it is run: only data files of a
repository are downloaded, and they are read like a local folder.
"""

import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from stages.core.errors import UsageError, did_you_mean
from stages.core.files import content_hash, local_file
from stages.tasks.hub import DATASET_FILES, Repository, local_folder, remedy
from stages.tasks.sources import Source, collect

_DATASETS = "prepare.data.datasets"


def check_columns(found: Sequence[str], named: Mapping[str, str | None], where: str, what: str) -> None:
    """Check that the data have the columns that params.yaml names, before every row is skipped for lack of them.

    Raises a UsageError, one line per missing column.

    Args:
        named: {key of the block: column}; None for no column.
        where: the block, for messages.
        what: the data, for people.
    """
    lines = [
        f"{where}.{key}: {what} has no {column!r}{did_you_mean(column, found)}; found {', '.join(found) or 'none'}"
        for key, column in named.items()
        if column is not None and column not in found
    ]
    if lines:
        raise UsageError("\n".join(lines))


def lines_file(inputs: Path, name: str, where: str) -> Path:
    """Find a user's JSON lines file.

    Raises a UsageError if it is missing, outside that folder, or a folder itself.

    Args:
        inputs: the folder of the audit's own files.
        name: path in that folder.
        where: the block that names it as `jsonl`, for messages.
    """
    path = local_file(inputs, name, f"{where}.jsonl")
    if not path.is_file():
        raise UsageError(f"{where}.jsonl: {path} is a folder, expected a file with one JSON object a line")
    return path


def check_lines_file(inputs: Path, name: str, named: Mapping[str, str | None], where: str) -> None:
    """Check that a JSON lines file exists and that its first line has the named fields.

    A missing field is most likely a typo, so it is reported once rather than for every line. If the first line is not a
    JSON object, the code that reads all lines reports it. Raises a UsageError as for `lines_file`, or with one line per
    field.

    Args:
        inputs: the folder of the audit's own files.
        name: path in that folder.
        named: {key of the block: field}; None for no field.
        where: the block, for messages.
    """
    with lines_file(inputs, name, where).open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return
    if isinstance(row, dict):
        check_columns(list(row), named, where, f"{name}, line 1,")


def count_lines(path: Path, enough: int) -> int:
    """Count the non-empty lines of a file, up to `enough`."""
    with path.open("rb") as lines:
        return sum(1 for _ in islice(filter(bytes.strip, lines), enough))


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number, row) of each line that is not empty; of a line that is not JSON in UTF-8 the ValueError."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    yield number, error
                except RecursionError:
                    yield number, ValueError("it is nested too deeply")


class JsonLinesSource(Source):
    """Base of the loaders {jsonl: FILE}: one JSON object per line, under the audit's inputs."""

    jsonl: str

    @abstractmethod
    def named(self) -> Mapping[str, str | None]:
        """Return {key of the block: field} of the fields that the first line must have; None for no field."""

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: check_lines_file(inputs, self.jsonl, self.named(), "prepare.data"))

    def origin(self, inputs: Path) -> str:
        return f"the file {self.jsonl}"

    def available(self, inputs: Path, enough: int) -> Mapping[str, int] | None:
        return {"": count_lines(lines_file(inputs, self.jsonl, "prepare.data"), enough)}

    def numbered(self, inputs: Path) -> Iterator[tuple[str, int, Any]]:
        """Yield (name of the file, number, row) of each line, see `json_rows`."""
        path = lines_file(inputs, self.jsonl, "prepare.data")
        for number, row in json_rows(path):
            yield path.stem, number, row


class HubDataSource(Source):
    """Base of the loaders {datasets: ID_OR_FOLDER}: a folder under the audit's inputs, or an ID of the hub."""

    extra: ClassVar[str]  # the extra of faded that installs `datasets`

    datasets: str
    name: str | None = Field(None, description="the configuration, where a data set has several")
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")
    files: tuple[str, ...] = Field(
        (), strict=False, description="hub: patterns of files to fetch; all that hold data by default"
    )

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._check(inputs))

    def _check(self, inputs: Path) -> None:
        if self._local(inputs) and self.files:
            raise UsageError(f"prepare.data.files: {self.datasets} is a folder, of which nothing is fetched")
        self._repository()

    def _local(self, inputs: Path) -> bool:
        return local_folder(inputs, self.datasets, self.revision, _DATASETS) is not None

    def _repository(self) -> Repository:
        try:
            wanted = (*self.files, "README.md") if self.files else DATASET_FILES
            return Repository(self.datasets, self.revision, wanted, kind="dataset")
        except ValueError as error:
            raise UsageError(f"prepare.data.files: {error}") from None

    def folder(self, inputs: Path) -> Path:
        """Return the folder with its files.

        Raises a UsageError if there are none, with the command that downloads them.
        """
        return self._repository().found(inputs, _DATASETS)[0]

    def origin(self, inputs: Path) -> str:
        return self._repository().found(inputs, _DATASETS)[1]

    def prefetch(self, inputs: Path) -> list[str]:
        return self._repository().prefetch(inputs, _DATASETS)

    def read_split(self, inputs: Path, split: str) -> Any:
        """Read a split, or a slice in the syntax of the library ("train[:5000]").

        Raises a UsageError if the library is missing, there is no such split, configuration or data set, or its
        README.md names files outside it.

        Returns:
            A `datasets.Dataset`.
        """
        try:
            import datasets
        except ImportError:
            raise UsageError(f"{_DATASETS}: needs the library datasets: pip install 'faded[{self.extra}]'") from None
        folder, local = self.folder(inputs), self._local(inputs)
        datasets.disable_progress_bars()
        try:
            cache = str(Path(datasets.config.HF_DATASETS_CACHE) / _stamp(folder)) if local else None
            builder = datasets.load_dataset_builder(str(folder), self.name, cache_dir=cache)
            for file in (file for files in (builder.config.data_files or {}).values() for file in files):
                if not _lies_in(file, folder, folder.resolve()):
                    raise UsageError(f"{_DATASETS}: {self.datasets} names the file {file}, which lies outside it")
            builder.download_and_prepare()
            return builder.as_dataset(split=split)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            hint = "" if local else f" The cache may hold a part of it only. {remedy(inputs)}"
            why = " ".join(str(error).replace(str(folder), self.datasets).split())[:400]
            raise UsageError(f"{_DATASETS}: {self.datasets}, split {split}, cannot be read: {why}{hint}") from None

    def numbered(self, inputs: Path, split: str, named: Mapping[str, str | None]) -> Iterator[tuple[str, int, Any]]:
        """Yield (name of the split, number, row) of each row; the split must have the named columns."""
        rows = self.read_split(inputs, split)
        check_columns(rows.column_names, named, "prepare.data", f"{self.datasets}, split {split},")
        for number, row in enumerate(rows):
            yield split.split("[", maxsplit=1)[0], number, row


def row_file(folder: Path, name: str) -> Path:
    """Return the path of a file that a row names, provided that it is the data set's own.

    Data written by others must not be able to read other files. Links are not resolved for this check: those in the
    folder are the user's own, and the hub's cache consists of links. Raises a UsageError if it is neither in that
    folder nor in the library's cache of unpacked files.
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
