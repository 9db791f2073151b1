"""Signatures of bundles: DSSE envelopes, by securesystemslib.

What is signed is the statement with the time of signing. Beside each signature stands the public key that made it, so
that anybody can tell a real signature from a made-up one; whose key that is, only the reader can know.
Source: https://github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.evidence.bundle import dump_json, parse_json
from stages.errors import InfrastructureError, UsageError
from stages.files import replace_file
from stages.keys import MACHINE, keys_dir, private_key, public_pem

PAYLOAD_TYPE = "application/vnd.in-toto+json"
KINDS = "Ed25519, ECDSA (P-256, P-384, P-521) or RSA"
SIGNED_ON, _TIME = "faded_signedOn", "%Y-%m-%dT%H:%M:%SZ"
_PUBLIC_KEY = "publicKey"  # of a signature, beside its keyid and sig


@dataclass(frozen=True)
class Signed:
    """What an envelope whose signatures all hold says.

    Args:
        when: the time that was signed with the statement.
        key_ids: of those who signed.
    """

    when: datetime
    key_ids: tuple[str, ...]


def known_dir() -> Path:
    """Public keys that this user knows, one or more to a file; that of this user's own key is there too."""
    return keys_dir() / "known"


def machine_key() -> Any:
    """The key that signs this user's bundles, made at first use; its public half is put where known keys are.

    Raises:
        UsageError: when its file is not such a key.
        InfrastructureError: when it cannot be read or written.
    """
    key = private_key(MACHINE)
    public, path = public_pem(key), known_dir() / f"{MACHINE}.pem"
    try:
        if not path.exists() or path.read_text() != public:
            replace_file(path, public)
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be written: {error.strerror}") from None
    return key


def known_keys(files: Iterable[Path] | None = None) -> dict[str, str]:
    """Public keys by their ids, each with a name for people.

    Args:
        files: where they are; by default all in `known_dir`.

    Raises:
        UsageError: when one of the files has no key.
    """
    if files is None:
        return {key.keyid: path.stem for path in sorted(known_dir().glob("*.pem")) for key in read_public_keys(path)}
    return {key.keyid: str(path) for path in files for key in read_public_keys(path)}


def read_private_key(path: Path, passphrase: Callable[[], str]) -> Any:
    """Read a private key from a PEM file.

    Args:
        path: the file.
        passphrase: asked only if the key is encrypted.

    Raises:
        UsageError: when it is not such a key, or the passphrase is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _pem(path)
    try:
        try:
            return load_pem_private_key(data, None)
        except TypeError:  # it is encrypted
            return load_pem_private_key(data, passphrase().encode("utf-8"))
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(
            f"{path} is not a readable private key, or its passphrase is wrong; expected PEM of {KINDS}"
        ) from None


def read_public_keys(path: Path) -> list[Any]:
    """Read the public keys of a PEM file, one after the other.

    Raises:
        UsageError: when there is none, or anything else.
    """
    data = _pem(path)
    if b"PRIVATE KEY" in data:
        raise UsageError(f"{path} is a private key: give the public one (`openssl pkey -in {path} -pubout`)")
    end = b"-----END PUBLIC KEY-----"
    try:
        return [_public_key(pem + end) for pem in data.split(end)[:-1] or [data]]
    except ValueError:
        raise UsageError(f"{path} is not a readable public key; expected PEM of {KINDS}") from None


def _public_key(pem: bytes) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

    try:
        return SSlibKey.from_crypto(load_pem_public_key(pem))
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def make_envelope(statement: bytes, private_key: Any, earlier: bytes | None = None) -> tuple[dict[str, Any], str]:
    """Sign a statement.

    Args:
        statement: of the bundle.
        private_key: of `cryptography`.
        earlier: an envelope that holds. Its signatures stay, and so does its time, if that has come: a further
            signature makes no evidence younger.

    Returns:
        The envelope as plain data, and the id of the key.

    Raises:
        UsageError: when the key is of another kind than `KINDS`.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

    now = _now()
    if earlier is not None and check_envelope(earlier, statement).when <= now + _CLOCKS_DIFFER:
        envelope = read_envelope(earlier)
    else:
        envelope = Envelope(_with_time(statement, now.strftime(_TIME)), PAYLOAD_TYPE, {})
    try:
        signature = envelope.sign(CryptoSigner(private_key))
    except ValueError:
        raise UsageError(f"keys of the kind {type(private_key).__name__} are not supported, expected {KINDS}") from None
    signature.unrecognized_fields[_PUBLIC_KEY] = public_pem(private_key)
    return envelope.to_dict(), str(signature.keyid)


_CLOCKS_DIFFER = timedelta(days=1)  # at most, between machines that sign the same evidence


def _now() -> datetime:
    return datetime.now(UTC)


def _with_time(statement: bytes, when: str) -> bytes:
    """What is signed. The statement itself has no time: the same results state the same."""
    content = parse_json(statement, "the statement")
    content["predicate"]["runDetails"]["metadata"] = {SIGNED_ON: when}
    return dump_json(content)


def check_envelope(data: bytes, statement: bytes) -> Signed:
    """Check that an envelope is of a statement, and that each of its signatures was made by the key it names.

    Raises:
        UsageError: saying what does not hold.
    """
    envelope = read_envelope(data)
    metadata = parse_json(envelope.payload, "what is signed")["predicate"]["runDetails"].get("metadata", {})
    when = datetime.strptime(text := metadata[SIGNED_ON], _TIME).replace(tzinfo=UTC)
    if envelope.payload != _with_time(statement, text):
        raise UsageError("what is signed is not the statement of this bundle")
    if not envelope.signatures:
        raise UsageError("it has no signature, expected at least one")
    for key_id, signature in envelope.signatures.items():
        key = _public_key(signature.unrecognized_fields[_PUBLIC_KEY].encode())
        if key.keyid != key_id or not _is_signed_by(envelope, key):
            raise UsageError(f"the signature by key id {key_id[:16]}... is not valid")
    return Signed(when, tuple(envelope.signatures))


def read_envelope(data: bytes) -> Any:
    """Read an envelope; its signatures are not checked by that.

    Raises:
        UsageError: when it is none.
    """
    from securesystemslib.dsse import Envelope

    raw = parse_json(data, "the signed envelope")
    try:
        envelope = Envelope.from_dict(raw)
    except Exception as error:  # whatever somebody else's bytes make of the library
        raise UsageError(f"the signed envelope is malformed: {type(error).__name__}: {error}") from None
    if envelope.payload_type != PAYLOAD_TYPE:
        raise UsageError(f"the signed envelope holds {envelope.payload_type!r}, expected {PAYLOAD_TYPE!r}")
    return envelope


def _is_signed_by(envelope: Any, key: Any) -> bool:
    """Whether one of the envelope's signatures is this public key's and holds."""
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError

    try:
        envelope.verify([key], 1)
    except (VerificationError, UnverifiedSignatureError):
        return False
    return True
