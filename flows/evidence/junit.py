"""The result of the gate as JUnit XML, which CI systems show: a test case for each gate and each measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from stages.core.errors import FadedError, escape_controls
from stages.core.files import replace_file

if TYPE_CHECKING:
    from flows.evidence.gate import GateResult


def write_junit(path: Path, audit: str, outcome: GateResult | FadedError) -> None:
    """Write what the gate found; after an error one test case with its message."""
    if isinstance(outcome, FadedError):
        cases = [_case(audit, "the gate", "error", outcome.exit_code.name.lower(), str(outcome))]
    else:
        cases = _cases(outcome)
    kinds = [case[0].tag for case in cases if len(case)]
    counts = {"tests": len(cases), "failures": kinds.count("failure"), "errors": kinds.count("error")}
    suite = ElementTree.Element("testsuite", {"name": f"faded gate {audit}", **{k: str(n) for k, n in counts.items()}})
    suite.extend(cases)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    replace_file(path, ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n")


def _cases(result: GateResult) -> list[ElementTree.Element]:
    """The gates of the audit itself, its verdict, and each measure against the earlier result."""
    own = f"{result.audit}.gates"
    cases = []
    for gate in result.now.gates:
        kind = {True: "", False: "missed", None: "not judged"}[gate.passed]
        said = f"bound {gate.bound}, found {gate.value} (95% interval {gate.low} to {gate.high})"
        cases.append(_case(own, gate.named, "failure", kind, said))
    verdict = "" if result.own else "refused"
    cases.append(_case(own, "verdict", "failure", verdict, f"the audit's own verdict: {result.now.word}"))
    for row in result.rows:
        told = (
            f"worse by {100 * row.worse.value:.2f} points (95% interval {100 * row.worse.low:.2f} to"
            f" {100 * row.worse.high:.2f}, n {row.worse.n}); below {100 * result.tolerance:g} expected"
            if row.worse.n
            else "nothing in common to compare"
        )
        name, kind = f"{row.what} against {result.against}", "" if row.passed else "not shown to be no worse"
        cases.append(_case(f"{result.audit}.no worse", name, "failure", kind, told))
    return cases


def _case(group: str, name: str, tag: str, kind: str, message: str) -> ElementTree.Element:
    """A test case; without a `kind` of failure or error it passed."""
    case = ElementTree.Element("testcase", classname=escape_controls(group), name=escape_controls(name))
    if kind:
        text = escape_controls(message.replace("\n", " "))
        ElementTree.SubElement(case, tag, type=kind, message=text).text = text
    return case
