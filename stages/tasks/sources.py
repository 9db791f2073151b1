"""Sources of a task's model and data: loaders selected by a key of their block, and files of users and packages.

A loader is a `Strict` model of its block with a method `errors(inputs) -> list[str]`, which returns what is wrong
without loading anything.

`Source` is their base class, for all tasks.
"""

import importlib.util
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import Field

from stages.core.errors import UsageError, first_problems
from stages.params import Strict, checked
from stages.tasks.contract import TaskContext


class Source(Strict):
    """A block of params.yaml that names a model, data or a judge. Loaders of a task add how to read it."""

    @abstractmethod
    def errors(self, inputs: Path) -> list[str]:
        """Return what is missing, without reading weights or data or using the network; empty if nothing is.

        API keys in the environment are not checked: the machine that plans or downloads need not have them.
        """

    def require(self, inputs: Path) -> None:
        """Raise a UsageError with one line for each error that `errors` finds, if there are any."""
        if errors := self.errors(inputs):
            raise UsageError("\n".join(errors))

    def prefetch(self, inputs: Path) -> list[str]:
        """Download what is needed, so that reading it needs no network; return one line per download."""
        return []

    def origin(self, inputs: Path) -> str:
        """Return the origin for people and the record, with the commit for the hub; "" if unknown before it is read."""
        return ""

    def available(self, inputs: Path, enough: int) -> Mapping[str, int] | None:
        """Count the available items by split ("" for items without a split) as an upper bound, if that is cheap.

        Raises a UsageError if the data cannot be read.

        Args:
            inputs: the folder of the audit's own files.
            enough: number of items wanted; counting may stop there.

        Returns:
            None if counting is not cheap.
        """
        return None

    def repair_errors(self, audit: str, settings: Mapping[str, Any]) -> list[str]:
        """Return why this model or data cannot be repaired with these settings, not checked yet; empty if they can."""
        return []


def collect(check: Callable[[], object]) -> list[str]:
    """Return the lines of the UsageError that a check raises; empty if it raises none."""
    try:
        check()
    except UsageError as error:
        return str(error).splitlines()
    return []


_NAMED = 5  # exclusions that an error names
Loader = TypeVar("Loader", bound=Source)


class ItemCounts(Strict):
    """How many items of each split the audit uses."""

    discover: int = Field(ge=2, le=10_000_000, description="items failures are searched on")
    repair: int = Field(0, ge=0, le=10_000_000, description="items the repair learns from")
    test: int = Field(0, ge=0, le=10_000_000, description="items claims about the repair are made on")


def parse_source(raw: Mapping[str, Any], loaders: Mapping[str, type[Loader]], where: str) -> Loader:
    """Validate the block with the loader whose name is one of its keys. Raises a UsageError, one line per error."""
    found = [name for name in loaders if name in raw]
    # A key may name one loader and be a setting of another: {package: ..., timm: ...} belongs to the loader `package`.
    named = [name for name in found if not any(name in loaders[other].model_fields for other in found if other != name)]
    if len(named) != 1:
        given = ", ".join(map(str, raw)) or "nothing"
        raise UsageError(f"{where}: expected exactly one of the keys {', '.join(loaders)}; found {given}")
    loader = loaders[named[0]]
    return checked(loader, raw, where)


def source_errors(raw: Mapping[str, Any], loaders: Mapping[str, type[Loader]], where: str, inputs: Path) -> list[str]:
    """Return what is wrong with a block and with the files it names; empty if nothing is."""
    try:
        errors: list[str] = parse_source(raw, loaders, where).errors(inputs)
    except UsageError as error:
        return str(error).splitlines()
    return errors


def data_errors(
    raw: Mapping[str, Any], loaders: Mapping[str, type[Loader]], counts: ItemCounts, inputs: Path
) -> list[str]:
    """Return `source_errors` of prepare.data, and whether items are missing if that is cheap to check."""
    if errors := source_errors(raw, loaders, "prepare.data", inputs):
        return errors
    source, wanted = parse_source(raw, loaders, "prepare.data"), counts.model_dump()
    try:
        there = source.available(inputs, sum(wanted.values()))
    except UsageError as error:
        return str(error).splitlines()
    if there is None:
        return []
    lines = [
        f"prepare.items.{split}: {wanted[split]} items wanted, the data have {there[split]}"
        for split in wanted
        if split in there and wanted[split] > there[split]
    ]
    shared = {split: n for split, n in wanted.items() if n and split not in there}
    if sum(shared.values()) > (left := there.get("", 0)):
        asked = " + ".join(f"{n} {split}" for split, n in shared.items())
        lines.append(f"prepare.items: {asked} items wanted, the data have {left}")
    return lines


def check_excluded(what: str, kept: int, skipped: Sequence[Mapping[str, str]], allowed: float) -> None:
    """Check how many entries of the data cannot be used.

    Raises a UsageError when no entry can be used, or too many cannot.

    Args:
        what: the entries, in the plural.
        kept: number of those that can be used.
        skipped: the others, each with its `file` and `reason`.
        allowed: share of entries that may be left out.
    """
    total = kept + len(skipped)
    if total == 0:
        raise UsageError(f"prepare.data: found no {what}")
    if len(skipped) > allowed * total or not kept:
        named = first_problems([f"{one['file']} ({one['reason']})" for one in skipped], _NAMED)
        raise UsageError(
            f"prepare.data: {len(skipped)} of {total} {what} cannot be used, max_excluded allows {allowed:.0%}: {named}"
        )


def missing_splits(context: TaskContext) -> list[str]:
    """Return errors for the splits that a repair needs but `prepare.items` does not count; empty if it counts them."""
    items = context.config.get("items")
    return [
        f"restructure: a repair needs items of the split {split}; set audits.{context.audit}.prepare.items.{split}"
        for split in ("repair", "test")
        if isinstance(items, Mapping) and not items.get(split)
    ]


def package_folder(inputs: Path, package: str, where: str) -> Path:
    """Return the folder of an installed package that only contains files; it is not imported, so no code of it runs.

    Raises a UsageError if it is not installed, with the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        listed = inputs / "packages.txt"
        command = f"pip install --no-deps -r {listed}" if listed.exists() else f"pip install {package}"
        raise UsageError(f"{where}: package {package} is not installed: {command}")
    _check_version(inputs / "packages.txt", package, where)
    return Path(next(iter(spec.submodule_search_locations)))


def _check_version(listed: Path, package: str, where: str) -> None:
    """Check that the named version is installed: the package's files are data, and other versions may differ."""
    wanted = dict(re.findall(r"^([\w.-]+)==([\w.]+)", listed.read_text(), re.MULTILINE)) if listed.exists() else {}
    for name, version in wanted.items():
        if name.replace("-", "_") == package and metadata.version(name) != version:
            raise UsageError(
                f"{where}: {listed} names {name} {version}, installed is {metadata.version(name)}:"
                f" pip install --no-deps -r {listed}"
            )


def package_file(inputs: Path, package: str, name: str, where: str) -> Path:
    """Return one file of an installed package. Raises a UsageError if the package or the file is missing."""
    folder = package_folder(inputs, package, where)
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UsageError(f"{where}: {name} leads out of the package {package}")
    if not (folder / name).is_file():
        raise UsageError(f"{where}: package {package} has no file {name}")
    return folder / name
