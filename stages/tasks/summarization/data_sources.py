"""Loaders of articles. To add a source, add its key to DATA_LOADERS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from stages.tasks.attributes import details
from stages.tasks.rows import HubDataSource, check_columns, check_lines_file, count_lines, json_rows, lines_file
from stages.tasks.source import collect
from stages.tasks.sources import package_file
from stages.tasks.summarization.data import Article, DataSource, Unreadable


class PackageArticles(DataSource):
    """{package: NAME, file: FILE, test: FILE}: text files in an installed package, one article per line.

    Articles of `test` are the test split; without it, all splits are drawn from `file`.
    """

    package: str = Field(pattern=r"^\w+$")
    file: str
    test: str | None = None

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._files(inputs))

    def _files(self, inputs: Path) -> dict[str, Path]:
        named = {"": self.file, "test": self.test}
        return {
            pool: package_file(inputs, self.package, name, f"prepare.data.{pool or 'file'}")
            for pool, name in named.items()
            if name is not None
        }

    def available(self, inputs: Path, enough: int) -> Mapping[str, int]:
        return {pool: count_lines(path, enough) for pool, path in self._files(inputs).items()}

    def origin(self, inputs: Path) -> str:
        return f"{self.file} of the package {self.package}"

    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        """See DataSource; files that are not UTF-8 are read as Latin-1, as older corpora are."""
        for pool, path in self._files(inputs).items():
            content = path.read_bytes()
            try:
                text = content.decode()
            except UnicodeDecodeError:
                text = content.decode("latin-1")
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    yield Article(_id(path.stem, number, pool), line, pool=pool)


class JsonLines(DataSource):
    """{jsonl: FILE, text: FIELD, summary: FIELD, split: FIELD}: one JSON object per line, under the audit's inputs.

    `summary` names the field of the reference summary, and `split` that of the split a line is meant for, if any.
    """

    jsonl: str
    text: str
    summary: str | None = None
    split: str | None = None

    def errors(self, inputs: Path) -> list[str]:
        named = {"text": self.text, "summary": self.summary, "split": self.split}
        return collect(lambda: check_lines_file(inputs, self.jsonl, named, "prepare.data"))

    def available(self, inputs: Path, enough: int) -> Mapping[str, int] | None:
        """See DataSource; None with a split field, as counting then needs all lines to be read."""
        return {"": count_lines(self._file(inputs), enough)} if self.split is None else None

    def origin(self, inputs: Path) -> str:
        return f"the file {self.jsonl}"

    def _file(self, inputs: Path) -> Path:
        return lines_file(inputs, self.jsonl, "prepare.data")

    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        path = self._file(inputs)
        for number, row in json_rows(path):
            name = _id(path.stem, number)
            if isinstance(row, ValueError):
                yield Unreadable(name, f"line {number} is not JSON: {row}")
            else:
                yield _article(name, row, self.text, self.summary, self.split, f"line {number}")


class HubDataset(HubDataSource, DataSource):
    """{datasets: ID_OR_FOLDER, split: SPLIT, text: FIELD, summary: FIELD}: anything that the `datasets` library reads.

    A folder under the audit's inputs, or an ID of the Hugging Face hub. `split` and `test` take the library's slices
    ("train[:5000]"); without `test`, all splits are drawn from `split`. No code is run.

    All rows are read and compared before items are drawn, so name a slice of a large split: 100,000 articles take a
    minute or two, and 1 GB of memory in addition to their texts.
    """

    extra = "text"

    split: str
    text: str
    summary: str | None = None
    test: str | None = None

    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        for pool, split in (("", self.split), ("test", self.test)):
            if split is not None:
                stem, rows = split.split("[")[0], self.read_split(inputs, split)
                named = {"text": self.text, "summary": self.summary}
                check_columns(rows.column_names, named, "prepare.data", f"{self.datasets}, split {split},")
                for number, row in enumerate(rows):
                    yield _article(_id(stem, number, pool), row, self.text, self.summary, None, f"row {number}", pool)


DATA_LOADERS: Mapping[str, type[DataSource]] = {
    "package": PackageArticles,
    "jsonl": JsonLines,
    "datasets": HubDataset,
}


def _id(stem: str, number: int, pool: str = "") -> str:
    """Id of an article with its pool, as two pools can come from one split or from files of the same name."""
    return f"{pool}-{stem}-{number}" if pool else f"{stem}-{number}"


def _article(
    name: str, row: Any, text: str, summary: str | None, split: str | None, where: str, pool: str = ""
) -> Article | Unreadable:
    """Convert a row to an article; it is unreadable if a named field is missing."""
    if not isinstance(row, dict):
        return Unreadable(name, f"{where} holds {type(row).__name__}, expected an object with the field {text!r}")
    fields = [field for field in (text, summary, split) if field is not None]
    for field in fields:
        if not isinstance(row.get(field), str):
            found = f"it has {type(row[field]).__name__}" if field in row else f"found {', '.join(row) or 'none'}"
            return Unreadable(name, f"{where} has no text in the field {field!r}, {found}")
    reference, pool = row[summary] if summary else "", row[split] if split else pool
    return Article(name, row[text], reference, pool, details=details(row, fields))
