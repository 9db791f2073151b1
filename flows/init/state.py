"""What is kept of an `init` that did not finish, so that the next one goes on or starts anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stages.environment import WORK
from stages.files import read_state, write_state

Written = tuple[str, str]  # the lines of an audit under `audits:` and under `repairs:`, "" for no repair


@dataclass(frozen=True)
class Unfinished:
    """An audit that was written and is not calibrated yet.

    Args:
        name: of the audit.
        answers: what the person answered.
        written: what params.yaml holds of it: one of these, for a kill may have come before or after the last change;
            nothing where it was refused, and taken out again.
        budget: of the search, as the command line said; None where it said nothing.
        probes: of the calibration, likewise.
    """

    name: str
    answers: dict[str, str | bool] = field(default_factory=dict)
    written: tuple[Written, ...] = ()
    budget: int | None = None
    probes: int | None = None

    def found_in(self, params: str) -> Written | None:
        """What of it is in the text of params.yaml; None where nothing is, or somebody has changed it."""
        return next((one for one in self.written if one[0] in params and one[1] in params), None)


def remember(workspace: Path, unfinished: Unfinished) -> None:
    """Keep it, whole or not at all."""
    write_state(_path(workspace, unfinished.name), unfinished)


def forget(workspace: Path, name: str) -> None:
    """It is finished."""
    _path(workspace, name).unlink(missing_ok=True)


def unfinished(workspace: Path, params: str) -> Iterator[Unfinished]:
    """Those that the text of params.yaml still holds, or that were refused, the last one first."""
    folder = workspace / WORK / "init"
    for path in sorted(folder.glob("*.json"), key=lambda path: -path.stat().st_mtime) if folder.is_dir() else []:
        one = read_state(path, Unfinished)
        if one is not None and (not one.written or one.found_in(params) is not None):
            yield one


def uncalibrated(workspace: Path) -> list[str]:
    """Names of audits that params.yaml holds as an `init` wrote them that did not finish."""
    text = (workspace / "params.yaml").read_text(encoding="utf-8")
    return [one.name for one in unfinished(workspace, text) if one.written]


def _path(workspace: Path, name: str) -> Path:
    return workspace / WORK / "init" / f"{name}.json"
