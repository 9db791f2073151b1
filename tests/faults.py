"""Faults at every point where a stage, or Faded's own state, changes the disk: a full disk, a broken one, a kill.

A point is a call that opens a file to write, writes, syncs, renames, links, makes or removes something below the
workspace, by whatever library: `faults.c` is preloaded and counts them. For each point a fork of a process that has
imported everything runs the work with a fault there, another runs it again without one, and what that leaves has to be
what an undisturbed run leaves, byte for byte.

    python -m tests.faults WORKSPACE [--cases 20 | --cases all] [--work discover,restructure]
"""

import argparse
import ctypes
import errno
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

AUDIT = "tiny"
SOURCE = Path(__file__).with_suffix(".c")
# errno (0 kills), and whether all later calls fail, too
FAULTS = {"kill": (0, 0), "EIO": (errno.EIO, 0), "ENOSPC": (errno.ENOSPC, 1), "EROFS": (errno.EROFS, 1)}


class Work(NamedTuple):
    """Work to be disturbed: it runs in the workspace, and is judged by the files it leaves in some folders."""

    run: Callable[[], None]
    leaves: tuple[str, ...]


def stage(kind: str) -> Work:
    """A stage of the audit."""
    module = importlib.import_module(f"stages.{kind}")
    return Work(lambda: module.main(AUDIT), (f"data/{AUDIT}/{kind}",))


def state() -> Work:
    """The state that commands keep under .faded, and its repair."""
    from flows.graph.intact import heal
    from flows.init.unfinished import RECORDS, Unfinished, unfinished
    from flows.request import Request, read_request
    from flows.results import StageResult, read_took, record_timings
    from stages.core.files import probe_seconds, publishing, record_probe_seconds, write_state

    def run() -> None:
        Path(".dvc/tmp").mkdir(exist_ok=True)
        Path(".dvc/tmp/rwlock").write_text("{")
        heal()
        for stage in ("prepare", "discover"):
            record_timings([StageResult(stage=stage, outcome="ran", seconds=1.0)])
        record_probe_seconds(AUDIT, 0.5)
        write_state(RECORDS / f"{AUDIT}.json", Unfinished(AUDIT, {"yes": True}))
        write_state(Path(".faded/requests/tiny.json"), Request(landscape=None, asked="2026-01-01T00:00:00Z"))
        took = {stage: took.seconds for stage, took in read_took().items()}  # without the time of day
        told = [took, probe_seconds(AUDIT), list(unfinished(Path(), "")), read_request(AUDIT)]
        with publishing(Path("told")) as out:
            (out / "told").write_text(repr(told))

    return Work(run, ("told",))


def digests(work: Work) -> dict[str, str]:
    """SHA-256 of all files that the work leaves."""
    files = sorted(path for folder in work.leaves for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def reset(work: Work) -> None:
    """Put an earlier result where the work will put its own, and remove everything that could be resumed."""
    for folder in map(Path, (*work.leaves, ".faded")):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in map(Path, work.leaves):
        folder.mkdir(parents=True)
        (folder / "earlier").write_text("earlier")


def forked(work: Work, log: Path, point: int = 0, fault: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Run the work in a fork, with a fault at a point (0 for none); return its exit code and the number of points."""
    from stages.core.errors import run_as_command

    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 99
        try:
            with log.open("w") as file:
                for stream in (1, 2):
                    os.dup2(file.fileno(), stream)
            shim = ctypes.CDLL(None)
            shim.faults_arm(str(Path.cwd()).encode(), ctypes.c_long(point), *fault)
            try:
                run_as_command(work.run)
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            sys.stdout.flush()
            shim.faults_seen.restype = ctypes.c_long
            os.write(writing, str(shim.faults_seen()).encode())
        finally:
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    seen = os.read(reading, 64)
    os.close(reading)
    return os.waitstatus_to_exitcode(status), int(seen or 0)


def disturb(name: str, work: Work, cases: int | None, log: Path) -> Iterator[dict[str, object]]:
    """Try all faults at all points, or a random sample of them; yield the problems, and the counts last."""
    reset(work)
    code, points = forked(work, log)
    assert code == 0, log.read_text()
    expected = digests(work)
    assert expected and not any("earlier" in file for file in expected), expected
    todo = list(itertools.product(range(1, points + 1), FAULTS))
    for point, fault in todo if cases is None else random.Random(name).sample(todo, min(cases, len(todo))):
        reset(work)
        code, _ = forked(work, log, point, FAULTS[fault])
        told = log.read_text()
        again, _ = forked(work, log)
        problems = []
        if code not in (0, 3, -9) or "Traceback" in told or told.count("\nerror: ") > 1:
            problems.append(f"ended with {code}: {told[-2000:]}")
        if code == 0 and digests(work) != expected:
            problems.append("it said nothing, and left something else")
        if again != 0:
            problems.append(f"the next run ended with {again}: {log.read_text()[-2000:]}")
        elif (found := digests(work)) != expected:
            problems.append(f"the next run left {set(found.items()) ^ set(expected.items())}")
        if problems:
            yield {"work": name, "point": point, "fault": fault, "problems": problems}
    yield {"work": name, "points": points, "cases": len(todo) if cases is None else min(cases, len(todo))}


def build(folder: Path) -> Path | None:
    """The library to preload; None if there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def main() -> None:
    """Print a line of JSON for each problem, and for each work one with the number of its points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--cases", default="20", help="of each work; `all` for all points and faults")
    # In the order of the audit, as each stage needs the results of those before it.
    parser.add_argument(
        "--work",
        default="prepare,discover,summarize,report,collect_feedback,restructure,re_evaluate,compare,conclude,state",
    )
    given = parser.parse_args()
    os.chdir(given.workspace)
    sys.path.insert(0, str(Path.cwd()))
    log = Path.cwd().parent / f"{Path.cwd().name}.faults.log"
    for name in given.work.split(","):
        work = state() if name == "state" else stage(name)
        for told in disturb(name, work, None if given.cases == "all" else int(given.cases), log):
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
