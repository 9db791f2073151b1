"""The glossary of reports: at the end of a page, and as tooltips of marked words."""

from __future__ import annotations

from markupsafe import Markup

GLOSSARY = {
    "cell": "One level for every concept: one combination of the grid.",
    "concept": "A named way in which an input can change, in levels that people understand: rotation, blur.",
    "confirmed": "On probes that had no part in finding it, a region failed significantly more often than the rest.",
    "control": "What a search or repair is compared with at the same cost. For a search: draws that do not look for "
    "failures, by which rates are counted. For a repair: a copy trained for as many steps without aiming.",
    "discrepancy": "How far an answer is from what people expect, on the task's own scale.",
    "failure": "An answer whose discrepancy is above the threshold.",
    "failure rate": "The share of inputs that fail. Each cell counts as often as it occurs in use; by `usage: uniform` "
    "all count alike.",
    "fresh probe": "A probe held back from the search, and drawn in a region only after that was found.",
    "gate": "A bound set before the audit. It passes only if the whole interval is on the right side of it.",
    "grid": "All combinations of the levels of all concepts.",
    "interval": "In 95 of 100 repetitions with other probes or items like these, it would cover the true rate.",
    "invalid probe": "A probe that is not held against the model, because nobody could read its changed input, for "
    "example. It counts as passed.",
    "item": "One input as it was, before any change.",
    "level": "One step of a concept, such as 25° of rotation.",
    "lift": "The failure rate inside a mode divided by that of all of use.",
    "mode": "A failure mode: a region that a person can read, confirmed to fail more often than the rest.",
    "newly failing": "Passed before the repair and fails after it.",
    "noise floor": "How far a number moves although nothing has changed, for example between two halves of the items.",
    "points": "Percentage points: from 20% to 15% is −5 points.",
    "policy": "What the search has learnt about where to look; not a failure rate.",
    "probe": "One query of the model: an item, changed as a cell says, and the answer.",
    "repair": "Fine-tuning a copy of the model on the modes that were chosen.",
    "use": "What the model will meet: how often each cell occurs, as it was assumed, stated or measured.",
    "threshold": "The discrepancy above which an answer counts as a failure.",
}


def term(word: str, shown: str = "") -> Markup:
    """Return a word as a link to its glossary entry, which the page's script shows as a tooltip.

    Args:
        word: a word of the glossary.
        shown: the form used in the sentence, if different.

    Raises:
        KeyError: if the glossary does not contain the word.
    """
    return Markup('<a class="term" href="#{0}" aria-describedby="{0}" data-tip="{1}">{2}</a>').format(
        anchor(word), GLOSSARY[word], shown or word
    )


def anchor(word: str) -> str:
    """Return the id of a word's entry."""
    return f"term-{word.replace(' ', '-')}"
