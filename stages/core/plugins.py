"""Tasks, concepts and explorers that other distributions add to Faded by entry points, each under a name.

The stages that may run a distribution's code depend on it: faded.json lists its version and a hash of its files
(stages/code.py).
"""

import hashlib
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.core.errors import UsageError

TASKS, CONCEPTS, EXPLORERS = "faded.tasks", "faded.concepts", "faded.explorers"
GROUPS = (TASKS, CONCEPTS, EXPLORERS)
OWN = "faded"  # the distribution whose entry points are Faded's own

Installed = Mapping[str, tuple[Distribution, set[str]]]
"""Distributions by name, each with the top-level packages that its entry points name."""


def every() -> list[EntryPoint]:
    """Return all entry points for Faded, including its own; slow, because it searches all installed distributions."""
    found = entry_points()
    return [entry for group in GROUPS for entry in found.select(group=group)]


def entry_points_of(group: str, among: Iterable[EntryPoint] | None = None) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, including Faded's own, without importing any.

    Raises a UsageError if two distributions use one name for different things.

    Args:
        group: one of `GROUPS`.
        among: the result of `every`, if the caller has it already.
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
    """Import the object that an entry point names. Raises a UsageError if importing it fails in any way."""
    try:
        return entry.load()
    except Exception as error:  # a plugin's module may raise anything
        told = f"{type(error).__name__}: {error}"
        raise UsageError(f"{_named(entry)}, entry point of {entry.group}, cannot be imported: {told}") from None


def distributions() -> dict[str, str]:
    """Return all other distributions with entry points for Faded: name -> "VERSION HASH", the hash over their files."""
    return _told(installed(every()))


def distributions_of(modules: Iterable[str], among: Installed | None = None) -> dict[str, str]:
    """Return those of `distributions` that contain some modules.

    Args:
        modules: dotted module names.
        among: the result of `installed`, if the caller has it already.
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
    """Return the distributions of the entry points, except Faded's own."""
    found: dict[str, tuple[Distribution, set[str]]] = {}
    for entry in among:
        if entry.dist is not None and entry.dist.name != OWN:
            found.setdefault(entry.dist.name, (entry.dist, set()))[1].add(entry.module.partition(".")[0])
    return dict(sorted(found.items()))


def _files(dist: Distribution, tops: set[str]) -> dict[str, Path]:
    """Return a distribution's files by name, without those that an installer adds.

    An editable installation lists no files of its own, so those of its packages are returned.
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
        # A listed file that was deleted contributes only its name.
        digest.update(name.encode() + b"\0" + (hashlib.sha256(path.read_bytes()).digest() if path.exists() else b""))
    return digest.hexdigest()[:16]
