"""The trial of an audit before anything of it is written.

It runs in a temporary folder made like the workspace. Whatever would refuse the audit there refuses it here, and
nothing is left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.init.files import Placed, link_inputs
from flows.init.propose import all_pairs
from flows.workspace.block import Draft, with_blocks
from stages.check import check_audits
from stages.errors import UsageError
from stages.params import DATA, Params, load_params
from stages.screening.sweep import fewest_probes


def refuse_idle_numbers(draft: Draft, budget: int | None, probes: int | None) -> None:
    """Refuse a sweep that is too short for its concepts, and a budget larger than the number of pairs.

    Args:
        draft: the audit.
        budget: budget of its search from the command line; None if it was not given.
        probes: probes of its sweep from the command line; None if they were not given.

    Raises:
        UsageError: with the number that is expected.
    """
    concepts, pairs = draft.audit["concepts"], all_pairs(draft.audit)
    least = fewest_probes(len(concepts))
    if probes is not None and probes < least:
        raise UsageError(f"--probes {probes}: too few for {len(concepts)} concepts, expected {least} or more")
    if budget is not None and budget > pairs:
        raise UsageError(
            f"--budget {budget}: more than there are pairs of an item and a cell that occurs in use, expected {pairs:,}"
            " or fewer"
        )


@contextlib.contextmanager
def tried(draft: Draft, placed: Sequence[Placed], workspace: Path) -> Iterator[Params]:
    """Enter a temporary workspace with only this audit, and check it there.

    Raises:
        UsageError: if the audit could not run.
    """
    with TemporaryDirectory(prefix="faded-init-") as name:
        here = Path(name).resolve()
        inputs = here / DATA / draft.name / "inputs"
        inputs.mkdir(parents=True)
        link_inputs(inputs, workspace.resolve() / DATA / draft.name / "inputs", placed)
        text = with_blocks("audits: {}\nrepairs: {}\n", None, draft)
        (here / "params.yaml").write_text(text, encoding="utf-8")
        with contextlib.chdir(here):
            params = load_params()
            check_audits(params, [draft.name])
            yield params
