"""What several benchmarks read and print alike."""

from collections.abc import Mapping

import pandas as pd

from stages.core.intervals import Rate
from stages.records import audit_folder
from stages.tasks.contract import TargetMode


def targets_of(audit: str) -> list[TargetMode]:
    """Return the modes that an audit's plan repairs."""
    plan = audit_folder(audit).collect_feedback.plan
    return [TargetMode(mode.id, mode.cells, mode.severity) for mode in plan.targets]


def in_points(difference: Rate) -> str:
    """Format a difference with its interval, in points."""
    ends = (difference.value, difference.low, difference.high)
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * end for end in ends))


def print_means(rows: pd.DataFrame, titles: Mapping[str, tuple[str, str]]) -> None:
    """Print means over the rows of each explorer with their standard deviation, as a Markdown table.

    Args:
        titles: by column of the rows, its title and its format.
    """
    print("| explorer | " + " | ".join(title for title, _ in titles.values()) + " |\n|" + "---|" * (len(titles) + 1))
    for name, row in rows.groupby("explorer", sort=False).agg(["mean", "std"]).iterrows():
        cells = [f"{row[key, 'mean']:{form}} ±{row[key, 'std']:{form}}" for key, (_, form) in titles.items()]
        print(f"| {name} | " + " | ".join("-" if "nan" in cell else cell for cell in cells) + " |")
