"""One block under `repairs:`: who decides, how the model is repaired, and what the repair has to achieve."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.params.slices import SliceRepairGate
from stages.params.strict import OLD_KEYS_OF_REPAIR, Strict, refuse_old_keys

DOSES = {"repaired": (0.25, 1.0), "control": (0.25, 1.0, 4.0)}  # shares of the steps in each of several trainings
HALFWAY = 0.5  # share of the way to what was learnt, at which trainings are judged as well
MOST_PAIRS = 1000  # largest number of pairs per part for all trainings, which are a dozen models or more
PUBLIC_KEY = r"^ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}$"  # Ed25519 as one line; `faded reviewers add`


class FeedbackConfig(Strict):
    """Who decides which failures matter."""

    policy: Literal["top-k", "worst-groups", "wait"] = Field(
        description="top-k decides by rule, without a human, and so does worst-groups, on groups of people that fail"
        " more than others of their label; wait asks a person"
    )
    modes: int = Field(
        3, ge=1, le=1_000_000, description="top-k, worst-groups: how many modes or groups to repair, worst first"
    )
    label: str = Field("", description="worst-groups: only groups with this label; by default with any")
    reviewers: int = Field(1, ge=1, le=100, description="wait: how many people have to decide")
    keys: dict[str, Annotated[str, Field(pattern=PUBLIC_KEY)]] = Field(
        default_factory=dict, description="public keys by reviewer; where there are any, only signed decisions count"
    )
    timeout_hours: float | None = Field(
        None,
        gt=0,
        le=87_600,
        description="wait: hours after which no decision is recorded as a rejection; by default none",
    )

    @model_validator(mode="after")
    def _rules_ask_nobody(self) -> Self:
        if self.policy != "wait" and (self.reviewers > 1 or self.timeout_hours is not None):
            raise ValueError(f"with policy {self.policy} nobody decides; reviewers and timeout_hours need policy wait")
        return self


class HarmConfig(Strict):
    """How much a repair may break: it goes only so far towards what was learnt as items it did not learn from allow."""

    newly_failing: float = Field(0.01, ge=0, lt=1, description="most of what passed before that may fail, in use")
    clean: float = Field(0.01, ge=0, lt=1, description="most clean quality that may be lost")
    held_out: float = Field(0.2, gt=0, lt=1, description="share of the repair items that tell, and are not learnt")
    pairs: int = Field(1000, ge=20, le=1_000_000, description="pairs of such items and cells, as they occur in use")


class RestructureConfig(Strict):
    """The repair. The task defines the keys of `settings`."""

    method: str
    harm: HarmConfig | None = Field(
        default_factory=HarmConfig,
        description="how much the repair and its control may break; null: they go all the way, whatever it breaks",
    )
    control: Literal["as_used", "clean", "none"] = Field(
        "none", description="also repair a copy on cells as they occur in use, or unchanged inputs, with as many steps"
    )
    trainings: int = Field(
        1,
        ge=1,
        le=10,
        description="of the repair and its control, with other seeds each; from 2 on both are also trained with fewer"
        " steps, and the control with more, to compare them at equal harm",
    )
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def doses(self) -> dict[str, tuple[float, ...]]:
        """Shares of the steps that the repair and its control take in each training; empty with a single training."""
        if self.trainings == 1:
            return {}
        return {copy: shares for copy, shares in DOSES.items() if copy == "repaired" or self.control != "none"}

    @property
    def judged_models(self) -> int:
        """Number of models from which a frontier is made: the one before and all trainings, whole and half-way."""
        copies = 1 if self.control == "none" else 2
        if copies == self.trainings == 1:
            return 0
        doses = self.doses or dict.fromkeys(("repaired", "control")[:copies], (1.0,))
        each = sum(1 + (dose >= 1) for shares in doses.values() for dose in shares)
        return 1 + self.trainings * each

    @field_validator("settings")
    @classmethod
    def _method_has_its_key(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if "method" in settings:
            raise ValueError("the method is named by restructure.method, not in its settings")
        return settings


class ReEvaluateConfig(Strict):
    """How the repair is judged, on test items only."""

    paired_probes: int = Field(
        2000,
        ge=100,
        le=10_000_000,
        description="common (item, cell) pairs inside, and as many outside, the target modes",
    )
    bootstrap: int = Field(1000, ge=200, le=100_000, description="resamples of items for the intervals")

    @property
    def dose_pairs(self) -> int:
        """Pairs in each part for all trainings: target modes, and elsewhere."""
        return min(-(-self.paired_probes // 2), MOST_PAIRS)


class GateConfig(Strict):
    """One bound. `max`/`min` bound the value after the repair, `change_max`/`change_min` after minus before.

    A gate passes only if the whole 95% interval is on the right side of the bound: absence of evidence fails it.
    """

    max: float | None = None
    min: float | None = None
    change_max: float | None = None
    change_min: float | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(f"expected at least one of {', '.join(type(self).model_fields)}; found none")
        return self

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        for high in (name for name in type(self).model_fields if name.endswith("max")):
            low = high.removesuffix("max") + "min"
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least >= most:
                raise ValueError(f"it cannot pass: {low} is {least:g}, not below {high}, {most:g}")
        return self


class ControlledGate(GateConfig):
    """The same, and bounds on the value after the repair minus that after its control, on the same pairs.

    `minus_control_max: 0` asks for superiority, `minus_control_max: 0.01` for non-inferiority with a margin of a point.
    """

    minus_control_max: float | None = None
    minus_control_min: float | None = None


class Gates(Strict):
    """What the repaired model has to achieve."""

    failure_rate: ControlledGate | None = None
    target_failure_rate: ControlledGate | None = None
    other_failure_rate: ControlledGate | None = None
    target_not_passing: ControlledGate | None = None
    other_not_passing: ControlledGate | None = None
    newly_failing: ControlledGate | None = None
    clean_quality: ControlledGate | None = None
    bias: GateConfig | None = None
    slices: dict[str, SliceRepairGate] = Field(
        default_factory=dict, description="failure rate of every value of an attribute, by name"
    )

    @field_validator(
        *("failure_rate", "target_failure_rate", "other_failure_rate", "target_not_passing", "other_not_passing"),
        *("newly_failing", "bias"),
    )
    @classmethod
    def _of_a_share(cls, gate: GateConfig | None) -> GateConfig | None:
        """Refuse bounds that decide nothing, because these quantities are between 0 and 1."""
        for key, bound in gate.model_dump(exclude_none=True).items() if gate else ():
            low, high = (0, 1) if key in ("max", "min") else (-1, 1)
            if bound < low if key.endswith("max") else bound > high:
                raise ValueError(f"it cannot pass: {key} is {bound:g}, and what it judges is from {low} to {high}")
            if bound >= high if key.endswith("max") else bound <= low:
                raise ValueError(f"it cannot fail: {key} is {bound:g}, and what it judges is from {low} to {high}")
        return gate


class RepairConfig(Strict):
    """How the failures of an audit are repaired, and what counts as good enough."""

    gpus: int = Field(0, ge=0, le=1024, description="GPUs restructure and re_evaluate each ask for")
    feedback: FeedbackConfig
    restructure: RestructureConfig
    re_evaluate: ReEvaluateConfig
    gates: Gates

    @model_validator(mode="before")
    @classmethod
    def _no_old_keys(cls, block: Any) -> Any:
        return refuse_old_keys(block, OLD_KEYS_OF_REPAIR)

    @model_validator(mode="after")
    def _compared_with_a_control(self) -> Self:
        gates = self.gates.model_dump(exclude_none=True, exclude={"slices"})
        named = [f"{measure}.{key}" for measure, of in gates.items() for key in of if key.startswith("minus_control")]
        if named and self.restructure.control == "none":
            raise ValueError(
                f"restructure.control is none, so there is nothing to compare with in gates: {', '.join(named)};"
                " expected as_used or clean"
            )
        return self
