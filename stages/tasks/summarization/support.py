"""Claims of a summary that its article does not support, found by rules on words, or by a model of entailment.

A summary claims that its names, numbers and other content words are related to the article, that neighbouring ones are
related to each other, in this order, and that what it affirms is true. Each claim is looked up in the original article.
Neither depends on the model under test: the weight of an unsupported claim, and the threshold from which a summary
counts as wrong, were chosen on labelled pairs (benchmarks/summary_errors.py).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import torch

from stages.concepts.texts.document import Token, by_sentence, parse, sentences
from stages.concepts.texts.lexicon import BE, DO, HAVE, MODALS, NEGATIONS, lemma, word_set
from stages.core.errors import UsageError
from stages.tasks.language.encoders import TransformersEncoder, read_encoder

CHANCE: Mapping[str, float] = {
    "number": 0.9,  # it is not in the article
    "name": 0.8,
    "word": 0.1,
    "relation of a name": 0.3,  # no sentence of the article has the two in this order
    "relation": 0.1,
    "negation": 0.9,  # what is affirmed is only denied there, or vice versa
}
"""How likely a summary is wrong if a claim of this kind is not supported."""

THRESHOLD = 0.5

_WHERE = "prepare.entailment"
_TITLES = word_set("mr mrs ms dr sir lord prof professor president minister prime premier senator")
_SMALL = """
    zero one two three four five six seven eight nine ten
    eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMERALS = {
    **{word: str(n) for n, word in enumerate(_SMALL.split())},
    **{word: str(10 * n) for n, word in enumerate(_TENS.split(), start=2)},
}
_REACH = 4  # words after "not" among which it denies one
_ALIKE = 5  # letters that words need to count as forms or misspellings of each other


@dataclass(frozen=True)
class Claim:
    """One claim that the article does not support: its kind, and its words."""

    kind: str
    words: str


@dataclass(frozen=True)
class _Word:
    """A content word.

    Args:
        form: the form to look up.
        kind: name, number or word.
        denied: whether a negation precedes it.
        passive: whether it is a verb followed by "by", which names who acts.
    """

    text: str
    form: str
    kind: str
    denied: bool = False
    passive: bool = False


def unsupported(summary: str, article: str) -> float:
    """How likely it is that a summary says what its article does not: 0 if every claim is supported, at most 1.

    Each unsupported claim makes it wrong with probability `CHANCE`, independently of the others (a noisy-or, Pearl
    1988).
    """
    return 1 - prod(1 - CHANCE[claim.kind] for claim in unsupported_claims(summary, article))


def unsupported_claims(summary: str, article: str) -> list[Claim]:
    """Return the claims of a summary that its article does not support, in their order."""
    known = _known(article)
    return [claim for sentence in _content(summary) for claim in known.lacks(sentence)]


class _Article:
    """The content words of an article, indexed to look up claims."""

    def __init__(self, text: str) -> None:
        self._acronyms = _acronyms(text)
        self._places: dict[str, list[tuple[int, int, _Word]]] = defaultdict(list)  # form -> sentence, place there, word
        for k, sentence in enumerate(_content(text)):
            for i, word in enumerate(sentence):
                self._places[word.form].append((k, i, word))

    def lacks(self, sentence: Sequence[_Word]) -> Iterator[Claim]:
        """Yield the unsupported claims of one sentence of a summary."""
        found: list[tuple[_Word, Set[str]]] = []
        for word in sentence:
            forms = self._forms(word)
            if forms:
                found.append((word, forms))
            elif word.form not in self._acronyms:
                yield Claim(word.kind, word.text)
            if word.kind == "word" and (forms or word.denied) and not self._agrees(word, forms):
                yield Claim("negation", f"not {word.text}" if word.denied else word.text)
        for (one, ones), (other, others) in pairwise(found):
            if not self._related(ones, others, one.passive or other.passive):
                plain = one.kind == other.kind == "word"
                yield Claim("relation" if plain else "relation of a name", f"{one.text} ... {other.text}")

    def _forms(self, word: _Word) -> Set[str]:
        """Return the words of the article that say the same."""
        if word.form in self._places:
            return {word.form}
        return set() if word.kind == "number" else {form for form in self._places if _alike(word.form, form)}

    def _agrees(self, word: _Word, forms: Set[str]) -> bool:
        return any(word.denied == there.denied for form in forms for *_, there in self._places[form])

    def _related(self, ones: Set[str], others: Set[str], passive: bool) -> bool:
        """Whether one precedes the other in some sentence; the passive on one side alone reverses the order."""
        return any(
            k == m and i != j and (i < j) == (passive == (one.passive or other.passive))
            for first in ones
            for second in others
            for k, i, one in self._places[first]
            for m, j, other in self._places[second]
        )


@lru_cache(maxsize=1024)
def _known(article: str) -> _Article:
    return _Article(article)


def _content(text: str) -> list[list[_Word]]:
    """Return the content words of each sentence. Names are recognised by their capital, unless most words have one.

    At the beginning of a sentence only a word that no dictionary lists is a name.
    """
    if text.isupper() or text.islower():  # the tagger takes words in capitals for names; sentences start with a capital
        text = re.sub(r"(?:^|[.!?]\s+)\w", lambda begin: begin[0].upper(), text.lower())
    tokens = parse(text).tokens
    words = [token for token in tokens if token.is_word]
    cased = sum(token.text[0].isupper() for token in words) < 0.6 * len(words)
    return [_read(sentence, cased) for sentence in by_sentence(tokens)]


def _read(sentence: Sequence[Token], cased: bool) -> list[_Word]:
    words: list[_Word] = []
    reach = 0  # words that a negation before still reaches
    for i, token in enumerate(sentence):
        if not token.tag:
            reach = 0
        elif token.lower in NEGATIONS or token.lower.replace("\u2019", "'").endswith("n't"):
            reach = _REACH
        elif token.stop or token.lower in BE | HAVE | DO | MODALS | _TITLES:
            if token.lower == "by" and i and sentence[i - 1].tag in ("VBN", "VBD") and words:
                words[-1] = replace(words[-1], passive=True)
            reach -= 1
        else:
            named = cased and token.text[0].isupper() and (i > 0 or lemma(token.lower, token.tag) is None)
            words.append(_word(token, "name" if named else "word", denied=reach > 0))
            reach = 0
    return words


def _word(token: Token, kind: str, *, denied: bool) -> _Word:
    plain = re.sub(r"'s?$", "", token.lower.replace("\u2019", "'")).replace(",", "")
    if plain[0].isdigit() or plain in _NUMERALS:
        bare = re.sub(r"-[^\W\d]+$", "", plain)  # a 48-hour deadline is one of 48 hours
        return _Word(token.text, _NUMERALS.get(bare, bare), "number")
    if kind == "name":
        return _Word(token.text, plain.replace(".", ""), kind)
    return _Word(token.text, lemma(plain, token.tag) or plain, kind, denied)


def _alike(one: str, other: str) -> bool:
    """Whether two words are forms of one ("Palestine", "Palestinian"), or one is a misspelling of the other."""
    shorter, longer = sorted((one, other), key=len)
    if len(shorter) < _ALIKE or not (one + other).isalpha():
        return False
    shared = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(shorter))
    if shared >= max(_ALIKE, len(shorter) - 1):
        return True
    rests = one[shared:], other[shared:]
    swapped = rests[0][:2] == rests[1][:2][::-1] and rests[0][2:] == rests[1][2:]
    return swapped or rests[0][1:] == rests[1][1:] or shorter[shared:] == longer[shared + 1 :]


def _acronyms(text: str) -> set[str]:
    """Return the initials of two or more capitalised words in a row: "us" for United States."""
    found = set()
    for run in re.findall(r"[A-Z]\w+(?: [A-Z]\w+)+", text):
        letters = [word[0].lower() for word in run.split()]
        found |= {"".join(letters[i:j]) for i in range(len(letters)) for j in range(i + 2, len(letters) + 1)}
    return found


# By a model of entailment, instead of rules


class EntailmentSource(TransformersEncoder):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or a model of the hub."""

    where = _WHERE

    def load(self, inputs: Path, device: str) -> "Entailment":
        """Load the model; the tasks of one process share it and its answers."""
        return _shared(self.whole(self.folder(inputs)[0]), device)


ENTAILMENT_LOADERS: Mapping[str, type[EntailmentSource]] = {"transformers": EntailmentSource}


class Entailment:
    """How likely it is that a summary says what its article does not, by a classifier of pairs of texts.

    A sentence of the summary is supported as much as the best of the article's sentences, or the whole article, entails
    it; a summary as much as its sentences on average (SummaC-ZS, Laban et al. 2022, section 3.1, which uses sentences
    only).
    """

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForSequenceClassification

        self._tokenizer, self._model = read_encoder(folder, AutoModelForSequenceClassification, _WHERE)
        config = self._model.config
        labels = {str(label).lower(): number for number, label in config.id2label.items()}
        if "entailment" not in labels:
            raise UsageError(f"{_WHERE}: {folder} has no label entailment, it has {', '.join(labels)}")
        self._entails = int(labels["entailment"])
        self._model.to(device)
        self._device = device
        positions = getattr(config, "max_position_embeddings", 514) - 2  # RoBERTa counts from 2
        self._window = min(self._tokenizer.model_max_length, positions)
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, summary: str, article: str) -> float:
        """Return how little of a summary is entailed, in [0, 1]; 0 if it has no sentence, as it then claims nothing."""
        premises = list(dict.fromkeys([*sentences(article), article]))
        claims = sentences(summary)
        return 1 - float(np.mean([max(self._entailed(p, c) for p in premises) for c in claims])) if claims else 0.0

    def _entailed(self, premise: str, claim: str) -> float:
        if (premise, claim) not in self._known:
            self._known[premise, claim] = self._answer(premise, claim)
        return self._known[premise, claim]

    @torch.inference_mode()
    def _answer(self, premise: str, claim: str) -> float:
        pair = self._tokenizer(premise, claim, truncation=True, max_length=self._window, return_tensors="pt")
        return float(self._model(**pair.to(self._device)).logits[0].softmax(-1)[self._entails])


@cache
def _shared(folder: Path, device: str) -> Entailment:
    return Entailment(folder, device)
