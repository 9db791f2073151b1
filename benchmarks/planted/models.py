"""Forty models with a planted failure and twenty without: of digits, texts, rows and questions.

A model is fitted (or written) for its task, and fails by itself where changes are strong, as models do. On top of that
it answers wrongly inside the plant, at random with a known probability, so that place and rate are known exactly. It
knows the plant by the changed item itself, which nothing but the model sees.
"""

import string
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

ITEMS = 300
CHANGES = (0.3, 0.4, 0.2, 0.1)  # shares of use with none, one, two and three concepts changed
DIGITS = Path(__file__).parents[2] / "data" / "mnist" / "inputs" / "mnist.parquet"
KINDS = ("digits", "texts", "rows", "questions")
# Of each kind of model: how many concepts a plant is about, from which level on, and whether it has one label only.
SHAPES = (
    *((0, "", True), (1, "half", False), (1, "top", False), (1, "half", True), (1, "top", True)),
    *((2, "half", False), (2, "top", False), (2, "half", True), (3, "half", False), (1, "category", True)),
)
NULLS = 5  # models of each kind without a plant

Answer = Callable[[Sequence[Any]], np.ndarray]


@dataclass(frozen=True)
class Change:
    """A concept: `apply(item, level)` at each of its levels; the first changes nothing."""

    name: str
    levels: Sequence[Any]
    apply: Callable[[Any, Any], Any]

    @property
    def ordered(self) -> bool:
        return not isinstance(self.levels[-1], str)


@dataclass(frozen=True)
class Plant:
    """Where a model fails, and how often: levels by concept and one value of an attribute, {} for everything."""

    levels: Mapping[str, Sequence[Any]]
    label: str | None
    rate: float

    def __str__(self) -> str:
        parts = [f"label is {self.label}"] if self.label is not None else []
        parts += [f"{name} is {' or '.join(map(str, levels))}" for name, levels in self.levels.items()]
        return f"{' and '.join(parts)}: {self.rate:.0%}"


@dataclass
class Model:
    """A model under test.

    Args:
        kind: of its items.
        items: `ITEMS` pictures (28, 28) uint8, texts or dicts.
        expected: the right answer to each.
        base: answers of the model without its plant.
        changes: the concepts.
        plant: its plant, if any.
        seed: of the plant's chance.
    """

    kind: str
    items: Sequence[Any]
    expected: np.ndarray
    base: Answer
    changes: Sequence[Change]
    plant: Plant | None
    seed: int
    asked: set[Any] = field(default_factory=set)

    @cached_property
    def cells(self) -> np.ndarray:
        """All cells that occur in use, the unchanged one first: (cells, concepts) numbers of levels."""
        levels = [range(len(change.levels)) for change in self.changes]
        some = [cell for cell in product(*levels) if np.count_nonzero(cell) < len(CHANGES)]
        return np.array(sorted(some, key=np.count_nonzero))

    @cached_property
    def use(self) -> np.ndarray:
        """Share of use of each cell (cells,): how many concepts change as in `CHANGES`, which and how far evenly."""
        sizes = np.array([len(change.levels) - 1 for change in self.changes])
        subsets = [len([*combinations(sizes, k)]) for k in range(len(CHANGES))]
        of = [CHANGES[np.count_nonzero(c)] / subsets[np.count_nonzero(c)] / sizes[c > 0].prod() for c in self.cells]
        return np.array(of)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every pair of item and cell: label, columns of rows, and levels of concepts (numbers if they are ordered)."""
        items, cells = (axis.ravel() for axis in np.indices((len(self.items), len(self.cells))))
        columns: dict[str, Any] = {"label": self.expected.astype(str)[items]}
        if self.kind == "rows":  # numbers as quarters
            for name, values in pd.DataFrame(self.items).items():
                numbers = pd.api.types.is_numeric_dtype(values)
                columns[str(name)] = (pd.qcut(values, 4, labels=False) if numbers else values).to_numpy()[items]
        for number, change in enumerate(self.changes):
            levels = self.cells[cells, number]
            columns[change.name] = levels if change.ordered else np.array(change.levels)[levels]
        return pd.DataFrame(columns)

    @cached_property
    def share(self) -> np.ndarray:
        """Share of use of each pair (pairs,)."""
        return np.tile(self.use, len(self.items)) / len(self.items)

    @cached_property
    def planted(self) -> np.ndarray:
        """Which pairs are in the plant (pairs,)."""
        inside = np.full(len(self.pairs), self.plant is not None)
        if self.plant is not None:
            if self.plant.label is not None:
                inside &= (self.pairs["label"] == self.plant.label).to_numpy()
            for change in self.changes:
                if change.name in self.plant.levels:
                    known = [i if change.ordered else level for i, level in enumerate(change.levels)]
                    chosen = [known[list(change.levels).index(level)] for level in self.plant.levels[change.name]]
                    inside &= self.pairs[change.name].isin(chosen).to_numpy()
        return inside

    @cached_property
    def _keys(self) -> list[Any]:
        return [_key(item) for item in self._all_changed()]

    def _all_changed(self) -> list[Any]:
        return [self.changed(item, cell) for item in self.items for cell in self.cells]

    @cached_property
    def _answers(self) -> dict[Any, Any]:
        """The answer to every changed item; of equal ones the least changed decides whether it is in the plant."""
        answers = self.base(self._all_changed())
        rng = np.random.default_rng(self.seed)
        fails = self.planted & (rng.random(len(answers)) < (self.plant.rate if self.plant else 0))
        labels = np.unique(self.expected)
        known: dict[Any, Any] = {}
        for row, (key, answer) in enumerate(zip(self._keys, answers, strict=True)):
            others = labels[labels != self.expected[row // len(self.cells)]]
            known.setdefault(key, others[row % len(others)] if fails[row] else answer)
        return known

    @cached_property
    def failed(self) -> np.ndarray:
        """Whether the model fails on each pair (pairs,): the truth."""
        answers = self._answers
        return np.array([answers[key] for key in self._keys]) != np.repeat(self.expected, len(self.cells))

    def changed(self, item: Any, cell: np.ndarray) -> Any:
        for change, level in zip(self.changes, cell.tolist(), strict=True):
            if level:
                item = change.apply(item, change.levels[level])
        return item

    def __call__(self, batch: Sequence[Any]) -> np.ndarray:
        keys = [_key(item) for item in batch]
        self.asked.update(keys)
        # What never occurs in use, such as four changes at once, is answered without the plant.
        rare = [item for item, key in zip(batch, keys, strict=True) if key not in self._answers]
        others = iter(self.base(rare) if rare else ())
        return np.array([self._answers[key] if key in self._answers else next(others) for key in keys], dtype=object)

    def rate(self, mask: np.ndarray) -> float:
        """The failure rate in use of a set of pairs (pairs,) bool; nan if there are none."""
        return float(np.average(self.failed[mask], weights=self.share[mask])) if mask.any() else float("nan")


def _key(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        return item.tobytes()
    return item if isinstance(item, str) else tuple(item.values())


def models(seed: int) -> list[Callable[[], Model]]:
    """Makers of the 60 models of a seed: ten with a plant and five without of each kind."""
    made: list[Callable[[], Model]] = []
    for number, kind in enumerate(KINDS):
        for case in range(len(SHAPES) + NULLS):
            own = 1000 * seed + 100 * number + case
            made.append(partial(make_model, kind, SHAPES[case] if case < len(SHAPES) else None, own))
    return made


def make_model(kind: str, shape: tuple[int, str, bool] | None, seed: int) -> Model:
    """Make a model, with a plant of a shape in a random place."""
    rng = np.random.default_rng(seed)
    make = {"digits": _digits, "texts": _texts, "rows": _rows, "questions": _questions}[kind]
    items, expected, base, changes = make(rng)
    plant = None
    if shape is not None:
        concepts, levels, of_label = shape
        fit = [change for change in changes if change.ordered != (levels == "category")]
        chosen = [fit[i] for i in rng.permutation(len(fit))[:concepts]]
        where = {one.name: _levels(one, levels, rng) for one in chosen}
        label = str(rng.choice(np.unique(expected))) if of_label else None
        plant = Plant(where, label, float(rng.uniform(0.6, 0.95)))
    return Model(kind, items, expected, base, changes, plant, seed)


def _levels(change: Change, which: str, rng: np.random.Generator) -> Sequence[Any]:
    changed = list(change.levels[1:])
    if which == "category":
        return [changed[int(rng.integers(len(changed)))]]
    return changed[-1:] if which == "top" else changed[len(changed) // 2 :]


Made = tuple[Sequence[Any], np.ndarray, Answer, Sequence[Change]]


def _own(item: Any, what: str) -> np.random.Generator:
    """Random numbers of an item and a change, the same whenever it is made."""
    data = item.tobytes() if isinstance(item, np.ndarray) else item.encode()
    return np.random.default_rng([zlib.crc32(data), zlib.crc32(what.encode())])


# Digits


def _digits(rng: np.random.Generator) -> Made:
    """A network for pictures of digits, which has seen each change in one picture of ten."""
    from sklearn.neural_network import MLPClassifier

    table = pd.read_parquet(DIGITS)
    pictures = np.stack([np.frombuffer(image, np.uint8).reshape(28, 28) for image in table["image"]])
    labels, train = table["label"].astype(int).to_numpy(), (table["split"] == "train").to_numpy()
    changes = [
        Change("turn", (0, 10, 20, 30, 40), _turned),
        Change("shift", (0, 1, 2, 3), lambda x, pixels: np.roll(x, pixels, axis=1)),
        Change("grain", (0, 0.1, 0.2, 0.3), _noisy),
        Change("dim", (0, 0.3, 0.6), lambda x, share: (x * (1 - share)).astype(np.uint8)),
        Change("patch", ("none", "corner", "edge"), _patched),
    ]
    seen = rng.permutation(np.flatnonzero(train))[:3000]
    learnt = []
    for row in np.tile(seen, 2):
        picture = pictures[row]
        for change in changes:
            if rng.random() < 0.1:
                picture = change.apply(picture, change.levels[int(rng.integers(1, len(change.levels)))])
        learnt.append(picture)
    network = MLPClassifier((128,), max_iter=12, random_state=0)
    network.fit(_flat(learnt), np.tile(labels[seen], 2))
    shown = rng.permutation(np.flatnonzero(~train))[:ITEMS]

    def answer(batch: Sequence[Any]) -> np.ndarray:
        return network.predict(_flat(batch))

    return pictures[shown], labels[shown], answer, changes


def _flat(pictures: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(pictures).reshape(len(pictures), -1).astype(np.float32) / 255


def _turned(picture: np.ndarray, degrees: float) -> np.ndarray:
    return ndimage.rotate(picture, degrees, reshape=False, order=1)


def _noisy(picture: np.ndarray, deviation: float) -> np.ndarray:
    noise = _own(picture, "grain").normal(0, 255 * deviation, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _patched(picture: np.ndarray, where: str) -> np.ndarray:
    picture = picture.copy()
    picture[:5, :5] = np.where(where == "corner", 200, picture[:5, :5])
    picture[12:16, :3] = np.where(where == "edge", 200, picture[12:16, :3])
    return picture


# Texts

_TOPICS = {
    "sport": ("match", "team", "goal", "coach", "stadium", "league"),
    "food": ("soup", "bread", "recipe", "kitchen", "dinner", "cheese"),
    "travel": ("train", "hotel", "airport", "ticket", "beach", "luggage"),
    "pets": ("kitten", "puppy", "leash", "parrot", "hamster", "vet"),
    "money": ("bank", "loan", "budget", "salary", "tax", "invoice"),
}
_FRAMES = (
    "We were talking about the {0} and the {1} for an hour, {2}.",
    "The {0} was better than the {1}, as everybody said {2}.",
    "My sister asked for a {0} because of the {1}, {2}.",
    "Nobody in the town had seen such a {0} with a {1}, {2}.",
)
_TIMES = tuple(
    f"{day} {part}" for day in ("on Monday", "on Friday", "last week") for part in ("early", "late", "at noon")
)


def _texts(rng: np.random.Generator) -> Made:
    """A linear classifier of topics."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    possible = [
        (frame.format(first, second, time), topic)
        for topic, words in _TOPICS.items()
        for first, second in product(words, words)
        for frame, time in product(_FRAMES, _TIMES)
        if first != second
    ]
    drawn = [possible[i] for i in rng.permutation(len(possible))[: 600 + ITEMS]]
    texts, topics = [text for text, _ in drawn], np.array([topic for _, topic in drawn], dtype=object)
    fitted = make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)), LogisticRegression(C=30))
    fitted.fit(texts[:600], topics[:600])

    def answer(batch: Sequence[Any]) -> np.ndarray:
        return fitted.predict(batch)

    return texts[600:], topics[600:], answer, _text_changes()


def _text_changes() -> list[Change]:
    return [
        Change("wrong_letters", (0, 0.1, 0.2, 0.3), partial(_letters, "wrong", lambda letter, new: new)),
        Change("missing_letters", (0, 0.1, 0.2), partial(_letters, "missing", lambda letter, new: "")),
        Change("doubled_letters", (0, 0.2, 0.4), partial(_letters, "doubled", lambda letter, new: 2 * letter)),
        Change(
            "capitals",
            ("as it is", "all", "first letters"),
            lambda x, which: x.upper() if which == "all" else x.title(),
        ),
        Change("closing", ("", "Thanks!", "Cheers.", "Bye"), lambda x, words: f"{x} {words}"),
    ]


def _letters(what: str, change: Callable[[str, str], str], text: str, share: float) -> str:
    rng = _own(text, what)
    hit, new = rng.random(len(text)) < share, rng.integers(26, size=len(text))
    made = [
        change(letter, string.ascii_lowercase[n]) if h and letter.isalpha() else letter
        for letter, h, n in zip(text, hit, new, strict=True)
    ]
    return "".join(made)


# Rows


def _rows(rng: np.random.Generator) -> Made:
    """A forest that tells which of three tariffs a customer has."""
    from sklearn.ensemble import RandomForestClassifier

    n = 2000 + 4 * ITEMS
    numbers = rng.uniform(0, 1, (n, 4))
    channel = rng.integers(3, size=n)
    score = numbers[:, 0] + 0.7 * numbers[:, 1] - 0.5 * numbers[:, 2] + 0.2 * channel
    edges = np.quantile(score, [1 / 3, 2 / 3])
    tariffs = np.array(["small", "medium", "large"], dtype=object)[np.digitize(score, edges)]
    clear = np.abs(score[:, None] - edges).min(axis=1) > 0.08  # nobody could tell the others
    fitted = RandomForestClassifier(60, min_samples_leaf=3, random_state=0)
    fitted.fit(np.column_stack([numbers, channel])[:2000], tariffs[:2000])
    names, ways = ("income", "usage", "age", "tenure"), ("branch", "web", "phone")
    chosen = np.flatnonzero(clear & (np.arange(n) >= 2000))[:ITEMS]
    items = [
        {
            **{name: round(float(x), 4) for name, x in zip(names, numbers[row], strict=True)},
            "channel": ways[channel[row]],
        }
        for row in chosen
    ]

    def answer(batch: Sequence[Any]) -> np.ndarray:
        return fitted.predict([[*(row[name] for name in names), ways.index(row["channel"])] for row in batch])

    def lower(name: str) -> Change:
        return Change(
            f"{name}_missed", (0, 0.1, 0.2, 0.3), lambda row, share: row | {name: round(row[name] * (1 - share), 6)}
        )

    through = Change("through", ("as it is", *ways), lambda row, way: row | {"channel": way})
    return items, tariffs[chosen], answer, [*map(lower, names), through]


# Questions

_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn")
_THINGS = ("apples", "books", "coins", "stamps", "marbles", "shells")


def _questions(rng: np.random.Generator) -> Made:
    """A program that answers who has more, by what it can still read."""
    items: list[str] = []
    expected: list[str] = []
    while len(items) < ITEMS:
        first, second = rng.choice(_NAMES, 2, replace=False)
        a, b = rng.choice(np.arange(2, 60), 2, replace=False)
        text = f"{first} has {a} {rng.choice(_THINGS)} and {second} has {b}. Who has more?"
        if text not in items:
            items.append(text)
            expected.append(str(first if a > b else second))
    return items, np.array(expected, dtype=object), _who, _text_changes()


def _who(batch: Sequence[Any]) -> np.ndarray:
    answers = []
    for text in batch:
        words = text.replace(".", " ").split()
        known = [name for word in words for name in _NAMES if word.lower() == name.lower()]
        numbers = [int(word) for word in words if word.isdigit()]
        if len(known) == 2 == len(numbers):
            answers.append(known[int(numbers[1] > numbers[0])])
        else:
            answers.append(known[0] if known else _NAMES[0])
    return np.array(answers, dtype=object)
