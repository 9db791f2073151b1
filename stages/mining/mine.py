"""The mining procedure: choose probes, search their answers for candidates, and test these on other items.

1. *Parts*: groups of items are divided at random. A third proposes, the others confirm, which takes more items.
2. *Propose*: probe items of the first part unchanged, then repeatedly with a few words replaced and a few levels
   changed, least tried words first.
3. *Search*: find the smallest sets of facts that fail more often than without any one of them. Keep the most
   significant set, set aside the probes it explains, and search the rest again until nothing stands out.
4. *Confirm*: probe the second part with all facts of a candidate and without each of them, on the same items if a
   word or a level can be changed. A candidate is as significant as its weakest contrast, and p-values are adjusted for
   the number of candidates (Holm 1979).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import NamedTuple, get_args

import numpy as np

from stages.concepts import ConceptSpace
from stages.core.errors import UsageError
from stages.core.intervals import RESAMPLES, SHARE, Rate, Resampler, holm
from stages.mining.facts import Counted, level_wise, replaced
from stages.mining.record import Contrast, Finding, Kind, MinedExample, MineSettings, Mining, Verdict

_FEWEST_GROUPS = 15  # with fewer, no candidate can be confirmed
_FIRST = 1 / 3  # share of the groups that propose
_PROPOSE = 0.4  # share of the probes that propose
_UNCHANGED = 0.3  # maximum share of those probes for unchanged items
_NOW = 50  # maximum number of unchanged confirming items behind the reported failure rate
_WORDS = 2  # replaced at once
_TRIES = 20  # draws per probe of the budget, as a draw may repeat an earlier probe
_NOMINAL = 0.05  # largest p-value of a candidate
_EACH, _MOST_EACH = 10, 40  # minimum and maximum number of items to confirm a candidate on, if available
_FEWEST = 5  # minimum number of items with a candidate, and without each of its facts
_WAYS = 3  # maximum number of variants of an item without a fact
_EXAMPLES = 10


class WordProbe(NamedTuple):
    """One probe: an item with some words replaced, at a cell."""

    item: int
    words: tuple[tuple[str, str], ...]
    cell: tuple[int, ...]


class Answered(NamedTuple):
    """The result of a probe: whether it failed, the input of the model, and its answer."""

    failed: bool
    given: str
    output: str


@dataclass(frozen=True)
class Fact:
    """A property that a probe may have.

    Args:
        told: the fact in words.
        kind: whether it is about a word, an attribute or a level.
        key: a set never contains two facts with the same key.
        column: index of the concept, for a level.
        levels: indices of the levels at which it holds, for a level; mildest first.
    """

    told: str
    kind: Kind
    key: str
    column: int = -1
    levels: tuple[int, ...] = ()


@dataclass(frozen=True)
class MinableTexts:
    """The items to mine.

    Args:
        ids: n ids.
        texts: n texts that probes change: questions, articles or templates.
        given: n inputs of the model, with all concepts at their start.
        expected: n descriptions of the expected answer.
        groups: n names; items of one group are never divided.
        options: n mappings from a word to its possible replacements.
        facts: returns the facts that hold for a text.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    given: Sequence[str]
    expected: Sequence[str]
    groups: Sequence[str]
    options: Sequence[Mapping[str, Sequence[str]]]
    facts: Callable[[str], frozenset[str]]


Answer = Callable[[Sequence[WordProbe]], Sequence[Answered]]
"""Maps n probes to their n results."""


def mine(texts: MinableTexts, space: ConceptSpace, answer: Answer, settings: MineSettings, *, seed: int) -> Mining:
    """Mine the items of an audit.

    Raises a UsageError if there are too few groups of items to divide.

    Args:
        answer: runs probes on the model.
    """
    return _Mine(texts, space, answer, settings, seed).run()


class _Mine:
    """One mining run; methods are in the order of the steps in the module docstring."""

    def __init__(
        self, texts: MinableTexts, space: ConceptSpace, answer: Answer, settings: MineSettings, seed: int
    ) -> None:
        self.texts, self.space, self._answer, self.settings, self.seed = texts, space, answer, settings, seed
        self.rng = np.random.default_rng(seed)
        self.start = tuple(self.space.start.tolist())
        self.known: dict[WordProbe, Answered] = {}
        self.first, self.second = self.parts()
        self.held = lru_cache(maxsize=None)(lambda text: texts.facts(text) | self.length(text))

    def parts(self) -> tuple[list[int], list[int]]:
        """Return the positions of the items that propose and of those that confirm, in random order."""
        names = sorted(set(self.texts.groups))
        if len(names) < _FEWEST_GROUPS:
            raise UsageError(
                f"found {len(names)} groups of items to discover on, expected {_FEWEST_GROUPS} or more to mine: a third"
                " of them proposes, the others confirm (prepare.items.discover)"
            )
        chosen = set(self.rng.permutation(names)[: int(_FIRST * len(names))].tolist())
        order = self.rng.permutation(len(self.texts.ids)).tolist()
        first = [i for i in order if self.texts.groups[i] in chosen]
        return first, [i for i in order if self.texts.groups[i] not in chosen]

    @cached_property
    def lengths(self) -> tuple[int, int]:
        """The lower and upper quartile of the number of words of a text."""
        low, high = np.quantile([len(text.split()) for text in self.texts.texts], [0.25, 0.75])
        return int(low), int(np.ceil(high))

    def length(self, text: str) -> frozenset[str]:
        (low, high), n = self.lengths, len(text.split())
        found = {f"has at most {low} words"} if n <= low else {f"has at least {high} words"} if n >= high else set()
        return frozenset() if low == high else frozenset(found)

    def run(self) -> Mining:
        asks = self.propose()
        proposed, counted, cut, facts = self.search(asks)
        findings = self.confirm(proposed)
        order = get_args(Verdict)
        return Mining(
            settings=self.settings,
            probes=len(self.known),
            proposing=len(asks),
            items=(len(self.first), len(self.second)),
            facts=facts,
            slices=counted,
            cut=cut,
            now=self.rate(self.unchanged()),
            findings=sorted(findings, key=lambda one: (order.index(one.verdict), one.adjusted)),
        )

    # Propose

    def ask(self, asks: Sequence[WordProbe]) -> np.ndarray:
        """Return which probes failed, (n,) bool; repeated probes cost nothing."""
        new = [one for one in dict.fromkeys(asks) if one not in self.known]
        if new:
            self.known.update(zip(new, self._answer(new), strict=True))
        return np.array([self.known[one].failed for one in asks], dtype=bool)

    def text(self, ask: WordProbe) -> str:
        return replaced(self.texts.texts[ask.item], dict(ask.words))

    def propose(self) -> list[WordProbe]:
        """Run and return the probes of the first part."""
        budget = int(_PROPOSE * self.settings.probes)
        asks = dict.fromkeys(WordProbe(i, (), self.start) for i in self.first[: int(_UNCHANGED * budget)])
        tried: Counter[str] = Counter()
        for n in range(_TRIES * budget):
            if len(asks) == budget:
                break
            asks[self.drawn(self.first[n % len(self.first)], tried)] = None
        self.ask(list(asks))
        return list(asks)

    def drawn(self, item: int, tried: Counter[str]) -> WordProbe:
        """Replace a few words of an item, preferring the least tried replacements, and change a few levels."""
        options = self.texts.options[item]
        pairs = [(w, v) for w in self.rng.permutation(sorted(options)).tolist() for v in options[w]]
        words: dict[str, str] = {}
        for word, other in sorted(pairs, key=lambda pair: tried[pair[1]]):
            if len(words) < _WORDS and word not in words:
                words[word] = other
        tried.update(words.values())
        return WordProbe(item, tuple(sorted(words.items())), tuple(self.space.sample(1, self.rng)[0].tolist()))

    # Search

    def search(self, asks: Sequence[WordProbe]) -> tuple[list[tuple[list[Fact], Counted]], int, bool, int]:
        """Return the candidates, most significant first; sets counted; whether any were cut; facts searched."""
        settings = self.settings
        failed = self.ask(asks)
        facts, holds = self.table(asks, failed)
        left = np.ones(len(asks), dtype=bool)
        found: list[tuple[list[Fact], Counted]] = []
        counted, cut = 0, False
        most = max(1, int((1 - _PROPOSE) * settings.probes) // (2 * _EACH))
        while len(found) < most:
            sets, now, more = level_wise(
                holds[left],
                failed[left],
                [fact.key for fact in facts],
                support=settings.support,
                largest=settings.largest,
                most=settings.slices,
            )
            counted, cut = max(counted, now), cut or more
            likely = [one for one in sets if one.p <= _NOMINAL]
            if not likely:
                break
            # Among equal p-values, prefer the set with the fewest facts, then the one that explains most failures.
            best = min(likely, key=lambda one: (one.p, one.size, -one.failures))
            while larger := [one for one in sets if set(best.facts) < set(one.facts) and one.size == best.size + 1]:
                surest = min(larger, key=lambda one: one.p)
                if surest.p * len(larger) > _NOMINAL:
                    break
                best = surest  # it fails significantly more often with this fact, so the fact is part of the set
            found.append(([facts[j] for j in best.facts], best))
            left &= ~holds[:, best.facts].all(axis=1)
        return found, counted, cut, len(facts)

    def table(self, asks: Sequence[WordProbe], failed: np.ndarray) -> tuple[list[Fact], np.ndarray]:
        """Return the facts with enough failing probes to be candidates, and where they hold: (n, facts) bool."""
        texts = [self.held(self.text(ask)) for ask in asks]
        names = sorted(set().union(*texts))
        facts = [Fact(name, "word" if name.startswith("says ") else "attribute", name) for name in names]
        holds = np.array([[name in held for name in names] for held in texts], dtype=bool).reshape(len(asks), -1)
        cells, levels = np.array([ask.cell for ask in asks]), self.levels()
        of_levels = np.array([np.isin(cells[:, fact.column], fact.levels) for fact in levels]).reshape(-1, len(asks))
        facts, holds = facts + levels, np.hstack([holds, of_levels.T])
        kept = holds[failed].sum(axis=0) >= self.settings.support
        return [fact for fact, keep in zip(facts, kept, strict=True) if keep], holds[:, kept]

    def levels(self) -> list[Fact]:
        """Return the facts about levels: for ordered concepts, a level or anything further from the start."""
        found = []
        for j, concept in enumerate(self.space.concepts):
            for k in range(len(concept)):
                if k == self.start[j]:
                    continue
                up = k > self.start[j]
                sign = "is" if not concept.ordered else ">=" if up != concept.falling else "<="
                held = range(k, len(concept) if up else -1, 1 if up else -1) if concept.ordered else [k]
                found.append(Fact(f"{concept.name} {sign} {concept.label(k)}", "level", concept.name, j, tuple(held)))
        return found

    # Confirm

    def unchanged(self) -> list[WordProbe]:
        """Return probes of unchanged items of the second part, which do not depend on the candidates."""
        return [WordProbe(item, (), self.start) for item in self.second[:_NOW]]

    def confirm(self, proposed: Sequence[tuple[list[Fact], Counted]]) -> list[Finding]:
        """Test the candidates on the second part."""
        left = self.settings.probes - len(self.known)
        self.told = {fact.told for facts, _ in proposed for fact in facts}
        asked = set(self.unchanged())
        each = int(np.clip((left - len(asked)) // max(1, (1 + _WAYS) * len(proposed)), _EACH, _MOST_EACH))
        trials = []
        for facts, counted in proposed:
            trial = self.trial(facts, counted, each)
            new = trial.asks - asked
            if len(asked) + len(new) > left:
                trial, new = _Trial(facts, counted), set()
            asked |= new
            trials.append(replace(trial, new=len(new)))
        self.ask(sorted(asked))
        # Candidates with too few items are not counted as tests: this depends on no answer, so Holm stays valid.
        contrasts = [self.contrasts(trial) for trial in trials]
        adjusted = iter(holm(np.array([max(one.p for one in tested) for tested in contrasts if tested])).tolist())
        return [
            self.finding(trial, tested, next(adjusted) if tested else 1.0)
            for trial, tested in zip(trials, contrasts, strict=True)
        ]

    def trial(self, facts: Sequence[Fact], counted: Counted, each: int) -> _Trial:
        """Choose the probes that test a candidate."""
        whole = self.apart((self.made(i, facts) for i in self.second), each)
        without: list[_Without] = []
        for fact in facts:
            rest = [other for other in facts if other is not fact]
            same = [(ask, bare) for ask in whole if (bare := self.bared(ask, fact, rest))]
            if fact.kind == "level" or len(same) >= _FEWEST:
                without.append(_Without([ask for ask, _ in same], [bare for _, bare in same]))
                continue
            free = (self.made(i, rest) for i in self.second)
            others = self.apart((a for a in free if a is not None and not self.holds(a, fact)), 2 * each)
            without.append(_Without(whole, [[other] for other in others], paired=False))
        return _Trial(facts, counted, whole, without)

    def apart(self, asks: Iterable[WordProbe | None], count: int) -> list[WordProbe]:
        """Return the first `count` probes, at most one of each group, so that they are independent."""
        found: dict[str, WordProbe] = {}
        for ask in asks:
            if ask is not None and len(found) < count:
                found.setdefault(self.texts.groups[ask.item], ask)
        return list(found.values())

    def holds(self, ask: WordProbe, fact: Fact) -> bool:
        if fact.kind == "level":
            return ask.cell[fact.column] in fact.levels
        return fact.told in self.held(self.text(ask))

    def made(self, item: int, facts: Sequence[Fact]) -> WordProbe | None:
        """Give an item all of these facts with as few changes as possible; None if words and levels cannot do it."""
        cell, words = list(self.start), dict[str, str]()
        for fact in facts:
            if fact.kind == "level":
                cell[fact.column] = fact.levels[0]
        bare = WordProbe(item, (), tuple(cell))
        for fact in facts:
            if fact.kind == "word" and not self.holds(bare, fact):
                wanted = fact.told.removeprefix("says ")
                own = [w for w, others in self.texts.options[item].items() if wanted in others and w not in words]
                if not own:
                    return None
                words[min(own)] = wanted
        ask = WordProbe(item, tuple(sorted(words.items())), tuple(cell))
        return ask if all(self.holds(ask, fact) for fact in facts) else None

    def bared(self, ask: WordProbe, fact: Fact, rest: Sequence[Fact]) -> list[WordProbe]:
        """Return up to `_WAYS` variants of a probe without one fact but with the rest; empty if impossible."""
        found = [
            bare
            for bare in (self.other_levels(ask, fact) if fact.kind == "level" else self.other_words(ask, fact))
            if not self.holds(bare, fact) and all(self.holds(bare, other) for other in rest)
        ]
        return found[:_WAYS]

    def other_levels(self, ask: WordProbe, fact: Fact) -> list[WordProbe]:
        """Return the probe at the start level of the concept, and also at all other levels if they have no order."""
        at, concept = self.start[fact.column], self.space.concepts[fact.column]
        levels = [at] if concept.ordered else [at, *(k for k in range(len(concept)) if k != at)]
        return [ask._replace(cell=(*ask.cell[: fact.column], k, *ask.cell[fact.column + 1 :])) for k in levels]

    def other_words(self, ask: WordProbe, fact: Fact) -> list[WordProbe]:
        """Return the probe with the original word, with others in its place, and with other words replaced instead."""
        if fact.kind != "word":
            return []
        wanted = fact.told.removeprefix("says ")
        put_in = [word for word, other in ask.words if other == wanted]
        kept = {word: other for word, other in ask.words if other != wanted}
        places = put_in or [wanted]  # a word of the item itself can be replaced as well
        options = self.texts.options[ask.item]
        there = [kept | {place: other} for place in places for other in options.get(place, ())]
        elsewhere = [kept | {w: v} for w, others in options.items() if w not in (*kept, *places) for v in others]
        return [
            ask._replace(words=tuple(sorted(words.items())))
            for words in ([kept, *there, *elsewhere] if put_in else there)
        ]

    def contrasts(self, trial: _Trial) -> list[Contrast]:
        """Measure how often a candidate fails without each of its facts; empty if there are too few items."""
        if not trial.without or any(min(len(one.whole), len(one.bare)) < _FEWEST for one in trial.without):
            return []
        return [
            Contrast(
                fact=fact.told,
                fails=self.rate([ask for bare in one.bare for ask in bare]),
                paired=one.paired,
                p=self.within(one) if one.paired else self.between(one),
            )
            for fact, one in zip(trial.facts, trial.without, strict=True)
        ]

    def within(self, one: _Without) -> float:
        """Return the p-value of failing more often than the same items do without a fact.

        If the fact did not matter, an item would be as likely to fail with it as in any variant without it. The number
        of failures with it is then a sum of independent draws, whose distribution is exact (a conditional test
        stratified by item, as the Cochran-Mantel-Haenszel test).
        """
        failed = self.ask(one.whole)
        sums = np.ones(1)
        for with_it, bare in zip(failed, one.bare, strict=True):
            share = (with_it + self.ask(bare).sum()) / (1 + len(bare))
            sums = np.convolve(sums, [1 - share, share])
        return float(min(1.0, sums[int(failed.sum()) :].sum()))

    def between(self, one: _Without) -> float:
        """Return the p-value of failing more often than other items do without a fact (Fisher's exact test)."""
        from scipy.stats import hypergeom

        with_it, without = self.ask(one.whole), self.ask([ask for bare in one.bare for ask in bare])
        failures, n = int(with_it.sum() + without.sum()), len(with_it) + len(without)
        return float(hypergeom.sf(with_it.sum() - 1, n, failures, len(with_it)))

    def rate(self, asks: Sequence[WordProbe]) -> Rate:
        """Return the share of probes that fail, with an interval over groups of items."""
        items = np.array([self.texts.ids[ask.item] for ask in asks])
        groups = np.array([self.texts.groups[ask.item] for ask in asks])
        failed = self.ask(asks).astype(float)
        return Resampler(items, RESAMPLES, self.seed, groups).mean(failed, np.ones(len(asks)), SHARE)

    def finding(self, trial: _Trial, contrasts: list[Contrast], adjusted: float) -> Finding:
        facts, whole = trial.facts, trial.whole if contrasts else []
        untested: Verdict = "too few items" if trial.without else "no probes left"
        put_in = {fact.told.removeprefix("says ") for fact in facts if fact.kind == "word"}
        pairs = Counter(f"{other} for {word}" for ask in whole for word, other in ask.words if other in put_in)
        return Finding(
            kind=facts[0].kind if len(facts) == 1 else "set",
            facts=[fact.told for fact in facts],
            proposed=(trial.counted.failures, trial.counted.probes),
            fails=self.rate(whole) if contrasts else None,
            without=contrasts,
            items=len({ask.item for ask in whole}),
            probes=trial.new,
            adjusted=adjusted,
            verdict=("not confirmed", "confirmed")[adjusted <= self.settings.level] if contrasts else untested,
            replaced=[pair for pair, _ in pairs.most_common()],
            examples=[self.example(ask) for ask in whole if self.known[ask].failed][:_EXAMPLES],
            said_by=[
                self.texts.ids[i]
                for i, text in enumerate(self.texts.texts)
                if all(fact.told in self.held(text) for fact in facts if fact.kind != "level")
            ],
        )

    def example(self, ask: WordProbe) -> MinedExample:
        texts, (_, given, output) = self.texts, self.known[ask]
        return MinedExample(
            item=texts.ids[ask.item],
            text=self.text(ask),
            given=given,
            original=texts.given[ask.item],
            expected=texts.expected[ask.item],
            answered=output,
            holds=sorted(self.held(self.text(ask)) & self.told),
        )


@dataclass(frozen=True)
class _Without:
    """Probes with and without a fact.

    Args:
        whole: n probes with the fact.
        bare: probes without it: one or more variants of each of the same items, or probes of other items.
        paired: whether they are of the same items.
    """

    whole: list[WordProbe]
    bare: list[list[WordProbe]]
    paired: bool = True


@dataclass(frozen=True)
class _Trial:
    """How a candidate is tested.

    Args:
        counted: its counts on the items that proposed it.
        whole: probes with all facts.
        without: for each fact the probes with and without it; empty if no probes are left for them.
        new: number of probes that no earlier candidate uses.
    """

    facts: Sequence[Fact]
    counted: Counted
    whole: list[WordProbe] = field(default_factory=list)
    without: list[_Without] = field(default_factory=list)
    new: int = 0

    @property
    def asks(self) -> set[WordProbe]:
        return {*self.whole, *(ask for one in self.without for bare in one.bare for ask in bare)}
