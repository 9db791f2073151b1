"""Check whether an audit's prompts fit its model and its judge, and report what nobody reads or checks."""

from __future__ import annotations

from collections.abc import Sequence

from stages.concepts import ConceptSpace
from stages.concepts.prompts import fill
from stages.tasks.text_to_image.judges import Judge, expected_values
from stages.tasks.text_to_image.sample import Paints


def unchecked(space: ConceptSpace, judge: Judge) -> list[str]:
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


def misfits(space: ConceptSpace, templates: Sequence[str], painter: Paints, judge: Judge) -> list[str]:
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
