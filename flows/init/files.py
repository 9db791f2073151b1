"""Where an audit's own files come to lie: links to, or copies of, a person's model and data under its inputs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.errors import UsageError
from stages.params import DATA


@dataclass(frozen=True)
class Placed:
    """A file or folder of a person that an audit reads.

    Args:
        name: under data/AUDIT/inputs, where params.yaml names it.
        source: where it is.
    """

    name: str
    source: Path


def git_root(folder: Path) -> Path:
    """The git repository a folder is in.

    Raises:
        UsageError: when it is in none, or there is no git.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UsageError(
            "git is not installed: an audit's parameters and decisions are kept in a git repository"
        ) from None
    if done.returncode != 0:
        raise UsageError(
            f"{folder} is in no git repository, in which an audit keeps its parameters and decisions: run `git init`"
            f" there, or name another folder"
        )
    return Path(done.stdout.strip()).resolve()


def has_commits(folder: Path) -> bool:
    """Whether anything was committed yet in the git repository a folder is in."""
    command = ["git", "-C", str(folder), "rev-parse", "--quiet", "--verify", "HEAD"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def place_name(source: Path, taken: Sequence[str] = ()) -> str:
    """A name for it under inputs: its own, of letters, digits, `.`, `_` and `-`, that is not taken yet."""
    stem = re.sub(r"[^\w.-]+", "-", source.name).strip(".-") or "files"
    name, n = stem, 1
    while name in taken:
        n += 1
        name = f"{n}-{stem}"
    return name


def place(workspace: Path, audit: str, placed: Sequence[Placed], *, copy: bool) -> list[str]:
    """Put files where the audit looks for them; what is there already stays.

    Args:
        workspace: folder of params.yaml.
        audit: its name.
        placed: what, and by which name.
        copy: copies instead of links.

    Returns:
        One line for people for each.

    Raises:
        UsageError: when something else has the name.
    """
    inputs = workspace / DATA / audit / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    return [_place(workspace, inputs, one, copy=copy) for one in placed]


def _place(workspace: Path, inputs: Path, one: Placed, *, copy: bool) -> str:
    target, shown = inputs / one.name, (inputs / one.name).relative_to(workspace)
    source = one.source.resolve()
    if target.exists() and target.resolve() == source:
        return f"{shown} is {_near(source, workspace)}"
    if target.is_symlink() or target.exists():
        if not copy or target.is_symlink():
            raise UsageError(f"{shown} is something else than {source}: remove it, or choose another --name")
        return f"{shown} is there already and stays"
    partial = inputs / f".{one.name}.partial"
    _remove(partial)
    if copy:
        shutil.copytree(source, partial) if source.is_dir() else shutil.copy2(source, partial)
        told = f"{shown} is a copy of {_near(source, workspace)}"
    else:
        inside = source.is_relative_to(git_root(workspace))
        partial.symlink_to(os.path.relpath(source, inputs.resolve()) if inside else source)
        told = f"{shown} links to {_near(source, workspace)}"
        if not inside:
            told += ", outside the repository: so the link is good on this machine only (--copy takes a copy)"
    partial.replace(target)
    return told


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _near(path: Path, workspace: Path) -> str:
    """A path as a person reads it: relative where it lies in the workspace."""
    return str(path.relative_to(workspace.resolve())) if path.is_relative_to(workspace.resolve()) else str(path)
