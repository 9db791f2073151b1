"""The files of an audit's inputs: links to, or copies of, a person's model and data."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from flows.workspace.pipeline import remove_path
from stages.core.errors import UsageError
from stages.core.git import git_root
from stages.params import DATA


@dataclass(frozen=True)
class Placed:
    """A person's file or folder that an audit reads.

    Args:
        name: its name under data/AUDIT/inputs, as params.yaml uses it.
        beside: files that it names, relative to its folder; then `name` is a folder that contains it and them.
    """

    name: str
    source: Path
    beside: Sequence[str] = ()

    def is_copied(self, copy: bool) -> bool:
        """Whether it is copied rather than linked: ONNX refuses a model whose parts are links."""
        return copy or (bool(self.beside) and self.source.suffix == ".onnx")


class PlacedInputs:
    """Assigns names under the audit's inputs to a person's files."""

    def __init__(self, workspace: Path, audit: str) -> None:
        self._inputs = (workspace / DATA / audit / "inputs").resolve()
        self.placed: list[Placed] = []

    def add(self, path: Path, option: str, beside: Sequence[str] = ()) -> str:
        """The name of a file or folder under inputs; a file with others `beside` it gets a folder for all of them.

        Raises a UsageError if it is a folder that contains the workspace or the user's home.
        """
        if path.resolve().is_relative_to(self._inputs):
            return path.resolve().relative_to(self._inputs).as_posix()
        path = path.absolute() if beside else path.resolve()
        inside = self._inputs.is_relative_to(path)
        if path.is_dir() and (inside or Path.home().resolve().is_relative_to(path)):
            raise UsageError(
                f"{option} {path}: this folder holds {'the inputs of the audit itself' if inside else 'a home'}, and"
                " all of it would be linked or copied; put what the audit is to read into a folder of its own"
            )
        known = next((one.name for one in self.placed if one.source == path), None)
        stem = re.sub(r"[^\w.-]+", "-", path.stem if beside else path.name).strip(".-") or "files"
        taken = {one.name for one in self.placed}
        names = (f"{n}-{stem}" if n > 1 else stem for n in count(1))
        name = known or next(name for name in names if name not in taken)
        if known is None:
            self.placed.append(Placed(name, path, tuple(beside)))
        return f"{name}/{path.name}" if beside else name


def place(workspace: Path, audit: str, placed: Sequence[Placed], *, copy: bool) -> list[str]:
    """Put files where the audit looks for them, keep copies that are there, and return a line for people on each.

    Raises a UsageError if something else has the name.
    """
    inputs = workspace / DATA / audit / "inputs"
    refuse_taken(workspace, audit, placed, copy=copy)
    inputs.mkdir(parents=True, exist_ok=True)
    root = git_root(inputs)
    return [_place(workspace, inputs, one, root, copy=copy) for one in placed]


def refuse_taken(workspace: Path, audit: str, placed: Sequence[Placed], *, copy: bool) -> None:
    """Refuse, by a UsageError, to place files under names that something else has."""
    for one in placed:
        shown = Path(DATA, audit, "inputs", one.name)
        target, source = workspace / shown, one.source.resolve()
        if not (target.is_symlink() or target.exists()):
            continue
        own = target / one.source.name if one.beside else target
        held = own.exists() and own.resolve() == source
        if one.beside:
            held &= not target.is_symlink() and all(path.is_symlink() or path.is_dir() for path in target.rglob("*"))
            held |= own.is_file() and one.is_copied(copy)
        elif copy:
            held |= not target.is_symlink()
        if not held:
            raise UsageError(f"{shown} is not {source}: remove it, or choose another --name")


def link_inputs(inputs: Path, others: Path, placed: Sequence[Placed]) -> None:
    """Fill an empty folder with what an audit will find under its inputs, for a trial.

    Args:
        others: the audit's real inputs, which may already have files.
    """
    for one in placed:
        _place(inputs, inputs, one, inputs, copy=False)
    for path in others.iterdir() if others.is_dir() else []:
        if not (inputs / path.name).exists():
            (inputs / path.name).symlink_to(path)


def _place(workspace: Path, inputs: Path, one: Placed, root: Path, *, copy: bool) -> str:
    """Put a file or folder, or a file and those it names, under inputs, all or nothing; return a line for people."""
    source, target, home = one.source.resolve(), inputs / one.name, workspace.resolve()
    shown, near = target.relative_to(workspace), source.relative_to(home) if source.is_relative_to(home) else source
    copy = one.is_copied(copy)
    if not one.beside and target.exists() and target.resolve() == source:
        return f"{shown} is {near}"
    if target.exists() and (copy or not one.beside):
        return f"{shown} already exists and is kept"
    folder, counted, names = one.source.parent, "", [""]
    if one.beside:
        beside = list(one.beside) if copy else _to_link(folder, one.beside, inputs.resolve())
        beside = [name for name in beside if (folder / name).exists()]
        names = [one.source.name, *beside]
        files = sum((folder / name).is_file() for name in beside)
        kinds = ((len(beside) - files, "folder"), (files, "file"))
        counted = " and ".join(f"{n:,} {kind}(s)" for n, kind in kinds if n)
    partial = inputs / f".{one.name}.partial"
    remove_path(partial)
    for name in names:
        path, to = (folder / name).resolve() if name else source, partial / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copytree(path, to) if path.is_dir() else shutil.copy2(path, to)
        else:  # relative within the git repository, from where the link will be
            to.symlink_to(
                os.path.relpath(path, (target / name).parent.resolve()) if path.is_relative_to(root) else path
            )
    remove_path(target)  # links of an earlier run, which may be fewer
    partial.replace(target)
    verb = "links to" if not copy else "holds copies of" if one.beside else "is a copy of"
    told = f"{shown} {verb} {near}" + (f", and {'of' if copy else 'to'} {counted} it names" if counted else "")
    if copy or source.is_relative_to(root):
        return told
    return f"{told}, outside the repository: so the link is good on this machine only (--copy takes a copy)"


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
