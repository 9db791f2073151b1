"""What all stages have in common as commands: `python -m stages.NAME AUDIT`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from stages.environment import die_with_parent, set_defaults
from stages.errors import Exit, run_as_command


def stage_main(run: Callable[[str], None]) -> None:
    """Run a stage for the audit named on the command line, and end with one of the exit codes of `stages.errors`.

    Args:
        run: the stage; it is given the audit's name.
    """
    set_defaults()
    die_with_parent()
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(f"usage: python -m stages.{Path(sys.argv[0]).stem} AUDIT", file=sys.stderr)
        raise SystemExit(int(Exit.USAGE))
    run_as_command(lambda: run(sys.argv[1]))
