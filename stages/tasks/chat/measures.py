"""Distance of an answer from the expected ones: 0 is as expected, 1 is not at all.

Words are compared as in the SQuAD evaluation (Rajpurkar et al. 2016, section 6.1): without capitals, marks and the
articles a, an, the. In addition, hyphens separate words and a possessive 's is dropped: "28-year-old" contains 28.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from stages.core.errors import UsageError

LONGEST = 1.0  # seconds a pattern may take on one answer
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+|\d+")
_ARTICLE = re.compile(r"\b(?:an?|the)\s+(?=\w)")  # at the end "a" is a name: vitamin A
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}")  # U.S.


def compared_words(text: str) -> list[str]:
    """Return the words that are compared.

    >>> words("The 9,200 men of St. John's")
    ['9200', 'men', 'of', 'st', 'john']
    >>> words("the U.S. of A"), words("Vitamin A")
    (['us', 'of', 'a'], ['vitamin', 'a'])
    """
    plain = re.sub(r"(?<=\w)['\u2019]s\b", "", unicodedata.normalize("NFC", text).lower())
    plain = _INITIALS.sub(lambda initials: initials[0].replace(".", ""), plain)
    return [word.replace(",", "") for word in _WORD.findall(_ARTICLE.sub("", plain))]


@lru_cache(maxsize=100_000)
def _in_a_row(text: str) -> str:
    return f" {' '.join(compared_words(text))} "


def holds(text: str, answer: str) -> bool:
    """Whether the words of an answer occur in a row in a text; an answer without words does not."""
    wanted = _in_a_row(answer)
    return not wanted.isspace() and wanted in _in_a_row(text)


def contains(output: str, answer: str) -> float:
    """Return 0 if the output contains the answer, whatever else it says, otherwise 1."""
    return 0.0 if holds(output, answer) else 1.0


def exact(output: str, answer: str) -> float:
    """Return 0 if the output is the answer and nothing else, otherwise 1."""
    return 0.0 if compared_words(output) == compared_words(answer) else 1.0


def f1(output: str, answer: str) -> float:
    """1 minus the harmonic mean of the shares of words that output and answer have in common."""
    told, wanted = compared_words(output), compared_words(answer)
    common = sum((Counter(told) & Counter(wanted)).values())
    return 1.0 - 2 * common / (len(told) + len(wanted)) if common else 1.0


def most_agreed(answers: Sequence[str]) -> int:
    """Return which of several answers has most words in common with the others (self-consistency, Wang et al. 2022)."""
    return min(range(len(answers)), key=lambda n: sum(f1(answers[n], other) for other in answers))


MEASURES: Mapping[str, Callable[[str, str], float]] = {"contains": contains, "exact": exact, "f1": f1}


def pattern_error(pattern: str) -> str:
    """Return what is wrong with a regular expression, or "" if it can be used."""
    import regex

    try:
        regex.compile(pattern)
    except regex.error as error:
        return f"its pattern is not a regular expression: {error}"
    return ""


def matches(pattern: str, output: str) -> bool:
    """Whether a regular expression is found in an output.

    Raises a UsageError when the search takes longer than LONGEST, because results would then depend on the machine.
    """
    import regex

    try:
        return regex.search(pattern, output, timeout=LONGEST) is not None
    except TimeoutError:
        raise UsageError(
            f"prepare.data: the pattern {pattern!r} took more than {LONGEST:g} s on an answer of {len(output)}"
            " characters; write it without repetitions inside repetitions"
        ) from None
