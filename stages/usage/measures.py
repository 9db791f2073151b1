"""Measures of inputs in which changes leave a trace: of an audit's own, changed items, and of production inputs.

A table of measures has one row per input and one column per measure. `PICTURES`, `TEXTS` and `ROWS` name, by concept,
the columns that show it. All columns together are read, so a measure of one concept also helps to distinguish others.

A task names its reader as `usage` (`stages.tasks.choosing`).
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from stages.core.errors import UsageError, did_you_mean
from stages.core.files import parquet_metadata
from stages.usage.estimate import DRAWS, FEWEST, Shares, estimate_usage, spread_usage

if TYPE_CHECKING:
    from torch import Tensor


_LIGHT = ("darkest", "middle", "brightest", "mean")
_SPREAD = ("spread", *_LIGHT)
_SHARP, _GRAIN, _COLOUR = ("sharp", "steep"), ("grain",), ("colour",)

PICTURES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("darkening", "brightness", "brightness_c"), _LIGHT),
    **dict.fromkeys(("contrast", "contrast_c", "fog_c"), _SPREAD),
    **dict.fromkeys(("saturation", "saturate_c"), _COLOUR),
    **dict.fromkeys(
        ("blur", "gaussian_blur_c", "defocus_blur_c", "motion_blur_c", "zoom_blur_c", "glass_blur_c"), _SHARP
    ),
    **dict.fromkeys(("noise", "gaussian_noise_c", "shot_noise_c", "impulse_noise_c", "speckle_noise_c"), _GRAIN),
}

_UNKNOWN = ("unknown",)
TEXTS: Mapping[str, tuple[str, ...]] = {
    "letter_case": ("capitals", "initials", "mixed"),
    **dict.fromkeys(("typos", "misspellings", "swap_characters", "delete_characters", "insert_characters"), _UNKNOWN),
    "repeat_characters": ("doubled",),
    "repeat_words": ("repeated",),
    "drop_stop_words": ("stop",),
    "remove_punctuation": ("marks",),
    "lost_spaces": ("spaces",),
    "politeness": ("polite", "rude"),
}

ROWS: Mapping[str, tuple[str, ...]] = {
    "gain": ("high",),
    "drift": ("high",),
    "noise": ("far",),
    "decimal_slips": ("slipped",),
    "missing": ("usual",),
}


def of_pictures(images: "Tensor") -> pd.DataFrame:
    """Measure pictures (n, c, h, w) in [0, 1]: how bright, sharp, grainy and colourful they are."""
    import torch
    from torch.nn import functional

    grey = images.mean(1, keepdim=True)
    flat = grey.flatten(1)
    ordered = flat.sort(1).values
    darkest, middle, brightest = (ordered[:, int(share * (flat.shape[1] - 1))] for share in (0.01, 0.5, 0.99))
    spread = flat.std(1)
    # What is left of a pixel once its neighbours are subtracted: edges in sharp pictures, and noise (Immerkaer 1996).
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], device=images.device) / 6
    rest = functional.conv2d(grey, kernel[None, None]).flatten(1)
    steps = (grey[..., 1:] - grey[..., :-1]).flatten(1)
    found = {
        "darkest": darkest,
        "middle": middle,
        "brightest": brightest,
        "mean": flat.mean(1),
        "spread": spread,
        "sharp": rest.std(1) / (spread + 1e-4),
        "steep": steps.std(1) / (spread + 1e-4),
        "grain": rest.abs().median(1).values,
        "colour": (images.amax(1) - images.amin(1)).flatten(1).mean(1),
    }
    return pd.DataFrame({name: values.cpu().numpy().astype(np.float64) for name, values in found.items()})


_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_POLITE = re.compile(
    r"\b(please|thanks?|thank you|grateful|appreciated?|excuse me|kindly|sorry|would you mind)\b", re.I
)
_RUDE = re.compile(
    r"\b(idiot|stupid|dumb|useless|moron|hurry up|shut up|waste my time|damn|hell|crap|fuck\w*|shit\w*|wtf)\b", re.I
)
_SHORTEST = 3  # letters of a word that can be unknown


def of_texts(texts: Sequence[str], known: Sequence[Container[str]]) -> pd.DataFrame:
    """Measure n texts: capitals, words that nobody knows, doubled letters, marks, spaces, and courtesy.

    Args:
        known: for each, words in lower case that are known in addition to frequent English ones.
    """
    return pd.DataFrame([_of_text(text, also) for text, also in zip(texts, known, strict=True)], columns=_NAMES)


_NAMES = (
    *("capitals", "initials", "mixed", "unknown", "doubled", "repeated", "stop", "marks", "spaces"),
    *("polite", "rude"),
)


def _of_text(text: str, known: Container[str]) -> list[float]:
    from stages.concepts.texts.lexicon import is_stop_word

    words = _WORD.findall(text)
    lower = [word.lower() for word in words]
    letters = [letter for word in words for letter in word if letter.isalpha()]
    long = [word for word in lower if len(word) >= _SHORTEST]
    frequent = _frequent()
    pairs = [(a, b) for word in lower for a, b in pairwise(word)]
    counts = (
        (sum(letter.isupper() for letter in letters), len(letters)),
        (sum(word[0].isupper() for word in words), len(words)),
        (sum(word[1:] not in (word[1:].lower(), word[1:].upper()) for word in words), len(words)),
        (sum(word not in known and word not in frequent for word in long), len(long)),
        (sum(a == b for a, b in pairs), len(pairs)),
        (sum(a == b for a, b in pairwise(lower)), len(words)),
        (sum(is_stop_word(word, "") for word in lower), len(words)),
        (sum(not (sign.isalnum() or sign.isspace()) for sign in text), len(words)),
        (sum(sign.isspace() for sign in text), len(text)),
        (len(_POLITE.findall(text)), 1),
        (len(_RUDE.findall(text)), 1),
    )
    return [part / max(whole, 1) for part, whole in counts]


@lru_cache(maxsize=1)
def _frequent() -> frozenset[str]:
    from textblob.en import spelling

    return frozenset(spelling)


def of_prompts(prompts: Sequence[str], slots: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """For each slot with its levels, the numbers of the phrases that prompts say first and second; -1 for none."""
    found = {}
    for name, phrases in slots.items():
        longest = sorted((phrase for phrase in phrases if phrase), key=len, reverse=True)
        said = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", re.I)
        number = {phrase.lower(): i for i, phrase in enumerate(phrases)}
        each = [[number[match.lower()] for match in said.findall(prompt)] for prompt in prompts]
        found[f"{name} first"] = [(*said, -1)[0] for said in each]
        found[f"{name} second"] = [(*said, -1, -1)[1] for said in each]
    return pd.DataFrame(found, dtype=float)


def of_rows(values: np.ndarray, spread: np.ndarray, usual: np.ndarray) -> pd.DataFrame:
    """Measure rows of numbers: how high, how far from usual, with how many outliers and usual values.

    Args:
        values: (n, d).
        spread: (d,) standard deviations.
        usual: (d,) medians.
    """
    away = (values - usual) / spread
    sizes = np.sort(np.abs(away), axis=1)
    return pd.DataFrame(
        {
            "high": np.median(away, axis=1),
            "far": np.median(sizes, axis=1),
            "slipped": (sizes > 10).sum(1).astype(float),
            "usual": (values == usual).mean(1),
            "farthest": sizes[:, -1],
        }
    )


MOST = 10_000  # production inputs that are measured
BATCH = 64
_NAMED = 3  # files that a message names
_FEW_GROUPS = 10  # with fewer, items are independent enough


class Reader(ABC):
    """Measures inputs of a task.

    Args:
        task: the loaded task; its model is not queried.
        column: the column or field of production texts, if several could be meant.
    """

    shown: ClassVar[Mapping[str, Sequence[str]]] = {}
    """By concept, the measures that show it."""

    def __init__(self, task: Any, column: str | None) -> None:
        self.task, self.column = task, column
        self.left_out: list[str] = []  # what could not be read, and why

    @abstractmethod
    def own(self, ids: Sequence[str], cells: np.ndarray) -> pd.DataFrame:
        """Measure n items of the audit, changed by cells (n, concepts)."""

    @abstractmethod
    def production(self, path: Path, rng: np.random.Generator) -> pd.DataFrame:
        """Measure production inputs, `MOST` of them at most, drawn at random.

        Raises a UsageError if they cannot be read.
        """

    def measured_by(self) -> Mapping[str, Sequence[str]]:
        """Return the measures that show the concepts of this audit, by concept; those without any are left out."""
        return {name: self.shown[name] for name in self.task.concepts.names if name in self.shown}

    def estimate(self, path: Path, seed: int) -> tuple[list[Shares], int]:
        """Return how common the levels of concepts are in production, and the number of inputs.

        Raises a UsageError if no concept can be measured, or the inputs cannot be read or are too few.
        """
        shown, space = self.measured_by(), self.task.concepts
        if not shown:
            raise UsageError(f"none of the concepts leaves a trace that can be measured: {', '.join(space.names)}")
        rng = np.random.default_rng([seed, DRAWS])
        found = self.production(path, rng)
        if len(found) < FEWEST:
            why = f"; left out: {'; '.join(self.left_out[:_NAMED])}" if self.left_out else ""
            raise UsageError(f"{path}: found {len(found)} inputs, expected {FEWEST} or more{why}")
        table = self.task.items.table
        ids, cells = table["id"].to_numpy()[rng.integers(0, len(table), DRAWS)], spread_usage(space).sample(DRAWS, rng)
        pieces = [slice(start, start + BATCH) for start in range(0, DRAWS, BATCH)]
        own = pd.concat([self.own(ids[piece].tolist(), cells[piece]) for piece in pieces], ignore_index=True)
        columns = {name: [own.columns.get_loc(column) for column in named] for name, named in shown.items()}
        group = table["group"] if "group" in table and table["group"].nunique() >= _FEW_GROUPS else table["id"]
        groups = group.astype(str).set_axis(table["id"]).loc[ids].tolist()
        return estimate_usage(space, cells, groups, own.to_numpy(), found.to_numpy(), columns, seed), len(found)


class TextReader(Reader):
    """A file of texts: lines, or a column of a table."""

    fields: ClassVar[tuple[str, ...]]  # names under which the texts may be found

    def production(self, path: Path, rng: np.random.Generator) -> pd.DataFrame:
        named = self.task.context.config.get("data", {})
        own = [named[key] for key in ("question", "text") if isinstance(named, Mapping) and key in named]
        texts = read_texts(path, self.column, [*own, *self.fields], self.left_out)
        return self.measure(sample(texts, rng))

    @abstractmethod
    def measure(self, texts: Sequence[str]) -> pd.DataFrame:
        """Measure n production texts."""


class WordReader(TextReader):
    """Texts that people write: what is measured are their letters, words and marks."""

    shown = TEXTS

    def __init__(self, task: Any, column: str | None) -> None:
        super().__init__(task, column)
        table = task.items.table
        self._group = dict(zip(table["id"], table.get("group", table["id"]), strict=True))
        self._seen: dict[str, str | None] = {}  # the group whose texts have a word; None for several
        for item, text in zip(table["id"], table[self.of], strict=True):
            for word in {word.lower() for word in _WORD.findall(text)}:
                group = self._group[item]
                self._seen[word] = group if self._seen.get(word, group) == group else None

    of: ClassVar[str]  # the column of the items with their texts

    @abstractmethod
    def changed(self, ids: Sequence[str], cells: np.ndarray) -> list[str]:
        """Return n changed texts of the audit."""

    def own(self, ids: Sequence[str], cells: np.ndarray) -> pd.DataFrame:
        return of_texts(self.changed(ids, cells), [_Known(self._seen, self._group[item]) for item in ids])

    def measure(self, texts: Sequence[str]) -> pd.DataFrame:
        return of_texts(texts, [self._seen] * len(texts))


class _Known(Container[str]):
    """Words of the audit's texts in other groups than one."""

    def __init__(self, seen: Mapping[str, str | None], group: str) -> None:
        self._seen, self._group = seen, group

    def __contains__(self, word: object) -> bool:
        return self._seen.get(str(word), self._group) != self._group


# Files of production inputs


def sample(inputs: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """Draw `MOST` inputs at most, and keep their order."""
    chosen = np.sort(rng.permutation(len(inputs))[:MOST])
    return [inputs[i] for i in chosen]


def read_texts(path: Path, column: str | None, known: Sequence[str], left_out: list[str]) -> list[str]:
    """Read texts from lines of a .txt file, or from a column of a table."""
    if path.suffix == ".txt":
        return [line.strip() for line in _text_of(path).splitlines() if line.strip()]
    frame = read_table_file(path)
    names = list(frame)
    wanted = column or next((name for name in known if name in names), names[0] if len(names) == 1 else None)
    if wanted not in names:
        hint = did_you_mean(wanted, names) if wanted else ""
        asked = (
            f"has no column {wanted!r}{hint}" if wanted else "has several columns: name that of the texts by --column"
        )
        raise UsageError(f"{path.name} {asked}; found {', '.join(names)}")
    texts = [str(value).strip() if isinstance(value, str) else "" for value in frame[wanted]]
    left_out += [f"row {row + 1} has no text" for row, text in enumerate(texts) if not text]
    return [text for text in texts if text]


def read_table_file(path: Path) -> pd.DataFrame:
    """Read a .csv, .tsv, .parquet, .json or .jsonl file.

    Raises a UsageError if there is no such file, or it is not such a table.
    """
    tabbed = partial(pd.read_csv, sep="\t")
    readers = {".csv": pd.read_csv, ".tsv": tabbed, ".parquet": pd.read_parquet, ".json": _json, ".jsonl": _json}
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    if path.suffix not in readers:
        raise UsageError(f"{path.name}: expected a file that ends in .txt, {', '.join(readers)}")
    if path.suffix == ".parquet":
        parquet_metadata(path, "--from")
    try:
        return readers[path.suffix](path).rename(columns=str)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path.name} is not a table that can be read: {error}") from None


def _json(path: Path) -> pd.DataFrame:
    """Read a list, or one value a line: objects, or texts."""
    text = _text_of(path)
    rows = json.loads(text) if path.suffix == ".json" else list(_values(text))
    if not isinstance(rows, list) or not rows:
        raise ValueError("expected a list of objects or texts")
    if all(isinstance(row, str) for row in rows):
        return pd.DataFrame({"text": rows})
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected objects or texts, all of one kind")
    return pd.DataFrame(rows)


def _values(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from None


def _text_of(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path.name} is not UTF-8 text: {error.reason} at byte {error.start}") from None
