"""Articles that an audit can use, and their loaders. To add a source, add its key to DATA_LOADERS.

All sources produce one list of articles, and a list of what was left out and why. `choose_items` draws the splits from
the articles.
"""

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from stages.concepts.texts import sentences
from stages.core.errors import UsageError
from stages.tasks.attributes import detail_columns, details
from stages.tasks.contract import SPLITS
from stages.tasks.rows import HubDataSource, JsonLinesSource, count_lines
from stages.tasks.sources import ItemCounts, Source, check_excluded, collect, package_file

RUN = 5  # words in a row that two articles share only by copying
NO_TEXT = ("Cc", "Cs")  # Unicode categories: control characters, and surrogates, which UTF-8 cannot encode
ENGLISH = 0.1  # share of stop words: English news has 20% or more in 99 of 100 articles, other languages less than 3%
# These of scikit-learn's English stop words are also words of other European languages.
FOREIGN = re.compile("am|an|as|be|de|do|for|had|he|her|here|in|me|no|on|or|over|per|re|so|ten|then|un|under|us|was|we")


@dataclass(frozen=True)
class Article:
    """One article as its source gives it; `pool` is the split it is meant for, or "" if the audit may draw it.

    `cut` is true if the text was shortened, while the reference is about all of it. `details` are the source's other
    fields, by name.
    """

    id: str
    text: str
    reference: str = ""
    pool: str = ""
    cut: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unreadable:
    """An entry of a source that contains no article, and why."""

    id: str
    reason: str


class ArticleSource(Source):
    """Base of the data loaders: how articles are cut, and how many may be left out."""

    max_words: int = Field(
        100,
        ge=10,
        le=1_000_000,
        description="articles are cut to whole sentences of so many words in all; references are not cut",
    )
    min_words: int = Field(
        30, ge=2, le=1_000_000, description="shorter ones are left out: there is nothing to summarize"
    )
    max_excluded: float = Field(0.2, ge=0, le=1, description="share of articles that may be left out; more is an error")

    @model_validator(mode="after")
    def _some_length_is_left(self) -> Self:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words}, above max_words, {self.max_words}")
        return self

    @abstractmethod
    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        """Yield all articles in their order."""

    def load(self, inputs: Path) -> tuple[list[Article], list[dict[str, str]]]:
        """Return the usable articles, trimmed, and what was left out as {file, reason}.

        Raises a UsageError when there are none, or more were left out than `max_excluded` allows.
        """
        articles, skipped = self._select(self.read(inputs))
        check_excluded("articles", len(articles), skipped, self.max_excluded)
        return articles, skipped

    def _select(self, found: Iterable[Article | Unreadable]) -> tuple[list[Article], list[dict[str, str]]]:
        articles: list[Article] = []
        skipped: list[dict[str, str]] = []
        seen: dict[bytes, str] = {}
        # Articles meant for one split come first, so that a copy is left out of the rest, which has more articles.
        for entry in sorted(found, key=lambda e: not (isinstance(e, Article) and e.pool)):
            if isinstance(entry, Unreadable):
                skipped.append({"file": entry.id, "reason": entry.reason})
                continue
            text = " ".join(entry.text.split())
            kept = trim(text, self.max_words)
            reason = next(self._objections(entry, text, kept), "") or _copied(entry.id, kept, seen)
            if reason:
                skipped.append({"file": entry.id, "reason": reason})
            else:
                reference = " ".join(entry.reference.split())
                articles.append(
                    Article(entry.id, kept, reference, entry.pool, cut=len(kept) < len(text), details=entry.details)
                )
        return articles, skipped

    def _objections(self, article: Article, text: str, kept: str) -> Iterator[str]:
        """Yield the reasons why an article cannot be used, gravest first."""
        words, kept_words = len(text.split()), len(kept.split())
        if article.pool and article.pool not in SPLITS:
            yield f"its split is {article.pool!r}, expected one of {', '.join(SPLITS)}"
        if words == 0:
            yield "empty"
        for holder, content in (("", text), ("its reference ", " ".join(article.reference.split()))):
            if odd := next((c for c in content if unicodedata.category(c) in NO_TEXT or c == "\ufffd"), ""):
                yield f"{holder}holds U+{ord(odd):04X}, so it is not plain text"
        if words < self.min_words:
            yield f"{words} word{'s' * (words > 1)}, min_words is {self.min_words}"
        if not kept:
            yield f"its first sentence has more than {self.max_words} words"
        if kept_words < self.min_words:
            yield f"the whole sentences within {self.max_words} words have {kept_words}, min_words is {self.min_words}"
        if (share := english(kept)) < ENGLISH:
            yield f"not English: {share:.0%} of its words are English stop words, expected {ENGLISH:.0%} or more"


def english(text: str) -> float:
    """Share of words that are stop words of English and of no other large European language.

    >>> english("The minister said that it is not up to them.") > 0.5
    True
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = re.findall(r"[^\W\d_]+", text.lower())
    typical = [len(word) > 1 and word in ENGLISH_STOP_WORDS and not FOREIGN.fullmatch(word) for word in words]
    return float(np.mean(typical)) if typical else 0.0


def trim(text: str, max_words: int) -> str:
    """Return the first sentences, with at most `max_words` words in all; "" if the first alone has more."""
    kept, words = [], 0
    for sentence in sentences(text):
        words += len(sentence.split())
        if words > max_words:
            break
        kept.append(sentence)
    return " ".join(kept)


def _copied(name: str, text: str, seen: dict[bytes, str]) -> str:
    """Return "repeats ID" if more than half of the article's runs of words occurred in earlier articles, otherwise "".

    Runs are stored as hashes of 8 bytes, because a large source has millions of them.
    """
    words = re.findall(r"\w+", text.lower())
    joined = [" ".join(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))]
    runs = [blake2b(run.encode(), digest_size=8).digest() for run in joined]
    owners = [seen[run] for run in runs if run in seen]
    if len(owners) > len(runs) / 2:
        return f"repeats {max(set(owners), key=owners.count)}"
    for run in runs:
        seen.setdefault(run, name)
    return ""


# Loaders


class PackageArticles(ArticleSource):
    """{package: NAME, file: FILE, test: FILE}: text files in an installed package, one article per line.

    Articles of `test` are the test split; without it, all splits are drawn from `file`.
    """

    package: str = Field(pattern=r"^\w+$")
    file: str
    test: str | None = None

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._files(inputs))

    def _files(self, inputs: Path) -> dict[str, Path]:
        named = {"": self.file, "test": self.test}
        return {
            pool: package_file(inputs, self.package, name, f"prepare.data.{pool or 'file'}")
            for pool, name in named.items()
            if name is not None
        }

    def available(self, inputs: Path, enough: int) -> Mapping[str, int]:
        return {pool: count_lines(path, enough) for pool, path in self._files(inputs).items()}

    def origin(self, inputs: Path) -> str:
        return f"{self.file} of the package {self.package}"

    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        """See ArticleSource; files that are not UTF-8 are read as Latin-1, as older corpora are."""
        for pool, path in self._files(inputs).items():
            content = path.read_bytes()
            try:
                text = content.decode()
            except UnicodeDecodeError:
                text = content.decode("latin-1")
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    yield Article(_id(path.stem, number, pool), line, pool=pool)


class JsonLines(JsonLinesSource, ArticleSource):
    """{jsonl: FILE, text: FIELD, summary: FIELD, split: FIELD}: one JSON object per line, under the audit's inputs.

    `summary` names the field of the reference summary, and `split` that of the split a line is meant for, if any.
    """

    text: str
    summary: str | None = None
    split: str | None = None

    def named(self) -> Mapping[str, str | None]:
        return {"text": self.text, "summary": self.summary, "split": self.split}

    def available(self, inputs: Path, enough: int) -> Mapping[str, int] | None:
        """See Source; None with a split field, as counting then needs all lines to be read."""
        return super().available(inputs, enough) if self.split is None else None

    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        for stem, number, row in self.numbered(inputs):
            name = _id(stem, number)
            if isinstance(row, ValueError):
                yield Unreadable(name, f"line {number} is not JSON: {row}")
            else:
                yield _article(name, row, self.text, self.summary, self.split, f"line {number}")


class HubDataset(HubDataSource, ArticleSource):
    """{datasets: ID_OR_FOLDER, split: SPLIT, text: FIELD, summary: FIELD}: anything that the `datasets` library reads.

    A folder under the audit's inputs, or an ID of the Hugging Face hub. `split` and `test` take the library's slices
    ("train[:5000]"); without `test`, all splits are drawn from `split`. No code is run.

    All rows are read and compared before items are drawn, so name a slice of a large split: 100,000 articles take a
    minute or two, and 1 GB of memory in addition to their texts.
    """

    extra = "text"

    split: str
    text: str
    summary: str | None = None
    test: str | None = None

    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        named = {"text": self.text, "summary": self.summary}
        for pool, split in (("", self.split), ("test", self.test)):
            if split is not None:
                for stem, number, row in self.numbered(inputs, split, named):
                    yield _article(_id(stem, number, pool), row, self.text, self.summary, None, f"row {number}", pool)


DATA_LOADERS: Mapping[str, type[ArticleSource]] = {
    "package": PackageArticles,
    "jsonl": JsonLines,
    "datasets": HubDataset,
}


def _id(stem: str, number: int, pool: str = "") -> str:
    """Id of an article with its pool, as two pools can come from one split or from files of the same name."""
    return f"{pool}-{stem}-{number}" if pool else f"{stem}-{number}"


def _article(
    name: str, row: Any, text: str, summary: str | None, split: str | None, where: str, pool: str = ""
) -> Article | Unreadable:
    """Convert a row to an article; it is unreadable if a named field is missing."""
    if not isinstance(row, dict):
        return Unreadable(name, f"{where} holds {type(row).__name__}, expected an object with the field {text!r}")
    columns = [column for column in (text, summary, split) if column is not None]
    for column in columns:
        if not isinstance(row.get(column), str):
            found = f"it has {type(row[column]).__name__}" if column in row else f"found {', '.join(row) or 'none'}"
            return Unreadable(name, f"{where} has no text in the field {column!r}, {found}")
    reference, pool = row[summary] if summary else "", row[split] if split else pool
    return Article(name, row[text], reference, pool, details=details(row, columns))


# Items


def choose_items(articles: list[Article], counts: ItemCounts, seed: int) -> pd.DataFrame:
    """Draw the items of each split in a random order given by the seed: from its own pool if it has one.

    Raises a UsageError when there are too few articles.

    Returns:
        Columns id, split, label (the reference, else the lead sentence), article, reference ("" for none), cut, and
        those of details.
    """
    rng = np.random.default_rng([seed, 1])
    order = [articles[i] for i in rng.permutation(len(articles))]
    free = [article for article in order if not article.pool]
    rows, about = [], []
    for split in SPLITS:
        wanted = getattr(counts, split)
        own = [article for article in order if article.pool == split]
        pool = own or free
        if len(pool) < wanted:
            raise UsageError(f"prepare.items.{split}: {wanted} items wanted, the data has {len(pool)} left")
        for a in pool[:wanted]:
            rows.append((a.id, split, a.reference or sentences(a.text)[0], a.text, a.reference, a.cut))
            about.append(a.details)
        if not own:
            free = free[wanted:]
    items = pd.DataFrame(rows, columns=["id", "split", "label", "article", "reference", "cut"])
    return items.assign(**detail_columns(about))
