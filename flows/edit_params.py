"""Changes levels in params.yaml and nothing else: every other byte, comments and layout with it, stays as it was.

PyYAML, which reads the file for Faded, says where each node begins and ends; the new text takes the place of the old
in between. What cannot be changed in that way (an anchor, say) is refused.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stages.concepts import Level
from stages.errors import UsageError

_Edit = tuple[int, int, str]  # characters from, to, and what takes their place


def with_levels(text: str, audit: str, levels: Mapping[str, Sequence[Level]]) -> str:
    """The text of params.yaml with other levels of some concepts of an audit; a concept that is not named is removed.

    Raises:
        UsageError: when the file is laid out so that this cannot be done without touching more.
    """
    whole = yaml.safe_load(text)
    audits = whole["audits"]
    old = audits[audit]["concepts"]
    new = {name: list(levels[name]) for name in old if name in levels}
    # Not in place: what an alias shares must not change with it.
    expected = {**whole, "audits": {**audits, audit: {**audits[audit], "concepts": new}}}
    block = _child(_child(_child(yaml.compose(text), "audits"), audit), "concepts")
    edits: list[_Edit] = []
    for i, (key, value) in enumerate(block.value):
        if key.value not in levels:
            edits.append(_removal(text, block, i))
        elif list(levels[key.value]) != old[key.value]:
            edits += _new_levels(text, value, levels[key.value])
    for start, end, other in sorted(edits, reverse=True):
        text = text[:start] + other + text[end:]
    with contextlib.suppress(yaml.YAMLError):
        if yaml.safe_load(text) == expected:
            return text
    wanted = "\n".join(f"  {name}: {_flow(values)}" for name, values in levels.items())
    raise UsageError(
        f"audits.{audit}.concepts cannot be changed without touching the layout of params.yaml; write there:\n{wanted}"
    )


def replace_file(path: Path, text: str) -> None:
    """Give a file, or what it links to, a new text: whole or not at all."""
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:  # the text has the line ends of the original
        file.write(text)
    shutil.copymode(path, partial)
    partial.replace(path)


def _child(node: Any, name: str) -> Any:
    return next(value for key, value in node.value if key.value == name)


def _new_levels(text: str, node: Any, levels: Sequence[Level]) -> list[_Edit]:
    """One edit a level, so that comments and spacing between levels stay; those that are too many go."""
    spans = [(item.start_mark.index, item.end_mark.index) for item in node.value]
    n = len(levels)
    edits = [(start, end, _scalar(level)) for (start, end), level in zip(spans[:n], levels, strict=True)]
    if n < len(spans):
        last = spans[-1][1]
        end = spans[n - 1][1] if node.flow_style else _line_end(text, spans[n - 1][1])
        edits.append((end, last if node.flow_style else _line_end(text, last), ""))
    return edits


def _removal(text: str, block: Any, i: int) -> _Edit:
    """The edit that removes the i-th concept: its lines, or in a flow mapping the part up to the next one."""
    key, value = block.value[i]
    last = value.value[-1].end_mark.index
    if not block.flow_style:
        return _line_start(text, key.start_mark.index), _line_end(text, last), ""
    if i + 1 < len(block.value):
        return key.start_mark.index, block.value[i + 1][0].start_mark.index, ""
    before = block.value[i - 1][1].end_mark.index if i else key.start_mark.index
    return before, value.end_mark.index, ""


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _line_end(text: str, index: int) -> int:
    """Behind the end of the line, its comment included."""
    return text.find("\n", index) + 1 or len(text)


def _flow(levels: Sequence[Level]) -> str:
    return f"[{', '.join(map(_scalar, levels))}]"


def _scalar(level: Level) -> str:
    """A level as people write it: no exponent, which YAML would read as text, and no needless zeros."""
    if isinstance(level, str):
        return str(yaml.safe_dump(level, default_flow_style=True)).removesuffix("\n...\n").strip()
    return np.format_float_positional(level, trim="-")
