"""Compare classifiers under each group of ImageNet-C's corruptions: `python -m benchmarks.corruption_groups AUDIT ...`.

The audits are of the current workspace, have `concepts: imagenet-c`, the same items and seed, and thus the same even
draws of pairs of photo and corruption. Differences between the first and the last audit, in points, resample photos.
"""

import argparse

import numpy as np
import pandas as pd

from stages.concepts.grids import CORRUPTION, SEVERITY, TESTED
from stages.core.intervals import RESAMPLES, Resampler
from stages.pages.words import percent, points, points_interval
from stages.records import audit_folder

GROUPS = {"noise": TESTED[:3], "blur": TESTED[3:7], "weather": TESTED[7:11], "digital": TESTED[11:], "all": TESTED}


def answers(audit: str) -> pd.Series:
    """Return whether each of the control's probes failed, by item, corruption and severity."""
    probes = audit_folder(audit).discover.probes
    control = probes[probes["role"].eq("control")]
    return control.set_index(["item", CORRUPTION, SEVERITY])["failed"].astype(float)


def main() -> None:
    """Print a table, with the share on which all of them fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audits", nargs="+", metavar="AUDIT")
    audits = parser.parse_args().audits
    table = pd.DataFrame({audit: answers(audit) for audit in audits}).dropna().reset_index()
    print(f"| {len(table):,} pairs | {' | '.join(audits)} | {audits[0]} minus {audits[-1]} | all fail |")
    print(f"|---|{'---|' * (len(audits) + 2)}")
    for name, corruptions in GROUPS.items():
        # Level 0 of the concept is the unchanged image.
        rows = table[table[CORRUPTION].isin([1 + TESTED.index(one) for one in corruptions])]
        difference = (rows[audits[0]] - rows[audits[-1]]).to_numpy()
        change = Resampler(rows["item"], RESAMPLES, 0).mean(difference, np.ones(len(difference)))
        cells = [percent(rate) for rate in (*rows[audits].mean(), rows[audits].min(axis=1).mean())]
        cells.insert(len(audits), f"{points(change.value)} ({points_interval(change.low, change.high)})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
