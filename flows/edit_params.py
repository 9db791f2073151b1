"""Changes levels, shares, compute or keys in params.yaml and nothing else: every other byte, comments included, stays.

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


def with_shards(text: str, audit: str, shards: int, gpus: int) -> str:
    """The text of params.yaml with the search of an audit divided among so many shares; 1 leaves it whole.

    Args:
        text: the text as it is.
        audit: a name under audits:.
        shards: `discover.shards` of it, and entries under shards:.
        gpus: what each share asks the task runner for.

    Raises:
        UsageError: when the file is laid out so that this cannot be done without touching more.
    """
    whole = yaml.safe_load(text)
    block = whole["audits"][audit]
    discover = {**block["discover"], "shards": shards}
    entries = {f"{audit}-{n}": {"audit": audit, "part": n, "gpus": gpus} for n in range(1, shards + 1)}
    if shards == 1:
        del discover["shards"]
        entries = {}
    others = {name: entry for name, entry in whole["shards"].items() if entry["audit"] != audit}
    expected = {
        **whole,
        "audits": {**whole["audits"], audit: {**block, "discover": discover}},
        "shards": {**others, **entries},
    }
    lines = [f"{name}: {{audit: {audit}, part: {n}, gpus: {gpus}}}" for n, name in enumerate(entries, start=1)]
    with contextlib.suppress(yaml.YAMLError, StopIteration):
        root = yaml.compose(text)
        edits = _new_count(text, _child(_child(_child(root, "audits"), audit), "discover"), shards)
        edits += _new_entries(text, root, others, lines)
        for start, end, other in sorted(edits, reverse=True):
            text = text[:start] + other + text[end:]
        if yaml.safe_load(text) == expected:
            return text
    wanted = "\n".join(f"  {line}" for line in lines)
    raise UsageError(
        f"the shares of {audit} cannot be changed without touching the layout of params.yaml; write audits.{audit}."
        f"discover.shards: {shards}"
        + (f" there, and under shards:\n{wanted}" if lines else f" there, and nothing of {audit} under shards:")
    )


def with_compute(text: str, audit: str, changes: Mapping[str, str | int]) -> str:
    """The text of params.yaml with other values in the `compute:` of an audit; keys that are not there are added.

    Raises:
        UsageError: when the file is laid out so that this cannot be done without touching more.
    """
    whole = yaml.safe_load(text)
    audits = whole["audits"]
    compute = {**audits[audit]["compute"], **changes}
    expected = {**whole, "audits": {**audits, audit: {**audits[audit], "compute": compute}}}
    with contextlib.suppress(yaml.YAMLError, StopIteration):
        block = _child(_child(_child(yaml.compose(text), "audits"), audit), "compute")
        there = {key.value: value for key, value in block.value}
        edits = [
            (there[name].start_mark.index, there[name].end_mark.index, str(value))
            for name, value in changes.items()
            if name in there
        ]
        edits += _added(text, block, [f"{name}: {value}" for name, value in changes.items() if name not in there])
        for start, end, other in sorted(edits, reverse=True):
            text = text[:start] + other + text[end:]
        if yaml.safe_load(text) == expected:
            return text
    wanted = ", ".join(f"{name}: {value}" for name, value in changes.items())
    raise UsageError(
        f"audits.{audit}.compute cannot be changed without touching the layout of params.yaml, or other audits that"
        f" share it; write there: {wanted}"
    )


def with_keys(text: str, keys: Mapping[str, Mapping[str, str]]) -> str:
    """The text of params.yaml with other public keys of reviewers.

    Args:
        text: the text as it is.
        keys: by the name of an audit, all keys of it by reviewer; they only gain or lose names.

    Raises:
        UsageError: when the file is laid out so that this cannot be done without touching more.
    """
    expected = yaml.safe_load(text)  # aliased parts are one object in it
    repairs = expected["repairs"] = {name: dict(repair) for name, repair in expected["repairs"].items()}
    for audit, listed in keys.items():
        others = {key: value for key, value in repairs[audit]["feedback"].items() if key != "keys"}
        repairs[audit]["feedback"] = {**others, **({"keys": dict(listed)} if listed else {})}
    with contextlib.suppress(yaml.YAMLError, StopIteration):
        root = yaml.compose(text)
        blocks = {audit: _child(_child(_child(root, "repairs"), audit), "feedback") for audit in keys}
        edits = {edit for audit, block in blocks.items() for edit in _new_keys(text, block, keys[audit])}
        for start, end, other in sorted(edits, reverse=True):
            text = text[:start] + other + text[end:]
        if yaml.safe_load(text) == expected:
            return text
    wanted = "\n".join(f"  repairs.{audit}.feedback.keys: {{{_entries(listed)}}}" for audit, listed in keys.items())
    raise UsageError(
        f"the keys cannot be changed without touching the layout of params.yaml, or other audits that share it; write"
        f" there:\n{wanted}"
    )


def _new_keys(text: str, feedback: Any, keys: Mapping[str, str]) -> list[_Edit]:
    """The edits of `keys:` in a `feedback:`."""
    at = [i for i, (key, _) in enumerate(feedback.value) if key.value == "keys"]
    if not at:
        lines = [f"keys: {{{_entries(keys)}}}"] if feedback.flow_style else ["keys:", *_lines(keys)]
        return _added(text, feedback, lines) if keys else []
    block = feedback.value[at[0]][1]
    if not keys:
        return [_removal(text, feedback, at[0])]
    if block.flow_style or not isinstance(block, yaml.MappingNode):
        return [(block.start_mark.index, block.end_mark.index, f"{{{_entries(keys)}}}")]
    there = {key.value for key, _ in block.value}
    edits = [_removal(text, block, i) for i, (key, _) in enumerate(block.value) if key.value not in keys]
    new = {name: line for name, line in keys.items() if name not in there}
    column = block.value[0][0].start_mark.column
    return edits + ([_lines_behind(text, _end(block), column, [ln.strip() for ln in _lines(new)])] if new else [])


def _lines(keys: Mapping[str, str]) -> list[str]:
    return [f"  {_entries({name: line})}" for name, line in keys.items()]


def _entries(keys: Mapping[str, str]) -> str:
    """As they stand between the braces of a flow mapping; each alone may also stand on a line."""
    return str(yaml.safe_dump(dict(keys), default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6))[
        1:-2
    ]


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
    """The edit that removes the i-th entry: its lines, or in a flow mapping the part up to the next one."""
    key, value = block.value[i]
    if not block.flow_style:
        return _line_start(text, key.start_mark.index), _line_end(text, _end(value)), ""
    if i + 1 < len(block.value):
        return key.start_mark.index, block.value[i + 1][0].start_mark.index, ""
    before = block.value[i - 1][1].end_mark.index if i else key.start_mark.index
    return before, value.end_mark.index, ""


def _new_count(text: str, discover: Any, shards: int) -> list[_Edit]:
    """The edit of `discover.shards`: a new number, the key behind the last one, or the key taken away."""
    at = [i for i, (key, _) in enumerate(discover.value) if key.value == "shards"]
    if at and shards > 1:
        value = discover.value[at[0]][1]
        return [(value.start_mark.index, value.end_mark.index, str(shards))]
    if at:
        return [_removal(text, discover, at[0])]
    if shards == 1:
        return []
    return _added(text, discover, [f"shards: {shards}"])


def _added(text: str, block: Any, entries: Sequence[str]) -> list[_Edit]:
    """The edit that adds entries, "key: value", behind the last one of a mapping."""
    if not entries:
        return []
    key, value = block.value[-1]
    if block.flow_style:
        return [(value.end_mark.index, value.end_mark.index, "".join(f", {entry}" for entry in entries))]
    return [_lines_behind(text, _end(value), key.start_mark.column, entries)]


def _new_entries(text: str, root: Any, others: Mapping[str, Any], lines: Sequence[str]) -> list[_Edit]:
    """The edits of the top-level `shards:`; lines are the new entries of one audit, others those that stay."""
    key, block = next((key, value) for key, value in root.value if key.value == "shards")
    if block.flow_style:
        kept = [text[k.start_mark.index : v.end_mark.index] for k, v in block.value if k.value in others]
        if kept:
            return [(block.start_mark.index, block.end_mark.index, "{" + ", ".join([*kept, *lines]) + "}")]
        if not lines:
            return [(block.start_mark.index, block.end_mark.index, "{}")]
        # As a block of lines below the key; what is said behind the key stays there.
        below = _lines_behind(text, block.end_mark.index, 2, lines)
        return [(key.end_mark.index + 1, block.end_mark.index, ""), below]
    edits = [_removal(text, block, i) for i, (k, _) in enumerate(block.value) if k.value not in others]
    if not lines:
        return edits if others else [*edits, (key.end_mark.index + 1, key.end_mark.index + 1, " {}")]
    last = next((v for k, v in reversed(block.value) if k.value in others), key)
    return [*edits, _lines_behind(text, _end(last), block.value[0][0].start_mark.column, lines)]


def _lines_behind(text: str, index: int, column: int, lines: Sequence[str]) -> _Edit:
    """The edit that puts lines, indented to a column, below the line of a character."""
    at, newline = _line_end(text, index), "\r\n" if "\r\n" in text else "\n"
    gap = "" if text[:at].endswith("\n") else newline
    return at, at, gap + "".join(f"{' ' * column}{line}{newline}" for line in lines)


def _end(node: Any) -> int:
    """Behind the last character of a node: of a block, whose own mark is behind what follows it, that of its last."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(node, yaml.MappingNode) else last)


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
