"""The tables and the figure of docs/research.md, from all results: `python -m benchmarks.study.report`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from stages.core.errors import UsageError, run_as_command

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
MARKER = "<!-- below: written by `make study` -->"
NOTE = (
    "Bold: the best of the column, and what a paired t-test over seeds (5%, unadjusted) does not distinguish from it."
    " Seeds of a real landscape share its truth; a planted landscape is another one for every seed."
)

TITLES = {
    "mnist": "MNIST, 7^4 cells x 80 items, enumerated",
    "imagenet": "EfficientNet-Lite0 on ImageNet photos, 960 cells x 24 crops, enumerated",
    "planted5": "planted, 7^5 cells x 80 items, 5 modes",
    "planted8": "planted, 7^8 cells x 80 items, 12 modes",
}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        measure: column of the results.
        budget: number of unique probes at which it is measured.
        title: title for people.
        better: "high" or "low"; empty if neither is better.
        form: format of the mean.
    """

    measure: str
    budget: int
    title: str
    better: str = "high"
    form: str = ",.0f"


TABLES: dict[str, list[Column]] = {  # the other landscapes are in the figure
    "mnist": [
        Column("failures", 500, "failures at 500"),
        Column("coverage", 500, "coverage at 500", form=".2f"),
        Column("failures", 2000, "failures at 2,000"),
        Column("mae", 500, "landscape MAE at 500", "low", ".3f"),
        Column("unseen_picks", 2000, "picks for unseen items fail, at 2,000", form=".2f"),
        Column("cpu_ms", 2000, "own CPU-ms a query, to 2,000", "low", ".2f"),
    ],
    "planted8": [
        Column("failures", 2000, "failures at 2,000"),
        Column("modes_found", 2000, "modes found at 2,000", form=".2f"),
        Column("mae", 2000, "landscape MAE at 2,000", "low", ".3f"),
        Column("interval_coverage", 2000, "in the 95% interval at 2,000", "", ".2f"),
        Column("unseen_picks", 2000, "picks for unseen items fail, at 2,000", form=".2f"),
        Column("cpu_ms", 2000, "own CPU-ms a query, to 2,000", "low", ".2f"),
    ],
}


def values(results: pd.DataFrame, landscape: str, column: Column) -> pd.DataFrame:
    """Return one measure at one budget: explorers x seeds, NaN where it was not measured."""
    if column.measure not in results:
        return pd.DataFrame()
    rows = results[(results["landscape"] == landscape) & (results["budget"] == column.budget)]
    return rows.pivot_table(index="explorer", columns="seed", values=column.measure, dropna=False)


def within_noise(table: pd.DataFrame, better: str) -> set[str]:
    """Return the explorer with the best mean, and those not significantly worse by a paired t-test over seeds (5%)."""
    table = table.dropna(how="any")
    if table.empty or not better:
        return set()
    means = table.mean(axis=1)
    best = means.idxmax() if better == "high" else means.idxmin()
    chosen = {str(best)}
    for name in table.index.drop(best):
        difference = (table.loc[best] - table.loc[name]).to_numpy()
        if np.allclose(difference, 0) or (len(difference) > 1 and stats.ttest_1samp(difference, 0.0).pvalue > 0.05):
            chosen.add(str(name))
    return chosen


def markdown(results: pd.DataFrame, landscape: str, order: Sequence[str]) -> str:
    """Return the table of one landscape: mean and standard deviation over seeds, the best and its ties in bold."""
    columns = TABLES[landscape]
    cells: dict[str, list[str]] = {name: [] for name in order}
    for column in columns:
        table = values(results, landscape, column)
        best = within_noise(table, column.better)
        for name in order:
            row = table.loc[name].dropna() if name in table.index else pd.Series(dtype=float)
            text = "-"
            if len(row):
                spread = f" ±{row.std():{column.form}}" if len(row) > 1 else ""
                text = f"{row.mean():{column.form}}{spread}"
                text = f"**{text}**" if name in best else text
            cells[name].append(text)
    lines = [
        "| explorer | " + " | ".join(c.title for c in columns) + " |",
        "|---|" + "---|" * len(columns),
        *(f"| {name} | " + " | ".join(row) + " |" for name, row in cells.items() if set(row) != {"-"}),
    ]
    return "\n".join(lines)


def figure(results: pd.DataFrame, order: Sequence[str], path: Path) -> None:
    """Draw the share of probes that fail, and coverage or modes found, against the budget, for every landscape."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    landscapes = [name for name in TITLES if name in set(results["landscape"])]
    grid, axes = plt.subplots(2, len(landscapes), figsize=(4.6 * len(landscapes), 7.4), squeeze=False)
    colours = plt.get_cmap("tab20")
    for j, landscape in enumerate(landscapes):
        here = results[results["landscape"] == landscape]
        second = "modes_found" if here["coverage"].isna().all() else "coverage"
        for i, (measure, title) in enumerate(
            [("rate", "share of unique probes that fail"), (second, second.replace("_", " "))]
        ):
            axis = axes[i][j]
            for k, name in enumerate(order):
                rows = here[here["explorer"] == name]
                if rows.empty:
                    continue
                shown = rows.assign(rate=rows["failures"] / rows["budget"]).groupby("budget")[measure].mean().dropna()
                own = name in ("model_based", "auto")
                axis.plot(
                    shown.index,
                    shown,
                    label=name,
                    color="black" if own else colours(k % 20),
                    linewidth=2.2 if own else 1.1,
                    linestyle="--" if name in ("random", "auto") else "-",
                    marker="o",
                    markersize=2.5,
                )
            axis.set_xscale("log")
            axis.set_ylim(bottom=0)
            axis.set_xlabel("unique probes")
            axis.set_ylabel(title)
            axis.grid(alpha=0.25)
            if i == 0:
                axis.set_title(TITLES[landscape], fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    grid.legend(handles, labels, loc="lower center", ncol=9, fontsize=8, frameon=False)
    grid.tight_layout(rect=(0, 0.07, 1, 1))
    grid.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(grid)


def write(results: pd.DataFrame, study: Mapping[str, Any], docs: Path) -> None:
    """Write research.md and study.png into a folder. The text above the marker in research.md is kept."""
    order = [name for name in study["explorers"] if name in set(results["explorer"])]
    figure(results, order, docs / "study.png")
    path = docs / "research.md"
    above = path.read_text().split(MARKER)[0].rstrip() if path.exists() else "# Research"
    in_tables = results[~results["explorer"].str.endswith("_alone")]  # model_based with one generator: in the figure
    seeds = study["seeds"]
    parts = [above, "", MARKER, "", "![Failures and coverage against unique probes, mean over seeds](study.png)", ""]
    parts += [f"Means over {len(seeds)} seeds ({', '.join(map(str, seeds))}), ± their standard deviation. {NOTE}", ""]
    if missing := [name for name in study["explorers"] if name not in order]:
        parts += [f"Not run: {', '.join(missing)}.", ""]
    for landscape in (name for name in TABLES if name in set(results["landscape"])):
        parts += [f"### {TITLES[landscape]}", "", markdown(in_tables, landscape, order), ""]
        if "constant_mae" in results and any(column.measure == "mae" for column in TABLES[landscape]):
            constant = results.loc[results["landscape"] == landscape, "constant_mae"].mean()
            parts += [f"A constant at the true mean rate has a landscape MAE of {constant:.3f}.", ""]
    path.write_text("\n".join(parts).rstrip() + "\n")


def main() -> None:
    """Write docs/research.md and docs/study.png from results/*.parquet."""
    study = yaml.safe_load((HERE / "params.yaml").read_text())["study"]
    files = [HERE / "results" / f"{name}.parquet" for name in study["explorers"]]
    found = [pd.read_parquet(file) for file in files if file.exists()]
    if not found:
        raise UsageError(f"no results in {HERE / 'results'}: run `make study`")
    results = pd.concat(found, ignore_index=True)
    write(results, study, DOCS)


if __name__ == "__main__":
    run_as_command(main)
