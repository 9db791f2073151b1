"""An audit tried out before anything of it is written: whether it will do, and what its model makes of clean pictures.

It is tried in a temporary folder that is made like the workspace, so that whatever would refuse it there refuses it
here, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from flows.init.block import Draft, with_blocks
from flows.init.files import Placed, link_inputs
from flows.init.order import Order
from flows.init.propose import all_pairs
from stages.check import check_audits
from stages.concepts import Concept
from stages.errors import UsageError
from stages.params import DATA, Params, load_params, task_context
from stages.screening import fewest_probes

_OF_EACH_CLASS = 20  # pictures, which tell its output for sure if most are taken for that
_LEAST, _MOST, MOST_OF_A_SERVICE = 100, 500, 200  # pictures in all; those of a service may cost money


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
        UsageError: when it is no audit that could run.
    """
    with TemporaryDirectory(prefix="faded-init-") as name:
        here = Path(name).resolve()
        inputs = here / DATA / draft.name / "inputs"
        inputs.mkdir(parents=True)
        link_inputs(inputs, workspace.resolve() / DATA / draft.name / "inputs", placed)
        text = with_blocks("audits: {}\nrepairs: {}\nshards: {}\n", None, draft)
        (here / "params.yaml").write_text(text, encoding="utf-8")
        with contextlib.chdir(here):
            params = load_params()
            check_audits(params, [draft.name])
            yield params


def order_of(params: Params, name: str, classes: int, available: int | None) -> Order:
    """Have a classifier answer to clean pictures, in a temporary workspace.

    Args:
        params: of that workspace.
        name: of the audit.
        classes: how many it tells apart, about.
        available: pictures there are to search; None where nobody knows.

    Raises:
        FadedError: when the model or the data cannot be prepared.
    """
    import torch

    from stages.tasks.classification import ImageClassification
    from stages.tasks.classification.config import PrepareConfig
    from stages.tasks.classification.data import DATA_LOADERS
    from stages.tasks.classification.loaders import MODEL_LOADERS
    from stages.tasks.classification.pool import choose_items
    from stages.tasks.sources import ItemCounts, parse_source

    context = task_context(name, params.audit(name))
    torch.set_num_threads(context.compute.threads)
    config = PrepareConfig.model_validate(dict(context.config))
    most = MOST_OF_A_SERVICE if "endpoint" in config.model else _MOST
    wanted = min(available or config.items.discover, most, max(_LEAST, _OF_EACH_CLASS * classes))
    pool = parse_source(config.data, DATA_LOADERS, "prepare.data").load(context.inputs)
    source = parse_source(config.model, MODEL_LOADERS, "prepare.model")
    model = source.build(context.inputs, pool, context.seed, context.compute.device)
    form = model.form
    items = choose_items(pool, ItemCounts(discover=wanted), form.classes, context.seed, form.shape, form.view)
    task = ImageClassification(context, items, model, "")
    rows = np.arange(len(items))
    parts = np.array_split(rows, -(-len(rows) // context.compute.batch_size))
    with torch.inference_mode(), task.backend.threads():
        answers = [task.backend(task.clean(part)).argmax(1).numpy() for part in parts]
    counts = np.zeros((len(form.classes), len(form.classes)), dtype=np.int64)
    np.add.at(counts, (items["target"].to_numpy(), np.concatenate(answers)), 1)
    return Order(form.classes, counts)
