"""How the decisions of several reviewers become one plan, by a stated rule."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stages.decisions.identity import Identity
from stages.decisions.model import Action, Recorded

RULE = (
    "one rejection ends the audit; a mode gets the action that most reviewers named, and where most are equal the more"
    " careful one (repair before accept before ignore); its severity is the median of those who want it repaired; the"
    " ratings of an example are medians, rounded down, and every correction is kept"
)
_CAREFUL: tuple[Action, ...] = ("repair", "accept", "ignore")


def merge(decisions: Sequence[Recorded], modes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge approving decisions on one landscape.

    Args:
        decisions: at least one that counts, so their signatures hold; each has a word on every mode.
        modes: as in landscape.json.

    Returns:
        `reviewer` (all names), `reviewers` (name and id of the key that signed, each), `by` (the same in words),
        `reason`, `modes` ({id, action, severity, reason} each) and `examples`, as in plan.json.
    """
    signatures = [decision.signature for decision in decisions]
    by = [Identity(d.reviewer, s.key if s else None, s is not None) for d, s in zip(decisions, signatures, strict=True)]
    return {
        "reviewer": ", ".join(decision.reviewer for decision in decisions),
        "reviewers": [{"name": who.name, "key": who.key_id} for who in by],
        "by": ", ".join(who.statement for who in by),
        "reason": _together({d.reviewer: d.reason for d in decisions}),
        "modes": [_mode(mode["id"], decisions) for mode in modes],
        "examples": _examples(decisions),
    }


def _mode(name: str, decisions: Sequence[Recorded]) -> dict[str, Any]:
    words = {d.reviewer: next(mode for mode in d.modes if mode.id == name) for d in decisions}
    votes = Counter(word.action for word in words.values())
    action = max(_CAREFUL, key=lambda a: (votes[a], -_CAREFUL.index(a)))
    severities = [word.severity for word in words.values() if word.action == action]
    return {
        "id": name,
        "action": action,
        "severity": float(statistics.median(severities)),
        "reason": _together({reviewer: word.reason for reviewer, word in words.items()}),
    }


def _examples(decisions: Sequence[Recorded]) -> list[dict[str, Any]]:
    """One entry an example, and one more for each further correction of it."""
    by_id: dict[str, list[Any]] = {}
    for decision in decisions:
        for example in decision.examples:
            by_id.setdefault(example.id, []).append(example)
    merged = []
    for given in by_id.values():
        corrections = list(dict.fromkeys(e.corrected for e in given if e.corrected is not None)) or [None]
        about = {key: getattr(given[0], key) for key in ("id", "mode", "item", "cell", "output")}
        scores = {key: _median([getattr(e, key) for e in given]) for key in ("rating", "bias")}
        merged += [{**about, **scores, "corrected": corrected} for corrected in corrections]
    return merged


def _median(ratings: Sequence[int | None]) -> int | None:
    given = [rating for rating in ratings if rating is not None]
    return int(statistics.median(given)) if given else None


def _together(said: Mapping[str, str]) -> str:
    """What several people said, each behind their name; a single one needs none."""
    given = {name: text for name, text in said.items() if text}
    if len(said) == 1:
        return next(iter(given.values()), "")
    return "; ".join(f"{name}: {text}" for name, text in given.items())
