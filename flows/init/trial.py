"""An audit tried out before anything of it is written: whether it will do.

It is tried in a temporary folder that is made like the workspace, so that whatever would refuse it there refuses it
here, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.audit_block import Draft, with_blocks
from flows.init.files import Placed, link_inputs
from flows.init.propose import all_pairs
from stages.check import check_audits
from stages.concepts import Concept
from stages.errors import UsageError
from stages.params import DATA, Params, load_params
from stages.screening.first_pass import fewest_probes


def least_probes(draft: Draft) -> int:
    """Unique probes that the calibration of an audit needs at least."""
    return fewest_probes(
        [
            Concept(name, tuple(levels), neutral=levels[0], ordered=not any(isinstance(level, str) for level in levels))
            for name, levels in draft.audit["concepts"].items()
        ]
    )


def refuse_idle_numbers(draft: Draft, budget: int | None, probes: int | None) -> None:
    """Refuse a calibration that is too short for its concepts, and a search of more than there is.

    Args:
        draft: the audit.
        budget: of its search, as a person said; None where nobody did.
        probes: of its calibration, likewise.

    Raises:
        UsageError: with the number there should be.
    """
    concepts, least, pairs = draft.audit["concepts"], least_probes(draft), all_pairs(draft.audit)
    if probes is not None and probes < least:
        raise UsageError(
            f"--probes {probes}: too few for {len(concepts)} concepts with these levels, expected {least} or more"
        )
    if budget is not None and budget > pairs:
        raise UsageError(
            f"--budget {budget}: more than there are pairs of an item and a cell of the grid, expected {pairs:,} or"
            " fewer"
        )


@contextlib.contextmanager
def tried(draft: Draft, placed: Sequence[Placed], workspace: Path) -> Iterator[Params]:
    """Work for a while in a temporary workspace that holds this audit alone.

    Raises:
        UsageError: when it is not an audit that could run.
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
