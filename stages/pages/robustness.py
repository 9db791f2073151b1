"""Section of the report on the smallest changes that make the model fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from stages.concepts import Concept
from stages.pages import figures
from stages.pages.page import Picture
from stages.pages.words import interval, number, percent
from stages.records import Landscape, Robustness
from stages.records.landscape import AtEpsilon, Attack, Direction, Within

METHODS = {"beam": "beam search", "exact": "breadth-first search", "rl": "a trained agent"}

ATTACKS = {"fgsm": "FGSM", "pgd": "PGD"}

_STEP = {  # by whether steps add words to a prompt
    False: "A step moves one concept by one level.",
    True: "A step adds one phrase: it fills one slot of the prompt.",
}


class AttackRow(NamedTuple):
    """One attack: the median epsilon and its interval, and the share of items that fail within each epsilon."""

    name: str
    median: str
    interval: str
    within: list[AtEpsilon]


class RobustnessView(NamedTuple):
    """The section on the smallest failing changes; `bisected`: whether steps of one concept were bisected."""

    sentence: str
    step: str
    bisected: bool
    caveat: str
    picture: Picture | None
    directions: list[Direction]
    together: str
    changed: int
    attacks: list[AttackRow]


def robustness_view(landscape: Landscape) -> RobustnessView | None:
    """Return the section on the smallest failing changes; None if none were searched for."""
    found, space = landscape.robustness, landscape.space
    if found is None:
        return None
    return RobustnessView(
        sentence=_finding(found, found.items == landscape.items),
        step=_STEP[space.adds_words],
        bisected=any(concept.ordered for concept in space.concepts),
        caveat=_caveat(found),
        picture=_picture(found.within) if len(found.within) > 1 else None,
        directions=found.directions,
        together=", ".join(f"{' × '.join(entry.concepts)} ({number(entry.items)})" for entry in found.together),
        changed=found.found,
        attacks=[_attack(attack) for attack in found.gradient],
    )


def _attack(found: Attack) -> AttackRow:
    most = f"> {number(found.within[-1].epsilon)}"
    median, low, high = (most if end is None else number(end) for end in (found.median, found.low, found.high))
    return AttackRow(ATTACKS.get(found.attack, found.attack), median, f"{low} to {high}", found.within)


def _finding(robustness: Robustness, everyone: bool) -> str:
    items, unchanged, held = robustness.items, robustness.fail_unchanged, robustness.not_found
    whom = _count(items, "item") if everyone else f"{_count(items, 'item')} drawn at random"
    if unchanged == items:
        return f"Of {whom}, all fail unchanged: no step is needed."
    said = [
        f"{number(unchanged)} fail{'s' if unchanged == 1 else ''} unchanged",
        f"{number(robustness.found)} after some steps",
    ]
    text = f"Of {whom}, {' and '.join(said)}"
    if held:
        deep = robustness.searched
        within = f"within {_count(deep, 'step')}" if deep else "before the budget was spent"
        text += f"; for {number(held)}, no failure was found {within}"
    text += "."
    median = robustness.median_radius
    return f"{text} At least half of them fail within {_count(median, 'step')}." if median else text


def _caveat(robustness: Robustness) -> str:
    """State the limits of the result: the method, what it proves, and where the steps start."""
    method, probes = robustness.method, robustness.probes
    own = f"with {_count(probes, 'probe')} of its own" if probes else "among the answers to every cell"
    said = [f"Method: {METHODS.get(method or '', method)} {own}."]
    found, proven = robustness.found, robustness.proven
    if found and proven == found:
        said.append("All smaller changes were probed and pass, so these are the smallest.")
    elif found:
        said.append(
            f"These failures are real, but smaller ones may have been missed: {number(proven)} of {number(found)}"
            " are known to be the smallest. The shares are lower bounds: the model is no more robust than this."
        )
    if robustness.not_found and method != "exact":
        said.append("That no failure was found for an item does not prove that there is none.")
    if robustness.not_neutral:
        lacking = ", ".join(robustness.not_neutral)
        said.append(f"Steps start from {robustness.start}, because no level of {lacking} is known to change nothing.")
    return " ".join(said)


def _count(n: int, noun: str) -> str:
    return f"{number(n)} {noun}{'' if n == 1 else 's'}"


def _picture(within: Sequence[Within]) -> Picture:
    """Draw the share of items that fail within a number of steps, with Wilson's interval."""
    steps = Concept("steps from the start", tuple(entry.steps for entry in within))
    rates = pd.DataFrame([entry.to_json() for entry in within]).rename(columns={"value": "rate"})
    alt = "Share of items that fail within a number of steps: " + ", ".join(
        f"{entry.steps} {percent(entry.value)} [{interval(entry.low, entry.high)}]" for entry in within
    )
    return Picture(alt, [("", figures.effect_view(steps, rates, 1.0))], 330, "Items that fail within a number of steps")
