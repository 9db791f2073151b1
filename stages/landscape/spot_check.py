"""People's verdicts on randomly drawn probes, and the failure rate in use corrected by them.

An automatic measure or a judge errs. If people say of some of the control's probes, drawn as they occur in use, whether
they fail, its rate can be corrected: prediction-powered inference (Angelopoulos, Duchi and Zrnic 2023, "PPI++",
arXiv:2311.01453). For yes or no, with the best power, this is the rate at which people call failures among what the
measure fails, and among what it passes, weighted by how often the measure fails in use.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.core.errors import UsageError
from stages.core.files import read_named
from stages.core.intervals import LEVEL, Rate
from stages.landscape.rates import rate_in_use
from stages.params import SpotCheckConfig
from stages.records import RateRecord
from stages.records.landscape import Corrected

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

    Raises:
        UsageError: if the file is missing or changed, or as for `parse_spot_check`.
    """
    path = Path(config.file)
    return parse_spot_check(read_named(path, config.sha256, where), path)


def behind_apostrophe(text: str) -> str:
    """Write a text so that no spreadsheet computes it; `parse_spot_check` takes the apostrophe away again."""
    return f"'{text}" if text.startswith(_COMPUTED) else text


def parse_spot_check(data: bytes, path: Path) -> pd.DataFrame:
    """Parse verdicts, read from `path`: one row per probe, with `fails` as bool and `cell` as level indices.

    Raises:
        UsageError: if it is not such a table, or a row has no verdict.
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
    number of probes taken into account. Groups of items are not resampled.

    Args:
        judged: verdicts, as read by `parse_spot_check`.

    Raises:
        UsageError: if a verdict is on an answer that the control did not get, or there are fewer than 20.
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
    share, size = measured.rate.value, min(measured.effective, 1e12)
    rng = np.random.default_rng([seed, 6])
    value, total = 0.0, np.zeros(_DRAWS)
    shares = rng.beta(share * size + 0.5, (1 - share) * size + 0.5, _DRAWS)
    for side, of_use, drawn in ((by_measure, share, shares), (~by_measure, 1 - share, 1 - shares)):
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
