"""Loaders of real captioned pictures. To add a source, add it to PICTURE_LOADERS."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import UsageError
from stages.files import local_file
from stages.tasks.hub_data import HubDataSource, row_file
from stages.tasks.json_lines import check_lines_file, lines_file
from stages.tasks.source import collect
from stages.tasks.text_to_image.pictures import PictureSource, Row, leads_out


class ImageFolder(PictureSource):
    """{imagefolder: FOLDER}: picture files with a metadata.jsonl, as in `datasets`, under the audit's inputs.

    Each line is a JSON object with file_name, the caption, and any other columns.
    """

    imagefolder: str

    def origin(self, inputs: Path) -> str:
        return f"the folder {self.imagefolder}"

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._metadata(inputs))

    def _metadata(self, inputs: Path) -> Path:
        folder = local_file(inputs, self.imagefolder, "prepare.data.imagefolder")
        if not (folder / "metadata.jsonl").is_file():
            raise UsageError(
                f"prepare.data.imagefolder: {folder} has no metadata.jsonl, one JSON object a line with the keys"
                f" file_name and {self.text}"
            )
        return folder / "metadata.jsonl"

    def rows(self, inputs: Path) -> Iterator[Row]:
        path = self._metadata(inputs)
        yield from _named_pictures(path, self.imagefolder, "file_name", self.image, "prepare.data.imagefolder")


class JsonLinesPictures(PictureSource):
    """{jsonl: FILE, image: FIELD, text: FIELD}: one JSON object per line, under the audit's inputs.

    `image` names the field with the path of a picture file, relative to the folder of the JSON lines.
    """

    jsonl: str

    def origin(self, inputs: Path) -> str:
        return f"the file {self.jsonl}"

    def errors(self, inputs: Path) -> list[str]:
        named = {"image": self.image, "text": self.text, **{f"where.{name}": name for name in self.where}}
        return collect(lambda: check_lines_file(inputs, self.jsonl, named, "prepare.data"))

    def _file(self, inputs: Path) -> Path:
        return lines_file(inputs, self.jsonl, "prepare.data")

    def rows(self, inputs: Path) -> Iterator[Row]:
        folder = str(PurePosixPath(self.jsonl).parent)
        yield from _named_pictures(self._file(inputs), folder, self.image, self.image, "prepare.data.jsonl")


class ParquetPictures(PictureSource):
    """{parquet: FILE}: one table with a column of pictures, PNG bytes or {bytes, path} as `datasets` writes them."""

    parquet: str

    def origin(self, inputs: Path) -> str:
        return f"the file {self.parquet}"

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._check_names(self._open(inputs).schema_arrow.names))

    def _check_names(self, names: Sequence[str]) -> None:
        if missing := [name for name in (self.image, self.text, *self.where) if name not in names]:
            raise UsageError(
                f"prepare.data.parquet: {self.parquet} has no column {', '.join(missing)}; found {', '.join(names)}"
            )

    def _open(self, inputs: Path) -> pq.ParquetFile:
        path = local_file(inputs, self.parquet, "prepare.data.parquet")
        try:
            return pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"prepare.data.parquet: {path} is not a readable parquet file: {error}") from None

    def rows(self, inputs: Path) -> Iterator[Row]:
        self.require(inputs)
        stem, number = Path(self.parquet).stem, 0
        batches = self._open(inputs).iter_batches()
        while True:
            try:
                rows = next(batches).to_pylist()
            except StopIteration:
                return
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UsageError(
                    f"prepare.data.parquet: {inputs / self.parquet} is damaged after row {number}: {error}"
                ) from None
            for row in rows:
                yield f"{stem}-{number}", row
                number += 1


class HubPictures(HubDataSource, PictureSource):
    """{datasets: ID_OR_FOLDER, split: SPLIT}: anything the `datasets` library reads, from the inputs or from the hub.

    `split` takes the library's slices ("train[:2000]"). No code is run.
    """

    extra = "text-to-image"

    split: str = "train"

    def rows(self, inputs: Path) -> Iterator[Row]:
        self.require(inputs)
        found = self._data.rows(inputs, self.split)
        import datasets

        if isinstance(found.features.get(self.image), datasets.Image):
            found = found.cast_column(self.image, datasets.Image(decode=False))
        stem = self.split.split("[")[0]
        for number, row in enumerate(found):
            # A column `split` would name the library's splits, which are not an audit's.
            yield f"{stem}-{number}", {name: value for name, value in row.items() if name != "split"}

    def _path(self, name: str, inputs: Path) -> Path:
        """See PictureSource: the library names files by their place in the folder read or in its cache."""
        return row_file(self._data.folder(inputs)[0], name)


PICTURE_LOADERS: Mapping[str, type[PictureSource]] = {
    "imagefolder": ImageFolder,
    "jsonl": JsonLinesPictures,
    "parquet": ParquetPictures,
    "datasets": HubPictures,
}


def _named_pictures(path: Path, folder: str, key: str, column: str, where: str) -> Iterator[Row]:
    """Yield the rows of JSON lines that name picture files, each with its file filled in.

    Args:
        path: the JSON lines.
        folder: the folder of the files, relative to the audit's inputs.
        key: key of a line with the path of its file.
        column: column that receives the picture.
        where: key of params.yaml, for messages.

    Raises:
        UsageError: when a line is not JSON, or names no file of the folder. Links in it are the user's own.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: {path} is not UTF-8: {error}") from None
    # Strings in JSON can contain other line ends (U+2028, U+0085), at which str.splitlines would split.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # halves of surrogate pairs are not text
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: {path}, line {number} is not JSON: {error}") from None
        name = row.get(key) if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise UsageError(f"{where}: {path}, line {number} names no {key}: {line[:80]}")
        if leads_out(name):
            raise UsageError(f"{where}: {key} {name} leads out of {folder}")
        yield name, row | {column: {"bytes": None, "path": str(PurePosixPath(folder) / name)}}
