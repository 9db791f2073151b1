"""Runs scanners on the models, and prints how they did; see the package."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.planted.judge import judge
from benchmarks.planted.models import models
from benchmarks.planted.scanners import SCANNERS

BUDGET = 2000  # queries
SEED = 1
RARE = (0.03, 0.01)  # shares of use that tell common plants from rarer ones
RESULTS = Path(__file__).parent / "results.jsonl"


def main() -> None:
    """Run what has no result yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted", description=__doc__)
    parser.add_argument("scanners", nargs="*", choices=[*SCANNERS, []], metavar=f"{{{','.join(SCANNERS)}}}")
    parser.add_argument("--seed", type=int, default=SEED, help="of the models")
    parser.add_argument("--budget", type=int, default=BUDGET, help="queries for each model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept, a line for each model")
    parser.add_argument("--table", action="store_true", help="print what the results have")
    given = parser.parse_args()
    known = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    done = {(one["scanner"], one["case"], one["seed"], one["budget"]) for one in known}
    for case, make in enumerate(models(given.seed)):
        todo = [name for name in given.scanners if (name, case, given.seed, given.budget) not in done]
        if not todo:
            continue
        model = make()
        _ = model.failed  # every answer, which is not the scanner's time
        for name in todo:
            model.asked.clear()
            before = sum(os.times()[:4])
            claims = SCANNERS[name](model, given.budget)
            judged = judge(model, claims, round(sum(os.times()[:4]) - before, 1))
            line = {"scanner": name, "case": case, "seed": given.seed, "budget": given.budget, "kind": model.kind}
            line |= {"plant": str(model.plant or ""), **asdict(judged), "said": [one.text for one in claims]}
            known.append(line)
            with given.results.open("a") as results:
                results.write(json.dumps(line) + "\n")
            print(f"{name}, {model.kind}, {model.plant or 'nothing planted'}: {judged}", flush=True)
    if given.table:
        print(table(known))


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table, a row for each scanner."""
    from scipy.stats import binomtest

    columns = ("named", "by share of use", "failures covered", "claims about a plant, a null", "true", "interval holds")
    lines = [f"| | {' | '.join((*columns, 'queries', 'CPU-s'))} |", "|---" * 9 + "|"]
    for name in dict.fromkeys(one["scanner"] for one in results):
        of = [one for one in results if one["scanner"] == name]
        plants, nulls = [one for one in of if one["plant"]], [one for one in of if not one["plant"]]
        named = sum(one["named"] is not None for one in plants)
        told = binomtest(named, len(plants)).proportion_ci(method="wilson")
        bins = (
            [one for one in plants if one["share"] >= RARE[0]],
            [one for one in plants if RARE[1] <= one["share"] < RARE[0]],
            [one for one in plants if one["share"] < RARE[1]],
        )
        row = [
            name,
            f"{named} of {len(plants)} ({told.low:.0%} to {told.high:.0%})",
            ", ".join(f"{sum(one['named'] is not None for one in some)} of {len(some)}" for some in bins),
            _share([one["covered"] for one in of], [1] * len(of)),
            ", ".join(f"{sum(one['claims'] for one in some) / max(1, len(some)):.1f}" for some in (plants, nulls)),
            _share([one["real"] for one in of], [one["claims"] for one in of]),
            _share([one["held"] for one in of], [one["rates"] for one in of]),
            f"{median(one['queries'] for one in of):,.0f}",
            f"{median(one['seconds'] for one in of):.1f}",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _share(counted: Sequence[float], of: Sequence[float]) -> str:
    """One sum as a share of another, with a 95% interval by resampling the models."""
    from scipy.stats import bootstrap

    if not sum(of):
        return ""
    told = bootstrap(
        (counted, of),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return f"{sum(counted) / sum(of):.0%} ({told.low:.0%} to {told.high:.0%})"


if __name__ == "__main__":
    main()
