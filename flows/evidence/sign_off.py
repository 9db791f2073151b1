"""The sign-off sheet: two A4 pages to print, on which people sign what a bundle says and what it does not.

Each number is mapped to the provisions under which it is evidence: Regulation (EU) 2024/1689 (the AI Act), Articles 9
and 15 and Annex IV, and the functions of the NIST AI Risk Management Framework 1.0 (NIST AI 100-1).
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader

from flows.evidence.bundle import ENVELOPE, PARAMS, STATEMENT, Bundle, digest_of
from flows.evidence.checks import decided
from flows.evidence.formats import gates_of, items_of, model_digest, shown_measures
from flows.evidence.signature import check_envelope
from stages.decisions import NO_HUMAN
from stages.pages.page import environment
from stages.pages.words import gate_view, percent, verdict_text, with_interval
from stages.records import RateRecord

MOST, MOST_ROWS = 4, 20  # modes, decisions and signatures, and numbers: what two pages hold


class Provision(NamedTuple):
    """Where a number is evidence: in the AI Act, and in the AI RMF."""

    act: str
    rmf: str


# By the beginning of a measure; the first that fits counts.
PROVISIONS = {
    "gate": Provision("Art. 9(8), Annex IV(4)", "MEASURE 1.1, MANAGE 1.1"),
    "before": Provision("Art. 9(2)(a), Annex IV(3)", "MAP 5.1, MEASURE 2.3"),
    "unshown": Provision("Art. 9(2)(a), 9(5)", "MAP 5.1, MANAGE 1.4"),
    "mode.": Provision("Art. 9(2)(a), Annex IV(3)", "MAP 5.1, MEASURE 2.6"),
    "smallest": Provision("Art. 15(4)", "MEASURE 2.7"),
    "slice": Provision("Annex IV(2)(g), (3)", "MEASURE 2.11"),
    "target_": Provision("Art. 9(2)(d), 9(5)", "MANAGE 1.3"),
    "newly_failing": Provision("Art. 9(5)", "MANAGE 1.4"),
    "other_": Provision("Art. 9(5)", "MANAGE 1.4"),
    "clean_quality": Provision("Art. 15(1), 15(3)", "MEASURE 2.5"),
    "fixed": Provision("Art. 9(2)(d)", "MANAGE 1.3"),
    "": Provision("Art. 15(1), 15(3)", "MEASURE 2.5"),
}
EVIDENCE = Provision("Annex IV(2)(g)", "MEASURE 2.1")
DECIDED = Provision("Art. 9(5), Annex IV(5)", "GOVERN 2.1, MANAGE 1.2")
NOT_COVERED = (
    ("Art. 9(2)(b), (c)", "risks of misuse, and risks known from monitoring after deployment"),
    ("Art. 9(7)", "testing in real-world conditions: changes are simulated on given items"),
    ("Art. 9(9)", "effects on minors and other vulnerable groups"),
    ("Art. 10", "how data were collected and governed"),
    ("Art. 12, 13, 14", "logs, instructions for use, and how people oversee the system"),
    ("Art. 15(5)", "attacks: poisoned data or models, theft, inputs made by an adversary who knows the model"),
    (
        "Annex IV(1), (2)(a) to (f), (6) to (9)",
        "what the system is, how it was made, changes, standards, monitoring",
    ),
    ("AI RMF", "GOVERN but for who decided, MAP but for failures, privacy (MEASURE 2.10), environment (2.12)"),
)


class SignOffRow(NamedTuple):
    """One number of the sheet."""

    what: str
    value: str
    asked: str
    provision: Provision


def provision_of(measure: str) -> Provision:
    """Where a measure is evidence."""
    return next(found for start, found in PROVISIONS.items() if measure.startswith(start))


def sign_off_sheet(bundle: Bundle, known: Mapping[str, str]) -> str:
    """The sheet as a page of HTML without scripts.

    Args:
        known: names of known keys, by id.
    """
    rows, of = list(_rows(bundle)), bundle.records
    repaired = bundle.last_stage == "conclude"
    by_rule = bundle.audit in bundle.yaml(PARAMS).get("repairs", {})  # if no person decided
    verdict = (of.conclude if repaired else of.report).verdict
    template = _templates().get_template("sign_off.html.j2")
    return template.render(
        bundle=bundle,
        manifest=bundle.manifest,
        digest=digest_of(bundle.members),
        model=model_digest(bundle),
        verdict=verdict_text(verdict),
        concerns=verdict.concerns,
        about="the repaired model" if bundle.manifest["parts"].get("repaired") else "the model under test",
        items=items_of(bundle),
        concepts=[concept.name for concept in of.summarize.landscape.concepts],
        usage_stated=(usage := of.summarize.landscape.usage) is not None and usage.stated,
        rows=rows[:MOST_ROWS],
        left_out=len(rows) - MOST_ROWS,
        decided=decided(bundle) or [(NO_HUMAN if by_rule else "nobody: the audit ends with its landscape", "", "")],
        decided_under=DECIDED,
        evidence_under=EVIDENCE,
        plan=of.collect_feedback.plan.modes if repaired else [],
        most=MOST,
        signed=_signed(bundle, known),
        not_covered=NOT_COVERED,
    )


def _rows(bundle: Bundle) -> Iterator[SignOffRow]:
    """All numbers, the gates first and of these what did not pass, as those at the end may be left out."""
    for gate in sorted(gates_of(bundle), key=lambda gate: gate.passed is True):
        view = gate_view(gate)
        word = {True: "passed", False: "FAILED", None: "not judged"}[gate.passed]
        value = f"{view.value} ({view.interval})"
        yield SignOffRow(f"gate: {view.name}", value, f"{view.bound}: {word}", provision_of("gate"))
    landscape = bundle.records.summarize.landscape
    if unshown := bundle.records.report.verdict.unshown:
        outside = "fails outside the failure modes, before any repair" if landscape.modes else "fails in ways not shown"
        yield SignOffRow(outside, f"at most {percent(unshown.at_most)}", "", provision_of("unshown"))
    if bundle.last_stage == "conclude":
        before = f"failure rate before the repair ({landscape.items:,} items)"
        yield SignOffRow(before, with_interval(landscape.overall), "", provision_of("before"))
        for mode in landscape.modes[:MOST]:
            yield SignOffRow(f"before, where {mode.text}", with_interval(mode.measured), "", provision_of("mode."))
    for one in shown_measures(bundle):
        yield SignOffRow(one.name, with_interval(one.rate), "", provision_of(one.measure))
    if (small := landscape.robustness) is not None and small.median_radius is not None:
        steps = f"{small.median_radius} steps, median of {small.found} of {small.items} items"
        yield SignOffRow("smallest change that makes it fail", steps, "", provision_of("smallest"))
    for of in landscape.slices.attributes if landscape.slices else ():
        if of.values:
            worst = max(of.values, key=lambda value: value.rate or 0.0)
            rate = RateRecord(value=worst.rate, low=worst.joint.low, high=worst.joint.high, n=worst.probes)
            yield SignOffRow(
                f"fails most by {of.attribute}: {worst.value}", with_interval(rate), "", provision_of("slice")
            )


def _signed(bundle: Bundle, known: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Who signed the bundle, with which key, and when."""
    if ENVELOPE not in bundle.members:
        return []
    when, key_ids = check_envelope(bundle.members[ENVELOPE], bundle.member(STATEMENT))
    return [(known.get(key, "a key not known here"), key, f"{when:%Y-%m-%d %H:%M} UTC") for key in key_ids]


@cache
def _templates() -> Environment:
    pages: Any = environment().overlay()
    pages.loader = FileSystemLoader(Path(__file__).parent / "templates")
    return pages  # type: ignore[no-any-return]
