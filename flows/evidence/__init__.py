"""Evidence an outsider can check: an audit's inputs, decisions and results, bound by hashes.

A bundle is one zip file. It contains the small files and the SHA-256 of the large ones, so it can be kept beside a
model for years. `verify_bundle` needs only the bundle.
"""

from flows.evidence.bundle import Bundle, read_bundle
from flows.evidence.checks import Check
from flows.evidence.signature import make_envelope, read_private_key
from flows.evidence.verify import Demands, verify_bundle
from flows.evidence.write import (
    bundles_dir,
    evidence_of,
    keep_evidence,
    sign_bundle,
    sign_by_default,
    why_unfinished,
    write_bundle,
)

__all__ = [
    "Bundle",
    "Check",
    "Demands",
    "bundles_dir",
    "evidence_of",
    "keep_evidence",
    "make_envelope",
    "read_bundle",
    "read_private_key",
    "sign_bundle",
    "sign_by_default",
    "verify_bundle",
    "why_unfinished",
    "write_bundle",
]
