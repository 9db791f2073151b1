"""The errors people see, and their exit codes.

0 pass, 1 gate failed, 2 usage (bad input: fix it and run again), 3 infrastructure (retry may help); 130 if stopped by
Ctrl-C. Stages also exit with 69 if a service stayed unavailable through all retries, so an immediate retry is useless,
and with 70 for a bug, which no retry fixes; `faded` turns both into 3.
Every class also derives from a builtin error, so that users of the library can catch it without importing Faded.
"""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from errno import EDQUOT, EFBIG, EIO, EMFILE, ENOSPC, EROFS
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from io import IOBase
from typing import Any


class Exit(IntEnum):
    """Exit codes of `faded` (up to 3) and of every stage."""

    PASS = 0
    GATE_FAILED = 1
    USAGE = 2
    INFRASTRUCTURE = 3
    UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h
    BUG = 70  # EX_SOFTWARE


class FadedError(Exception):
    """Base of all errors raised on purpose: one clear message, no traceback for the user."""

    exit_code: Exit = Exit.INFRASTRUCTURE


class UsageError(FadedError, ValueError):
    """Bad input. The message says what was found, what was expected, and where."""

    exit_code = Exit.USAGE


class DecisionNeeded(UsageError):
    """A person has to decide before the pipeline can continue."""


class RejectedError(FadedError, RuntimeError):
    """A person rejected the landscape: the audit ends, as at a failed gate."""

    exit_code = Exit.GATE_FAILED


class InfrastructureError(FadedError, RuntimeError):
    """The machine failed, not the input: a retry may help."""


class UnavailableError(InfrastructureError):
    """A service did not answer despite all retries: an immediate retry would not help."""


class BugError(FadedError, RuntimeError):
    """A stage failed in an unforeseen way: running it again would only fail again."""


class NoLearningError(FadedError, RuntimeError):
    """An agent made no gradient update: its policy is meaningless and must not be published."""

    exit_code = Exit.USAGE


def escape_controls(text: str) -> str:
    """Escape control characters in text from elsewhere, which could control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: Any, known: Iterable[Any]) -> str:
    """Return the end of a message about an unknown word: the most similar known word, if any."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def first_problems(problems: Sequence[object], most: int = 4) -> str:
    """Return the first problems, and how many more there are."""
    return "; ".join(map(str, problems[:most])) + (f"; and {len(problems) - most} more" if len(problems) > most else "")


def missing_package(error: BaseException) -> UsageError | None:
    """Return the command that installs the package whose import failed, if one of Faded's extras has it."""
    if not isinstance(error, ModuleNotFoundError) or find_spec(module := str(error.name).partition(".")[0]) is not None:
        return None
    wanted = _DISTRIBUTIONS.get(module, module.replace("_", "-"))
    try:
        requirements = requires("faded") or ()
    except PackageNotFoundError:  # a source tree that is not installed
        return None
    stated = (re.match(rf"{re.escape(wanted)}\b(?!-).*extra == .([\w-]+)", line) for line in requirements)
    extras = dict.fromkeys(f"'faded[{match[1]}]'" for match in stated if match)
    return UsageError(f"{module} is not installed: pip install {' or '.join(extras)}") if extras else None


_DISTRIBUTIONS = {"PIL": "pillow"}


def run_as_command(stage: Callable[[], None]) -> None:
    """Run a stage and turn its errors into the exit codes above.

    Failures of the machine (a full disk, no memory) may not recur, and print one line. All other unexpected exceptions
    are bugs, which would recur, and print their traceback.
    """
    try:
        stage()
    except KeyboardInterrupt as stop:
        raise SystemExit(stop_code(stop)) from None
    except Exception as raised:
        error = missing_package(raised) or raised
        if isinstance(error, FadedError):
            print(f"error: {error}", file=sys.stderr)
            away = isinstance(error, UnavailableError)
            raise SystemExit(int(Exit.UNAVAILABLE if away else error.exit_code)) from None
        if (failure := machine_failure(error)) is not None:
            print(f"error: {failure}", file=sys.stderr)
            raise SystemExit(int(Exit.INFRASTRUCTURE)) from None
        traceback.print_exc()
        raise SystemExit(int(Exit.BUG)) from None


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. It unwinds like Ctrl-C, but the process was not stopped by hand."""


def stop_code(stop: KeyboardInterrupt) -> int:
    """Return the exit code of a stopped process: 130 if stopped by hand, otherwise 3."""
    return int(Exit.INFRASTRUCTURE) if isinstance(stop, Terminated) else 130


# How libraries word an error of the machine that they wrap in their own exceptions; SQLite has its own wording.
_OF_THE_MACHINE = (
    *(os.strerror(number) for number in (EDQUOT, EFBIG, EIO, EMFILE, ENOSPC, EROFS)),
    *("disk I/O error", "database or disk is full", "readonly database", "unable to open database file"),
)


def machine_failure(error: BaseException) -> str | None:
    """Describe in one line the failure of the machine behind an error (no space, no memory, a missing file), if any."""
    # torch is slow to import; if it raised the error, it is imported already.
    torch = sys.modules.get("torch")
    memory = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
    if isinstance(error, (MemoryError, *memory)):
        return f"out of memory: {one_line(error) or 'no more could be had'}"
    if isinstance(error, OSError):
        return f"{one_line(error)}{_file_of(error)}{_RESUMES * (error.errno in (EDQUOT, EFBIG, EIO, ENOSPC, EROFS))}"
    cause: BaseException | None = error
    while cause is not None:
        if any(words in str(cause) for words in _OF_THE_MACHINE):
            why = "is the disk full, or the size of files limited?"
            return f"a file could not be written ({why}): {one_line(cause)}{_RESUMES}"
        cause = cause.__cause__ or cause.__context__
    return None


_RESUMES = "; the same command resumes once that is mended"


def _file_of(error: OSError) -> str:
    """Name the file that was being written, which the error of a write does not: the last that its functions opened."""
    if error.filename is not None:
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    held = [value for frame in reversed(frames) for value in frame.f_locals.values() if isinstance(value, IOBase)]
    names = [name for file in held if isinstance(name := getattr(file, "name", None), str)]
    return f": {names[0]}" if names else ""


def one_line(error: BaseException) -> str:
    """Return the message of a library's error in one line of at most 500 characters."""
    return " ".join(str(error).split())[:500]
