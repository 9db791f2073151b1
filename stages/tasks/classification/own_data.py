"""The user's own pictures: folders, lists, and data sets of the `datasets` library."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Self, cast

import numpy as np
from pydantic import Field, model_validator

from stages.core.errors import UsageError, did_you_mean
from stages.core.files import local_file
from stages.tasks.attributes import details
from stages.tasks.classification.config import Label, class_name
from stages.tasks.classification.pictures import NAMED, SUFFIXES, DataSource, Encoded, Pool, Sources, tolerate
from stages.tasks.contract import SPLITS
from stages.tasks.hub import NAME
from stages.tasks.rows import HubDataSource, check_columns, count_lines, json_rows, row_file
from stages.tasks.sources import collect

_READ = ("image", "label", "id", "split", "group")  # fields of a line that are not attributes
# Common names of splits, and the audit's splits they become: failures are searched on pictures the model has not
# learnt from, and a repair learns from those it has.
FOREIGN = {"train": "repair", "val": "discover", "valid": "discover", "validation": "discover", "test": "test"}
OWN = (*SPLITS, "train")


class OwnPictures(DataSource):
    """Base of all sources of the user's own pictures: how labels are read and how pictures are shown to the model."""

    labels: dict[Label, Label] = Field({}, description="{their label: the model's class}, where these differ")
    resize: int | None = Field(
        None, ge=8, le=16_384, description="the shorter side becomes this; default: as the model has it"
    )
    size: int | None = Field(
        None, ge=8, le=16_384, description="side of the square cut out of the middle; default: the model's"
    )
    channels: int | None = Field(None, description="1: grey, 3: colour; default: what the model takes")

    @model_validator(mode="after")
    def _is_a_view(self) -> Self:
        if self.size and self.resize and self.size > self.resize:
            raise ValueError(f"size is {self.size}, larger than resize, {self.resize}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels is {self.channels}, expected 1 or 3")
        return self

    def _pool(
        self,
        sources: Sources,
        labels: Sequence[str] | Sequence[int],
        ids: list[str],
        *,
        groups: list[str] | None = None,
        splits: list[str] | None = None,
        classes: list[str] | None = None,
        unordered: str = "the data give no order",
        skipped: list[dict[str, str]] | None = None,
        about: Sequence[Mapping[str, Any]] = (),
    ) -> Pool:
        if twice := sorted(name for name, n in Counter(ids).items() if n > 1):
            raise UsageError(f"prepare.data: ids must be unique, found {', '.join(twice[:NAMED])} more than once")
        named = self._translated(labels)
        if self.labels:  # the order in the data is that of names unknown to the model
            classes, unordered = None, "prepare.data.labels renames those of the data"
        return Pool(
            pictures=Encoded(sources, self.resize, self.size, self.channels),
            labels=np.array(named),
            ids=ids,
            groups=groups or ids,
            splits=splits,
            classes=classes,
            unordered=unordered,
            skipped=skipped or [],
            max_corrupt=self.max_corrupt,
            details=about,
        )

    def _translated(self, labels: Sequence[str] | Sequence[int]) -> Sequence[str] | Sequence[int]:
        if not self.labels:
            return labels
        found = {str(label) for label in labels}
        if unknown := sorted(set(self.labels) - found):
            named = "; ".join(f"{name!r}{did_you_mean(name, found)}" for name in unknown[:NAMED])
            raise UsageError(f"prepare.data.labels: the data have no label {named}; they have {_some(sorted(found))}")
        return [self.labels.get(str(label), str(label)) for label in labels]


class ImageFolder(OwnPictures):
    """{imagefolder: FOLDER}: a folder per class, as torchvision and timm read them, or such a folder per split.

    Splits are `discover`, `repair`, `test` (and `train`, for a model that is trained here), or the common `train`,
    `val` and `test`, which become `repair`, `discover` and `test`.
    """

    imagefolder: str

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._folders(inputs))

    def available(self, inputs: Path, enough: int) -> Mapping[str, int]:
        counts = {
            split: sum(1 for _ in islice((path for kind in _subfolders(folder) for path in _walk(kind)), enough))
            for split, folder in self._folders(inputs).items()
        }
        return counts if "" in counts else {**dict.fromkeys(SPLITS, 0), **counts}

    def origin(self, inputs: Path) -> str:
        return f"the folder {self.imagefolder}"

    def _folders(self, inputs: Path) -> dict[str, Path]:
        """Return {split, or "": folder of classes}."""
        where = "prepare.data.imagefolder"
        root = local_file(inputs, self.imagefolder, where)
        if not root.is_dir():
            raise UsageError(f"{where}: {root} is a file, expected a folder that holds a folder of each class")
        folders = _subfolders(root)
        if not folders:
            raise UsageError(f"{where}: {root} holds no folders, expected one of each class")
        splits = ready_splits([folder.name for folder in folders])
        # A class may be called train; then its folder contains pictures rather than folders.
        if splits is None or not all(_subfolders(folder) for folder in folders):
            return {"": root}
        check_apart(splits, f"{where}: {root} has the folders")
        return {splits[folder.name]: folder for folder in folders}

    def load(self, inputs: Path) -> Pool:
        root = local_file(inputs, self.imagefolder, "prepare.data.imagefolder")
        folders = self._folders(inputs)
        paths: list[Path] = []
        labels: list[str] = []
        splits: list[str] = []
        for split, folder in folders.items():
            for kind in _subfolders(folder):
                found = sorted(_walk(kind))
                paths += found
                labels += [kind.name] * len(found)
                splits += [split] * len(found)
        if not paths:
            kinds = " ".join(sorted(SUFFIXES))
            raise UsageError(f"prepare.data.imagefolder: no picture below {root}; looked for {kinds}")
        ids = [path.relative_to(root).as_posix() for path in paths]
        classes, unordered = folder_order(set(labels))
        ready = None if "" in folders else splits
        return self._pool(paths, labels, ids, splits=ready, classes=classes, unordered=unordered)


class JsonLines(OwnPictures):
    """{jsonl: FILE}: one line {"image": PATH, "label": NAME} per picture, with the path relative to the file.

    A line may also have `id`, `split` (in all lines or none) and `group`: pictures of a group stay in one split.
    Further fields with numbers or short texts become attributes, by which the report lists failure rates.
    """

    jsonl: str

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: local_file(inputs, self.jsonl, "prepare.data.jsonl"))

    def available(self, inputs: Path, enough: int) -> Mapping[str, int]:
        """See DataSource; not counted by split, which would require parsing all lines."""
        return {"": count_lines(local_file(inputs, self.jsonl, "prepare.data.jsonl"), enough)}

    def origin(self, inputs: Path) -> str:
        return self.jsonl

    def load(self, inputs: Path) -> Pool:
        path = local_file(inputs, self.jsonl, "prepare.data.jsonl")
        rows: list[dict[str, str]] = []
        more: list[dict[str, Any]] = []
        skipped: list[dict[str, str]] = []
        for number, found in json_rows(path):
            try:
                row, about = _row(found)
            except ValueError as error:
                skipped.append({"file": f"{path.name}, line {number}", "reason": str(error)})
            else:
                rows.append(row)
                more.append(about)
        tolerate(skipped, len(rows) + len(skipped), self.max_corrupt)
        if not rows:
            raise UsageError(f"prepare.data.jsonl: {path} holds no pictures")
        given = [row.get("split", "") for row in rows]
        splits = None
        if any(given):
            names = sorted(set(given))
            known = ready_splits(names)
            if known is None:
                raise UsageError(
                    f"prepare.data.jsonl: {path} has the splits {', '.join(map(repr, names))}; expected some of"
                    f" {', '.join(OWN)} or of {', '.join(FOREIGN)}, in all lines or none"
                )
            check_apart(known, f"prepare.data.jsonl: {path} has the splits")
            splits = [known[split] for split in given]
        return self._pool(
            [path.parent / row["image"] for row in rows],
            [row["label"] for row in rows],
            [row.get("id", row["image"]) for row in rows],
            groups=[row.get("group", row.get("id", row["image"])) for row in rows],
            splits=splits,
            skipped=skipped,
            about=more,
        )


class HubDataset(HubDataSource, OwnPictures):
    """{datasets: ID_OR_FOLDER, split: NAME}: a data set of the `datasets` library, under inputs or on the hub.

    A folder under inputs takes precedence; otherwise it is an ID on the hub, looked up in the cache. No code of it is
    run.
    """

    extra = "image"

    datasets: str = Field(pattern=NAME)
    split: str | dict[str, str] = Field(description="their split; or theirs for each of ours: {discover: validation}")
    image: str = "image"
    label: str = "label"

    @model_validator(mode="after")
    def _splits_are_ours(self) -> Self:
        for ours in self.split if isinstance(self.split, dict) else ():
            if ours not in OWN:
                raise ValueError(
                    f"split: {ours!r} is not one of an audit's splits{did_you_mean(ours, OWN)}: {', '.join(OWN)}"
                )
        return self

    def errors(self, inputs: Path) -> list[str]:
        code = sorted(path.name for path in (inputs / self.datasets).glob("*.py"))
        if code:
            return [f"prepare.data.datasets: {self.datasets} contains its own code, {code[0]}, which is not run"]
        return super().errors(inputs)

    def load(self, inputs: Path) -> Pool:
        self.require(inputs)
        named = self.split if isinstance(self.split, dict) else {"": self.split}
        parts = {ours: self._read(inputs, theirs) for ours, theirs in named.items()}
        names = [getattr(part.features[self.label], "names", None) for part in parts.values()]
        if any(one != names[0] for one in names):
            raise UsageError(f"prepare.data.label: the classes of {', '.join(named.values())} differ")
        labels: list[Any] = []
        about: list[dict[str, Any]] = []
        ids: list[str] = []
        splits: list[str] = []
        for (ours, part), theirs in zip(parts.items(), named.values(), strict=True):
            column = part.select_columns([self.label])[:][self.label]
            labels += column
            about += _details(part, (self.image, self.label))
            ids += _rows(part, theirs)
            splits += [ours] * len(column)
        if shared := [name for name, n in Counter(ids).items() if n > 1]:
            raise UsageError(
                f"prepare.data.split: {' and '.join(map(repr, named.values()))} share {len(shared)} rows"
                f" ({_some(shared)}); a picture belongs to one split"
            )
        if None in labels or not labels:
            raise UsageError(f"prepare.data.label: {self.datasets} has {labels.count(None)} pictures without a label")
        if names[0] is not None:
            if min(labels) < 0:  # "unknown" in the datasets library, as in many test splits
                raise UsageError(f"prepare.data.label: the labels of {', '.join(named.values())} are not published")
            labels = [names[0][label] for label in labels]
        return self._pool(
            _Contents([part.select_columns([self.image]) for part in parts.values()], self.image, self.folder(inputs)),
            labels,
            ids,
            splits=None if "" in parts else splits,
            classes=names[0],
            about=about,
        )

    def _read(self, inputs: Path, split: str) -> Any:
        read = self.read_split(inputs, split)
        check_columns(read.column_names, {"image": self.image, "label": self.label}, "prepare.data", self.datasets)
        import datasets

        try:
            return read.cast_column(self.image, datasets.Image(decode=False))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UsageError(f"prepare.data.image: column {self.image!r} holds no pictures: {error}") from None


class _Contents:
    """Contents of picture files in tables of the `datasets` library, read on demand."""

    def __init__(self, parts: Sequence[Any], column: str, folder: Path) -> None:
        self.parts, self.column, self.folder = parts, column, folder

    def __getitem__(self, row: int, /) -> Path | bytes:
        for part in self.parts:
            if row < len(part):
                held = part[row][self.column] or {}
                if held.get("bytes") or not held.get("path"):
                    return cast("Path | bytes", held.get("bytes") or Path("no picture"))
                return row_file(self.folder, held["path"])
            row -= len(part)
        raise IndexError(row)


def ready_splits(names: Iterable[str]) -> Mapping[str, str] | None:
    """Return {name of a ready-made pool: the audit's split}; None if a name is not that of a pool."""
    named = set(names)
    if named <= set(OWN) and named & {"discover", "repair"}:
        return {name: name for name in named}
    return {name: FOREIGN[name] for name in named} if named <= set(FOREIGN) else None


def check_apart(splits: Mapping[str, str], found: str) -> None:
    """Raise a UsageError if two names refer to the same split of the audit."""
    for ours, n in Counter(splits.values()).items():
        if n > 1:
            theirs = sorted(name for name, one in splits.items() if one == ours)
            raise UsageError(f"{found} {' and '.join(theirs)}, which are all {ours} to an audit; expected one of them")


def folder_order(names: Iterable[str]) -> tuple[list[str] | None, str]:
    """Return classes in the order in which libraries number their folders; None and the reason if libraries disagree.

    torchvision sorts names as plain strings, timm by the numbers in them and ignoring case.
    """

    def numbered(name: str) -> list[int | str]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]

    plain = sorted(names)
    natural = sorted(plain, key=numbered)
    if plain == natural:
        return plain, ""
    at = next(i for i, name in enumerate(plain) if name != natural[i])
    return None, f"torchvision sorts their folders otherwise than timm: class {at} is {plain[at]} or {natural[at]}"


def _rows(part: Any, split: str) -> list[str]:
    """Name the rows of a data set by their position in the whole split, of which it may be a slice."""
    import datasets

    whole = {name: info.num_examples for name, info in part.info.splits.items()}
    slices = datasets.ReadInstruction.from_spec(split).to_absolute(whole)
    return [f"{one.splitname}-{row}" for one in slices for row in range(one.from_, one.to)]


def _details(part: Any, read: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the plain columns of a data set say about its pictures, besides `read`: one mapping per row."""
    kinds = {name: kind for name, kind in part.features.items() if name not in read and hasattr(kind, "dtype")}
    plain = [name for name, kind in kinds.items() if re.match("string|large_string|bool|u?int|float", str(kind.dtype))]
    if not plain:
        return [{}] * len(part)
    columns = part.select_columns(plain)[:]
    for name, values in columns.items():
        if (named := getattr(kinds[name], "names", None)) is not None:
            columns[name] = [None if value is None or value < 0 else named[value] for value in values]
    return [details(dict(zip(columns, row, strict=True)), read) for row in zip(*columns.values(), strict=True)]


def _row(row: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the fields of a list's row that are read, and the attributes of the picture.

    Raises a ValueError if it is not a picture with its label.
    """
    if isinstance(row, ValueError):
        raise ValueError("no JSON")
    if not isinstance(row, dict):
        raise ValueError(f"{type(row).__name__}, expected an object with image and label")
    fields = _some(sorted(row))
    more = details(row, set(_READ) - {"group"})  # a few large groups are also an attribute
    row = {key: class_name(row[key]) for key in _READ if row.get(key) is not None}
    for key in ("image", "label"):
        if key not in row:
            raise ValueError(f"it has no {key}; its fields: {fields}")
    if odd := [key for key, value in row.items() if not isinstance(value, str)]:
        raise ValueError(f"{odd[0]} is not text")
    path = PurePosixPath(row["image"])
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{row['image']} leads out of the folder of the list; expected a path relative to it")
    return cast(dict[str, str], row), more


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]
        return [Path(entry) for entry in sorted(shown, key=lambda entry: entry.name)]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all pictures below a folder, following links."""
    for here, _, names in os.walk(folder, followlinks=True):
        yield from (Path(here, name) for name in names if Path(name).suffix.lower() in SUFFIXES and name[0] != ".")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f", ... ({len(names)} in all)" if len(names) > NAMED else "")
