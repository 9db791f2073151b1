"""Data loaders, each of which makes a `Pool` from one kind of source. To add one, add its key to DATA_LOADERS."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from stages.core.errors import UsageError
from stages.core.files import local_file, parquet_metadata
from stages.tasks.attributes import details
from stages.tasks.classification.own_data import HubDataset, ImageFolder, JsonLines
from stages.tasks.classification.pictures import DataSource, Decoded, Pool, tolerate
from stages.tasks.contract import SPLITS
from stages.tasks.sources import collect, package_folder

_READ = ["id", "split", "label", "image"]


class ParquetImages(DataSource):
    """{parquet: FILE}: one table of raw images with ready-made pools, as data/mnist/build.py writes it.

    Its columns are id, split, label and image (uint8 pixels, row by row); shape and class names are in the schema's
    metadata. Further columns with numbers or short texts become attributes of the pictures.
    """

    parquet: str

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: local_file(inputs, self.parquet, "prepare.data.parquet"))

    def origin(self, inputs: Path) -> str:
        return self.parquet

    def available(self, inputs: Path, enough: int) -> Mapping[str, int]:
        path, _, _ = self._form(inputs)
        splits = Counter(pq.read_table(path, columns=["split"])["split"].to_pylist())
        return {split: splits[split] for split in SPLITS}

    def _form(self, inputs: Path) -> tuple[Path, list[int], list[str]]:
        """Check the schema; return the file, the shape of the images and the classes."""
        path = local_file(inputs, self.parquet, "prepare.data.parquet")
        file = parquet_metadata(path, "prepare.data.parquet")
        columns = file.schema.to_arrow_schema().names
        try:
            meta = json.loads((file.metadata or {}).get(b"images", b"{}"))
        except ValueError as error:
            raise UsageError(f"prepare.data.parquet: {path} has metadata `images` that is not JSON: {error}") from None
        if not set(_READ) <= set(columns) or set(meta) != {"shape", "classes"}:
            raise UsageError(
                f"prepare.data.parquet: {path} needs the columns id, split, label, image and shape and classes in its "
                f"metadata (see data/mnist/build.py); found columns {columns}, metadata {sorted(meta)}"
            )
        if file.num_rows == 0:
            raise UsageError(f"prepare.data.parquet: {path} holds no images")
        return path, meta["shape"], meta["classes"]

    def load(self, inputs: Path) -> Pool:
        path, shape, classes = self._form(inputs)
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"prepare.data.parquet: {path} is not a readable parquet file: {error}") from None
        return self._pool(path, table, shape, classes)

    def _pool(self, path: Path, table: pa.Table, shape: list[int], classes: list[str]) -> Pool:
        frame = table.to_pandas()
        unknown = sorted(set(frame["label"]) - set(classes))
        if unknown:
            raise UsageError(
                f"prepare.data.parquet: {path} has labels {unknown[:5]} outside its {len(classes)} classes"
            )
        size = int(np.prod(shape))
        whole = np.array([isinstance(i, bytes) and len(i) == size for i in frame["image"]])
        bad = frame[~whole]
        skipped = [
            {"file": f"{path.name}: {i}", "reason": f"{len(b or b'')} bytes, expected {size}"}
            for i, b in zip(bad["id"], bad["image"], strict=True)
        ]
        tolerate(skipped, len(frame), self.max_corrupt)
        frame = frame[whole]
        return Pool(
            pictures=Decoded(np.frombuffer(b"".join(frame["image"]), np.uint8).reshape(-1, *shape)),
            labels=frame["label"].map({name: i for i, name in enumerate(classes)}).to_numpy(np.int64),
            ids=frame["id"].astype(str).tolist(),
            groups=frame["id"].tolist(),
            splits=frame["split"].tolist(),
            classes=classes,
            skipped=skipped,
            in_order=True,
            details=[details(row, ()) for row in frame.drop(columns=_READ).to_dict("records")],
        )


class PackageImages(DataSource):
    """{package: NAME, files: GLOB}: image files inside an installed package, with the class index in the file name.

    Files that match `files` are used, except those that match `leave_out`. The shorter side is resized to `resize`,
    then `crops` squares of `size` are cut out: the centre, then the corners.
    """

    package: str = Field(pattern=r"^\w+$")
    files: str
    leave_out: str | None = None
    label: str = Field(r"_(\d+)\.\w+$", description="regular expression whose first group is the class index")
    crops: int = Field(1, ge=1, le=5)
    resize: int = Field(256, ge=8, le=16_384)
    size: int = Field(224, ge=8, le=16_384)

    @field_validator("label")
    @classmethod
    def _one_group(cls, label: str) -> str:
        try:
            groups = re.compile(label).groups
        except re.error as error:
            raise ValueError(f"{label!r} is not a valid regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"expected one group in {label!r}, found {groups}")
        return label

    def errors(self, inputs: Path) -> list[str]:
        lines = collect(lambda: self._paths(inputs))
        if self.size > self.resize:
            lines.append(f"prepare.data.size: {self.size} is larger than resize, {self.resize}")
        return lines

    def available(self, inputs: Path, enough: int) -> Mapping[str, int]:
        return {"": len(self._paths(inputs)) * self.crops}

    def origin(self, inputs: Path) -> str:
        return f"{self.files} of the package {self.package}"

    def _paths(self, inputs: Path) -> list[Path]:
        folder = package_folder(inputs, self.package, "prepare.data.package")

        def matching(key: str, pattern: str) -> set[Path]:
            found = {p for p in folder.glob(pattern) if p.is_file()}
            if not found:
                raise UsageError(f"prepare.data.{key}: {pattern} matches no file in the package {self.package}")
            return found

        left_out = matching("leave_out", self.leave_out) if self.leave_out else set()
        paths = sorted(matching("files", self.files) - left_out)
        for path in paths:
            if not re.search(self.label, path.name):
                raise UsageError(f"prepare.data.label: no class index in {path.name} by {self.label!r}")
        return paths

    def load(self, inputs: Path) -> Pool:
        from PIL import Image, UnidentifiedImageError

        images, targets, ids, groups = [], [], [], []
        skipped: list[dict[str, str]] = []
        paths = self._paths(inputs)
        for path in paths:
            try:
                with Image.open(path) as opened:
                    photo = opened.convert("RGB")
            except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
                # The message contains a path of this machine, which must not get into the outputs.
                skipped.append({"file": path.name, "reason": str(error).replace(str(path), path.name)})
                continue
            match = re.search(self.label, path.name)
            assert match is not None  # checked by _paths
            for crop, square in enumerate(self._squares(photo)):
                images.append(square)
                targets.append(int(match[1]))
                ids.append(f"{path.stem}-{crop}")
                groups.append(path.stem)
        tolerate(skipped, len(paths), self.max_corrupt)
        if not images:
            raise UsageError(f"prepare.data: none of the {len(paths)} images can be read")
        return Pool(Decoded(np.stack(images)), np.array(targets), ids, groups, skipped=skipped)

    def _squares(self, photo: Any) -> Iterator[np.ndarray]:
        from PIL import Image

        scale = self.resize / min(photo.size)
        width, height = (max(self.resize, round(side * scale)) for side in photo.size)
        pixels = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC))
        right, bottom = width - self.size, height - self.size
        places = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
        for top, left in places[: self.crops]:
            yield pixels[top : top + self.size, left : left + self.size].transpose(2, 0, 1)


DATA_LOADERS: Mapping[str, type[DataSource]] = {
    "parquet": ParquetImages,
    "package": PackageImages,
    "imagefolder": ImageFolder,
    "jsonl": JsonLines,
    "datasets": HubDataset,
}
