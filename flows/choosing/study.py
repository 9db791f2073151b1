"""`faded study`: the pipeline of benchmarks/study, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from flows.graph.heal import heal, heal_project
from flows.processes import stopping_on_signals
from flows.results import read_timings, record_timings
from flows.results.estimate import duration
from flows.run_stage import run_stage
from flows.terminal import print_plain
from flows.workspace import exclusive
from stages.core.errors import UsageError

STUDY = Path("benchmarks/study")


def run_study(explorers: Sequence[str], console: Console) -> None:
    """Run the stale stages of the study, and print where its table is.

    Args:
        explorers: names under study.explorers in benchmarks/study/params.yaml; empty for all. The page is always
            written, from all existing results, and names the explorers without any.

    Raises:
        UsageError: if this is not a clone of Faded's repository, or the study has no explorer of that name.
    """
    stages = _stages(explorers)
    timings = read_timings()
    known = [timings[stage] for stage in stages if stage in timings]
    cost = f"at most {duration(sum(known))} by the last runs here" if known else "an hour or two on 2 cores"
    more = f"; {len(stages) - len(known)} never ran here" if known and len(known) < len(stages) else ""
    console.print(f"{len(stages)} stage(s), {cost}{more}; what is not stale is left alone", highlight=False)
    with exclusive(), stopping_on_signals():
        for line in [*heal(), *heal_project(STUDY)]:
            console.print(f"healed: {line}", highlight=False)
        for stage in stages:
            result = run_stage(stage, lambda line: print_plain(console, line), project=STUDY)
            record_timings([result])
            console.print(f"{stage}: {result.outcome}, {duration(result.seconds)}", highlight=False)
    console.print(f"table and figure: {Path('docs/research.md').resolve()}", soft_wrap=True, highlight=False)


def _stages(explorers: Sequence[str]) -> list[str]:
    """The stages to bring up to date, in order."""
    try:
        params: dict[str, Any] = yaml.safe_load((STUDY / "params.yaml").read_text())
    except FileNotFoundError:
        raise UsageError(f"no {STUDY / 'params.yaml'} here: the study runs in a clone of Faded's repository") from None
    there = params["study"]["explorers"]
    unknown = [name for name in explorers if name not in there]
    if unknown:
        raise UsageError(f"no explorer {', '.join(unknown)} in {STUDY / 'params.yaml'}, found: {', '.join(there)}")
    truths = [name for name in params["study"]["landscapes"] if name in params["truths"]]
    return [
        *(f"truth@{name}" for name in truths),
        *(f"explorer@{name}" for name in explorers or there),
        "report",
    ]
