"""Real captioned pictures: where they come from, and pictures as PNG bytes. To add a source, add it to PICTURE_LOADERS.

All sources lead to one table with what was left out and why.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from pydantic import Field

from stages.errors import UsageError
from stages.params import Strict
from stages.tasks.sources import local_file

NAMED = 5  # exclusions an error names
OWN = ("id", "text", "image", "split")  # columns of the table; others are the source's own
Row = tuple[str, dict[str, Any]]
_SCALAR = (str, int, float, bool, type(None))
# What Pillow raises of files that are damaged, or were made to be.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError),
    *(Image.DecompressionBombError, struct.error, zlib.error),
)


def to_png(pixels: np.ndarray) -> bytes:
    """A picture (h, w, 3) uint8 as PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def from_png(image: bytes, size: int | None = None) -> np.ndarray:
    """A picture (h, w, 3) uint8, of `size` x `size` pixels if asked: the middle square, averaged where it shrinks.

    Reads any format that Pillow does, turned upright as its EXIF data says; what is transparent lies on white.

    Raises:
        UsageError: when it is no picture.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            picture = picture.convert("RGB")
    except _DAMAGED as error:
        # Addresses in memory differ from run to run, and the reason is stored.
        reason = re.sub(r"\s*<[^<>]*0x[0-9a-f]+>", "", str(error))
        raise UsageError(f"no picture that can be read: {reason}") from None
    if size is not None and picture.size != (size, size):
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(picture)


def strip(pixels: Sequence[np.ndarray], gap: int = 2) -> bytes:
    """Pictures of one height side by side, `gap` pixels of white between them, as one PNG."""
    white = np.full((pixels[0].shape[0], gap, 3), 255, dtype=np.uint8)
    parts = [part for picture in pixels for part in (picture, white)]
    return to_png(np.concatenate(parts[:-1], axis=1))


class PictureSource(Strict):
    """Base of the picture loaders: which columns hold what, and which rows count."""

    text: str = Field("text", description="the column of captions")
    image: str = Field("image", description="the column of pictures")
    where: dict[str, str | int | float | bool] = Field({}, description="column: value; other rows are not read")
    size: int | None = Field(None, ge=8, description="pixels; the middle square of each picture, resized to it")
    max_excluded: float = Field(
        0.05, ge=0, le=1, description="share of unusable pictures to leave out; more is an error"
    )

    @abstractmethod
    def errors(self, inputs: Path) -> list[str]:
        """Say what is missing, without reading pictures."""

    @abstractmethod
    def rows(self, inputs: Path) -> Iterator[Row]:
        """Yield all rows there are, each with its place; what stands for a picture is as `_bytes` takes it."""

    def load(self, inputs: Path) -> tuple[pd.DataFrame, list[dict[str, str]]]:
        """Read all pictures.

        Returns:
            A table with the columns id, text, image (PNG bytes), split ("" where the source names none) and those of
            the source's own that hold plain values, as text ("" where missing); what was left out as {file, reason}.

        Raises:
            UsageError: when there are none, or more were left out than `max_excluded` allows.
        """
        table: list[dict[str, Any]] = []
        skipped: list[dict[str, str]] = []
        for place, row in self.rows(inputs):
            if missing := [column for column in (self.text, *self.where) if column not in row]:
                raise UsageError(
                    f"prepare.pictures: {place} has no column {', '.join(missing)}; found {', '.join(map(str, row))}"
                )
            if any(str(row[column]) != str(value) for column, value in self.where.items()):
                continue
            try:
                table.append(self._entry(place, row, inputs))
            except UsageError as error:
                skipped.append({"file": place, "reason": str(error)})
        total = len(table) + len(skipped)
        if total == 0:
            raise UsageError(f"prepare.pictures: no picture found{f' where {self.where}' if self.where else ''}")
        if not table or len(skipped) > self.max_excluded * total:
            named = "; ".join(f"{s['file']} ({s['reason']})" for s in skipped[:NAMED])
            more = f"; and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
            raise UsageError(
                f"prepare.pictures: {len(skipped)} of {total} pictures cannot be used,"
                f" max_excluded allows {self.max_excluded:.0%}: {named}{more}"
            )
        frame = pd.DataFrame(_plain(table))
        if frame["id"].duplicated().any():
            twice = frame.loc[frame["id"].duplicated(), "id"].iloc[0]
            raise UsageError(f"prepare.pictures: ids must be unique, found {twice!r} more than once")
        return frame, skipped

    def _entry(self, place: str, row: Mapping[str, Any], inputs: Path) -> dict[str, Any]:
        """One row of the table, or a UsageError that says why it cannot be used."""
        text = row[self.text]
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"no caption: {text!r}")
        pixels = from_png(self._bytes(row.get(self.image), inputs), self.size)
        more = {name: value for name, value in row.items() if name not in (*OWN, self.text, self.image)}
        entry = {"id": str(row.get("id") or place), "text": " ".join(text.split()), "image": to_png(pixels)}
        return {**entry, "split": str(row.get("split") or ""), **more}

    def _bytes(self, image: Any, inputs: Path) -> bytes:
        """The file's bytes, of bytes or of {bytes, path} with one of the two."""
        if isinstance(image, Mapping):
            if isinstance(image.get("bytes"), bytes):
                image = image["bytes"]
            elif isinstance(image.get("path"), str):
                try:
                    image = self._path(image["path"], inputs).read_bytes()
                except OSError as error:
                    raise UsageError(f"cannot be read: {error.strerror}") from None
                except ValueError as error:  # a NUL in its name
                    raise UsageError(f"cannot be read: {error}") from None
        if not isinstance(image, bytes):
            raise UsageError(f"no picture: expected bytes, or {{bytes, path}}; found {type(image).__name__}")
        return image

    def _path(self, name: str, inputs: Path) -> Path:
        """Where a picture lies that the data name: data of others must not choose files beyond the audit's inputs."""
        if _leads_out(name):
            raise UsageError(f"its path {name} is not relative to the audit's inputs, or leads out of them")
        return inputs / name


class ImageFolder(PictureSource):
    """{imagefolder: FOLDER}: picture files with a metadata.jsonl, as `datasets` has them, under the audit's inputs.

    Each line is a JSON object with file_name, the caption, and more columns if wanted.
    """

    imagefolder: str

    def errors(self, inputs: Path) -> list[str]:
        """See PictureSource."""
        try:
            self._metadata(inputs)
        except UsageError as error:
            return [str(error)]
        return []

    def _metadata(self, inputs: Path) -> Path:
        folder = local_file(inputs, self.imagefolder, "prepare.pictures.imagefolder")
        if not (folder / "metadata.jsonl").is_file():
            raise UsageError(
                f"prepare.pictures.imagefolder: {folder} has no metadata.jsonl, one JSON object a line with the keys"
                f" file_name and {self.text}"
            )
        return folder / "metadata.jsonl"

    def rows(self, inputs: Path) -> Iterator[Row]:
        """See PictureSource."""
        path = self._metadata(inputs)
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(f"prepare.pictures.imagefolder: {path} is not UTF-8: {error}") from None
        # Strings in JSON may hold other ends of lines (U+2028, U+0085), at which str.splitlines would cut.
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                json.dumps(row, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
            except (ValueError, RecursionError) as error:
                raise UsageError(f"prepare.pictures.imagefolder: {path}, line {number} is not JSON: {error}") from None
            name = row.get("file_name") if isinstance(row, dict) else None
            if not isinstance(name, str):
                raise UsageError(f"prepare.pictures.imagefolder: {path}, line {number} names no file_name: {line[:80]}")
            yield name, row | {self.image: {"bytes": None, "path": local_picture(self.imagefolder, name)}}


class ParquetPictures(PictureSource):
    """{parquet: FILE}: one table with a column of pictures, PNG bytes or {bytes, path} as `datasets` writes them."""

    parquet: str

    def errors(self, inputs: Path) -> list[str]:
        """See PictureSource."""
        try:
            names = self._open(inputs).schema_arrow.names
            if missing := [name for name in (self.image, self.text, *self.where) if name not in names]:
                raise UsageError(
                    f"prepare.pictures.parquet: {self.parquet} has no column {', '.join(missing)};"
                    f" found {', '.join(names)}"
                )
        except UsageError as error:
            return [str(error)]
        return []

    def _open(self, inputs: Path) -> pq.ParquetFile:
        path = local_file(inputs, self.parquet, "prepare.pictures.parquet")
        try:
            return pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"prepare.pictures.parquet: {path} is no readable parquet file: {error}") from None

    def rows(self, inputs: Path) -> Iterator[Row]:
        """See PictureSource."""
        if errors := self.errors(inputs):
            raise UsageError("\n".join(errors))
        stem, number = Path(self.parquet).stem, 0
        batches = self._open(inputs).iter_batches()
        while True:
            try:
                rows = next(batches).to_pylist()
            except StopIteration:
                return
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UsageError(
                    f"prepare.pictures.parquet: {inputs / self.parquet} is damaged after row {number}: {error}"
                ) from None
            for row in rows:
                yield f"{stem}-{number}", row
                number += 1


class HubPictures(PictureSource):
    """{dataset: ID_OR_FOLDER, split: SPLIT}: what the `datasets` library reads, of the inputs or the Hugging Face hub.

    `split` takes the library's slices ("train[:2000]"). No code is run.
    """

    dataset: str
    split: str = "train"
    name: str | None = Field(None, description="the configuration, where a data set has several")
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")

    def errors(self, inputs: Path) -> list[str]:
        """See PictureSource."""
        path = inputs / self.dataset
        if path.is_file():
            return [f"prepare.pictures.dataset: {path} is a file, expected a folder of such files, or an ID of the hub"]
        if path.exists() and self.revision is not None:
            return [f"prepare.pictures.revision: {self.dataset} is a folder, only data sets of the hub have one"]
        if path.exists() or self.dataset.count("/") > 1 or self.dataset.startswith("."):
            try:
                local_file(inputs, self.dataset, "prepare.pictures.dataset")
            except UsageError as error:
                return [str(error)]
        return []

    def rows(self, inputs: Path) -> Iterator[Row]:
        """See PictureSource."""
        if errors := self.errors(inputs):
            raise UsageError("\n".join(errors))
        try:
            import datasets
        except ImportError:
            raise UsageError(
                "prepare.pictures.dataset: needs the library datasets: pip install 'faded[text-to-image]'"
            ) from None
        datasets.disable_progress_bars()
        local = (inputs / self.dataset).is_dir()
        source = str(inputs / self.dataset) if local else self.dataset
        try:
            found = datasets.load_dataset(source, self.name, split=self.split, revision=self.revision)
            if isinstance(found.features.get(self.image), datasets.Image):
                found = found.cast_column(self.image, datasets.Image(decode=False))
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            offline = "" if local else "; where it is not in the cache, HF_HUB_OFFLINE=0 lets prepare fetch it"
            raise UsageError(
                f"prepare.pictures.dataset: {self.dataset}, split {self.split}, cannot be read: {error}{offline}"
            ) from None
        stem = self.split.split("[")[0]
        for number, row in enumerate(cast(Iterable[dict[str, Any]], found)):
            # A column `split` would speak of the library's splits, which are not an audit's.
            yield f"{stem}-{number}", {name: value for name, value in row.items() if name != "split"}

    def _path(self, name: str, inputs: Path) -> Path:
        """See PictureSource: here the library names files by where they lie, in the folder read or in its cache."""
        import datasets
        from huggingface_hub import constants

        local, cached = inputs / self.dataset, f"datasets--{self.dataset.replace('/', '--')}"
        own = (datasets.config.HF_DATASETS_CACHE, Path(constants.HF_HUB_CACHE) / cached)
        roots = [Path(root).absolute() for root in own] + (
            [local.absolute(), local.resolve()] if local.is_dir() else []
        )
        if ".." in PurePosixPath(name).parts or not any(Path(name).is_relative_to(root) for root in roots):
            raise UsageError(f"its path {name} lies outside the data set's folder and the library's cache")
        return Path(name)


PICTURE_LOADERS: Mapping[str, type[PictureSource]] = {
    "imagefolder": ImageFolder,
    "parquet": ParquetPictures,
    "dataset": HubPictures,
}


def local_picture(folder: str, name: str) -> str:
    """Path of a picture within a folder; a name that leads out of it is an error. Links in it are the user's own."""
    if _leads_out(name):
        raise UsageError(f"prepare.pictures.imagefolder: file_name {name} leads out of {folder}")
    return str(PurePosixPath(folder) / name)


def _leads_out(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts


def _plain(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, their further columns as text; columns with lists and the like are left out: not all can be stored."""
    further = dict.fromkeys(name for row in table for name in row if name not in OWN)
    kept = [name for name in further if all(isinstance(row.get(name), _SCALAR) for row in table)]
    own = [{name: row[name] for name in OWN} for row in table]
    return [row | {name: _said(given.get(name)) for name in kept} for row, given in zip(own, table, strict=True)]


def _said(value: Any) -> str:
    return "" if pd.isna(value) else str(value)
