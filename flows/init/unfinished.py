"""Audits that `faded init` wrote to params.yaml but has not measured yet, as it was killed or could not prepare one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core.environment import WORK
from stages.core.files import read_state
from stages.params import parse_yaml

RECORDS = WORK / "init"  # by name
Blocks = tuple[Any, Any]  # an audit's block and that of its repair, as params.yaml has them; None for none


def written_blocks(params: str, name: str) -> Blocks:
    """The blocks of an audit in the text of params.yaml."""
    raw = parse_yaml(params.encode(), "params.yaml")
    keys = (raw.get(key) if isinstance(raw, dict) else None for key in ("audits", "repairs"))
    audit, repair = (of.get(name) if isinstance(of, dict) else None for of in keys)
    return audit, repair


@dataclass(frozen=True)
class Unfinished:
    """An audit that was written but is not measured yet.

    Args:
        written: the blocks that params.yaml may have of it, as a kill may have come before or after the last change;
            none if it was refused and removed again.
    """

    name: str
    answers: dict[str, str | bool] = field(default_factory=dict)
    written: tuple[Blocks, ...] = ()
    budget: int | None = None
    probes: int | None = None


def unfinished(workspace: Path, params: str) -> Iterator[Unfinished]:
    """Unfinished audits that are still in the text of params.yaml, or were refused, the last one first."""
    written = (workspace / RECORDS).glob("*.json")
    for path in sorted(written, key=lambda path: path.stat().st_mtime, reverse=True):
        one = read_state(path, Unfinished)
        if one is not None and (not one.written or written_blocks(params, one.name) in one.written):
            yield one


def unmeasured(workspace: Path) -> list[str]:
    """Names of audits in params.yaml as an unfinished `init` wrote them."""
    text = (workspace / "params.yaml").read_text(encoding="utf-8")
    return [one.name for one in unfinished(workspace, text) if one.written]
