"""Markdown for Prefect's pages, in which what models and people wrote has no effect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flows.terminal import harmless

if TYPE_CHECKING:
    from stages.decisions import RecordedDecision

DECIDED = "Decided"  # title of the artifact that asked, once somebody decided
_MARKUP = re.compile(r"[]\\`*_[<>&~|:@.#+=-]")  # begins markdown or an automatic link


def code(text: str) -> str:
    """Text of a model or a person as inline code, so that its markup and links have no effect."""
    return f"`{_one_line(text).replace('`', chr(39))}`"


def prose(text: str) -> str:
    """The same for a text that is not shown as code: its markup is escaped."""
    return _MARKUP.sub(r"\\\g<0>", _one_line(text))


def _one_line(text: str) -> str:
    """Text without line breaks, as a blank line would end the markup around it, and without control characters."""
    return harmless(" ".join(text.split()))


def decided_markdown(decisions: Sequence[RecordedDecision]) -> str:
    """Who decided what, as markdown."""
    lines = []
    for decision in decisions:
        word, why = "approved" if decision.approve else "rejected", decision.reason
        lines.append(f"- {code(decision.reviewer)} {word} it ({decision.via})" + (f": {code(why)}" if why else ""))
    return "\n".join(lines)
