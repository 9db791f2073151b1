"""Runs one stage as a process: `dvc repro -s NAME`, with its log streamed, and its end as a result or an error.

On another machine a worker does it. Its messages and the driver's are small, plain and without secrets.
"""

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import PurePosixPath
from typing import IO, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel

from flows.processes import child
from flows.request import GATED
from flows.workspace import LOGS, stage_environment
from stages.core import errors
from stages.core.files import decisions_lock

# An output or a stage as in dvc.lock: {"path": ..., "hash": "md5", "md5": ..., "size": ...}.
Entry = dict[str, Any]


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or pure.parts[:1] in ((".git",), (".dvc",), ()):
        raise ValueError(f"{path!r} is not a path within the workspace")
    return path


InWorkspace = Annotated[str, AfterValidator(_inside)]


class Shipment(BaseModel):
    """Everything a worker needs to bring one stage up to date in its own clone.

    Args:
        files: small texts that are in no remote, by path: params.yaml, dvc.yaml, ratings.
        lock: the stage's entry in the driver's dvc.lock, None if it never ran.
        inputs: outputs of other stages that this one reads, by content.
        hashes: the driver's MD5 of everything the stage reads, by path.
        revision: the commit of the driver's clone, named in messages if a worker's differs.
        workspace: folder of the worker's clone; FADED_WORKSPACE in the worker's environment takes precedence.
        within: path of the driver's workspace in its git repository, "." for its root; None if it is not in one.
        remote: name of the DVC remote; None for the default of the worker's clone.
    """

    stage: str
    files: dict[InWorkspace, str]
    lock: Entry | None
    inputs: list[Entry]
    hashes: dict[str, str]
    revision: str | None
    workspace: str
    within: str | None
    remote: str | None


class ShipmentResult(BaseModel):
    """A worker's result for a shipment; the bytes are in the remote.

    Args:
        host: the worker's machine and clone, "node3:/srv/faded".
        lock: the stage's entry in the clone's dvc.lock.
        versions: versions of the packages there that can change a result.
    """

    host: str
    lock: Entry
    versions: dict[str, str] = {}


Outcome = Literal["ran", "restored", "unchanged", "failed", "not reached", "waiting"]

_TAIL = 15  # lines of the log shown with an error
_EXITED = re.compile(r"failed to run: .*, exited with (-?\d+)")
# Errors that DVC itself reports and no retry can fix: a missing dependency or parameter.
_REFUSED = re.compile(r"missing data 'source'|are missing from '.*'|ERROR: dependency .* does not exist")
# DVC's own messages, which stay in the log file; people who watch want those of the stage.
_DVC = re.compile(
    r"^(Running stage '|> exec python (?:-P )?-m |Stage '|'.*didn't change|Updating lock file|Generating lock file|"
    r"To track the changes|To enable auto staging|\s+git add |\s+dvc config|Use `dvc push`|"
    r"Data and pipelines are up to date|WARNING: '.*' is empty\.|ERROR: failed to reproduce '.*': failed to run: |\s*$)"
)

_LEVELS = {"ERROR: ": logging.ERROR, "error: ": logging.ERROR, "WARNING: ": logging.WARNING}


class StageResult(BaseModel):
    """How one stage of a run ended.

    Args:
        stage: "discover@mnist".
        outcome: ran; restored (from DVC's run-cache); unchanged; failed; not reached (an earlier stage failed);
            waiting (for a person's decision).
        seconds: wall time, 0 if it did not start.
        message: why it failed, or what it waits for.
        exit_code: the command's exit code for this outcome.
        made: the outputs of a worker in its own clone; None if the stage ran here.
    """

    stage: str
    outcome: Outcome
    seconds: float = 0.0
    message: str = ""
    exit_code: errors.Exit = errors.Exit.PASS
    made: ShipmentResult | None = None


def finished(audit: str, results: Sequence[StageResult]) -> bool:
    """Whether no stage of the audit is missing; otherwise the verdict on disk is that of an earlier run."""
    return all(r.outcome in ("ran", "restored", "unchanged") for r in results if r.stage.endswith(f"@{audit}"))


def run_stage(stage: str, say: Callable[[str], None], extra_env: Mapping[str, str] | None = None) -> StageResult:
    """Let DVC bring one stage up to date.

    Raises a UsageError if the stage reports invalid input (exit code 2), a RejectedError if a person rejected the
    landscape (collect_feedback only), a BugError if it fails in an unforeseen way, an UnavailableError if a service did
    not respond (the stage itself has already retried), and else an InfrastructureError: only then may another run help.

    Args:
        stage: its name in dvc.yaml, or FILE:NAME in another pipeline.
    """
    started = time.monotonic()
    LOGS.mkdir(parents=True, exist_ok=True)
    name = child_name(stage)
    path = LOGS / f"{name}.log"
    env = {**stage_environment(), **(extra_env or {})}
    # --wait-for-lock: parallel stages commit one after the other instead of failing.
    command = ["dvc", "--wait-for-lock", "repro", "--single-item", stage]
    kind, _, audit = stage.partition("@")
    # DVC hashes inputs at the end of a stage, so a decision made meanwhile would count as used.
    undecided = decisions_lock(audit) if kind == GATED else nullcontext()
    with undecided, path.open("w", encoding="utf-8") as log, child(name, command, env) as process:
        assert process.stdout is not None
        lines = _stream(process.stdout, log, say)
        code = process.wait()
    text = "\n".join(lines)
    if code == 0:
        unchanged: Outcome = "unchanged" if "didn't change, skipping" in text else "ran"
        outcome = "restored" if "is cached - skipping run" in text else unchanged
        return StageResult(stage=stage, outcome=outcome, seconds=time.monotonic() - started)
    match = _EXITED.search(text)
    stage_code = int(match[1]) if match else None
    tail = [line.removeprefix("error: ") for line in lines if not _DVC.match(line)][-_TAIL:]
    told = "\n".join(f"  {line}" for line in tail)
    if stage_code == errors.Exit.USAGE or (stage_code is None and _REFUSED.search(text)):
        raise errors.UsageError(f"{stage} rejected its input:\n{told}")
    if stage_code == errors.Exit.GATE_FAILED and kind == GATED and "Traceback" not in text:
        raise errors.RejectedError("\n".join(tail) or stage)
    # Python itself also exits with 1, if a module is missing or does not compile.
    if stage_code in (errors.Exit.BUG, errors.Exit.GATE_FAILED):
        raise errors.BugError(f"{stage} or its task has a bug, full log in {path}:\n{told}")
    if stage_code == errors.Exit.UNAVAILABLE:
        raise errors.UnavailableError(f"{stage} needs something that does not respond, full log in {path}:\n{told}")
    how = f"stage exited with {stage_code}" if stage_code is not None else f"DVC exited with {code}"
    raise errors.InfrastructureError(f"{stage} failed ({how}), full log in {path}:\n{told}")


def level_of(line: str) -> int:
    """The severity of a line, by the prefixes that DVC and our own stages use."""
    return next((level for word, level in _LEVELS.items() if line.startswith(word)), logging.INFO)


def child_name(stage: str) -> str:
    """The name of a stage's process, see `flows.processes.child`."""
    return stage.replace("/", ".")  # stages of other pipelines are named by their file


def _stream(output: IO[str], log: IO[str], say: Callable[[str], None]) -> deque[str]:
    """Pass the output on line by line; return its end, in which DVC reports how the stage ended."""
    lines: deque[str] = deque(maxlen=200)
    for raw in output:
        line = errors.escape_controls(raw.rstrip().expandtabs())  # it may contain a model's answers
        log.write(line + "\n")
        log.flush()
        lines.append(line)
        if not _DVC.match(line):
            say(line)
    return lines
