"""The workspace: the folder with params.yaml and dvc.yaml, and what every command does before it works in it."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from stages.code import RECORD
from stages.core.environment import DEFAULTS, WORK, set_defaults
from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import holder, locked

LOGS = WORK / "logs"


def enter_workspace(*, update: bool = True) -> Path:
    """Change to the workspace at or above the current folder, and update its files to the installed package.

    Without `update`, the caller has to call `bring_up_to_date`. Folders with the user's own pipelines, which may have
    a params.yaml and a dvc.yaml too, are skipped. Raises a UsageError if there is none, and an InfrastructureError if
    files have to be updated while another process runs an audit there.
    """
    here = Path.cwd()
    both = [f for f in (here, *here.parents) if (f / "params.yaml").is_file() and (f / "dvc.yaml").is_file()]
    folder = next((f for f in both if has_audits(f)), both[0] if both else None)
    if folder is None:
        raise UsageError(
            f"no params.yaml and dvc.yaml in {here} or above: run faded inside a workspace; `faded init` creates one"
        )
    if not has_audits(folder) and not (folder / RECORD).is_file():
        below = sorted(f.name for f in here.iterdir() if (f / RECORD).is_file() and has_audits(f))
        raise UsageError(
            f"params.yaml and dvc.yaml in {folder} are not Faded's: run faded inside a workspace"
            + (f", such as {here / below[0]}" if below else "; `faded init` creates one")
        )
    os.chdir(folder)
    # Prefect's own console output is off, because `faded` prints the same lines itself.
    set_defaults(PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL")
    with contextlib.suppress(OSError):  # a read-only workspace
        WORK.mkdir(exist_ok=True)
        WORK.chmod(0o700)  # logs and ledgers hold what the model was asked and answered
    if update:
        bring_up_to_date()
    return folder


def has_audits(folder: Path) -> bool:
    """Whether a folder's params.yaml is one of Faded's."""
    from stages.params import read_bytes

    try:
        return re.search(rb"^audits:", read_bytes(folder / "params.yaml"), re.MULTILINE) is not None
    except (FileNotFoundError, UsageError):
        return False


def bring_up_to_date() -> None:
    """Make the folders that new audits lack, and update the pipeline to the installed package."""
    from flows.workspace.pipeline import make_folders, outdated, update_pipeline

    for line in make_folders():
        print(line, file=sys.stderr)
    if outdated():
        with exclusive():
            for line in update_pipeline():
                print(line, file=sys.stderr)  # stdout is for the command's own output


def stage_environment() -> dict[str, str]:
    """Environment of a stage: `python` in dvc.yaml is the interpreter of this process."""
    env = {"PYTHONUNBUFFERED": "1", **DEFAULTS, **os.environ}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    return env


_LOCK = WORK / "flow.lock"
_holding = 0


@contextlib.contextmanager
def exclusive(say: Callable[[str], object] | None = None) -> Iterator[None]:
    """Lock the workspace against a second audit; re-entrant within this process.

    While another process runs an audit here, it calls `say` with what is being waited for, or without it raises an
    InfrastructureError at once, which names the process id.
    """
    global _holding  # noqa: PLW0603  # a file lock belongs to the process, and so does its count
    if _holding:
        yield
        return

    def busy(process: str) -> None:
        told = f"another audit runs in {Path.cwd()} (process {process})"
        if say is None:
            raise InfrastructureError(f"{told}: wait for it or stop it")
        say(f"{told}: this one waits for it")

    with locked(_LOCK, busy):
        _holding += 1
        try:
            yield
        finally:
            _holding -= 1


def running_audit() -> int | None:
    """The id of the process that runs an audit in this workspace; None if there is none."""
    process = holder(_LOCK)
    return None if process is None else int(process or -1)
