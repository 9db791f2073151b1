"""The bundle as a file: what it may hold, deterministic writing, and reading that trusts nothing in it."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from flows.evidence.hashes import sha256
from stages.decisions import files as decision_files
from stages.decisions.model import Recorded
from stages.errors import UsageError

SCHEMA = 1
MANIFEST, STATEMENT, ENVELOPE = "manifest.json", "statement.json", "statement.dsse.json"
PARAMS, LOCK = "params.yaml", "dvc.lock"
RATINGS = "ratings.json"  # those in force, whatever the name of their file in params.yaml
SEALS = (MANIFEST, STATEMENT, ENVELOPE)  # what no manifest can name

# What is put in as a whole, by stage; of all other outputs only the hash.
WHOLE = {
    "prepare": ("fingerprint.json", "metrics.json", "provenance.json"),
    "discover": ("metrics.json", "provenance.json"),
    "summarize": (
        *("landscape.json", "landscape.parquet", "verdict.json"),
        *("metrics.json", "provenance.json", "report.html"),
    ),
    "collect_feedback": ("plan.json", "metrics.json", "provenance.json"),
    "restructure": ("metrics.json", "provenance.json"),
    "re_evaluate": ("verdict.json", "metrics.json", "provenance.json", "report.html", "model_card.md"),
}
_WHOLE = "|".join(rf"{stage}/(?:{'|'.join(map(re.escape, names))})" for stage, names in WHOLE.items())
_MEMBER = re.compile(
    rf"(?:{'|'.join(map(re.escape, (*SEALS, PARAMS, LOCK)))})"
    rf"|data/[\w-]+/(?:{_WHOLE}|{re.escape(RATINGS)}|decisions/[0-9a-f]{{16}}(?:\.\d+)?\.yaml)"
)
# No bundle needs others, each of which is damaged in its own way.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LARGEST, LARGEST_SUM, MOST_MEMBERS = 256 * 2**20, 512 * 2**20, 4096  # bytes, bytes, members
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where there is one
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can tell


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read: its members, of which nothing is believed yet, and the manifest."""

    path: Path
    members: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    _parsed: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def audit(self) -> str:
        """The audit it is about."""
        return str(self.manifest["audit"])

    def name(self, stage: str, file: str) -> str:
        """The member that a file of a stage is."""
        return f"data/{self.audit}/{stage}/{file}"

    def has(self, stage: str, file: str) -> bool:
        """Whether it is there."""
        return self.name(stage, file) in self.members

    def member(self, name: str) -> bytes:
        """One member.

        Raises:
            UsageError: when it is not there.
        """
        if name not in self.members:
            raise UsageError(f"{name} is not in the bundle")
        return self.members[name]

    def json(self, stage: str, file: str) -> dict[str, Any]:
        """A member of JSON."""
        name = self.name(stage, file)
        return parse_json(self.member(name), name)

    def yaml(self, name: str) -> dict[str, Any]:
        """A member of YAML; parsed once, as several checks need it."""
        if name not in self._parsed:
            self._parsed[name] = parse_yaml(self.member(name), name)
        return self._parsed[name]

    @property
    def ratings(self) -> str:
        """The member that the ratings in force are."""
        return ratings_member(self.audit)

    @property
    def decisions(self) -> dict[str, bytes]:
        """The decision files, by the name of the member."""
        folder = f"data/{self.audit}/decisions/"
        return {name: data for name, data in self.members.items() if name.startswith(folder)}

    @cached_property
    def chain(self) -> list[decision_files.Kept[Recorded]]:
        """All decisions in their order.

        Raises:
            UsageError: when one is none, or the chain is broken.
        """
        kept = []
        for name, data in self.decisions.items():
            self.yaml(name)  # refuses aliases
            path = PurePosixPath(name)
            decision = decision_files.parse_decision(data, path, Recorded)  # type: ignore[arg-type]  # for messages
            if path.name.partition(".")[0] != decision.landscape:
                raise UsageError(f"{name} decides on landscape {decision.landscape}, not on the one in its name")
            kept.append(decision_files.Kept(path, sha256(data), decision))  # type: ignore[arg-type]
        return decision_files.order_chain(kept)


def ratings_member(audit: str) -> str:
    """The member that the ratings in force are; several audits can share a file, which lies with one of them."""
    return f"data/{audit}/{RATINGS}"


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UsageError: when it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


def parse_yaml(data: bytes, name: str) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UsageError: when it is none.
    """
    try:
        text = data.decode("utf-8")
        # A few lines of aliases can stand for gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)):
            raise UsageError(f"{name} is not readable as YAML: it has an alias, which no file of a bundle has")
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{name} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{name}: expected a YAML mapping, found {type(value).__name__}")
    return value


def dump_json(data: Mapping[str, Any]) -> bytes:
    """Plain data as the same bytes each time."""
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_yaml(data: Mapping[str, Any]) -> bytes:
    """Plain data as the same bytes each time, without aliases."""
    return yaml.dump(dict(data), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120).encode("utf-8")


def zip_members(members: Mapping[str, bytes]) -> bytes:
    """Pack members; the same ones give the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as file:
        for name in sorted(members, key=lambda name: (name not in SEALS, name)):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            file.writestr(info, members[name], zipfile.ZIP_DEFLATED, 6)
    return packed.getvalue()


def read_bundle(path: Path) -> Bundle:
    """Read a bundle into memory; nothing is unpacked to disk, and nothing in it is believed.

    Raises:
        UsageError: when it is no bundle: not a zip, with names or sizes that no bundle has, or damaged.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, expected the zip file that `faded evidence` names")
    try:
        with zipfile.ZipFile(path) as file:
            members = _read_members(path, file)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise UsageError(f"{path} is no evidence bundle: {error}") from None
    if MANIFEST not in members:
        raise UsageError(f"{path} is no evidence bundle: it has no {MANIFEST}")
    manifest = parse_json(members[MANIFEST], f"{MANIFEST} of {path}")
    if manifest.get("schema") != SCHEMA or not isinstance(manifest.get("parts"), dict):
        raise UsageError(
            f"{path}: {MANIFEST} has schema {manifest.get('schema')!r}, this version reads {SCHEMA} with `parts`"
        )
    return Bundle(path, members, manifest)


def _read_members(path: Path, file: zipfile.ZipFile) -> dict[str, bytes]:
    entries = file.infolist()
    if len(entries) > MOST_MEMBERS:
        raise UsageError(f"{path} is no evidence bundle: {len(entries):,} members, expected {MOST_MEMBERS:,} at most")
    members: dict[str, bytes] = {}
    left = LARGEST_SUM
    for entry in entries:
        if not _MEMBER.fullmatch(entry.filename):
            raise UsageError(f"{path} is no evidence bundle: it has a member {entry.filename!r}, which no bundle has")
        if entry.filename in members:
            raise UsageError(f"{path} is no evidence bundle: it has {entry.filename} twice")
        if entry.flag_bits & 1:
            raise UsageError(f"{path} is no evidence bundle: {entry.filename} is encrypted")
        if entry.compress_type not in _COMPRESSIONS:
            method = f"is compressed by zip's method {entry.compress_type}, expected 0 (stored) or 8 (deflated)"
            raise UsageError(f"{path} is no evidence bundle: {entry.filename} {method}")
        limit = min(LARGEST, left)
        with file.open(entry) as stream:  # a header may say less than there is: what counts is what comes out
            data = _read(stream, limit + 1, f"{path}: {entry.filename}")
        if len(data) > limit:
            raise UsageError(
                f"{path} is no evidence bundle: {entry.filename} makes it larger than {LARGEST_SUM >> 20} MiB"
                f" (or is itself larger than {LARGEST >> 20} MiB)"
            )
        left -= len(data)
        members[entry.filename] = data
    return members


def _read(stream: Any, most: int, what: str) -> bytes:
    import zlib

    try:
        return bytes(stream.read(most))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UsageError(f"{what} is damaged: {error}") from None


def digest_of(members: Mapping[str, bytes]) -> str:
    """SHA-256 of the manifest, which names everything else."""
    return sha256(members[MANIFEST])
