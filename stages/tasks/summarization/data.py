"""Where articles come from, and which of them an audit can use. To add a source, add its key to DATA_LOADERS.

All sources lead to one list of articles with what was left out and why; `choose_items` draws the splits from it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from stages.concepts.texts import sentences
from stages.errors import UsageError
from stages.params import Strict
from stages.tasks.contract import SPLITS
from stages.tasks.sources import ItemCounts, local_file, package_file

RUN = 5  # words that two articles share in a row only by copying
NAMED = 5  # exclusions an error names
NO_TEXT = ("Cc", "Cs")  # Unicode categories: control characters, and halves of characters, which UTF-8 cannot hold
ENGLISH = 0.1  # share of stop words: English news has 20% or more in 99 of 100 articles, other languages less than 3%
# These of scikit-learn's English stop words are also words of other European languages.
FOREIGN = re.compile("am|an|as|be|de|do|for|had|he|her|here|in|me|no|on|or|over|per|re|so|ten|then|un|under|us|was|we")


@dataclass(frozen=True)
class Article:
    """One article as its source gives it; `pool` is the split it is meant for, or "" if the audit may draw it.

    `cut` tells that the text is not all there was, while the reference is of all.
    """

    id: str
    text: str
    reference: str = ""
    pool: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Unreadable:
    """A place of a source that holds no article, and why."""

    id: str
    reason: str


class DataSource(Strict):
    """Base of the data loaders: how articles are cut, and how many may be left out."""

    max_words: int = Field(
        100, ge=10, description="articles are cut to whole sentences of so many words in all; references are not cut"
    )
    min_words: int = Field(30, ge=2, description="shorter ones are left out: there is nothing to summarize")
    max_excluded: float = Field(0.2, ge=0, le=1, description="share of articles that may be left out; more is an error")

    @model_validator(mode="after")
    def _some_length_is_left(self) -> DataSource:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words}, above max_words, {self.max_words}")
        return self

    @abstractmethod
    def errors(self, inputs: Path) -> list[str]:
        """Say what is missing, without reading articles."""

    @abstractmethod
    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        """Yield all articles there are, in their order."""

    def load(self, inputs: Path) -> tuple[list[Article], list[dict[str, str]]]:
        """Articles the audit can use, trimmed, and what was left out as {file, reason}.

        Raises:
            UsageError: when there are none, or more were left out than `max_excluded` allows.
        """
        articles, skipped = self._select(self.read(inputs))
        total = len(articles) + len(skipped)
        if total == 0:
            raise UsageError("prepare.data: no article found")
        if len(skipped) > self.max_excluded * total or not articles:
            named = "; ".join(f"{s['file']} ({s['reason']})" for s in skipped[:NAMED])
            more = f"; and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
            raise UsageError(
                f"prepare.data: {len(skipped)} of {total} articles cannot be used,"
                f" max_excluded allows {self.max_excluded:.0%}: {named}{more}"
            )
        return articles, skipped

    def _select(self, found: Iterable[Article | Unreadable]) -> tuple[list[Article], list[dict[str, str]]]:
        articles: list[Article] = []
        skipped: list[dict[str, str]] = []
        seen: dict[bytes, str] = {}
        # Articles meant for one split come first, so that a copy is left out where there are more of them.
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
                articles.append(Article(entry.id, kept, reference, entry.pool, cut=len(kept) < len(text)))
        return articles, skipped

    def _objections(self, article: Article, text: str, kept: str) -> Iterator[str]:
        """Why an article cannot be used, gravest first; nothing if it can."""
        words, kept_words = len(text.split()), len(kept.split())
        if article.pool and article.pool not in SPLITS:
            yield f"its split is {article.pool!r}, expected one of {', '.join(SPLITS)}"
        if words == 0:
            yield "empty"
        for holder, content in (("", text), ("its reference ", " ".join(article.reference.split()))):
            if odd := next((c for c in content if unicodedata.category(c) in NO_TEXT or c == "\ufffd"), ""):
                yield f"{holder}holds U+{ord(odd):04X}, so it is no plain text"
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
    """The sentences from the front that have `max_words` words in all at most; "" if the first alone has more."""
    kept, words = [], 0
    for sentence in sentences(text):
        words += len(sentence.split())
        if words > max_words:
            break
        kept.append(sentence)
    return " ".join(kept)


def _copied(name: str, text: str, seen: dict[bytes, str]) -> str:
    """Say of which earlier article this one is a copy: more than half of its runs of words were in one before.

    Runs are kept as hashes of 8 bytes, because a large source has millions of them.
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


class PackageArticles(DataSource):
    """{package: NAME, file: FILE, test: FILE}: text files in an installed package, one article a line.

    Articles of `test` are the test split; without it, all splits are drawn from `file`.
    """

    package: str = Field(pattern=r"^\w+$")
    file: str
    test: str | None = None

    def errors(self, inputs: Path) -> list[str]:
        """See DataSource."""
        return _collect(lambda: self._files(inputs))

    def _files(self, inputs: Path) -> dict[str, Path]:
        named = {"": self.file, "test": self.test}
        return {
            pool: package_file(inputs, self.package, name, f"prepare.data.{pool or 'file'}")
            for pool, name in named.items()
            if name is not None
        }

    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        """See DataSource; files that are not UTF-8 are read as Latin-1, as older corpora are."""
        for pool, path in self._files(inputs).items():
            content = path.read_bytes()
            try:
                text = content.decode()
            except UnicodeDecodeError:
                text = content.decode("latin-1")
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    yield Article(_id(path.stem, number, pool), line, pool=pool)


class JsonLines(DataSource):
    """{jsonl: FILE, text: FIELD, summary: FIELD, split: FIELD}: one JSON object a line, under the audit's inputs.

    `summary` names the reference summary and `split` the split a line is meant for, where there are any.
    """

    jsonl: str
    text: str
    summary: str | None = None
    split: str | None = None

    def errors(self, inputs: Path) -> list[str]:
        """See DataSource."""
        return _collect(lambda: self._file(inputs))

    def _file(self, inputs: Path) -> Path:
        path = local_file(inputs, self.jsonl, "prepare.data.jsonl")
        if not path.is_file():
            raise UsageError(f"prepare.data.jsonl: {path} is a folder, expected a file with one JSON object a line")
        return path

    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        """See DataSource."""
        path = self._file(inputs)
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                name = _id(path.stem, number)
                try:
                    row = json.loads(line) if line.strip() else {}
                except ValueError as error:  # also bytes that are not UTF-8
                    yield Unreadable(name, f"line {number} is not JSON: {error}")
                    continue
                if line.strip():
                    yield _article(name, row, self.text, self.summary, self.split, f"line {number}")


class HubDataset(DataSource):
    """{datasets: ID_OR_FOLDER, split: SPLIT, text: FIELD, summary: FIELD}: what the `datasets` library reads.

    A folder under the audit's inputs, or an ID of the Hugging Face hub. `split` and `test` take the library's slices
    ("train[:5000]"); without `test` all splits are drawn from `split`. No code is run.

    All rows are read and compared before some are drawn, so name a slice of a large split: 100,000 articles take a
    minute or two, and 1 GB of memory beside their texts.
    """

    datasets: str
    split: str
    text: str
    summary: str | None = None
    test: str | None = None
    name: str | None = Field(None, description="the configuration, where a data set has several")
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")

    def errors(self, inputs: Path) -> list[str]:
        """See DataSource."""
        path = inputs / self.datasets
        local = path.exists()
        if path.is_file():
            return [
                f"prepare.data.datasets: {path} is a file, expected a folder that holds such files, or an ID of the hub"
            ]
        if local and self.revision is not None:
            return [f"prepare.data.revision: {self.datasets} is a folder, only data sets of the hub have one"]
        if local or self.datasets.count("/") > 1 or self.datasets.startswith("."):
            return _collect(lambda: local_file(inputs, self.datasets, "prepare.data.datasets"))
        return []

    def read(self, inputs: Path) -> Iterator[Article | Unreadable]:
        """See DataSource."""
        for pool, split in (("", self.split), ("test", self.test)):
            if split is not None:
                stem = split.split("[")[0]
                for number, row in enumerate(self._rows(inputs, split)):
                    name = _id(stem, number, pool)
                    yield _article(name, row, self.text, self.summary, None, f"row {number}", pool)

    def _rows(self, inputs: Path, split: str) -> Iterable[dict[str, Any]]:
        try:
            import datasets
        except ImportError:
            raise UsageError("prepare.data.datasets: needs the library datasets: pip install 'faded[text]'") from None
        datasets.disable_progress_bars()
        local = (inputs / self.datasets).is_dir()
        source = str(inputs / self.datasets) if local else self.datasets
        try:
            rows = datasets.load_dataset(source, self.name, split=split, revision=self.revision)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            offline = "" if local else "; where it is not in the cache, HF_HUB_OFFLINE=0 lets prepare fetch it"
            raise UsageError(
                f"prepare.data.datasets: {self.datasets}, split {split}, cannot be read: {error}{offline}"
            ) from None
        return cast(Iterable[dict[str, Any]], rows)


DATA_LOADERS: Mapping[str, type[DataSource]] = {
    "package": PackageArticles,
    "jsonl": JsonLines,
    "datasets": HubDataset,
}


def _id(stem: str, number: int, pool: str = "") -> str:
    """Id of an article: two pools may come from one split or from files of one name, so theirs are told apart."""
    return f"{pool}-{stem}-{number}" if pool else f"{stem}-{number}"


def _article(
    name: str, row: Any, text: str, summary: str | None, split: str | None, where: str, pool: str = ""
) -> Article | Unreadable:
    """One row as an article; fields that are named but missing make it unreadable."""
    if not isinstance(row, dict):
        return Unreadable(name, f"{where} holds {type(row).__name__}, expected an object with the field {text!r}")
    fields = [field for field in (text, summary, split) if field is not None]
    for field in fields:
        if not isinstance(row.get(field), str):
            found = f"it has {type(row[field]).__name__}" if field in row else f"found {', '.join(row) or 'none'}"
            return Unreadable(name, f"{where} has no text in the field {field!r}, {found}")
    return Article(name, row[text], row[summary] if summary else "", row[split] if split else pool)


def choose_items(articles: list[Article], counts: ItemCounts, seed: int) -> pd.DataFrame:
    """Draw the items of each split, in an order that the seed decides: from its own pool if it has one.

    Returns:
        Columns id, split, label (the reference, else the lead sentence), article, reference ("" for none) and cut.

    Raises:
        UsageError: when there are too few articles.
    """
    rng = np.random.default_rng([seed, 1])
    order = [articles[i] for i in rng.permutation(len(articles))]
    free = [article for article in order if not article.pool]
    rows = []
    for split in SPLITS:
        wanted = getattr(counts, split)
        own = [article for article in order if article.pool == split]
        pool = own or free
        if len(pool) < wanted:
            raise UsageError(f"prepare.items.{split}: {wanted} items wanted, the data has {len(pool)} left")
        for a in pool[:wanted]:
            rows.append((a.id, split, a.reference or sentences(a.text)[0], a.text, a.reference, a.cut))
        if not own:
            free = free[wanted:]
    return pd.DataFrame(rows, columns=["id", "split", "label", "article", "reference", "cut"])


def _collect(check: Callable[[], Any]) -> list[str]:
    try:
        check()
    except UsageError as error:
        return [str(error)]
    return []
