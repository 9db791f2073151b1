"""Restores a workspace, or a folder that was to become one, after an audit was refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flows.workspace.new import WRITTEN
from flows.workspace.pipeline import PARAMS
from stages.environment import WORK
from stages.files import replace_file
from stages.params import DATA

_REMEMBERED = WORK / "init"  # answers, which are kept
_DVC = Path(".dvc")


class Before:
    """The state before an audit is written.

    Args:
        workspace: root folder of its workspace, which need not exist.
        name: name of the audit.

    Attributes:
        made: text of params.yaml once the folder is a workspace, before the audit is in it.
    """

    def __init__(self, workspace: Path, name: str) -> None:
        self.workspace, self._audit = workspace, workspace / DATA / name
        self._missing = [here for here in (workspace, *workspace.parents) if not here.exists()]
        files = (workspace / file for file in (*WRITTEN, "dvc.lock"))
        self._bytes = {path: _bytes(path) for path in files}
        self.made = (self._bytes[workspace / PARAMS] or b"").decode("utf-8", "replace")
        self._held = _below(self._audit)
        self._had = {path: (workspace / path).exists() for path in (_DVC, WORK, DATA)}

    def restore(self) -> None:
        """Remove what was written since, except the remembered answers."""
        for path, data in self._bytes.items():
            if data is None:
                path.unlink(missing_ok=True)
            elif _bytes(path) != data:
                replace_file(path.resolve(), data)
        for path in sorted(_below(self._audit) - self._held, reverse=True):  # contents before their folder
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        if not self._had[_DVC]:
            shutil.rmtree(self.workspace / _DVC, ignore_errors=True)
        if not self._had[WORK] and (self.workspace / WORK).is_dir():
            for path in (self.workspace / WORK).iterdir():
                if path != self.workspace / _REMEMBERED:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        emptied = [self.workspace / DATA] if not self._had[DATA] else []
        for path in (*emptied, *self._missing):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _below(folder: Path) -> set[Path]:
    """A folder and everything in it, without following links."""
    if not folder.is_dir():
        return set()
    return {folder, *(Path(here, name) for here, folders, files in os.walk(folder) for name in (*folders, *files))}
