"""The repair `settings:` of a text summarization audit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stages.params import Strict
from stages.tasks.summarization.normalise import NORMALISATIONS

_OF_TRAINING = (
    *("targets", "samples", "temperature", "min_faithfulness", "steps", "batch_size", "learning_rate"),
    *("replay", "rank", "merged", "rejected", "beta", "per_token"),
)
_OF_PREFERENCES = ("rejected", "beta", "per_token")
_OF_ADAPTERS = ("rank", "merged")


class RepairSettings(Strict):
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
    def _settings_have_effect(self) -> RepairSettings:
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
        """The highest learning rate."""
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
