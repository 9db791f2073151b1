"""Turn the probes into a landscape people can read: rates, effects, failure modes, and examples of each.

The model is queried again inside suspected failure modes, with probes kept back from the search, because the search's
own probes overestimate the failure rates of the regions it found.
"""

import numpy as np
import pandas as pd

from stages.audit_run import AuditRun
from stages.command import stage_main
from stages.core.ledger import Ledger
from stages.core.progress import progress
from stages.explorers.prober import Prober
from stages.explorers.search import ShowProgress, silent
from stages.explorers.shards import ledger_answers
from stages.landscape.confirm import Fresh
from stages.landscape.show import exhibits, extremes
from stages.landscape.slices import worst_slice
from stages.landscape.summary import summarize
from stages.params import AuditConfig
from stages.records import Landscape
from stages.records.folder import Discover, Summarize
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute


def main(name: str) -> None:
    """Run the stage for one audit."""
    with AuditRun(name, "summarize") as run:
        audit, task, found, ledger = run.audit, run.judged_task(), run.here.discover, run.ledger(run.scratch())
        ledger.know(ledger_answers(found.probes, task.concepts))
        fresh = fresh_probes(task, 2 * audit.discover.kept_back, ledger, run.compute, progress)
        with run.here.summarize.publish(run.provenance()) as out:
            landscape = write(out, task, found, audit, fresh)
    _print_summary(landscape)


def fresh_probes(task: LoadedTask, count: int, ledger: Ledger, compute: Compute, show: ShowProgress = silent) -> Fresh:
    """Return the probes that were kept back from the search, to be placed where they are needed.

    Args:
        show: displays the progress in each region.
    """
    ids = task.items.ids("discover")

    def ask(items: np.ndarray, cells: np.ndarray) -> pd.DataFrame:
        with show("asking again", len(items)) as tell:
            prober = Prober(task, ids, len(items), ledger, compute, lambda n, _: tell(n, ""))
            prober.ask(items, cells)
        return prober.table()

    return Fresh(count, ask)


def write(out: Summarize, task: LoadedTask, found: Discover, audit: AuditConfig, fresh: Fresh) -> Landscape:
    """Write the landscape, its modes confirmed with fresh probes, and examples as people would see them."""
    summary = summarize(task, found, fresh, audit)
    out.cells, out.landscape, out.fresh = summary.cells, summary.landscape, summary.fresh
    modes, shown = summary.landscape.modes, audit.summarize.examples
    out.exhibits = exhibits(task, modes, shown)
    out.extremes = extremes(task, summary.cells, found.probes, found.robustness, modes, shown)
    return summary.landscape


def _print_summary(landscape: Landscape) -> None:
    overall = landscape.overall.rate
    if said := landscape.unchanged_said:
        print(said)
    where = "of the grid" if landscape.usage is None else "in use"
    print(f"fails on {overall.value:.1%} {where}, 95% interval {overall.low:.1%} to {overall.high:.1%}")
    if counted := landscape.invalid.not_passing:
        print(
            f"counting the {landscape.invalid.value:.1%} that are not held against it: {counted.value:.1%},"
            f" {counted.low:.1%} to {counted.high:.1%}"
        )
    if landscape.ratings:
        rate = landscape.ratings.automatic.overall.rate
        print(f"according to people's ratings; by the automatic measure it fails on {rate.value:.1%}")
    if landscape.slices and (worst := landscape.slices.worst):
        print(f"who fails most: {worst_slice(*worst)}")
    for mode in landscape.modes:
        measured = f"{mode.rate:.0%} fail, 95% interval {mode.low:.0%} to {mode.high:.0%}, {mode.probes} probes"
        print(f"{mode.id}: {mode.text}: {measured}")
        if answers := landscape.confused(mode, 1):
            print(f"    most often {answers}")
    if landscape.suspected:
        print(f"suspected, not confirmed: {'; '.join(region.text for region in landscape.suspected)}")
    for names in landscape.modes_skipped:
        print(f"too many ranges to try: modes with conditions on {', '.join(names)} together were not searched")


if __name__ == "__main__":
    stage_main(main)
