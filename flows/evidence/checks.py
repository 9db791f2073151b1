"""What can be checked of a bundle's contents: each check says what it found, and all that does not match."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from flows.evidence.bundle import LOCK, MANIFEST, PARAMS, SEALS, STATEMENT, Bundle, dump_json, parse_json
from flows.evidence.hashes import content_hash_of, sha256
from flows.evidence.statement import make_statement
from stages.decisions.files import counting
from stages.decisions.merge import merge
from stages.params import FeedbackConfig

MOST_TOLD = 5  # of the places in which two documents differ


class Found(NamedTuple):
    """What a check found.

    Args:
        text: in a few words, if all holds.
        problems: what does not match, each with what was expected and found.
        checked: whether anything was; else the text says why not.
    """

    text: str
    problems: list[str]
    checked: bool = True


def check_files(bundle: Bundle) -> Found:
    """Every member is as the manifest says, none is missing and none is strange."""
    named = {path: entry for part in bundle.manifest["parts"].values() for path, entry in part.items()}
    problems = []
    for name, data in bundle.members.items():
        if name in SEALS:
            continue
        if name not in named:
            problems.append(f"{name} is in the bundle, but the manifest does not name it")
        elif (found := sha256(data)) != named[name]["sha256"]:
            problems.append(f"{name}: expected SHA-256 {named[name]['sha256']}, found {found}")
        elif len(data) != named[name]["size"]:
            problems.append(f"{name}: expected {named[name]['size']} bytes, found {len(data)}")
    problems += [f"{name} is missing" for name, e in named.items() if e["whole"] and name not in bundle.members]
    whole = sum(bool(entry["whole"]) for entry in named.values())
    return Found(f"{whole} files as the manifest says; {len(named) - whole} more by their hash only", problems)


def check_manifest(bundle: Bundle) -> Found:
    """The manifest is the one that the statement names."""
    statement = parse_json(bundle.member(STATEMENT), STATEMENT)
    named = [b for b in statement["predicate"]["runDetails"]["byproducts"] if b["name"] == MANIFEST]
    stated, found = named[0]["digest"]["sha256"], sha256(bundle.members[MANIFEST])
    problems = [] if stated == found else [f"{MANIFEST}: the statement names SHA-256 {stated}, found {found}"]
    problems += _in_our_form(bundle, MANIFEST, bundle.manifest)
    return Found(f"SHA-256 {found[:16]}..., as the statement says", problems)


def check_statement(bundle: Bundle) -> Found:
    """The statement says what follows from the manifest and the parameters, and nothing else."""
    statement = parse_json(bundle.member(STATEMENT), STATEMENT)
    follows = make_statement(bundle.manifest, sha256(bundle.members[MANIFEST]), bundle.yaml(PARAMS))
    n = len(follows["subject"])
    problems = told(STATEMENT, follows, statement) or _in_our_form(bundle, STATEMENT, follows)
    return Found(f"in-toto statement on {n} file(s) of a model", problems)


def _in_our_form(bundle: Bundle, name: str, content: Mapping[str, Any]) -> list[str]:
    """JSON that says a thing twice is read in one way here and in another way elsewhere."""
    same = bundle.member(name) == dump_json(content)
    return [] if same else [f"{name} is not written as Faded writes it: expected every key once, and its own layout"]


def check_parameters(bundle: Bundle) -> Found:
    """The parameters are those with which DVC says the stages ran."""
    params, n, problems = bundle.yaml(PARAMS), 0, []
    for stage, entry in bundle.yaml(LOCK)["stages"].items():
        for key, expected in entry.get("params", {}).get(PARAMS, {}).items():
            n += 1
            found: Any = params
            for name in key.split("."):
                found = found.get(name) if isinstance(found, dict) else None
            problems += told(f"{PARAMS}: {key} ({stage} in {LOCK})", expected, found)
    return Found(f"{n} groups of parameters as in {LOCK}", list(dict.fromkeys(problems)))


def check_lock(bundle: Bundle) -> Found:
    """Files are the outputs that DVC recorded, and each stage read what the one before it had written."""
    stages = bundle.yaml(LOCK)["stages"]
    outs = {out["path"]: (out["md5"], stage) for stage, entry in stages.items() for out in entry["outs"]}
    problems, n = [], 0
    for name, data in bundle.members.items():
        if name not in outs:
            if name.startswith("data/") and name not in {*bundle.decisions, bundle.ratings}:
                problems.append(f"{name}: no stage in {LOCK} wrote it")
        else:
            n += 1
            found = hashlib.md5(data, usedforsecurity=False).hexdigest()  # DVC's hash; the manifest's is SHA-256
            if found != outs[name][0]:
                problems.append(f"{name}: {outs[name][1]} wrote MD5 {outs[name][0]} ({LOCK}), found {found}")
    for stage, entry in stages.items():
        for dep in entry["deps"]:
            if dep["path"] in outs and dep["md5"] != outs[dep["path"]][0]:
                written, writer = outs[dep["path"]]
                problems.append(f"{LOCK}: {stage} read {dep['path']} {dep['md5']}, {writer} wrote {written}")
    return Found(f"{n} files as {len(stages)} stages wrote them", problems)


def check_landscape(bundle: Bundle) -> Found:
    """The landscape is the one that manifest and plan are bound to."""
    present = landscape_of(bundle)
    bound = {MANIFEST: bundle.manifest["landscape"]}
    if bundle.has("collect_feedback", "plan.json"):
        bound[bundle.name("collect_feedback", "plan.json")] = bundle.json("collect_feedback", "plan.json")["landscape"]
    problems = [
        f"the landscape's files have the hash {present}, {name} is about landscape {named}"
        for name, named in bound.items()
        if named != present
    ]
    return Found(f"hash {present}, recomputed from its files", problems)


def landscape_of(bundle: Bundle) -> str:
    """The landscape's hash, from its files."""
    names = ("landscape.parquet", "landscape.json")
    return content_hash_of((name, bundle.member(bundle.name("summarize", name))) for name in names)


def check_decisions(bundle: Bundle) -> Found:
    """Each decision follows the ones before it as they are, and those that made the plan are the ones here."""
    chain = bundle.chain
    used = _used(bundle)
    here = {kept.path.name: kept.sha256 for kept in chain}
    problems = [
        f"decision {name}: the plan was made from SHA-256 {digest}, "
        + (f"found {here[name]}" if name in here else "which is missing")
        for name, digest in used.items()
        if here.get(name) != digest
    ]
    said = [f"{k.decision.reviewer} {'approved' if k.decision.approve else 'rejected'}" for k in chain]
    return Found(f"{len(chain)} in their order: {', '.join(said)}" if said else "none: no human decided", problems)


def _used(bundle: Bundle) -> dict[str, str]:
    """The decision files that the plan was made from: name and SHA-256."""
    if not bundle.has("collect_feedback", "provenance.json"):
        return {}
    return dict(bundle.json("collect_feedback", "provenance.json").get("decisions", {}))


def check_plan(bundle: Bundle) -> Found:
    """The plan is what follows from the decisions that count, or from the stated rule."""
    name = bundle.name("collect_feedback", "plan.json")
    if name not in bundle.members:
        return Found("none: the audit ends after its landscape", [])
    from stages.collect_feedback import by_rule  # the rule itself, so that it is stated once

    plan, summary = bundle.json("collect_feedback", "plan.json"), bundle.json("summarize", "landscape.json")
    feedback = FeedbackConfig.model_validate(bundle.yaml(PARAMS)["repairs"][bundle.audit]["feedback"])
    if feedback.policy == "top-k":
        return Found(f"by the rule: {plan['reason']}", told(name, by_rule(feedback, summary), plan, also="landscape"))

    chain, present = bundle.chain, landscape_of(bundle)
    kept = [k for k in counting(chain, feedback.keys, bundle.audit) if k.decision.landscape == present]
    decided = [k.decision for k in kept]
    if len(decided) < feedback.reviewers or not all(decision.approve for decision in decided):
        said = ", ".join(f"{d.reviewer} {'approved' if d.approve else 'rejected'}" for d in decided) or "nobody decided"
        wanted = f"expected {feedback.reviewers} approval(s) and no rejection"
        return Found("", [f"{name}: {wanted} of landscape {present}, found: {said}"])
    merged = merge(decided, summary["modes"])
    words = {mode["id"]: mode for mode in merged["modes"]}
    about = [{key: mode[key] for key in ("id", "text", "region")} | words[mode["id"]] for mode in summary["modes"]]
    follows = {"decided_by": "human", **merged, "modes": about}
    problems = told(name, follows, {key: plan.get(key) for key in follows})
    record = bundle.name("collect_feedback", "provenance.json")
    problems += told(f"{record}: decisions", {k.path.name: k.sha256 for k in kept}, _used(bundle))
    return Found(f"follows from {len(decided)} decision(s), by {plan['reviewer']}", problems)


def check_provenance(bundle: Bundle) -> Found:
    """What each stage says of where its results come from agrees with the manifest and with the other stages."""
    manifest, params = bundle.manifest, bundle.yaml(PARAMS)["audits"][bundle.audit]
    expected = {"audit": bundle.audit, "seed": params["seed"], "task": params["task"], **manifest["hashes"]}
    problems, stages = [], []
    for name in bundle.members:
        stage, file = PurePosixPath(name).parent.name, PurePosixPath(name).name
        if file != "provenance.json":
            continue
        stages.append(stage)
        record = bundle.json(stage, file)
        both = {key: value for key, value in expected.items() if key in record and record[key] is not None}
        problems += told(name, both, {key: record[key] for key in both})
    if bundle.has("collect_feedback", "plan.json"):
        plan = content_hash_of([("plan.json", bundle.member(bundle.name("collect_feedback", "plan.json")))])
        problems += told(f"{MANIFEST}: hashes.plan", plan, manifest["hashes"].get("plan"))
    last = "re_evaluate" if bundle.has("re_evaluate", "provenance.json") else "summarize"
    record = bundle.json(last, "provenance.json")
    for key in ("device", "backend", "dtype", "threads", "batch_size", "versions", "git", "python", "platform"):
        problems += told(f"{MANIFEST}: {key}", record.get(key), manifest.get(key))
    return Found(f"{len(stages)} stages name the same model and data", problems)


def told(where: str, expected: Any, found: Any, *, also: str = "") -> list[str]:
    """In which places two documents differ, at most `MOST_TOLD` of them.

    Args:
        where: the document that was found.
        expected: what it should say.
        found: what it says.
        also: a key that it may have beside (and `schema`, which every file has).
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping) and also:
        found = {key: value for key, value in found.items() if key not in ("schema", also)}
    differing = list(_differing("", expected, found))
    lines = [f"{where}{place}: expected {_short(a)}, found {_short(b)}" for place, a, b in differing[:MOST_TOLD]]
    return [*lines, f"{where}: {len(differing) - MOST_TOLD} more differences"] if len(differing) > MOST_TOLD else lines


_ABSENT = object()


def _differing(place: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _differing(f"{place}.{key}" if place else f": {key}", a.get(key, _ABSENT), b.get(key, _ABSENT))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differing(f"{place}[{i}]", x, y)
    elif a != b or isinstance(a, bool) is not isinstance(b, bool):  # to Python True is 1
        yield place, a, b


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
