"""State of an `init` that did not finish, from which the next one resumes or starts again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stages.core.environment import WORK
from stages.core.files import read_state, write_state

Written = tuple[str, str]  # the lines of an audit under `audits:` and under `repairs:`, "" for no repair


@dataclass(frozen=True)
class Unfinished:
    """An audit that was written but is not measured yet.

    Args:
        name: name of the audit.
        answers: the person's answers.
        written: the lines that params.yaml may have of it: one of these, as a kill may have come before or after the
            last change; none if it was refused and removed again.
        budget: budget of the search from the command line; None if it was not given.
        probes: probes of the sweep from the command line; None if they were not given.
    """

    name: str
    answers: dict[str, str | bool] = field(default_factory=dict)
    written: tuple[Written, ...] = ()
    budget: int | None = None
    probes: int | None = None

    def found_in(self, params: str) -> Written | None:
        """The lines of it in the text of params.yaml; None if there are none, or somebody has changed them."""
        return next((one for one in self.written if one[0] in params and one[1] in params), None)


def remember(workspace: Path, unfinished: Unfinished) -> None:
    """Store it, atomically."""
    write_state(_path(workspace, unfinished.name), unfinished)


def forget(workspace: Path, name: str) -> None:
    """Remove it, as it is finished."""
    _path(workspace, name).unlink(missing_ok=True)


def unfinished(workspace: Path, params: str) -> Iterator[Unfinished]:
    """Unfinished audits that are still in the text of params.yaml, or were refused, the last one first."""
    folder = workspace / WORK / "init"
    for path in sorted(folder.glob("*.json"), key=lambda path: -path.stat().st_mtime) if folder.is_dir() else []:
        one = read_state(path, Unfinished)
        if one is not None and (not one.written or one.found_in(params) is not None):
            yield one


def unmeasured(workspace: Path) -> list[str]:
    """Names of audits in params.yaml as an unfinished `init` wrote them."""
    text = (workspace / "params.yaml").read_text(encoding="utf-8")
    return [one.name for one in unfinished(workspace, text) if one.written]


def _path(workspace: Path, name: str) -> Path:
    return workspace / WORK / "init" / f"{name}.json"
