"""What a repair learns in each step: captioned pictures, or pairs of a better and a worse picture.

If there are pairs that must pass, pictures that the model under test draws rightly for them take the place of the last
quarter of a step, which is outside the targets if `replay` allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from stages.concepts import Region
from stages.core.errors import UsageError
from stages.tasks.contract import RepairPlan
from stages.tasks.text_to_image.album import (
    NOT_SHOWN,
    Album,
    Drawn,
    PictureWords,
    draw_for,
    draw_must_pass,
    repair_templates,
)
from stages.tasks.text_to_image.config import TextToImageRepair
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.training import sampler

OWN_TEXT = 0.25  # share of captioned pictures that keep their own caption
MUST_PASS = 4  # at most one in so many lessons is of a pair that must pass

L = TypeVar("L")


def _with_must_pass(lessons: list[L], must_pass: Sequence[L], seed: int, step: int) -> list[L]:
    """Put lessons of pairs that must pass in the place of the last of a step's n, but never of all."""
    count = min(len(must_pass), -(-len(lessons) // MUST_PASS), len(lessons) - 1)
    chosen = np.random.default_rng([seed, 7, step]).permutation(len(must_pass))[:count]
    return lessons[: len(lessons) - count] + [must_pass[n] for n in chosen]


@dataclass(frozen=True)
class PictureLesson:
    """A picture, by number, the caption to learn it with, and whether it only has to stay as it is."""

    picture: int
    caption: str
    replayed: bool = False

    @property
    def pictures(self) -> tuple[int]:
        return (self.picture,)


class PictureLessons:
    """The lessons of each step, which depend only on the seed and the number of the step.

    An item and a cell are drawn as the plan aims, then one of the pictures that show most of what the cell says.

    Args:
        plan: target modes, or what the control trains on; seed.
        settings: batch size, replay, sources, balance.
        words: what cells and pictures show.
    """

    def __init__(
        self, task: PainterProbes, plan: RepairPlan, settings: TextToImageRepair, album: Album, words: PictureWords
    ) -> None:
        self.task, self.settings, self.seed, self.album, self.words = task, settings, plan.seed, album, words
        self.images: list[bytes] = album.table["image"].tolist()
        kept = draw_must_pass(task, plan, settings)
        self._must_pass = [PictureLesson(len(self.images) + n, one.prompt, True) for n, one in enumerate(kept)]
        self.images += [one.image for one in kept]
        self.cells = sampler(task, plan, task.items.ids("repair"))
        self._regions = [target.region for target in plan.regions(task.concepts)]
        self._templates = repair_templates(task)
        self._texts = album.table["text"].tolist()
        self._whole = album.table["whole"].to_numpy(bool)
        self._sources = {s: (album.table["source"] == s).to_numpy() for s in settings.sources}
        outside = np.asarray(~album.inside.any(0))
        self._outside = outside if outside.any() else np.ones_like(outside)  # a control's region is everywhere
        bias = task.config.bias
        balance = settings.balance if settings.balance != "auto" else bias.attribute if bias else None
        if balance is not None and balance not in words.names:
            raise UsageError(
                f"restructure.settings.balance: {balance} is not an attribute; the judge and the pictures know"
                f" {', '.join(words.names)}"
            )
        self._balance = words.names.index(balance) if balance is not None else None
        self._subject = words.names.index(bias.subject) if bias and bias.subject in words.names else None

    def __call__(self, step: int) -> list[PictureLesson]:
        rng = np.random.default_rng([self.seed, 6, step])
        aimed = self.settings.batch_size - self.settings.replayed
        drawn = zip(*self.cells.draw(aimed, rng), strict=True)
        lessons = [self._aimed(int(row), cell, rng) for row, cell in drawn]
        lessons += [self._replayed(rng) for _ in range(self.settings.replayed)]
        return _with_must_pass(lessons, self._must_pass, self.seed, step)

    def numbers(self, batches: Sequence[Sequence[PictureLesson]]) -> dict[str, Any]:
        """Return the card's numbers on the lessons that were learnt."""
        learnt = {lesson.picture for batch in batches for lesson in batch}
        sources = pd.Series([*self.album.table["source"], *["must_pass"] * len(self._must_pass)])
        return {
            "pictures": {s: int((sources.iloc[sorted(learnt)] == s).sum()) for s in dict.fromkeys(sources)},
            "available": dict(self.album.counts),
        }

    def _aimed(self, row: int, cell: np.ndarray, rng: np.random.Generator) -> PictureLesson:
        pool = self._of_one_source(self._may_show(cell), rng)
        wanted = self.words.of_cell(cell)
        fits = (self.album.shows[pool] == wanted)[:, wanted != NOT_SHOWN].sum(1)
        picture = self._evenly(pool[fits == fits.max()], rng)
        return PictureLesson(picture, self._caption(picture, self._templates[row], cell, rng))

    def _may_show(self, cell: np.ndarray) -> np.ndarray:
        """Which pictures belong to the targets around a cell: (n,) bool; all if no target contains it."""
        around = np.array([region.in_box(self.task.concepts, cell[None])[0] for region in self._regions])
        return np.asarray(self.album.inside[around].any(0) if around.any() else np.ones_like(self._outside))

    def _replayed(self, rng: np.random.Generator) -> PictureLesson:
        picture = self._evenly(self._of_one_source(self._outside, rng), rng)
        template = self._templates[rng.integers(len(self._templates))]
        return PictureLesson(
            picture, self._caption(picture, template, self.task.concepts.sample(1, rng)[0], rng), replayed=True
        )

    def _of_one_source(self, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the rows of pictures of one source, chosen by weight among those that have any."""
        having = {source: rows for source, of_it in self._sources.items() if len(rows := np.flatnonzero(pool & of_it))}
        weights = np.array([self.settings.sources[source] for source in having])
        return list(having.values())[rng.choice(len(having), p=weights / weights.sum())]

    def _evenly(self, rows: np.ndarray, rng: np.random.Generator) -> int:
        """Choose a picture; among those of its subject, all values of the attribute to balance are equally likely."""
        chosen = int(rng.choice(rows))
        if self._balance is None:
            return chosen
        shows = self.album.shows
        if self._subject is not None:
            rows = rows[shows[rows, self._subject] == shows[chosen, self._subject]]
        values = shows[rows, self._balance]
        return int(rng.choice(rows[values == rng.choice(np.unique(values))]))

    def _caption(self, picture: int, template: str, cell: np.ndarray, rng: np.random.Generator) -> str:
        if self._whole[picture] or rng.random() < OWN_TEXT:
            return str(self._texts[picture])
        words = self.words.words_for(cell, self.album.shows[picture])
        if words is None:
            return str(self._texts[picture])
        return self.task.prompt(template, words)


@dataclass(frozen=True)
class PicturePair:
    """Two pictures for a caption, by their numbers: the better one and the worse one."""

    right: int
    wrong: int
    caption: str

    @property
    def pictures(self) -> tuple[int, int]:
        return self.right, self.wrong


class PicturePairs:
    """The pairs of each step, which depend only on the seed and the number of the step.

    Raises a UsageError when no picture drawn is wrong, or no wrong one has a better one.

    Args:
        task: the model, its judge, and captioned pictures.
        plan: target modes, or what the control trains on; seed.
        settings: how many pictures to draw, and pictures per step.
        words: what cells and pictures show.
    """

    def __init__(self, task: PainterProbes, plan: RepairPlan, settings: TextToImageRepair, words: PictureWords) -> None:
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
        self.pairs: list[PicturePair] = []
        for n, picture in enumerate(drawn):
            if not picture.right:
                levels = zip(task.concepts.names, picture.cell, strict=True)
                at = Region({name: (int(level),) for name, level in levels})
                better = right.get(picture.prompt) or len(drawn) + np.flatnonzero(
                    words.inside(at, shows, strictly=True)
                )
                if len(better):
                    self.pairs.append(PicturePair(int(rng.choice(better)), n, picture.prompt))
        self._must_pass = self._kept(drawn, draw_must_pass(task, plan, settings), words)
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

    def __call__(self, step: int) -> list[PicturePair]:
        """Return the pairs of a step: two pictures each."""
        rng = np.random.default_rng([self.seed, 6, step])
        pairs = [self.pairs[n] for n in rng.integers(len(self.pairs), size=self.settings.batch_size // 2)]
        return _with_must_pass(pairs, self._must_pass, self.seed, step)

    def _kept(self, drawn: Sequence[Drawn], kept: Sequence[Drawn], words: PictureWords) -> list[PicturePair]:
        """Pair each of the kept pictures with a drawn one that does not show what its prompt names."""
        shows, rng, found = words.table([one.read for one in drawn]), np.random.default_rng([self.seed, 10]), []
        for n, picture in enumerate(kept, len(self.images)):
            wanted = words.of_cell(picture.cell)
            if len(wrong := np.flatnonzero((shows != wanted)[:, wanted != NOT_SHOWN].any(1))):
                found.append(PicturePair(n, int(rng.choice(wrong)), picture.prompt))
        self.images += [one.image for one in kept]
        return found

    def numbers(self) -> dict[str, Any]:
        captioned = sum(pair.right >= self.counts["own_drawn"] for pair in self.pairs)
        told = {"pairs": len(self.pairs), "pairs_with_captioned": captioned, "available": self.counts}
        return told | ({"pairs_must_pass": len(self._must_pass)} if self._must_pass else {})
