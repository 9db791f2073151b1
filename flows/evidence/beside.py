"""Signed statements beside a bundle, in one file that tools of in-toto read: BUNDLE.zip.intoto.jsonl.

Each line is a DSSE envelope of its own, so that statements of several machines are put together with `cat`.
Source: https://github.com/in-toto/attestation/blob/main/spec/v1/bundle.md.

The sign-off sheet is two A4 pages to print, on which people sign what a bundle says and what it does not. Each number
is mapped to the provisions under which it is evidence: Regulation (EU) 2024/1689 (the AI Act), Articles 9 and 15 and
Annex IV, and the functions of the NIST AI Risk Management Framework 1.0 (NIST AI 100-1).
"""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from flows.evidence.bundle import ENVELOPE, MANIFEST, PARAMS, STATEMENT, Bundle, digest_of, dump_json, parse_strict_json
from flows.evidence.checks import Check, decided
from flows.evidence.formats import (
    EVAL_RESULT,
    STATEMENT_TYPE,
    TEST_RESULT,
    every_eval_ever,
    gates_of,
    items_of,
    model_digest,
    shown_measures,
    statements,
    subject_of,
)
from flows.evidence.signature import (
    PUBLIC_KEY,
    TIME,
    check_envelope,
    known_keys,
    read_envelope,
    sign_statement,
    signers,
)
from flows.evidence.verify import run_check
from stages.core.errors import UsageError
from stages.core.files import replace_file
from stages.decisions import NO_HUMAN
from stages.pages.page import environment
from stages.pages.words import gate_view, percent, verdict_text, with_interval
from stages.records import RateRecord

MOST, MOST_ROWS = 4, 20  # modes, decisions and signatures, and numbers: what two pages hold


# Where a number is evidence in the AI Act and the AI RMF, by the beginning of its measure; the first that fits counts.
PROVISIONS = {
    "gate": ("Art. 9(8), Annex IV(4)", "MEASURE 1.1, MANAGE 1.1"),
    "before": ("Art. 9(2)(a), Annex IV(3)", "MAP 5.1, MEASURE 2.3"),
    "unshown": ("Art. 9(2)(a), 9(5)", "MAP 5.1, MANAGE 1.4"),
    "mode.": ("Art. 9(2)(a), Annex IV(3)", "MAP 5.1, MEASURE 2.6"),
    "smallest": ("Art. 15(4)", "MEASURE 2.7"),
    "slice": ("Annex IV(2)(g), (3)", "MEASURE 2.11"),
    "target_": ("Art. 9(2)(d), 9(5)", "MANAGE 1.3"),
    "newly_failing": ("Art. 9(5)", "MANAGE 1.4"),
    "other_": ("Art. 9(5)", "MANAGE 1.4"),
    "clean_quality": ("Art. 15(1), 15(3)", "MEASURE 2.5"),
    "fixed": ("Art. 9(2)(d)", "MANAGE 1.3"),
    "": ("Art. 15(1), 15(3)", "MEASURE 2.5"),
}


def provision_of(measure: str) -> tuple[str, str]:
    """Where a measure is evidence: the provisions of the AI Act, and of the AI RMF."""
    return next(found for start, found in PROVISIONS.items() if measure.startswith(start))


def sign_off_sheet(bundle: Bundle, known: Mapping[str, str]) -> str:
    """The sheet as a page of HTML without scripts; `known` has names of known keys, by id."""
    rows = [(*row, *provision_of(measure)) for measure, *row in _rows(bundle)]
    of = bundle.records
    repaired = bundle.last_stage == "conclude"
    by_rule = bundle.audit in bundle.yaml(PARAMS).get("repairs", {})  # if no person decided
    verdict = (of.conclude if repaired else of.report).verdict
    signed = []
    if ENVELOPE in bundle.members:
        when, key_ids = check_envelope(bundle.members[ENVELOPE], bundle.member(STATEMENT))
        signed = [(known.get(key, "a key not known here"), key, f"{when:%Y-%m-%d %H:%M} UTC") for key in key_ids]
    pages = environment().overlay(loader=FileSystemLoader(Path(__file__).parent / "templates"))
    return pages.get_template("sign_off.html.j2").render(
        bundle=bundle,
        manifest=bundle.manifest,
        digest=digest_of(bundle.members),
        model=model_digest(bundle),
        verdict=verdict_text(verdict),
        concerns=verdict.concerns,
        about="the repaired model" if subject_of(bundle.manifest) == "repaired" else "the model under test",
        items=items_of(bundle),
        concepts=[concept.name for concept in of.summarize.landscape.concepts],
        usage_stated=(usage := of.summarize.landscape.usage) is not None and usage.stated,
        rows=rows[:MOST_ROWS],
        left_out=len(rows) - MOST_ROWS,
        decided=decided(bundle) or [(NO_HUMAN if by_rule else "nobody: the audit ends with its landscape", "", "")],
        plan=of.collect_feedback.plan.modes if repaired else [],
        most=MOST,
        signed=signed,
    )


def _rows(bundle: Bundle) -> Iterator[tuple[str, str, str, str]]:
    """All numbers, each with its measure, what it is, its value, and what was asked.

    The gates are first, and of these what did not pass, as those at the end may be left out.
    """
    for gate in sorted(gates_of(bundle), key=lambda gate: gate.passed is True):
        view = gate_view(gate)
        word = {True: "passed", False: "FAILED", None: "not judged"}[gate.passed]
        value = f"{view.value} ({view.interval})"
        yield "gate", f"gate: {view.name}", value, f"{view.bound}: {word}"
    landscape = bundle.records.summarize.landscape
    if unshown := bundle.records.report.verdict.unshown:
        outside = "fails outside the failure modes, before any repair" if landscape.modes else "fails in ways not shown"
        yield "unshown", outside, f"at most {percent(unshown.at_most)}", ""
    if bundle.last_stage == "conclude":
        before = f"failure rate before the repair ({landscape.items:,} items)"
        yield "before", before, with_interval(landscape.overall), ""
        for mode in landscape.modes[:MOST]:
            yield "mode.", f"before, where {mode.text}", with_interval(mode.measured), ""
    for measure, name, shown in shown_measures(bundle):
        yield measure, name, with_interval(shown), ""
    if (small := landscape.robustness) is not None and small.median_radius is not None:
        steps = f"{small.median_radius} steps, median of {small.found} of {small.items} items"
        yield "smallest", "smallest change that makes it fail", steps, ""
    for of in landscape.slices.attributes if landscape.slices else ():
        if of.values:
            worst = max(of.values, key=lambda value: value.rate or 0.0)
            rate = RateRecord(value=worst.rate, low=worst.joint.low, high=worst.joint.high, n=worst.probes)
            yield "slice", f"fails most by {of.attribute}: {worst.value}", with_interval(rate), ""


REPRODUCTION = "urn:faded:reproduction:v1"
_NAMES = {REPRODUCTION: "reproduction", TEST_RESULT: "test result", EVAL_RESULT: "evaluation result"}
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


def reproduction_statement(bundle: Bundle, found: Reproduction) -> dict[str, Any]:
    """State that a bundle's audit was computed again.

    The subject is its manifest, because more signatures change the bytes of the zip.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f"{MANIFEST} of {bundle.audit}", "digest": {"sha256": digest_of(bundle.members)}}],
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
    """Write beside a bundle what others read of it: the sign-off sheet and, given a key that signs, other formats."""
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
    """Check the statements beside a bundle, each by itself; none of them is needed for the bundle to hold."""
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
    word = word if known.keys() & set(key_ids) else "unknown signer"
    return Check(f"{_NAMES[kind]} by {', '.join(by)}: {found}", [], word)


def _reproduced(bundle: Bundle, statement: Mapping[str, Any]) -> tuple[str, str]:
    try:
        found = Reproduction.model_validate(statement["predicate"])
    except ValidationError as error:
        raise UsageError(f"not a reproduction as this version writes it: {error.error_count()} problem(s)") from None
    if statement != reproduction_statement(bundle, found) or found.agrees == bool(found.beyond_noise):
        raise UsageError("it is about another bundle, or contradicts itself")
    when = datetime.strptime(found.reproduced_on, TIME)
    return f"{when:%Y-%m-%d}, {found.summary}", "yes" if found.agrees else "DIFFERS"
