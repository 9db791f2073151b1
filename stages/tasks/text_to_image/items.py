"""Items of a text-to-image audit: a prompt template with a noise seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.concepts.prompts import check_templates, read_templates
from stages.errors import UsageError
from stages.tasks.contract import SPLITS, Split, TaskContext
from stages.tasks.sources import ItemCounts


def used_splits(templates: Sequence[str], counts: ItemCounts) -> dict[Split, int]:
    """The splits that have items, with how many.

    Raises:
        UsageError: when there are fewer templates than splits.
    """
    wanted = {split: getattr(counts, split) for split in SPLITS if getattr(counts, split)}
    if len(templates) < len(wanted):
        raise UsageError(
            f"prepare.templates: {len(wanted)} splits ({', '.join(wanted)}) need a template of their own each,"
            f" found {len(templates)}"
        )
    return wanted


def template_errors(named: Sequence[str] | str, counts: ItemCounts, context: TaskContext) -> list[str]:
    """Errors of the prompts."""
    try:
        templates = read_templates(named, context.inputs)
    except UsageError as error:
        return str(error).splitlines()
    errors = check_templates(templates, list(context.concepts), "prepare.templates")
    try:
        used_splits(templates, counts)
    except UsageError as error:
        errors.append(str(error))
    return errors


def choose_items(templates: Sequence[str], counts: ItemCounts, seed: int) -> pd.DataFrame:
    """Share out templates and noise seeds: no template and no seed is in two splits.

    Discover gets half of the templates and the other splits share the rest, or all if there is no other split. An item
    is one of its split's templates, in turn, with a seed of its own.

    Args:
        templates: prompts with slots.
        counts: items of each split.
        seed: of the order of the templates.

    Returns:
        Columns id, split, label (the template, which is what people expect to see drawn), template, seed (int64).

    Raises:
        UsageError: when there are fewer templates than splits.
    """
    wanted = used_splits(templates, counts)
    order = np.random.default_rng(seed).permutation(len(templates)).tolist()
    rows: list[tuple[str, Split, str, str, int]] = []
    for (split, count), own in zip(wanted.items(), _shares(order, len(wanted)), strict=True):
        for n in range(count):
            number, noise = own[n % len(own)], len(rows)
            rows.append((f"t{number + 1:02d}-s{noise:03d}", split, templates[number], templates[number], noise))
    return pd.DataFrame(rows, columns=["id", "split", "label", "template", "seed"])


def _shares(order: list[int], splits: int) -> list[list[int]]:
    """Half of the templates for the first split, the rest in equal parts."""
    first = len(order) if splits == 1 else max(1, len(order) // 2)
    rest = np.array_split(np.array(order[first:]), max(1, splits - 1))
    return [order[:first], *(part.tolist() for part in rest)][:splits]


def noise_seed(audit: int, item: int, repeat: int, picture: int, salt: int = 0) -> int:
    """Seed of the start noise of one picture of a probe.

    It does not depend on the cell: pictures of one item start from the same noise whatever words are added, so that
    what changes is due to the words (common random numbers).
    """
    return int(np.random.SeedSequence([audit, item, repeat, picture, salt]).generate_state(1, np.uint64)[0] >> 1)
