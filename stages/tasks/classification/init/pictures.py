"""Recognise labelled pictures: how many of each class, which cannot be read, which formats may reduce accuracy."""

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.core.errors import UsageError, first_of
from stages.tasks.classification.data import DATA_LOADERS
from stages.tasks.classification.init.models import UNKNOWN, Shape, described
from stages.tasks.classification.pictures import Encoded, Pool
from stages.tasks.init import Data, load_data

_OPENED = 2000  # maximum number of pictures that are opened; of more than these a sample
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")  # modes of Pillow
_ORIENTATION = 0x0112  # tag of EXIF
_COARSE = 20.0  # mean of JPEG's luminance table: 20 is about quality 65, 58 is quality 50, 12 is quality 90

_WHAT = {
    "16 bits": "have 16 bits a channel, of which the upper 8 are kept",
    "palette": "have a palette, and are turned into colours",
    "alpha": "have transparency, which is dropped: whatever colour lies under it is shown",
    "turned": "are turned as the camera says (EXIF), which torchvision's ImageFolder and many trainings do not do",
    "CMYK": "are CMYK, and are converted without a colour profile",
    "coarse": "are JPEGs of low quality (below about 65), whose blocks a model may see",
}


@dataclass(frozen=True)
class LabelledPictures(Data):
    """Labelled pictures.

    Args:
        labels: number of pictures by label.
        classes: the labels in their order, if they have one.
        shape: channels, height, width of most pictures, each None if unknown.
        empty: folders of classes without pictures.
        traits: number of opened pictures with each trait of their file format.
        sides: number of opened pictures by shorter side.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    classes: Sequence[str] = ()
    shape: Shape = UNKNOWN
    empty: Sequence[str] = ()
    traits: Mapping[str, int] = field(default_factory=dict)
    sides: Mapping[int, int] = field(default_factory=dict)


def look_at_pictures(path: Path, given: str) -> LabelledPictures:
    """Recognise labelled pictures: a folder per class, a list (.jsonl), or a table (.parquet).

    Raises a UsageError if there are no pictures with labels.
    """
    key = "imagefolder" if path.is_dir() else {".jsonl": "jsonl", ".parquet": "parquet"}.get(path.suffix)
    if key is None:
        raise UsageError(
            f"--data {given}: expected a folder that holds a folder of pictures for each class, a .jsonl file with a"
            " picture and its label a line, or a .parquet file"
        )
    pool = load_data({key: path.name}, DATA_LOADERS, path.parent, given)
    if key == "imagefolder" and (path / "train").is_dir() and set(pool.splits or ()) == {"repair", "test"}:
        # There is no split to search: the model has learnt from `train`, so all splits are drawn from `test`.
        seen = look_at_pictures(path / "test", given)
        return replace(seen, said=f"{seen.said}, all of them of {path / 'test'}: there is no folder `val` to search")
    labels, opened = Counter(str(label) for label in pool.labels.tolist()), _opened(pool, given)
    total, unreadable = len(pool.ids), opened.unreadable
    pools = Counter(pool.splits) if pool.splits is not None else {}
    parts = [f"{total:,} pictures in {len(labels):,} classes", f"{opened.most} of them {described(None, opened.shape)}"]
    if said := _attributes(pool.details, total):
        parts.append(f"with {said}")
    if pools:
        parts.append(" + ".join(f"{n:,} {split}" for split, n in pools.items()))
    if unreadable:
        of = f" of {opened.count:,} opened" if opened.count < total else ""
        parts.append(f"{len(unreadable)}{of} unreadable ({first_of(unreadable)})")
    beside, empty = list[str](), list[str]()
    if key == "jsonl":
        assert isinstance(pool.pictures, Encoded)
        named = (pool.pictures.sources[row] for row in range(total))
        beside = [one.relative_to(path.parent).as_posix() for one in named if isinstance(one, Path)]
    elif key == "imagefolder":
        roots = _folders(path) if pools else [path]
        empty = sorted({folder.name for root in roots for folder in _folders(root)} - set(labels))
    kept = 1 - len(unreadable) / opened.count
    return LabelledPictures(
        ", ".join(parts),
        path=path,
        beside=beside,
        key=key,
        items=int(total * kept),
        pools={split: int(n * kept) for split, n in pools.items()},
        labels=labels,
        classes=pool.classes or (),
        shape=opened.shape,
        empty=empty,
        traits=opened.traits,
        sides=opened.sides,
    )


def _attributes(details: Sequence[Mapping[str, Any]], total: int) -> str:
    """Name what is known of the pictures besides their labels, and of how many if not of all."""
    known = Counter(name for one in details for name in one)
    return first_of([name if n == total else f"{name} (of {n:,})" for name, n in known.items()])


def _folders(path: Path) -> list[Path]:
    return [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith((".", "__"))]


@dataclass
class _Opened:
    """What opening the pictures showed: the shape of all or most, unreadable pictures, and traits of the others."""

    shape: Shape
    unreadable: list[str]
    count: int
    most: str = "all"
    traits: Counter[str] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)


def _opened(pool: Pool, given: str) -> _Opened:
    if not isinstance(pool.pictures, Encoded):  # all have one shape, and were already read
        return _Opened(pool.pictures.shape(None), [entry["file"] for entry in pool.skipped], len(pool.ids))
    total = len(pool.ids)
    chosen = np.linspace(0, total - 1, min(total, _OPENED)).round().astype(int).tolist()
    shapes: Counter[Shape] = Counter()
    found = _Opened(UNKNOWN, [], len(chosen))
    for row in chosen:
        try:
            seen = _seen(pool.pictures.sources[row])
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # an audit leaves it out, too
            found.unreadable.append(
                f"{pool.ids[row]}: more than {(Image.MAX_IMAGE_PIXELS or 0) / 1e6:,.0f} million pixels"
            )
            continue
        if seen is None:
            found.unreadable.append(pool.ids[row])
            continue
        (channels, height, width), traits = seen
        shapes[channels, height, width] += 1
        found.traits.update(traits)
        found.sides[min(height, width)] += 1
    if not shapes:
        raise UsageError(
            f"--data {given}: none of {len(chosen)} pictures can be read, {found.unreadable[0]} among them"
        )
    found.shape = shapes.most_common(1)[0][0]
    found.most = "all" if len(shapes) == 1 and len(chosen) == total else "most"
    return found


def _seen(source: Path | bytes) -> tuple[tuple[int, int, int], list[str]] | None:
    """Return channels, height and width of a picture as stored, and its traits; None if it cannot be read.

    Raises a DecompressionBombWarning or DecompressionBombError of Pillow if it has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as picture:
                traits = _traits_of(picture)
                picture.load()
                return (1 if picture.mode in _GREY else 3, picture.height, picture.width), traits
    except (OSError, SyntaxError, ValueError, EOFError, TypeError):
        return None


# Warnings about file formats


def _traits_of(picture: Any) -> list[str]:
    """Return the traits of a picture that may reduce accuracy, as keys for `notes`, and its file format."""
    mode, format_ = picture.mode, picture.format or "?"
    found = [f"format {format_}", "grey" if mode in _GREY else "colour"]
    if mode.startswith("I;16") or mode == "I":
        found.append("16 bits")
    if mode == "P":
        found.append("palette")
    if mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        found.append("alpha")
    if mode == "CMYK":
        found.append("CMYK")
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        found.append("turned")
    tables = getattr(picture, "quantization", None)
    if format_ == "JPEG" and tables and sum(tables[0]) / len(tables[0]) > _COARSE:
        found.append("coarse")
    return found


def notes(traits: Mapping[str, int], sides: Mapping[int, int], channels: int | None, shown: int | None) -> list[str]:
    """Return warnings for people; empty if there are none.

    Args:
        traits: number of opened pictures with each trait.
        sides: number of opened pictures by shorter side.
        channels: channels of the model's input; None if unknown.
        shown: side of the pictures shown to the model; None if unknown.
    """
    n = sum(sides.values())
    lines = [f"{_of(traits[key], n)} {what}" for key, what in _WHAT.items() if traits.get(key)]
    grey, colour = traits.get("grey", 0), traits.get("colour", 0)
    if channels == 3 and grey:
        lines.append(f"{_of(grey, n)} are grey, and the model is for colour: all three channels are shown the same")
    if channels == 1 and colour:
        lines.append(f"{_of(colour, n)} have colour, and the model is for grey ones: their colour is dropped")
    if shown and (small := sum(count for side, count in sides.items() if side < shown)):
        lines.append(f"{_of(small, n)} are smaller than {shown} pixels, and are enlarged, so that they are blurred")
    formats = {key.removeprefix("format "): count for key, count in traits.items() if key.startswith("format ")}
    if len(formats) > 1 and "JPEG" in formats:
        listed = " and ".join(f"{count:,} {name}" for name, count in sorted(formats.items(), key=lambda f: -f[1]))
        lines.append(f"they are {listed}: if classes differ in that, a model can tell them by their compression")
    return lines


def _of(count: int, n: int) -> str:
    return "all pictures" if count == n else f"{count:,} of {n:,} pictures"
