"""Breaks chosen lines of the default paths, one at a time, and counts how many of them the nearest tests detect.

    python -m tests.mutants [PART OF A FILE'S NAME]

The lines are in mutants.txt. mutmut and cosmic-ray mutate everything they find, thousands of places per file, with one
set of tests for all. Here each line was chosen, and has its own tests of a few seconds. Each runs in a fork of this
process, which has already imported the heavy libraries, in a copy of the tree.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT, LIST = Path(__file__).parents[1], Path(__file__).with_name("mutants.txt")
SHARE = 0.9  # of mutants that must be detected
LIMIT = 300  # seconds; a test that hangs counts as detected
FAILED, BROKEN = 1, 2  # pytest's exit codes: a test failed, or none could be collected
HEAVY = ("torch", "pandas", "scipy.stats", "sklearn.ensemble", "sklearn.linear_model", "stable_baselines3", "dvc.repo")


class Mutant(NamedTuple):
    """A line of a file, its replacement, and the tests that should detect it."""

    file: str
    tests: tuple[str, ...]
    old: str
    new: str


def read(text: str) -> list[Mutant]:
    """Read the list: a line with a file, lines with its tests, and pairs of lines that begin with - and +."""
    mutants, file, old = [], "", ""
    tests: tuple[str, ...] = ()
    for line in text.splitlines():
        sign, rest = line[:2], line[2:].strip()
        if sign == "- ":
            old = rest
        elif sign == "+ ":
            mutants.append(Mutant(file, tests, old, rest))
        elif line.startswith("tests/"):
            tests = tuple(line.split())
        elif line and not line.startswith("#"):
            file = line.strip()
    return mutants


def problem(tree: Path, mutant: Mutant) -> str | None:
    """Why a mutant is no longer valid: its line was changed or moved; None if it is valid."""
    path = tree / mutant.file
    found = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
    return None if found == 1 else f"{mutant.file} has {found} times, expected once: {mutant.old}"


def copy_tree(target: Path) -> None:
    """Copy the files that git tracks, or would, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0")[:-1]:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run(tree: Path, tests: tuple[str, ...]) -> int:
    """Run tests in a fork, in the copy; return pytest's exit code, or -SIGALRM after the limit."""
    if (child := os.fork()) == 0:
        signal.alarm(LIMIT)
        os.chdir(tree)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", str(ROOT)))]
        sys.dont_write_bytecode = True  # byte code of the last mutant would be used if size and second agree
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "stages", "flows")]:
            del sys.modules[name]
        os.environ["PYTHONPATH"] = str(tree)
        import pytest

        code = pytest.main(["-x", "-q", "-m", "", "-p", "no:cacheprovider", *tests])
        os._exit(int(code))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(part: str = "") -> int:
    """Run all mutants; return 0 if enough are detected."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY:
        __import__(name)
    from tests.shared import open_shared

    open_shared()
    mutants = [mutant for mutant in read(LIST.read_text(encoding="utf-8")) if part in mutant.file]
    with tempfile.TemporaryDirectory(prefix="faded-mutants-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        if gone := [why for mutant in mutants if (why := problem(tree, mutant))]:
            print(*gone, f"error: {len(gone)} of {len(mutants)} lines are no longer there", sep="\n")
            return 2
        for tests in dict.fromkeys(mutant.tests for mutant in mutants):
            if code := run(tree, tests):
                print(f"error: without any change pytest ends with {code}: {' '.join(tests)}")
                return 2
        missed = []
        for mutant in mutants:
            path = tree / mutant.file
            whole = path.read_text(encoding="utf-8")
            path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
            code = run(tree, mutant.tests)
            path.write_text(whole, encoding="utf-8")
            if code not in (FAILED, BROKEN, -signal.SIGALRM):
                missed.append(mutant)
                print(f"not noticed (pytest: {code}): {mutant.file}\n- {mutant.old}\n+ {mutant.new}", flush=True)
    print(f"{len(mutants) - len(missed)} of {len(mutants)} noticed")
    return 0 if len(missed) <= (1 - SHARE) * len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
