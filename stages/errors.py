"""The errors people see, and the exit codes they become.

0 pass, 1 gate failed, 2 usage (bad input: fix it and run again), 3 infrastructure (retry may help).
Every class is also a builtin error, so that library users need not know Faded to catch it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `faded` and of every stage."""

    PASS = 0
    GATE_FAILED = 1
    USAGE = 2
    INFRASTRUCTURE = 3


class FadedError(Exception):
    """Base of all errors raised on purpose: one clear message, no traceback for the user."""

    exit_code: Exit = Exit.INFRASTRUCTURE


class UsageError(FadedError, ValueError):
    """Bad input. The message says what was found, what was expected, and where."""

    exit_code = Exit.USAGE


class DecisionNeeded(UsageError):
    """A person has to decide before the pipeline can go on."""


class RejectedError(FadedError, RuntimeError):
    """A person looked and said no: the audit ends there, as at a failed gate."""

    exit_code = Exit.GATE_FAILED


class InfrastructureError(FadedError, RuntimeError):
    """The machine failed us, not the input: worth a retry."""


class NoLearningError(FadedError, RuntimeError):
    """An agent made no gradient update: its policy says nothing and must not be published."""

    exit_code = Exit.USAGE


def run_as_command(stage: Callable[[], None]) -> None:
    """Run a stage and turn its errors into the exit codes above.

    Unexpected exceptions keep their traceback: they are bugs, and count as infrastructure for the
    caller because nothing the user wrote explains them.
    """
    try:
        stage()
    except FadedError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(int(error.exit_code)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(int(Exit.INFRASTRUCTURE)) from None
