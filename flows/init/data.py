"""What a person's data are: how many items of what, and which of them cannot be read."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.init.formats import GREY, traits_of
from flows.init.model import Shape, described
from stages.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from stages.tasks.classification.pool import Pool

_OPENED = 2000  # pictures that are opened at most; of more a sample
_ROWS = 200  # lines of a table that tell its columns
_FEW = 30  # values that a column of words may have
_NAMED = 3
SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test", "discover", "repair")
_TEXT = ("article", "text", "document", "dialogue", "content", "body")
_SUMMARY = ("summary", "highlights", "abstract", "headline", "reference")

Choose = Callable[[Sequence[str], str | None], str]
"""Says which of some columns it is, given the one that looks like it."""


@dataclass(frozen=True)
class Data:
    """Data as they were recognised.

    Args:
        said: what they are, for people.
        block: the block of params.yaml, but for the file or folder.
        path: of the file or folder; None for a data set of a hub.
        beside: files that a list names, relative to its folder, which have to lie under inputs with it.
        key: which names it in the block.
        items: how many can be used; None where that is not known before they are fetched.
        pools: how many of these are meant for which split; {} where the audit draws them.
        labels: what pictures are labelled with, and how often.
        classes: these in their order, where they have one.
        shape: channels, height, width of most pictures, each None where unknown.
        absent: they are of a hub, and have to be fetched before anything is known of them.
        columns: of captioned pictures, what their table says of each beside the caption: its values.
        empty: folders of classes that hold no picture.
        traits: how many of the pictures that were opened are stored in which way (`flows.init.formats`).
        sides: how many of them have which shorter side.
    """

    said: str
    block: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    beside: Sequence[str] = ()
    key: str = ""
    items: int | None = None
    pools: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    classes: Sequence[str] = ()
    shape: Shape = (None, None, None)
    absent: bool = False
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    empty: Sequence[str] = ()
    traits: Mapping[str, int] = field(default_factory=dict)
    sides: Mapping[int, int] = field(default_factory=dict)

    def named(self, name: str | None) -> dict[str, Any]:
        """The block of params.yaml, with the file or folder by the name it has under inputs."""
        return {**({self.key: name} if name else {}), **self.block}


def existing(given: str, option: str) -> Path | None:
    """The file or folder that is meant; None where it can only be a name of a hub.

    Raises:
        UsageError: when it can be neither.
    """
    path = Path(given).expanduser()
    if path.exists():
        return path
    if given.count("/") == 1 and not given.startswith((".", "/", "~")) and not path.parent.exists():
        return None
    there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UsageError(
        f"{option} {given}: there is no such file or folder, and it is not ORG/NAME on the Hugging Face hub"
        f"{did_you_mean(path.name, there)}"
    )


def look_at_pictures(path: Path, given: str) -> Data:
    """Look at pictures with labels: a folder of each class, a list (.jsonl), or a table (.parquet).

    Raises:
        UsageError: when there are no pictures with labels.
    """
    from stages.tasks.classification.data import DATA_LOADERS
    from stages.tasks.sources import parse_source

    key = "imagefolder" if path.is_dir() else {".jsonl": "jsonl", ".parquet": "parquet"}.get(path.suffix)
    if key is None:
        raise UsageError(
            f"--data {given}: expected a folder that holds a folder of pictures for each class, a .jsonl file with a"
            " picture and its label a line, or a .parquet file"
        )
    try:
        pool = parse_source({key: path.name}, DATA_LOADERS, "--data").load(path.parent)
    except UsageError as error:
        raise UsageError(f"--data {given}: {error}") from None
    if key == "imagefolder" and (path / "train").is_dir() and set(pool.splits or ()) == {"repair", "test"}:
        # Nothing is meant to be searched: the model has learnt from `train`, and all splits are drawn from `test`.
        seen = look_at_pictures(path / "test", given)
        return replace(seen, said=f"{seen.said}, all of them of {path / 'test'}: there is no folder `val` to search")
    return _pictures(pool, key, path, given)


def _named_beside(pool: Pool, path: Path) -> list[str]:
    from stages.tasks.classification.pool import Encoded

    assert isinstance(pool.pictures, Encoded)
    sources = (pool.pictures.sources[row] for row in range(len(pool.ids)))
    return [source.relative_to(path.parent).as_posix() for source in sources if isinstance(source, Path)]


def _pictures(pool: Pool, key: str, path: Path, given: str) -> Data:
    labels = Counter(str(label) for label in pool.labels.tolist())
    seen = _opened(pool, given)
    shape, unreadable, opened = seen.shape, seen.unreadable, seen.opened
    total = len(pool.ids)
    pools = Counter(pool.splits) if pool.splits is not None else {}
    parts = [f"{total:,} pictures in {len(labels):,} classes", f"most of them {described(None, shape)}"]
    if pools:
        parts.append(" + ".join(f"{n:,} {split}" for split, n in pools.items()))
    if unreadable:
        of = f" of {opened:,} opened" if opened < total else ""
        more = f" and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        parts.append(f"{len(unreadable)}{of} unreadable ({', '.join(unreadable[:_NAMED])}{more})")
    kept = 1 - len(unreadable) / opened
    return Data(
        ", ".join(parts),
        path=path,
        beside=_named_beside(pool, path) if key == "jsonl" else (),
        key=key,
        items=int(total * kept),
        pools={split: int(n * kept) for split, n in pools.items()},
        labels=labels,
        classes=pool.classes or (),
        shape=shape,
        empty=_empty(path, labels, in_splits=bool(pools)) if key == "imagefolder" else (),
        traits=seen.traits,
        sides=seen.sides,
    )


def _empty(path: Path, labels: Mapping[str, int], *, in_splits: bool) -> list[str]:
    """Folders of classes without a picture."""
    roots = _folders(path) if in_splits else [path]
    return sorted({folder.name for root in roots for folder in _folders(root)} - set(labels))


def _folders(path: Path) -> list[Path]:
    return [folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith((".", "__"))]


@dataclass
class _Opened:
    """What pictures turned out to be: the commonest shape, which cannot be read, and how the others are stored."""

    shape: Shape
    unreadable: list[str]
    opened: int
    traits: Counter[str] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)


def _opened(pool: Pool, given: str) -> _Opened:
    from stages.tasks.classification.pool import Encoded

    if not isinstance(pool.pictures, Encoded):  # all of one shape, and read already
        return _Opened(pool.pictures.shape(None), [entry["file"] for entry in pool.skipped], len(pool.ids))
    total = len(pool.ids)
    chosen = np.linspace(0, total - 1, min(total, _OPENED)).round().astype(int).tolist()
    shapes: Counter[Shape] = Counter()
    found = _Opened((None, None, None), [], len(chosen))
    for row in chosen:
        seen = _seen(pool.pictures.sources[row])
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
    return found


def _seen(source: Path | bytes) -> tuple[tuple[int, int, int], list[str]] | None:
    """Channels, height and width of a picture as it lies there, and its traits; None where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as picture:
            traits = traits_of(picture)
            picture.load()
            return (1 if picture.mode in GREY else 3, picture.height, picture.width), traits
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, Image.DecompressionBombError):
        return None


def look_at_articles(path: Path, given: str, named: Choose) -> Data:
    """Look at articles: a .jsonl file, or a folder that the library `datasets` reads.

    Args:
        path: of it.
        given: as a person gave it.
        named: says which of some columns holds the articles, given the one that looks like it, if one does.

    Raises:
        UsageError: when there is no column of texts, or no article can be used.
    """
    from stages.tasks.sources import parse_source
    from stages.tasks.summarization.data_sources import DATA_LOADERS

    if path.is_dir():
        key, block = "datasets", _of_data_set(path, given, named)
    elif path.suffix == ".jsonl":
        key, block = "jsonl", _text_columns(_rows(path, given), named)
    else:
        raise UsageError(f"--data {given}: expected a .jsonl file, one JSON object a line, or a folder of a data set")
    try:
        articles, skipped = parse_source({key: path.name, **block}, DATA_LOADERS, "--data").load(path.parent)
    except UsageError as error:
        raise UsageError(f"--data {given}: {error}") from None
    pools = Counter(article.pool for article in articles if article.pool)
    parts = [f"{len(articles):,} articles in {block['text']!r}"]
    if "summary" in block:
        parts.append(f"with summaries in {block['summary']!r}")
    if pools:
        parts.append(" + ".join(f"{n:,} {split}" for split, n in pools.items()))
    if skipped:
        parts.append(f"{len(skipped)} that cannot be used ({skipped[0]['file']}: {skipped[0]['reason']})")
    said = ", ".join(parts)
    return Data(said, block, path, key=key, items=len(articles), pools=pools if pools.total() == len(articles) else {})


def _of_data_set(path: Path, given: str, named: Choose) -> dict[str, str]:
    """The largest split of a folder of the library `datasets`, and its columns."""
    try:
        import datasets
    except ImportError:
        raise UsageError(f"--data {given}: reading it needs the library datasets: pip install 'faded[text]'") from None
    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(str(path))
    except (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError) as error:
        why = " ".join(f"{error} {error.__cause__ or ''}".split())[:400]
        raise UsageError(f"--data {given} is not a readable data set: {why}") from None
    name = str(max(splits, key=lambda split: len(splits[split])))
    return {"split": name, **_text_columns([splits[name][0]], named)}


def _text_columns(rows: Sequence[Mapping[str, Any]], named: Choose) -> dict[str, str]:
    """Which columns hold an article and, where there is one, its summary."""
    text = named(list(rows[0]), _column(rows, _TEXT))
    summary = _column(rows, [name for name in _SUMMARY if name != text])
    return {"text": text, **({"summary": summary} if summary else {})}


def look_at_captions(path: Path, given: str) -> Data:
    """Look at real captioned pictures: a folder with a metadata.jsonl, or a table.

    Raises:
        UsageError: when there are no captions.
    """
    if path.is_dir() and (path / "metadata.jsonl").exists():
        key, rows = "imagefolder", list(_lines(path / "metadata.jsonl", given))
    elif path.suffix == ".parquet":
        key, rows = "parquet", _table_rows(path, given)
    else:
        raise UsageError(
            f"--data {given}: expected a folder of pictures with a metadata.jsonl (file_name and text of each), or a"
            " .parquet file with the columns image and text"
        )
    if not rows or "text" not in rows[0]:
        found = ", ".join(rows[0]) if rows else "no rows"
        raise UsageError(f"--data {given}: expected captions in a column `text`, found {found}")
    told = {
        name: Counter(str(row[name]) for row in rows if row.get(name))
        for name in rows[0]
        if name not in ("text", "file_name", "image", "split", "id")
    }
    few = {name: [value for value, _ in n.most_common()] for name, n in told.items() if 2 <= len(n) <= _FEW}
    said = f"{len(rows):,} captioned pictures" + (f", whose table also says {', '.join(few)}" if few else "")
    return Data(said, path=path, key=key, items=len(rows), columns=few)


def _table_rows(path: Path, given: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = [name for name in pq.read_schema(path).names if name != "image"]
        rows: list[dict[str, Any]] = pq.read_table(path, columns=names).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"--data {given} is not a readable parquet file: {error}") from None
    return rows


def _lines(path: Path, given: str) -> Iterator[dict[str, Any]]:
    """Lines of a table of JSON objects; those that are none are left to the loader to tell."""
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):
                    row = json.loads(line) if line.strip() else None
                    if isinstance(row, dict):
                        yield row
    except UnicodeDecodeError as error:
        raise UsageError(f"--data {given} is not UTF-8 text: {error.reason}") from None


def _rows(path: Path, given: str) -> list[dict[str, Any]]:
    """Some of the rows.

    Raises:
        UsageError: when there is none.
    """
    rows = list(islice(_lines(path, given), _ROWS))
    if not rows:
        raise UsageError(f"--data {given} holds no JSON objects, one a line")
    return rows


def _column(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """The first of these columns that every row has, whatever its capitals."""
    of = {key.lower(): key for key in rows[0]}
    return next((of[name] for name in names if name in of and all(of[name] in row for row in rows)), None)
