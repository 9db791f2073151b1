"""The block of a new audit in params.yaml, commented as a person would write it, and where it is inserted."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

from flows.workspace.yaml_edit import dumped, in_one_line, unshared
from stages.core.errors import UsageError

_COMMENT_AT = 58  # column of comments, unless the line is longer


@dataclass(frozen=True)
class AuditDraft:
    """An audit that is to be written, with comments.

    Args:
        audit: its block, as in `AuditConfig`.
        repair: the block of its repair, as in `RepairConfig`; None for no repair.
        notes: comments by key: "prepare.items", "concepts.blur", "repair.gates".
        above: keys whose comment is on its own line above the key, rather than after it.
    """

    name: str
    audit: Mapping[str, Any]
    repair: Mapping[str, Any] | None
    notes: Mapping[str, str] = field(default_factory=dict)
    above: frozenset[str] = frozenset()

    def text(self) -> dict[str, str]:
        """Return its lines under `audits:` and, if there is a repair, under `repairs:`."""
        blocks = {"audits": _entry(self, self.audit, ("prepare", "concepts"), "")}
        if self.repair is not None:
            blocks["repairs"] = _entry(self, self.repair, ("gates",), "repair.")
        return blocks


def _entry(draft: AuditDraft, block: Mapping[str, Any], spread: Sequence[str], prefix: str) -> str:
    """One audit or repair: a line for each key, and a line for each nested key of the keys in `spread`."""
    entry = CommentedMap()
    for key, value in block.items():
        entry[key] = inner = _flow(value)
        if key in spread and value:
            entry[key] = inner = CommentedMap({name: _flow(one) for name, one in value.items()})
            for name in inner:
                _comment(inner, name, f"{prefix}{key}.{name}", draft, 6)
        _comment(entry, key, f"{prefix}{key}", draft, 4)
    return dumped({"": {draft.name: entry}}).partition("\n")[2]


def _comment(block: CommentedMap, key: str, path: str, draft: AuditDraft, indent: int) -> None:
    if path in draft.above and path in draft.notes:
        block.yaml_set_comment_before_after_key(key, before=draft.notes[path], indent=indent)
    elif path in draft.notes:
        block.yaml_add_eol_comment(draft.notes[path], key, column=_COMMENT_AT)


def _flow(value: Any) -> Any:
    """A value in one line of YAML."""
    if isinstance(value, Mapping):
        return in_one_line({_flow(key): _flow(inner) for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return in_one_line([_flow(inner) for inner in value])
    if not isinstance(value, str):
        return value
    if "\n" in value:
        return DoubleQuotedScalarString(value)
    # Quoted as PyYAML does within brackets, where more words need it; with YAML 1.1, which Faded and DVC read.
    quote = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True)[1]
    return {"'": SingleQuotedScalarString, '"': DoubleQuotedScalarString}.get(quote, str)(value)


def with_draft(text: str, draft: AuditDraft) -> str:
    """The text of params.yaml with an audit and its repair, in place of those of that name; other lines stay.

    Raises:
        UsageError: if the file's layout does not allow this.
    """
    expected, after, lines = yaml.safe_load(text) or {}, text, draft.text()
    for key, block in (("audits", draft.audit), ("repairs", draft.repair)):
        others = {name: one for name, one in (expected.get(key) or {}).items() if name != draft.name}
        if draft.name in (expected.get(key) or {}):
            after, expected[key] = _without(after, key, draft.name), others
        if block is not None:
            after, expected[key] = _inserted(after, key, lines[key]), {**others, draft.name: unshared(block)}
    with contextlib.suppress(yaml.YAMLError):
        if yaml.safe_load(after) == expected:
            return after
    raise UsageError(
        f"params.yaml is laid out so that nothing can be added without touching more of it; write there yourself"
        f"\n\naudits:\n{lines['audits']}\nrepairs:\n{lines.get('repairs', '  {}')}"
    )


def _pair(node: Any, key: str) -> tuple[Any, Any] | None:
    """The nodes of a key and its value in a mapping; None if there are none."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((name, value) for name, value in pairs if name.value == key), None)


def _without(text: str, key: str, name: str) -> str:
    """The text without an entry of the mapping under a top-level key, and without the blank line before it."""
    top = _pair(yaml.compose(text), key)
    if top is None or (found := _pair(top[1], name)) is None:
        return text
    start, end = text.rfind("\n", 0, found[0].start_mark.index) + 1, _line_end(text, _last(found[1]))
    head = text[:start].removesuffix("\n") if text[:start].endswith("\n\n") else text[:start]
    if len(top[1].value) == 1:
        at = top[0].end_mark.index
        head = f"{head[: at + 1]} {{}}{head[at + 1 :]}"
    return head + text[end:]


def _inserted(text: str, key: str, lines: str) -> str:
    """The text with lines added at the end of the mapping under a top-level key, which may be missing, empty or {}."""
    found = _pair(yaml.compose(text), key)
    if found is None:
        return f"{text.rstrip()}\n\n{key}:\n{lines}" if text.strip() else f"{key}:\n{lines}"
    name, value = found
    if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
        end = _line_end(text, _last(value))
        gap = "" if text[:end].endswith("\n") else "\n"
        return f"{text[:end]}{gap}\n{lines}{text[end:]}"
    # {} or nothing: keep the comment behind it.
    start = name.end_mark.index + 1
    stop = value.end_mark.index if isinstance(value, yaml.MappingNode) else start
    end = _line_end(text, stop)
    return f"{text[:start]}{text[stop:end].rstrip(chr(10))}\n{lines}{text[end:]}"


def _last(node: Any) -> int:
    """Where a node's content ends; the end mark of a block is after the comments that follow."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    return _last(node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1])


def _line_end(text: str, index: int) -> int:
    return text.find("\n", index) + 1 or len(text)
