"""Checks of a bundle's ratings, of the verdict against its numbers, and of the model card against the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flows.evidence.bundle import PARAMS, Bundle
from flows.evidence.checks import Found, told
from flows.graph.digests import sha256
from stages.records import Gate, Record, RepairVerdict


def check_ratings(bundle: Bundle) -> Found:
    """Check that ratings that define a failure are those of the parameters, and that the results agree with them."""
    from stages.params import RatingsConfig
    from stages.ratings.apply import parse_ratings

    in_force = bundle.yaml(PARAMS)["audits"][bundle.audit]["discrepancy"].get("ratings")
    if in_force is None:
        strange = [f"{bundle.ratings} is there, but {PARAMS} names none"] if bundle.ratings in bundle.members else []
        return Found("none in force: the automatic measure defines a failure", strange)
    config, data = RatingsConfig.model_validate(in_force), bundle.member(bundle.ratings)
    problems = told(f"{PARAMS}: discrepancy.ratings.sha256", sha256(data), config.sha256)
    ratings = parse_ratings(data, Path(bundle.ratings))

    bound = config.model_dump(include={"sha256", "fails_below", "fails_above"}, exclude_none=True)
    learnt = ratings.model_dump(mode="json", exclude={"scale", "decisions"})
    name, landscape = bundle.name("summarize", "landscape.json"), bundle.records.summarize.landscape
    problems += _said(f"{name}: ratings", {**bound, **learnt}, landscape.ratings)
    problems += told(f"{name}: threshold", ratings.threshold(config), landscape.threshold)
    if bundle.has("compare", "comparison.json"):
        where = f"{bundle.name('compare', 'comparison.json')}: ratings"
        problems += _said(where, bound, bundle.records.compare.comparison.ratings)
    if config.file == bundle.ratings:  # otherwise they are from another audit's decisions
        here = {kept.path.name: kept.sha256 for kept in bundle.chain}
        of_these = {name: here[name] for name in ratings.decisions if name in here}
        problems += told(f"{bundle.ratings}: decisions", of_these, ratings.decisions)
    who = ", ".join(ratings.reviewers)
    return Found(f"{ratings.ratings} by {who}, as {PARAMS} and the results say", problems)


def _said(where: str, expected: Mapping[str, Any], found: Record | None) -> list[str]:
    """Compare the keys of a result's ratings that it has in common with the expected ones."""
    said = found.model_dump(mode="json", exclude_unset=True) if found else {}
    return told(where, expected, {key: said[key] for key in expected if key in said})


def check_verdict(bundle: Bundle) -> Found:
    """Check the verdict against its numbers: a gate passes if its whole interval is within its bound."""
    from stages.landscape.gates import all_passed

    stage = bundle.last_stage
    name, of = bundle.name(stage, "verdict.json"), bundle.records
    last, gates = (of.conclude, _repair_gates(bundle)) if stage == "conclude" else (of.report, _landscape_gates(bundle))
    verdict, metrics = last.verdict, last.metrics
    problems = told(f"{name}: gates", [g.to_json() for g in gates], [g.to_json() for g in verdict.gates])
    problems += told(f"{name}: passed", all_passed(gates), verdict.passed)
    problems += told(f"{bundle.name(stage, 'metrics.json')}: passed", verdict.passed, metrics.passed)
    problems += told("manifest.json: passed", verdict.passed, bundle.manifest["passed"])
    if isinstance(verdict, RepairVerdict):
        problems += _same_numbers(bundle, verdict)
    word = {True: "passed", False: "FAILED", None: "not judged" if gates else "no gates set"}[verdict.passed]
    return Found(f"{word}; {len(gates)} gate(s) agree with their numbers", problems)


def _same_numbers(bundle: Bundle, verdict: RepairVerdict) -> list[str]:
    """Check that the metrics repeat the differences, and that plan and verdict name the same people."""
    plan, name = bundle.records.collect_feedback.plan, bundle.name("conclude", "verdict.json")
    metrics, problems = bundle.records.conclude.metrics.more, []
    for key in ("decided_by", "reviewer", "by"):
        problems += told(f"{name}: {key}", getattr(plan, key), getattr(verdict, key))
    for measure, entry in bundle.records.compare.comparison.differences.items():
        for key in ("before", "after", "change", "low", "high"):
            where = f"{bundle.name('conclude', 'metrics.json')}: {measure}_{key}"
            problems += told(where, getattr(entry, key), metrics.get(f"{measure}_{key}"))
    return problems


def _landscape_gates(bundle: Bundle) -> list[Gate]:
    from stages.landscape.gates import landscape_gates
    from stages.params import LandscapeGates

    set_ = bundle.yaml(PARAMS)["audits"][bundle.audit].get("gates")
    gates = None if set_ is None else LandscapeGates.model_validate(set_)
    return landscape_gates(gates, bundle.records.summarize.landscape)


def _repair_gates(bundle: Bundle) -> list[Gate]:
    from stages.landscape.gates import repair_gates
    from stages.params import Gates

    gates = Gates.model_validate(bundle.yaml(PARAMS)["repairs"][bundle.audit]["gates"])
    return repair_gates(gates, bundle.records.compare.comparison)


def _installed() -> str | None:
    """The installed version of Faded; None in a source tree that is not installed, as stages record it."""
    try:
        return version("faded")
    except PackageNotFoundError:
        return None


def check_card(bundle: Bundle) -> Found:
    """Check the card's table by generating it again from the verdict, if this version wrote the card."""
    from stages.pages.model_card import evaluation_section

    if not bundle.has("conclude", "model_card.md"):
        return Found("none: there is no repaired model", [])
    name, wrote = bundle.name("conclude", "model_card.md"), (bundle.manifest.get("versions") or {}).get("faded")
    if wrote != (here := _installed()):
        return Found(f"not checked: it was written by faded {wrote}, this is {here}", [], "not checked")
    of = bundle.records
    section = evaluation_section(of.compare.comparison, of.conclude.verdict, of.collect_feedback.plan)
    if not bundle.member(name).decode("utf-8").endswith(section):
        return Found("", [f"{name}: its section on the evaluation does not match the verdict"])
    return Found("its table matches the verdict", [])
