"""Turn a person's decision on this landscape into the plan.

A decision is a file in git, data/<audit>/decisions/<landscape hash>.yaml, and counts for the landscape it names and
no other. With `feedback.policy: top-k` a rule decides, and that is said wherever the plan is shown. A person may also
rate the examples that the report shows of a mode, and write the answer they would have wanted.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.command import stage_main
from stages.errors import DecisionNeeded, RejectedError, UsageError
from stages.files import content_hash, publishing, read_json, stage_dir, write_json
from stages.params import DATA, FeedbackConfig, Strict, load_params, validation_lines
from stages.provenance import provenance

Action = Literal["repair", "accept", "ignore"]
NO_HUMAN = "decided by policy, no human"
SEVERITIES = {"low": 0.5, "medium": 1.0, "high": 2.0}


class ModeDecision(Strict):
    """What is to happen with one failure mode.

    `accept` is a failure people can live with, `ignore` one that does not matter to them; neither is repaired, and
    both are watched by re-evaluate.
    """

    id: str
    action: Action
    severity: float = Field(1.0, gt=0, le=10, description="weight of the mode in the repair")
    reason: str = ""


class ExampleRating(Strict):
    """What a person says of one example that the report shows of a mode."""

    id: str = Field(description="as in the report: M1.1")
    rating: int | None = Field(None, strict=True, ge=1, le=10, description="of the answer, 1 useless to 10 perfect")
    corrected: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None = Field(
        None, description="the answer the person would have wanted"
    )

    @model_validator(mode="after")
    def _says_something(self) -> ExampleRating:
        if self.rating is None and self.corrected is None:
            raise ValueError(f"example {self.id} has neither a rating nor a corrected answer, expected one of them")
        return self


class Decision(Strict):
    """A person's decision on one landscape."""

    landscape: str = Field(pattern=r"^[0-9a-f]{16}$", description="hash of the landscape it was made on")
    reviewer: str = Field(min_length=1)
    reason: str = ""
    approve: bool
    modes: list[ModeDecision]
    examples: list[ExampleRating] = Field(default_factory=list)

    @field_validator("modes", "examples")
    @classmethod
    def _once(cls, entries: list[Any]) -> list[Any]:
        ids = [entry.id for entry in entries]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is there twice, expected one word on each")
        return entries


def landscape_hash(audit: str) -> str:
    """The hash a decision is bound to: over landscape.parquet and landscape.json of the audit's summarize stage."""
    folder = stage_dir(audit, "summarize")
    files = [folder / "landscape.parquet", folder / "landscape.json"]
    for file in files:
        if not file.exists():
            raise UsageError(f"{file} is missing: there is no landscape to decide on yet, run `faded audit {audit}`")
    return content_hash(files)


def decision_path(audit: str, landscape: str) -> Path:
    """Where the decision on a landscape lies."""
    return DATA / audit / "decisions" / f"{landscape}.yaml"


def write_decision(audit: str, decision: Decision) -> Path:
    """Write a decision; it appears whole or not at all.

    Raises:
        UsageError: when it is for another landscape than the present one, or names modes or examples that it lacks.
    """
    _check(audit, decision, decision_path(audit, decision.landscape))
    path = decision_path(audit, decision.landscape)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    YAML().dump({"schema": 1, **decision.model_dump(exclude_none=True)}, text)
    partial = path.with_suffix(".partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(path)
    return path


def read_decision(audit: str) -> Decision | None:
    """The decision on the present landscape, or None if nobody has decided yet.

    Raises:
        UsageError: when its file is not a decision, or one for another landscape.
    """
    path = decision_path(audit, landscape_hash(audit))
    if not path.exists():
        return None
    try:
        raw: dict[str, Any] = dict(YAML(typ="safe").load(path.read_text(encoding="utf-8")))
        schema = raw.pop("schema", None)
        decision = Decision.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"{path} is no decision:\n  " + "\n  ".join(validation_lines(error, Decision))) from None
    except (YAMLError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if schema != 1:
        raise UsageError(f"{path} has schema {schema}, this version reads 1")
    _check(audit, decision, path)
    return decision


def _check(audit: str, decision: Decision, path: Path) -> None:
    present = landscape_hash(audit)
    if decision.landscape != present:
        raise UsageError(
            f"{path} decides on landscape {decision.landscape} (by {decision.reviewer}), but the present landscape of"
            f" {audit} is {present}: look at it and decide again, `faded review {audit}`"
        )
    modes = read_json(stage_dir(audit, "summarize") / "landscape.json")["modes"]
    known = [m["id"] for m in modes]
    unknown = [m.id for m in decision.modes if m.id not in known]
    undecided = [m for m in known if m not in {d.id for d in decision.modes}]
    if unknown or undecided:
        what = f"unknown mode(s) {', '.join(unknown)}" if unknown else f"no word on mode(s) {', '.join(undecided)}"
        raise UsageError(f"{path}: {what}; the landscape has {', '.join(known) or 'none'}")
    shown = shown_examples(modes)
    if strange := [e.id for e in decision.examples if e.id not in shown]:
        raise UsageError(f"{path}: unknown example(s) {', '.join(strange)}; the landscape has {_ranges(modes)}")


def shown_examples(modes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Examples the report shows, by their id, with the `mode` of each; none where an older version made the landscape.

    Args:
        modes: as in landscape.json.
    """
    return {e["id"]: {"mode": mode["id"], **e} for mode in modes for e in mode.get("examples", ())}


def _ranges(modes: Sequence[Mapping[str, Any]]) -> str:
    """The ids of all examples, which are numbered within their mode: "M1.1 to M1.12, M2.1 to M2.9"."""
    shown = [mode["examples"] for mode in modes if mode.get("examples")]
    return ", ".join(f"{examples[0]['id']} to {examples[-1]['id']}" for examples in shown) or "none"


def main(audit: str) -> None:
    """Run the stage for one audit."""
    params = load_params()
    feedback = params.repair(audit).feedback
    summary = read_json(stage_dir(audit, "summarize") / "landscape.json")
    present = landscape_hash(audit)
    plan = _by_rule(feedback, summary) if feedback.policy == "top-k" else _by_person(audit, summary)
    with publishing(stage_dir(audit, "collect_feedback")) as out:
        write_json(out / "plan.json", {"landscape": present, **plan})
        actions = [mode["action"] for mode in plan["modes"]]
        counts = {action: actions.count(action) for action in ("repair", "accept", "ignore")}
        write_json(out / "metrics.json", {**counts, "examples": len(plan["examples"])}, schema=False)
        write_json(out / "provenance.json", provenance(audit, params.audit(audit), None))
    said = [f"{n} to {action}" for action, n in counts.items()]
    said += [f"{n} example(s) rated or corrected"] if (n := len(plan["examples"])) else []
    print(f"{plan['statement']}: {', '.join(said)}")


def _by_rule(feedback: FeedbackConfig, summary: dict[str, Any]) -> dict[str, Any]:
    """Repair the worst confirmed modes: most failures beyond the overall rate, which is how modes are ordered."""
    confirmed = [mode["id"] for mode in summary["modes"] if mode["confirmed"]]
    chosen = set(confirmed[: feedback.modes])
    rule = f"top-{feedback.modes}: the worst confirmed modes are repaired"
    modes = [
        {
            **_identity(mode),
            "action": "repair" if mode["id"] in chosen else "ignore",
            "severity": 1.0,
            "reason": rule if mode["id"] in chosen else "beyond the rule's number, or not confirmed",
        }
        for mode in summary["modes"]
    ]
    return {
        "decided_by": "policy",
        "statement": NO_HUMAN,
        "reviewer": None,
        "reason": rule,
        "modes": modes,
        "examples": [],
    }


def _by_person(audit: str, summary: dict[str, Any]) -> dict[str, Any]:
    decision = read_decision(audit)
    if decision is None:
        others = sorted(p.stem for p in (DATA / audit / "decisions").glob("*.yaml"))
        before = f" (there are decisions on {len(others)} other landscape(s), they do not count)" if others else ""
        raise DecisionNeeded(
            f"nobody has decided on landscape {landscape_hash(audit)} of {audit} yet{before}: `faded review {audit}`"
        )
    if not decision.approve:
        raise RejectedError(
            f"{decision.reviewer} rejected landscape {decision.landscape} of {audit}, so no repair is made"
            f" (reason: {decision.reason or 'none given'}); to decide again: `faded review {audit}`"
        )
    decided = {mode.id: mode for mode in decision.modes}
    modes = [{**_identity(mode), **decided[mode["id"]].model_dump()} for mode in summary["modes"]]
    shown = shown_examples(summary["modes"])
    answered = ("id", "mode", "item", "cell", "output")
    return {
        "decided_by": "human",
        "statement": f"decided by {decision.reviewer}",
        "reviewer": decision.reviewer,
        "reason": decision.reason,
        "modes": modes,
        "examples": [{**{key: shown[e.id][key] for key in answered}, **e.model_dump()} for e in decision.examples],
    }


def _identity(mode: dict[str, Any]) -> dict[str, Any]:
    return {key: mode[key] for key in ("id", "text", "region")}


if __name__ == "__main__":
    stage_main(main)
