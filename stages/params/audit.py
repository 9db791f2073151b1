"""One audit, a block under `audits:`: the model under test, its items and concepts, and how it is searched."""

from itertools import pairwise
from math import prod
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from stages.concepts.grids import CORRUPTION, named_grid
from stages.concepts.space import COLUMNS, Level
from stages.params.slices import SliceGate
from stages.params.strict import OLD_KEYS_OF_AUDIT, Strict, refuse_old_keys, short_value, validation_lines
from stages.params.usage import AnyUsage, UsageConfig

MAX_NAME = 64  # characters of the name of an audit or a concept
MAX_LEVELS = 200  # per concept: each has to be probed to measure its effect
KEPT_BACK, KEPT_BACK_SHARE = 400, 5  # most probes of each role's budget kept back to confirm modes, and 1 in so many


class ComputeConfig(Strict):
    """Where the model under test computes; recorded with every result."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto uses a GPU if there is one")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads per process; the last bits of sums depend on it")
    batch_size: int = Field(64, ge=1, le=1_000_000, description="probes per batch")
    gpus: int = Field(0, ge=0, le=1024, description="GPUs that prepare, explore, discover and summarize each request")
    backend: Literal["auto", "eager", "compile", "openvino"] = Field(
        "auto", description="what runs the network, if the task has a choice; prepare decides what auto means"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of weights and sums; auto is float32, and float16 where a GPU draws pictures"
    )


class GradientConfig(Strict):
    """Noise along the model's own gradient: the least that makes an item fail, beside the steps of concepts."""

    attacks: list[Literal["fgsm", "pgd"]] = Field(
        ["fgsm", "pgd"], min_length=1, description="one step along the gradient's sign, or many projected ones"
    )
    epsilons: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3],
        min_length=1,
        max_length=200,
        description="how much every pixel may change, as a share of its range; rising",
    )
    steps: int = Field(40, ge=1, le=10_000, description="of pgd")

    @model_validator(mode="after")
    def _each_once_and_rising(self) -> Self:
        if len(set(self.attacks)) < len(self.attacks):
            raise ValueError(f"attacks lists one twice: {', '.join(self.attacks)}")
        if self.epsilons != sorted(set(self.epsilons)):
            raise ValueError(f"epsilons must increase, found {short_value(self.epsilons)}")
        return self


class MicroscopicConfig(Strict):
    """Microscopic exploration: the smallest change, step by step, that makes the model fail on an item."""

    method: Literal["beam", "exact", "rl", "none"] = Field(
        "beam", description="beam search, breadth-first search for small grids, an agent that learns, or not at all"
    )
    items: int = Field(25, ge=1, le=1_000_000, description="number of items, drawn at random")
    budget: int | None = Field(
        None, ge=1, le=100_000_000, description="unique probes of its own; by default half of discover.budget"
    )
    width: int = Field(
        8, ge=1, le=1_000_000, description="beam: cells of each step that are followed at most, if the budget allows"
    )
    max_steps: int | None = Field(
        None, ge=1, le=1_000_000, description="steps after which an item is treated as passing"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="rl: settings of the agent")
    gradient: GradientConfig | None = Field(
        None, description="also try noise along the gradient on these items; {} is enough"
    )

    @model_validator(mode="after")
    def _gradient_needs_items(self) -> Self:
        if self.gradient is not None and self.method == "none":
            raise ValueError("gradient needs the items of microscopic exploration, found method none")
        return self

    @model_validator(mode="after")
    def _only_agents_take_settings(self) -> Self:
        if self.settings and self.method != "rl":
            raise ValueError(f"only method rl takes settings, found {', '.join(self.settings)} for {self.method}")
        return self


class DiscoverConfig(Strict):
    """The search for failures."""

    explorer: str = Field("auto", description="what chooses the probes, see docs/explorers.md")
    baseline: Literal["random"] = Field("random", description="even draws, from which all rates are measured")
    budget: int = Field(
        ge=1, le=100_000_000, description="unique probes for each of the two, some of them kept back to confirm modes"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the explorer")
    shards: int = Field(1, ge=1, le=10_000, description="independent searches the budget is divided among")
    microscopic: MicroscopicConfig = Field(default_factory=MicroscopicConfig)

    @property
    def kept_back(self) -> int:
        """Unique probes of either budget that measure the regions named by the search, instead of searching."""
        return min(self.budget // KEPT_BACK_SHARE, KEPT_BACK)

    def searched(self, pairs: int) -> int:
        """Return the unique probes that explorer and baseline each spend, given the grid's pairs of item and cell."""
        return pairs if self.budget >= pairs else self.budget - self.kept_back

    @property
    def microscopic_budget(self) -> int:
        """Unique probes microscopic exploration may spend."""
        if self.microscopic.method == "none":
            return 0
        return self.microscopic.budget or max(1, self.budget // 2)


class LandscapeGates(Strict):
    """Gates on the landscape itself, for audits that end there."""

    # A bound of 1 could not fail, and an interval could hardly pass one of 0.
    max_failure_rate: float | None = Field(None, gt=0, lt=1, description="in use")
    max_mode_rate: float | None = Field(None, gt=0, lt=1, description="in the worst failure mode")
    max_bias: float | None = Field(None, gt=0, lt=1, description="total variation of the most skewed subject")
    slices: dict[str, SliceGate] = Field(default_factory=dict, description="for every value of an attribute, by name")


class SpotCheckConfig(Strict):
    """People's verdicts on randomly drawn probes, see stages/landscape/rates.py."""

    file: str = Field(description="what `faded ratings --spot-check` drew and people filled in")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of that file, so that another one makes results stale")


class SummarizeConfig(Strict):
    """The landscape and the examples shown for it."""

    modes: int = Field(10, ge=1, le=50, description="maximum number of failure modes")
    max_conditions: int = Field(
        3, ge=1, le=5, description="maximum number of concepts in a mode; fewer are easier to read"
    )
    min_support: float = Field(0.0, ge=0, lt=1, description="minimum share of use that a mode makes up")
    examples: int = Field(6, ge=0, le=24, description="failing and passing examples to show for each mode")
    clusters: int = Field(
        0, ge=0, le=12, description="kinds to sort items into by their embeddings, 2 to 12, as one more attribute"
    )
    spot_check: SpotCheckConfig | None = Field(
        None, description="people's verdicts on randomly drawn probes, which correct the failure rate"
    )

    @field_validator("clusters")
    @classmethod
    def _none_or_several(cls, clusters: int) -> int:
        if clusters == 1:
            raise ValueError("expected 2 to 12 kinds, or 0 for none; found 1")
        return clusters

    @model_validator(mode="before")
    @classmethod
    def _gates_have_moved(cls, value: Any) -> Any:
        if isinstance(value, dict) and "gates" in value:
            raise ValueError("gates now belong beside summarize, not in it: audits.NAME.gates")
        return value


class RatingsConfig(Strict):
    """How the automatic discrepancy is mapped to people's ratings, see stages/ratings."""

    file: str = Field(description="what `faded ratings --write` wrote, beside params.yaml: data/NAME/ratings.json")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of that file, so that another one makes results stale")
    fails_below: float | None = Field(
        None, gt=1, le=10, description="of quality: expected ratings below it are failures"
    )
    fails_above: float | None = Field(None, ge=1, lt=10, description="of bias: expected ratings above it are failures")

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.fails_below is None) == (self.fails_above is None):
            raise ValueError("expected one of fails_below (ratings of quality) and fails_above (of bias)")
        return self


class AuditConfig(Strict):
    """One audit: the model under test, its items and concepts, and how it is searched."""

    seed: int = Field(ge=0, lt=2**32)
    task: str = Field(
        pattern=r"^(\w+(\.\w+)*:\w+|\w[\w.-]*)$",
        description="package.module:Class, see stages/tasks/base.py, or the name of an installed task",
    )
    compute: ComputeConfig = Field(default_factory=ComputeConfig)
    prepare: dict[str, Any] = Field(description="the task's own: model, data, items")
    concepts: dict[str, list[Level]] = Field(
        min_length=1, description="levels of each concept, weakest first, or the name of a grid: imagenet-c"
    )
    discrepancy: dict[str, Any] = Field(description="the task's own: how wrong is a failure; may be {}")
    discover: DiscoverConfig
    summarize: SummarizeConfig
    gates: LandscapeGates | None = Field(None, description="gates on the landscape, for audits that end there")
    usage: AnyUsage = Field(
        default_factory=UsageConfig,
        description="how often changes occur in use, which all rates follow; uniform: every cell of the grid equally",
    )
    proposed: dict[str, Annotated[str, Field(min_length=1, max_length=400)]] = Field(
        default_factory=dict, description="by concept or field of the items, what proposed it; the report says so"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_old_keys(cls, block: Any) -> Any:
        return refuse_old_keys(block, OLD_KEYS_OF_AUDIT)

    @model_validator(mode="before")
    @classmethod
    def _benchmarks_are_uniform(cls, block: Any) -> Any:
        """Count all corruptions of a benchmark alike, as its mean error does, unless a usage is stated."""
        concepts = block.get("concepts") if isinstance(block, dict) else None
        if isinstance(concepts, str) or (isinstance(concepts, dict) and CORRUPTION in concepts):
            return {"usage": "uniform", **block}
        return block

    @property
    def ratings(self) -> RatingsConfig | None:
        """The map of the discrepancy to people's ratings, if one is in force."""
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
    def _by_name(cls, concepts: Any) -> Any:
        return named_grid(concepts) if isinstance(concepts, str) else concepts

    @field_validator("concepts", mode="before")
    @classmethod
    def _no_booleans(cls, concepts: Any) -> Any:
        for name, levels in concepts.items() if isinstance(concepts, dict) else ():
            if isinstance(levels, list) and any(isinstance(level, bool) for level in levels):
                raise ValueError(
                    f"concept {name!r} has a level that is yes or no, expected numbers, or names (in quotes):"
                    f" {short_value(levels)}"
                )
        return concepts

    @field_validator("concepts")
    @classmethod
    def _grid(cls, concepts: dict[str, list[Level]]) -> dict[str, list[Level]]:
        for name, levels in concepts.items():
            if name in COLUMNS:
                raise ValueError(f"concept {name!r} has the name of a column of the tables, choose another")
            if not name.isprintable() or name != name.strip() or not 0 < len(name) <= MAX_NAME:
                raise ValueError(
                    f"concept {short_value(name)}: expected a name of 1 to {MAX_NAME} printable characters"
                )
            if error := levels_error(levels):
                raise ValueError(f"concept {name!r} {error}")
        if prod(map(len, concepts.values())) >= 2**63:
            raise ValueError("the grid has 2^63 cells or more, which cannot be numbered: use fewer concepts or levels")
        return concepts


def levels_error(levels: list[Level]) -> str | None:
    """Return what is wrong with the levels of a concept of any kind, or None."""
    numbers = [level for level in levels if not isinstance(level, str)]
    if not 2 <= len(levels) <= MAX_LEVELS:
        return f"needs 2 to {MAX_LEVELS} levels, found {short_value(levels)}"
    if 0 < len(numbers) < len(levels):
        return f"mixes numbers and names: {short_value(levels)}"
    if len(set(levels)) < len(levels):
        return f"names a level twice: {short_value(levels)}"
    return _numbers_error(numbers) if numbers else None


def _numbers_error(numbers: list[float]) -> str | None:
    if numbers not in (sorted(numbers), sorted(numbers, reverse=True)):
        return (
            "has levels that go up and down, expected weakest first (levels without an order are names, in quotes):"
            f" {short_value(numbers)}"
        )
    if max(map(abs, numbers)) > float(np.finfo(np.float32).max):
        return f"has levels beyond the numbers of 32 bits: {short_value(numbers)}"
    for one, other in pairwise(numbers):
        # People read six digits, and models compute in single precision.
        if f"{one:g}" == f"{other:g}" or np.float32(one) == np.float32(other):
            return f"has levels that cannot be distinguished: {one!r} and {other!r}"
    return None
