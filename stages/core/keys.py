"""The user's private keys, outside every workspace: created at first use, readable only by their owner.

A key signs what its owner vouches for: evidence bundles (flows/evidence) and decisions (stages/decisions). Others list
its public half where they look it up; the private half never leaves this folder.
"""

import contextlib
import hashlib
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import new_file

MACHINE = "faded"  # the key that signs the bundles of this user on this machine


def keys_dir() -> Path:
    """Return the folder of the keys: FADED_KEYS, else ~/.config/faded/keys (XDG_CONFIG_HOME is respected)."""
    if named := os.environ.get("FADED_KEYS"):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "faded" / "keys"


def key_path(name: str) -> Path:
    """Return the file of a key; file names stay distinct on file systems that ignore case."""
    plain = re.sub(r"[^a-z0-9]+", "-", unicodedata.normalize("NFKC", name).casefold()).strip("-")[:40]
    told_apart = "" if plain == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return keys_dir() / f"{plain or 'key'}{told_apart}.pem"


def has_key(name: str) -> bool:
    """Whether the user has a private key of that name on this machine."""
    return key_path(name).is_file()


def private_key(name: str) -> Any:
    """Load the Ed25519 key of that name; create it atomically if there is none yet.

    Raises a UsageError if the file is not such a key, or others may read it; an InfrastructureError if it cannot be
    read or written.

    Returns:
        A private key of `cryptography`, as `securesystemslib.signer.CryptoSigner` takes it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = key_path(name)
    if not path.exists():
        _make(path)
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"{path} can be read by others on this machine: run `chmod 600 {path}`, or make a new key")
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        raise UsageError(f"{path} is not an unencrypted private key in PEM: restore it, or remove it") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: expected an Ed25519 key, found {type(key).__name__}")
    return key


def _make(path: Path) -> None:
    """Create a key; if two processes do this at once, the first one's key stays."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            new_file(path, pem, mode=0o600)
    except OSError as error:
        raise InfrastructureError(
            f"a key cannot be made in {path.parent}: {error.strerror}; FADED_KEYS names another folder"
        ) from None


def public_pem(key: Any) -> str:
    """Return the public half of a private or public key of `cryptography`, as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = key.public_key() if hasattr(key, "public_key") else key
    return str(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii"))
