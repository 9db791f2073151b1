"""The files of an audit's inputs: links to, or copies of, a person's model and data."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core.errors import UsageError
from stages.core.git import git_root
from stages.params import DATA


@dataclass(frozen=True)
class Placed:
    """A person's file or folder that an audit reads.

    Args:
        name: its name under data/AUDIT/inputs, as params.yaml uses it.
        source: where it is.
        beside: files that it names, relative to its folder; then `name` is a folder that contains it and them.
    """

    name: str
    source: Path
    beside: Sequence[str] = ()


def place_name(source: Path, taken: Sequence[str] = ()) -> str:
    """A free name for a source under inputs: its own, reduced to letters, digits, `.`, `_` and `-`."""
    stem = re.sub(r"[^\w.-]+", "-", source.name).strip(".-") or "files"
    name, n = stem, 1
    while name in taken:
        n += 1
        name = f"{n}-{stem}"
    return name


def place(workspace: Path, audit: str, placed: Sequence[Placed], *, copy: bool) -> list[str]:
    """Put files where the audit looks for them; existing ones are kept.

    Args:
        workspace: folder of params.yaml.
        audit: its name.
        placed: the files, with their names.
        copy: whether to copy instead of link.

    Returns:
        One line per file for people.

    Raises:
        UsageError: if something else has the name.
    """
    inputs = workspace / DATA / audit / "inputs"
    refuse_taken(workspace, audit, placed, copy=copy)
    inputs.mkdir(parents=True, exist_ok=True)
    root = git_root(inputs)
    return [_place(workspace, inputs, one, root, copy=copy) for one in placed]


def refuse_taken(workspace: Path, audit: str, placed: Sequence[Placed], *, copy: bool) -> None:
    """Refuse to place files under names that something else has.

    Raises:
        UsageError: if something else has one of their names.
    """
    for one in placed:
        shown = Path(DATA, audit, "inputs", one.name)
        target = workspace / shown
        if not (target.is_symlink() or target.exists()):
            continue
        source = one.source.resolve()
        if one.beside:
            own = target / one.source.name
            links = not target.is_symlink() and all(p.is_symlink() or p.is_dir() for p in target.rglob("*"))
            held = own.is_file() and (_copied(one, copy=copy) or (links and own.resolve() == source))
        else:
            held = (target.exists() and target.resolve() == source) or (copy and not target.is_symlink())
        if not held:
            raise UsageError(f"{shown} is not {source}: remove it, or choose another --name")


def link_inputs(inputs: Path, others: Path, placed: Sequence[Placed]) -> None:
    """Fill an empty folder with what an audit will find under its inputs, for a trial.

    Args:
        inputs: the folder.
        others: the audit's real inputs, which may already have files.
        placed: what is going to be placed there.
    """
    for one in placed:
        _place(inputs, inputs, one, inputs, copy=False)
    for path in others.iterdir() if others.is_dir() else []:
        if not (inputs / path.name).exists():
            (inputs / path.name).symlink_to(path)


def _copied(one: Placed, *, copy: bool) -> bool:
    """Whether a file is copied: ONNX refuses a model whose parts are links."""
    return copy or one.source.suffix == ".onnx"


def _place(workspace: Path, inputs: Path, one: Placed, root: Path, *, copy: bool) -> str:
    if one.beside:
        return _place_with_others(workspace, inputs, one, root, copy=copy)
    target, shown = inputs / one.name, (inputs / one.name).relative_to(workspace)
    source = one.source.resolve()
    if target.exists() and target.resolve() == source:
        return f"{shown} is {_near(source, workspace)}"
    if target.exists():
        return f"{shown} already exists and is kept"
    partial = inputs / f".{one.name}.partial"
    _remove(partial)
    _copy(source, partial) if copy else _link(source, partial, inputs, root)
    partial.replace(target)
    told = f"{shown} {'is a copy of' if copy else 'links to'} {_near(source, workspace)}"
    return told if copy else told + _far(source, root)


def _place_with_others(workspace: Path, inputs: Path, one: Placed, root: Path, *, copy: bool) -> str:
    """Place a file and those it names, and nothing else from its folder."""
    target, shown = inputs / one.name, (inputs / one.name).relative_to(workspace)
    folder = one.source.parent
    copy = _copied(one, copy=copy)
    names = list(one.beside) if copy else _to_link(folder, one.beside, inputs.resolve())
    names = [one.source.name, *(name for name in names if (folder / name).exists())]
    if copy and target.exists():
        return f"{shown} already exists and is kept"
    partial = inputs / f".{one.name}.partial"
    _remove(partial)
    for name in names:
        source, to = (folder / name).resolve(), partial / name
        to.parent.mkdir(parents=True, exist_ok=True)
        _copy(source, to) if copy else _link(source, to, target / Path(name).parent, root)
    _remove(target)  # links of an earlier run, which may be fewer
    partial.replace(target)
    files = sum((folder / name).is_file() for name in names) - 1
    folders = len(names) - 1 - files
    counted = " and ".join(f"{n:,} {what}(s)" for n, what in ((folders, "folder"), (files, "file")) if n)
    told = f"{shown} {'holds copies of' if copy else 'links to'} {_near(one.source, workspace)}"
    told += f", and {'of' if copy else 'to'} {counted} it names" if counted else ""
    return told if copy else told + _far(one.source.resolve(), root)


def _to_link(folder: Path, names: Sequence[str], inputs: Path) -> list[str]:
    """The folders of the named files, each once; single files where a folder would bring in too much else."""
    home = Path.home().resolve()
    linked: dict[Path, bool] = {}  # folder -> whether it may be linked as a whole
    chosen: dict[str, None] = {}
    parents = sorted({Path(name).parent for name in names}, key=lambda path: len(path.parts))
    for parent in parents:
        real = (folder / parent).resolve()
        small = parent != Path() and not any(one.is_relative_to(real) for one in (inputs, home, folder.resolve()))
        inside = any(linked.get(above, False) for above in parent.parents)
        linked[parent] = small or inside
        if small and not inside:
            chosen[parent.as_posix()] = None
    return [*chosen, *dict.fromkeys(name for name in names if not linked[Path(name).parent])]


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)


def _link(source: Path, target: Path, folder: Path, root: Path) -> None:
    """Link to a source from a file that will be in `folder`; relative within the git repository at `root`."""
    target.symlink_to(os.path.relpath(source, folder.resolve()) if source.is_relative_to(root) else source)


def _far(source: Path, root: Path) -> str:
    if source.is_relative_to(root):
        return ""
    return ", outside the repository: so the link is good on this machine only (--copy takes a copy)"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _near(path: Path, workspace: Path) -> str:
    """A path for people: relative if it is in the workspace."""
    return str(path.relative_to(workspace.resolve())) if path.is_relative_to(workspace.resolve()) else str(path)
