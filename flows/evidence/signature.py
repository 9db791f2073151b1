"""Signatures by a key the user owns: DSSE envelopes, by securesystemslib.

Source: https://github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.evidence.bundle import parse_json
from stages.errors import UsageError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
KINDS = "Ed25519, ECDSA (P-256, P-384, P-521) or RSA"


def read_private_key(path: Path, passphrase: Callable[[], str]) -> Any:
    """Read a private key from a PEM file.

    Args:
        path: the file.
        passphrase: asked only if the key is encrypted.

    Raises:
        UsageError: when it is no such key, or the passphrase is wrong.
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
            f"{path} is no private key that can be read, or its passphrase is wrong; expected PEM of {KINDS}"
        ) from None


def read_public_key(path: Path) -> Any:
    """Read a public key from a PEM file.

    Raises:
        UsageError: when it is none.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

    data = _pem(path)
    if b"PRIVATE KEY" in data:
        raise UsageError(f"{path} is a private key: give the public one (`openssl pkey -in {path} -pubout`)")
    try:
        return SSlibKey.from_crypto(load_pem_public_key(data))
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no public key that can be read; expected PEM of {KINDS}") from None


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def make_envelope(statement: bytes, private_key: Any, earlier: bytes | None = None) -> tuple[dict[str, Any], str]:
    """Sign a statement; signatures of other keys on the same statement stay.

    Returns:
        The envelope as plain data, and the id of the key.

    Raises:
        UsageError: when the key is of another kind than `KINDS`.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

    envelope = Envelope(statement, PAYLOAD_TYPE, {})
    if earlier is not None:
        with contextlib.suppress(UsageError):  # one that is damaged or of another statement is worth nothing
            if (read := read_envelope(earlier)).payload == statement:
                envelope = read
    try:
        signature = envelope.sign(CryptoSigner(private_key))
    except ValueError:
        raise UsageError(f"keys of the kind {type(private_key).__name__} are not supported, expected {KINDS}") from None
    return envelope.to_dict(), str(signature.keyid)


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


def is_signed_by(envelope: Any, key: Any) -> bool:
    """Whether one of the envelope's signatures is this public key's and holds."""
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError

    try:
        envelope.verify([key], 1)
    except (VerificationError, UnverifiedSignatureError):
        return False
    return True
