"""The three kinds of items for a function under test, changed by concepts and passed in the form the user gave."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from torch.nn.functional import adaptive_avg_pool2d

from stages.concepts import Concept, ConceptSpace, Level, images, texts
from stages.concepts.catalogue import Change, check_levels, span
from stages.concepts.rows import CATALOGUE as OF_ROWS
from stages.concepts.rows import RowChanges
from stages.core.errors import UsageError
from stages.tasks.attributes import ranges_of
from stages.tasks.contract import Exhibit, item_numbers

SEEN = 16  # side of the grey picture that explorers see
COLUMN = "x."  # prefix of features of rows in tables, where other columns have other meanings

Form = Literal["array", "frame", "records"]

MEASURED = {name: concept for name, concept in OF_ROWS.items() if "measurement" in concept.kinds}


class Given(Protocol):
    """Items of one kind, in the form that the model takes."""

    catalogue: ClassVar[Mapping[str, Change]]

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> Self:
        """Read what `table` wrote."""

    def table(self) -> pd.DataFrame:
        """Return the items as columns of items.parquet, with their form in `attrs`."""

    def about(self) -> pd.DataFrame:
        """Return attributes of the items: (n, columns), see `stages.tasks.attributes`."""

    def features(self) -> np.ndarray:
        """Return (n, d) float64: what an explorer sees of the items."""

    def unchanged(self, rows: np.ndarray) -> Any:
        """Return a batch for the model."""

    def change(self, rows: np.ndarray, cells: np.ndarray, ids: Sequence[str], space: ConceptSpace, seed: int) -> Any:
        """Apply built-in concepts, then the user's own, and return a batch for the model."""

    def exhibit(self, row: int, changed: Any, caption: str) -> Exhibit:
        """Show a changed item as people would see it."""


def as_given(items: Any) -> Given:
    """Wrap items as the user gave them. Raises a UsageError if they are of none of the kinds."""
    if isinstance(items, pd.DataFrame):
        return FeatureRows(items.reset_index(drop=True))
    if isinstance(items, str):
        raise UsageError("items is one text, expected a list of them")
    if isinstance(items, list | tuple | pd.Series) and len(items) and isinstance(next(iter(items)), str):
        if wrong := [i for i, item in enumerate(items) if not isinstance(item, str)]:
            raise UsageError(f"items[{wrong[0]}] is not text as the first is")
        return Texts(list(items))
    if isinstance(items, list | tuple) and len(items) and isinstance(items[0], Mapping):
        if wrong := [i for i, item in enumerate(items) if not isinstance(item, Mapping)]:
            raise UsageError(f"items[{wrong[0]}] is not a dict as the first is")
        return FeatureRows(pd.DataFrame(list(items)), form="records")
    if isinstance(items, list | tuple):
        items = [_array(item) for item in items]
        shapes = dict.fromkeys(item.shape for item in items)
        if len(shapes) > 1:
            told = ", ".join(map(str, list(shapes)[:3]))
            raise UsageError(f"items: found items of {len(shapes)} shapes, {told}, expected one: resize pictures first")
    array = _array(items)
    if array.ndim == 2 and array.dtype.kind in "fiub":
        return FeatureRows(pd.DataFrame(array, columns=[str(i) for i in range(array.shape[1])]), form="array")
    if array.ndim in (3, 4) and array.dtype.kind in "fu":
        return Images.of(array)
    raise UsageError(
        f"items: found {type(items).__name__} of shape {array.shape} and {array.dtype}, expected images (n, h, w),"
        " (n, h, w, c) or (n, c, h, w), a list of texts, or rows of features (n, d), a DataFrame or a list of dicts"
    )


def _array(items: Any) -> np.ndarray:
    return items.detach().cpu().numpy() if hasattr(items, "detach") else np.asarray(items)


def read_concepts(
    concepts: Mapping[str, Sequence[Level] | Concept] | Sequence[Concept],
) -> tuple[dict[str, list[Level]], dict[str, Concept]]:
    """Return the levels of all concepts, with numbers as floats as in params.yaml, and the user's own concepts.

    Raises a UsageError if one has neither levels nor a function.
    """
    if not isinstance(concepts, Mapping):
        if wrong := [one for one in concepts if not isinstance(one, Concept)]:
            raise UsageError(f"concepts: found {wrong[0]!r}, expected {{name: levels}} or concepts of your own")
        concepts = {one.name: one for one in concepts}
    levels: dict[str, list[Level]] = {}
    own: dict[str, Concept] = {}
    for name, found in concepts.items():
        values = found.levels if isinstance(found, Concept) else found
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
            raise UsageError(f"concepts.{name}: found {found!r}, expected levels, or a concept of faded.concept")
        levels[name] = [value if isinstance(value, str | bool) else float(value) for value in values]
        if isinstance(found, Concept):
            own[name] = as_concept(name, found, levels[name])
    return levels, own


def as_concept(name: str, found: Any, levels: Sequence[Level]) -> Concept:
    """Return a user's own concept with these levels: from `faded.concept`, or a function with a neutral first level.

    Raises a UsageError if it is neither.
    """
    if isinstance(found, Concept) and found.apply is not None:
        return replace(found, name=name, levels=tuple(levels))
    if isinstance(found, Concept) or not callable(found):
        raise UsageError(f"concepts.{name}: found {found!r}, expected a function (item, level) -> item")
    return Concept(name, tuple(levels), ordered=not isinstance(levels[0], str), neutral=levels[0], apply=found)


def space_of(given: type[Given], concepts: Mapping[str, Sequence[Any]], own: Mapping[str, Concept]) -> ConceptSpace:
    """Return the grid of built-in concepts and of the user's own, in the order in which they are named."""
    built_in = {name: levels for name, levels in concepts.items() if name not in own}
    known = {c.name: c for c in span(built_in, given.catalogue).concepts} if built_in else {}
    return ConceptSpace(tuple(own[name] if name in own else known[name] for name in concepts))


def check(given: type[Given], concepts: Mapping[str, Sequence[Any]], own: Mapping[str, Concept]) -> list[str]:
    """Return errors of the concepts of an audit, one line each."""
    twice = [f"concepts.{name}: there is a built-in concept of that name" for name in own if name in given.catalogue]
    built_in = {name: levels for name, levels in concepts.items() if name not in own}
    return twice + check_levels(built_in, given.catalogue)


def _chance(ids: Sequence[str], cells: np.ndarray, space: ConceptSpace, seed: int) -> np.ndarray:
    """Return a random number for each probe, (n,) uint64, whatever else is in its batch."""
    return images.probe_chance(item_numbers(ids), space.flat(cells), np.zeros(len(ids), dtype=np.int64), seed)


def _apply_own(space: ConceptSpace, cell: np.ndarray, item: Any) -> Any:
    """Apply the user's own functions to one item, skipping neutral levels; integer levels are passed as int."""
    for concept, index in zip(space.concepts, cell.tolist(), strict=True):
        level = concept.levels[index]
        if concept.apply is not None and level != concept.neutral:
            whole = isinstance(level, float) and level.is_integer()
            item = concept(item, int(level) if whole else level)
    return item


class Images:
    """Pictures of one shape, grey or in colour, as bytes or in [0, 1].

    Args:
        pixels: (n, h, w), (n, h, w, c) or (n, c, h, w) uint8 or float32.
        axis: axis of the channels; None if there is none.
    """

    catalogue: ClassVar[Mapping[str, Change]] = images.CATALOGUE

    def __init__(self, pixels: np.ndarray, axis: int | None) -> None:
        self.pixels, self.axis = pixels, axis

    @classmethod
    def of(cls, array: np.ndarray) -> Self:
        """Check pictures, and determine the axis of the channels."""
        if array.dtype != np.uint8:
            array = array.astype(np.float32)
            if not (array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
                raise UsageError(
                    f"items: images of values from {array.min():g} to {array.max():g}, expected 0 to 1 or uint8; what"
                    " normalises them belongs into the model's function"
                )
        axis = next((a for a in (1, 3) if array.ndim == 4 and array.shape[a] in (1, 3)), None)
        if array.ndim == 4 and axis is None:
            raise UsageError(f"items: images of shape {array.shape[1:]}, expected 1 or 3 channels, first or last")
        return cls(array, axis)

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> Self:
        form = table.attrs["form"]
        pixels = np.frombuffer(b"".join(table["image"]), form["dtype"]).reshape(len(table), *form["shape"])
        return cls(pixels, form["axis"])

    def table(self) -> pd.DataFrame:
        table = pd.DataFrame({"image": [image.tobytes() for image in self.pixels]})
        form = {"shape": list(self.pixels.shape[1:]), "dtype": str(self.pixels.dtype), "axis": self.axis}
        table.attrs["form"] = {"kind": "images", **form}
        return table

    def _channels_first(self, pixels: np.ndarray) -> np.ndarray:
        return pixels[:, None] if self.axis is None else np.moveaxis(pixels, self.axis, 1)

    def about(self) -> pd.DataFrame:
        return pd.DataFrame(index=range(len(self.pixels)))

    def features(self) -> np.ndarray:
        grey = torch.from_numpy(self._channels_first(self.pixels).astype(np.float32).mean(1, keepdims=True))
        height, width = (min(SEEN, side) for side in grey.shape[2:])
        return adaptive_avg_pool2d(grey, (height, width)).flatten(1).numpy().astype(np.float64)

    def unchanged(self, rows: np.ndarray) -> Any:
        return self.pixels[rows]

    def change(self, rows: np.ndarray, cells: np.ndarray, ids: Sequence[str], space: ConceptSpace, seed: int) -> Any:
        pixels = self._channels_first(self.pixels[rows]).astype(np.float32)
        taken = torch.from_numpy(pixels / 255 if self.pixels.dtype == np.uint8 else pixels)
        writable = np.array(cells)  # torch warns of any other array
        changed = images.ImageTransforms(space)(taken, writable, _chance(ids, cells, space, seed)).numpy()
        if self.pixels.dtype == np.uint8:
            changed = (changed * 255).round().astype(np.uint8)
        batch = changed[:, 0] if self.axis is None else np.moveaxis(changed, 1, self.axis)
        shape = self.pixels.shape[1:]
        own = [np.asarray(_apply_own(space, cell, image)) for cell, image in zip(cells, batch, strict=True)]
        for image in own:
            if image.shape != shape:
                raise UsageError(f"a concept changed an image of shape {shape} to {image.shape}, expected the same")
        return np.stack(own).astype(self.pixels.dtype, copy=False)

    def exhibit(self, row: int, changed: Any, caption: str) -> Exhibit:
        image = np.moveaxis(self._channels_first(changed[None])[0], 0, -1)
        image = image if image.dtype == np.uint8 else (image.clip(0, 1) * 255).round().astype(np.uint8)
        return Exhibit.of_picture(caption, image)


class Texts:
    """Texts of any length.

    Args:
        given: n of them.
    """

    catalogue: ClassVar[Mapping[str, Change]] = texts.CATALOGUE

    def __init__(self, given: Sequence[str]) -> None:
        self.texts = list(given)

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> Self:
        return cls(table["text"].tolist())

    def table(self) -> pd.DataFrame:
        table = pd.DataFrame({"text": self.texts})
        table.attrs["form"] = {"kind": "texts"}
        return table

    def about(self) -> pd.DataFrame:
        return pd.DataFrame({"length": ranges_of([len(text.split()) for text in self.texts], "words")})

    def features(self) -> np.ndarray:
        from sklearn.feature_extraction.text import HashingVectorizer

        return np.asarray(HashingVectorizer(n_features=1024, ngram_range=(1, 2)).transform(self.texts).todense())

    def unchanged(self, rows: np.ndarray) -> Any:
        return [self.texts[row] for row in rows]

    def change(self, rows: np.ndarray, cells: np.ndarray, ids: Sequence[str], space: ConceptSpace, seed: int) -> Any:
        transforms = texts.TextTransforms(space, seed)
        changed = [transforms(self.texts[row], item, cell) for row, item, cell in zip(rows, ids, cells, strict=True)]
        return [str(_apply_own(space, cell, text)) for cell, text in zip(cells, changed, strict=True)]

    def exhibit(self, row: int, changed: Any, caption: str) -> Exhibit:
        return Exhibit(caption, text=changed, original=self.texts[row])


class FeatureRows:
    """Rows of features.

    Built-in concepts change the columns of numbers; those of whole numbers stay whole.

    Args:
        frame: one column per feature.
        form: what the model takes.
    """

    catalogue: ClassVar[Mapping[str, Change]] = MEASURED

    def __init__(self, frame: pd.DataFrame, *, form: Form = "frame") -> None:
        self.frame, self.form = frame, form
        self.frame.columns = [str(name) for name in frame.columns]

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> Self:
        columns = [name for name in table.columns if name.startswith(COLUMN)]
        frame = table[columns].rename(columns=lambda name: name.removeprefix(COLUMN)).reset_index(drop=True)
        form = table.attrs["form"]
        return cls(frame, form=form.get("rows", "array" if form.get("array") else "frame"))  # "array": until 2026-11

    def table(self) -> pd.DataFrame:
        table = self.frame.add_prefix(COLUMN)
        table.attrs["form"] = {"kind": "rows", "rows": self.form}
        return table

    def about(self) -> pd.DataFrame:
        return pd.DataFrame(index=self.frame.index) if self.form == "array" else self.frame

    def features(self) -> np.ndarray:
        """See Given: numbers, times as seconds, and words one-hot encoded."""
        times = self.frame.select_dtypes(["datetime", "datetimetz", "timedelta"])
        seconds = {name: (column - column.min()).dt.total_seconds() for name, column in times.items()}
        numbers = pd.get_dummies(self.frame.assign(**seconds), dtype=float).astype(float)
        return numbers.fillna(numbers.mean()).fillna(0).to_numpy()

    def unchanged(self, rows: np.ndarray) -> Any:
        return self._formed(self.frame.iloc[rows].reset_index(drop=True))

    def _formed(self, table: pd.DataFrame) -> Any:
        if self.form == "frame":
            return table
        return table.to_numpy(copy=True) if self.form == "array" else table.to_dict("records")

    def change(self, rows: np.ndarray, cells: np.ndarray, ids: Sequence[str], space: ConceptSpace, seed: int) -> Any:
        """See Given: concepts get a row as a 1-D array, a Series or a dict."""
        taken = self._measured_otherwise(rows, cells, ids, space, seed)
        if all(concept.apply is None for concept in space.concepts):
            return self._formed(taken)
        if self.form == "array":
            pairs = zip(cells, taken.to_numpy(), strict=True)
            return np.stack([_apply_own(space, cell, row.copy()) for cell, row in pairs])
        if self.form == "records":
            pairs = zip(cells, taken.to_dict("records"), strict=True)
            return [_apply_own(space, cell, row) for cell, row in pairs]
        series = [taken.iloc[row].copy() for row in range(len(taken))]
        changed = [_apply_own(space, cell, row) for cell, row in zip(cells, series, strict=True)]
        table = pd.DataFrame(changed, columns=self.frame.columns).reset_index(drop=True)
        for name, dtype in self.frame.dtypes.items():
            with contextlib.suppress(ValueError, TypeError):  # a concept may leave gaps in columns of integers
                table[name] = table[name].astype(dtype)
        return table

    @cached_property
    def _measured(self) -> pd.DataFrame:
        """The columns of numbers, as floats."""
        measured = [name for name, dtype in self.frame.dtypes.items() if is_numeric_dtype(dtype)]
        return self.frame[measured].select_dtypes(exclude="bool").astype(float)

    def _measured_otherwise(
        self, rows: np.ndarray, cells: np.ndarray, ids: Sequence[str], space: ConceptSpace, seed: int
    ) -> pd.DataFrame:
        """Return rows of the table, changed by built-in concepts."""
        taken = self.frame.iloc[rows].reset_index(drop=True)
        concepts = [concept.name for concept in space.concepts if concept.apply is None]
        if not concepts:
            return taken
        measured = self._measured
        if measured.empty:
            raise UsageError(f"concepts.{concepts[0]}: no column of the items has numbers")
        spread, usual = measured.std().replace(0, 1), measured.median()
        changes = RowChanges(
            space, MEASURED, {str(name): "measurement" for name in measured}, spread.to_numpy(), usual.to_numpy()
        )
        before = measured.iloc[rows].to_numpy()
        after = changes(before, cells, _chance(ids, cells, space, seed))
        for name, old, new in zip(measured, before.T, after.T, strict=True):
            changed = np.flatnonzero((new != old) & np.isfinite(new))
            values, dtype = new[changed], getattr(self.frame[name].dtype, "numpy_dtype", self.frame[name].dtype)
            if dtype.kind in "iu":
                values = np.rint(values).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
            taken.loc[changed, name] = values.astype(dtype)
        return taken

    def exhibit(self, row: int, changed: Any, caption: str) -> Exhibit:
        before = self.frame.iloc[row]
        now = changed if isinstance(changed, Mapping) else dict(zip(self.frame.columns, changed, strict=True))
        lines = [f"{name}: {_said(value)}" for name, value in before.items()]
        return Exhibit(
            caption,
            text="\n".join(f"{name}: {_said(value)}" for name, value in now.items()),
            original="\n".join(lines),
        )


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


KINDS: Mapping[str, type[Given]] = {"images": Images, "texts": Texts, "rows": FeatureRows}
