"""Prefect artifacts of an audit: the failure modes, the verdict and a link to the report, each under a stable key."""

from __future__ import annotations

import logging
import re

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.results import Verdict, gate_word, read_verdict
from stages.params import Params
from stages.records import audit_folder


def publish_artifacts(params: Params, audit: str) -> None:
    """Publish what there is; a server that refuses an artifact must not cost an audit that succeeded."""
    try:
        _publish(params, audit)
    except Exception:
        logging.getLogger(__name__).warning("artifacts of %s were not published", audit, exc_info=True)


def _publish(params: Params, audit: str) -> None:
    found = audit_folder(audit).summarize
    if found.has("landscape"):
        columns = {"id", "text", "rate", "low", "high", "probes"}
        rows = [mode.model_dump(include=columns) for mode in found.landscape.modes]
        create_table_artifact(rows, key=key(audit, "failure-modes"), description=f"Failure modes of {audit}")
    verdict = read_verdict(params, audit)
    if verdict.found:
        text = verdict_markdown(verdict)
        create_markdown_artifact(text, key=key(audit, "verdict"), description=f"Verdict on {audit}")
    if verdict.report is not None:
        link = verdict.report.resolve().as_uri()
        create_link_artifact(link, key=key(audit, "report"), link_text=f"Report of {audit}, on its machine")


def key(audit: str, what: str) -> str:
    """A key as Prefect wants it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{audit}-{what}".lower()).strip("-")


def verdict_markdown(verdict: Verdict) -> str:
    """The verdict with its gates, as markdown."""
    lines = [f"# {verdict.audit}: {verdict.word}", ""]
    for said in (verdict.decided, verdict.statement):
        lines += [said, ""] if said else []
    if verdict.gates:
        lines += ["| gate | bound | value | 95% interval | passed |", "|---|---|---|---|---|"]
    for gate in verdict.gates:
        interval = f"{gate.low} to {gate.high}" if gate.low is not None else None
        cells = (gate.named, gate.bound, gate.value, interval, gate_word(gate.passed))
        lines.append("| " + " | ".join("" if cell is None else str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
