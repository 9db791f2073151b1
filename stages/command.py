"""The command line that all stages share: `python -m stages.NAME AUDIT`."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

from stages.code import check_code, read_stages
from stages.core.environment import die_with_parent, start_alike
from stages.core.errors import Exit, run_as_command


def stage_main(run: Callable[..., None], *words: str) -> None:
    """Run a stage with its command-line arguments, and exit with one of the codes of `stages.core.errors`.

    Args:
        run: the stage; by default it receives the audit's name.
        words: names of all its arguments for the usage message, the audit first.
    """
    start_alike()
    die_with_parent()
    gc.set_threshold(10_000)  # 700 objects, the default, are so few that collecting took 3% of a stage's time
    words = words or ("AUDIT",)
    stage, given = Path(sys.argv[0]).stem, sys.argv[1:]
    if len(given) != len(words) or any(word.startswith("-") for word in given):
        print(f"usage: python -m stages.{stage} {' '.join(words)}", file=sys.stderr)
        raise SystemExit(int(Exit.USAGE))

    def checked() -> None:
        if stage in read_stages():
            check_code(stage, given[0])
            _without_network_unless_needed(stage, given[0])
        run(*given)

    run_as_command(checked)


def _without_network_unless_needed(stage: str, audit: str) -> None:
    from stages.params import load_params
    from stages.params.network import close_network, needs_network  # read_stages is called before params.yaml is read

    if not needs_network(stage, audit, load_params()):
        close_network(f"{stage} of {audit} has no network: nothing in params.yaml names an endpoint (docs/security.md)")
