"""The repair `settings:` of a text-to-image audit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stages.params import Strict

Source = Literal["pictures", "folder", "own"]

# Layers of a UNet by the last part of their names, as peft matches them.
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")
LAYERS = {
    "attention": _ATTENTION,
    "attention+feed-forward": _ATTENTION + _FEED_FORWARD,
    "all": _ATTENTION + _FEED_FORWARD + _CONVOLUTIONS,
}
RATES = {"lora": 2e-3, "dpo": 5e-4}  # peak learning rates, by method


class RepairSettings(Strict):
    """How a text-to-image model is repaired. A step sees `batch_size` pictures.

    With the method `lora`, a share `replay` of them is outside the targets; with `dpo`, they form half as many pairs.
    """

    method: Literal["lora", "dpo"] = Field(description="see repair.py")
    sources: dict[Source, float] = Field(
        {"pictures": 1.0},
        description="what to learn from, with weights: captioned pictures of the split `repair` (pictures), of a folder"
        " of one's own (folder), pictures the model drew and the judge found right (own)",
    )
    folder: dict[str, Any] | None = Field(None, description="as prepare.data, for the source `folder`")
    samples: int = Field(
        512, ge=1, le=1_000_000, description="own, dpo: pictures drawn, of which right ones are learnt, or pairs made"
    )
    accept: float | None = Field(
        None, gt=0, le=1, description="own, dpo: least alignment of a right one; none: 1 - the threshold of a failure"
    )
    tries: int = Field(4, ge=1, le=1000, description="dpo: pictures drawn for each prompt")
    beta: float = Field(20.0, gt=0, description="dpo: how much a pair counts; more changes less")
    steps: int = Field(800, ge=1, le=1_000_000, description="of training")
    batch_size: int = Field(16, ge=2, le=1_000_000, description="pictures of a step")
    learning_rate: float | None = Field(None, gt=0, lt=1, description="peak rate of AdamW; none: see RATES")
    rank: int = Field(16, ge=1, le=4096, description="of the low-rank changes")
    alpha: int | None = Field(None, ge=1, le=1_000_000, description="their scale times rank; none: as the rank")
    layers: Literal["attention", "attention+feed-forward", "all"] = Field(
        "all", description="of the UNet that change; all are those of its convolutions as well"
    )
    replay: float = Field(0.5, ge=0, lt=1, description="share of pictures outside the targets; more forget less")
    prior: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how far replayed pictures teach what the model predicts already, not what they show",
    )
    balance: str | None = Field(
        "auto", description="an attribute whose values are drawn alike often; auto: that of prepare.bias"
    )
    high_noise: float = Field(1.0, ge=0, description="0: all noise levels alike often; more favours the noisiest")
    caption_dropout: float = Field(0.1, ge=0, lt=1, description="share of pictures without caption, for guidance")

    @field_validator("sources")
    @classmethod
    def _weights(cls, sources: dict[Source, float]) -> dict[Source, float]:
        if not sources or min(sources.values()) <= 0:
            raise ValueError(f"expected at least one source, with weights above 0; found {sources}")
        return sources

    @model_validator(mode="after")
    def _settings_have_effect(self) -> RepairSettings:
        if ("folder" in self.sources) != (self.folder is not None):
            raise ValueError("the source `folder` needs `folder:`, where its pictures are, and the other way round")
        if idle := sorted(self._idle() & self.model_fields_set):
            raise ValueError(
                f"{', '.join(idle)}: no effect with the method {self.method} and sources {', '.join(self.sources)}"
            )
        if round(self.batch_size * (1 - self.replay)) < 1:
            raise ValueError(f"replay {self.replay} of batch_size {self.batch_size} leaves no picture of the targets")
        if self.prior and not self.replayed:
            raise ValueError("prior: an effect on replayed pictures only, found none (replay times batch_size)")
        return self

    @property
    def peak(self) -> float:
        """The highest learning rate."""
        return self.learning_rate or RATES[self.method]

    @property
    def replayed(self) -> int:
        """Pictures per step that are outside the targets."""
        return round(self.batch_size * self.replay)

    def used(self) -> dict[str, Any]:
        """The settings that have an effect, for people."""
        idle = self._idle() | {"method"} | ({"folder"} if self.folder is None else set())
        return self.model_dump(exclude=idle) | {"alpha": self.alpha or self.rank, "learning_rate": self.peak}

    def _idle(self) -> set[str]:
        """Settings that need another method or another source."""
        if self.method == "dpo":
            return {"sources", "folder", "replay", "prior", "balance", "caption_dropout"}
        return {"tries", "beta"} | (set() if "own" in self.sources else {"samples", "accept"})
