"""Real captioned pictures as one table for all sources, with what was left out and why; and pictures as PNG.

To add a source, add it to PICTURE_LOADERS.
"""

import io
import json
import re
import struct
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from pydantic import Field

from stages.core.errors import UsageError, first_problems
from stages.core.files import local_file, parquet_metadata
from stages.tasks.rows import HubDataSource, check_lines_file, lines_file, row_file
from stages.tasks.sources import Source, collect

NAMED = 5  # exclusions an error names
OWN = ("id", "text", "image", "split")  # columns of the table; others are the source's own
Row = tuple[str, dict[str, Any]]
_SCALAR = (str, int, float, bool, type(None))
# What Pillow raises for files that are damaged or malicious.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError),
    *(Image.DecompressionBombError, struct.error, zlib.error),
)


def to_png(pixels: np.ndarray) -> bytes:
    """Encode a picture (h, w, 3) uint8 as PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def from_png(image: bytes, size: int | None = None) -> np.ndarray:
    """Decode a picture to (h, w, 3) uint8; with `size`, its middle square is resized to `size` x `size` pixels.

    Reads any format that Pillow does, turned upright by its EXIF data; transparent parts become white. Raises a
    UsageError when it is not a picture.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("RGB")
    except _DAMAGED as error:
        # The reason is stored, and addresses in memory differ from run to run.
        reason = re.sub(r"\s*<[^<>]*0x[0-9a-f]+>", "", str(error))
        raise UsageError(f"no picture that can be read: {reason}") from None
    if size is not None and picture.size != (size, size):
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(picture)


def strip(pixels: Sequence[np.ndarray], gap: int = 2) -> bytes:
    """Join pictures of one height side by side, with `gap` pixels of white between them, into one PNG."""
    white = np.full((pixels[0].shape[0], gap, 3), 255, dtype=np.uint8)
    parts = [part for picture in pixels for part in (picture, white)]
    return to_png(np.concatenate(parts[:-1], axis=1))


class PictureSource(Source):
    """Base of the picture loaders: the names of the columns, and which rows count."""

    text: str = Field("text", description="the column of captions")
    image: str = Field("image", description="the column of pictures")
    where: dict[str, str | int | float | bool] = Field({}, description="column: value; other rows are not read")
    size: int | None = Field(
        None, ge=8, le=16_384, description="pixels; the middle square of each picture, resized to it"
    )
    max_excluded: float = Field(
        0.05, ge=0, le=1, description="share of unusable pictures to leave out; more is an error"
    )

    @abstractmethod
    def rows(self, inputs: Path) -> Iterator[Row]:
        """Yield all rows, each with its place; the value for the picture is one that `_bytes` accepts."""

    def load(self, inputs: Path) -> tuple[pd.DataFrame, list[dict[str, str]]]:
        """Read all pictures.

        Raises a UsageError when there are none, or more were left out than `max_excluded` allows.

        Returns:
            A table with the columns id, text, image (PNG bytes), split ("" if the source names none) and the source's
            own columns with plain values, as text ("" if missing); and what was left out as {file, reason}.
        """
        table: list[dict[str, Any]] = []
        skipped: list[dict[str, str]] = []
        for place, row in self.rows(inputs):
            if missing := [column for column in (self.text, *self.where) if column not in row]:
                raise UsageError(
                    f"prepare.data: {place} has no column {', '.join(missing)}; found {', '.join(map(str, row))}"
                )
            if any(str(row[column]) != str(value) for column, value in self.where.items()):
                continue
            try:
                table.append(self._entry(place, row, inputs))
            except UsageError as error:
                skipped.append({"file": place, "reason": str(error)})
        total = len(table) + len(skipped)
        if total == 0:
            raise UsageError(f"prepare.data: no picture found{f' where {self.where}' if self.where else ''}")
        if not table or len(skipped) > self.max_excluded * total:
            named = first_problems([f"{s['file']} ({s['reason']})" for s in skipped], NAMED)
            raise UsageError(
                f"prepare.data: {len(skipped)} of {total} pictures cannot be used,"
                f" max_excluded allows {self.max_excluded:.0%}: {named}"
            )
        frame = pd.DataFrame(_plain(table))
        if frame["id"].duplicated().any():
            twice = frame.loc[frame["id"].duplicated(), "id"].iloc[0]
            raise UsageError(f"prepare.data: ids must be unique, found {twice!r} more than once")
        return frame, skipped

    def _entry(self, place: str, row: Mapping[str, Any], inputs: Path) -> dict[str, Any]:
        """Return one row of the table, or raise a UsageError that says why it cannot be used."""
        text = row[self.text]
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"no caption: {text!r}")
        pixels = from_png(self._bytes(row.get(self.image), inputs), self.size)
        more = {name: value for name, value in row.items() if name not in (*OWN, self.text, self.image)}
        entry = {"id": str(row.get("id") or place), "text": " ".join(text.split()), "image": to_png(pixels)}
        return {**entry, "split": str(row.get("split") or ""), **more}

    def _bytes(self, image: Any, inputs: Path) -> bytes:
        """Return the file's bytes, from bytes or from {bytes, path} with one of the two."""
        if isinstance(image, Mapping):
            if isinstance(image.get("bytes"), bytes):
                image = image["bytes"]
            elif isinstance(image.get("path"), str):
                try:
                    image = self._path(image["path"], inputs).read_bytes()
                except OSError as error:
                    raise UsageError(f"cannot be read: {error.strerror}") from None
                except ValueError as error:  # a NUL in the name
                    raise UsageError(f"cannot be read: {error}") from None
        if not isinstance(image, bytes):
            raise UsageError(f"no picture: expected bytes, or {{bytes, path}}; found {type(image).__name__}")
        return image

    def _path(self, name: str, inputs: Path) -> Path:
        """Return the path of a picture that the data name; it must not leave the audit's inputs."""
        if leads_out(name):
            raise UsageError(f"its path {name} is not relative to the audit's inputs, or leads out of them")
        return inputs / name


def leads_out(name: str) -> bool:
    """Whether a path is not relative to a folder, or leads out of it."""
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts


def _plain(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert the further columns to text; columns with lists and the like are left out, as not all can be stored."""
    further = dict.fromkeys(name for row in table for name in row if name not in OWN)
    kept = [name for name in further if all(isinstance(row.get(name), _SCALAR) for row in table)]
    return [
        {name: row[name] for name in OWN} | {name: "" if pd.isna(row.get(name)) else str(row[name]) for name in kept}
        for row in table
    ]


class _PicturesInLines(PictureSource):
    """Base of sources with one JSON object a line, which names a picture file."""

    @abstractmethod
    def _lines(self, inputs: Path) -> tuple[Path, str, str, str]:
        """Return the JSON lines, the folder of the pictures under inputs, the field that names them, and the block."""

    def rows(self, inputs: Path) -> Iterator[Row]:
        """See PictureSource.

        Raises a UsageError when a line is not JSON, or names no file of the folder. Links in it are the user's own.
        """
        path, folder, key, where = self._lines(inputs)
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
            yield name, row | {self.image: {"bytes": None, "path": str(PurePosixPath(folder) / name)}}


class ImageFolder(_PicturesInLines):
    """{imagefolder: FOLDER}: picture files with a metadata.jsonl, as in `datasets`, under the audit's inputs.

    Each line is a JSON object with file_name, the caption, and any other columns.
    """

    imagefolder: str

    def origin(self, inputs: Path) -> str:
        return f"the folder {self.imagefolder}"

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._lines(inputs))

    def _lines(self, inputs: Path) -> tuple[Path, str, str, str]:
        where = "prepare.data.imagefolder"
        folder = local_file(inputs, self.imagefolder, where)
        if not (folder / "metadata.jsonl").is_file():
            raise UsageError(
                f"{where}: {folder} has no metadata.jsonl, one JSON object a line with the keys"
                f" file_name and {self.text}"
            )
        return folder / "metadata.jsonl", self.imagefolder, "file_name", where


class JsonLinesPictures(_PicturesInLines):
    """{jsonl: FILE, image: FIELD, text: FIELD}: one JSON object per line, under the audit's inputs.

    `image` names the field with the path of a picture file, relative to the folder of the JSON lines.
    """

    jsonl: str

    def origin(self, inputs: Path) -> str:
        return f"the file {self.jsonl}"

    def errors(self, inputs: Path) -> list[str]:
        named = {"image": self.image, "text": self.text, **{f"where.{name}": name for name in self.where}}
        return collect(lambda: check_lines_file(inputs, self.jsonl, named, "prepare.data"))

    def _lines(self, inputs: Path) -> tuple[Path, str, str, str]:
        folder = str(PurePosixPath(self.jsonl).parent)
        return lines_file(inputs, self.jsonl, "prepare.data"), folder, self.image, "prepare.data.jsonl"


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
        return pq.ParquetFile(path, metadata=parquet_metadata(path, "prepare.data.parquet"))

    def rows(self, inputs: Path) -> Iterator[Row]:
        self.require(inputs)
        table, stem, number = self._open(inputs), Path(self.parquet).stem, 0
        try:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    yield f"{stem}-{number}", row
                    number += 1
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UsageError(
                f"prepare.data.parquet: {inputs / self.parquet} is damaged after row {number}: {error}"
            ) from None


class HubPictures(HubDataSource, PictureSource):
    """{datasets: ID_OR_FOLDER, split: SPLIT}: anything the `datasets` library reads, from the inputs or from the hub.

    `split` takes the library's slices ("train[:2000]"). No code is run.
    """

    extra = "text-to-image"

    split: str = "train"

    def rows(self, inputs: Path) -> Iterator[Row]:
        self.require(inputs)
        found = self.read_split(inputs, self.split)
        import datasets

        if isinstance(found.features.get(self.image), datasets.Image):
            found = found.cast_column(self.image, datasets.Image(decode=False))
        stem = self.split.split("[")[0]
        for number, row in enumerate(found):
            # A column `split` would name the library's splits, which are not an audit's.
            yield f"{stem}-{number}", {name: value for name, value in row.items() if name != "split"}

    def _path(self, name: str, inputs: Path) -> Path:
        """See PictureSource: the library names files by their place in the folder read or in its cache."""
        return row_file(self.folder(inputs), name)


PICTURE_LOADERS: Mapping[str, type[PictureSource]] = {
    "imagefolder": ImageFolder,
    "jsonl": JsonLinesPictures,
    "parquet": ParquetPictures,
    "datasets": HubPictures,
}
