"""Child processes of the flow, each in its own process group, so that none outlives a killed or interrupted run.

A function can be called in a process of its own: the libraries it imports end with it, and so does the data it reads.
So the process of a deployed run, which waits for its stages, stays small, and so does `faded serve`. What is pickled
goes through pipes between this process and the one it starts; nobody else can write to them.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import IO, Any, NamedTuple

import psutil

from flows.workspace import stage_environment
from stages.core.environment import WORK
from stages.core.errors import FadedError, InfrastructureError, Terminated
from stages.core.files import read_state, write_state

RECORDS = WORK / "run"
TOKEN = "FADED_CHILD"  # variable of a child and all it starts: distinguishes ours from a recycled process id
_GRACE = 5.0  # seconds that a stage has to end by itself after Ctrl-C


class _Child(NamedTuple):
    """The record of a child."""

    group: int
    token: str


_groups: dict[int, tuple[str, bool]] = {}  # by process group: the name of its record, whether Ctrl-C ends it
_stopping = threading.Event()


@contextlib.contextmanager
def child(
    name: str,
    command: list[str],
    env: dict[str, str],
    output: int | IO[str] = subprocess.PIPE,
    *,
    interruptible: bool = True,
    records: Path = RECORDS,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[str]]:
    """Run `python -P -m COMMAND...` in its own process group; when the block ends, the whole group is killed.

    -P keeps a user's own folder `flows` from shadowing this package.

    Args:
        name: name of its record, which the next run reads if this one is killed.
        output: where its stdout and stderr go together; by default to `Popen.stdout`, line by line.
        interruptible: whether Ctrl-C ends it at once, rather than the end of the block.
        records: folder of the record, for `end_leftovers`.
        pass_fds: open files that the child gets, under the same numbers.
    """
    token = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.start.child", str(os.getpid()), *command],
        env={**env, TOKEN: token},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=pass_fds,
    )
    record = records / f"{name}.json"
    records.mkdir(parents=True, exist_ok=True)
    write_state(record, _Child(process.pid, token))
    _groups[process.pid] = name, interruptible
    # If the leader dies alone, the processes it started would hold the pipe open for ever: kill the group as well.
    watcher = threading.Thread(target=_end_with_leader, args=(process.pid,), daemon=True)
    watcher.start()
    try:
        yield process
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        watcher.join()
        process.wait()
        _groups.pop(process.pid, None)
        record.unlink(missing_ok=True)


def _end_with_leader(group: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, group, os.WEXITED | os.WNOWAIT)  # not reaped yet, so the number cannot be recycled
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _interrupt(number: signal.Signals) -> None:
    for group, (_, interruptible) in list(_groups.items()):
        if interruptible:
            _signal_group(group, number)


def end_children(name: str | None = None) -> None:
    """Kill the children of this process, or only those with that name."""
    for group, (named, _) in list(_groups.items()):
        if name in (None, named):
            _signal_group(group, signal.SIGKILL)


def stopping() -> bool:
    """Whether the user asked to stop, so that nothing is retried."""
    return _stopping.is_set()


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM end all stages, gently first, and raise KeyboardInterrupt in the main thread."""

    def stop(number: int, _frame: object) -> None:
        again = _stopping.is_set()
        _stopping.set()
        _interrupt(signal.SIGKILL if again else signal.SIGINT)
        if not again:
            timer = threading.Timer(_GRACE, _interrupt, [signal.SIGKILL])
            timer.daemon = True
            timer.start()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stopping.clear()


def end_leftovers(records: Path = RECORDS) -> list[str]:
    """Kill what a killed run left behind, by its records; return the names of those that were still alive.

    Only processes of the recorded group that have the record's token are killed, as process ids are recycled.
    """
    ended = []
    for record in sorted(records.glob("*.json")):
        known = read_state(record, _Child)
        if known is not None and known.group in _groups:  # a running child of this process
            continue
        if known is not None and _end_group(*known):
            ended.append(record.stem)
        record.unlink(missing_ok=True)
    return ended


def _end_group(group: int, token: str) -> bool:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.environ().get(TOKEN) == token:
                process.kill()
                members.append(process)
    psutil.wait_procs(members, timeout=10)
    return bool(members)


def aside(function: str, *given: object) -> Any:
    """Call a function in another process, which dies with this one.

    Raises a FadedError as the function does, and an InfrastructureError if it ends in any other way.

    Args:
        function: its name, "module:function", as importing the module would take the memory.
        given: its arguments; as its result, they are pickled.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "flows.start.child", str(os.getpid()), "flows.processes"],
        input=pickle.dumps((function, given)),
        env=stage_environment(),
        capture_output=True,
        check=False,
    )
    told = done.stderr.decode(errors="replace")
    if done.returncode:
        raise InfrastructureError(f"{function} broke (exit code {done.returncode}):\n{told.strip()[-2000:]}")
    sys.stderr.write(told)
    result = pickle.loads(done.stdout)
    if isinstance(result, FadedError):
        raise result
    return result


def main() -> None:
    """Call the function that stdin names, and write its result to stdout."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the function prints is not its result
    function, given = pickle.load(sys.stdin.buffer)
    try:
        result = resolve_name(function)(*given)
    except FadedError as error:
        result = error
    with answer:
        pickle.dump(result, answer)


if __name__ == "__main__":
    main()
