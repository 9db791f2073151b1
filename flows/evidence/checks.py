"""Checks of a bundle's contents; each reports what it found, and everything that does not match."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import isclose
from pathlib import Path
from typing import Any

from flows.evidence.bundle import (
    LOCK,
    MADE,
    MANIFEST,
    PARAMS,
    SEALS,
    STATEMENT,
    Bundle,
    bundle_part,
    dump_json,
    dump_yaml,
    md5,
    parse_strict_json,
    stages_until,
)
from flows.evidence.formats import make_statement
from flows.graph.lock import content_hash_of, directory_md5, sha256
from stages.decisions.files import valid_decisions
from stages.decisions.identity import identity_of
from stages.decisions.merge import merge_decisions
from stages.decisions.must_pass import MUST_PASS, parse_must_pass
from stages.decisions.rule import by_rule
from stages.params import FeedbackConfig, Gates, LandscapeGates, RatingsConfig
from stages.provenance import sha256_of_folder
from stages.records import Gate, Record, RepairVerdict, StageFolder

# The audit's files that each stage must have read, so that stages are linked whatever graph the bundle's dvc.lock has.
_PREPARED = ("prepare/model", "prepare/assets", "prepare/items.parquet")
_READS = {
    "prepare": ("inputs",),
    "discover": (*_PREPARED, "prepare/fingerprint.json"),
    "summarize": (*_PREPARED, "discover/probes.parquet", "discover/metrics.json"),
    "report": ("discover/probes.parquet", "summarize/landscape.parquet", "summarize/landscape.json"),
    "collect_feedback": ("decisions", "summarize/landscape.parquet", "summarize/landscape.json"),
    "restructure": (*_PREPARED, "collect_feedback/plan.json"),
    "re_evaluate": (*_PREPARED, "collect_feedback/plan.json", "restructure/models"),
    "compare": ("collect_feedback/plan.json", "summarize/landscape.json", "re_evaluate/probes.parquet"),
    "conclude": (
        *("collect_feedback/plan.json", "restructure/models", "re_evaluate/probes.parquet"),
        *("compare/comparison.json", "compare/landscapes.parquet"),
    ),
}
MOST_SHOWN = 5  # differences between two documents


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Args:
        found: a short summary of what was found, shown if everything matches.
        problems: the mismatches, each with the expected and the found value.
        word: what the table shows if everything matches; other than "yes" if not everything could be checked.
    """

    found: str
    problems: Sequence[str] = ()
    word: str = "yes"
    name: str = ""

    @property
    def holds(self) -> bool:
        return not self.problems


def check_files(bundle: Bundle) -> Check:
    """Check that members match the manifest, none is missing or unknown, and each is in the part it belongs to."""
    named = bundle.files
    problems = []
    for name, data in bundle.members.items():
        if name not in named:
            if name not in SEALS:
                problems.append(f"{name} is in the bundle, but the manifest does not name it")
            continue
        problems += unlike(f"{name}: SHA-256", named[name]["sha256"], sha256(data))
        problems += unlike(f"{name}: MD5", named[name]["md5"], md5(data))
        problems += unlike(f"{name}: bytes", named[name]["size"], len(data))
    problems += [f"{name} is missing" for name, e in named.items() if e["whole"] and name not in bundle.members]
    for part, entries in bundle.manifest["parts"].items():
        for name in entries:
            problems += unlike(
                f"{MANIFEST}: the part of {name}", bundle_part(name, bundle.audit, bundle.last_stage), part
            )
    whole = sum(bool(entry["whole"]) for entry in named.values())
    return Check(f"{whole} files as the manifest says; {len(named) - whole} more by their hash only", problems)


def check_manifest(bundle: Bundle) -> Check:
    """Check that the manifest is the one that the statement names."""
    statement = parse_strict_json(bundle.member(STATEMENT), STATEMENT)
    named = [b for b in statement["predicate"]["runDetails"]["byproducts"] if b["name"] == MANIFEST]
    stated, found = named[0]["digest"]["sha256"], sha256(bundle.members[MANIFEST])
    problems = [] if stated == found else [f"{MANIFEST}: the statement names SHA-256 {stated}, found {found}"]
    problems += _in_our_form(bundle, MANIFEST, bundle.manifest)
    # !a escapes letters that only look like others.
    return Check(f"of audit {bundle.audit!a}, SHA-256 {found[:16]}..., as the statement says", problems)


def check_statement(bundle: Bundle) -> Check:
    """Check that the statement follows from the manifest and the parameters, with nothing added."""
    statement = parse_strict_json(bundle.member(STATEMENT), STATEMENT)
    follows = make_statement(bundle.manifest, sha256(bundle.members[MANIFEST]), bundle.yaml(PARAMS))
    n = len(follows["subject"])
    problems = unlike(STATEMENT, follows, statement) or _in_our_form(bundle, STATEMENT, follows)
    return Check(f"in-toto statement on {n} file(s) of a model", problems)


def _in_our_form(bundle: Bundle, name: str, content: Mapping[str, Any]) -> list[str]:
    """Check the layout byte for byte, as what can be written in two ways can be read in two ways."""
    same = bundle.member(name) == (dump_json if name.endswith(".json") else dump_yaml)(content)
    return [] if same else [f"{name} is not in the layout that Faded writes, with every key once"]


def check_parameters(bundle: Bundle) -> Check:
    """Check that the parameters are those that DVC recorded for each stage."""
    params, n, problems = bundle.yaml(PARAMS), 0, []
    for stage, entry in bundle.yaml(LOCK)["stages"].items():
        for key, expected in entry.get("params", {}).get(PARAMS, {}).items():
            n += 1
            found: Any = params
            for name in key.split("."):
                found = found.get(name) if isinstance(found, dict) else None
            problems += unlike(f"{PARAMS}: {key} ({stage} in {LOCK})", expected, found)
    for name in (PARAMS, LOCK):
        problems += _in_our_form(bundle, name, bundle.yaml(name))
    return Check(f"{n} groups of parameters as in {LOCK}", list(dict.fromkeys(problems)))


def check_lock(bundle: Bundle) -> Check:
    """Check that every file is as DVC recorded it, and that each stage read what the one before it had written.

    DVC's hash of a folder is over the paths and MD5s of its files, which the manifest has.
    """
    stages, home = bundle.yaml(LOCK)["stages"], f"data/{bundle.audit}"
    kinds = stages_until(bundle.last_stage)
    problems = unlike(f"{LOCK}: stages", [f"{kind}@{bundle.audit}" for kind in kinds], list(stages))
    hashes: dict[str, tuple[str, str]] = {}  # the hash, and who was the first to read or write the file
    bound = {PARAMS, LOCK, bundle.ratings}
    if bundle.last_stage == "report":  # then no stage reads decisions
        bound |= {name for name in bundle.files if name.startswith(f"{home}/decisions/")}
    for kind, (stage, entry) in zip(kinds, stages.items(), strict=True) if not problems else ():
        unread = {f"{home}/{path}" for path in _READS[kind]} - {dep["path"] for dep in entry["deps"]}
        problems += [f"{LOCK}: {stage} did not read {path}" for path in sorted(unread)]
        for verb, ios in (("read", entry["deps"]), ("wrote", entry["outs"])):
            for io in ios:
                path, digest, size = io["path"], io["md5"], io["size"]
                if path in hashes and hashes[path][0] != digest:
                    problems.append(f"{LOCK}: {stage} {verb} {path} {digest}, {hashes[path][1]} {hashes[path][0]}")
                hashes.setdefault(path, (digest, f"{stage} {verb}"))
                if not path.startswith(f"{home}/"):
                    continue  # code, which the git revision determines
                below = bundle.below(path)
                bound |= {f"{path}/{name}".rstrip("/") for name in below}
                total = sum(file["size"] for file in below.values())
                found = below[""]["md5"] if "" in below else directory_md5((n, e["md5"]) for n, e in below.items())
                if (found, total) != (digest, size):
                    recorded = f"{stage} {verb} MD5 {digest} of {size} bytes ({LOCK})"
                    problems.append(f"{path}: {recorded}, found {found} of {total}")
    problems += [f"{name}: no stage in {LOCK} wrote it" for name in bundle.files if name not in bound]
    summary = f"{len(bundle.files)} files as {len(stages)} stages read and wrote them"
    return Check(summary, list(dict.fromkeys(problems)))


def check_landscape(bundle: Bundle) -> Check:
    """Check that the landscape is the one that manifest and plan are bound to."""
    present = landscape_of(bundle)
    bound = {MANIFEST: bundle.manifest["landscape"]}
    if bundle.has("collect_feedback", "plan.json"):
        bound[bundle.name("collect_feedback", "plan.json")] = bundle.records.collect_feedback.plan.landscape
    problems = [
        f"the landscape's files have the hash {present}, {name} is about landscape {named}"
        for name, named in bound.items()
        if named != present
    ]
    return Check(f"hash {present}, recomputed from its files", problems)


def landscape_of(bundle: Bundle) -> str:
    """The landscape's hash, computed from its files."""
    names = ("landscape.parquet", "landscape.json")
    return content_hash_of((name, bundle.member(bundle.name("summarize", name))) for name in names)


def decided(bundle: Bundle) -> list[tuple[str, str, str]]:
    """Who decided, what, and when, for each decision in order; one that does not count says so."""
    repair = bundle.yaml(PARAMS).get("repairs", {}).get(bundle.audit)
    keys = {} if repair is None else FeedbackConfig.model_validate(repair["feedback"]).keys
    found = []
    for kept in bundle.chain:
        who = identity_of(kept.decision, keys, bundle.audit)
        word = "approved" if kept.decision.approve else "rejected"
        counts = "" if who.problem is None else " (does not count)"
        found.append((who.statement, word + counts, str(kept.decision.time)))
    return found


def check_decisions(bundle: Bundle) -> Check:
    """Check that each decision follows the unchanged ones before it, and that the plan was made from these."""
    here = {kept.path.name: kept.sha256 for kept in bundle.chain}
    problems = [
        f"decision {name}: the plan was made from SHA-256 {digest}, "
        + (f"found {here[name]}" if name in here else "which is missing")
        for name, digest in _used(bundle).items()
        if here.get(name) != digest
    ]
    said = [f"{who} {what}" for who, what, _ in decided(bundle)]
    return Check(f"{len(said)} in their order: {', '.join(said)}" if said else "none: no human decided", problems)


def _used(bundle: Bundle) -> dict[str, str]:
    """SHA-256 by name of the decision files that the plan was made from."""
    if not bundle.has("collect_feedback", "provenance.json"):
        return {}
    return bundle.records.collect_feedback.provenance.decisions or {}


def check_plan(bundle: Bundle) -> Check:
    """Check that the plan follows from the decisions that count, or from the stated rule.

    Its pairs that must pass are those of their file: they decide which test items judge the repair.
    """
    name = bundle.name("collect_feedback", "plan.json")
    if name not in bundle.members:
        return Check("none: the audit ends after its landscape", [])

    plan, landscape = bundle.records.collect_feedback.plan, bundle.records.summarize.landscape
    content, listed = plan.to_json(), bundle.name("decisions", MUST_PASS)
    must = parse_must_pass(bundle.members[listed], listed, landscape.space) if listed in bundle.members else []
    feedback = FeedbackConfig.model_validate(bundle.yaml(PARAMS)["repairs"][bundle.audit]["feedback"])
    if feedback.policy != "wait":
        follows = by_rule(feedback, landscape, plan.landscape).having(must_pass=must or None).to_json()
        return Check(f"by the rule: {plan.reason}", unlike(name, follows, content))

    chain, present = bundle.chain, landscape_of(bundle)
    kept = [k for k in valid_decisions(chain, feedback.keys, bundle.audit) if k.decision.landscape == present]
    decisions = [k.decision for k in kept]
    if len(decisions) < feedback.reviewers or not all(decision.approve for decision in decisions):
        each = [f"{d.reviewer} {'approved' if d.approve else 'rejected'}" for d in decisions]
        who = ", ".join(each) or "nobody decided"
        wanted = f"expected {feedback.reviewers} approval(s) and no rejection"
        return Check("", [f"{name}: {wanted} of landscape {present}, found: {who}"])
    follows = merge_decisions(decisions, landscape.modes).having(must_pass=must or None).to_json()
    problems = unlike(name, follows, content)
    record = bundle.name("collect_feedback", "provenance.json")
    problems += unlike(f"{record}: decisions", {k.path.name: k.sha256 for k in kept}, _used(bundle))
    return Check(f"follows from {len(decisions)} decision(s), by {plan.reviewer}", problems)


def check_ratings(bundle: Bundle) -> Check:
    """Check that ratings that define a failure are those of the parameters, and that the results agree with them."""
    from stages.ratings.apply import parse_ratings

    in_force = bundle.yaml(PARAMS)["audits"][bundle.audit]["discrepancy"].get("ratings")
    if in_force is None:
        strange = [f"{bundle.ratings} is there, but {PARAMS} names none"] if bundle.ratings in bundle.members else []
        return Check("none in force: the automatic measure defines a failure", strange)
    config, data = RatingsConfig.model_validate(in_force), bundle.member(bundle.ratings)
    problems = unlike(f"{PARAMS}: discrepancy.ratings.sha256", sha256(data), config.sha256)
    ratings = parse_ratings(data, Path(bundle.ratings))

    bound = config.model_dump(include={"sha256", "fails_below", "fails_above"}, exclude_none=True)
    learnt = ratings.model_dump(mode="json", exclude={"scale", "decisions"})
    name, landscape = bundle.name("summarize", "landscape.json"), bundle.records.summarize.landscape
    problems += _unlike_ratings(f"{name}: ratings", {**bound, **learnt}, landscape.ratings)
    problems += unlike(f"{name}: threshold", ratings.threshold(config), landscape.threshold)
    if bundle.has("compare", "comparison.json"):
        where = f"{bundle.name('compare', 'comparison.json')}: ratings"
        problems += _unlike_ratings(where, bound, bundle.records.compare.comparison.ratings)
    if config.file == bundle.ratings:  # otherwise they are from another audit's decisions
        here = {kept.path.name: kept.sha256 for kept in bundle.chain}
        of_these = {name: here[name] for name in ratings.decisions if name in here}
        problems += unlike(f"{bundle.ratings}: decisions", of_these, ratings.decisions)
    who = ", ".join(ratings.reviewers)
    return Check(f"{ratings.ratings} by {who}, as {PARAMS} and the results say", problems)


def _unlike_ratings(where: str, expected: Mapping[str, Any], result: Record | None) -> list[str]:
    """Compare the keys of a result's ratings that it has in common with the expected ones."""
    named = result.model_dump(mode="json", exclude_unset=True) if result else {}
    return unlike(where, expected, {key: named[key] for key in expected if key in named})


def check_verdict(bundle: Bundle) -> Check:
    """Check the verdict against its numbers: a gate passes if its whole interval is within its bound."""
    from stages.landscape.gates import all_passed

    stage = bundle.last_stage
    name, of = bundle.name(stage, "verdict.json"), bundle.records
    last, gates = of.conclude if stage == "conclude" else of.report, _gates(bundle)
    verdict, metrics = last.verdict, last.metrics
    problems = unlike(f"{name}: gates", [g.to_json() for g in gates], [g.to_json() for g in verdict.gates])
    problems += unlike(f"{name}: passed", all_passed(gates), verdict.passed)
    problems += unlike(f"{bundle.name(stage, 'metrics.json')}: passed", verdict.passed, metrics.passed)
    problems += unlike("manifest.json: passed", verdict.passed, bundle.manifest["passed"])
    if isinstance(verdict, RepairVerdict):
        problems += _same_numbers(bundle, verdict)
    word = {True: "passed", False: "FAILED", None: "not judged" if gates else "no gates set"}[verdict.passed]
    return Check(f"{word}; {len(gates)} gate(s) agree with their numbers", problems)


def _same_numbers(bundle: Bundle, verdict: RepairVerdict) -> list[str]:
    """Check that the metrics repeat the differences, and that plan and verdict name the same people."""
    plan, name = bundle.records.collect_feedback.plan, bundle.name("conclude", "verdict.json")
    metrics, problems = bundle.records.conclude.metrics.more, []
    for key in ("decided_by", "reviewer", "by"):
        problems += unlike(f"{name}: {key}", getattr(plan, key), getattr(verdict, key))
    for measure, entry in bundle.records.compare.comparison.differences.items():
        for key in ("before", "after", "change", "low", "high"):
            where = f"{bundle.name('conclude', 'metrics.json')}: {measure}_{key}"
            problems += unlike(where, getattr(entry, key), metrics.get(f"{measure}_{key}"))
    return problems


def _gates(bundle: Bundle) -> list[Gate]:
    """The gates as they follow from the parameters and the numbers."""
    from stages.landscape.gates import landscape_gates, repair_gates

    params, of = bundle.yaml(PARAMS), bundle.records
    if bundle.last_stage == "conclude":
        return repair_gates(Gates.model_validate(params["repairs"][bundle.audit]["gates"]), of.compare.comparison)
    stated = params["audits"][bundle.audit].get("gates")
    return landscape_gates(None if stated is None else LandscapeGates.model_validate(stated), of.summarize.landscape)


def check_card(bundle: Bundle) -> Check:
    """Check the card's table by generating it again from the verdict, if this version wrote the card."""
    from stages.pages.page import evaluation_section

    if not bundle.has("conclude", "model_card.md"):
        return Check("none: there is no repaired model", [])
    name, wrote = bundle.name("conclude", "model_card.md"), (bundle.manifest.get("versions") or {}).get("faded")
    try:
        here = version("faded")
    except PackageNotFoundError:  # a source tree that is not installed, as stages record it
        here = None
    if wrote != here:
        return Check(f"not checked: it was written by faded {wrote}, this is {here}", [], "not checked")
    of = bundle.records
    section = evaluation_section(of.compare.comparison, of.conclude.verdict, of.collect_feedback.plan)
    if section not in bundle.member(name).decode("utf-8"):
        return Check("", [f"{name}: its section on the evaluation does not match the verdict"])
    return Check("its table matches the verdict", [])


def check_provenance(bundle: Bundle) -> Check:
    """Check that each stage's provenance agrees with the manifest and with the other stages.

    Provenance has the SHA-256 of whatever the stage read and wrote.
    """
    manifest, params = bundle.manifest, bundle.yaml(PARAMS)["audits"][bundle.audit]
    expected = {"audit": bundle.audit, "seed": params["seed"], "task": params["task"], **manifest["hashes"]}
    problems, named, home = [], set(), f"data/{bundle.audit}"
    stages = {s: part for s, part in bundle.records.stages.items() if bundle.has(s, "provenance.json")}
    for stage, part in stages.items():
        problems += _unlike_records(bundle, stage, part)
        name, record = bundle.name(stage, "provenance.json"), part.provenance
        if not record.wrote or (stage != "prepare" and not record.read):
            problems.append(f"{name} does not name what the stage read and wrote")
        read = {f"{home}/{path}": digest for path, digest in record.read.items()}
        wrote = {f"{home}/{stage}/{path}": digest for path, digest in record.wrote.items()}
        for path, digest in {**read, **wrote}.items():
            below = bundle.below(path)
            named |= {f"{path}/{name}".rstrip("/") for name in below}
            found = below[""]["sha256"] if "" in below else sha256_of_folder({n: e["sha256"] for n, e in below.items()})
            problems += unlike(f"{path}: SHA-256 that {stage} names", digest, found)
        content = record.to_json()
        both = {key: value for key, value in expected.items() if content.get(key) is not None}
        problems += unlike(name, both, {key: content[key] for key in both})
    hashed = [name for name, entry in bundle.files.items() if "sha256" in entry and not entry["whole"]]
    problems += [f"{name}: no stage names its SHA-256" for name in hashed if name not in named]
    if bundle.has("collect_feedback", "plan.json"):
        plan = content_hash_of([("plan.json", bundle.member(bundle.name("collect_feedback", "plan.json")))])
        problems += unlike(f"{MANIFEST}: hashes.plan", plan, manifest["hashes"].get("plan"))
    last = bundle.records.stages[bundle.last_stage].provenance.to_json()
    for key in MADE:
        problems += unlike(f"{MANIFEST}: {key}", last.get(key), manifest.get(key))
    return Check(f"{len(stages)} stages name the same model and data, and each other's files", problems)


def _unlike_records(bundle: Bundle, stage: str, part: StageFolder) -> list[str]:
    """Differences between files and the records parsed from them, for which 1 equals True."""
    problems = []
    for kept, file in part.files().items():
        name = bundle.name(stage, file)
        if name in bundle.members and file.endswith(".json"):
            problems += unlike(
                name, parse_strict_json(getattr(part, kept).dump(), name), parse_strict_json(bundle.members[name], name)
            )
    return problems


def unlike(where: str, expected: Any, found: Any) -> list[str]:
    """Describe where two documents differ, for at most `MOST_SHOWN` places."""
    differing = list(_differing("", expected, found))
    lines = [f"{where}{place}: expected {_short(a)}, found {_short(b)}" for place, a, b in differing[:MOST_SHOWN]]
    return (
        [*lines, f"{where}: {len(differing) - MOST_SHOWN} more differences"] if len(differing) > MOST_SHOWN else lines
    )


_ABSENT = object()


def _differing(place: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _differing(f"{place}.{key}" if place else f": {key}", a.get(key, _ABSENT), b.get(key, _ABSENT))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differing(f"{place}[{i}]", x, y)
    elif isinstance(a, float) and isinstance(b, float) and isclose(a, b, rel_tol=1e-9):
        return  # sums may differ in their last digits between machines
    elif a != b or isinstance(a, bool) is not isinstance(b, bool):  # to Python True == 1
        yield place, a, b


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
