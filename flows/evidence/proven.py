"""Evidence that is checked before anything is concluded from it."""

from __future__ import annotations

from pathlib import Path

from flows.evidence.verify import verify_bundle
from flows.evidence.write import evidence_of, sign_by_default
from flows.graph.intact import DamagedError
from stages.params import Params


def proven_evidence(params: Params, audit: str) -> Path:
    """The bundle of a finished audit, after all the checks of `faded verify`.

    Raises:
        UsageError: if the audit is not finished.
        DamagedError: if outputs differ from what its stages wrote, or the bundle does not hold.
    """
    path = evidence_of(params, audit, sign=False)
    if problems := [f"{check.name}: {problem}" for check in verify_bundle(path) for problem in check.problems]:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise DamagedError(f"the evidence of {audit!r} does not hold: {problems[0]}{more}; `faded verify {path}`")
    sign_by_default(path)
    return path
