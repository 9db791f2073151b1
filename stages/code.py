"""Which code stages run: faded.json names it by content, so that DVC sees that other code was installed.

In Faded's own repository, and in a clone of it, the code lies beside dvc.yaml and DVC watches it there; faded.json only
names plugins. In a workspace of one's own the code is that of the installed package: faded.json has a hash of it for
each stage, over the very files that the repository's dvc.yaml lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from stages import plugins
from stages.errors import UsageError

RECORD = Path("faded.json")
PACKAGE = Path(__file__).parent
GRAPH = PACKAGE / "templates" / "pipeline.yaml"  # in the repository a link to dvc.yaml: DVC reads any of that name
SCHEMA = 1


def read_stages() -> dict[str, Any]:
    """The stages of the one graph, as its file has them."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return cast(dict[str, Any], yaml.load(GRAPH.read_text(encoding="utf-8"), Loader=loader)["stages"])


def is_code(dep: object) -> bool:
    """Whether a dependency of a stage is code of this package."""
    return str(dep).startswith(f"{PACKAGE.name}/")


def code_hashes(*names: str, package: Path = PACKAGE) -> dict[str, str]:
    """For each stage the hash of its code in a package.

    Args:
        names: of stages; all by default.
        package: the folder `stages` of an installation; by default this one.
    """
    from stages.files import content_hash  # which imports what imports this module

    stages = read_stages()
    return {
        name: content_hash(package.parent / dep for dep in stages[name]["do"]["deps"] if is_code(dep))
        for name in names or stages
    }


def installed(*, own: bool) -> dict[str, Any]:
    """What faded.json has to say now.

    Args:
        own: whether it is that of a workspace of one's own.
    """
    code = {"faded": version(plugins.OWN), "code": code_hashes()} if own else {}
    return {"schema": SCHEMA, **code, "plugins": plugins.distributions()}


def read_record(folder: Path = Path()) -> dict[str, Any]:
    """What the faded.json of a workspace says; nothing if it is missing or none of ours."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # damaged: `faded` writes it anew
        return {}
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else {}


def is_own_workspace(folder: Path = Path()) -> bool:
    """Whether the stages of a workspace run from the installed package, and not from a clone."""
    return "code" in read_record(folder)


def check_installed(stage: str) -> None:
    """Refuse to run a stage with other code than faded.json names: DVC would take its results for those of the latter.

    Raises:
        UsageError: naming what was found, what was expected, and what helps.
    """
    record = read_record()
    found: dict[str, Any] = {"code": code_hashes(stage)[stage]} if "code" in record else {}
    expected: dict[str, Any] = {"code": _entry(record, "code").get(stage)} if "code" in record else {}
    if "plugins" in record:
        found["plugins"], expected["plugins"] = plugins.distributions(), record["plugins"]
    if found == expected:
        return
    if found.get("code") == expected.get("code"):
        told = f"{RECORD} names the plugins {_list(expected['plugins'])}, installed are {_list(found['plugins'])}"
    else:
        wrote, here = record.get("faded"), version(plugins.OWN)
        told = f"this workspace was written by faded {wrote}, installed is {here}"
        told += f" with other code for {stage}" if wrote == here else ""
    raise UsageError(f"{told}: run `faded plan` (or any other command), which brings the workspace up to date")


def _entry(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _list(found: Any) -> str:
    return ", ".join(f"{name} {told}" for name, told in found.items()) if isinstance(found, dict) and found else "none"
