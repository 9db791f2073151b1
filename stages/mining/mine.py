"""Mining itself: what is asked, in which order, and what is made of the answers.

1. *Parts*: groups of items are divided at random; a third proposes, the others confirm, which takes more of them.
2. *Propose*: items of the first part as they are, then again and again with a few words replaced and a few levels
   changed, those first that were tried least.
3. *Search*: the smallest sets of facts that fail more often than without any one of them. The surest is kept, the
   probes it explains are put aside, and the rest is searched again, until nothing is left that stands out.
4. *Confirm*: each candidate on the second part, with all of its facts and without each of them; where a word or a
   level can be changed, on the same items. A candidate is as sure as its weakest contrast, and p-values are adjusted
   for the number of candidates (Holm 1979).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import NamedTuple, get_args

import numpy as np

from stages.concepts import ConceptSpace
from stages.errors import UsageError
from stages.intervals import RESAMPLES, SHARE, Rate, Resampler, holm
from stages.mining.record import Contrast, Example, Finding, Kind, MineSettings, Mining, Verdict
from stages.mining.sets import Counted, level_wise
from stages.mining.wordings import replaced

_FEWEST_GROUPS = 15  # with fewer no test can be passed
_FIRST = 1 / 3  # share of the groups that propose
_PROPOSE = 0.4  # share of the probes that do
_UNCHANGED = 0.3  # of these at most, for items as they are
_NOW = 50  # items that confirm, at most, whose failure rate as they are is told
_WORDS = 2  # that are replaced at once
_LEVELS = (0.4, 0.3, 0.2, 0.1)  # chances that so many concepts are changed at once
_TRIES = 20  # draws of a probe that was not asked before
_NOMINAL = 0.05  # p-value from which a set is a candidate
_EACH, _MOST_EACH = 10, 40  # items that a candidate is confirmed on, at least and at most, where there are so many
_FEWEST = 5  # items with a candidate, and without each of its facts
_WAYS = 3  # in which an item is asked without a fact
_EXAMPLES = 10


class Ask(NamedTuple):
    """One probe: an item with other words, at a cell."""

    item: int
    words: tuple[tuple[str, str], ...]
    cell: tuple[int, ...]


class Answered(NamedTuple):
    """What came of a probe: whether it failed, what the model was given, and what it answered."""

    failed: bool
    given: str
    output: str


@dataclass(frozen=True)
class Fact:
    """What may hold of a probe.

    Args:
        told: in words.
        kind: what it is about.
        key: no set has two facts of one key.
        column: of its concept, of a level.
        levels: the level indices at which it holds, of a level; the mildest first.
    """

    told: str
    kind: Kind
    key: str
    column: int = -1
    levels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Texts:
    """The items to mine.

    Args:
        ids: n ids.
        texts: of each what a probe changes: a question, an article, a template.
        given: what the model is given of each where concepts start.
        expected: what is expected of its answer, in words.
        groups: n names; items of one group are never divided.
        options: of each by word what may stand for it.
        facts: text -> what holds of it.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    given: Sequence[str]
    expected: Sequence[str]
    groups: Sequence[str]
    options: Sequence[Mapping[str, Sequence[str]]]
    facts: Callable[[str], frozenset[str]]


Answer = Callable[[Sequence[Ask]], Sequence[Answered]]
"""n probes -> what came of each."""


def mine(texts: Texts, space: ConceptSpace, answer: Answer, settings: MineSettings, *, seed: int) -> Mining:
    """Mine the items of an audit.

    Args:
        texts: its discover items.
        space: its concepts.
        answer: puts probes to the model.
        settings: budget and bounds.
        seed: of all randomness here.

    Raises:
        UsageError: when there are too few items to divide.
    """
    return _Mine(texts, space, answer, settings, seed).run()


class _Mine:
    """One mining: each method is a part of it, in the order of the head of this module."""

    def __init__(self, texts: Texts, space: ConceptSpace, answer: Answer, settings: MineSettings, seed: int) -> None:
        self.texts, self.space, self._answer, self.settings, self.seed = texts, space, answer, settings, seed
        self.rng = np.random.default_rng(seed)
        self.start = tuple(self.space.start.tolist())
        self.known: dict[Ask, Answered] = {}
        self.first, self.second = self.parts()
        self.held = lru_cache(maxsize=None)(lambda text: texts.facts(text) | self.length(text))

    def parts(self) -> tuple[list[int], list[int]]:
        """Positions of the items that propose and of those that confirm, in random order."""
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
        """Words that the shortest and the longest quarter of the texts have at most and at least."""
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

    # What is asked

    def ask(self, asks: Sequence[Ask]) -> np.ndarray:
        """Which probes failed, (n,) bool; those asked before cost nothing."""
        new = [one for one in dict.fromkeys(asks) if one not in self.known]
        if new:
            self.known.update(zip(new, self._answer(new), strict=True))
        return np.array([self.known[one].failed for one in asks], dtype=bool)

    def text(self, ask: Ask) -> str:
        return replaced(self.texts.texts[ask.item], dict(ask.words))

    def propose(self) -> list[Ask]:
        """The probes of the first part."""
        budget = int(_PROPOSE * self.settings.probes)
        asks = dict.fromkeys(Ask(i, (), self.start) for i in self.first[: int(_UNCHANGED * budget)])
        tried: Counter[str] = Counter()
        for n in range(_TRIES * budget):
            if len(asks) == budget:
                break
            asks[self.drawn(self.first[n % len(self.first)], tried)] = None
        self.ask(list(asks))
        return list(asks)

    def drawn(self, item: int, tried: Counter[str]) -> Ask:
        """An item with a few words replaced by those that were tried least, and a few levels changed."""
        options = self.texts.options[item]
        pairs = [(w, v) for w in self.rng.permutation(sorted(options)).tolist() for v in options[w]]
        words: dict[str, str] = {}
        for word, other in sorted(pairs, key=lambda pair: tried[pair[1]]):
            if len(words) < _WORDS and word not in words:
                words[word] = other
        tried.update(words.values())
        cell = list(self.start)
        count = min(int(self.rng.choice(len(_LEVELS), p=_LEVELS)), len(cell))
        for j in self.rng.choice(len(cell), count, replace=False).tolist():
            cell[j] = int(self.rng.integers(len(self.space.concepts[j])))
        return Ask(item, tuple(sorted(words.items())), tuple(cell))

    # What is searched

    def search(self, asks: Sequence[Ask]) -> tuple[list[tuple[list[Fact], Counted]], int, bool, int]:
        """Candidates, the surest first; sets counted, whether there were more; facts looked at."""
        settings = self.settings
        failed = self.ask(asks)
        facts, holds = self.table(asks, failed)
        left = np.ones(len(asks), dtype=bool)
        found: list[tuple[list[Fact], Counted]] = []
        counted, cut = 0, False
        most = max(1, int((1 - _PROPOSE) * settings.probes) // (2 * _EACH))
        while len(found) < most:
            now = level_wise(
                holds[left],
                failed[left],
                [fact.key for fact in facts],
                support=settings.support,
                largest=settings.largest,
                most=settings.slices,
            )
            counted, cut = max(counted, now.counted), cut or now.cut
            likely = [one for one in now.sets if one.p <= _NOMINAL]
            if not likely:
                break
            # Of sets that are as sure the one with fewest facts, then the one that explains most.
            best = min(likely, key=lambda one: (one.p, one.size, -one.failures))
            while larger := [one for one in now.sets if set(best.facts) < set(one.facts) and one.size == best.size + 1]:
                surest = min(larger, key=lambda one: one.p)
                if surest.p * len(larger) > _NOMINAL:
                    break
                best = surest  # with one fact more it fails surely more often, so that fact is part of it
            found.append(([facts[j] for j in best.facts], best))
            left &= ~holds[:, best.facts].all(axis=1)
        return found, counted, cut, len(facts)

    def table(self, asks: Sequence[Ask], failed: np.ndarray) -> tuple[list[Fact], np.ndarray]:
        """Facts with enough failing probes to be candidates, and in which probes they hold: (n, facts) bool."""
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
        """Facts about levels: those of an ordered concept hold from a level on, away from where it starts."""
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

    # What is confirmed

    def unchanged(self) -> list[Ask]:
        """Items of the second part as they are, asked whatever the candidates."""
        return [Ask(item, (), self.start) for item in self.second[:_NOW]]

    def confirm(self, proposed: Sequence[tuple[list[Fact], Counted]]) -> list[Finding]:
        """Put candidates to the second part."""
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
        # A candidate that too few items can test is none: whether they can does not depend on any answer.
        contrasts = [self.contrasts(trial) for trial in trials]
        adjusted = iter(holm(np.array([max(one.p for one in tested) for tested in contrasts if tested])).tolist())
        return [
            self.finding(trial, tested, next(adjusted) if tested else 1.0)
            for trial, tested in zip(trials, contrasts, strict=True)
        ]

    def trial(self, facts: Sequence[Fact], counted: Counted, each: int) -> _Trial:
        """The probes that tell whether a candidate holds."""
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

    def apart(self, asks: Iterable[Ask | None], count: int) -> list[Ask]:
        """The first so many of some probes, each of another group: one says nothing more of the next."""
        found: dict[str, Ask] = {}
        for ask in asks:
            if ask is not None and len(found) < count:
                found.setdefault(self.texts.groups[ask.item], ask)
        return list(found.values())

    def holds(self, ask: Ask, fact: Fact) -> bool:
        if fact.kind == "level":
            return ask.cell[fact.column] in fact.levels
        return fact.told in self.held(self.text(ask))

    def made(self, item: int, facts: Sequence[Fact]) -> Ask | None:
        """The item with all of these facts, as few changes as it takes; None where words and levels cannot do it."""
        cell, words = list(self.start), dict[str, str]()
        for fact in facts:
            if fact.kind == "level":
                cell[fact.column] = fact.levels[0]
        bare = Ask(item, (), tuple(cell))
        for fact in facts:
            if fact.kind == "word" and not self.holds(bare, fact):
                wanted = fact.told.removeprefix("says ")
                own = [w for w, others in self.texts.options[item].items() if wanted in others and w not in words]
                if not own:
                    return None
                words[min(own)] = wanted
        ask = Ask(item, tuple(sorted(words.items())), tuple(cell))
        return ask if all(self.holds(ask, fact) for fact in facts) else None

    def bared(self, ask: Ask, fact: Fact, rest: Sequence[Fact]) -> list[Ask]:
        """The same item without one fact but with the rest, in a few ways; none where that cannot be."""
        found = [
            bare
            for bare in (self.other_levels(ask, fact) if fact.kind == "level" else self.other_words(ask, fact))
            if not self.holds(bare, fact) and all(self.holds(bare, other) for other in rest)
        ]
        return found[:_WAYS]

    def other_levels(self, ask: Ask, fact: Fact) -> list[Ask]:
        """With the level where the concept starts, and in turn with others where levels have no order."""
        at, concept = self.start[fact.column], self.space.concepts[fact.column]
        levels = [at] if concept.ordered else [at, *(k for k in range(len(concept)) if k != at)]
        return [ask._replace(cell=(*ask.cell[: fact.column], k, *ask.cell[fact.column + 1 :])) for k in levels]

    def other_words(self, ask: Ask, fact: Fact) -> list[Ask]:
        """As the item says it, then with other words in that place, then in others."""
        if fact.kind != "word":
            return []
        wanted = fact.told.removeprefix("says ")
        put_in = [word for word, other in ask.words if other == wanted]
        kept = {word: other for word, other in ask.words if other != wanted}
        places = put_in or [wanted]  # what the item says itself can be replaced as well
        options = self.texts.options[ask.item]
        there = [kept | {place: other} for place in places for other in options.get(place, ())]
        elsewhere = [kept | {w: v} for w, others in options.items() if w not in (*kept, *places) for v in others]
        return [
            ask._replace(words=tuple(sorted(words.items())))
            for words in ([kept, *there, *elsewhere] if put_in else there)
        ]

    def contrasts(self, trial: _Trial) -> list[Contrast]:
        """How often a candidate fails without each of its facts; none where too few items can tell."""
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
        """P-value of failing more often than the same items do without a fact.

        If the fact did not matter, the failures of an item were as likely with it as in any of the ways without it. So
        their number with it is a sum of independent draws, whose distribution is exact (a conditional test stratified
        by item, as Cochran's, Mantel's and Haenszel's).
        """
        failed = self.ask(one.whole)
        sums = np.ones(1)
        for with_it, bare in zip(failed, one.bare, strict=True):
            share = (with_it + self.ask(bare).sum()) / (1 + len(bare))
            sums = np.convolve(sums, [1 - share, share])
        return float(min(1.0, sums[int(failed.sum()) :].sum()))

    def between(self, one: _Without) -> float:
        """P-value of failing more often than other items do without a fact (Fisher's exact test)."""
        from scipy.stats import hypergeom

        with_it, without = self.ask(one.whole), self.ask([ask for bare in one.bare for ask in bare])
        failures, n = int(with_it.sum() + without.sum()), len(with_it) + len(without)
        return float(hypergeom.sf(with_it.sum() - 1, n, failures, len(with_it)))

    def rate(self, asks: Sequence[Ask]) -> Rate:
        """The share of probes that fail, with an interval over groups of items."""
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

    def example(self, ask: Ask) -> Example:
        texts, (_, given, output) = self.texts, self.known[ask]
        return Example(
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
        whole: n with it.
        bare: without it: of the same items in one way or more each, or else of others.
        paired: whether they are of the same items.
    """

    whole: list[Ask]
    bare: list[list[Ask]]
    paired: bool = True


@dataclass(frozen=True)
class _Trial:
    """How a candidate is tested.

    Args:
        facts: of the candidate.
        counted: on the items that proposed it.
        whole: probes with all facts.
        without: for each fact probes with and without it; none where no probes are left for them.
        new: probes that no candidate before it asked for.
    """

    facts: Sequence[Fact]
    counted: Counted
    whole: list[Ask] = field(default_factory=list)
    without: list[_Without] = field(default_factory=list)
    new: int = 0

    @property
    def asks(self) -> set[Ask]:
        """All of its probes."""
        return {*self.whole, *(ask for one in self.without for bare in one.bare for ask in bare)}
