"""The glossary of reports: at the end of a page, and as tooltips of marked words."""

from __future__ import annotations

from markupsafe import Markup

GLOSSARY = {
    "cell": "One full assignment of levels, one to each concept: a point of the grid.",
    "concept": "A named way in which an input can change, in levels that people understand: rotation, blur.",
    "confirmed": "On probes that had no part in finding it, a region failed significantly more often than the grid.",
    "control": "What an effort is compared with at the same cost. Of a search: uniform draws. Of a repair: a copy "
    "trained for as many steps without aiming.",
    "discrepancy": "How far an answer is from what people expect, on the task's own scale.",
    "failure": "An answer whose discrepancy is above the threshold.",
    "failure rate": "The share of probes that fail. Over the grid all cells count alike; in use some are rarer.",
    "fresh probe": "A probe kept back from the search and asked inside a region after it was found.",
    "gate": "A bound set before the audit. It passes only if the whole interval is on the right side of it.",
    "grid": "All combinations of the levels of all concepts.",
    "interval": "Where the true rate would lie in 95 of 100 repetitions with other probes or items like these.",
    "item": "One input as it was, before any change.",
    "level": "One step of a concept, as 25° of rotation.",
    "lift": "The failure rate inside a mode divided by that of the whole grid.",
    "mode": "A failure mode: a region that a person can read, confirmed to fail more often than the grid.",
    "newly failing": "Passed before the repair and fails after it.",
    "noise floor": "How far a number moves although nothing has changed, as between two halves of the items.",
    "points": "Percentage points: from 20% to 15% is −5 points.",
    "policy": "What the search has learnt about where to look. It is not a failure rate.",
    "probe": "One question to the model: an item, changed as a cell says, and what came out.",
    "repair": "Fine-tuning a copy of the model in the modes that people chose.",
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
