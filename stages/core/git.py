"""Query git."""

import shutil
import subprocess
from pathlib import Path

from stages.core.errors import UsageError


def git(*arguments: str, folder: Path = Path()) -> str | None:
    """Return a git command's output, stripped; None if it fails, or if git or a repository is missing."""
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
    """Return a file of this folder as of a revision; None if it did not exist or git fails."""
    try:
        command = ["git", "show", f"{revision}:./{path.as_posix()}"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def git_root(folder: Path) -> Path:
    """Return the root of the git repository that contains a folder.

    Raises a UsageError if the folder is in no repository, or git is not installed.
    """
    if shutil.which("git") is None:
        raise UsageError("git is not installed: an audit's parameters and decisions are kept in a git repository")
    if (root := git("rev-parse", "--show-toplevel", folder=folder)) is None:
        raise UsageError(
            f"{folder} is in no git repository, in which an audit keeps its parameters and decisions: run `git init`"
            f" there, or name another folder"
        )
    return Path(root).resolve()
