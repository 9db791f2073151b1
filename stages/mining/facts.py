"""Readable facts about the words and style of a text, replacements for its words, and sets of facts that fail.

Sets are searched level by level as in Apriori (Agrawal and Srikant 1994). A set can only be a candidate if each of its
subsets has enough failing probes, so whole branches are never counted. A set that already fails reliably is not
extended, so the sets found are minimal.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import combinations, pairwise

import numpy as np

from stages.concepts.texts import lexicon
from stages.concepts.texts.document import Token, parse
from stages.concepts.texts.lexicon import NEGATIONS, word_set

_SLOT = re.compile(r"\{\w+\}")  # in a template: it is filled by a level, not by a word of the text
_ASKS = word_set("who whose whom what which when where why how")
_CONDITIONS = word_set("if unless whether otherwise provided")
_CHOICES = word_set("or either")
_FIRST, _SECOND = word_set("i me my mine myself we us our ours"), word_set("you your yours yourself")
_MONTHS = "january february march april june july august september october november december"
_DAYS = "monday tuesday wednesday thursday friday saturday sunday"
_TIMES = word_set(f"{_MONTHS} {_DAYS} today tomorrow yesterday year years month months week weeks day days hour hours")
_RARE = 4  # minimum number of letters of a rare word, one that is not in the list of frequent words


def facts(text: str) -> frozenset[str]:
    """Return the facts of a text: its words without stop words ("says injured"), its attributes ("has a negation")."""
    tokens = parse(_SLOT.sub("it", text)).tokens
    said = {f"says {token.lower}" for token in tokens if token.is_word and not token.stop}
    return frozenset(said | {f"has {name}" for name in _attributes(tokens)})


def _attributes(tokens: Sequence[Token]) -> set[str]:
    words = {token.lower for token in tokens if token.tag}
    tags = {token.tag for token in tokens}
    marks = {token.text for token in tokens if not token.tag}
    inner = [b for a, b in pairwise(tokens) if a.sentence == b.sentence]  # not first in a sentence
    holds = {
        "a number": any(token.tag == "CD" or token.text[0].isdigit() for token in tokens if token.tag),
        "a negation": any(word in NEGATIONS or word.endswith(("n't", "n\u2019t")) for word in words),
        "a name": any(token.tag.startswith("NNP") and token.text[0].isupper() for token in inner),
        "an acronym": any(token.text.isupper() and len(token.text) > 1 for token in tokens if token.tag),
        "a rare word": any(_is_rare(token) for token in tokens),
        "a hyphenated word": any("-" in word for word in words),
        "a comparison": bool(tags & {"JJR", "RBR"}),
        "a superlative": bool(tags & {"JJS", "RBS"}),
        "a condition": bool(words & _CONDITIONS),
        "a choice": bool(words & _CHOICES),
        "a time": bool(words & _TIMES),
        "the first person": bool(words & _FIRST),
        "the second person": bool(words & _SECOND),
        "a quotation": bool(marks & set('"“”«»')),
        "brackets": bool(marks & set("([")),
        "an exclamation mark": "!" in marks,
        "several sentences": tokens[-1].sentence > 0 if tokens else False,
    }
    return {name for name, held in holds.items() if held} | {f'the question word "{w}"' for w in words & _ASKS}


def _is_rare(token: Token) -> bool:
    if not token.is_plain or len(token.text) < _RARE:
        return False
    return token.text not in _frequent() and (lexicon.lemma(token.text, token.tag) or "") not in _frequent()


@lru_cache(maxsize=1)
def _frequent() -> Mapping[str, int]:
    from textblob.en import spelling

    return spelling


def synonyms_by_word(text: str) -> dict[str, tuple[str, ...]]:
    """Return, by word of a text, its synonyms in the same inflection."""
    return _by_word(text, lambda token: lexicon.inflected_synonyms(token.text, token.tag))


def alternatives(text: str) -> dict[str, tuple[str, ...]]:
    """Return, by word of a text, its synonyms and different words of the same sort: "wolf" for "dog".

    They start with a vowel if it does, so that "a" or "an" still fits.
    """
    return _by_word(
        text, lambda token: (*lexicon.inflected_synonyms(token.text, token.tag), *_of_sort(token, vowel=True))
    )


def other_levels(level: str) -> list[str]:
    """Replace the last noun or adjective of a slot's level that has alternatives: "in the snow" -> "in the rain"."""
    for token in reversed(parse(level).tokens):
        if token.is_plain and (found := _of_sort(token)):
            return [replaced(level, {token.text: word}) for word in found]
    return []


def _by_word(text: str, options: Callable[[Token], Sequence[str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for token in parse(_SLOT.sub("it", text)).tokens:
        if token.is_plain and not token.stop and (forms := options(token)):
            found[token.text] = tuple(dict.fromkeys((*found.get(token.text, ()), *forms)))
    return found


def _of_sort(token: Token, *, vowel: bool = False) -> tuple[str, ...]:
    kinds = "A" if token.tag.startswith("JJ") else "N" if token.tag in ("NN", "NNS") else ""
    base = lexicon.lemma(token.text, token.tag) or token.text
    known = _alternatives().get((base, kinds), ()) or (_alternatives().get((token.text, kinds), ()))
    forms = [form for word in known if (form := lexicon.inflect(word, token.tag)) and form != token.text]
    return tuple(form for form in forms if not vowel or (form[0] in "aeiou") == (token.text[0] in "aeiou"))


@lru_cache(maxsize=1)
def _alternatives() -> Mapping[tuple[str, str], tuple[str, ...]]:
    lines = (files(__package__) / "data" / "alternatives.tsv").read_text("ascii").splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return {(word, kind): tuple(known.split()) for word, kind, known in rows}


def replaced(text: str, words: Mapping[str, str]) -> str:
    """Replace words of a text wherever they occur, case-sensitively; slots are kept."""
    if not words:
        return text
    pattern = r"(?<![\w{])(?:" + "|".join(map(re.escape, words)) + r")(?![\w}])"
    return re.sub(pattern, lambda found: words[found[0]], text)


RELIABLE = 0.9  # sets with at least this share of failing probes are not extended


@dataclass(frozen=True)
class Counted:
    """The counts of a set of facts.

    Args:
        facts: columns of its facts, in order.
        probes: number of probes in which all of them hold.
        failures: number of these that failed.
        p: one-sided p-value of failing more often than with any one fact removed (Fisher's exact test, the largest
            over the removed facts).
    """

    facts: tuple[int, ...]
    probes: int
    failures: int
    p: float

    @property
    def size(self) -> int:
        return len(self.facts)


def level_wise(
    holds: np.ndarray, failed: np.ndarray, keys: Sequence[str], *, support: int, largest: int, most: int
) -> tuple[list[Counted], int, bool]:
    """Count all sets of facts with enough failing probes, smaller ones first.

    Returns those sets, the number of sets counted, and whether some were cut.

    Args:
        holds: (n, facts) bool, which facts hold in which probe.
        failed: (n,) bool.
        keys: one for each fact; a set never contains two facts with the same key.
        support: minimum number of failing probes of a set.
        largest: maximum number of facts in a set.
        most: maximum number of sets to count; among sets of one size, those with the most significant subsets come
            first.
    """
    everything = Counted((), len(failed), int(failed.sum()), 1.0)
    known: dict[tuple[int, ...], Counted] = {(): everything}
    wanted: list[tuple[int, ...]] = [(j,) for j in range(holds.shape[1])]
    found: list[Counted] = []
    counted, cut = 0, False
    for _ in range(largest):
        cut |= len(wanted) > most - counted
        wanted = wanted[: most - counted]
        counted += len(wanted)
        level = list(_count(holds, failed, wanted, known, support))
        found += level
        known.update((one.facts, one) for one in level)
        grown = sorted((one for one in level if one.failures < RELIABLE * one.probes), key=lambda one: one.p)
        wanted = _joined([one.facts for one in grown], keys)
    return found, counted, cut


def _count(
    holds: np.ndarray,
    failed: np.ndarray,
    wanted: Sequence[tuple[int, ...]],
    known: dict[tuple[int, ...], Counted],
    support: int,
) -> Iterator[Counted]:
    """Yield those of the wanted sets that have enough failing probes."""
    from scipy.stats import hypergeom

    if not wanted:
        return
    columns = np.array(wanted)
    probes, failures = np.zeros(len(wanted), dtype=int), np.zeros(len(wanted), dtype=int)
    for start in range(0, len(wanted), 4096):  # in blocks, to save memory
        inside = np.all(holds[:, columns[start : start + 4096]], axis=2)
        probes[start : start + 4096] = inside.sum(axis=0)
        failures[start : start + 4096] = (inside & failed[:, None]).sum(axis=0)
    kept = np.flatnonzero(failures >= support)
    p = np.zeros(len(kept))
    for part in range(columns.shape[1]):
        wider = [known[tuple(np.delete(columns[k], part).tolist())] for k in kept]
        n, f = (np.array([getattr(one, name) for one in wider]) for name in ("probes", "failures"))
        p = np.maximum(p, hypergeom.sf(failures[kept] - 1, n, f, probes[kept])) if len(kept) else p
    for k, value in zip(kept.tolist(), p.tolist(), strict=True):
        yield Counted(wanted[k], int(probes[k]), int(failures[k]), value)


def _joined(sets: Sequence[tuple[int, ...]], keys: Sequence[str]) -> list[tuple[int, ...]]:
    """Return sets with one more fact, all of whose subsets with one fact less are in `sets`; keeps their order."""
    there, found = set(sets), dict[tuple[int, ...], None]()
    by_start: dict[tuple[int, ...], list[int]] = {}
    for one in sets:
        for last in by_start.setdefault(one[:-1], []):
            larger = (*one[:-1], *sorted((last, one[-1])))
            if keys[last] != keys[one[-1]] and all(part in there for part in combinations(larger, len(one))):
                found[larger] = None
        by_start[one[:-1]].append(one[-1])
    return list(found)
