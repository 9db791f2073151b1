"""Pictures of a source, the choice of those an audit uses, and their decoding, upright and in the model's channels.

A pool only lists pictures: of a folder of 100,000 only the chosen few are decoded, plus replacements for damaged ones.
"""

import io
import math
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pandas as pd
from pydantic import Field

from stages.core.errors import UsageError, did_you_mean, first_problems
from stages.params import Strict
from stages.tasks.attributes import detail_columns
from stages.tasks.contract import SPLITS
from stages.tasks.sources import ItemCounts, Source

Shape = tuple[int, int, int]  # channels, height, width
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_MODES = {1: "L", 3: "RGB"}
_NUMBERS = ("I", "F")  # modes whose values have no known range


class UnreadablePicture(Exception):
    """A file without a usable picture; the message says why, without naming a folder."""


class View(Strict):
    """How a picture is resized before its centre is cropped.

    Args:
        resize: the shorter side, or (height, width) whatever the picture's proportions.
        interpolation: a filter of Pillow.
    """

    resize: int | Annotated[tuple[int, int], Field(strict=False)] = Field(
        description="the shorter side, or height and width"
    )
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bicubic"

    def at(self, own: Shape, shape: Shape) -> "View":
        """Adapt to inputs of another shape than `own`; the shorter side is then not cropped."""
        return self if own == shape else View(resize=max(shape[1:]), interpolation=self.interpolation)


def decode(source: Path | bytes, shape: Shape, view: View) -> np.ndarray:
    """Read one picture.

    Raises UnreadablePicture if it is damaged, not a picture, or too large to be one.

    Args:
        source: a file, or its content.
        shape: shape of the result: 1 channel is grey, 3 are red, green and blue.
        view: how it is resized before its centre is cropped.

    Returns:
        (channels, height, width) uint8.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = source.name if isinstance(source, Path) else "the picture"
    try:
        # Pillow warns about pictures of more than 89 million pixels and refuses those twice as large.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
                photo = _upright(ImageOps.exif_transpose(opened), _MODES[shape[0]])
    except UnidentifiedImageError:
        raise UnreadablePicture(f"{name} is not a readable image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadablePicture(f"{name} is too large: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        # The message may contain a path of this machine, which must not get into the outputs.
        raise UnreadablePicture(
            str(error).replace(str(source), name) if isinstance(source, Path) else str(error)
        ) from None
    return _cut(photo, shape, view, name)


def _upright(photo: Any, mode: str) -> Any:
    from PIL import Image

    if photo.mode.startswith("I;16"):  # Pillow would clip 16 bits instead of scaling them
        return Image.fromarray((np.asarray(photo) >> 8).astype(np.uint8)).convert(mode)
    if photo.mode in _NUMBERS:
        raise ValueError(f"its pixels are of mode {photo.mode}, expected 8 or 16 bits a channel")
    return photo.convert(mode)


def _cut(photo: Any, shape: Shape, view: View, name: str) -> np.ndarray:
    from PIL import Image

    channels, height, width = shape
    if isinstance(view.resize, int):
        scale = view.resize / min(photo.size)
        size = [max(view.resize, round(side * scale)) for side in photo.size]
    else:
        size = [view.resize[1], view.resize[0]]
    # The resized picture must not be smaller than the crop.
    grow = max(1.0, width / size[0], height / size[1])
    wide, high = (math.ceil(side * grow) for side in size)
    # A strip of a few bytes grows to billions of pixels if its shorter side is enlarged.
    if Image.MAX_IMAGE_PIXELS is not None and wide * high > Image.MAX_IMAGE_PIXELS:
        raise UnreadablePicture(
            f"{name} is too large: {photo.width} x {photo.height} pixels would become {wide} x {high}, more than"
            f" {Image.MAX_IMAGE_PIXELS} pixels"
        )
    photo = photo.resize((wide, high), Image.Resampling[view.interpolation.upper()])
    left, top = (wide - width) // 2, (high - height) // 2
    pixels = np.asarray(photo)[top : top + height, left : left + width]
    return np.ascontiguousarray(pixels.reshape(height, width, channels).transpose(2, 0, 1))


NAMED = 5  # number of files or labels that an error lists


class Sources(Protocol):
    """Picture files or their contents, by row."""

    def __getitem__(self, row: int, /) -> Path | bytes: ...


class Pictures(Protocol):
    """Pictures by their row in a pool."""

    def shape(self, own: Shape | None) -> Shape:
        """Return the shape that a model sees: that of the pictures or of the model, unless the data set another.

        Raises a UsageError if no shape is known.
        """

    def read(self, row: int, shape: Shape, view: View | None) -> np.ndarray:
        """Read one picture in that shape, (c, h, w) uint8. Raises UnreadablePicture if it cannot be read."""


@dataclass(frozen=True)
class Decoded:
    """Pictures in memory, all of one shape: (n, c, h, w) uint8."""

    images: np.ndarray

    def shape(self, own: Shape | None) -> Shape:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def read(self, row: int, shape: Shape, view: View | None) -> np.ndarray:
        pixels: np.ndarray = self.images[row]
        return pixels


@dataclass(frozen=True)
class Encoded:
    """Pictures in files, or the contents of files, decoded on demand.

    Args:
        sources: n paths, or contents.
        resize: the shorter side; None: as in the model's view.
        size: side of the centre square that is cropped; None: the model's input size.
        channels: 1 or 3; None: those of the model.
    """

    sources: Sources
    resize: int | None = None
    size: int | None = None
    channels: int | None = None

    def shape(self, own: Shape | None) -> Shape:
        if own is None and self.size is None:
            raise UsageError("prepare.data.size: missing; neither model nor data say how large the pictures are")
        channels, height, width = own or (3, 0, 0)
        if channels not in (1, 3):
            raise UsageError(f"prepare.model: it takes pictures of {channels} channels, expected 1 or 3")
        return self.channels or channels, self.size or height, self.size or width

    def read(self, row: int, shape: Shape, view: View | None) -> np.ndarray:
        view = view or View(resize=max(shape[1:]))
        return decode(
            self.sources[row], shape, view if self.resize is None else view.model_copy(update={"resize": self.resize})
        )


@dataclass(frozen=True)
class Pool:
    """All pictures that a data source offers.

    Args:
        pictures: n pictures.
        labels: (n,) names of classes, or indices of the model's classes.
        ids: n unique names.
        groups: n names of groups of related pictures (crops of one photo), which stay in one split and which intervals
            resample.
        splits: n names of ready-made pools ("train", "discover", ...), or None: the audit draws the splits.
        classes: names of the classes in the order of their indices, or None if the data define no order.
        unordered: why the data define no order, for people.
        skipped: corrupt files and why they were skipped.
        in_order: whether to take the first items of a ready-made pool rather than draw them.
        max_corrupt: share of unreadable pictures that may be skipped.
        details: n mappings with further attributes of the pictures, or an empty sequence.
    """

    pictures: Pictures
    labels: np.ndarray
    ids: list[str]
    groups: list[str]
    splits: list[str] | None = None
    classes: list[str] | None = None
    unordered: str = "the data give no order"
    skipped: list[dict[str, str]] = field(default_factory=list)
    in_order: bool = False
    max_corrupt: float = 0.0
    details: Sequence[Mapping[str, Any]] = ()

    def rows(self, split: str) -> np.ndarray:
        """Return the rows of a ready-made pool, in its order."""
        return np.flatnonzero(np.array(self.splits or []) == split)

    def targets(self, classes: Sequence[str]) -> np.ndarray:
        """Return the class indices of all pictures: (n,) int64.

        Raises a UsageError with the labels that are not among the classes.
        """
        if self.labels.dtype.kind in "iu":
            if self.labels.min() < 0 or self.labels.max() >= len(classes):
                raise UsageError(
                    f"prepare: the model has {len(classes)} classes, so labels are 0..{len(classes) - 1}; "
                    f"the data has labels {self.labels.min()}..{self.labels.max()}"
                )
            return self.labels.astype(np.int64)
        known = class_indices(classes)
        names, inverse = np.unique(self.labels, return_inverse=True)
        if unknown := [str(name) for name in names if name not in known]:
            raise UsageError(_unknown_labels(unknown, classes))
        return np.array([known[str(name)] for name in names], dtype=np.int64)[inverse]

    def read(
        self, rows: Sequence[int] | np.ndarray, shape: Shape, view: View | None, skipped: list[dict[str, str]]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Decode some pictures; yield (row, (c, h, w) uint8), and append unreadable ones to `skipped`."""
        for row in rows:
            try:
                pixels = self.pictures.read(int(row), shape, view)
            except UnreadablePicture as error:
                skipped.append({"file": self.ids[row], "reason": str(error)})
            else:
                yield int(row), pixels


class DataSource(Source):
    """Base of the data loaders, each of which makes a pool from one kind of source."""

    max_corrupt: float = Field(0.05, ge=0, le=1, description="share of unreadable pictures to skip; more is an error")

    @abstractmethod
    def load(self, inputs: Path) -> Pool:
        """List all available pictures. Raises a UsageError if there are none, or their list cannot be read."""


def class_indices(classes: Sequence[str]) -> dict[str, int]:
    """Return {label: index of the class}; classes of ImageNet are also recognised by their WordNet IDs.

    A name shared by two classes is left out, because it is ambiguous.
    """
    borne = Counter(classes)
    known = {name: index for index, name in enumerate(classes) if borne[name] == 1}
    if len(classes) == 1000:
        from stages.tasks.labels import wordnet_ids

        known |= wordnet_ids(classes)
    return known


def _unknown_labels(unknown: Sequence[str], classes: Sequence[str]) -> str:
    named = "; ".join(f"{name!r}{did_you_mean(name, classes)}" for name in unknown[:NAMED])
    more = f"; and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    some = ", ".join(classes[:NAMED]) + (f", ... ({len(classes)} in all)" if len(classes) > NAMED else "")
    return (
        f"prepare.data: the model has no class for {len(unknown)} label(s) of the data: {named}{more}; its classes are"
        f" {some}. Say which is which: prepare.data.labels: {{their label: the model's class}}; or what the model's are"
        " called: prepare.model.classes"
    )


def tolerate(skipped: Sequence[Mapping[str, str]], total: int, max_corrupt: float) -> None:
    """Check that only few pictures are unreadable.

    Raises a UsageError if they exceed a share `max_corrupt` of `total`.
    """
    if len(skipped) > max_corrupt * total:
        named = first_problems([f"{s['file']} ({s['reason']})" for s in skipped], NAMED)
        raise UsageError(
            f"prepare.data: {len(skipped)} of {total} pictures cannot be read, prepare.data.max_corrupt allows"
            f" {max_corrupt:.0%}: {named}"
        )


def choose_items(
    pool: Pool, counts: ItemCounts, classes: list[str], seed: int, shape: Shape, view: View | None = None
) -> pd.DataFrame:
    """Choose the items of each split: from a ready-made pool, or whole groups in a random order given by the seed.

    Raises a UsageError if there are too few pictures, too many are corrupt, or the model lacks a class for their
    labels.

    Returns:
        Columns id, split, label (class name), target (class index), image (raw uint8 pixels) and, if some belong
        together, group; `attrs["skipped"]` lists what was left out.
    """
    targets = pool.targets(classes)
    corrupt: list[dict[str, str]] = []
    seen = 0
    tables = []
    for split, queue in _queues(pool, seed).items():
        wanted: int = getattr(counts, split)
        taken: list[tuple[int, np.ndarray]] = []
        while len(taken) < wanted and (group := next(queue, None)) is not None:
            seen += len(group)
            taken += pool.read(group, shape, view, corrupt)
            if len(corrupt) > pool.max_corrupt * len(pool.ids):  # even if all others are readable
                tolerate(corrupt, seen, pool.max_corrupt)
        if len(taken) < wanted:
            raise UsageError(_too_few(pool, split, wanted, len(taken), corrupt))
        tables.append(_table(pool, split, taken[:wanted], targets, classes))
    tolerate(corrupt, seen, pool.max_corrupt)
    items = pd.concat([t for t in tables if len(t)], ignore_index=True)
    items.attrs["skipped"] = pool.skipped + corrupt
    return items


def _queues(pool: Pool, seed: int) -> dict[str, Iterator[list[int]]]:
    """Return for each split an iterator over its groups of rows; without ready-made pools all splits share one."""
    rng = np.random.default_rng([seed, 1])
    if pool.splits is None:
        by_group = pd.Series(range(len(pool.ids))).groupby(pool.groups).apply(list)
        shared = iter([by_group.iloc[i] for i in rng.permutation(len(by_group))])
        return dict.fromkeys(SPLITS, shared)
    _check_groups(pool)
    ready = {split: pool.rows(split) for split in SPLITS}
    return {
        split: iter([[int(row)] for row in (rows if pool.in_order else rng.permutation(rows))])
        for split, rows in ready.items()
    }


def _check_groups(pool: Pool) -> None:
    """Check that each group is in only one ready-made pool. Raises a UsageError with a group that is not."""
    found: dict[str, str] = {}
    for group, split in zip(pool.groups, pool.splits or [], strict=True):
        if (first := found.setdefault(group, split)) != split:
            raise UsageError(
                f"prepare.data: the group {group!r} lies in the splits {first} and {split}; pictures of a group belong"
                " to one split, or the model is judged by what it has learnt from"
            )


def _too_few(pool: Pool, split: str, wanted: int, found: int, corrupt: Sequence[object]) -> str:
    left = "" if pool.splits is not None else " left (crops of a photo stay in one split)"
    unread = f", and {len(corrupt)} that cannot be read" if corrupt else ""
    pools = sorted(set(pool.splits or []) - {""})
    hint = f"; its pools are {', '.join(pools)}" if pools and split not in pools else ""
    return f"prepare.items.{split}: {wanted} items wanted, the data has {found}{left}{unread}{hint}"


def _table(
    pool: Pool, split: str, taken: Sequence[tuple[int, np.ndarray]], targets: np.ndarray, classes: Sequence[str]
) -> pd.DataFrame:
    rows = [row for row, _ in taken]
    columns: dict[str, Any] = {
        "id": [pool.ids[i] for i in rows],
        "split": split,
        "label": [classes[t] for t in targets[rows]],
        "target": targets[rows],
        "image": [pixels.tobytes() for _, pixels in taken],
    }
    if len(set(pool.groups)) < len(pool.groups):
        columns["group"] = [pool.groups[i] for i in rows]
    told = detail_columns([pool.details[i] for i in rows]) if pool.details else {}
    return pd.DataFrame(columns | told)
