"""Signed statements beside a bundle, in one file that tools of in-toto read: BUNDLE.zip.intoto.jsonl.

Each line is a DSSE envelope of its own, so that statements of several machines are put together with `cat`.
Source: https://github.com/in-toto/attestation/blob/main/spec/v1/bundle.md.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from flows.evidence.bundle import ENVELOPE, MANIFEST, Bundle, digest_of, dump_json, parse_strict_json
from flows.evidence.checks import Check
from flows.evidence.formats import EVAL_RESULT, STATEMENT_TYPE, TEST_RESULT, every_eval_ever, statements
from flows.evidence.signature import PUBLIC_KEY, TIME, known_keys, read_envelope, sign_statement, signers
from flows.evidence.verify import run_check
from stages.core.errors import UsageError
from stages.core.files import replace_file

REPRODUCTION = "urn:faded:reproduction:v1"
_NAMES = {REPRODUCTION: "reproduction", TEST_RESULT: "test result", EVAL_RESULT: "evaluation result"}
UNKNOWN_SIGNER, DIFFERS = "unknown signer", "DIFFERS"
_LARGEST = 4 * 2**20  # bytes


class Reproduction(BaseModel):
    """The predicate of a reproduction: what was computed again, where, and how it compares with the bundle.

    Args:
        reproduced_on: the time, by the machine's clock.
        stages: the stages that ran again; of others the bundle's results were taken.
        agrees: whether nothing differs by more than noise explains.
        files: how many of their files were compared.
        other_files: those with other bytes, 50 at most; a report also shows the git revision.
        judged: how many numbers and verdicts were compared; `equal` of them are the same, `within_noise` differ by no
            more than the noise they were measured with.
        beyond_noise: the others, in words.
        rest: how many other values differ, whose noise is not known.
        machine: platform, device, Python and versions of packages.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    reproduced_on: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    stages: list[str]
    agrees: bool
    files: NonNegativeInt
    other_files: list[str]
    judged: NonNegativeInt
    equal: NonNegativeInt
    within_noise: NonNegativeInt
    beyond_noise: list[str]
    rest: NonNegativeInt
    machine: dict[str, Any]

    @property
    def summary(self) -> str:
        """The result in one line."""
        apart = f"{len(self.beyond_noise)} beyond noise" if self.beyond_noise else f"{self.rest} others differ"
        told = f"{self.equal} of {self.judged} numbers equal, {self.within_noise} within noise, {apart}"
        others = ", ".join(name for name in self.other_files if not name.endswith("report.html"))
        files = f"{len(self.other_files)} of {self.files} files have other bytes{f' ({others})' if others else ''}"
        return f"{told}; {files}; {self.machine.get('platform', 'machine unknown')}"


def beside(bundle: Path) -> Path:
    """The file of the statements on a bundle."""
    return bundle.with_name(f"{bundle.name}.intoto.jsonl")


def subject(bundle: Bundle) -> dict[str, Any]:
    """A bundle as the subject of a statement: its manifest, because more signatures change the bytes of the zip."""
    return {"name": f"{MANIFEST} of {bundle.audit}", "digest": {"sha256": digest_of(bundle.members)}}


def reproduction_statement(bundle: Bundle, found: Reproduction) -> dict[str, Any]:
    """State that a bundle's audit was computed again."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [subject(bundle)],
        "predicateType": REPRODUCTION,
        "predicate": found.model_dump(),
    }


def add_statements(bundle: Path, made: Iterable[Mapping[str, Any]], private_key: Any) -> Path:
    """Sign statements, write each beside the bundle unless this key has signed the very same one, return their file."""
    path = beside(bundle)
    lines = path.read_bytes().splitlines() if path.is_file() else []
    there = {_signed_by(line) for line in lines}
    more = [json.dumps(sign_statement(one, private_key)).encode() for one in made]
    if new := [line for line in more if _signed_by(line) not in there]:
        replace_file(path, b"".join(line + b"\n" for line in (*lines, *new)))
    return path


def _signed_by(line: bytes) -> tuple[bytes, ...]:
    """What was signed, and by whom: not every kind of key signs twice with the same bytes."""
    try:
        envelope = _envelope(line)
    except UsageError:  # of others, or damaged
        return (line,)
    return envelope.payload, *map(str.encode, envelope.signatures)


def _kind(line: bytes) -> str | None:
    """The type of a statement by Faded; None for lines of others, which readers have to ignore."""
    try:
        envelope = json.loads(line)
        kind = json.loads(base64.b64decode(envelope["payload"]))["predicateType"]
        return kind if kind in _NAMES and PUBLIC_KEY in envelope["signatures"][0] else None
    except Exception:  # anything may be in it
        return None


def _envelope(line: bytes) -> Any:
    return read_envelope(dump_json(parse_strict_json(line, "the statement")))


def write_beside(bundle: Bundle, private_key: Any) -> list[Path]:
    """Write what others read of a bundle beside it: the sign-off sheet, and if it is signed, its other formats.

    Args:
        private_key: the key that signs the statements; None for no statements.
    """
    from flows.evidence.sign_off import sign_off_sheet  # brings pandas, which takes long to import

    made = []
    if ENVELOPE in bundle.members:
        if private_key is not None and (found := statements(bundle)):
            made.append(add_statements(bundle.path, found, private_key))
        made.append(bundle.path.with_name(f"{bundle.path.stem}.every-eval-ever.json"))
        replace_file(made[-1], dump_json(every_eval_ever(bundle)))
    made.append(bundle.path.with_name(f"{bundle.path.stem}.sign-off.html"))
    replace_file(made[-1], sign_off_sheet(bundle, known_keys()))
    return made


def check_statements(bundle: Bundle, known: Mapping[str, str]) -> list[Check]:
    """Check the statements beside a bundle, each by itself; none of them is needed for the bundle to hold.

    Args:
        known: names of known keys, by id.
    """
    path = beside(bundle.path)
    if not path.is_file():
        return []
    if path.stat().st_size > _LARGEST:
        return [Check("", [f"{path} has more than {_LARGEST:,} bytes"], name="statements")]
    lines = [line for line in path.read_bytes().splitlines() if _kind(line) is not None]
    return [run_check(f"statement {n}", partial(_check, bundle, line, known)) for n, line in enumerate(lines, 1)]


def _check(bundle: Bundle, line: bytes, known: Mapping[str, str]) -> Check:
    envelope = _envelope(line)
    key_ids, statement = signers(envelope), parse_strict_json(envelope.payload, "what is signed")
    kind = statement["predicateType"]
    if kind == REPRODUCTION:
        found, word = _reproduced(bundle, statement)
    elif statement in statements(bundle):
        found, word = "follows from the bundle", "yes"
    else:
        raise UsageError("it does not follow from this bundle")
    own = read_envelope(bundle.members[ENVELOPE]).signatures if ENVELOPE in bundle.members else {}
    by = [known.get(key, "an unknown key") + " (who signed the bundle)" * (key in own) for key in key_ids]
    word = word if known.keys() & set(key_ids) else UNKNOWN_SIGNER
    return Check(f"{_NAMES[kind]} by {', '.join(by)}: {found}", [], word)


def _reproduced(bundle: Bundle, statement: Mapping[str, Any]) -> tuple[str, str]:
    try:
        found = Reproduction.model_validate(statement["predicate"])
    except ValidationError as error:
        raise UsageError(f"not a reproduction as this version writes it: {error.error_count()} problem(s)") from None
    if statement != reproduction_statement(bundle, found) or found.agrees == bool(found.beyond_noise):
        raise UsageError("it is about another bundle, or contradicts itself")
    when = datetime.strptime(found.reproduced_on, TIME)
    return f"{when:%Y-%m-%d}, {found.summary}", "yes" if found.agrees else DIFFERS
