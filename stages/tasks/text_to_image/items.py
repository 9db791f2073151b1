"""Items of a text-to-image audit: prompt templates with noise seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.concepts.prompts import check_templates, fill, read_templates
from stages.core.errors import UsageError
from stages.tasks.contract import SPLITS, Split, TaskContext
from stages.tasks.sources import ItemCounts
from stages.tasks.text_to_image.judges import PictureJudge, expected_values
from stages.tasks.text_to_image.sample import PictureModel

# Templates that a split needs. Intervals resample templates, and are too narrow with few groups (Cameron, Gelbach and
# Miller 2008): tests/test_groups.py shows how often 95% intervals hold with how many groups. Discover only describes a
# model, test decides whether a repair passes, and repair has no intervals.
FEWEST: Mapping[Split, int] = {"discover": 5, "repair": 1, "test": 10}


def used_splits(templates: Sequence[str], counts: ItemCounts) -> dict[Split, int]:
    """Return the splits that have items, with how many.

    Raises a UsageError when a split would have too few templates, or too few items to use them.
    """
    wanted = {split: getattr(counts, split) for split in SPLITS if getattr(counts, split)}
    lines = [
        f"prepare.items.{split}: expected {FEWEST[split]} or more, as each template needs an item, found {count}"
        for split, count in wanted.items()
        if count < FEWEST[split]
    ]
    if len(templates) < (fewest := sum(FEWEST[split] for split in wanted)):
        each = ", ".join(f"{split} {FEWEST[split]}" for split in wanted)
        lines.append(
            f"prepare.templates: expected {fewest} or more, as no template is in two splits and of these {each};"
            f" found {len(templates)}"
        )
    if lines:
        raise UsageError("\n".join(lines))
    return wanted


def template_errors(named: Sequence[str] | str, counts: ItemCounts, context: TaskContext) -> list[str]:
    """List errors of the prompt templates."""
    try:
        templates = read_templates(named, context.inputs)
    except UsageError as error:
        return str(error).splitlines()
    errors = check_templates(templates, list(context.concepts), "prepare.templates")
    try:
        used_splits(templates, counts)
    except UsageError as error:
        errors += str(error).splitlines()
    return errors


def choose_items(templates: Sequence[str], counts: ItemCounts, seed: int) -> pd.DataFrame:
    """Divide templates and noise seeds among the splits: no template and no seed is in two splits.

    Each split gets the templates it needs (see FEWEST), and of the others a share in proportion to its items. An item
    is one of its split's templates, in turn, with its own seed. Raises a UsageError when there are too few templates or
    items.

    Returns:
        Columns id, split, label and group (the template, which is what people expect to see drawn), template, seed
        (int64).
    """
    wanted = used_splits(templates, counts)
    order = np.random.default_rng(seed).permutation(len(templates)).tolist()
    rows: list[tuple[str, Split, str, str, str, int]] = []
    for (split, count), own in zip(wanted.items(), _shares(order, wanted), strict=True):
        for n in range(count):
            number, noise = own[n % len(own)], len(rows)
            template = templates[number]
            rows.append((f"t{number + 1:02d}-s{noise:03d}", split, template, template, template, noise))
    return pd.DataFrame(rows, columns=["id", "split", "label", "group", "template", "seed"])


def _shares(order: list[int], wanted: Mapping[Split, int]) -> list[list[int]]:
    """Return the numbers of the templates of each split."""
    fewest = np.array([FEWEST[split] for split in wanted])
    items = np.cumsum(list(wanted.values()))
    ends = np.cumsum(fewest) + np.round((len(order) - fewest.sum()) * items / items[-1]).astype(int)
    return [part.tolist() for part in np.split(np.array(order), ends[:-1])]


def noise_seed(audit: int, item: int, repeat: int, picture: int, salt: int = 0) -> int:
    """Return the seed of the start noise of one picture of a probe.

    It does not depend on the cell: pictures of one item start from the same noise whatever words are added, so that
    differences are due to the words (common random numbers).
    """
    return int(np.random.SeedSequence([audit, item, repeat, picture, salt]).generate_state(1, np.uint64)[0] >> 1)


def unchecked(space: ConceptSpace, judge: PictureJudge) -> list[str]:
    """List what prompts say and a judge of attributes cannot check, one line per slot."""
    if judge.reads_prompts:
        return []
    gaps = []
    for concept in space.concepts:
        said = [str(level) for level in concept.levels if level != concept.neutral]
        unknown = [level for level in said if not expected_values(judge.attributes, {concept.name: level})]
        if unknown:
            levels = "" if len(unknown) == len(said) else f" where it is {', '.join(unknown)}"
            gaps.append(f"what {concept.name} says{levels}")
    return gaps


def misfits(space: ConceptSpace, templates: Sequence[str], painter: PictureModel, judge: PictureJudge) -> list[str]:
    """List prompts that the model would not read to their end, and say if the judge can check nothing."""
    longest = {c.name: max(map(str, c.levels), key=painter.tokens) for c in space.concepts}
    # Every template with the longest phrases in tokens: if these fit, all prompts do.
    prompts = [fill(template, longest) for template in dict.fromkeys(templates)]
    lines = [f"concepts, prepare.templates: {line}" for line in painter.too_long(prompts)]
    negative = painter.sampling.negative_prompt
    lines += [f"prepare.sampling.negative_prompt: {line}" for line in painter.too_long([negative])]
    if not judge.reads_prompts and not any(
        expected_values(judge.attributes, {c.name: str(level)}) for c in space.concepts for level in c.levels
    ):
        read = "; ".join(f"{name}: {', '.join(values)}" for name, values in judge.attributes.items())
        lines.append(
            f"prepare.judge: it can check nothing that concepts say ({', '.join(space.names)}); a slot is checked if it"
            f" is named like an attribute the judge reads and its levels hold values of that: {read}"
        )
    return lines
