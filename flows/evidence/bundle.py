"""A bundle's possible members, and a reader that trusts nothing in them.

It is a zip file: equal members give equal bytes, and reading accounts for every byte of the file.
"""

import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, cast

import yaml

from flows.graph.lock import sha256
from stages.core.errors import UsageError
from stages.decisions import files as decision_files
from stages.decisions.model import RecordedDecision
from stages.decisions.must_pass import MUST_PASS
from stages.params.strict import parse_yaml
from stages.records import AuditFolder, audit_folder
from stages.records.provenance import Manifest, ManifestFile

LARGEST, LARGEST_SUM, MOST_MEMBERS = 24 * 2**20, 64 * 2**20, 4096  # bytes, bytes, members
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can store
_HEADER = struct.Struct("<4s10x3I2H")  # before each member: its mark, CRC-32, both sizes, lengths of name and rest
_MARK = b"PK\x03\x04"


def zip_members(members: Mapping[str, bytes]) -> bytes:
    """Pack members; equal members give equal bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name in sorted(members):
            file.writestr(zip_entry(name), members[name], compresslevel=6)
    return packed.getvalue()


def zip_entry(name: str) -> zipfile.ZipInfo:
    """The entry of a member, which is the same in every bundle."""
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
    return entry


def unzip_members(path: Path) -> dict[str, bytes]:
    """Read all members into memory, if the file is what `zip_members` writes of them.

    Only compressed data may be other than it writes, as they depend on the version of zlib. Sizes are limited twice: by
    what headers declare before anything is unpacked, and while it is unpacked. Raises a UsageError if it cannot be
    read, is damaged or too large, or contains anything that no bundle has.
    """
    members: dict[str, bytes] = {}
    entries, again = [], io.BytesIO()
    try:
        if (size := path.stat().st_size) > (limit := LARGEST_SUM + MOST_MEMBERS * 1024):
            raise zipfile.BadZipFile(f"it has {size:,} bytes, expected {limit:,} at most")
        found = path.read_bytes()
        while found.startswith(_MARK, start := again.tell()):
            entry = _entry_at(found, start)
            _check_entry(entry, members)
            header = entry.FileHeader()
            packed = found[start + len(header) : start + len(header) + entry.compress_size]
            members[entry.filename] = _unpack(packed, entry)
            entries.append(entry)
            again.write(header + packed)
        with zipfile.ZipFile(again, "w") as file:  # writes the directory behind the members
            file.filelist = entries
        if again.getvalue() != found:
            raise zipfile.BadZipFile("around its members, it is not byte for byte what Faded writes")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, ValueError, struct.error) as error:
        raise UsageError(f"{path} is not a valid evidence bundle: {error}") from None
    return members


def _entry_at(found: bytes, start: int) -> zipfile.ZipInfo:
    """The entry of the member whose header starts there, with nothing of it but name, sizes and CRC-32."""
    _, crc, packed, size, length, _ = _HEADER.unpack_from(found, start)
    name = found[start + _HEADER.size : start + _HEADER.size + length].decode("utf-8")
    if not _MEMBER.fullmatch(name):
        raise zipfile.BadZipFile(f"it has a member {name[:200]!r}, which does not belong in a bundle")
    entry = zip_entry(name)
    entry.header_offset, entry.CRC, entry.compress_size, entry.file_size = start, crc, packed, size
    return entry


def _check_entry(entry: zipfile.ZipInfo, before: dict[str, bytes]) -> None:
    if entry.filename <= next(reversed(before), ""):
        raise zipfile.BadZipFile(f"it has {entry.filename} twice, or not in the order of names")
    if len(before) == MOST_MEMBERS:
        raise zipfile.BadZipFile(f"it has more than {MOST_MEMBERS:,} members")
    if entry.file_size > LARGEST:
        raise zipfile.BadZipFile(f"{entry.filename} has {entry.file_size:,} bytes, larger than {LARGEST:,}")
    if (total := sum(map(len, before.values())) + entry.file_size) > LARGEST_SUM:
        raise zipfile.BadZipFile(f"its members have {total:,} bytes, larger than {LARGEST_SUM:,}")


def _unpack(packed: bytes, entry: zipfile.ZipInfo) -> bytes:
    """A member's content, if it is complete and exactly as long as declared."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(packed, entry.file_size + 1)
    except zlib.error as error:
        raise zipfile.BadZipFile(f"{entry.filename} is damaged: {error}") from None
    if not unpacker.eof or unpacker.unused_data or len(data) != entry.file_size or zlib.crc32(data) != entry.CRC:
        raise zipfile.BadZipFile(f"{entry.filename} is damaged: it is not as long as declared, or has another CRC-32")
    return data


SCHEMA = 4  # 1: no MD5; 2: modes not necessarily confirmed; 3: no assets of tasks
MANIFEST, STATEMENT, ENVELOPE = "manifest.json", "statement.json", "statement.dsse.json"
PARAMS, LOCK = "params.yaml", "dvc.lock"
RATINGS = "ratings.json"  # the ratings in force, whatever their file's name in params.yaml
SEALS = (MANIFEST, STATEMENT, ENVELOPE)  # no manifest can name these

# Files that are included whole, by stage; of all other outputs only the hash.
WHOLE = {
    "prepare": ("fingerprint.json", "metrics.json", "provenance.json"),
    "discover": ("metrics.json", "provenance.json"),
    "summarize": ("landscape.json", "landscape.parquet", "provenance.json"),
    "report": ("verdict.json", "metrics.json", "provenance.json", "report.html"),
    "collect_feedback": ("plan.json", "metrics.json", "provenance.json"),
    "restructure": ("metrics.json", "provenance.json"),
    "re_evaluate": ("metrics.json", "provenance.json"),
    "compare": ("comparison.json", "provenance.json"),
    "conclude": ("verdict.json", "metrics.json", "provenance.json", "report.html", "model_card.md"),
}
# Keys that the manifest takes from the provenance of the last stage.
MADE = (
    *("seed", "task", "device", "backend", "dtype", "threads", "batch_size"),
    *("python", "platform", "versions"),
)
_WHOLE = "|".join(rf"{stage}/(?:{'|'.join(map(re.escape, names))})" for stage, names in WHOLE.items())
_MEMBER = re.compile(
    rf"(?:{'|'.join(map(re.escape, (*SEALS, PARAMS, LOCK)))})"
    rf"|data/[\w-]+/(?:{_WHOLE}|{re.escape(RATINGS)}|decisions/(?:[0-9a-f]{{16}}(?:\.\d+)?\.yaml|{MUST_PASS}))"
)
# The beginnings of files' paths below data/<audit>, by their part. All other files are records.
STARTS = {
    "repaired": "restructure/models/repaired/",
    "model": "prepare/model/",
    "control": "restructure/models/control/",
    "data": "prepare/items.parquet",
    "inputs": "inputs/",
    "decisions": "decisions/",
    "landscape": "summarize/landscape.",
    "plan": "collect_feedback/plan.json",
}


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read: its members, none of them verified yet, and the manifest."""

    path: Path
    members: Mapping[str, bytes]
    manifest: Manifest
    _parsed: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def audit(self) -> str:
        return str(self.manifest["audit"])

    def name(self, stage: str, file: str) -> str:
        return f"data/{self.audit}/{stage}/{file}"

    def has(self, stage: str, file: str) -> bool:
        return self.name(stage, file) in self.members

    def member(self, name: str) -> bytes:
        """The content of one member. Raises a UsageError if it is missing."""
        if name not in self.members:
            raise UsageError(f"{name} is not in the bundle")
        return self.members[name]

    @cached_property
    def records(self) -> AuditFolder:
        def read(path: Path) -> bytes:
            data = self.member(path.as_posix())
            if path.suffix == ".json":
                parse_strict_json(data, path.as_posix(), _MOST_OF_A_RECORD)  # stricter than records are
            return data

        return audit_folder(self.audit, read=read)

    def yaml(self, name: str) -> dict[str, Any]:
        """The content of a YAML member; parsed once, as several checks need it."""
        if name not in self._parsed:
            value = parse_yaml(self.member(name), name)
            if not isinstance(value, dict):
                raise UsageError(f"{name}: expected a YAML mapping, found {type(value).__name__}")
            self._parsed[name] = value
        return self._parsed[name]

    @cached_property
    def files(self) -> dict[str, ManifestFile]:
        """All files that the manifest names, in all parts. Raises a UsageError if it names one twice."""
        named: dict[str, ManifestFile] = {}
        for part in self.manifest["parts"].values():
            if twice := named.keys() & part.keys():
                raise UsageError(f"{MANIFEST} names {min(twice)} in two parts")
            named |= part
        return named

    def below(self, path: str) -> dict[str, ManifestFile]:
        """The files in a folder by their paths in it; for a file, the file itself as ""."""
        if path in self.files:
            return {"": self.files[path]}
        start = f"{path}/"
        return {name.removeprefix(start): entry for name, entry in self.files.items() if name.startswith(start)}

    @property
    def last_stage(self) -> str:
        """The stage with the audit's verdict: conclude if its parameters have a repair, else report."""
        return "conclude" if "repairs" in self.yaml(PARAMS) else "report"

    @property
    def ratings(self) -> str:
        return ratings_member(self.audit)

    @property
    def decisions(self) -> dict[str, bytes]:
        folder = f"data/{self.audit}/decisions/"
        return {name: data for name, data in self.members.items() if name.startswith(folder)}

    @cached_property
    def chain(self) -> list[decision_files.DecisionFile]:
        """All decisions in order. Raises a UsageError if one is invalid, or the chain is broken."""
        kept = []
        for name, data in self.decisions.items():
            if not name.endswith(".yaml"):
                continue
            if len(data) > _LARGEST_DECISION:
                raise UsageError(f"{name} has {len(data):,} bytes, expected {_LARGEST_DECISION:,} at most")
            path = PurePosixPath(name)
            decision = decision_files.parse_decision(data, path, RecordedDecision)  # type: ignore[arg-type]  # for messages
            if path.name.partition(".")[0] != decision.landscape:
                raise UsageError(f"{name} decides on landscape {decision.landscape}, not on the one in its name")
            kept.append(decision_files.DecisionFile(path, sha256(data), decision))  # type: ignore[arg-type]
        return decision_files.order_chain(kept)


def stages_until(last: str) -> list[str]:
    """The stages of an audit in their order, up to the one with its verdict."""
    kinds = list(WHOLE)
    return kinds[: kinds.index(last) + 1]


def bundle_part(name: str, audit: str, last: str) -> str:
    """The part of a bundle that a file belongs to; `last` is the stage with the audit's verdict."""
    alone = {PARAMS: "parameters", ratings_member(audit): "ratings", f"data/{audit}/{last}/verdict.json": "verdict"}
    if name in alone:
        return alone[name]
    inside = name.removeprefix(f"data/{audit}/")
    if inside.startswith("decisions/") and not name.endswith(".yaml"):
        return "records"
    return next((part for part, start in STARTS.items() if inside.startswith(start)), "records")


def md5(data: bytes) -> str:
    """DVC's hash of a file, in hex."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def ratings_member(audit: str) -> str:
    """The name of the member with the ratings in force; audits can share a ratings file, which is in one's folder."""
    return f"data/{audit}/{RATINGS}"


_LARGEST_DECISION = 1_000_000  # bytes; parsing takes two hundred times as much memory
_MOST_VALUES = 1_000_000  # in JSON; even an empty value takes a hundred bytes once parsed
_MOST_OF_A_RECORD = 100_000  # all unknown keys are collected for the message: 99,000 take 250 MB


def parse_strict_json(data: bytes, name: str, most: int = _MOST_VALUES) -> dict[str, Any]:
    """Read a JSON object. Raises a UsageError if it is not a valid one."""
    if (values := sum(data.count(sign) for sign in b"[{,")) > most:
        raise UsageError(f"{name} has some {values:,} values, expected {most:,} at most")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a repeated key: other readers might take another one of its values."""
    once: dict[str, Any] = {}
    for key, value in pairs:
        if key in once:
            raise ValueError(f"it has the key {key[:100]!r} twice")
        once[key] = value
    return once


def _no_number(word: str) -> Any:
    raise ValueError(f"it contains {word}, which is not a JSON number")


def dump_json(data: Mapping[str, Any]) -> bytes:
    """Plain data as JSON; equal data give equal bytes."""
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_yaml(data: Mapping[str, Any]) -> bytes:
    """Plain data as YAML without aliases; equal data give equal bytes."""
    return yaml.dump(dict(data), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120).encode("utf-8")


def read_bundle(path: Path) -> Bundle:
    """Read a bundle into memory. Nothing is unpacked to disk, and nothing in it is trusted.

    Raises a UsageError if it is not a bundle: not a zip, damaged, or with names or sizes that no bundle has.
    """
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise UsageError(f"{path} is not a file, expected the zip file that `faded evidence` names")
    members = unzip_members(path)
    if MANIFEST not in members:
        raise UsageError(f"{path} is not a valid evidence bundle: it has no {MANIFEST}")
    manifest = parse_strict_json(members[MANIFEST], f"{MANIFEST} of {path}")
    schema = manifest.get("schema")
    if type(schema) is int and 0 < schema < SCHEMA:
        raise UsageError(
            f"{path} is a bundle of schema {schema}, by an older version, which this one cannot check (it reads"
            f" {SCHEMA}): check it with that version, or have `faded evidence` write it again from the finished audit"
        )
    if schema != SCHEMA or not isinstance(manifest.get("parts"), dict):
        raise UsageError(f"{path}: {MANIFEST} has schema {schema!r}, this version reads {SCHEMA} with `parts`")
    return Bundle(path, members, cast(Manifest, manifest))


def digest_of(members: Mapping[str, bytes]) -> str:
    """SHA-256 of the manifest, which names all other files."""
    return sha256(members[MANIFEST])
