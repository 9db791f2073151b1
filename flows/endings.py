"""How an audit ended, in a sentence and for the flow's last state, and the evidence that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flows.results import read_verdict
from stages.errors import Exit
from stages.params import Params

if TYPE_CHECKING:
    from flows.run_stage import StageResult


@dataclass(frozen=True)
class Ending:
    """How one audit of a run ended.

    Args:
        audit: its name.
        kind: done (its verdict may count as a pass); gate failed (it may not, or a person rejected the landscape);
            broken (a stage failed).
        text: what is told of it.
    """

    audit: str
    kind: Literal["done", "gate failed", "broken"]
    text: str


def how_it_ended(params: Params, audit: str, results: Sequence[StageResult]) -> Ending:
    """Read an audit's end from the results of its stages and its verdict.

    Args:
        params: the workspace's.
        audit: its name.
        results: of the stages of this run, those of other audits among them.
    """
    own = [result for result in results if result.stage.endswith(f"@{audit}")]
    if failed := [result for result in own if result.outcome == "failed"]:
        rejected = all(result.exit_code == Exit.GATE_FAILED for result in failed)
        text = "; ".join(" ".join(result.message.split()) for result in failed)
        return Ending(audit, "gate failed" if rejected else "broken", text)
    if not finished(audit, results):  # a stage of no audit broke, on which this one depends
        return Ending(audit, "broken", f"{audit} was not finished: a stage it depends on failed")
    verdict = read_verdict(params, audit)
    changed = any(result.outcome in ("ran", "restored") for result in own)
    word = verdict.word + (f" ({verdict.decided})" if verdict.decided else "")
    report = f", report {verdict.report.resolve()}" if verdict.report is not None else ""
    text = f"{audit}: {word}{report}" if changed else f"nothing changed; last verdict: {word}{report}"
    return Ending(audit, "gate failed" if verdict.refuses else "done", text)


def finished(audit: str, results: Sequence[StageResult]) -> bool:
    """Whether nothing of the audit is missing: else the verdict on disk is that of an earlier run."""
    return all(r.outcome in ("ran", "restored", "unchanged") for r in results if r.stage.endswith(f"@{audit}"))


def keep_evidence(params: Params, audit: str) -> tuple[Path | None, str | None]:
    """Write and sign the evidence bundle of a finished audit; return it, and what is missing of it.

    Whatever goes wrong with it must not cost the audit, which is done.
    """
    try:
        from flows.evidence import sign_by_default, write_bundle

        bundle = write_bundle(params, audit)
        unsigned = sign_by_default(bundle) if bundle is not None else None
        return bundle, f"the evidence of {audit} is not signed: {unsigned}" if unsigned else None
    except Exception as error:
        return None, f"no evidence was written for {audit}: {type(error).__name__}: {error}"
