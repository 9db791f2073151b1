"""Signatures of bundles: DSSE envelopes, by securesystemslib.

The signature covers the statement and the time of signing. Each signature comes with the public key that made it, so
anybody can check that it is valid. Whose key it is, only the reader can know.
Source: https://github.com/secure-systems-lab/dsse.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.evidence.bundle import dump_json, parse_strict_json
from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import replace_file
from stages.core.keys import MACHINE, keys_dir, private_key, public_pem

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_LARGEST_PEM = 1 << 20  # bytes read of a file of keys
KINDS = "Ed25519, ECDSA (P-256, P-384, P-521) or RSA"
SIGNED_ON, TIME = "faded_signedOn", "%Y-%m-%dT%H:%M:%SZ"
_ENVELOPE = "the signed envelope"
_CLOCKS_DIFFER = timedelta(days=1)  # largest difference between machines that sign the same evidence
PUBLIC_KEY = "publicKey"  # field of a signature, beside its keyid and sig


def known_dir() -> Path:
    """The folder of public keys that this user knows, one or more per file, including the user's own."""
    return keys_dir() / "known"


def machine_key() -> Any:
    """The key that signs this user's bundles, created at first use; its public half is added to the known keys.

    Raises a UsageError if its file is not a supported key, and an InfrastructureError if it cannot be read or written.
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
    """Names for people of the public keys in PEM files, by default all in `known_dir`, by the keys' ids.

    Raises a UsageError if one of the files has no key.
    """
    if files is None:
        return {key.keyid: path.stem for path in sorted(known_dir().glob("*.pem")) for key in read_public_keys(path)}
    return {key.keyid: str(path) for path in files for key in read_public_keys(path)}


def read_private_key(path: Path, passphrase: Callable[[], str]) -> Any:
    """Read a private key from a PEM file; `passphrase` is called only if it is encrypted.

    Raises a UsageError if it is not a supported key, or the passphrase is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _pem(path)
    try:
        try:
            return load_pem_private_key(data, None)
        except TypeError:  # encrypted
            return load_pem_private_key(data, passphrase().encode("utf-8"))
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(
            f"{path} is not a readable private key, or its passphrase is wrong; expected PEM of {KINDS}"
        ) from None


def read_public_keys(path: Path) -> list[Any]:
    """Read the public keys of a PEM file, in order. Raises a UsageError if it has none, or anything else."""
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
        with path.open("rb") as file:
            return file.read(_LARGEST_PEM)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def make_envelope(statement: bytes, private_key: Any, earlier: bytes | None = None) -> tuple[dict[str, Any], str]:
    """Sign a statement; return the envelope as plain data, and the key's id.

    The signatures of an earlier envelope are kept, and so is its time if that is not in the future: another signature
    does not make evidence newer. Raises a UsageError if the key's kind is not one of `KINDS`.
    """
    from securesystemslib.dsse import Envelope

    now = datetime.now(UTC)
    if earlier is not None and check_envelope(earlier, statement)[0] <= now + _CLOCKS_DIFFER:
        envelope = read_envelope(earlier)
    else:
        envelope = Envelope(_with_time(statement, now.strftime(TIME)), PAYLOAD_TYPE, {})
    key_id = _sign(envelope, private_key)
    return envelope.to_dict(), key_id


def sign_statement(statement: Mapping[str, Any], private_key: Any) -> dict[str, Any]:
    """Sign another statement as it is; return the envelope as plain data.

    Raises a UsageError if the key's kind is not one of `KINDS`.
    """
    from securesystemslib.dsse import Envelope

    envelope = Envelope(dump_json(statement), PAYLOAD_TYPE, {})
    _sign(envelope, private_key)
    return envelope.to_dict()  # type: ignore[no-any-return]


def _sign(envelope: Any, private_key: Any) -> str:
    from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

    try:
        signature = envelope.sign(CryptoSigner(private_key))
    except ValueError:
        raise UsageError(f"keys of the kind {type(private_key).__name__} are not supported, expected {KINDS}") from None
    signature.unrecognized_fields[PUBLIC_KEY] = public_pem(private_key)
    return str(signature.keyid)


def _with_time(statement: bytes, when: str) -> bytes:
    """The bytes to sign. The statement itself has no time, so that equal results give equal statements."""
    content = parse_strict_json(statement, "the statement")
    content["predicate"]["runDetails"]["metadata"] = {SIGNED_ON: when}
    return dump_json(content)


def check_envelope(data: bytes, statement: bytes) -> tuple[datetime, tuple[str, ...]]:
    """Check that an envelope is of a statement, and each signature by the key it names; return when, and the key ids.

    Raises a UsageError with what does not hold.
    """
    envelope = read_envelope(data)
    signed = parse_strict_json(envelope.payload, "what is signed")
    try:
        text = signed["predicate"]["runDetails"]["metadata"][SIGNED_ON]
        when = datetime.strptime(text, TIME).replace(tzinfo=UTC)
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"what is signed has no {SIGNED_ON} like 2026-11-30T14:05:00Z") from None
    if envelope.payload != _with_time(statement, text):
        raise UsageError("what is signed is not the statement of this bundle")
    return when, signers(envelope)


def signers(envelope: Any) -> tuple[str, ...]:
    """The ids of the keys that signed an envelope, if each signature was made by the key it names.

    Raises a UsageError if one was not, or there is none.
    """
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError

    if not envelope.signatures:
        raise UsageError("it has no signature, expected at least one")
    for key_id, signature in envelope.signatures.items():
        key = _public_key(signature.unrecognized_fields[PUBLIC_KEY].encode())
        try:
            valid = key.keyid == key_id and bool(envelope.verify([key], 1))
        except (VerificationError, UnverifiedSignatureError):
            valid = False
        if not valid:
            raise UsageError(f"the signature by key id {key_id[:16]}... is not valid")
    return tuple(envelope.signatures)


def read_envelope(data: bytes) -> Any:
    """Read an envelope without checking its signatures. Raises a UsageError if it is not a valid one."""
    from securesystemslib.dsse import Envelope

    raw = parse_strict_json(data, _ENVELOPE)
    try:
        envelope = Envelope.from_dict(raw)
        # Keys and bytes that no signature covers, and that readers pass over, must not travel under a signature.
        written = dump_json(envelope.to_dict()) == data and all(map(_is_as_written, envelope.signatures.values()))
    except Exception:  # untrusted bytes can make the library raise anything
        written = False
    if not written:
        raise UsageError(
            f"{_ENVELOPE} is not as Faded writes it: expected payload, payloadType and signatures, each with keyid, sig"
            f" and {PUBLIC_KEY}, and nothing else"
        )
    if envelope.payload_type != PAYLOAD_TYPE:
        raise UsageError(f"{_ENVELOPE} holds {envelope.payload_type!r:.100}, expected {PAYLOAD_TYPE!r}")
    return envelope


def _is_as_written(signature: Any) -> bool:
    """Whether a signature has a public key beside keyid and sig, and nothing else, not even around the key."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    given = signature.unrecognized_fields[PUBLIC_KEY]
    return len(signature.unrecognized_fields) == 1 and given == public_pem(load_pem_public_key(given.encode()))
