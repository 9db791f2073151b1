"""What git says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from stages.errors import UsageError


def git(*arguments: str, folder: Path = Path()) -> str | None:
    """What a git command prints, without white space around it; None if it fails, or there is no git or repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def file_at(revision: str, path: Path) -> bytes | None:
    """A file of this folder as it was at a revision; None if it was not there, or git does not know."""
    try:
        command = ["git", "show", f"{revision}:./{path.as_posix()}"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def git_root(folder: Path) -> Path:
    """The git repository a folder is in.

    Raises:
        UsageError: when it is in none, or there is no git.
    """
    if shutil.which("git") is None:
        raise UsageError("git is not installed: an audit's parameters and decisions are kept in a git repository")
    if (root := git("rev-parse", "--show-toplevel", folder=folder)) is None:
        raise UsageError(
            f"{folder} is in no git repository, in which an audit keeps its parameters and decisions: run `git init`"
            f" there, or name another folder"
        )
    return Path(root).resolve()
