"""What other distributions add to Faded by entry points: tasks, concepts and explorers, each under a name.

A distribution that adds any is a dependency of the stages that may run its code: faded.json names its version and a
hash of its files (stages/code.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.errors import UsageError

TASKS, CONCEPTS, EXPLORERS = "faded.tasks", "faded.concepts", "faded.explorers"
GROUPS = (TASKS, CONCEPTS, EXPLORERS)
OWN = "faded"  # the distribution whose entry points are Faded's own

Installed = Mapping[str, tuple[Distribution, set[str]]]
"""Distributions by name, each with the top-level packages that its entry points name."""


def every() -> list[EntryPoint]:
    """All entry points for Faded, its own among them; it takes a while, as it looks through all that is installed."""
    found = entry_points()
    return [entry for group in GROUPS for entry in found.select(group=group)]


def load(group: str, among: Iterable[EntryPoint] | None = None) -> dict[str, EntryPoint]:
    """The entry points of a group by name, Faded's own among them; none is imported.

    Args:
        group: one of `GROUPS`.
        among: what `every` found, by someone who asks again.

    Raises:
        UsageError: when two distributions have one name for different things.
    """
    found: dict[str, EntryPoint] = {}
    for entry in (entry for entry in (every() if among is None else among) if entry.group == group):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise UsageError(
                f"two distributions have {entry.name!r} in the entry points {group}: {_named(other)} and"
                f" {_named(entry)}; uninstall one"
            )
    return found


def imported(entry: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        UsageError: when it cannot be imported, in whatever way that fails.
    """
    try:
        return entry.load()
    except Exception as error:  # another's module may fail in any way
        told = f"{type(error).__name__}: {error}"
        raise UsageError(f"{_named(entry)}, entry point of {entry.group}, cannot be imported: {told}") from None


def distributions() -> dict[str, str]:
    """All other distributions with entry points for Faded: name -> "VERSION HASH", the hash over their files."""
    return _told(installed(every()))


def distributions_of(modules: Iterable[str], among: Installed | None = None) -> dict[str, str]:
    """Those of `distributions` that some modules belong to.

    Args:
        modules: with dots.
        among: what `installed` found, by someone who asks again.
    """
    tops = {module.partition(".")[0] for module in modules} - {"stages"}
    if not tops:
        return {}
    found = installed(every()) if among is None else among
    return _told({name: one for name, one in found.items() if tops & one[1]})


def _named(entry: EntryPoint) -> str:
    return f"{entry.dist.name if entry.dist else 'an unknown one'} ({entry.value})"


def _told(found: Installed) -> dict[str, str]:
    return {name: f"{dist.version} {_digest(_files(dist, tops))}" for name, (dist, tops) in found.items()}


def installed(among: Iterable[EntryPoint]) -> Installed:
    """Other distributions than Faded's own among those of entry points."""
    found: dict[str, tuple[Distribution, set[str]]] = {}
    for entry in among:
        if entry.dist is not None and entry.dist.name != OWN:
            found.setdefault(entry.dist.name, (entry.dist, set()))[1].add(entry.module.partition(".")[0])
    return dict(sorted(found.items()))


def _files(dist: Distribution, tops: set[str]) -> dict[str, Path]:
    """A distribution's files by name, without what an installer adds.

    One that is installed for development lists none of its own; then they are those of its packages.
    """
    listed = dist.files or () if dist.read_text("RECORD") else ()
    files = {file.as_posix(): Path(str(file.locate())) for file in listed if _is_own(file.parts)}
    if files:
        return files
    for top in sorted({*tops, *(dist.read_text("top_level.txt") or "").split()}):
        spec = find_spec(top)
        for home in map(Path, (spec.submodule_search_locations or [str(spec.origin)]) if spec else ()):
            inside = [file for file in home.rglob("*") if file.is_file()] if home.is_dir() else [home]
            named = {file.relative_to(home.parent): file for file in inside}
            files |= {name.as_posix(): file for name, file in named.items() if _is_own(name.parts)}
    return files


def _is_own(parts: tuple[str, ...]) -> bool:
    top = parts[0]
    added = top == ".." or top.startswith("__editable__") or top.endswith((".dist-info", ".egg-info", ".pth"))
    return not added and "__pycache__" not in parts


def _digest(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        # Of a file that is listed and was deleted there is the name alone.
        digest.update(name.encode() + b"\0" + (hashlib.sha256(path.read_bytes()).digest() if path.exists() else b""))
    return digest.hexdigest()[:16]
