"""`faded propose`: ask a language model for concepts, screen them, and on request write them to params.yaml."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import getfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

import stages.screening
from flows.choosing import PARAMS, healed_audit, run_prepare, write_params
from flows.results.estimate import duration
from flows.terminal import new_table, print_plain
from flows.workspace.edit_params import as_level, dumped, in_one_line, in_quotes, with_proposed
from stages.code import code_of
from stages.concepts import Level
from stages.core.environment import WORK
from stages.core.errors import UsageError, escape_controls
from stages.core.files import content_hash, probe_seconds, replace_file, scratch, stage_dir
from stages.core.progress import progress
from stages.params import AuditConfig, Params, checked
from stages.proposing import proposals
from stages.proposing.proposals import Outcome, ProposerAnswer, ProposerConfig, vocabulary_of
from stages.provenance import prepared_files, run_key
from stages.ratings import rated
from stages.screening.sweep import Sweep, fewest_probes, sweep
from stages.tasks.account import Account, money
from stages.tasks.base import LoadedTask
from stages.tasks.choosing import Draft
from stages.tasks.load import task_class, task_context

RECORDS = WORK / "propose"
_CODE = [Path(proposals.__file__).parent, Path(stages.screening.__file__).parent, Path(getfile(Draft))]
_PROBES = 400  # default, raised if too few for the levels


class ProposingRecord(BaseModel):
    """Proposals as stored in .faded/propose/AUDIT.json.

    Args:
        when: seconds since 1970.
        model: the model that proposed, as named in params.yaml.
        named: the name that the model gives itself.
        malformed: why answers could not be read.
        probes: unique probes spent on the possible proposals.
        lines: lines of YAML that would add the proposals that enter to the audit; empty if none does.
    """

    audit: str
    when: float
    model: str
    named: str
    malformed: list[str]
    outcomes: list[Outcome]
    probes: int
    items: int
    lines: str


def propose_concepts(params: Params, name: str, probes: int | None, write: bool, console: Console) -> None:
    """Ask the model of `proposer:` for concepts for an audit, screen them, and print and record the outcomes.

    Raises a UsageError if a setting is wrong, the task has no concepts to propose, or no answer can be read; a
    FadedError if the model under test cannot be prepared, or the model that proposes cannot be reached.
    """
    where = proposals.WHERE
    if params.proposer is None:
        raise UsageError(
            f"{PARAMS}: found no {where}, expected a model that proposes: {where}: {{openai: URL, model: NAME}}"
        )
    config = checked(ProposerConfig, params.proposer, where)
    with healed_audit(params, name, console) as audit:
        vocabulary_of(task_class(name, audit), task_context(name, audit), audit)  # before prepare, which may take long
        run_prepare(name, console)
        record, change = _Proposing(name, audit, config, probes, console).run()
        path = RECORDS / f"{name}.json"
        replace_file(path, record.model_dump_json(indent=1).encode() + b"\n")
        show_proposals(console, record)
        print_plain(console, f"record: {path}")
        if not record.lines:
            console.print("none of the proposals enters; the table says why")
        elif not write:
            console.print(f"\nto add these to {PARAMS}, run: faded propose {name} --write")
            print_plain(console, record.lines)
        else:
            write_params(name, audit, lambda text: with_proposed(text, name, **change), console)


class _Proposing:
    """One run of the command."""

    def __init__(
        self, name: str, audit: AuditConfig, config: ProposerConfig, probes: int | None, console: Console
    ) -> None:
        self.name, self.audit, self.config, self.probes, self.console = name, audit, config, probes, console
        self.prepared, self.task = stage_dir(name, "prepare"), task_class(name, audit)
        self.vocabulary = vocabulary_of(self.task, task_context(name, audit, self.prepared), audit)

    def run(self) -> tuple[ProposingRecord, dict[str, Any]]:
        """Return the record and the changes to params.yaml."""
        asked = self.ask()
        found, outcomes = None, list[Outcome]()
        draft, made, others = proposals.make(self.vocabulary, asked.proposals)
        if made:
            files = [*prepared_files(self.prepared), *_CODE, Path(getfile(type(self.vocabulary)))]
            proposed = [one.model_dump() for one in asked.proposals]
            key = run_key(self.audit, files, code_of(self.audit, "discover"), proposed)
            with scratch(self.name, "propose", key) as folder:
                try:
                    self.load(draft, folder)
                except UsageError:  # due to one of the proposals, so load them one by one
                    draft, made, others = proposals.make(
                        self.vocabulary, asked.proposals, lambda more: self.load(more, folder)
                    )
                if made:
                    found = self.screen(draft, folder)
                    by_name = {one.name: one for one in found.concepts}
                    outcomes = [proposals.judged(one, by_name[one.proposal.concept]) for one in made]
        change = self.change(proposals.final(self.vocabulary, made, outcomes) if outcomes else self.vocabulary.start)
        record = ProposingRecord(
            audit=self.name,
            when=time.time(),
            model=self.config.model,
            named=escape_controls(asked.name),
            malformed=asked.malformed,
            outcomes=[*outcomes, *others, *asked.refused],
            probes=found.probes if found else 0,
            items=found.items if found else 0,
            lines=_lines(self.name, **change) if change["concepts"] else "",
        )
        return record, change

    def ask(self) -> ProposerAnswer:
        """Ask the model that proposes, and print the expected and the actual cost."""
        config, vocabulary = self.config, self.vocabulary
        items = proposals.drawn_items(self.prepared, config.items, self.audit.seed)
        pictures = []
        if config.pictures:
            ids = items["id"].tolist()[: config.pictures]
            pictures = vocabulary.pictures(self.task.load(vocabulary.context, self.prepared), ids)
        asked = proposals.question(config, vocabulary, items)
        account, (prompt, completion) = Account.of(f"{self.name}.propose"), proposals.expected_tokens(config, asked)
        cost = f", about {money(config.price.of(prompt, completion))} at most" if config.price else ""
        pictured = f", {len(pictures)} of them as pictures" if pictures else ""
        self._say(
            f"asking {config.told} about {len(items)} items{pictured}: 1 to {proposals.TRIES} requests, each of about"
            f" {prompt:,.0f} prompt and {completion:,.0f} completion tokens at most{cost}"
        )
        before = account.bill.requests
        try:
            return proposals.ask_proposer(config, account, asked, pictures)
        finally:
            bill = account.bill
            spent = f", cost {money(bill.cost)}" if config.price else ""
            self._say(f"{bill.requests - before} new; in total: {bill}{spent}")

    def load(self, draft: Draft, folder: Path, levels: Mapping[str, Sequence[Level]] | None = None) -> LoadedTask:
        """Load the task with a draft, or with other levels of its concepts."""
        context = self.vocabulary.drafted(draft)
        if levels is not None:
            context = replace(context, concepts={concept: list(values) for concept, values in levels.items()})
        task = self.task.load(context, self.vocabulary.items(draft, self.prepared, folder))
        self.vocabulary.require_fit(task)
        return rated(task, self.name, self.audit)

    def screen(self, draft: Draft, folder: Path) -> Sweep:
        """Sweep the concepts that a draft adds or extends."""
        own = self.load(draft, folder)
        levels = max(len(draft.concepts[name]) for name in draft.new)
        most = self.probes or max(_PROBES, fewest_probes(len(draft.new)) * levels)
        each = probe_seconds(self.name)
        took = f"about {duration(most * each)}" if each else "time unknown"
        self._say(f"screening {len(draft.new)} concept(s): {most:,} unique probes at most, {took}")
        with progress(f"propose@{self.name}", most) as tell:
            return sweep(
                lambda levels: own if levels is draft.concepts else self.load(draft, folder, levels),
                draft.concepts,
                most,
                seed=self.audit.seed,
                ledger=lambda levels: folder / f"{content_hash([], levels, draft.config)}.jsonl",
                compute=self.vocabulary.context.compute,
                tell=tell,
                only=draft.new,
            )

    def change(self, draft: Draft) -> dict[str, Any]:
        """Return the changes to params.yaml: levels by concept, keys of `prepare:`, and who proposed each concept."""
        own = self.audit.concepts
        marks = {}
        for concept, new in draft.new.items():
            told = f"{self.config.model}: {', '.join(map(str, new))}" if concept in own else self.config.model
            marks[concept] = "; ".join([*filter(None, [self.audit.proposed.get(concept)]), told])
        prepare = {key: value for key, value in draft.config.items() if value != self.audit.prepare.get(key)}
        return {"concepts": {name: draft.concepts[name] for name in draft.new}, "prepare": prepare, "proposed": marks}

    def _say(self, line: str) -> None:
        print_plain(self.console, escape_controls(line))


def _lines(name: str, concepts: Mapping[str, Any], prepare: Mapping[str, Any], proposed: Mapping[str, str]) -> str:
    block = {
        **({"prepare": prepare} if prepare else {}),
        "concepts": {
            concept: in_one_line([as_level(level) for level in levels]) for concept, levels in concepts.items()
        },
        "proposed": {concept: in_quotes(told) for concept, told in proposed.items()},
    }
    return dumped({"audits": {name: block}}).rstrip()


def show_proposals(console: Console, record: ProposingRecord) -> None:
    """Print the proposals for an audit and their outcomes; all texts come from the model."""
    title = f"Proposed for {record.audit} by {escape(escape_controls(record.model))}"
    table = new_table("concept", "levels", "why", "screening", title=title)
    for one in record.outcomes:
        levels, enters = (
            ", ".join(f"{level:g}" if isinstance(level, int | float) else level or '""' for level in some)
            for some in (one.levels, one.enters)
        )
        levels += f" → {enters}" if enters not in ("", levels) else ""
        style = "green" if one.enters else "dim"
        cells = [escape_controls(text) for text in (one.concept, levels, one.reason, one.verdict)]
        table.add_row(*map(escape, cells[:3]), f"[{style}]{escape(cells[3])}[/]")
    if record.outcomes:
        console.print(table)
    told = [f"{len(record.malformed)} answer(s) could not be read"] if record.malformed else []
    if record.probes:
        told.append(f"{record.probes:,} unique probes spent, on {record.items:,} items")
    entered = sum(bool(one.enters) for one in record.outcomes)
    told.append(f"{entered} of {len(record.outcomes)} proposals enter")
    print_plain(console, "; ".join(told))
