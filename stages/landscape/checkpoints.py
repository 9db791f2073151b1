"""The repair after fewer steps: the cheapest training that passes all gates is found among these."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stages.landscape.compare import PairedAnswers, compare_quality, failure_differences
from stages.records.repair import Checkpoint, Training


def checkpoints(answers: pd.DataFrame, share: float, *, resamples: int, seed: int) -> list[Checkpoint]:
    """Compare failures and clean quality after fewer steps of the repair's own training.

    Args:
        answers: as in re_evaluate's doses.parquet.
        share: share of use that the targets cover.
        resamples: number of resamples of the items, for the intervals.
    """
    first = answers[answers["training"] == 0]
    before, found = first[first["copy_of"] == "before"], []
    fewer = first[(first["copy_of"] == "repaired") & (first["dose"] < 1) & (first["share"] == 1)]
    for (steps, dose), after in fewer.groupby(["steps", "dose"], sort=True):
        probed, clean = (before["part"].isin(parts).to_numpy() for parts in (("targets", "others"), ("clean",)))
        asked, items = before[probed], before[clean]
        values, valid = (
            {model: table[column].to_numpy() for model, table in (("before", before), ("after", after))}
            for column in ("value", "valid")
        )
        differences = failure_differences(
            *(
                PairedAnswers(
                    asked["item"].to_numpy(dtype=str),
                    np.empty((len(asked), 0), dtype=np.int64),
                    asked["part"].to_numpy() == "targets",
                    share,
                    counted,
                    asked.get("group"),
                    asked["weight"].to_numpy(),
                    resamples=resamples,
                    seed=seed,
                )
                for counted in (
                    {model: value[probed] > 0 for model, value in values.items()},
                    {model: ((value > 0) | ~valid[model].astype(bool))[probed] for model, value in values.items()},
                )
            )
        )
        of_clean = {model: value[clean] for model, value in values.items()}
        names, groups = items["item"].tolist(), items.get("group")
        differences["clean_quality"] = compare_quality(of_clean, names, groups, resamples=resamples, seed=seed)[0]
        folder = Training.folder_of("repaired", dose, 0)
        found.append(Checkpoint(folder=folder, steps=int(steps), differences=differences))
    return found
