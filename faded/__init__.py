"""Audit a model from Python: `faded.audit(model, items, concepts=..., budget=...)`, in a notebook or a script.

It needs only the model: no git, no DVC, no params.yaml, and it writes nothing unless asked to. Your own tasks and
concepts also import what they need from here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import warnings
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from shutil import copyfile, rmtree
from tempfile import mkdtemp
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote
from weakref import finalize


def _claim(*packages: str) -> None:
    """Make `stages` and `flows` refer to the packages beside this one, whatever is first on Python's path.

    Raises:
        ImportError: if other packages of these names were imported before.
    """
    for name in packages:
        home = Path(__file__).resolve().parents[1] / name
        loaded = sys.modules.get(name)
        if loaded is None:
            found = importlib.util.spec_from_file_location(
                name, home / "__init__.py", submodule_search_locations=[str(home)]
            )
            assert found is not None and found.loader is not None
            sys.modules[name] = module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        elif not any(
            (Path(folder).parent / "faded" / "__init__.py").is_file() for folder in getattr(loaded, "__path__", ())
        ):
            raise ImportError(
                f"{name!r} is imported already, from {getattr(loaded, '__file__', None) or home.name}: Faded has a"
                " package of that name. Import faded in a process that does not need the other one",
                name=name,
            )


_claim("stages", "flows")

# ruff: noqa: E402  # from here on these names are Faded's packages
import numpy as np
import pandas as pd

from stages.concepts import Concept, ConceptSpace, Level
from stages.concepts.usage import Usage
from stages.core.errors import UsageError, did_you_mean
from stages.core.git import git
from stages.core.intervals import Rate
from stages.tasks.base import LoadedTask, Task
from stages.tasks.contract import Exhibit, Items, ProbeBatch, Quality, RepairPlan, RepairRecord, TaskContext

if TYPE_CHECKING:
    from faded.input_log import InputLog as InputLog
    from stages.concepts.images import ImageConcept as ImageConcept
    from stages.concepts.texts import TextConcept as TextConcept
    from stages.concepts.texts import edit_letters as edit_letters
    from stages.concepts.texts import leave_out as leave_out
    from stages.concepts.texts import reword as reword
    from stages.pages.gallery import Shrinker
    from stages.params import AuditConfig
    from stages.records import AuditFolder, Landscape, ModeRecord, RepairVerdict, Verdict
    from stages.tasks.classification import ImageClassification as ImageClassification
    from stages.tasks.functions import FunctionTask
    from stages.tasks.summarization import Summarization as Summarization
    from stages.tasks.text_to_image import TextToImage as TextToImage

__all__ = [
    "Concept",
    "ConceptSpace",
    "Exhibit",
    "Items",
    "ProbeBatch",
    "Quality",
    "RepairPlan",
    "RepairRecord",
    "Result",
    "Task",
    "TaskContext",
    "UsageError",
    "audit",
    "concept",
    "load",
]

_LATER = {  # imports that are slow, or need the libraries of an extra
    "InputLog": "faded.input_log",
    "ImageConcept": "stages.concepts.images",
    **dict.fromkeys(("TextConcept", "edit_letters", "leave_out", "reword"), "stages.concepts.texts"),
    "ImageClassification": "stages.tasks.classification",
    "Summarization": "stages.tasks.summarization",
    "TextToImage": "stages.tasks.text_to_image",
}
_EXCERPT = 200  # characters of an example
_FEWEST_PROBES = 40  # with fewer, no mode can be both found and confirmed


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'faded' has no attribute {name!r}{did_you_mean(name, [*__all__, *_LATER])}")
    return getattr(importlib.import_module(_LATER[name]), name)


def concept(
    levels: Sequence[Level], *, unit: str = "", neutral: Level | None = None, ordered: bool | None = None
) -> Callable[[Callable[..., Any]], Concept]:
    """Make a concept of the decorated function (item, level) -> changed item.

    The same item and level must give the same result. The function is not called at the neutral level.

    Args:
        levels: numbers from the weakest to the strongest, or names without an order.
        unit: printed after a level.
        neutral: the level that changes nothing; by default the first.
        ordered: whether levels have an order; by default numbers have one.
    """
    if isinstance(levels, str) or not len(levels):
        raise UsageError(f"concept: found levels {levels!r}, expected a list of them")

    def decorate(function: Callable[..., Any]) -> Concept:
        return Concept(
            function.__name__,
            tuple(levels),
            unit,
            ordered=not isinstance(levels[0], str) if ordered is None else ordered,
            neutral=levels[0] if neutral is None else neutral,
            apply=function,
        )

    return decorate


def audit(
    model: Any,
    items: Any,
    *,
    concepts: Mapping[str, Sequence[Level] | Concept] | Sequence[Concept],
    budget: int,
    expected: Sequence[Any] | None = None,
    classes: Sequence[Any] | None = None,
    discrepancy: Callable[[Any, str], float] | None = None,
    threshold: float | None = None,
    explorer: str = "auto",
    seed: int = 0,
    batch_size: int = 64,
    name: str = "audit",
    usage: Mapping[str, Any] | Literal["uniform"] | None = None,
) -> Result:
    """Find what makes a model fail.

    Args:
        model: a torch module, or any function of a batch of items. It answers with n labels, with scores or
            probabilities (n, classes), with n texts, or as pipelines of transformers do.
        items: images (n, h, w), (n, h, w, c) or (n, c, h, w), uint8 or in [0, 1]; a list of texts; or rows of
            features, (n, d), a DataFrame or a list of dicts. The model gets batches of the same form.
        concepts: changes of an item: the levels of built-in concepts by name, and your own concepts.
        budget: queries of the model on changed items, by the search and by its uniform baseline each; the search for
            the smallest failing changes uses half as many more.
        expected: the correct answer for each item; by default the model's answer to the unchanged item.
        classes: names of the columns of scores; by default their numbers.
        discrepancy: (answer, expected) -> how wrong an answer is, for answers of any other kind.
        threshold: discrepancies above it are failures; by default every wrong label, and texts that share less than
            half of their words with what is expected.
        explorer: what chooses the probes, see docs/explorers.md.
        seed: seed of all randomness: the same seed gives the same result.
        batch_size: items per batch.
        name: name of the audit.
        usage: how often changes occur in use, as `usage:` of params.yaml (docs/usage.md): "uniform", or a mapping with
            some of changes, levels and combinations; the rest is assumed.

    Warns:
        UserWarning: if few items were given, or the answers to the unchanged ones are no better than chance, seem to
            belong to other classes, or differ when asked for again. `Result.notes` repeats it.

    Raises:
        UsageError: a ValueError, if the arguments or the model's answers are not as described here.
    """
    from pydantic import ValidationError

    from stages.explorers.contract import make_explorer
    from stages.params import AuditConfig, errors_in, validation_lines
    from stages.params.usage import in_use, usage_error
    from stages.tasks.functions import answers as of_answers
    from stages.tasks.functions.items import as_given, read_concepts
    from stages.tasks.functions.task import FunctionTask
    from stages.tasks.load import task_context

    if not callable(model):
        hint = "; hand over its method, model.predict_proba" if hasattr(model, "predict_proba") else ""
        raise UsageError(f"model: found {type(model).__name__}, expected a function or a torch module{hint}")
    levels, own = read_concepts(concepts)
    given = as_given(items)
    table = given.table()
    n = len(table)
    if n < 2 or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(
            f"found {n} item(s) and batch_size {batch_size!r}, expected two items and one at once at least"
        )
    answers = of_answers.ask_all(model, given.unchanged, np.arange(n), batch_size)
    kind, found = "own", answers
    if discrepancy is None:
        of_answers.check_unchanged(found := of_answers.read(answers))
        kind = of_answers.answer_kind(found)
    names = of_answers.classes_of(found, kind, classes)
    table["id"], table["split"] = [str(row) for row in range(n)], "discover"
    usual = of_answers.THRESHOLDS.get(kind, 0.0)
    scorer = of_answers.AnswerScorer(kind, names)
    table["label"] = scorer.labels(answers) if expected is None else of_answers.labels_of(expected, n, names)
    settings = {
        "seed": seed,
        "task": "stages.tasks.functions:FunctionTask",
        "compute": {"gpus": 0, "batch_size": batch_size},
        "prepare": {"model": "__main__:model", "classes": names},
        "concepts": levels,
        "discrepancy": {"answers": kind, "threshold": usual if threshold is None else threshold},
        "discover": {"explorer": explorer, "budget": budget},
        "summarize": {},
        **({} if usage is None else {"usage": usage}),
    }
    try:
        config = AuditConfig.model_validate(settings)
    except ValidationError as error:
        raise errors_in("this audit", validation_lines(error, AuditConfig)) from None
    if wrong := usage_error(config.usage, levels):
        raise UsageError(wrong)
    make_explorer(explorer, {})
    task = FunctionTask(task_context(name, config), table, model, own, discrepancy)
    task.concepts = in_use(task.concepts, config.usage)
    least = min(_FEWEST_PROBES, n * task.concepts.n_used)
    if budget < least:
        raise UsageError(f"budget: found {budget}, expected {least} probes at least: fewer name no failure mode")
    table.attrs["doubts"] = task.find_doubts(answers)
    for said in task.doubts:
        warnings.warn(said, stacklevel=2)
    return Result(_run(name, task, config, table), (task, config))


def load(name: str, workspace: str | Path | None = None) -> Result:
    """Read an audit that the command line has finished.

    Args:
        name: name of the audit.
        workspace: the folder with params.yaml; by default the current folder or the nearest parent that has one.

    Raises:
        UsageError: if there is no such audit. If it is unfinished, this is raised when a missing result is accessed.
    """
    from stages.params import DATA
    from stages.records import audit_folder

    here = Path.cwd() if workspace is None else Path(workspace)
    roots = [here] if workspace is not None else [here, *here.parents]
    root = next((root for root in roots if (root / "params.yaml").is_file() and (root / DATA).is_dir()), None)
    if root is None:
        raise UsageError(f'{here} is in no workspace: say which, faded.load({name!r}, "path/to/workspace")')
    if not (root / DATA / name).is_dir():
        known = sorted(path.name for path in (root / DATA).iterdir() if path.is_dir())
        raise UsageError(f"{root} has no audit {name!r}, found: {', '.join(known)}{did_you_mean(name, known)}")
    return Result(audit_folder(name, root))


def _run(name: str, task: FunctionTask, config: AuditConfig, table: pd.DataFrame) -> AuditFolder:
    """Do the work of the stages discover and summarize in a temporary folder, which is deleted with its result."""
    from stages import discover, summarize
    from stages.core.ledger import Ledger
    from stages.explorers.search import silent
    from stages.records import audit_folder

    ledger, compute = Ledger(), task.context.compute
    found, walked = discover.query_model(task, config, (), ledger, compute, silent)
    home = Path(mkdtemp(prefix="faded-"))
    here = audit_folder(name, home)
    finalize(here, rmtree, home, ignore_errors=True)
    for stage in (here.prepare, here.discover, here.summarize, here.report):
        stage.path.mkdir(parents=True)
    table.to_parquet(here.prepare.path / "items.parquet", index=False)
    discover.write(here.discover, task, found, walked)
    fresh = summarize.fresh_probes(task, 2 * config.discover.kept_back, ledger, compute)
    summarize.write(here.summarize, task, here.discover, config, fresh)
    return here


class Result:
    """The result of an audit, made by `audit` or read by `load`.

    Args:
        records: records of its stages, see `stages.records`.
        made: task and configuration, if it was made in this process.
    """

    def __init__(self, records: AuditFolder, made: tuple[FunctionTask, AuditConfig] | None = None) -> None:
        self.records, self._made = records, made
        self.name = records.path.name
        self._page: Path | None = None

    def __repr__(self) -> str:
        modes = [f"{mode.id}  {mode.text}: {_rate(mode)}" for mode in self.modes]
        return "\n".join([f"{self.name}: {self._said()}", *modes, *(f"Note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        from stages.pages.gallery import Shrinker

        shelves = self.records.summarize.exhibits
        shown = {
            mode.id: next((one.exhibit for one in shelves.get(mode.id, ()) if one.failed), None) for mode in self.modes
        }
        shrinker = Shrinker(one for one in shown.values() if one is not None)
        rows = "".join(
            f"<tr><td>{mode.id}</td><td>{escape(mode.text)}</td><td>{_rate(mode)}</td>"
            f"<td>{_example(shown[mode.id], shrinker)}</td></tr>"
            for mode in self.modes
        )
        head = "<tr><th></th><th>failure mode</th><th>fails</th><th>for example</th></tr>"
        parts = [f"<p>{escape(self.name)}: {self._said()}</p>", f"<table>{head}{rows}</table>" if rows else ""]
        parts += [f"<p>Note: {escape(note)}</p>" for note in self.notes]
        drawn = self.records.report
        if page := self._page or (drawn.where("page") if drawn.has("page") else None):
            here = page.resolve()
            inside = here.is_relative_to(Path.cwd())  # notebooks open only links that are relative to them
            link = quote(here.relative_to(Path.cwd()).as_posix()) if inside else here.as_uri()
            parts.append(f'<p><a href="{link}">report</a></p>')
        return "\n".join(part for part in parts if part)

    def _said(self) -> str:
        rate, n = self.landscape.overall.rate, len(self.modes)
        of_modes = f"{n} failure mode{'s' if n != 1 else ''}" if n else "no failure mode was found"
        where = "of the grid" if self.landscape.usage is None else "in use"
        return f"fails on {rate.value:.1%} {where} ({rate.low:.1%} to {rate.high:.1%}), {of_modes}"

    @property
    def landscape(self) -> Landscape:
        """The record of landscape.json: `overall`, `effects`, `modes`, `robustness` and more."""
        return self.records.summarize.landscape

    @property
    def modes(self) -> list[ModeRecord]:
        """The failure modes, worst first."""
        return self.landscape.modes

    @property
    def notes(self) -> list[str]:
        """What has to be known to trust the result: few items, a model no better than chance, answers that vary."""
        return self.landscape.notes

    def rate(self, usage: Mapping[str, Any] | Literal["uniform"]) -> Rate:
        """Return the failure rate if changes were as common as `usage` says, from the same probes, without a query.

        Args:
            usage: as `usage:` of params.yaml (docs/usage.md). What it has in combinations that were not drawn, such as
                more changes at once, may fail at any rate, and widens the interval.

        Raises:
            UsageError: if it is not a usage of these concepts.
        """
        from pydantic import ValidationError

        from stages.landscape.rates import rate_in_use
        from stages.params import errors_in, validation_lines
        from stages.params.usage import UsageConfig, in_use, usage_error

        space = self.landscape.space
        other = Usage.uniform(space.sizes, space.neutral_levels)
        if usage != "uniform":
            try:
                stated = UsageConfig.model_validate(usage)
            except ValidationError as error:
                raise errors_in("usage", validation_lines(error, UsageConfig)) from None
            if wrong := usage_error(stated, {concept.name: concept.levels for concept in space.concepts}):
                raise UsageError(wrong)
            other = in_use(space, stated).usage or other
        control = self.probes[self.probes["role"] == "control"]
        return rate_in_use(space, control["failed"].to_numpy(dtype=bool), control, usage=other).rate

    def curves(self) -> pd.DataFrame:
        """Return the failure rate at each level of each concept, averaged over the others in use, with 95% intervals.

        Columns are concept, level, probes, failures, rate, low and high; NaN where a rate is unknown.
        """
        levels = {concept.name: concept.levels for concept in self.landscape.space.concepts}
        rows = [one.model_dump() | {"level": levels[one.concept][one.level]} for one in self.landscape.effects]
        columns = ["concept", "level", "probes", "failures", "rate", "low", "high"]
        return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[-3:], float))

    @property
    def cells(self) -> pd.DataFrame:
        """The cells that occur in use: share of use, probes, failures, and the estimated failure rate of each."""
        return self._with_levels(self.records.summarize.cells)

    @property
    def probes(self) -> pd.DataFrame:
        """All probes, as in probes.parquet (docs/files.md): levels are numbered from 0."""
        return self.records.discover.probes

    @property
    def failures(self) -> pd.DataFrame:
        """The failed probes, worst first: item, level of each concept, expected and actual answer."""
        names = self.landscape.space.names
        failed = self.probes[self.probes["failed"]].sort_values("discrepancy", ascending=False, kind="stable")
        failed = self._with_levels(failed.drop_duplicates(["item", *names]))
        items = pd.read_parquet(self.records.prepare.path / "items.parquet", columns=["id", "label"])
        failed["expected"] = items.set_index("id")["label"].loc[failed["item"]].to_numpy()
        if self._made is not None:
            failed["item"] = failed["item"].astype(int)  # the item's row in the user's data
        shown = failed.rename(columns={"output": "answer"})[["item", *names, "expected", "answer", "discrepancy"]]
        return shown.reset_index(drop=True)

    def probe(self, item: str, levels: Mapping[str, Level] | None = None, *, model: str = "before") -> ProbeBatch:
        """Query the model again on one item.

        Args:
            item: its id.
            levels: levels of concepts by name; those of other concepts change nothing, or are the first.
            model: "before", or "after" or "control" of a repair.

        Raises:
            UsageError: if there is no such item, level or model.
        """
        space = self.landscape.space
        cell = dict(zip(space.names, space.start.tolist(), strict=True))
        known = {concept.name: list(concept.levels) for concept in space.concepts}
        for name, level in (levels or {}).items():
            if level not in known.get(name, []):
                raise UsageError(f"{name} {level!r} is not a level of {self.name}, found: {known}")
            cell[name] = known[name].index(level)
        with contextlib.chdir(self.records.path.resolve().parents[1] if self._made is None else Path.cwd()):
            task = self._made[0] if self._made is not None else self._loaded(model)
            if item not in set(task.items.table["id"]):
                raise UsageError(f"{self.name} has no item {item!r}")
            return task.probe([item], np.array([list(cell.values())]))

    def _loaded(self, model: str) -> LoadedTask:
        """Load the audit's task with one of its models, in its workspace."""
        from stages.audit_run import AuditRun

        run, repaired = AuditRun(self.name, "discover"), self.records.restructure.path.resolve() / "models"
        folders = {"before": None, "after": repaired / "repaired", "control": repaired / "control"}
        if model not in folders or ((folder := folders[model]) is not None and not folder.exists()):
            raise UsageError(f"{self.name} has no model {model!r}, expected before, or after or control of its repair")
        return run.judged_task(folder)

    @property
    def slices(self) -> pd.DataFrame:
        """Failure rates by attribute of the items ("label"): a row for each value of each attribute, worst first.

        They are rates in use, from the control's probes: `rate` with its 95% interval (`low`, `high`), the rate of all
        other items (`rest`), and whether it is significantly `worse`, with the p-value `p` adjusted for all values
        (Holm). Empty if the items have no attributes.
        """
        found = self.landscape.slices
        attributes = found.attributes if found else ()
        rows = [{"attribute": of.attribute, **one.model_dump()} for of in attributes for one in of.values]
        columns = ["attribute", "value", "items", "probes", "failures", "rate", "low", "high", "rest", "p", "worse"]
        table = pd.DataFrame(rows, columns=columns)
        return table.sort_values("rate", ascending=False, kind="stable", ignore_index=True)

    @property
    def policy_shift(self) -> pd.DataFrame:
        """Where the search looks, before and after the repair: a row for each concept, most moved first.

        The mean level (`mean_before`, `mean_after`), how far the policy moved (`distance`), the most that a
        policy differs between sets of items (`floor`), and whether it moved further than that (`beyond_noise`). Empty
        without a repair, or without two policies of the same kind. Shares by level are in comparison.json
        (docs/files.md).
        """
        compared = self.records.compare
        moved = (compared.comparison.policy if compared.has("comparison") else None) or ()
        rows = [{**one.to_json(), "floor": one.noise_floor.max} for one in moved]
        columns = ["concept", "mean_before", "mean_after", "distance", "floor", "beyond_noise"]
        table = pd.DataFrame(rows, columns=columns)
        return table.sort_values("distance", ascending=False, kind="stable", ignore_index=True)

    @property
    def verdict(self) -> RepairVerdict | Verdict:
        """The verdict of the gates: those of the repair if there is one, else those of the landscape."""
        repaired = self.records.conclude
        return repaired.verdict if repaired.has("verdict") else self.records.report.verdict

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report on the landscape.

        Args:
            path: where to write it; by default it is opened in a browser.

        Returns:
            Path of the report.
        """
        drawn = self.records.report
        if self._made is not None and not drawn.has("page"):
            from stages import report
            from stages.provenance import provenance

            report.write(drawn, self.records, self._made[1], provenance(self.name, self._made[1]))
        page = drawn.where("page")
        if path is None:
            webbrowser.open(page.resolve().as_uri())
            return page
        self._page = Path(path)
        self._page.write_bytes(page.read_bytes())
        return self._page

    def _with_levels(self, table: pd.DataFrame) -> pd.DataFrame:
        levels = {c.name: np.array(c.levels)[table[c.name]] for c in self.landscape.space.concepts}
        return table.assign(**levels)

    def to_workspace(
        self,
        path: str | Path,
        *,
        model: str | None = None,
        concepts: Mapping[str, str] | None = None,
        discrepancy: str | None = None,
    ) -> Path:
        """Make this audit one of a pipeline: `faded audit` in that folder repeats the same probes, and continues.

        The model and your own concepts are named as module:name, because a pipeline cannot run a lambda or a function
        of a notebook. By default the names are those of their definitions. A module that is a single file is copied
        into the audit's inputs; a package has to be installed. Put files that a module reads beside its copy.

        Args:
            path: the folder of the workspace; created if necessary, with its own git repository if it is in none.
            model: name of the model there: a function of a batch, or a torch module with its weights loaded.
            concepts: names of your own concepts, by concept.
            discrepancy: name of the measure.

        Returns:
            The folder.

        Raises:
            UsageError: if something has no importable name, or answers differently from the model here; then nothing is
                written.
        """
        from flows.workspace.new import add_audit, check_folder, write_workspace
        from stages.tasks.functions.task import carried

        folder = Path(path)
        inputs = folder / "data" / self.name / "inputs"
        if self._made is None:
            raise UsageError(f"{self.name} is an audit of a workspace already, {self.records.path.parents[1]}")
        if inputs.exists():
            raise UsageError(f"{inputs} is there already: choose another name=... for this audit, or another folder")
        names, modules = carried(self._made[0], model, concepts or {}, discrepancy)
        folder.mkdir(parents=True, exist_ok=True)
        if git("rev-parse", folder=folder) is None and git("init", "--quiet", folder=folder) is None:
            raise UsageError(f"{folder} is in no git repository, and `git init` failed there: is git installed?")
        check_folder(folder)
        write_workspace(folder)
        inputs.mkdir(parents=True)
        copyfile(self.records.prepare.path / "items.parquet", inputs / "items.parquet")
        for name, text in modules.items():
            (inputs / name).write_bytes(text)
        block = self._made[1].model_dump(mode="json", exclude_unset=True)
        if not isinstance(used := self._made[1].usage, str):  # in JSON, levels that are keys would be texts
            block |= {"usage": used.model_dump(exclude_unset=True)} if used.stated else {}
        block["prepare"] |= {key: value for key, value in names.items() if key != "measure"}
        block["discrepancy"] |= {key: value for key, value in names.items() if key == "measure"}
        add_audit(folder, self.name, block)
        return folder


def _example(exhibit: Exhibit | None, shrinker: Shrinker) -> str:
    """Show an exhibit as HTML: its picture or the beginning of its text, and its caption."""
    if exhibit is None:
        return ""
    pictures = "".join(
        f'<img src="{one.src}" width="{one.width}" alt="">' for one in shrinker.brief(exhibit, None).images
    )
    text = escape(shorten(exhibit.text or "", _EXCERPT, placeholder=" ..."))
    return "<br>".join(part for part in (pictures, text, escape(exhibit.caption)) if part)


def _rate(mode: ModeRecord) -> str:
    return f"{mode.rate:.0%} ({mode.low:.0%} to {mode.high:.0%})"
