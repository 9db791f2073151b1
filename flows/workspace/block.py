"""The block of a new audit in params.yaml, commented as a person would write it, and where it is inserted."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import yaml

from stages.core.errors import UsageError

_WIDTH = 100_000  # one line per entry, however long
_COMMENT_AT = 56  # column of a block's comments, unless the line is longer


@dataclass(frozen=True)
class AuditDraft:
    """An audit that is to be written, with comments.

    Args:
        name: the audit's name.
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

    def changed(self, audit: Mapping[str, Any], notes: Mapping[str, str]) -> AuditDraft:
        """A copy with other values for some keys of the audit, and other comments on some keys."""
        return replace(self, audit={**self.audit, **audit}, notes={**self.notes, **notes})

    def repaired(self, repair: Mapping[str, Any]) -> AuditDraft:
        """A copy with another repair."""
        return replace(self, repair=repair)

    @property
    def audit_text(self) -> str:
        """The lines under `audits:`."""
        return _entry(self.name, self.audit, ("prepare", "concepts"), self, "")

    @property
    def repair_text(self) -> str:
        """The lines under `repairs:`; empty if nothing is repaired."""
        return "" if self.repair is None else _entry(self.name, self.repair, ("gates",), self, "repair.")


def _entry(name: str, block: Mapping[str, Any], spread: Sequence[str], draft: AuditDraft, prefix: str) -> str:
    """One audit or repair: a line for each key, and a line for each nested key of the keys in `spread`."""
    lines = [f"  {name}:"]
    for key, value in block.items():
        if key in spread and value:
            lines += _commented(f"    {key}:", f"{prefix}{key}", draft)
            for inner, content in value.items():
                lines += _commented(f"      {inner}: {flow(content)}", f"{prefix}{key}.{inner}", draft)
        else:
            lines += _commented(f"    {key}: {flow(value)}", f"{prefix}{key}", draft)
    return "\n".join(lines) + "\n"


def _commented(line: str, key: str, draft: AuditDraft) -> list[str]:
    note = draft.notes.get(key)
    if note is None:
        return [line]
    if key in draft.above:
        indent = line[: len(line) - len(line.lstrip())]
        return [*(f"{indent}# {part}" for part in note.splitlines()), line]
    return [f"{line.ljust(_COMMENT_AT)}  # {note}"]


def flow(value: Any, *, inside: bool = False) -> str:
    """A value in one line of YAML; `inside` brackets, some words need quotes that are not needed elsewhere."""
    if isinstance(value, Mapping):
        pairs = (f"{flow(key, inside=True)}: {flow(inner, inside=True)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(flow(inner, inside=True) for inner in value)}]"
    if isinstance(value, float):
        return np.format_float_positional(value, trim="-")  # YAML would read an exponent as text
    dumped = yaml.safe_dump([value] if inside else value, default_flow_style=inside, width=_WIDTH, allow_unicode=True)
    return str(dumped).strip()[1:-1] if inside else str(dumped).removesuffix("\n...\n").strip()


def with_blocks(text: str, old: tuple[str, str] | None, draft: AuditDraft) -> str:
    """The text of params.yaml with an audit and its repair added; every other byte stays the same.

    Args:
        text: the text of params.yaml.
        old: the lines that an earlier, unfinished run wrote for the audit, which are replaced; None if there are none.
        draft: what to write.

    Raises:
        UsageError: if the file's layout does not allow this without changing other lines.
    """
    if old is not None:
        text = without(text, old)
    before = yaml.safe_load(text) or {}
    expected = {**before, "audits": {**(before.get("audits") or {}), draft.name: _plain(draft.audit)}}
    after = _inserted(text, "audits", draft.audit_text)
    if draft.repair is not None:
        expected["repairs"] = {**(before.get("repairs") or {}), draft.name: _plain(draft.repair)}
        after = _inserted(after, "repairs", draft.repair_text)
    with contextlib.suppress(yaml.YAMLError):
        if yaml.safe_load(after) == expected:
            return after
    raise UsageError(
        f"params.yaml is laid out so that nothing can be added without touching more of it; write there yourself"
        f"\n\naudits:\n{draft.audit_text}\nrepairs:\n{draft.repair_text or '  {}'}"
    )


def without(text: str, old: tuple[str, str]) -> str:
    """The text of params.yaml without the lines that an earlier, unfinished run wrote."""
    for key, written in zip(("audits", "repairs"), old, strict=True):
        if not written:
            continue
        blank = f"\n\n{written}"
        text = text.replace(blank, "\n", 1) if blank in text else text.replace(written, "", 1)
        if (yaml.safe_load(text) or {}).get(key) is None:
            text = re.sub(rf"^{key}:", f"{key}: {{}}", text, count=1, flags=re.MULTILINE)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _inserted(text: str, key: str, lines: str) -> str:
    """The text with lines added at the end of the mapping under a top-level key, which may be missing, empty or {}."""
    root = yaml.compose(text)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = next(((k, v) for k, v in pairs if k.value == key), None)
    if found is None:
        gap = "\n" if text.strip() else ""
        return f"{text.rstrip(chr(10))}{chr(10) if text.strip() else ''}{gap}{key}:\n{lines}"
    name, value = found
    if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
        end = _line_end(text, _last(value))
        gap = "" if text[:end].endswith("\n") else "\n"
        return f"{text[:end]}{gap}\n{lines}{text[end:]}"
    # {} or nothing: keep the comment behind it.
    start = name.end_mark.index + 1
    stop = value.end_mark.index if isinstance(value, yaml.MappingNode) else start
    end = _line_end(text, stop)
    head = text[:start] + text[stop:end].rstrip("\n")
    return f"{head}\n{lines}{text[end:]}"


def _last(node: Any) -> int:
    """Where a node's content ends; the end mark of a block is after the comments that follow."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _last(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _last(node.value[-1])
    return int(node.end_mark.index)


def _line_end(text: str, index: int) -> int:
    return text.find("\n", index) + 1 or len(text)
