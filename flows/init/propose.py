"""Proposes an audit of any kind: the kind's concepts, items, compute and gates.

Levels go to the end of what people accept. The sweep measures how often the model fails with each of them.
"""

import contextlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows.choosing.screen import said_of_probe
from flows.init.files import Placed, link_inputs
from flows.results.estimate import duration
from flows.workspace.new import AuditDraft, with_draft
from stages.check import check_audits
from stages.concepts import Concept, ConceptSpace
from stages.core import plugins
from stages.core.errors import UsageError
from stages.core.intervals import LEVEL
from stages.landscape.power import CHURN
from stages.params import DATA, Params, load_params
from stages.params.network import is_served
from stages.params.usage import UsageConfig, in_use
from stages.screening.sweep import Sweep, fewest_probes
from stages.tasks.choosing import part_of
from stages.tasks.init import Init, Option, Proposal, Seen


@cache
def kinds() -> Mapping[str, Init]:
    """The parts of all kinds by name, as in params.yaml. This imports their tasks, and torch with them.

    Raises a UsageError if one cannot be imported.
    """
    found = {}
    for name, entry in plugins.entry_points_of(plugins.TASKS).items():
        task = plugins.imported(entry)
        # A plugin's object may not be a Task; audits refuse it.
        if isinstance(task, type) and (init := part_of(task, "init")) is not None:
            found[name] = init()
    return found


ANSWERS = {  # command-line options of every kind
    "model": Option("A file, a folder, ORG/NAME on the Hugging Face hub, a URL, or my_module:predict."),
    "data": Option("A folder with one folder per class, a .jsonl, .parquet or .csv file, or ORG/NAME on the hub."),
    "kind": Option("What the model does: the name of an installed task; guessed from the model."),
    "name": Option("Name of the audit; guessed from the data."),
    "repair": Option("Whether to add a repair and its re-evaluation.", switch=True),
    "key-env": Option("Environment variable with the API key of a model behind a URL.", "NAME"),
    "split": Option("Split of a data set on the hub."),
}


def options() -> dict[str, Option]:
    """Command-line options that are answers; those that only some kinds have are said to be of the first of these."""
    found = dict(ANSWERS)
    for kind, init in kinds().items():
        for name, option in init.options.items():
            told = f"{kind.capitalize().replace('-', ' ')}: {option.help[0].lower()}{option.help[1:]}"
            found.setdefault(name, replace(option, help=told))
    return found


SEED = 7
SEARCH_SECONDS = 600.0  # intended duration of a search
PROBES_OF_SEARCH = 2.5  # per probe of the budget: two explorers, and half as many small steps
BUDGETS = (200, 4000)  # fewer probes teach nothing; more seldom show more
# Smallest size of each split: with fewer items, intervals would be as wide as the range.
FEWEST = 10
_COMMENT = 110  # largest width of a comment, in columns
# How often a model may fail in use, where three in ten inputs are unchanged, and in its worst mode; nobody knows what a
# person would accept.
_MOST_FAILURES, _MOST_IN_A_MODE = 0.2, 0.5


@dataclass(frozen=True)
class Wanted:
    """Everything an audit is made from.

    Args:
        seen: the model and the data as recognised, with a line for people about each finding.
        budget: unique probes of the search; None to derive it from the duration of a probe.
    """

    name: str
    kind: str
    seen: Seen
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    proposal: Proposal
    repair: bool
    budget: int | None
    placed: Sequence[Placed] = ()

    @property
    def init(self) -> Init:
        return kinds()[self.kind]

    @property
    def absent(self) -> bool:
        """Whether something is from a hub and not here yet."""
        return self.seen.model.absent or self.seen.data.absent


def propose_audit(wanted: Wanted) -> AuditDraft:
    """A complete and valid audit, before anything is measured.

    Raises a UsageError if there are too few items.
    """
    items = count_items(wanted)
    init, proposal = wanted.init, wanted.proposal
    available = wanted.seen.data.items
    of = f"of {available:,}; " if available is not None and init.limited else ""
    splits = "no item is in two of them" if wanted.repair else "an audit that ends with its landscape needs no others"
    audit: dict[str, Any] = {
        "seed": SEED,
        "task": wanted.kind,
        "compute": {"device": "auto", "threads": 1, "batch_size": proposal.batch_size},
        "prepare": {
            "model": dict(wanted.model),
            "data": dict(wanted.data),
            **proposal.prepare,
            "items": items,
        },
        "concepts": {name: list(levels) for name, levels in proposal.concepts.items()},
        "discrepancy": dict(init.discrepancy),
        "discover": {"explorer": "auto", "baseline": "random", "budget": wanted.budget or BUDGETS[0]},
        "summarize": {"modes": 10},
    }
    if not wanted.repair:
        audit["gates"] = {"max_failure_rate": _MOST_FAILURES, "max_mode_rate": _MOST_IN_A_MODE}
    notes = {
        "compute": "auto takes a GPU, if there is one",
        **({} if is_served(wanted.model) else {"prepare.model": f"files lie under data/{wanted.name}/inputs"}),
        "prepare.items": of + splits,
        "concepts": "Not measured yet: `faded init` did not finish; run it again to resume.",
        "discrepancy": init.meaning,
        "discover": "unique probes for each of the two",
        **{f"concepts.{name}": note for name, note in proposal.notes.items()},
        "gates": "how often it may fail in use and in its worst mode, by the whole interval: yours to say",
        "repair.feedback": "a rule decides; {policy: wait} asks a person",
        "repair.gates": "A gate passes only if the whole 95% interval is on the right side of its bound. How often the"
        " model may still fail (max), nobody but you can say.",
    }
    repair = repair_block(init, items, wanted.budget or BUDGETS[0]) if wanted.repair else None
    return AuditDraft(wanted.name, audit, repair, notes)


def count_items(wanted: Wanted) -> dict[str, int]:
    """Number of items per split: as many as are useful, or equal parts of few items.

    Raises a UsageError if there are too few.
    """
    init, splits = wanted.init, ("discover", "repair", "test") if wanted.repair else ("discover",)
    available, pools = wanted.seen.data.items, wanted.seen.data.pools
    if available is None or not init.limited:
        return {split: init.most[split] for split in splits}
    counts, left = {}, available
    for n, split in enumerate(splits):
        there = pools.get(split, 0) if pools else left // (len(splits) - n)
        counts[split] = min(init.most[split], there)
        left -= counts[split]
    if few := [f"{n:,} for {split}" for split, n in counts.items() if n < FEWEST]:
        ready = f"; its own splits are {', '.join(pools)}" if pools else ""
        if pools and not pools.get("discover"):
            ready += ", none of them (discover, or val) to search for failures"
        without = ", or --no-repair" if wanted.repair and counts["discover"] >= FEWEST else ""
        raise UsageError(
            f"--data: too few items, {', '.join(few)}, where {FEWEST} are the minimum for each of {', '.join(splits)}"
            f"{ready}: give more data{without}"
        )
    if "repair" in counts and not pools:  # a repair learns from all that are left
        counts["repair"] = min(init.most["repair"], counts["repair"] + left)
    return counts


def search_budget(probe_seconds: float) -> int:
    """Budget with which both explorers and the small steps take about SEARCH_SECONDS, rounded down to two digits."""
    probes = SEARCH_SECONDS / (PROBES_OF_SEARCH * probe_seconds)
    low, high = BUDGETS
    bounded = min(high, max(low, probes))
    digits = 10 ** (len(str(int(bounded))) - 2)
    return int(bounded // digits * digits)


def all_pairs(audit: Mapping[str, Any]) -> int:
    """Number of pairs of an item in the search split and a cell that occurs in use, the largest useful budget."""
    # Which level changes nothing does not matter to their number.
    concepts = tuple(Concept(name, tuple(levels), neutral=levels[0]) for name, levels in audit["concepts"].items())
    return int(audit["prepare"]["items"]["discover"]) * in_use(ConceptSpace(concepts), UsageConfig()).n_used


def repair_block(init: Init, items: Mapping[str, int], budget: int) -> dict[str, Any]:
    """The block of the repair, with its gates."""
    change = _least_bound(items["test"])
    return {
        "feedback": {"policy": "top-k", "modes": 3},
        "restructure": {"method": init.method, "control": init.control, **init.restructure, "settings": {}},
        "re_evaluate": {"paired_probes": pairs(budget)},
        "gates": {
            "failure_rate": {"max": _MOST_FAILURES},
            "target_failure_rate": {"change_max": -0.05, "max": _MOST_IN_A_MODE},
            "other_failure_rate": {"change_max": change},
            "newly_failing": {"max": round(change + CHURN, 2)},
            "clean_quality": {"change_min": -change},
        },
    }


def _least_bound(items: int) -> float:
    """Bound of a change, in whole points, that a usual repair holds; few items cannot show that a lower one holds."""
    no_change = 1 - ((1 - LEVEL) / 2) ** (1 / items)  # end of the interval where no item changes, as of `Resampler`
    return ceil(100 * (no_change + CHURN)) / 100


def measured(draft: AuditDraft, seen: Sweep, seconds: float, *, budget: int | None) -> AuditDraft:
    """The audit with what was seen of its concepts, and a budget that fits the model, unless a person gave one.

    Args:
        seconds: of a probe.
    """
    audit = {**draft.audit, "concepts": seen.levels}
    spend = budget or min(search_budget(seconds), all_pairs(audit))
    head = (
        "The levels reach as far as people still expect the right answer. Each concept was probed alone,"
        f" {seen.probes:,} probes on {seen.said}. How often changes occur in use is"
        " assumed: none in 30% of inputs, one in 40%, two in 20%, three in 10%, levels alike."
        " Under `usage:` it can be stated or measured, see docs/usage.md."
    )
    notes = {
        "concepts": "\n".join(textwrap.wrap(head, _COMMENT)),
        "discover": f"answers take {duration(PROBES_OF_SEARCH * spend * seconds)}, a probe {said_of_probe(seconds)}",
    }
    for concept in seen.concepts:
        meaning = draft.notes.get(f"concepts.{concept.name}")
        notes[f"concepts.{concept.name}"] = "; ".join(filter(None, [meaning, concept.said]))
    audit["discover"] = {**draft.audit["discover"], "budget": spend}
    repair = draft.repair and {**draft.repair, "re_evaluate": {"paired_probes": pairs(spend)}}
    return replace(draft, audit=audit, repair=repair, notes={**draft.notes, **notes})


def pairs(budget: int) -> int:
    """Common probes of both models, inside and outside the target modes."""
    return max(100, min(2000, budget // 2))


def refuse_idle_numbers(draft: AuditDraft, budget: int | None, probes: int | None) -> None:
    """Refuse a sweep that is too short for its concepts, and a budget larger than the number of pairs.

    Raises a UsageError with the number that is expected.
    """
    concepts, pairs = draft.audit["concepts"], all_pairs(draft.audit)
    least = fewest_probes(len(concepts))
    if probes is not None and probes < least:
        raise UsageError(f"--probes {probes}: too few for {len(concepts)} concepts, expected {least} or more")
    if budget is not None and budget > pairs:
        raise UsageError(
            f"--budget {budget}: more than there are pairs of an item and a cell that occurs in use, expected {pairs:,}"
            " or fewer"
        )


@contextlib.contextmanager
def tried(draft: AuditDraft, placed: Sequence[Placed], workspace: Path) -> Iterator[Params]:
    """Enter a temporary workspace with only this audit, and check it there.

    Raises a UsageError if the audit could not run.
    """
    with TemporaryDirectory(prefix="faded-init-") as name:
        here = Path(name).resolve()
        inputs = here / DATA / draft.name / "inputs"
        inputs.mkdir(parents=True)
        link_inputs(inputs, workspace.resolve() / DATA / draft.name / "inputs", placed)
        text = with_draft("audits: {}\nrepairs: {}\n", draft)
        (here / "params.yaml").write_text(text, encoding="utf-8")
        with contextlib.chdir(here):
            params = load_params()
            check_audits(params, [draft.name])
            yield params
