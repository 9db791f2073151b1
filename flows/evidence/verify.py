"""Check a bundle anywhere: without the workspace, DVC or any cache, and without running the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from flows.digests import Digests, digests_of, files_below, sha256
from flows.evidence import checks
from flows.evidence.bundle import ENVELOPE, STATEMENT, Bundle, md5, read_bundle
from flows.evidence.checks import Found
from flows.evidence.judged import check_card, check_ratings, check_verdict
from flows.evidence.signature import check_envelope, known_keys
from stages.environment import set_defaults
from stages.errors import UsageError
from stages.records.evidence import ManifestFile

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
UNSIGNED, UNKNOWN_KEY = "UNSIGNED", "unknown key"
BUNDLE_IN_EXPORT, CARD = "EVIDENCE.zip", "README.md"


@dataclass(frozen=True)
class Check:
    """One line of the result.

    Args:
        name: what was checked.
        found: what was found, in a few words.
        problems: what does not match, each with what was expected and what was found; empty if all holds.
        word: what the table says of it if all holds; another one than "yes" where not all could be checked.
    """

    name: str
    found: str
    problems: tuple[str, ...] = ()
    word: str = "yes"

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems


@dataclass(frozen=True)
class Demands:
    """What a bundle has to be beside consistent.

    Args:
        signed: by a known key.
        repaired: about a repaired model.
        passed: with a verdict that is a pass.
        max_age: days since a known key signed it.
    """

    signed: bool = False
    repaired: bool = False
    passed: bool = False
    max_age: float | None = None


NOTHING = Demands()


def verify_bundle(
    path: Path, keys: Sequence[Path] = (), model: Path | None = None, demands: Demands = NOTHING
) -> list[Check]:
    """Check all that a bundle says against itself, and against keys and a model folder if they are at hand.

    Args:
        path: the bundle.
        keys: files of public keys (PEM); with them, a signature by one of these is required. Without, keys that this
            user knows are told from others.
        model: a folder that has to hold the model that the verdict is about.
        demands: what else is asked of it.

    Raises:
        UsageError: when it is not a bundle, or key or folder cannot be read.
    """
    set_defaults(POT_BACKEND_DISABLE_PYTORCH="1")  # POT would import torch, which takes seconds and checks nothing
    if model is not None and not model.is_dir():
        raise UsageError(f"{model} is not a folder, expected one that contains a model")
    known = known_keys(keys or None)
    bundle = read_bundle(path)
    if keys:
        demands = replace(demands, signed=True)
    results = [*check_seals(bundle, known, demands), *(_run(n, partial(c, bundle)) for n, c in _CONTENTS.items())]
    if demands.repaired or demands.passed:
        results.append(_run("demands", lambda: _check_demands(bundle, demands)))
    if model is not None:
        results.append(_run("model", lambda: check_model(bundle, model)))
    return results


def check_seals(bundle: Bundle, known: Mapping[str, str] | None = None, demands: Demands = NOTHING) -> list[Check]:
    """Whether a bundle is as it was written, and who signed it.

    Args:
        bundle: as it was read.
        known: names of keys, by their id.
        demands: of which those on the signature count.
    """
    sealed = [_run(name, partial(check, bundle)) for name, check in _SEALS.items()]
    return [*sealed, _run("signature", lambda: _signature(bundle, known or {}, demands))]


def _run(name: str, check: Callable[[], Found]) -> Check:
    try:
        found = check()
    except UsageError as error:
        return Check(name, "", (str(error),))
    except Exception as error:  # bytes of somebody else's may break a check in any way: they are not what Faded writes
        why = f"{type(error).__name__}: {error}"[:500]
        told = f"cannot be checked: a file is not in Faded's format ({why})"
        return Check(name, "", (told,))
    return Check(name, found.text if not found.problems else "", tuple(found.problems), found.word)


def _signature(bundle: Bundle, known: Mapping[str, str], demands: Demands) -> Found:
    if demands.signed or demands.max_age is not None:
        wanted = f"expected a signature by a known key ({', '.join(sorted(set(known.values()))) or 'there are none'})"
    else:
        wanted = ""
    if ENVELOPE not in bundle.members:
        missing = [f"it is not signed, {wanted}"] if wanted else []
        return Found("so anybody could have made it", missing, UNSIGNED)
    signed = check_envelope(bundle.members[ENVELOPE], bundle.members[STATEMENT])
    by = [f"{known.get(key_id, 'an unknown key')} (key id {key_id[:16]}...)" for key_id in signed.key_ids]
    told = f"{signed.when:%Y-%m-%d %H:%M} UTC by {', '.join(by)}"
    if not known.keys() & set(signed.key_ids):
        return Found(f"{told}; anybody can make a key", [f"{told}; {wanted}"] if wanted else [], UNKNOWN_KEY)
    days = (datetime.now(UTC) - signed.when) / timedelta(days=1)
    if demands.max_age is not None and not -1 <= days <= demands.max_age:  # clocks differ
        return Found("", [f"{told}, {days:,.1f} days ago; expected {demands.max_age:g} at most"])
    return Found(told, [])


def _check_demands(bundle: Bundle, demands: Demands) -> Found:
    passed, subject = bundle.manifest["passed"], "repaired" if bundle.manifest["parts"].get("repaired") else "model"
    problems = []
    if demands.repaired and subject != "repaired":
        problems.append(f"its verdict is about {_MODELS['model']}, expected one about {_MODELS['repaired']}")
    if demands.passed and passed is not True:
        problems.append(f"its verdict is {'FAILED' if passed is False else 'not a pass'}, expected a pass")
    return Found("all are met", problems)


def check_model(bundle: Bundle, folder: Path) -> Found:
    """A folder holds the model that the verdict is about, file by file: the repaired one if there is one.

    An exported one has the model card in the place of its README, and the bundle beside it.
    """
    found = {file.relative_to(folder).as_posix(): digests_of(file) for file in files_below(folder)}
    if BUNDLE_IN_EXPORT in found and _same_evidence(bundle, folder / BUNDLE_IN_EXPORT):
        del found[BUNDLE_IN_EXPORT]
    parts = bundle.manifest["parts"]
    differences = {part: _unlike(bundle, parts[part], root, found) for part, root in _ROOTS.items() if parts.get(part)}
    [expected, *_] = differences
    if not differences[expected]:
        return Found(f"{_MODELS[expected]}: {len(parts[expected])} file(s) match", [])
    best = min(differences, key=lambda part: len(differences[part]))
    if not differences[best]:
        return Found("", [f"{folder} holds {_MODELS[best]}, expected {_MODELS[expected]}"])
    first = f"{folder} is not one of the audit's models; the closest is {_MODELS[best]}"
    return Found("", [f"{first}: {line}" for line in differences[best][: checks.MOST_TOLD]])


def _unlike(bundle: Bundle, part: Mapping[str, ManifestFile], root: str, found: Mapping[str, Digests]) -> list[str]:
    home = f"data/{bundle.audit}/{root}"
    expected = {path.removeprefix(home): Digests(entry["md5"], entry["sha256"]) for path, entry in part.items()}
    card = bundle.members.get(bundle.name("conclude", "model_card.md"))
    if card is not None and found.get(CARD) == Digests(md5(card), sha256(card)):  # as an exported one has it
        expected[CARD] = found[CARD]
    lines = [f"{name} is missing" for name in expected if name not in found]
    for name, digests in found.items():
        if name not in expected:
            lines.append(f"{name} is not one of its files")
        elif digests != expected[name]:
            pairs = zip(("SHA-256", "MD5"), expected[name][::-1], digests[::-1], strict=True)
            what, wanted, there = next(pair for pair in pairs if pair[1] != pair[2])
            lines.append(f"{name}: expected {what} {wanted}, found {there}")
    return lines


def _same_evidence(bundle: Bundle, path: Path) -> bool:
    """Whether a file is this bundle; one of them may have been signed later."""
    try:
        members = read_bundle(path).members
    except UsageError:
        return False
    one, other = ({name: m[name] for name in m if name != ENVELOPE} for m in (bundle.members, members))
    return one == other
