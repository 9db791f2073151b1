"""The base of all tasks: what a task has to say, what it may say, and what follows from its declarations.

A task is all that differs between a classifier, a summarizer and a text-to-image model. It knows nothing of explorers,
and an explorer nothing of tasks: they meet in `stages.explorers.prober`. A user's own task is a subclass of `Task`,
named in params.yaml as `task: package.module:Class`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
from pydantic import ValidationError

from stages.concepts import ConceptSpace
from stages.errors import UsageError
from stages.network import is_served
from stages.params import Strict, validation_lines
from stages.processes import Crew
from stages.tasks.attributes import LABEL, attributes_of, check_attributes, free_name
from stages.tasks.contract import (
    NOT_VALID,
    Exhibit,
    Items,
    ProbeBatch,
    Quality,
    RepairPlan,
    RepairRecord,
    Sheet,
    Split,
    Tally,
    TaskContext,
)
from stages.tasks.features import PrincipalAxes
from stages.tasks.kinds import KIND, Kinds
from stages.tasks.source import Source
from stages.tasks.sources import data_errors, missing_splits, parse_source, source_errors

if TYPE_CHECKING:
    from stages.tasks.account import Expected


class LoadedTask(ABC):
    """A model under test that can be asked, with its items and concepts: what explorers, landscapes and reports see.

    Attributes:
        items: the audit set.
        concepts: the grid; a cell is a row of level indices, one for each concept in order.
        threshold: a probe fails where its discrepancy is above it.
        catalogue: by name of a concept an object with `low` and `high`, between which `faded screen` may propose
            levels. With `neutral` too, the level that changes nothing, a control on clean inputs is checked early.
    """

    items: Items
    concepts: ConceptSpace
    threshold: float

    catalogue: ClassVar[Mapping[str, Any]] = {}

    not_valid: ClassVar[str] = NOT_VALID
    """What probes that are not valid did, in words for reports."""

    crew: Crew | None = None
    """Copies that answer beside this one, where the stage has them."""

    clusters: int = 0
    """Kinds that items are sorted into by what `embed` says of them, as one more attribute: `summarize.clusters`."""

    _axes: PrincipalAxes | None = None
    _kinds: Kinds | None = None

    def shared(self, answer: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Have n pieces of work done, by this process and by others where the stage has them.

        Args:
            answer: a method of this task. What it answers depends on its arguments and on what `load` read alone.
            pieces: the arguments of n calls, cut alike for any number of processes if answers depend on the cut.
        """
        return [answer(*piece) for piece in pieces] if self.crew is None else self.crew.ask(answer, pieces)

    @abstractmethod
    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """Query the model on n (item, cell, repeat) triples.

        An answer depends on its triple alone, not on what else is in the batch.

        Args:
            item_ids: n ids.
            cells: (n, concepts) int64, level indices.
            repeats: (n,) int64, which draw of whatever is random; None: all are 0.
        """

    # What explorers and people see

    def features(self, item_ids: Sequence[str]) -> np.ndarray:
        """Describe n items: (n, d) float, whatever `embed` is to make vectors of. By default all are alike."""
        return np.zeros((len(item_ids), 1))

    def embed(self, item_ids: Sequence[str]) -> np.ndarray:
        """Return what explorers see of n items: (n, d) float32.

        By default their `features`, standardised, on at most 64 principal axes of the discover items, so that vectors
        of any split can be compared.
        """
        if self._axes is None:
            self._axes = PrincipalAxes.of(self.features(self.items.ids("discover")))
        return self._axes(self.features(item_ids))

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        """Say by what people tell items apart; landscapes then say whose failures they are.

        By default the label and every other column of `items.table` that sorts all items into 2 to 30 groups; numbers
        with more values are cut into four ranges. Free text, bytes, and columns with one value or with hardly two items
        alike are left out.

        Returns:
            A row an item, in order; columns of strings, None where an item has no value. No column is named as a
            concept or as a column of the tables.
        """
        about = self.items.table.drop(columns=["id", "split", "group"], errors="ignore")
        return self._told_apart(about, item_ids)

    def _told_apart(self, about: pd.DataFrame, item_ids: Sequence[str]) -> pd.DataFrame:
        """Attributes of n items from a table of all of them, (items, columns) in the order of `items.table`."""
        found = attributes_of(about, self.concepts.names).set_axis(self.items.table["id"])
        return found.loc[list(item_ids), :].reset_index(drop=True)

    @property
    def kinds(self) -> Kinds | None:
        """Kinds of the discover items, where `clusters` asks for them.

        Raises:
            UsageError: when the items do not differ enough.
        """
        if self.clusters and self._kinds is None:
            ids = self.items.ids("discover")
            labels = own_attributes(self, ids).get(LABEL, [None] * len(ids))
            self._kinds = Kinds.of(ids, self.embed(ids), list(labels), self.clusters)
        return self._kinds

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        """Show n probes as people would see them; by default the label and the output."""
        labels = self.items.table.set_index("id")["label"]
        outputs = self.probe(item_ids, cells).outputs
        return [Exhibit(f"label {labels[i]} → {output}") for i, output in zip(item_ids, outputs, strict=True)]

    def clean_quality(self, split: Split) -> Quality:
        """Measure what a repair must not make worse, on unchanged items; by default the share that does not fail.

        Raises:
            UsageError: by default, when no cell leaves items as they are.
        """
        if self.concepts.neutral is None:
            raise UsageError("no cell of the grid leaves items unchanged, so clean quality cannot be measured")
        ids = self.items.ids(split)
        answers = self.probe(ids, np.tile(self.concepts.neutral, (len(ids), 1)))
        return Quality("clean accuracy", 1.0 - answers.failed, ids)

    def fails_unchanged(self) -> np.ndarray:
        """Which discover items fail as they are, where that needs no query: (n,) bool; by default empty, for not known.

        It is for tasks whose items `prepare` has judged already; the report begins with it.
        """
        return np.zeros(0, dtype=bool)

    def notes(self) -> Sequence[str]:
        """Sentences for the report's last part: what is known of those who judge, what nobody checks."""
        return ()

    def false_alarms(self) -> Mapping[str, Mapping[str, Any]]:
        """How often a calibrated threshold calls a failure what is none.

        Returns:
            {what was changed: {rate, low, high, articles, held_out}}.
        """
        return {}

    # Further measures: re-evaluate shows them beside the failure rates, and no gate looks at them

    def measure(self, item_ids: Sequence[str], cells: np.ndarray, outputs: Sequence[str]) -> pd.DataFrame:
        """Measure n answers of this model: n rows, a float column per measure, named as people read it; nan is none."""
        return pd.DataFrame(index=range(len(outputs)))

    def baselines(self, item_ids: Sequence[str], cells: np.ndarray) -> Mapping[str, Sequence[str]]:
        """Answers no model is needed for (the first words of the article), by name: n each, measured likewise."""
        return {}

    def again(self) -> Self | None:
        """The same model asked in a way nobody would notice (a space doubled); what differs from it is noise."""
        return None

    def tallies(self, split: Split) -> list[Tally]:
        """Tally fresh answers to neutral inputs of one split, for distributions that no single answer shows.

        The subjects are the same, in the same order, whatever the model.
        """
        return []

    def sheets(self, split: Split) -> list[Sheet]:
        """Draw contact sheets of one split, alike for every model; reports show the best and the worst cells too."""
        return []

    def attacked(self, item_ids: Sequence[str], attack: str, epsilon: float, steps: int) -> np.ndarray:
        """Change unchanged items by noise along the model's gradient: which of n fail, (n,) bool.

        Args:
            item_ids: n ids.
            attack: "fgsm" or "pgd".
            epsilon: how much each number of the input may change at most, as a share of its range.
            steps: of pgd.
        """
        raise UsageError(f"discover.microscopic.gradient: {type(self).__name__} provides no gradients")

    def logits(self, item_ids: Sequence[str], cells: np.ndarray) -> Any:
        """Answers of the model as a tensor (n, k), by which `faded tune` compares backends; None: by discrepancies."""
        return None

    # Repair

    def repair(self, plan: RepairPlan, out_dir: Path) -> RepairRecord:
        """Fine-tune a copy on items of the split repair and write a model that `load` reads.

        Raises:
            UsageError: when the plan cannot be followed.
        """
        raise UsageError(f"restructure: {type(self).__name__} has no repair")

    @property
    def automatic_task(self) -> LoadedTask:
        """The task without people's ratings; see `stages.ratings`."""
        return self


class Task(LoadedTask):
    """A kind of model under test, from its configuration to a task that is loaded.

    A subclass must have `prepare`, `load` and `probe`, and set `items`, `concepts` and `threshold`. Every other method
    has a default: a task that can do more overrides it. What a subclass declares as class attributes is checked before
    anything runs, without code of its own.

    Attributes:
        prepare_block: model of the audit's `prepare:` block; None: `check` leaves the block to the subclass.
        discrepancy_block: likewise of `discrepancy:`.
        repair_block: likewise of `restructure:`, that is of `method` and its settings.
        loaders: for each key of `prepare:` that names a source (model, data), the kinds of sources by the key that
            tells them apart. From these follow `check`, `prefetch`, `origin` and `source`.
        backends: what `compute.backend` may be, beside auto.
        dtypes: what `compute.dtype` may be, beside auto.
        gpu_dtype: what auto stands for on a GPU; on a CPU that is float32.
        needs_all_concepts: whether every item names every concept; then screening may drop none.
        learns_from_examples: methods of repair that learn from rated examples (`RepairPlan.examples`).
        follows_policy: methods of repair that draw what they learn by the search's policy (`RepairPlan.policy`).
        policy_by_default: whether `restructure.aim: auto` lets them do so.
        heeds_dose: methods of repair that train in steps, and for as many as are asked (`RepairPlan.steps`).
        init: what `faded init` asks and proposes, as "module:Class" of an `Init` (stages/tasks/init.py); no stage
            imports it. None where audits of this kind are written by hand.
    """

    prepare_block: ClassVar[type[Strict] | None] = None
    discrepancy_block: ClassVar[type[Strict] | None] = None
    repair_block: ClassVar[type[Strict] | None] = None
    loaders: ClassVar[Mapping[str, Mapping[str, type[Source]]]] = {}
    backends: ClassVar[Sequence[str]] = ("eager",)
    dtypes: ClassVar[Sequence[str]] = ("float32",)
    gpu_dtype: ClassVar[str] = "float32"
    needs_all_concepts: ClassVar[bool] = False
    learns_from_examples: ClassVar[Collection[str]] = ()
    follows_policy: ClassVar[Collection[str]] = ()
    policy_by_default: ClassVar[bool] = False
    heeds_dose: ClassVar[Collection[str]] = ()

    # Configuration

    @classmethod
    def check(cls, context: TaskContext) -> list[str]:
        """Say all that is wrong with the configuration, one line an error, without loading data or a model.

        By default: what the declared blocks and loaders find wrong, and `compute_errors` and `conflicts`.
        """
        errors = cls.compute_errors(context)
        prepare = _parse(cls.prepare_block, context.config, "prepare", errors)
        discrepancy = _parse(cls.discrepancy_block, context.discrepancy, "discrepancy", errors)
        if prepare is not None:
            for part, loaders in cls.loaders.items():
                where, block = f"prepare.{part}", getattr(prepare, part)
                if block is None:
                    continue
                if part == "data" and (items := getattr(prepare, "items", None)) is not None:
                    errors += data_errors(block, loaders, items, context.inputs)
                else:
                    errors += source_errors(block, loaders, where, context.inputs)
        return errors + cls.conflicts(context, prepare, discrepancy)

    @classmethod
    def conflicts(cls, context: TaskContext, prepare: Any, discrepancy: Any) -> list[str]:
        """Say what else is wrong with the concepts, or between the blocks; None stands for a block that is not valid.

        Args:
            context: the configuration.
            prepare: the `prepare:` block as `prepare_block`.
            discrepancy: the `discrepancy:` block as `discrepancy_block`.
        """
        return []

    @classmethod
    def compute_errors(cls, context: TaskContext) -> list[str]:
        """Say what `compute:` asks for and the task has no choice of; results name both, so neither is ignored."""
        remote = is_served(context.config.get("model"))
        asked = {
            "backend": (context.compute.backend, cls.backends),
            "dtype": (context.compute.dtype, [cls.gpu_dtype, "float32"] if remote else cls.dtypes),
        }
        what = "a model behind HTTP" if remote else "this task"
        return [
            f"compute.{name}: {found} is not for {what}; expected {' or '.join(known)}"
            for name, (found, known) in asked.items()
            if found not in ("auto", *known)
        ]

    @classmethod
    def only_eager(cls, context: TaskContext) -> str:
        """Why `compute.backend: auto` stands for eager whatever the model is, in words; "" if `prepare` must see."""
        return ""

    @classmethod
    def attack_errors(cls, context: TaskContext) -> list[str]:
        """Say why its items cannot be attacked along the model's gradient; empty if they can."""
        return [] if offers(cls, "attacked") else ["this task provides no gradients"]

    @classmethod
    def check_repair(cls, context: TaskContext, settings: Mapping[str, Any]) -> list[str]:
        """Say all that is wrong with a repair; `settings` holds its method and the method's settings.

        By default: that the task has no repair, that items of the splits repair and test are missing, what the sources
        say (`Source.repair_errors`), what `repair_block` finds, and `repair_conflicts`.
        """
        if not offers(cls, "repair"):
            return [f"restructure: this task has no repair; remove {context.audit} from repairs:"]
        errors = missing_splits(context)
        for part in cls.loaders:
            with contextlib.suppress(UsageError, ValidationError):  # `check` says what is wrong with it
                if (source := cls.source(context, part)) is not None:
                    errors += source.repair_errors(context.audit, settings)
        asked = _parse(cls.repair_block, settings, "restructure.settings", errors)
        return errors if cls.repair_block and asked is None else errors + cls.repair_conflicts(context, asked)

    @classmethod
    def repair_conflicts(cls, context: TaskContext, asked: Any) -> list[str]:
        """Say what else is wrong with a repair; `asked` is its settings as `repair_block`."""
        return []

    @classmethod
    def require_valid(cls, context: TaskContext) -> None:
        """Stop where `check` finds anything.

        Raises:
            UsageError: one line per error.
        """
        if errors := cls.check(context):
            raise UsageError("\n".join(errors))

    # Where things come from

    @classmethod
    def source(cls, context: TaskContext, part: str) -> Any:
        """The source that a key of `prepare:` names, one of `loaders`; None if the key may be left out, and is."""
        assert cls.prepare_block is not None
        block = getattr(cls.prepare_block.model_validate(dict(context.config)), part)
        return None if block is None else parse_source(block, cls.loaders[part], f"prepare.{part}")

    @classmethod
    def sources(cls, context: TaskContext) -> dict[str, Source]:
        """All sources that `prepare:` names, by key."""
        named = {part: cls.source(context, part) for part in cls.loaders}
        return {part: source for part, source in named.items() if source is not None}

    @classmethod
    def prefetch(cls, context: TaskContext) -> list[str]:
        """Fetch what the sources name on a hub into the local cache, so that `prepare` needs no network.

        Returns:
            A line for people for each thing: what it is, at which commit, how large.

        Raises:
            UsageError: when the configuration is wrong, HF_HUB_OFFLINE forbids to fetch, or there is no such thing.
            InfrastructureError: when the hub cannot be reached.
        """
        cls.require_valid(context)
        return [line for source in cls.sources(context).values() for line in source.prefetch(context.inputs)]

    @classmethod
    def expected_requests(cls, context: TaskContext) -> Expected | None:
        """What requests to a service are likely to take, where the model is one that counts tokens; None elsewhere."""
        return None

    @classmethod
    def expected_judgements(cls, context: TaskContext) -> Expected | None:
        """The same of requests to a judge, where the task has one."""
        return None

    @classmethod
    def origin(cls, context: TaskContext) -> dict[str, str]:
        """Where each source comes from, for people and for the record: `prepare` returns it as "origin"."""
        told = {part: source.origin(context.inputs) for part, source in cls.sources(context).items()}
        return {part: origin for part, origin in told.items() if origin}

    # What a task must have

    @classmethod
    @abstractmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        """Write the model under test and the items in the form that `load` reads.

        Args:
            context: the configuration.
            out_dir: gets a folder `model` and `items.parquet`, a table with the columns of `Items`.

        Returns:
            Numbers for the metrics. `seconds_per_probe`, if it is among them, tells `faded plan` how long a search
            takes; it is kept beside the outputs, which are the same on every run. `chosen_backend`, a `Chosen`, says
            what `compute.backend: auto` stands for in all later stages; by default that is eager.

        Raises:
            UsageError: when something is missing, unreadable or does not fit.
        """

    @classmethod
    @abstractmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Self:
        """Load what `prepare` wrote.

        Args:
            context: the configuration.
            prepared: the folder that `prepare` wrote.
            model: a folder that `repair` wrote, to load in place of the model under test.
        """


def offers(task: LoadedTask | type[Task], ability: str) -> bool:
    """Whether a task has an optional ability of its own: `measure`, `again`, `tallies`, `sheets`, `attacked`, ..."""
    cls: type = task if isinstance(task, type) else type(task.automatic_task)
    return getattr(cls, ability) is not getattr(LoadedTask, ability)


def known_attributes(task: LoadedTask, item_ids: Sequence[str]) -> pd.DataFrame:
    """All that is known of n items: what a task says of them, checked, and which kind each is of where it has kinds.

    Raises:
        UsageError: when a task of the user's own says something else than `LoadedTask.attributes`, or has no kinds.
    """
    found, kinds = own_attributes(task, item_ids), task.automatic_task.kinds
    if kinds is None:
        return found
    return found.assign(**{free_name(KIND, [*task.concepts.names, *found]): kinds(task.embed(item_ids))})


def own_attributes(task: LoadedTask, item_ids: Sequence[str]) -> pd.DataFrame:
    """What a task itself says of n items, checked: see `LoadedTask.attributes`.

    Raises:
        UsageError: when a task of the user's own says something else.
    """
    name = type(task.automatic_task).__name__
    return check_attributes(task.attributes(item_ids), len(item_ids), task.concepts.names, name)


def _parse(block: type[Strict] | None, given: Mapping[str, Any], where: str, errors: list[str]) -> Any:
    """A block of params.yaml as its model; None, and `errors` longer, where it is not valid or has no model."""
    if block is None:
        return None
    try:
        return block.model_validate(dict(given))
    except ValidationError as error:
        errors += validation_lines(error, block, where)
        return None
