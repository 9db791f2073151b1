"""The blocks `prepare:`, `discrepancy:` and the repair `settings:` of an image classification audit."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from stages.params import Strict
from stages.tasks.sources import ItemCounts


def class_name(name: Any) -> Any:
    """Convert the name of a class to a string, because YAML reads a class named 7 as a number."""
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


Label = Annotated[str, BeforeValidator(class_name)]


class PrepareConfig(Strict):
    """The `prepare:` block; `model`, `reference` and `data` are checked by the loader named by one of their keys."""

    model: dict[str, Any]
    reference: dict[str, Any] | None = Field(
        None, description="a stronger model: what it cannot read either is invalid"
    )
    data: dict[str, Any]
    items: ItemCounts


class DiscrepancyConfig(Strict):
    """The `discrepancy:` block: tanh((best other logit - true logit) / scale) is a failure above the threshold."""

    threshold: float = Field(0.0, gt=-1, lt=1, description="0: whatever is misclassified; below 0: near misses too")
    scale: float = Field(5.0, gt=0, description="logit margin at which the discrepancy begins to saturate")


class RepairSettings(Strict):
    """How the copy is fine-tuned. Every step sees `batch_size` images; those neither clean nor as used are aimed."""

    method: Literal["all-layers", "self-distilled", "last-layer"] = Field(description="see repair.py")
    epochs: int = Field(4, ge=1, le=10_000, description="passes over the repair items")
    learning_rate: float = Field(
        1e-3, gt=0, lt=1, description="peak rate of AdamW; higher repairs more and forgets more"
    )
    weight_decay: float = Field(0.01, ge=0)
    batch_size: int = Field(64, ge=2, le=1_000_000)
    candidates: int = Field(
        4, ge=1, le=64, description="changed images drawn for each one that is learnt: the one with the highest loss"
    )
    as_used: float = Field(
        0.2, ge=0, lt=1, description="share of images changed as they are in use; higher repairs more elsewhere"
    )
    replay: float = Field(0.5, ge=0, lt=1, description="share of clean images; higher forgets less and repairs less")
    temperature: float = Field(2.0, gt=0, description="softness of the answers to learn; not for last-layer")
    own_answers: bool = Field(
        False,
        description="all-layers: changed images that the model under test gets right learn its answers to them, not"
        " their labels",
    )
    reinitialise: bool = Field(False, description="last-layer: start from random weights, as the paper does")

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        if "temperature" in self.model_fields_set and self.method == "last-layer":
            raise ValueError("temperature has no effect with method last-layer, which learns labels")
        if "reinitialise" in self.model_fields_set and self.method != "last-layer":
            raise ValueError(f"reinitialise has an effect with method last-layer only, found method {self.method}")
        if self.own_answers and self.method != "all-layers":
            raise ValueError(f"own_answers has an effect with method all-layers only, found method {self.method}")
        if self.as_used + self.replay >= 1:
            raise ValueError(
                "as_used and replay leave no images for the modes to repair, found"
                f" {self.as_used:g} + {self.replay:g}, expected less than 1 together"
            )
        return self
