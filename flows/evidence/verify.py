"""Check a bundle anywhere: without the workspace, DVC or any cache, and without running the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flows.evidence import checks
from flows.evidence.bundle import ENVELOPE, STATEMENT, Bundle, read_bundle
from flows.evidence.checks import Found
from flows.evidence.hashes import files_below, sha256, sha256_file
from flows.evidence.judged import check_card, check_ratings, check_verdict
from flows.evidence.signature import is_signed_by, read_envelope, read_public_key
from stages.environment import set_defaults
from stages.errors import UsageError

# Whether the bundle is as it was written; what it holds is another matter.
_SEALS: dict[str, Callable[[Bundle], Found]] = {
    "files": checks.check_files,
    "manifest": checks.check_manifest,
    "statement": checks.check_statement,
}
_CONTENTS: dict[str, Callable[[Bundle], Found]] = {
    "parameters": checks.check_parameters,
    "dvc.lock": checks.check_lock,
    "landscape": checks.check_landscape,
    "ratings": check_ratings,
    "decisions": checks.check_decisions,
    "plan": checks.check_plan,
    "verdict": check_verdict,
    "model card": check_card,
    "provenance": checks.check_provenance,
}
_MODELS = {"repaired": "the repaired model", "model": "the model under test", "control": "the control of the repair"}
_ROOTS = {
    "repaired": "restructure/models/repaired/",
    "model": "prepare/model/",
    "control": "restructure/models/control/",
}
BUNDLE_IN_EXPORT, CARD = "EVIDENCE.zip", "README.md"


@dataclass(frozen=True)
class Check:
    """One line of the result.

    Args:
        name: what was checked.
        found: what was found, in a few words.
        problems: what does not match, each with what was expected and what was found; empty if all holds.
        checked: whether anything was; else `found` says why not.
    """

    name: str
    found: str
    problems: tuple[str, ...] = ()
    checked: bool = True

    @property
    def holds(self) -> bool:
        """Whether all matches."""
        return not self.problems


def verify_bundle(path: Path, key: Path | None = None, model: Path | None = None) -> list[Check]:
    """Check all that a bundle says against itself, and against a key and a model folder if they are at hand.

    Args:
        path: the bundle.
        key: a public key (PEM); with it, a signature by that key is required.
        model: a folder with a model, that is told to be the repaired one, the one under test, or neither.

    Raises:
        UsageError: when it is no bundle, or key or folder cannot be read.
    """
    set_defaults(POT_BACKEND_DISABLE_PYTORCH="1")  # POT would import torch, which takes seconds and checks nothing
    public = read_public_key(key) if key is not None else None
    if model is not None and not model.is_dir():
        raise UsageError(f"{model} is no folder, expected one that holds a model")
    bundle = read_bundle(path)
    results = [*check_seals(bundle, public, key), *(_run(n, partial(c, bundle)) for n, c in _CONTENTS.items())]
    if model is not None:
        results.append(_run("model", lambda: check_model(bundle, model)))
    return results


def check_seals(bundle: Bundle, public: object | None = None, key: Path | None = None) -> list[Check]:
    """Whether a bundle is as it was written, and signed by a public key if one is given; `key` is for messages."""
    sealed = [_run(name, partial(check, bundle)) for name, check in _SEALS.items()]
    return [*sealed, _run("signature", lambda: _signature(bundle, public, key))]


def _run(name: str, check: Callable[[], Found]) -> Check:
    try:
        found = check()
    except UsageError as error:
        return Check(name, "", (str(error),))
    # Bytes of somebody else's may break a check in any way, and then they are not what Faded writes.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        told = f"cannot be checked, for a file is not of the form that Faded writes ({type(error).__name__}: {error})"
        return Check(name, "", (told,))
    return Check(name, found.text if not found.problems else "", tuple(found.problems), found.checked)


def _signature(bundle: Bundle, public: object | None, key: Path | None) -> Found:
    if ENVELOPE not in bundle.members:
        missing = [f"the bundle is not signed, expected a signature by {key}"] if key is not None else []
        return Found("not signed", missing)
    envelope = read_envelope(bundle.members[ENVELOPE])
    if envelope.payload != bundle.members[STATEMENT]:
        return Found("", [f"{ENVELOPE}: what is signed is not {STATEMENT} of this bundle"])
    if not envelope.signatures:
        return Found("", [f"{ENVELOPE}: it has no signature, expected at least one"])
    ids = ", ".join(f"{key_id[:16]}..." for key_id in envelope.signatures)
    if public is None:
        return Found(f"signed by key id {ids}; not checked, as no --key was given", [], checked=False)
    if not is_signed_by(envelope, public):
        wanted = str(getattr(public, "keyid", ""))[:16]
        return Found("", [f"{ENVELOPE}: no valid signature by {key} (key id {wanted}...), found one by key id {ids}"])
    return Found(f"signed by {key}", [])


def check_model(bundle: Bundle, folder: Path) -> Found:
    """Say which of the audit's models a folder holds, file by file.

    An exported one has the model card in the place of its README, and the bundle beside it.
    """
    found = {file.relative_to(folder).as_posix(): sha256_file(file) for file in files_below(folder)}
    if BUNDLE_IN_EXPORT in found and _same_evidence(bundle, folder / BUNDLE_IN_EXPORT):
        del found[BUNDLE_IN_EXPORT]
    parts = bundle.manifest["parts"]
    differences = {part: _unlike(bundle, parts[part], root, found) for part, root in _ROOTS.items() if parts.get(part)}
    best = min(differences, key=lambda part: len(differences[part]))
    n = len(parts[best])
    if not differences[best] and best != "control":
        note = "" if best == "repaired" or "repaired" not in differences else ", not the repaired one"
        return Found(f"{_MODELS[best]}{note}: {n} file(s) match", [])
    if not differences[best]:
        return Found("", [f"{folder} holds {_MODELS['control']}, expected {_MODELS['repaired']}"])
    first = f"{folder} is none of the audit's models; closest is {_MODELS[best]}"
    return Found("", [f"{first}: {line}" for line in differences[best][: checks.MOST_TOLD]])


def _unlike(bundle: Bundle, part: dict[str, dict[str, str]], root: str, found: dict[str, str]) -> list[str]:
    expected = {path.removeprefix(f"data/{bundle.audit}/{root}"): entry["sha256"] for path, entry in part.items()}
    card = bundle.members.get(bundle.name("re_evaluate", "model_card.md"))
    lines = []
    for name, digest in expected.items():
        if name not in found:
            lines.append(f"{name} is missing")
        elif found[name] != digest and not (name == CARD and card is not None and found[name] == sha256(card)):
            lines.append(f"{name}: expected SHA-256 {digest}, found {found[name]}")
    exported = {CARD} if card is not None and found.get(CARD) == sha256(card) else set()
    return lines + [
        f"{name} is not one of its files" for name in found if name not in expected and name not in exported
    ]


def _same_evidence(bundle: Bundle, path: Path) -> bool:
    """Whether a file is this bundle; one of them may have been signed later."""
    try:
        members = read_bundle(path).members
    except UsageError:
        return False
    one, other = ({name: m[name] for name in m if name != ENVELOPE} for m in (bundle.members, members))
    return one == other
