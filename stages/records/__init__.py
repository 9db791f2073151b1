"""Typed records of everything that stages pass on; only this package knows the keys of their files.

Reading:

    from stages.records import audit_folder

    mnist = audit_folder("mnist")                      # of the current workspace; nothing is read yet
    mnist.summarize.landscape.modes[0].text            # landscape.json, checked and read once
    mnist.report.verdict.passed                        # verdict.json of the landscape
    mnist.conclude.verdict.statement                   # of the repair
    mnist.compare.comparison.differences["target_failure_rate"].after
    mnist.discover.probes                              # a pandas table
    mnist.conclude.has("verdict"), mnist.conclude.where("page")

Records in other places, such as a git revision or a bundle, are read in the same way with a function that returns the
bytes of a path: `audit_folder("mnist", read=lambda path: files.read_bytes(path))`. A file that is missing, damaged, or
of another version raises a UsageError that names it. Bytes or plain data alone: `Landscape.parse(bytes, where)`,
`Landscape.from_json(data, where)`; the inverse: `.dump()`, `.to_json()`.

Writing, which only stages do: a folder appears whole, with its provenance, or not at all.

    with mnist.report.publish(provenance(...)) as out:
        out.verdict = Verdict(audit="mnist", passed=True, gates=gates)

Reading imports no torch.
"""

from stages.core.intervals import Rate
from stages.records.base import RateRecord, Record
from stages.records.folder import AuditFolder, StageFolder, audit_folder
from stages.records.landscape import Agreement, Effect, Example, Gate, Landscape, ModeRecord, Robustness, Verdict
from stages.records.provenance import Provenance
from stages.records.repair import (
    Ceiling,
    Comparison,
    Difference,
    Plan,
    PlannedExample,
    PlannedMode,
    PlannedPair,
    RepairVerdict,
)
from stages.records.search import DiscoverMetrics, Search, Searches
from stages.records.slices import Bias, BiasComparison, BiasSubject
from stages.records.tables import PairedProbe, ShownExample
