"""A bundle's statement in a format that other tools read: an in-toto Statement with SLSA provenance.

It depends only on the manifest and the parameters, so anybody who has these can recreate and compare it.
Sources: https://in-toto.io/Statement/v1 and https://slsa.dev/provenance/v1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flows.evidence.bundle import MANIFEST
from stages.records.provenance import Manifest, ManifestFile, Parts, Revision

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:faded:audit:v1"
BUILDER = "urn:faded:workspace:v1"
_COMPUTED_WITH = ("seed", "device", "backend", "dtype", "threads", "batch_size", "python", "platform")


def make_statement(manifest: Manifest, manifest_sha256: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """State that the audit with these parameters and inputs produced this model and this verdict.

    The subject is the repaired model, or the model under test if there is none.

    Args:
        manifest_sha256: its hash, which makes the statement cover everything else.
    """
    parts = manifest["parts"]
    subject = _subject(manifest)
    needed = [part for part in ("model", "data", "ratings", "decisions") if part != subject]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": entry["sha256"]}} for name, entry in model_files(manifest)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"audit": manifest["audit"], "params": _with_names(params)},
                "internalParameters": {key: manifest.get(key) for key in _COMPUTED_WITH},
                "resolvedDependencies": [*_files(parts, needed), *_revision(manifest["git"])],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": manifest.get("versions") or {}},
                "byproducts": [
                    {"name": MANIFEST, "digest": {"sha256": manifest_sha256}},
                    *_files(parts, ["landscape", "plan", "control", "verdict"]),
                ],
            },
        },
    }


def _with_names(value: Any) -> Any:
    """Return a value of YAML with names for keys, as JSON has them: levels of `usage:` may be numbers."""
    if isinstance(value, Mapping):
        return {str(key): _with_names(inner) for key, inner in value.items()}
    return [_with_names(inner) for inner in value] if isinstance(value, list) else value


def _subject(manifest: Manifest) -> str:
    return "repaired" if manifest["parts"].get("repaired") else "model"


def model_files(manifest: Manifest) -> Iterator[tuple[str, ManifestFile]]:
    """The files of the model that the verdict is about, by their paths in its folder."""
    part = _subject(manifest)
    root = {"repaired": "/restructure/models/repaired/", "model": "/prepare/model/"}[part]
    for path, entry in manifest["parts"][part].items():
        yield path.partition(root)[2] or path, entry


def _files(parts: Parts, names: list[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        for path, entry in (parts.get(name) or {}).items():
            yield {"name": path, "digest": {"sha256": entry["sha256"]}, "annotations": {"part": name}}


def _revision(git: Revision) -> Iterator[dict[str, Any]]:
    if git["revision"]:
        yield {"name": "git", "digest": {"gitCommit": git["revision"]}, "annotations": {"dirty": git["dirty"]}}
