"""Decide which proposals are possible, and which of those enter the audit after screening."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stages.concepts import Level
from stages.core.errors import UsageError, escape_controls
from stages.proposing.ask import outcome
from stages.proposing.record import LONGEST, Outcome, ProposedConcept
from stages.screening.sweep import ConceptSweep
from stages.tasks.choosing import Draft, Vocabulary


class Made(NamedTuple):
    """A possible proposal, with the levels that it adds."""

    proposal: ProposedConcept
    new: list[Level]


def make(
    vocabulary: Vocabulary, proposals: Sequence[ProposedConcept], load: Callable[[Draft], object] = lambda draft: None
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
            more = vocabulary.with_concept(draft, one.concept, one.levels)
            if errors := vocabulary.errors(more):
                raise UsageError(errors[0])
            load(more)
        except UsageError as error:
            refused.append(outcome(one, escape_controls(f"refused: {str(error).splitlines()[0]}")[:LONGEST]))
            continue
        made.append(Made(one, more.new[one.concept][len(draft.new.get(one.concept, ())) :]))
        draft = more
    return draft, made, refused


def judged(made: Made, swept: ConceptSweep) -> Outcome:
    """Decide on a proposal by the sweep of its concept.

    A concept with numbers enters if some level of it certainly raises the discrepancy. Levels without an order are
    decided one by one.
    """
    if swept.verdict != "effect":
        told = "too few probes" if swept.verdict == "not known" else "alone, on the same items"
        return outcome(made.proposal, f"{swept.verdict}: {told}")
    numbers = not any(isinstance(level, str) for level in made.new)
    harmful = [level for level in swept.harmful if numbers or level in made.new]
    if not harmful:
        told = "alone, for the better" if numbers else "of no proposed level"
        return outcome(made.proposal, f"effect: {told}")
    named = ", ".join(swept.labels[list(swept.levels).index(level)] for level in harmful)
    return outcome(made.proposal, f"effect: {named}", list(swept.levels) if numbers else harmful)


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
            draft = vocabulary.with_concept(draft, one.concept, levels)
    return draft
