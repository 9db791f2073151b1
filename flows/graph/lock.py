"""Reads dvc.lock: the stages that ran, and the hashes of their inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.code import read_stages
from stages.core.git import git

LOCK = Path("dvc.lock")


@lru_cache(maxsize=8)
def read_lock(data: bytes) -> dict[str, dict[str, Any]]:
    """The stages in the bytes of a dvc.lock; none if they are not YAML, as after a kill."""
    try:
        content = YAML(typ="safe").load(data)  # YAML 1.2, as DVC writes it: in 1.1 the class `no` is false
    except YAMLError:
        return {}
    stages = content.get("stages") if isinstance(content, dict) else None
    whole = stages if isinstance(stages, dict) else {}
    return {str(name): entry for name, entry in whole.items() if isinstance(entry, dict)}


def locked_stages() -> dict[str, dict[str, Any]]:
    """The stages in the workspace's dvc.lock; none if there is no such file."""
    return read_lock(LOCK.read_bytes()) if LOCK.exists() else {}


def md5_in(stages: Mapping[str, Mapping[str, Any]], key: str, path: str) -> str | None:
    """The MD5 of an output ("outs") or a dependency ("deps") of these stages; None if they do not have it."""
    for entry in stages.values():
        for one in entry.get(key) or ():
            if one.get("path") == path:
                return str(one["md5"]) if "md5" in one else None
    return None


def as_published(audit: str) -> str | None:
    """Whether an audit's results are those that the dvc.lock of git's last commit names: "yes", or what differs first.

    Provenance names the versions of packages, and reports repeat them, so they do not count. None if there are no such
    results, or they were made by other code, with other parameters or from other inputs.
    """
    committed = git("show", f"HEAD:./{LOCK}")
    if committed is None or not LOCK.is_file():
        return None
    published, here = read_lock(committed.encode()), locked_stages()
    names = [name for kind in read_stages() if (name := f"{kind}@{audit}") in published]
    if not names or any(_made_from(published[name]) != _made_from(here.get(name, {})) for name in names):
        return None
    for name in names:
        for out in published[name]["outs"]:
            path = Path(out["path"])
            if path.name == "provenance.json" or path.suffix == ".html":
                continue
            if md5_in({name: here[name]}, "outs", out["path"]) != out["md5"]:
                return f"no, {path} is the first that differs"
    return "yes"


def _made_from(entry: Mapping[str, Any]) -> tuple[object, ...]:
    """What a stage was made from, but for what other stages handed on."""
    inputs = [dep["md5"] for dep in entry.get("deps", ()) if dep["path"].endswith(("/inputs", "/decisions"))]
    return entry.get("params"), inputs
