"""Forged evidence: none of it passes a careful reader, and what dvc.lock binds shows even without a signature."""

import base64
import functools
import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import flows.evidence.signature as signatures
from flows.evidence import checks
from flows.evidence.bundle import ENVELOPE, MANIFEST, PARAMS, SEALS, STATEMENT, Bundle, dump_json, read_bundle
from flows.evidence.formats import make_statement
from flows.evidence.signature import known_keys, make_envelope
from flows.evidence.verify import Demands, verify_bundle
from flows.evidence.write import sign_bundle
from flows.graph.lock import sha256
from stages.core.errors import UsageError
from stages.core.keys import public_pem
from tests.bundles import DATA, PLAN, VERDICT, Members, bundle_of, problems, resealed, written
from tests.cases import scaled
from tests.finished import faded

REPORT = f"{DATA}/conclude/report.html"
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
OWN_KEY = Ed25519PrivateKey.generate()  # the forger's


@pytest.fixture(scope="module")
def others(workspace) -> Members:
    """Members of another audit's bundle, which ends with its landscape."""
    return dict(read_bundle(bundle_of(workspace, "other")).members)


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> tuple[Ed25519PrivateKey, Path]:
    """The signer's key, and the file of its public half, which a careful reader has."""
    private, public = Ed25519PrivateKey.generate(), tmp_path_factory.mktemp("key") / "public.pem"
    public.write_text(public_pem(private))
    return private, public


@pytest.fixture(scope="module")
def signed(members, key, tmp_path_factory) -> Members:
    path = written(tmp_path_factory.mktemp("signed") / "x.zip", members)
    sign_bundle(path, key[0])
    return dict(read_bundle(path).members)


def refused(path: Path, public: Path) -> str:
    """The problem that a careful reader is shown; there must be one."""
    try:
        checks = verify_bundle(path, [public], None, Demands(repaired=True, passed=True, max_age=30))
    except UsageError as error:
        return str(error)
    told = "\n".join(problem for check in checks for problem in check.problems)
    assert told, "a forged bundle holds"
    return told


def own_signature(members: Members) -> Members:
    envelope, _ = make_envelope(members[STATEMENT], OWN_KEY)
    return {**members, ENVELOPE: dump_json(envelope)}


# A changed file, with manifest and statement made to fit; test_verify.py has more changes, and what is said of them


def test_a_change_shows_however_it_is_sealed(members, signed, key, tmp_path):
    for name in (VERDICT, PLAN, REPORT):
        sealed = dict(read_bundle(resealed(tmp_path / "x.zip", {**members, name: members[name] + b" "})).members)
        assert refused(written(tmp_path / "own.zip", own_signature(sealed)), key[1])
        told = refused(written(tmp_path / "kept.zip", {**sealed, ENVELOPE: signed[ENVELOPE]}), key[1])
        assert "is not the statement of this bundle" in told


# Files that a bundle has only by hash


def hashes_of(members: Members) -> list[tuple[str, str, str]]:
    parts = json.loads(members[MANIFEST])["parts"]
    return [(p, name, kind) for p in parts for name, e in parts[p].items() for kind in ("sha256", "md5") if kind in e]


def with_hash(members: Members, part: str, name: str, kind: str) -> Members:
    manifest = json.loads(members[MANIFEST])
    manifest["parts"][part][name][kind] = manifest["parts"][part][name][kind][::-1]
    changed = {**members, MANIFEST: dump_json(manifest)}
    follows = make_statement(manifest, sha256(changed[MANIFEST]), yaml.safe_load(members[PARAMS]))
    return {**changed, STATEMENT: dump_json(follows)}


@pytest.mark.slow
def test_no_hash_of_a_manifest_can_be_replaced(members):
    """The repaired model, the one under test, the control, items, inputs, the report, and all others that are named."""
    hashes = hashes_of(members)
    assert {"repaired", "model", "control", "data", "inputs", "verdict", "records"} <= {part for part, *_ in hashes}
    for part, name, kind in hashes:
        changed = with_hash(members, part, name, kind)
        bundle = Bundle(Path("x.zip"), changed, json.loads(changed[MANIFEST]))
        found = (checks.check_files(bundle), checks.check_lock(bundle), checks.check_provenance(bundle))
        assert not all(check.holds for check in found), f"{kind} of {name} can be replaced"


def test_parts_cannot_be_exchanged(members, tmp_path):
    manifest = json.loads(members[MANIFEST])
    parts = manifest["parts"]
    parts["repaired"], parts["model"] = parts["model"], parts["repaired"]
    assert "the part of" in problems(resealed(tmp_path / "x.zip", {**members, MANIFEST: dump_json(manifest)}))["files"]


def test_a_signature_that_is_missing_or_the_forgers_own_improves_nothing(members, signed, key, tmp_path):
    stripped = {name: data for name, data in signed.items() if name != ENVELOPE}
    for forged, problem, word in (
        (stripped, "it is not signed", "UNSIGNED"),
        (own_signature(members), "an unknown key", "unknown key"),
    ):
        path = written(tmp_path / "x.zip", forged)
        assert problem in refused(path, key[1])
        assert [check.word for check in verify_bundle(path) if check.name == "signature"] == [word]


def signed_later(envelope: dict[str, Any]) -> None:
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["predicate"]["runDetails"]["metadata"]["faded_signedOn"] = "2999-01-01T00:00:00Z"
    envelope["payload"] = base64.b64encode(dump_json(payload)).decode()


def first(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda envelope: envelope["signatures"][0].update(changes)


NOT_AS_WRITTEN, NOT_VALID = "is not as Faded writes it", "is not valid"
ENVELOPES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a note": (lambda envelope: envelope.update(note="approved by Ada"), NOT_AS_WRITTEN),
    "a note in the signature": (first(note="approved by Ada"), NOT_AS_WRITTEN),
    "a key with a name": (
        lambda envelope: first(publicKey="Ada\n" + envelope["signatures"][0]["publicKey"])(envelope),
        NOT_AS_WRITTEN,
    ),
    "a payload with more": (lambda envelope: envelope.update(payload="!" + envelope["payload"]), NOT_AS_WRITTEN),
    "no payload": (lambda envelope: envelope.pop("payload"), NOT_AS_WRITTEN),
    "another type": (lambda envelope: envelope.update(payloadType="text/plain"), "envelope"),
    "another time": (signed_later, NOT_VALID),
    "a signature of nothing": (first(sig=base64.b64encode(bytes(64)).decode()), NOT_VALID),
    "the name of no key": (first(keyid="0" * 64), NOT_VALID),
    "the forger's key": (first(publicKey=public_pem(OWN_KEY)), NOT_VALID),
    "no signature": (lambda envelope: envelope.update(signatures=[]), "it has no signature"),
}


@pytest.mark.parametrize("change", ENVELOPES)
def test_an_altered_envelope_is_refused(signed, key, tmp_path, change):
    envelope = json.loads(signed[ENVELOPE])
    edit, problem = ENVELOPES[change]
    edit(envelope)
    told = refused(written(tmp_path / "x.zip", {**signed, ENVELOPE: dump_json(envelope)}), key[1])
    assert problem in told and "Error" not in told


def test_an_envelope_that_is_none_and_the_name_of_a_known_key_are_worth_nothing(members, key, tmp_path):
    for broken in (b"{}", b"[]", b"nothing"):
        assert "envelope" in refused(written(tmp_path / "x.zip", {**members, ENVELOPE: broken}), key[1])
    envelope = json.loads(own_signature(members)[ENVELOPE])
    [known] = known_keys([key[1]])
    envelope["signatures"][0].update(keyid=known)
    assert NOT_VALID in refused(written(tmp_path / "x.zip", {**members, ENVELOPE: dump_json(envelope)}), key[1])


@pytest.mark.parametrize("year", [2020, 2999])
def test_an_old_signature_stays_old_and_one_from_the_future_is_not_young(members, key, tmp_path, monkeypatch, year):
    class Then(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Then":
            return cls(year, 1, 1, tzinfo=tz)

    monkeypatch.setattr(signatures, "datetime", Then)
    path = written(tmp_path / "x.zip", members)
    sign_bundle(path, key[0])
    monkeypatch.undo()
    if year < 2999:
        sign_bundle(path, OWN_KEY)
    assert "expected 30 at most" in refused(path, key[1])


def test_seals_of_another_audit_do_not_fit(signed, others, key, tmp_path):
    for names in ((STATEMENT,), (STATEMENT, ENVELOPE), (ENVELOPE,), (MANIFEST, STATEMENT, ENVELOPE)):
        mixed = {**others, **{name: signed[name] for name in names}}
        assert refused(written(tmp_path / "x.zip", mixed), key[1])


def test_a_signed_bundle_about_another_kind_of_model_is_not_what_was_required(others, key, tmp_path):
    path = written(tmp_path / "x.zip", others)
    sign_bundle(path, key[0])
    assert "about the model under test, expected one about the repaired model" in refused(path, key[1])


def directory_of(raw: bytes) -> int:
    return struct.unpack("<I", raw[-6:-2])[0]


def with_a_gap(raw: bytes) -> bytes:
    """Insert bytes between the members and the directory."""
    start = directory_of(raw)
    return raw[:start] + b"evil" + raw[start:-6] + struct.pack("<IH", start + 4, 0)


def overlapping(raw: bytes) -> bytes:
    """Move the second entry of the directory to the first one's position."""
    start = directory_of(raw)
    second = raw.index(b"PK\x01\x02", start + 1)
    return raw[: second + 42] + raw[start + 42 : start + 46] + raw[second + 46 :]


def in_directory(at: int, new: bytes) -> Callable[[bytes], bytes]:
    """Change the first entry of the directory, and its time in the member's own header."""

    def change(raw: bytes) -> bytes:
        start = directory_of(raw) + at
        raw = raw[:start] + new + raw[start + len(new) :]
        return raw[:10] + new + raw[10 + len(new) :] if at == 12 else raw

    return change


ZIPS: dict[str, Callable[[bytes], bytes]] = {
    "in front": lambda raw: raw + raw,
    "behind": lambda raw: raw + b"\0",
    "comment": lambda raw: raw[:-2] + struct.pack("<H", 4) + b"evil",
    "gap": with_a_gap,
    "another local name": lambda raw: raw[:30] + b"X" + raw[31:],
    "another local size": lambda raw: raw[:22] + struct.pack("<I", 1) + raw[26:],
    "fewer members": lambda raw: raw[:-14] + struct.pack("<2H", 1, 1) + raw[-10:],
    "overlapping": overlapping,
    "links": in_directory(38, struct.pack("<I", 0o120777 << 16)),
    "another time": in_directory(12, struct.pack("<2H", 1, 33)),
    "another system": in_directory(5, b"\0"),
    "for text": in_directory(36, b"\1"),
}


@pytest.mark.parametrize("change", ZIPS)
def test_a_zip_that_can_be_read_in_two_ways_is_refused(signed, key, tmp_path, change):
    path = written(tmp_path / "x.zip", signed)
    path.write_bytes(ZIPS[change](path.read_bytes()))
    assert "is not a valid evidence bundle" in refused(path, key[1])


@functools.cache
def packed_zeros() -> bytes:
    """600 MB of zeros."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(600)) + packer.flush()


def deflated_bomb(path: Path, *, told: int | None = None) -> Path:
    """600 MB of zeros in a member that declares this size, or another one."""
    packed = packed_zeros()
    size, name = 600 * 2**20 if told is None else told, MANIFEST.encode()
    common = struct.pack("<5H3I2H", 20, 0, 8, 0, 33, 0, len(packed), size, len(name), 0)
    local = b"PK\x03\x04" + common + name + packed
    central = b"PK\x01\x02" + struct.pack("<2B", 20, 3) + common + struct.pack("<3H2I", 0, 0, 0, 0o644 << 16, 0) + name
    path.write_bytes(local + central + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, len(central), len(local), 0))
    return path


@pytest.mark.parametrize("told", [None, 1000])
def test_a_bomb_is_refused_before_it_fills_memory(tmp_path, told):
    path = deflated_bomb(tmp_path / "bomb.zip", told=told)
    tracemalloc.start()
    with pytest.raises(UsageError, match="larger than" if told is None else "is not as long as declared"):
        read_bundle(path)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


@settings(max_examples=scaled(60), deadline=None, suppress_health_check=CHECKS)
@given(data=st.data())
def test_a_changed_byte_of_a_bundle_never_holds(signed, key, tmp_path, data):
    raw = bytearray(written(tmp_path / "whole.zip", signed).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "x.zip").write_bytes(raw)
    assert refused(tmp_path / "x.zip", key[1])


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
json_values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars, max_size=3)


def places_in(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, one in inner for found in places_in(one, (*place, key)))]


@settings(max_examples=scaled(15), phases=[Phase.generate], deadline=None, suppress_health_check=CHECKS)
@given(data=st.data())
def test_changed_json_inside_a_bundle_that_was_sealed_again_never_holds(members, tmp_path, data):
    name = data.draw(st.sampled_from(sorted(n for n in members if n.endswith(".json") and n not in SEALS)))
    content = json.loads(members[name])
    *place, last = data.draw(st.sampled_from([place for place in places_in(content) if place]))
    target = content
    for key in place:
        target = target[key]
    target[last] = data.draw(json_values)
    if content != json.loads(members[name]):
        assert problems(resealed(tmp_path / "x.zip", {**members, name: dump_json(content)}))


def test_the_unrepaired_model_is_not_what_a_repair_was_judged_by(workspace, signed, key, tmp_path):
    path = written(tmp_path / "x.zip", signed)
    for folder, expected in (("restructure/models/repaired", 0), ("prepare/model", 1)):
        told = faded(workspace, "verify", path, "--key", key[1], "--model", workspace.path / DATA / folder)
        assert told[0] == expected, told
    assert "holds the model under test, expected the repaired model" in told[1]


def test_another_audit_name_that_looks_alike_shows(members, key, tmp_path):
    like = "t\u0456ny"
    renamed = {name.replace("tiny", like): data.replace(b"tiny", like.encode()) for name, data in members.items()}
    path = written(tmp_path / "x.zip", renamed)
    assert refused(path, key[1]) and problems(path)


@settings(max_examples=scaled(60), deadline=None, suppress_health_check=CHECKS)
@given(st.binary(max_size=400))
def test_any_bytes_at_all_are_refused(key, tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    assert "is not a valid evidence bundle" in refused(tmp_path / "x.zip", key[1])
