"""Bundles for tests: read, changed, and sealed again as a careful forger would."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from flows.evidence.bundle import (
    MANIFEST,
    PARAMS,
    STATEMENT,
    Bundle,
    dump_json,
    md5,
    parse_strict_json,
    read_bundle,
    zip_entry,
)
from flows.evidence.formats import make_statement
from flows.evidence.signature import known_keys
from flows.evidence.verify import Demands, check_seals, verify_bundle
from flows.evidence.write import write_bundle
from flows.graph.lock import sha256
from stages.params import load_params
from tests.finished import inside
from tests.workspace import Workspace

Members = dict[str, bytes]
DATA = "data/tiny"
VERDICT, PLAN = f"{DATA}/conclude/verdict.json", f"{DATA}/collect_feedback/plan.json"
COMPARISON = f"{DATA}/compare/comparison.json"


def bundle_of(workspace: Workspace, audit: str = "tiny") -> Path:
    with inside(workspace):
        path = write_bundle(load_params(), audit)
        assert path is not None
        return path.resolve()


def problems(path: Path, **more: Any) -> dict[str, str]:
    """The mismatches, by the name of the check."""
    return {check.name: "\n".join(check.problems) for check in verify_bundle(path, **more) if not check.holds}


def broken_seals(members: Members) -> str:
    """All mismatches between these members and their seals; much quicker than `problems`."""
    bundle = Bundle(Path("x.zip"), members, parse_strict_json(members[MANIFEST], MANIFEST))
    return "\n".join(problem for check in check_seals(bundle) for problem in check.problems)


def signature(path: Path, *keys: Path) -> str:
    """The problem with a bundle's signature; "" if there is none."""
    checks = check_seals(read_bundle(path), known_keys(keys), Demands(signed=bool(keys)))
    return "\n".join(problem for check in checks for problem in check.problems)


def found(path: Path, name: str, **more: Any) -> str:
    return next(check.found for check in verify_bundle(path, **more) if check.name == name)


def written(path: Path, members: Members) -> Path:
    """A bundle that is not compressed, which would take most of the time."""
    with zipfile.ZipFile(path, "w") as file:
        for name in sorted(members):
            file.writestr(zip_entry(name), members[name], zipfile.ZIP_DEFLATED, 0)
    return path


def resealed(path: Path, members: Members) -> Path:
    """A bundle with manifest and statement remade to fit, as by a careful forger: only its contents can reveal it."""
    manifest = json.loads(members[MANIFEST])
    for part in manifest["parts"].values():
        for name in list(part):
            if part[name]["whole"] and name not in members:
                del part[name]
            elif name in members:
                data = members[name]
                part[name] = {"size": len(data), "md5": md5(data), "sha256": sha256(data), "whole": True}
    members[MANIFEST] = dump_json(manifest)
    follows = make_statement(manifest, sha256(members[MANIFEST]), yaml.safe_load(members[PARAMS]))
    return written(path, {**members, STATEMENT: dump_json(follows)})


def edited(data: bytes, change: Callable[[Any], None]) -> bytes:
    content = json.loads(data)
    change(content)
    return dump_json(content)


def decisions_of(members: Members) -> list[str]:
    return sorted((name for name in members if "/decisions/" in name), key=lambda n: (len(n), n))
