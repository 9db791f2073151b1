"""Checks of a bundle on any machine: without the workspace, DVC or a cache, and without running the model."""

import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from flows.evidence import checks
from flows.evidence.bundle import ENVELOPE, STARTS, STATEMENT, Bundle, md5, read_bundle
from flows.evidence.checks import Check
from flows.evidence.formats import subject_of
from flows.evidence.signature import check_envelope, known_keys
from flows.graph.lock import Digests, digests_of, sha256
from stages.core.environment import set_defaults
from stages.core.errors import UsageError

# Checks that the bundle is as it was written, whatever its contents.
_SEALS: dict[str, Callable[[Bundle], Check]] = {
    "files": checks.check_files,
    "manifest": checks.check_manifest,
    "statement": checks.check_statement,
}
_CONTENTS: dict[str, Callable[[Bundle], Check]] = {
    "parameters": checks.check_parameters,
    "dvc.lock": checks.check_lock,
    "landscape": checks.check_landscape,
    "ratings": checks.check_ratings,
    "decisions": checks.check_decisions,
    "plan": checks.check_plan,
    "verdict": checks.check_verdict,
    "model card": checks.check_card,
    "provenance": checks.check_provenance,
}
# Parts of a bundle that are models, with names for people; the first that there is is the one the verdict is about.
_MODELS = {"repaired": "the repaired model", "model": "the model under test", "control": "the control of the repair"}
UNSIGNED, UNKNOWN_KEY = "UNSIGNED", "unknown key"
BUNDLE_IN_EXPORT, CARD = "EVIDENCE.zip", "README.md"
SIGNATURE = "model.sig"  # of an exported folder, for others' tools; it is not part of the model


@dataclass(frozen=True)
class Demands:
    """What a bundle has to be besides consistent; `max_age`: days since a known key signed it, at most."""

    signed: bool = False
    repaired: bool = False
    passed: bool = False
    max_age: float | None = None


NOTHING = Demands()


def verify_bundle(
    path: Path, keys: Sequence[Path] = (), model: Path | None = None, demands: Demands = NOTHING
) -> list[Check]:
    """Check a bundle's contents against each other, and against keys and a model folder if they are given.

    Raises a UsageError if it is not a bundle, or a key or the folder cannot be read.

    With files of public keys (PEM), a signature by one of them is required; without, only the result distinguishes keys
    that this user knows from others. A model's folder has to contain the model that the verdict is about.
    """
    set_defaults(POT_BACKEND_DISABLE_PYTORCH="1")  # POT would import torch, which takes seconds for nothing
    if model is not None and not model.is_dir():
        raise UsageError(f"{model} is not a folder, expected one that contains a model")
    known = known_keys(keys or None)
    bundle = read_bundle(path)
    if keys:
        demands = replace(demands, signed=True)
    results = [*check_seals(bundle, known, demands), *(run_check(n, partial(c, bundle)) for n, c in _CONTENTS.items())]
    if demands.repaired or demands.passed:
        results.append(run_check("demands", lambda: _check_demands(bundle, demands)))
    if model is not None:
        results.append(run_check("model", lambda: check_model(bundle, model)))
    return results


def check_seals(bundle: Bundle, known: Mapping[str, str] | None = None, demands: Demands = NOTHING) -> list[Check]:
    """Check that a bundle is as it was written, and who signed it; only demands on the signature matter here."""
    sealed = [run_check(name, partial(check, bundle)) for name, check in _SEALS.items()]
    return [*sealed, run_check("signature", lambda: _signature(bundle, known or {}, demands))]


def run_check(name: str, check: Callable[[], Check]) -> Check:
    """Run one check of untrusted content, which may break it in any way."""
    try:
        result = check()
    except UsageError as error:
        return Check("", (str(error),), name=name)
    except Exception as error:  # untrusted bytes may break a check in any way
        why = f"{type(error).__name__}: {error}"[:500]
        return Check("", (f"cannot be checked: a file is not in Faded's format ({why})",), name=name)
    return replace(result, name=name, found=result.found if result.holds else "")


def _signature(bundle: Bundle, known: Mapping[str, str], demands: Demands) -> Check:
    required = demands.signed or demands.max_age is not None
    expected = f"expected a signature by a known key ({', '.join(sorted(set(known.values()))) or 'there are none'})"
    if ENVELOPE not in bundle.members:
        missing = [f"it is not signed, {expected}"] if required else []
        return Check("so anybody could have made it", missing, UNSIGNED)
    when, key_ids = check_envelope(bundle.members[ENVELOPE], bundle.members[STATEMENT])
    by = [f"{known.get(key_id, 'an unknown key')} (key id {key_id[:16]}...)" for key_id in key_ids]
    summary = f"{when:%Y-%m-%d %H:%M} UTC by {', '.join(by)}"
    if not known.keys() & set(key_ids):
        return Check(f"{summary}; anybody can make a key", [f"{summary}; {expected}"] if required else [], UNKNOWN_KEY)
    days = (datetime.now(UTC) - when) / timedelta(days=1)
    if demands.max_age is not None and not -1 <= days <= demands.max_age:  # -1, as clocks differ
        return Check("", [f"{summary}, {days:,.1f} days ago; expected {demands.max_age:g} at most"])
    return Check(summary)


def _check_demands(bundle: Bundle, demands: Demands) -> Check:
    passed, subject = bundle.manifest["passed"], subject_of(bundle.manifest)
    problems = []
    if demands.repaired and subject != "repaired":
        problems.append(f"its verdict is about {_MODELS['model']}, expected one about {_MODELS['repaired']}")
    if demands.passed and passed is not True:
        problems.append(f"its verdict is {'FAILED' if passed is False else 'not a pass'}, expected a pass")
    return Check("all are met", problems)


def check_model(bundle: Bundle, folder: Path) -> Check:
    """Check that a folder is the model that the verdict is about, file by file: the repaired one if there is one.

    An exported folder has the model card in place of the README, and contains the bundle and perhaps a signature.
    """
    parts = bundle.manifest["parts"]
    card = bundle.members.get(bundle.name("conclude", "model_card.md"), b"")
    sizes = {entry["size"] for part in _MODELS for entry in parts.get(part, {}).values()} | {len(card)}
    found = _handed_over(folder, sizes)
    found.pop(SIGNATURE, None)
    if BUNDLE_IN_EXPORT in found and _same_evidence(bundle, folder / BUNDLE_IN_EXPORT):
        del found[BUNDLE_IN_EXPORT]
    differences = {part: _unlike(bundle, part, found) for part in _MODELS if parts.get(part)}
    [expected, *_] = differences
    if not differences[expected]:
        return Check(f"{_MODELS[expected]}: {len(parts[expected])} file(s) match", [])
    best = min(differences, key=lambda part: len(differences[part]))
    if not differences[best]:
        return Check("", [f"{folder} holds {_MODELS[best]}, expected {_MODELS[expected]}"])
    first = f"{folder} is not one of the audit's models; the closest is {_MODELS[best]}"
    return Check("", [f"{first}: {line}" for line in differences[best][: checks.MOST_SHOWN]])


def _handed_over(folder: Path, sizes: Container[int]) -> dict[str, Digests | None]:
    """The hashes of what is in a folder that somebody handed over; None for what cannot be a file of the model.

    Only regular files of these sizes are read, and links to folders are not followed: anything else may never end.
    """
    found: dict[str, Digests | None] = {}
    for here, folders, files in os.walk(folder):
        for path in (Path(here, name) for name in (*files, *folders)):
            if path.is_dir() and not path.is_symlink():
                continue
            fits = path.is_file() and path.stat().st_size in sizes
            found[path.relative_to(folder).as_posix()] = digests_of(path) if fits else None
    return dict(sorted(found.items()))


def _unlike(bundle: Bundle, part: str, found: Mapping[str, Digests | None]) -> list[str]:
    home, entries = f"data/{bundle.audit}/{STARTS[part]}", bundle.manifest["parts"][part]
    expected = {path.removeprefix(home): Digests(entry["md5"], entry["sha256"]) for path, entry in entries.items()}
    card = bundle.members.get(bundle.name("conclude", "model_card.md"))
    if card is not None and found.get(CARD) == (shown := Digests(md5(card), sha256(card))):  # as in an exported folder
        expected[CARD] = shown
    lines = [f"{name} is missing" for name in expected if name not in found]
    for name, digests in found.items():
        if name not in expected:
            lines.append(f"{name} is not one of its files")
        elif digests is None:
            lines.append(f"{name}: expected {entries[f'{home}{name}']['size']:,} bytes, found another size or no file")
        elif digests != expected[name]:
            pairs = zip(("SHA-256", "MD5"), expected[name][::-1], digests[::-1], strict=True)
            what, wanted, there = next(pair for pair in pairs if pair[1] != pair[2])
            lines.append(f"{name}: expected {what} {wanted}, found {there}")
    return lines


def _same_evidence(bundle: Bundle, path: Path) -> bool:
    """Whether a file is this bundle, apart from later signatures."""
    try:
        members = read_bundle(path).members
    except UsageError:
        return False
    one, other = ({name: m[name] for name in m if name != ENVELOPE} for m in (bundle.members, members))
    return one == other
