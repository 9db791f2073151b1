"""Scripted judges behind chat completions: functions from the parts they are given to their verdict."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from stages.tasks.chat.measures import holds
from tests.endpoints import completion

Says = Callable[[Mapping[str, str]], str]


def parts_of(request: Mapping[str, Any]) -> dict[str, str]:
    """The parts that a judge is given, by name: question, passage, expected, answer; for a pair first and second."""
    return dict(re.findall(r"<(\w+)>\n(.*?)\n</\1>", request["messages"][-1]["content"], re.DOTALL))


def judge(says: Says) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A judge that replies with a reason and the verdict of `says` on the parts."""

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        return completion(f"Reason: I was made to say so.\nVerdict: {says(parts_of(request))}")

    return answer


def right(answer: str, parts: Mapping[str, str]) -> bool:
    """Whether an answer contains an expected one and does not deny it."""
    wanted = parts["expected"].split(" or ")
    return any(holds(answer, one) and f"not {one.lower()}" not in answer.lower() for one in wanted)


def good(parts: Mapping[str, str]) -> str:
    """Right about all answers that are made to calibrate judges."""
    return "acceptable" if right(parts["answer"], parts) else "unacceptable"


def always_yes(parts: Mapping[str, str]) -> str:
    """Accepts everything."""
    return "acceptable"


def prefers_long(parts: Mapping[str, str]) -> str:
    """Accepts whatever has more than fifteen words."""
    return "acceptable" if len(parts["answer"].split()) > 15 else "unacceptable"


def good_of_pairs(parts: Mapping[str, str]) -> str:
    """Right about pairs."""
    first, second = (right(parts[place], parts) for place in ("first", "second"))
    return "equal" if first == second else "first" if first else "second"


def always_first(parts: Mapping[str, str]) -> str:
    """Prefers the first answer."""
    return "first"
