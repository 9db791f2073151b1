"""Pairs of pictures a repair learns from: one shows what its prompt says, the other does not.

The model draws both, `tries` pictures for each prompt, and the judge tells which are right. If the model never gets a
prompt right, the better picture is a captioned one of the audit that shows all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.concepts import Region
from stages.errors import UsageError
from stages.tasks.cells import sampler
from stages.tasks.contract import RepairPlan
from stages.tasks.text_to_image.album import draw_for
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.text_to_image.repair_config import RepairSettings
from stages.tasks.text_to_image.vocabulary import Vocabulary


@dataclass(frozen=True)
class Pair:
    """Two pictures for a caption, by their numbers: the better one and the worse one."""

    right: int
    wrong: int
    caption: str

    @property
    def pictures(self) -> tuple[int, int]:
        return self.right, self.wrong


class Pairs:
    """The pairs of each step, which depend only on the seed and the number of the step.

    Args:
        task: the model, its judge, and captioned pictures.
        plan: target modes, or what the control trains on; the policy to aim by; seed.
        settings: how many pictures to draw, and pictures per step.
        words: what cells and pictures show.

    Raises:
        UsageError: when no picture drawn is wrong, or no wrong one has a better one.
    """

    def __init__(self, task: PainterProbes, plan: RepairPlan, settings: RepairSettings, words: Vocabulary) -> None:
        self.settings, self.seed = settings, plan.seed
        rng = np.random.default_rng([plan.seed, 8])
        prompts = max(1, settings.samples // settings.tries)
        rows, cells = sampler(task, plan, task.items.ids("repair")).draw(prompts, rng)
        drawn = draw_for(task, settings, rows.repeat(settings.tries), cells.repeat(settings.tries, axis=0), rng)
        captioned = task.pictures[task.pictures["split"] == "repair"]
        shows = words.table([words.said_of(row) for row in captioned.to_dict("records")])
        self.images = [picture.image for picture in drawn] + captioned["image"].tolist()
        right: dict[str, list[int]] = {}
        for n, picture in enumerate(drawn):
            if picture.right:
                right.setdefault(picture.prompt, []).append(n)
        self.pairs: list[Pair] = []
        for n, picture in enumerate(drawn):
            if not picture.right:
                better = right.get(picture.prompt) or len(drawn) + np.flatnonzero(
                    words.inside(_region(task, picture.cell), shows, strictly=True)
                )
                if len(better):
                    self.pairs.append(Pair(int(rng.choice(better)), n, picture.prompt))
        accepted = sum(picture.right for picture in drawn)
        self.counts = {"own_drawn": len(drawn), "own_accepted": accepted}
        if not self.pairs and plan.control == "clean":
            raise UsageError(
                "restructure.control: a clean control draws the plainest prompt alone, and none of its pictures was"
                " wrong, so it has no pairs to learn from; with method dpo take control: as_used, or none"
            )
        if not self.pairs:
            raise UsageError(
                f"restructure.settings.samples: of {len(drawn)} pictures drawn for {prompts} prompts the judge found"
                f" {accepted} right, and no wrong one has a right one, drawn or captioned, for the same prompt;"
                " expected one pair at least. Draw more (samples), more for each prompt (tries), or add pictures with"
                " columns named as the slots"
            )

    def __call__(self, step: int) -> list[Pair]:
        """Return the pairs of a step: two pictures each."""
        rng = np.random.default_rng([self.seed, 6, step])
        return [self.pairs[n] for n in rng.integers(len(self.pairs), size=self.settings.batch_size // 2)]

    def numbers(self) -> dict[str, Any]:
        """Return the card's numbers on the pairs."""
        captioned = sum(pair.right >= self.counts["own_drawn"] for pair in self.pairs)
        return {"pairs": len(self.pairs), "pairs_with_captioned": captioned, "available": self.counts}


def _region(task: PainterProbes, cell: np.ndarray) -> Region:
    """Return the region of one cell."""
    return Region({name: (int(level),) for name, level in zip(task.concepts.names, cell, strict=True)})
