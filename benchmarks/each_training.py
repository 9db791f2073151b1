"""What aiming is worth in each training of an audit's repair alone: `python -m benchmarks.each_training images`.

Needs the audit's re_evaluate. At the harm of the repair the whole way, or the largest that its control reaches, and on
average over smaller harms, as the report says it for all trainings together. docs/results.md quotes it.
"""

import sys
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np

from benchmarks._shared import in_points, targets_of
from stages.landscape import frontier
from stages.landscape.pairs import covered_shares
from stages.params import load_params
from stages.params.repair import HALFWAY
from stages.records import audit_folder


def main(names: Sequence[str]) -> None:
    """Print a Markdown table for each audit: repair minus control in the target modes, in points."""
    for name in names:
        here, seed = audit_folder(name), load_params().audit(name).seed
        answers, space = here.re_evaluate.doses, here.summarize.landscape.space
        regions = [target.region for target in targets_of(name)]
        share = float(covered_shares(space, regions, here.re_evaluate.embedded.told_apart, seed).mean())
        trained = answers["copy_of"] != "before"
        print(f"\n{name}\n\n| training | at a harm of | repair minus control | at smaller harms |\n|---|---|---|---|")
        for training in sorted(answers["training"].unique()):
            whole = (answers["training"] == training) & answers["share"].isin([HALFWAY, 1.0])
            of = answers[~trained | whole].assign(training=0, published=answers["dose"].eq(1) & answers["share"].eq(1))
            told = [str(training + 1)]
            for levels in (np.ones(1), frontier.LEVELS):
                with patch.object(frontier, "LEVELS", levels):
                    found = frontier.frontier(of, share, resamples=4000, seed=seed)
                assert found is not None and found.equal_harm is not None
                rate = found.equal_harm.difference.rate
                told += [f"{found.equal_harm.harm:.1%}"] if len(told) == 1 else []
                told += [in_points(rate)]
            print("|", " | ".join(told), "|")


if __name__ == "__main__":
    main(sys.argv[1:])
