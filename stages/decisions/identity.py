"""Identify the author of a decision: a reviewer who signed it with a listed key, or an unverified name.

This works on parsed decisions and the keys in params.yaml, without a workspace, so that an evidence bundle is judged
like its workspace. The keys are `repairs.AUDIT.feedback.keys`: reviewers' names, and the public key of each as one line
(`ssh-ed25519 AAAA...`). If any are listed, only decisions with a valid signature by one of them count; if none are,
names are not verified.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.core.errors import UsageError
from stages.decisions.model import RecordedDecision, Signature
from stages.decisions.names import NOBODY, clean_name, look_alike, same_person

_DOMAIN = b"faded decision 1\n"  # so that a signature of another kind of text is never valid for a decision
NOT_VERIFIED = "name typed, not verified"


@dataclass(frozen=True)
class Identity:
    """The author of a decision.

    Args:
        key_id: id of the listed key that signed it; None for an unverified name.
        problem: why the decision does not count, with what was found and expected, in one sentence; None if it counts.
    """

    name: str
    key_id: str | None = None
    signed: bool = False
    problem: str | None = None

    @property
    def statement(self) -> str:
        """The author for people: "Ada (signed by key 0f3a...)", or "Ada (name typed, not verified)"."""
        return f"{self.name} ({f'signed by key {self.key_id}' if self.signed else NOT_VERIFIED})"


def identity_of(decision: RecordedDecision, keys: Mapping[str, str], audit: str | None = None) -> Identity:
    """Identify the author of a decision, and check whether it counts.

    Args:
        decision: the parsed decision, see `stages.decisions.files.parse_decision`.
        keys: listed keys by reviewer (`repairs.AUDIT.feedback.keys` of params.yaml); empty if there are none.
        audit: the audit that contains the decision; pass it, because a signature is valid for one audit only.
    """
    why = next(_objections(decision, keys, audit), None)
    key_id = decision.signature.key if decision.signature is not None else None
    if why is None:
        return Identity(decision.reviewer, key_id, signed=key_id is not None)
    problem = f"the decision by {decision.reviewer} ({decision.time}) does not count: {why}"
    return Identity(decision.reviewer, key_id, problem=problem)


def _objections(decision: RecordedDecision, keys: Mapping[str, str], audit: str | None) -> Iterator[str]:
    """Yield why a decision does not count; nothing if it does. Later objections assume no earlier ones."""
    name, signature, line = decision.reviewer, decision.signature, keys.get(decision.reviewer)
    if decision.via == "time-out":
        if name != NOBODY or decision.approve or signature is not None or decision.revises:
            yield f"a time-out is a rejection by {NOBODY!r}, without a signature, that takes nobody's place"
        return
    if same_person(name, NOBODY) or look_alike(name, [NOBODY]):
        yield f"{NOBODY!r} is who rejects when the time is up, expected a person"
    if audit is not None and decision.audit not in (None, audit):
        yield f"it is one of audit {decision.audit!r}, expected one of {audit!r}"
    if signature is None:
        if keys:
            yield f"it is not signed, expected a signature by a listed reviewer ({', '.join(keys)})"
        return
    if line is None:
        listed = ", ".join(keys) or "none"
        yield f"it is signed with key {signature.key}, and no key of {name} is listed (reviewers with keys: {listed})"
        return
    if others := [other for other, key in keys.items() if key == line and other != name]:
        yield f"the key of {name} is listed for {', '.join(others)} too, expected a key for each"
    if signature.key != (expected := key_id_of(line)):
        yield f"it is signed with key {signature.key}, expected that of {name}, {expected}"
    if decision.audit is None:
        yield "its signature names no audit"
    if not _holds(line, signature, decision):
        yield f"the signature by key {signature.key} does not hold: the decision was changed after it was signed"


def sign(decision: RecordedDecision, key: Any) -> RecordedDecision:
    """Return the decision with a signature over its whole content.

    Args:
        decision: a decision without a signature, which names its audit.
        key: an Ed25519 private key of `cryptography`.
    """
    bare = decision.model_copy(update={"signature": None})
    value = base64.b64encode(key.sign(signed_bytes(bare))).decode("ascii")
    return bare.model_copy(update={"signature": Signature(key=key_id_of(public_line(key)), value=value)})


def signed_bytes(decision: RecordedDecision) -> bytes:
    """Return the bytes that are signed: the decision without its signature, in canonical form."""
    said = decision.model_dump(mode="json", exclude={"signature"}, exclude_none=True)
    return _DOMAIN + json.dumps(said, sort_keys=True, separators=(",", ":")).encode("ascii")


def _holds(line: str, signature: Signature, decision: RecordedDecision) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        _load(line).verify(base64.b64decode(signature.value), signed_bytes(decision))
    except InvalidSignature:
        return False
    return True


def public_line(key: Any) -> str:
    """Return the public half of a key of `cryptography` as one line, `ssh-ed25519 AAAA...`."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = key.public_key() if hasattr(key, "public_key") else key
    return str(public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii"))


def read_public(text: str) -> str:
    """Read a public key as one line, from that line or from PEM.

    Raises a UsageError if it is not a public Ed25519 key.
    """
    return public_line(_load(text))


def _load(text: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    data = text.strip().encode("utf-8", "replace")
    try:
        key = load_pem_public_key(data) if data.startswith(b"-----BEGIN") else load_ssh_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(
            f"{text.strip()[:60]!r} is not a valid public key: expected a line `ssh-ed25519 AAAA...`, or PEM"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"expected a public Ed25519 key, found {type(key).__name__.removeprefix('_')}")
    return key


def key_id_of(line: str) -> str:
    """Return the first 16 digits of the SHA-256 of a public key's 32 bytes, which people compare."""
    try:
        return hashlib.sha256(base64.b64decode(line.split()[1])[-32:]).hexdigest()[:16]
    except (IndexError, ValueError):
        raise UsageError(f"{line[:60]!r} is not a valid public key: expected a line `ssh-ed25519 AAAA...`") from None


def check_keys(keys: Mapping[str, str]) -> None:
    """Check that listed keys are valid, distinct, and under names that can be distinguished.

    Raises a UsageError if they are not.
    """
    before: list[str] = []
    for name, line in keys.items():
        if name != (clean := clean_name(name)):
            raise UsageError(f"feedback.keys: expected the name {clean!r}, found {name!r}")
        alike = look_alike(name, before) or next((other for other in before if same_person(name, other)), None)
        if alike is not None or same_person(name, NOBODY):
            raise UsageError(f"feedback.keys: {name!r} cannot be told from {alike or NOBODY!r}, expected another name")
        if read_public(line) in [read_public(keys[other]) for other in before]:
            raise UsageError(f"feedback.keys: {name!r} has the same key as another reviewer, expected a key for each")
        before.append(name)
