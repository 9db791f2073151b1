"""params.yaml, read and checked: every configuration error is found before anything runs, and all are told at once.

Two top-level blocks. `audits:` says what is searched, `repairs:` what is done about it; an audit without an entry
under `repairs:` ends after its landscape. Each stage depends on its own groups only (see dvc.yaml); what dvc.yaml names
has no default here, because DVC wants to find it in the file.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stages.concepts import Level
from stages.errors import UsageError, did_you_mean, known_keys
from stages.tasks.contract import Compute, Task, TaskContext

DATA = Path("data")


class Strict(BaseModel):
    """Base of all configuration models: an unknown key is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# Columns of the tables that stages write, beside one for each concept.
COLUMNS = frozenset(
    {
        *("model", "purpose", "role", "explorer", "order", "item", "repeat", "uniform"),
        *("discrepancy", "failed", "valid", "output", "automatic", "automatic_failed"),
        *("status", "radius", "at_least", "searched", "queries", "tried_alone"),
        *("probes", "failures", "rate", "low", "high", "certain", "policy_mean", "policy_std"),
        *("rate_automatic", "low_automatic", "high_automatic"),
    }
)


class ComputeConfig(Strict):
    """Where the model under test computes; recorded with every result."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto takes a GPU if there is one")
    threads: int = Field(2, ge=1, description="CPU threads; fixed, because sums depend on it in their last bits")
    batch_size: int = Field(64, ge=1, description="probes answered at once")
    gpus: int = Field(ge=0, description="GPUs prepare and discover ask the task runner for")


class MicroscopicConfig(Strict):
    """Microscopic exploration: the smallest change, step by step, that makes the model fail on an item."""

    method: Literal["beam", "exact", "rl", "none"] = Field(
        "beam", description="beam search, breadth-first search for small grids, an agent that learns, or not at all"
    )
    items: int = Field(25, ge=1, description="items it is done for, drawn at random")
    budget: int | None = Field(None, ge=1, description="unique probes of its own; by default half of discover.budget")
    width: int = Field(8, ge=1, description="beam: cells of each step that are followed at most, if the budget allows")
    max_steps: int | None = Field(None, ge=1, description="steps after which an item counts as holding")
    settings: dict[str, Any] = Field(default_factory=dict, description="rl: settings of the agent")

    @model_validator(mode="after")
    def _only_agents_take_settings(self) -> MicroscopicConfig:
        if self.settings and self.method != "rl":
            raise ValueError(f"only method rl takes settings, found {', '.join(self.settings)} for {self.method}")
        return self


class DiscoverConfig(Strict):
    """The search for failures."""

    explorer: str = Field("auto", description="what chooses the probes, see docs/explorers.md")
    control: Literal["random"] = Field("random", description="the uniform baseline, on which all rates are calibrated")
    budget: int = Field(ge=1, description="unique probes for each of the two")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the explorer")
    microscopic: MicroscopicConfig = Field(default_factory=MicroscopicConfig)

    @property
    def microscopic_budget(self) -> int:
        """Unique probes microscopic exploration may spend."""
        if self.microscopic.method == "none":
            return 0
        return self.microscopic.budget or max(1, self.budget // 2)


class LandscapeGates(Strict):
    """Gates on the landscape itself, for audits that end there."""

    max_failure_rate: float | None = Field(None, gt=0, le=1, description="over the whole grid")
    max_mode_rate: float | None = Field(None, gt=0, le=1, description="in the worst confirmed failure mode")
    max_bias: float | None = Field(None, gt=0, le=1, description="total variation of the most skewed subject")


class SummarizeConfig(Strict):
    """The landscape and its report."""

    modes: int = Field(6, ge=1, le=50, description="failure modes to name at most")
    max_conditions: int = Field(3, ge=1, le=5, description="concepts a mode may constrain; fewer read better")
    min_support: float = Field(0.02, gt=0, lt=1, description="share of the grid a mode covers at least")
    examples: int = Field(6, ge=0, le=24, description="failing and passing examples shown of each mode")
    gates: LandscapeGates | None = None


class RatingsConfig(Strict):
    """What people's ratings make of the automatic discrepancy, see stages/ratings."""

    file: str = Field(description="what `faded ratings --write` wrote, beside params.yaml: data/NAME/ratings.json")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of that file, so that another one makes results stale")
    fails_below: float | None = Field(
        None, gt=1, le=10, description="of quality: expected ratings below it are failures"
    )
    fails_above: float | None = Field(None, ge=1, lt=10, description="of bias: expected ratings above it are failures")

    @model_validator(mode="after")
    def _one_bound(self) -> RatingsConfig:
        if (self.fails_below is None) == (self.fails_above is None):
            raise ValueError("expected one of fails_below (ratings of quality) and fails_above (of bias)")
        return self


class AuditConfig(Strict):
    """One audit: what is under test, on which items, along which concepts, and how it is searched."""

    seed: int = Field(ge=0, lt=2**32)
    task: str = Field(pattern=r"^\w+(\.\w+)*:\w+$", description="package.module:Class, see stages/tasks/contract.py")
    code: str = Field(description="the task's own module or folder, a dependency of every stage that uses it")
    compute: ComputeConfig
    prepare: dict[str, Any] = Field(description="the task's own: model, data, items")
    concepts: dict[str, list[Level]] = Field(min_length=1, description="levels of each concept, weakest first")
    discrepancy: dict[str, Any] = Field(description="the task's own: how wrong is a failure; may be {}")
    discover: DiscoverConfig
    summarize: SummarizeConfig

    @property
    def ratings(self) -> RatingsConfig | None:
        """What people's ratings make of the discrepancy, where they are in force."""
        given = self.discrepancy.get("ratings")
        return None if given is None else RatingsConfig.model_validate(given)

    @property
    def automatic(self) -> dict[str, Any]:
        """The task's own part of `discrepancy:`."""
        return {key: value for key, value in self.discrepancy.items() if key != "ratings"}

    @field_validator("discrepancy")
    @classmethod
    def _ratings(cls, discrepancy: dict[str, Any]) -> dict[str, Any]:
        try:
            if "ratings" in discrepancy:
                RatingsConfig.model_validate(discrepancy["ratings"])
        except ValidationError as error:
            raise ValueError("; ".join(validation_lines(error, RatingsConfig, "ratings"))) from None
        return discrepancy

    @field_validator("concepts", mode="before")
    @classmethod
    def _no_booleans(cls, concepts: Any) -> Any:
        for name, levels in concepts.items() if isinstance(concepts, dict) else ():
            if isinstance(levels, list) and any(isinstance(level, bool) for level in levels):
                raise ValueError(
                    f"concept {name!r} has a level that is yes or no, expected numbers, or names (in quotes): {levels}"
                )
        return concepts

    @field_validator("concepts")
    @classmethod
    def _levels(cls, concepts: dict[str, list[Level]]) -> dict[str, list[Level]]:
        for name, levels in concepts.items():
            numbers = [level for level in levels if not isinstance(level, str)]
            if 0 < len(numbers) < len(levels):
                raise ValueError(f"concept {name!r} mixes numbers and names: {levels}")
            if numbers and numbers not in (sorted(numbers), sorted(numbers, reverse=True)):
                raise ValueError(f"levels of concept {name!r} go up and down, expected weakest first: {levels}")
            if name in COLUMNS:
                raise ValueError(f"concept {name!r} has the name of a column of the tables, choose another")
            if len(levels) < 2:
                raise ValueError(f"concept {name!r} needs at least 2 levels, found {levels}")
            if len(set(levels)) < len(levels):
                raise ValueError(f"concept {name!r} names a level twice: {levels}")
        return concepts


class FeedbackConfig(Strict):
    """Who decides which failures matter."""

    policy: Literal["top-k", "wait"] = Field(description="top-k decides by rule, without a human; wait asks a person")
    modes: int = Field(3, ge=1, description="top-k: how many modes to repair, worst first")
    reviewers: int = Field(1, ge=1, description="wait: how many people have to decide")
    timeout_hours: float | None = Field(
        None, gt=0, description="wait: hours after which no decision is recorded as a rejection; by default none"
    )

    @model_validator(mode="after")
    def _rules_ask_nobody(self) -> FeedbackConfig:
        if self.policy == "top-k" and (self.reviewers > 1 or self.timeout_hours is not None):
            raise ValueError("policy top-k asks nobody, so reviewers and timeout_hours need policy wait")
        return self


class RestructureConfig(Strict):
    """The repair. What `settings` may hold is the task's own."""

    method: str
    control: Literal["uniform", "clean", "none"] = Field(
        "none", description="also repair a copy on uniformly drawn cells, or on unchanged inputs, with as many steps"
    )
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("settings")
    @classmethod
    def _method_has_its_key(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if "method" in settings:
            raise ValueError("the method is named by restructure.method, not in its settings")
        return settings


class ReEvaluateConfig(Strict):
    """How the repair is judged, on test items only."""

    paired_probes: int = Field(
        2000, ge=100, description="common (item, cell) pairs inside, and as many outside, the target modes"
    )
    bootstrap: int = Field(1000, ge=200, description="resamples of items for the intervals")


class Gate(Strict):
    """One bound. `max`/`min` judge the value after the repair, `change_max`/`change_min` after minus before.

    A gate passes only if the whole 95% interval is on the right side of the bound: absence of evidence fails it.
    """

    max: float | None = None
    min: float | None = None
    change_max: float | None = None
    change_min: float | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> Gate:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("expected at least one of max, min, change_max, change_min; found none")
        return self


class Gates(Strict):
    """What the repaired model has to reach."""

    target_failure_rate: Gate | None = None
    other_failure_rate: Gate | None = None
    newly_failing: Gate | None = None
    clean_quality: Gate | None = None
    bias: Gate | None = None


class RepairConfig(Strict):
    """What is done about the failures of an audit, and what counts as good enough."""

    gpus: int = Field(ge=0, description="GPUs restructure and re_evaluate ask the task runner for")
    feedback: FeedbackConfig
    restructure: RestructureConfig
    re_evaluate: ReEvaluateConfig
    gates: Gates


class Params(Strict):
    """The whole of params.yaml."""

    audits: dict[str, AuditConfig] = Field(min_length=1)
    repairs: dict[str, RepairConfig] = Field(description="by the name of their audit; may be {}")

    @model_validator(mode="after")
    def _repairs_have_audits(self) -> Params:
        for name in self.repairs:
            if name not in self.audits:
                raise ValueError(f"repairs.{name}: there is no audit of that name, found {sorted(self.audits)}")
        for name in self.audits:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"audits.{name}: expected a name of letters, digits, - and _")
        return self

    def audit(self, name: str) -> AuditConfig:
        """One audit by name; a UsageError names the ones there are."""
        if name not in self.audits:
            raise UsageError(
                f"no audit {name!r} in params.yaml, found: {', '.join(self.audits)}{did_you_mean(name, self.audits)}"
            )
        return self.audits[name]

    def repair(self, name: str) -> RepairConfig:
        """The repair of an audit by its name."""
        self.audit(name)
        if name not in self.repairs:
            raise UsageError(f"audit {name!r} has no entry under repairs: in params.yaml, so it ends after summarize")
        return self.repairs[name]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    Raises:
        UsageError: with one line per error, each with where, what was found and what was expected.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no {path.name} in {path.parent.resolve()}: run this in the folder that holds it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: expected a mapping with the keys audits and repairs, found {type(raw).__name__}")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = validation_lines(error, Params)
        raise UsageError(f"{len(lines)} error(s) in {path}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def validation_lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per pydantic error: where, what is wrong, what was found, and a suggestion for a mistyped key."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        where = f"{prefix}.{where}".strip(".")
        if item["type"] == "extra_forbidden":
            known = known_keys(model, item["loc"][:-1])
            hint = did_you_mean(item["loc"][-1], known)
            lines.append(f"{where}: unknown key{hint}; expected one of {', '.join(sorted(known))}")
        elif item["type"] == "missing":
            lines.append(f"{where}: missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if item["type"] == "value_error" else f", found {item['input']!r}"
            lines.append(f"{where}: {message}{found}" if where else message + found)
    return lines


def resolve_device(name: str) -> str:
    """Turn "auto" into the device there is.

    Raises:
        UsageError: when a GPU is named and there is none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= gpus:
            raise UsageError(f"compute.device is {name!r} but this machine has {gpus} usable GPU(s); say auto or cpu")
    return name


def task_context(name: str, audit: AuditConfig) -> TaskContext:
    """What the audit's task is given."""
    compute = audit.compute
    return TaskContext(
        audit=name,
        seed=audit.seed,
        config=audit.prepare,
        concepts=audit.concepts,
        discrepancy=audit.automatic,
        inputs=DATA / name / "inputs",
        compute=Compute(resolve_device(compute.device), compute.threads, compute.batch_size),
    )


def task_class(name: str, audit: AuditConfig) -> type[Task]:
    """Import the class named by `task:`.

    Raises:
        UsageError: when it cannot be imported, is no task, or lies outside `code:` (then DVC would miss its changes).
    """
    module_name, _, class_name = audit.task.partition(":")
    where = f"audits.{name}.task: {audit.task}"
    if str(Path.cwd()) not in sys.path:  # a user's own module lies beside params.yaml
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        raise UsageError(f"{where} cannot be imported: {type(error).__name__}: {error}") from None
    cls = getattr(module, class_name, None)
    lacking = [
        m
        for m in ("check", "check_repair", "prepare", "load", "embed", "probe", "exhibit", "clean_quality", "repair")
        if not hasattr(cls, m)
    ]
    if cls is None or lacking:
        what = f"lacks {', '.join(lacking)}" if cls is not None else f"is not in {module.__file__}"
        raise UsageError(f"{where} is no task: it {what}; see stages/tasks/contract.py")
    source, code = Path(cast(str, module.__file__)).resolve(), Path(audit.code).resolve()
    if not source.is_relative_to(code):
        raise UsageError(
            f"audits.{name}.code: {audit.code} does not hold the task's module {source}; DVC would not see its changes"
        )
    return cast(type[Task], cls)
