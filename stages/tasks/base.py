"""Base class of all tasks: what a task must define, what it may define, and what follows from its declarations.

A task is everything that differs between a classifier, a summarizer and a text-to-image model. Tasks and explorers do
not depend on each other: they meet in `stages.explorers.prober`. A user's own task is a subclass of `Task`, named in
params.yaml as `task: package.module:Class`.
"""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
from pydantic import ValidationError

from stages.concepts import ConceptSpace
from stages.core.errors import UsageError
from stages.core.processes import Crew
from stages.params import Strict, validation_lines
from stages.params.network import is_served
from stages.tasks.attributes import KIND, LABEL, Kinds, PrincipalAxes, attributes_of, check_attributes, free_name
from stages.tasks.contract import (
    NOT_VALID,
    Exhibit,
    Items,
    ProbeBatch,
    Quality,
    RepairPlan,
    RepairProbes,
    RepairRecord,
    Sheet,
    Split,
    Tally,
    TaskContext,
)
from stages.tasks.sources import Source, data_errors, missing_splits, parse_source, source_errors

if TYPE_CHECKING:
    from stages.tasks.account import Expected

NOT_RECORDED = "(not recorded)"  # in place of an answer


class LoadedTask(ABC):
    """A loaded model under test with its items and concepts, as explorers, landscapes and reports see it.

    Attributes:
        items: the audit set.
        concepts: the grid; a cell is a row of level indices, one for each concept in order.
        threshold: a probe fails if its discrepancy is above it.
        catalogue: for each concept name an object with `low` and `high`, the range in which `faded screen` may propose
            levels. With `neutral` too, the level that changes nothing, a control on clean inputs is checked early.
    """

    items: Items
    concepts: ConceptSpace
    threshold: float

    catalogue: ClassVar[Mapping[str, Any]] = {}

    not_valid: ClassVar[str] = NOT_VALID
    """Description for reports of probes that are not valid."""

    crew: Crew | None = None
    """Other processes with copies of this task, if the stage has any."""

    clusters: int = 0
    """Number of kinds to sort items into by `embed`, as one more attribute; 0 for none: `summarize.clusters`."""

    _axes: PrincipalAxes | None = None
    _kinds: Kinds | None = None

    def shared(self, answer: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Do n pieces of work, in this process and in others if the stage has any.

        Args:
            answer: a method of this task. Its result depends only on its arguments and on what `load` has read.
            pieces: the arguments of n calls. If results depend on how the work is cut, cut it independently of the
                number of processes.
        """
        return [answer(*piece) for piece in pieces] if self.crew is None else self.crew.ask(answer, pieces)

    @abstractmethod
    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """Query the model on n (item, cell, repeat) triples.

        An answer depends only on its triple, not on the rest of the batch.

        Args:
            cells: (n, concepts) int64, level indices.
            repeats: (n,) int64, which random draw to use; None means 0 for all.
        """

    # What explorers and people see

    def features(self, item_ids: Sequence[str]) -> np.ndarray:
        """Describe n items: (n, d) float, from which `embed` makes vectors. By default all items are alike."""
        return np.zeros((len(item_ids), 1))

    def embed(self, item_ids: Sequence[str]) -> np.ndarray:
        """Return what explorers see of n items: (n, d) float32.

        By default these are the standardised `features` on at most 64 principal axes of the discover items, so vectors
        of all splits are comparable.
        """
        if self._axes is None:
            self._axes = PrincipalAxes.of(self.features(self.items.ids("discover")))
        return self._axes(self.features(item_ids))

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        """Return the attributes by which people distinguish items; landscapes report failures by attribute.

        By default these are the label and every other column of `items.table` that sorts all items into 2 to 30 groups.
        Numbers with more values are cut into four ranges. Free text, bytes, columns with a single value, and columns
        with fewer than two items per value on average are left out.

        Returns:
            One row per item, in order; columns of strings, None if an item has no value. No column has the name of a
            concept or of a column of the tables.
        """
        about = self.items.table.drop(columns=["id", "split", "group"], errors="ignore")
        return self._told_apart(about, item_ids)

    def _told_apart(self, about: pd.DataFrame, item_ids: Sequence[str]) -> pd.DataFrame:
        """Return attributes of n items, given a table of all items, (items, columns) in the order of `items.table`."""
        found = attributes_of(about, self.concepts.names).set_axis(self.items.table["id"])
        return found.loc[list(item_ids), :].reset_index(drop=True)

    @property
    def kinds(self) -> Kinds | None:
        """Kinds of the discover items; None if `clusters` is 0.

        Raises a UsageError if the items do not differ enough.
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

    def recalled(self, item_ids: Sequence[str], cells: np.ndarray, answers: ProbeBatch) -> list[Exhibit]:
        """Show n probes as `exhibit` does, with answers that are known, without querying the model.

        By default this is `exhibit` with these answers in place of `probe`, which says `NOT_RECORDED` of any others. A
        task whose `exhibit` queries the model in another way has to override it.
        """

        def probe(asked: Sequence[str], at: np.ndarray, _repeats: np.ndarray | None = None) -> ProbeBatch:
            if list(asked) == list(item_ids) and np.array_equal(at, cells):
                return answers
            n = len(asked)
            return ProbeBatch(np.zeros(n, np.float32), np.zeros(n, bool), [NOT_RECORDED] * n, np.ones(n, bool))

        task = copy.copy(self)
        vars(task)["probe"] = probe
        return task.exhibit(item_ids, cells)

    def clean_quality(self, split: Split) -> Quality:
        """Measure on unchanged items what a repair must not make worse; by default the share that does not fail.

        Raises a UsageError by default, if no cell leaves items unchanged.
        """
        if self.concepts.neutral is None:
            raise UsageError("no cell of the grid leaves items unchanged, so clean quality cannot be measured")
        ids = self.items.ids(split)
        answers = self.probe(ids, np.tile(self.concepts.neutral, (len(ids), 1)))
        return Quality("clean accuracy", 1.0 - answers.failed, ids)

    def fails_unchanged(self) -> np.ndarray:
        """Return which discover items fail unchanged, if no query is needed: (n,) bool; by default empty (unknown).

        For tasks whose items `prepare` has already judged; the report starts with this.
        """
        return np.zeros(0, dtype=bool)

    def notes(self) -> Sequence[str]:
        """Return sentences for the last part of the report: what is known about the judges, and what is not checked."""
        return ()

    def false_alarms(self) -> Mapping[str, Mapping[str, Any]]:
        """Return how often a calibrated threshold reports a failure where there is none.

        Returns:
            {what was changed: {rate, low, high, articles, held_out}}.
        """
        return {}

    # Further measures: re-evaluate shows them beside the failure rates; no gate uses them

    def measure(self, item_ids: Sequence[str], cells: np.ndarray, outputs: Sequence[str]) -> pd.DataFrame:
        """Measure n answers of this model: n rows, one float column per measure, named for people; NaN for no value."""
        return pd.DataFrame(index=range(len(outputs)))

    def baselines(self, item_ids: Sequence[str], cells: np.ndarray) -> Mapping[str, Sequence[str]]:
        """Return answers that need no model (the first words of the article) by name, n each, to measure alike."""
        return {}

    def again(self) -> Self | None:
        """Return the same model with an unnoticeable change of its input (a doubled space), to measure its noise."""
        return None

    def tallies(self, split: Split) -> list[Tally]:
        """Tally fresh answers to neutral inputs of one split, for distributions that no single answer shows.

        Subjects and their order are the same for every model.
        """
        return []

    def sheets(self, split: Split) -> list[Sheet]:
        """Draw contact sheets of one split, the same for every model; reports also show the best and worst cells."""
        return []

    def attacked(self, item_ids: Sequence[str], attack: str, epsilon: float, steps: int) -> np.ndarray:
        """Perturb unchanged items along the model's gradient and return which of n fail, (n,) bool.

        Args:
            attack: "fgsm" or "pgd".
            epsilon: maximum change of each number of the input, as a share of its range.
            steps: steps of pgd.
        """
        raise UsageError(f"discover.microscopic.gradient: {type(self).__name__} provides no gradients")

    def logits(self, item_ids: Sequence[str], cells: np.ndarray) -> Any:
        """Return the model's answers (n, k), for `faded tune` to compare backends; None: compare discrepancies."""
        return None

    # Repair

    def repair(self, plan: RepairPlan, out_dir: Path) -> RepairRecord:
        """Fine-tune a copy on items of the split repair and write a model that `load` reads.

        Raises a UsageError if the plan cannot be carried out.
        """
        raise UsageError(f"restructure: {type(self).__name__} has no repair")

    def move(self, folder: Path, share: float, out_dir: Path) -> None:
        """Write a repaired model whose weights are moved only part of the way from those of the model under test.

        Interpolated weights keep most of what was learnt and lose less of what was known (Wortsman et al. 2022, "Robust
        fine-tuning of zero-shot models").

        Args:
            folder: what `repair` wrote, by a method in `movable`.
            share: of the way, above 0 and at most 1.
            out_dir: receives the same files, with other weights.
        """
        raise UsageError(f"restructure.harm: {type(self).__name__} cannot move a model part of the way")

    def pieces_of(self, folder: Path) -> list[str] | None:
        """Return what was added to the model under test, if part of the way means only the first of these pieces.

        Args:
            folder: what `repair` or `move` wrote.
        """
        return None

    @property
    def automatic_task(self) -> "LoadedTask":
        """The task without people's ratings, see `stages.ratings`."""
        return self


class Task(LoadedTask):
    """A kind of model under test, from its configuration to the loaded task.

    A subclass must define `prepare`, `load` and `probe`, and set `items`, `concepts` and `threshold`. Every other
    method has a default, which a task that can do more overrides. The class attributes that a subclass declares are
    checked before anything runs, without code of its own.

    Attributes:
        prepare_block: model of the audit's `prepare:` block; None: the subclass checks the block itself.
        discrepancy_block: the same for `discrepancy:`.
        repair_block: the same for `restructure:`, that is for `method` and its settings.
        loaders: for each key of `prepare:` that names a source (model, data), the kinds of sources by the key that
            distinguishes them. `check`, `prefetch`, `origin` and `source` are derived from these.
        backends: values of `compute.backend` besides auto.
        dtypes: values of `compute.dtype` besides auto.
        gpu_dtype: the dtype that auto means on a GPU; on a CPU it means float32.
        alike: whether torch has to compute the same bytes on every x86-64 CPU with AVX2. A network takes 1.0 to 1.5
            times as long with it, a transformer that does not call `stages.core.arithmetic.compute_alike` up to seven.
        learns_from_examples: methods of repair that learn from rated examples (`RepairPlan.examples`).
        heeds_dose: methods of repair that train for the number of steps requested (`RepairPlan.steps`).
        movable: methods of repair whose result `move` can take part of the way.
        init, mining, proposing, usage: names of classes for `faded init`, `faded mine`, `faded propose` and
            `faded usage`, see `stages.tasks.choosing`; no stage imports them. A kind may have none.
    """

    prepare_block: ClassVar[type[Strict] | None] = None
    discrepancy_block: ClassVar[type[Strict] | None] = None
    repair_block: ClassVar[type[Strict] | None] = None
    loaders: ClassVar[Mapping[str, Mapping[str, type[Source]]]] = {}
    backends: ClassVar[Sequence[str]] = ("eager",)
    dtypes: ClassVar[Sequence[str]] = ("float32",)
    gpu_dtype: ClassVar[str] = "float32"
    alike: ClassVar[bool] = True
    learns_from_examples: ClassVar[Collection[str]] = ()
    heeds_dose: ClassVar[Collection[str]] = ()
    movable = tuple[str, ...]()

    # Configuration

    @classmethod
    def check(cls, context: TaskContext) -> list[str]:
        """Return all errors of the configuration, one line each, without loading data or a model.

        By default: those of the declared blocks and loaders, of `compute_errors` and of `conflicts`.
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
        """Return further errors in the concepts or between the blocks; a block that is not valid is None.

        Args:
            prepare: the `prepare:` block as `prepare_block`.
            discrepancy: the `discrepancy:` block as `discrepancy_block`.
        """
        return []

    @classmethod
    def compute_errors(cls, context: TaskContext) -> list[str]:
        """Return errors for settings of `compute:` the task does not offer; results record them, so none is ignored."""
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
        """Return why `compute.backend: auto` always means eager for this task; "" if `prepare` has to find out."""
        return ""

    @classmethod
    def attack_errors(cls, context: TaskContext) -> list[str]:
        """Return why items cannot be attacked along the model's gradient; empty if they can."""
        return [] if offers(cls, "attacked") else ["this task provides no gradients"]

    @classmethod
    def check_repair(cls, context: TaskContext, settings: Mapping[str, Any]) -> list[str]:
        """Return all errors of a repair; `settings` holds its method and the method's settings.

        By default: that the task has no repair, that items of the splits repair and test are missing, and the errors of
        the sources (`Source.repair_errors`), of `repair_block` and of `repair_conflicts`.
        """
        if not offers(cls, "repair"):
            return [f"restructure: this task has no repair; remove {context.audit} from repairs:"]
        errors = missing_splits(context)
        for part in cls.loaders:
            with contextlib.suppress(UsageError, ValidationError):  # `check` reports these
                if (source := cls.source(context, part)) is not None:
                    errors += source.repair_errors(context.audit, settings)
        asked = _parse(cls.repair_block, settings, "restructure.settings", errors)
        return errors if cls.repair_block and asked is None else errors + cls.repair_conflicts(context, asked)

    @classmethod
    def repair_conflicts(cls, context: TaskContext, asked: Any) -> list[str]:
        """Return further errors of a repair; `asked` is its settings as `repair_block`."""
        return []

    @classmethod
    def repair_probes(cls, settings: Mapping[str, Any], dose: float) -> RepairProbes | None:
        """Return what a repair asks; None: it trains, and what it asks is not worth a mention.

        Args:
            settings: its method and the method's settings.
            dose: share of the configured steps.
        """
        return None

    @classmethod
    def require_valid(cls, context: TaskContext) -> None:
        """Raise a UsageError with one line for each error that `check` finds, if there are any."""
        if errors := cls.check(context):
            raise UsageError("\n".join(errors))

    # Sources

    @classmethod
    def source(cls, context: TaskContext, part: str) -> Any:
        """Return the source that a key of `prepare:` names, one of `loaders`; None if an optional key is left out."""
        assert cls.prepare_block is not None
        block = getattr(cls.prepare_block.model_validate(dict(context.config)), part)
        return None if block is None else parse_source(block, cls.loaders[part], f"prepare.{part}")

    @classmethod
    def sources(cls, context: TaskContext) -> dict[str, Source]:
        """Return all sources that `prepare:` names, by key."""
        named = {part: cls.source(context, part) for part in cls.loaders}
        return {part: source for part, source in named.items() if source is not None}

    @classmethod
    def prefetch(cls, context: TaskContext) -> list[str]:
        """Download the sources that are on a hub into the local cache, so that `prepare` needs no network.

        Raises a UsageError if the configuration is wrong, HF_HUB_OFFLINE forbids downloads, or a source does not exist;
        an InfrastructureError if the hub cannot be reached.

        Returns:
            A line for people per download: name, commit and size.
        """
        cls.require_valid(context)
        return [line for source in cls.sources(context).values() for line in source.prefetch(context.inputs)]

    @classmethod
    def expected_requests(cls, context: TaskContext) -> "Expected | None":
        """Estimate the requests to a service, if the model is one that counts tokens; otherwise None."""
        return None

    @classmethod
    def expected_judgements(cls, context: TaskContext) -> "Expected | None":
        """Estimate the requests to a judge, if the task has one; otherwise None."""
        return None

    @classmethod
    def origin(cls, context: TaskContext) -> dict[str, str]:
        """Return the origin of each source, for people and the record: `prepare` returns it as "origin"."""
        told = {part: source.origin(context.inputs) for part, source in cls.sources(context).items()}
        return {part: origin for part, origin in told.items() if origin}

    # What a task must define

    @classmethod
    @abstractmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        """Write the model under test and the items in the form that `load` reads.

        Raises a UsageError if something is missing, unreadable or does not fit.

        Args:
            out_dir: receives a folder `model` and `items.parquet`, a table with the columns of `Items`.

        Returns:
            Numbers for the metrics. `seconds_per_probe`, if present, lets `faded plan` estimate how long a search
            takes; it is stored beside the outputs, which are the same on every run. `chosen_backend`, a `Chosen`, is
            what `compute.backend: auto` means in all later stages; eager by default.
        """

    @classmethod
    @abstractmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Self:
        """Load what `prepare` wrote.

        Args:
            prepared: the folder that `prepare` wrote.
            model: a folder that `repair` wrote, loaded in place of the model under test.
        """


def offers(task: LoadedTask | type[Task], ability: str) -> bool:
    """Whether a task implements an optional method: `measure`, `again`, `tallies`, `sheets`, `attacked`, ..."""
    cls: type = task if isinstance(task, type) else type(task.automatic_task)
    return getattr(cls, ability) is not getattr(LoadedTask, ability)


def known_attributes(task: LoadedTask, item_ids: Sequence[str]) -> pd.DataFrame:
    """Return all attributes of n items: those of the task, checked, and the kind of each item if there are kinds.

    Raises a UsageError if a user's task returns an invalid table, see `LoadedTask.attributes`, or the items have no
    kinds.
    """
    found, kinds = own_attributes(task, item_ids), task.automatic_task.kinds
    if kinds is None:
        return found
    return found.assign(**{free_name(KIND, [*task.concepts.names, *found]): kinds(task.embed(item_ids))})


def own_attributes(task: LoadedTask, item_ids: Sequence[str]) -> pd.DataFrame:
    """Return the task's own attributes of n items, checked, see `LoadedTask.attributes`.

    Raises a UsageError if a user's task returns an invalid table.
    """
    name = type(task.automatic_task).__name__
    return check_attributes(task.attributes(item_ids), len(item_ids), task.concepts.names, name)


def _parse(block: type[Strict] | None, given: Mapping[str, Any], where: str, errors: list[str]) -> Any:
    """Parse a block of params.yaml; None if it is not valid, with lines added to `errors`, or if it has no model."""
    if block is None:
        return None
    try:
        return block.model_validate(dict(given))
    except ValidationError as error:
        errors += validation_lines(error, block, where)
        return None
