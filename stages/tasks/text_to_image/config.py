"""The settings of a text-to-image audit: `prepare:`, `discrepancy:`, and the `settings:` of its repair."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.concepts import ConceptSpace
from stages.core.errors import UsageError
from stages.params import Strict
from stages.tasks.sources import ItemCounts

Measure = Literal["misalignment", "poor_quality", "bias"]
LessonSource = Literal["pictures", "folder", "own"]
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


class SamplingConfig(Strict):
    """How pictures are drawn; few steps are fast, many give what users of a large model see."""

    steps: int = Field(25, ge=1, le=1_000_000, description="denoising steps")
    guidance: float = Field(7.5, ge=1, description="classifier-free guidance; 1 turns it off")
    scheduler: str | None = Field(None, description="a scheduler class of diffusers; none keeps the model's own")
    scheduler_options: dict[str, Any] = Field({}, description="of the scheduler, by name")
    height: int | None = Field(None, ge=8, le=16_384, description="pixels; none is the model's own size")
    width: int | None = Field(None, ge=8, le=16_384, description="pixels")
    negative_prompt: str = ""


class BiasConfig(Strict):
    """Which attribute is tallied for which subjects, in prompts that leave it unsaid."""

    subject: str = Field(description="a slot; each of its levels is a subject")
    attribute: str = Field(description="an attribute that the judge reads")
    reference: Literal["uniform"] | dict[str, float] = Field("uniform", description="share of each value people expect")
    seeds: int = Field(48, ge=8, le=1_000_000, description="pictures for each subject")
    guidance: list[float] | None = Field(
        None, min_length=1, description="guidance scales, the sampler's own the largest; none is that and 1"
    )

    @field_validator("reference")
    @classmethod
    def _shares_sum_to_one(cls, reference: Any) -> Any:
        if isinstance(reference, dict):
            if min(reference.values(), default=0) <= 0:
                raise ValueError(f"expected shares above 0, found {reference}")
            if abs(sum(reference.values()) - 1) > 1e-6:
                raise ValueError(f"expected shares that sum to 1, their sum is {sum(reference.values()):g}")
        return reference

    def shares(self, attributes: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Return the reference by value, in the order of the judge's values.

        Raises a UsageError when the judge does not read the attribute, or its values differ from the reference's.

        Args:
            attributes: the values that the judge reads, by attribute.
        """
        if self.attribute not in attributes:
            known = ", ".join(attributes) or "none"
            raise UsageError(f"prepare.bias.attribute: the judge does not read {self.attribute!r}, it reads: {known}")
        values = attributes[self.attribute]
        if self.reference == "uniform":
            return {value: 1 / len(values) for value in values}
        if set(self.reference) != set(values):
            raise UsageError(
                f"prepare.bias.reference: expected a share for each of {', '.join(values)},"
                f" found {', '.join(self.reference)}"
            )
        return {value: self.reference[value] for value in values}


class TextToImagePrepare(Strict):
    """The `prepare:` block; `model`, `data` and `judge` are checked by the loader their keys name."""

    model: dict[str, Any]
    data: dict[str, Any] = Field(description="real captioned pictures: they set the threshold and teach repairs")
    judge: dict[str, Any]
    templates: list[str] | str = Field(
        description="prompts with a {slot} for every concept, or a file of them, one a line"
    )
    items: ItemCounts
    images: int = Field(3, ge=1, le=64, description="pictures a probe draws")
    sampling: SamplingConfig = SamplingConfig()
    bias: BiasConfig | None = None
    sheet: list[str] | None = Field(
        None, description="two slots whose levels span the contact sheet; none: the first two"
    )


class TextToImageDiscrepancy(Strict):
    """The `discrepancy:` block: a probe fails if the measure is above the threshold, or a picture is broken."""

    measure: Measure | dict[Measure, float] = Field("misalignment", description="one measure, or several with weights")
    threshold: float | Literal["auto"] = Field(
        "auto", description="auto: what real captioned pictures exceed in `false_alarms` of the probes"
    )
    false_alarms: float = Field(0.05, gt=0, lt=1, description="for threshold auto")
    unreadable: Literal["ignored", "failure"] = Field(
        "ignored",
        description="what pictures count as in which the judge cannot recognise something that was asked for, and"
        " reads nothing wrong; ignored is not held against the model",
    )
    quality: Literal["realism", "clip_iqa"] = Field("realism", description="how good a picture is, whatever it shows")

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        if min(self.weights.values(), default=0) <= 0:
            raise ValueError(f"measure: expected weights above 0, found {self.measure}")
        if self.threshold != "auto" and not 0 <= self.threshold < 1:
            raise ValueError(f"threshold: expected auto, or a number from 0 to below 1, found {self.threshold}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        return {self.measure: 1.0} if isinstance(self.measure, str) else {str(k): w for k, w in self.measure.items()}


def conflicts(prepare: TextToImagePrepare, discrepancy: TextToImageDiscrepancy, space: ConceptSpace) -> list[str]:
    """List conflicts between the blocks, one error per line."""
    errors = _without_effect(prepare)
    slots = {concept.name: concept for concept in space.concepts}
    for name in prepare.sheet or []:
        if name not in slots:
            errors.append(f"prepare.sheet: {name} is not a slot of concepts, which are {', '.join(slots)}")
    if prepare.sheet is not None and len(set(prepare.sheet)) != 2:
        errors.append(f"prepare.sheet: expected two slots, found {', '.join(prepare.sheet)}")
    if "bias" in discrepancy.weights:
        if prepare.bias is None:
            errors.append("discrepancy.measure: bias needs prepare.bias, which names the attribute and its reference")
        if prepare.images < 2:
            errors.append(f"discrepancy.measure: bias needs prepare.images of 2 or more, found {prepare.images}")
    if prepare.bias is None:
        return errors
    if prepare.bias.subject not in slots:
        errors.append(
            f"prepare.bias.subject: {prepare.bias.subject} is not a slot of concepts, which are {', '.join(slots)}"
        )
    if prepare.bias.guidance and max(prepare.bias.guidance) != prepare.sampling.guidance:
        errors.append(
            f"prepare.bias.guidance: the largest has to be the sampler's own, {prepare.sampling.guidance:g}, by which"
            f" bias is judged; found {prepare.bias.guidance}"
        )
    if min(prepare.bias.guidance or [1]) < 1:
        errors.append(f"prepare.bias.guidance: expected 1 (none) or more, found {prepare.bias.guidance}")
    if prepare.bias.subject == prepare.bias.attribute.replace(" ", "_"):
        errors.append(
            f"prepare.bias: subject and attribute are both {prepare.bias.subject}: no prompt leaves it unsaid"
        )
    named = slots.get(prepare.bias.attribute.replace(" ", "_"))
    if named is not None and named.neutral is None:
        errors.append(
            f"prepare.bias.attribute: prompts must be able to leave {named.name} unsaid;"
            f' add the level "" to concepts.{named.name}'
        )
    return errors


def _without_effect(prepare: TextToImagePrepare) -> list[str]:
    idle = sorted({"scheduler", "scheduler_options"} & prepare.sampling.model_fields_set)
    if "endpoint" not in prepare.model or not idle:
        return []
    return [f"prepare.sampling: {', '.join(idle)} has no effect on a model behind HTTP, which has its own"]


class TextToImageRepair(Strict):
    """How a text-to-image model is repaired. A step sees `batch_size` pictures.

    With the method `lora`, a share `replay` of them is outside the targets; with `dpo`, they form half as many pairs.
    """

    method: Literal["lora", "dpo"] = Field(description="see repair.py")
    sources: dict[LessonSource, float] = Field(
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
    def _weights(cls, sources: dict[LessonSource, float]) -> dict[LessonSource, float]:
        if not sources or min(sources.values()) <= 0:
            raise ValueError(f"expected at least one source, with weights above 0; found {sources}")
        return sources

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
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
