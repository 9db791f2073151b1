"""Decide which proposals are possible, and which of those enter the audit after screening."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stages.concepts import Level
from stages.errors import UsageError, plain
from stages.proposing.ask import outcome
from stages.proposing.record import LONGEST, Outcome, Proposal
from stages.proposing.vocabulary import Draft, Vocabulary
from stages.screening import ConceptScreening


class Made(NamedTuple):
    """A possible proposal, with the levels that it adds."""

    proposal: Proposal
    new: list[Level]


def make(
    vocabulary: Vocabulary, proposals: Sequence[Proposal], load: Callable[[Draft], object] = lambda draft: None
) -> tuple[Draft, list[Made], list[Outcome]]:
    """Return the audit with all possible proposals, these proposals, and the outcomes of the others.

    Args:
        vocabulary: what may be proposed.
        proposals: what was proposed.
        load: loads the task with a draft; raises UsageError if that fails.
    """
    draft, made, refused = vocabulary.start, list[Made](), list[Outcome]()
    for one in proposals:
        try:
            more = vocabulary.taken(draft, one)
            if errors := vocabulary.errors(more):
                raise UsageError(errors[0])
            load(more)
        except UsageError as error:
            refused.append(outcome(one, plain(f"refused: {str(error).splitlines()[0]}")[:LONGEST]))
            continue
        made.append(Made(one, more.new[one.concept][len(draft.new.get(one.concept, ())) :]))
        draft = more
    return draft, made, refused


def judged(made: Made, screened: ConceptScreening) -> Outcome:
    """Decide on a proposal that was screened.

    A concept with an effect enters, unless it certainly reduces the discrepancy. Levels without an order are decided
    one by one, by the effect of each alone.
    """
    if screened.verdict != "effect":
        return outcome(made.proposal, screened.told)
    if not any(isinstance(level, str) for level in made.new):
        better = screened.alone.high < 0
        return outcome(
            made.proposal,
            "effect: alone, for the better" if better else screened.told,
            [] if better else screened.proposed,
        )
    worse = [level for level in made.new if (alone := screened.each.get(str(level))) is not None and alone.low > 0]
    names = ", ".join(map(str, worse))
    return outcome(made.proposal, f"effect: {names}" if worse else "effect, but of no proposed level alone", worse)


def final(vocabulary: Vocabulary, made: Sequence[Made], outcomes: Sequence[Outcome]) -> Draft:
    """Return the audit with the levels that enter.

    Args:
        vocabulary: what may be proposed.
        made: the proposals that were screened.
        outcomes: the outcome of each.
    """
    draft = vocabulary.start
    for (one, _), found in zip(made, outcomes, strict=True):
        if found.enters:
            texts = one.levels if isinstance(one.levels, dict) else None
            levels = {str(name): texts[str(name)] for name in found.enters} if texts else found.enters
            draft = vocabulary.taken(draft, one.model_copy(update={"levels": levels}))
    return draft
