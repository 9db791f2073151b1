"""Rates in use, from probes that were drawn evenly, and corrected by people's verdicts.

The control draws rare conditions more often than they occur (`Usage.even`), so its probes are weighted. Rates are
stratified by the number of concepts that change at once: each stratum counts by its share of use, and within it a probe
by how common its cell is in use, over the chance to be probed (Horvitz and Thompson 1952; Hájek 1971).

An automatic measure or a judge errs. If people say of some of the control's probes, drawn as they occur in use, whether
they fail, its rate can be corrected: prediction-powered inference (Angelopoulos, Duchi and Zrnic 2023, "PPI++",
arXiv:2311.01453). For yes or no, with the best power, this is the rate at which people call failures among what the
measure fails, and among what it passes, weighted by how often the measure fails in use.
"""

from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.concepts.usage import Usage
from stages.core.errors import UsageError
from stages.core.files import read_named
from stages.core.intervals import LEVEL, NO_RATE, Rate, share
from stages.params import SpotCheckConfig
from stages.records import RateRecord
from stages.records.landscape import Corrected

EVERYWHERE = Region({})


class InUse(NamedTuple):
    """A rate in use, and the number of plain draws from use that would measure it as precisely.

    Args:
        rate: the rate with its interval; `n` counts probes.
        effective: that number; it may be a fraction.
    """

    rate: Rate
    effective: float

    @property
    def counts(self) -> tuple[int, int]:
        """Failures and passes of as many plain draws, for tests."""
        n = int(min(self.effective, self.rate.n)) if self.rate.n else 0
        failures = round(n * self.rate.value) if n else 0
        return failures, n - failures


def rate_in_use(
    space: ConceptSpace,
    which: np.ndarray,
    probes: pd.DataFrame,
    *,
    within: Region = EVERYWHERE,
    among: np.ndarray | None = None,
    usage: Usage | None = None,
    level: float = LEVEL,
) -> InUse:
    """Return how often `which` is true in use.

    The interval is for other items like these: all probes of an item are resampled together, see `Resampler`. What the
    usage has where nothing was probed may fail at any rate, which widens it, as does the error of a usage that was
    measured, see `Usage.error_of_mean`.

    Args:
        which: (n,) bool.
        probes: n draws from the cells of `within` and the items it covers, as the control makes them.
        within: the region that the probes are in.
        among: (n,) bool, of which of them the rate is; None for all.
        usage: another usage of the grid than its own.
        level: of the interval.
    """
    here = space.usage if usage is None else usage
    kept = np.ones(len(probes), dtype=bool) if among is None else among
    if here is None:
        rate = share(which[kept], probes[kept], level)
        return InUse(rate, _effective(rate, np.ones(rate.n), level) if rate.n else 0.0)
    cells = probes[space.names].to_numpy(dtype=np.int64)
    allowed = {space.names.index(name): levels for name, levels in within.allowed.items()}
    chances = space.chances(cells, probes["item"].nunique(), allowed)
    ratio, mass = here.density(cells) / chances, here.by_changes(allowed)
    changes = here.number_of_changes(cells)
    found = np.bincount(changes, ratio, len(mass))
    known, total = found > 0, float(mass.sum())
    mass = np.where(known, mass if usage is None else here.by_changes(_drawn(space, allowed)), 0.0)
    if mass.sum() <= 0:
        return InUse(NO_RATE, 0.0)
    unknown = max(0.0, 1 - float(mass.sum()) / total)
    weights = ratio * (mass / np.where(known, found, 1.0))[changes] * kept
    if weights.sum() <= 0:
        return InUse(NO_RATE, 0.0)
    rate = share(which, probes, level, weights, partial(here.error_of_mean, cells))
    return InUse(_widened(rate, unknown), _effective(rate, weights, level))


def _drawn(space: ConceptSpace, allowed: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """Return the levels of concepts that a control draws, of those allowed."""
    if space.usage is None:
        return allowed
    levels = {j: np.flatnonzero(own > 0) for j, own in enumerate(space.usage.weights)}
    return {j: tuple(np.intersect1d(of, allowed.get(j, of)).tolist()) for j, of in levels.items()}


def _effective(rate: Rate, weights: np.ndarray, level: float) -> float:
    """Return the number of plain draws with an interval as wide, at most Kish's effective sample size (1965)."""
    kish = float(weights.sum() ** 2 / (weights**2).sum())
    if rate.low < rate.value < rate.high:
        error = (rate.high - rate.low) / 2 / NormalDist().inv_cdf((1 + level) / 2)
        return min(kish, rate.value * (1 - rate.value) / error**2)
    return kish


def _widened(rate: Rate, unknown: float) -> Rate:
    """Return a rate whose interval allows any rate in the share of use from which no probe was drawn."""
    return rate._replace(low=rate.low * (1 - unknown), high=rate.high * (1 - unknown) + unknown)


COLUMNS = ("draws", "item", "cell", "answer", "fails")
FEWEST = 20  # draws: with fewer, the interval says little
_SAID = {"yes": True, "y": True, "true": True, "1": True, "no": False, "n": False, "false": False, "0": False}
_COMPUTED = ("=", "+", "-", "@", "\t", "\r", "'")  # how a text begins that a spreadsheet would compute, or change
_DRAWS = 20_000  # from the distribution of the corrected rate


def draw_uses(space: ConceptSpace, control: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Draw n of the control's probes as they occur in use; the table has how often each was drawn as `draws`.

    Common ones may be drawn several times: they count as often, and are judged once.
    """
    weights = space.weights(control[space.names].to_numpy(dtype=np.int64), control["item"].nunique())
    drawn = np.random.default_rng([seed, 5]).choice(len(control), n, p=weights / weights.sum())
    rows, first, draws = np.unique(drawn, return_index=True, return_counts=True)
    order = np.argsort(first)
    return control.iloc[rows[order]].assign(draws=draws[order])


def read_spot_check(config: SpotCheckConfig, where: str) -> pd.DataFrame:
    """Read the verdicts that the block `where`, an audit's `summarize.spot_check`, names.

    Raises a UsageError if the file is missing or changed, or as for `parse_spot_check`.
    """
    path = Path(config.file)
    return parse_spot_check(read_named(path, config.sha256, where), path)


def behind_apostrophe(text: str) -> str:
    """Write a text so that no spreadsheet computes it; `parse_spot_check` takes the apostrophe away again."""
    return f"'{text}" if text.startswith(_COMPUTED) else text


def parse_spot_check(data: bytes, path: Path) -> pd.DataFrame:
    """Parse verdicts, read from `path`: one row per probe, with `fails` as bool and `cell` as level indices.

    Raises a UsageError if it is not such a table, or a row has no verdict.
    """
    try:
        table = pd.read_csv(BytesIO(data), dtype=str, keep_default_na=False)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read as CSV: {error}") from None
    if missing := [name for name in COLUMNS if name not in table]:
        raise UsageError(f"{path}: expected the columns {', '.join(COLUMNS)}, found no {', '.join(missing)}")
    table[["item", "answer"]] = table[["item", "answer"]].apply(lambda column: column.str.removeprefix("'"))
    said = table["fails"].str.strip().str.lower().map(_SAID)
    if (empty := np.flatnonzero(said.isna())).size:
        raise UsageError(
            f"{path}: {len(empty)} of {len(table)} rows have neither yes nor no in the column `fails`, the first in row"
            f" {empty[0] + 2}; judge all, because rows that were left out may be the hard ones"
        )
    try:
        cells = [tuple(int(level) for level in cell.split()) for cell in table["cell"]]
        return table.assign(draws=table["draws"].astype(int), cell=cells, fails=said.astype(bool))
    except ValueError as error:
        raise UsageError(f"{path}: expected whole numbers in the columns draws and cell ({error})") from None


def correct(space: ConceptSpace, control: pd.DataFrame, judged: pd.DataFrame, seed: int) -> Corrected:
    """Return the failure rate in use that people would find, from their verdicts on some of the control's probes.

    The interval is that of the posterior under Jeffreys' prior for each of the three rates, with the control's finite
    number of probes taken into account. Raises a UsageError if a verdict is on an
    answer that the control did not get, or there are fewer than 20.

    Args:
        judged: verdicts, as read by `parse_spot_check`.
    """
    cells = [tuple(cell) for cell in control[space.names].to_numpy(dtype=int).tolist()]
    failed = control["failed"].to_numpy(dtype=bool)
    known = dict(
        zip(zip(control["item"], cells, strict=True), zip(failed, control["output"], strict=True), strict=True)
    )
    found = [known.get(key) for key in zip(judged["item"], judged["cell"], strict=True)]
    others = sum(one is None or one[1] != answer for one, answer in zip(found, judged["answer"], strict=True))
    if others:
        raise UsageError(
            f"{others} of {len(judged)} verdicts of the spot check are on answers that the control did not get: they"
            " are of another model, grid or search; draw again with `faded ratings AUDIT --spot-check FILE`"
        )
    if (n := int(judged["draws"].sum())) < FEWEST:
        raise UsageError(f"a spot check corrects a rate from {FEWEST} draws on, found {n}")
    by_measure = np.array([one is not None and one[0] for one in found])
    draws, fails = judged["draws"].to_numpy(), judged["fails"].to_numpy(dtype=bool)
    measured = rate_in_use(space, failed, control)
    of_measure, size = measured.rate.value, measured.effective
    rng = np.random.default_rng([seed, 6])
    value, total = 0.0, np.zeros(_DRAWS)
    shares = rng.beta(of_measure * size + 0.5, (1 - of_measure) * size + 0.5, _DRAWS)
    for side, of_use, drawn in ((by_measure, of_measure, shares), (~by_measure, 1 - of_measure, 1 - shares)):
        yes, no = int(draws[side & fails].sum()), int(draws[side & ~fails].sum())
        finite = 1 / (1 + (yes + no) / max(of_use * size, 1.0))
        value += of_use * (yes / (yes + no) if yes + no else float(side is by_measure))
        total += drawn * rng.beta(finite * yes + 0.5, finite * no + 0.5, _DRAWS)
    low, high = np.quantile(total, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Corrected(
        overall=RateRecord.from_rate(Rate(value, min(value, float(low)), max(value, float(high)), n)),
        probes=len(judged),
        only_people=int(draws[~by_measure & fails].sum()),
        only_automatic=int(draws[by_measure & ~fails].sum()),
    )
