"""How an audit ended, as a sentence and for the flow's last state, and the evidence it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from flows.graph.digests import sha256
from flows.request import waits_for_person
from stages.core.errors import Exit
from stages.core.files import stage_dir
from stages.params import Params

if TYPE_CHECKING:
    from flows.run_stage import StageResult
    from stages.decisions import RecordedDecision


Kind = Literal["done", "waiting", "rejected", "gate failed", "broken"]


@dataclass(frozen=True)
class Ending:
    """How one audit of a run ended.

    Args:
        kind: done (its verdict may count as a pass), waiting (for a person), gate failed (its verdict may not count as
            a pass), rejected (by a person) or broken (a stage failed).
        result: identifies the ending: the same as long as nothing changed. Empty if there is no result.
        anew: whether this run reached the verdict, rather than finding an unchanged one.
    """

    audit: str
    kind: Kind
    text: str
    result: str = ""
    anew: bool = True


class Artifact(NamedTuple):
    """A page in Prefect.

    Args:
        what: the end of its key.
    """

    audit: str
    what: str
    title: str
    text: str


class Conclusion(NamedTuple):
    """What a deployed run leaves of an audit.

    Args:
        evidence: its bundle; None unless the audit is finished.
        problem: what is missing of the evidence, if anything is.
        drift: the message about a new result that shows more failures than those before; None if it does not.
    """

    ending: Ending
    artifacts: list[Artifact]
    evidence: Path | None
    problem: str | None
    drift: str | None


def how_it_ended(params: Params, audit: str, results: Sequence[StageResult]) -> Ending:
    """Determine how an audit ended, from the results of its stages and its verdict.

    Args:
        results: results of this run's stages, including those of other audits.
    """
    from flows.results import last_stage, read_verdict

    own = [result for result in results if result.stage.endswith(f"@{audit}")]
    if failed := [result for result in own if result.outcome == "failed"]:
        text = "; ".join(" ".join(result.message.split()) for result in failed)
        if all(result.exit_code == Exit.GATE_FAILED for result in failed):
            return _rejected(params, audit, text)
        return Ending(audit, "broken", text)
    if waiting := [result for result in own if result.outcome == "waiting"]:
        return Ending(audit, "waiting", waiting[0].message)
    if not finished(audit, results):  # a shared stage that it depends on broke
        return Ending(audit, "broken", f"{audit} was not finished: a stage it depends on failed")
    verdict = read_verdict(params, audit)
    changed = any(result.outcome in ("ran", "restored") for result in own)
    word = verdict.word + (f" ({verdict.decided})" if verdict.decided else "")
    report = f", report {verdict.report.resolve()}" if verdict.report is not None else ""
    text = f"{audit}: {word}{report}" if changed else f"nothing changed; last verdict: {word}{report}"
    path = stage_dir(audit, last_stage(params, audit)) / "verdict.json"
    result = sha256(path.read_bytes()) if verdict.found else ""
    return Ending(audit, "gate failed" if verdict.refuses else "done", text, result, changed)


def _rejected(params: Params, audit: str, text: str) -> Ending:
    """A rejection in the reviewer's words; in those of the stage if the landscape's decision has changed since."""
    from stages.decisions import standing

    no = standing(params, audit).rejection if waits_for_person(params, audit) else None
    if no is None:
        return Ending(audit, "rejected", text)
    why = f": {no.reason}" if no.reason else ""
    return Ending(audit, "rejected", f"{audit}: rejected by {no.reviewer}{why}", rejection_result(no))


def rejection_result(no: RecordedDecision) -> str:
    """The `Ending.result` of a rejection."""
    return f"{no.landscape} {no.reviewer} {no.time}"


def finished(audit: str, results: Sequence[StageResult]) -> bool:
    """Whether no stage of the audit is missing; otherwise the verdict on disk is that of an earlier run."""
    return all(r.outcome in ("ran", "restored", "unchanged") for r in results if r.stage.endswith(f"@{audit}"))


def keep_evidence(params: Params, audit: str) -> tuple[Path | None, str | None]:
    """Write and sign the evidence bundle of a finished audit; return its path, and what is missing if anything is.

    Errors are returned, not raised, as the audit itself has succeeded.
    """
    try:
        from flows.evidence import sign_by_default, write_bundle

        bundle = write_bundle(params, audit)
        unsigned = sign_by_default(bundle) if bundle is not None else None
        return bundle, f"the evidence of {audit} is not signed: {unsigned}" if unsigned else None
    except Exception as error:
        return None, f"no evidence was written for {audit}: {type(error).__name__}: {error}"
