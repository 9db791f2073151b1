"""One stage, as a process: `dvc repro -s NAME` with its log streamed, and its end told as an outcome or an error."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Literal

from pydantic import BaseModel

from flows.processes import child
from flows.request import GATED
from flows.shipment import Made
from flows.workspace import LOGS, stage_environment
from stages.errors import BugError, Exit, InfrastructureError, RejectedError, UnavailableError, UsageError, plain

Outcome = Literal["ran", "restored", "unchanged", "failed", "not reached", "waiting"]

_TAIL = 15  # lines of the log shown with an error
_EXITED = re.compile(r"failed to run: .*, exited with (-?\d+)")
# DVC refuses by itself what no retry can mend: a dependency or a parameter that is not there.
_REFUSED = re.compile(r"missing data 'source'|are missing from '.*'|ERROR: dependency .* does not exist")
# What DVC says for itself. It stays in the log file; people watching want the stage's own words.
_DVC = re.compile(
    r"^(Running stage '|> exec python (?:-P )?-m |Stage '|'.*didn't change|Updating lock file|Generating lock file|"
    r"To track the changes|To enable auto staging|\s+git add |\s+dvc config|Use `dvc push`|"
    r"Data and pipelines are up to date|WARNING: '.*' is empty\.|\s*$)"
)

_LEVELS = {"ERROR: ": logging.ERROR, "error: ": logging.ERROR, "WARNING: ": logging.WARNING}


class StageResult(BaseModel):
    """How one stage of a run ended.

    Args:
        stage: "discover@mnist".
        outcome: ran; restored (from DVC's run-cache); unchanged; failed; not reached (something before it failed);
            waiting (for a person's decision).
        seconds: wall time, 0 if it did not start.
        message: why it failed, or what it waits for.
        exit_code: what that means for the whole command.
        made: what a worker in a clone of its own made of it; None where it ran here.
    """

    stage: str
    outcome: Outcome
    seconds: float = 0.0
    message: str = ""
    exit_code: Exit = Exit.PASS
    made: Made | None = None


def run_stage(
    stage: str, say: Callable[[str], None], extra_env: Mapping[str, str] | None = None, project: Path = Path()
) -> StageResult:
    """Let DVC bring one stage up to date.

    Args:
        stage: its name in dvc.yaml, or FILE:NAME in another pipeline.
        say: called with each line the stage prints.
        extra_env: what the task runner adds to its environment.
        project: the folder with dvc.yaml.

    Raises:
        UsageError: when the stage says that its input is bad (exit code 2): running it again would not help.
        RejectedError: when a person rejected the landscape (collect_feedback only, exit code 1).
        BugError: when it breaks in a way nobody foresaw: running it again would not help either.
        UnavailableError: when a service it needs stayed away: the stage itself has asked again and again.
        InfrastructureError: when it ends in any other way: killed, out of memory, a full disk.
    """
    started = time.monotonic()
    LOGS.mkdir(parents=True, exist_ok=True)
    name = child_name(stage)
    path = LOGS / f"{name}.log"
    env = {**stage_environment(), **(extra_env or {})}
    # --wait-for-lock: stages that run side by side commit one after the other instead of giving up.
    command = ["dvc", "--cd", str(project), "--wait-for-lock", "repro", "--single-item", stage]
    with _undisturbed(stage), path.open("w", encoding="utf-8") as log, child(name, command, env) as process:
        assert process.stdout is not None
        lines = _stream(process.stdout, log, say)
        code = process.wait()
    text = "\n".join(lines)
    if code == 0:
        return StageResult(stage=stage, outcome=_outcome(text), seconds=time.monotonic() - started)
    match = _EXITED.search(text)
    stage_code = int(match[1]) if match else None
    tail = [line for line in lines if not _DVC.match(line) and not (match and line.startswith("ERROR: failed to"))]
    told = "\n".join(f"  {line}" for line in tail[-_TAIL:])
    if stage_code == Exit.USAGE or (stage_code is None and _REFUSED.search(text)):
        raise UsageError(f"{stage} rejected its input:\n{told}")
    if stage_code == Exit.GATE_FAILED and stage.startswith(f"{GATED}@") and "Traceback" not in text:
        raise RejectedError(f"{stage}:\n{told}")
    # 1 is also what Python itself ends with: a module is missing or does not compile.
    if stage_code in (Exit.BUG, Exit.GATE_FAILED):
        raise BugError(f"{stage} or its task has a bug, full log in {path}:\n{told}")
    if stage_code == Exit.UNAVAILABLE:
        raise UnavailableError(f"{stage} needs something that does not respond, full log in {path}:\n{told}")
    how = f"stage exited with {stage_code}" if stage_code is not None else f"DVC exited with {code}"
    raise InfrastructureError(f"{stage} failed ({how}), full log in {path}:\n{told}")


def level_of(line: str) -> int:
    """How serious a line is by its first word, which DVC and our own stages write."""
    return next((level for word, level in _LEVELS.items() if line.startswith(word)), logging.INFO)


def child_name(stage: str) -> str:
    """What the process of a stage is called, see `flows.processes.child`."""
    return stage.replace("/", ".")  # stages of other pipelines are named by their file


def _undisturbed(stage: str) -> AbstractContextManager[None]:
    """DVC hashes what a stage read when the stage has ended: a decision recorded meanwhile would count as used."""
    kind, _, audit = stage.partition("@")
    if kind != GATED:
        return nullcontext()
    from stages.decisions.files import recording

    return recording(audit)


def _stream(output: IO[str], log: IO[str], say: Callable[[str], None]) -> deque[str]:
    """Pass the output on line by line; keep the end of it, where DVC says how the stage ended."""
    lines: deque[str] = deque(maxlen=200)
    for raw in output:
        line = plain(raw.rstrip().expandtabs())  # what a model answered may be in it
        log.write(line + "\n")
        log.flush()
        lines.append(line)
        if not _DVC.match(line):
            say(line)
    return lines


def _outcome(text: str) -> Outcome:
    if "is cached - skipping run" in text:
        return "restored"
    return "unchanged" if "didn't change, skipping" in text else "ran"
