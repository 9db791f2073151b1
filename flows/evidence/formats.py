"""A bundle's verdict in formats of others: results of tests and evaluations for in-toto, and for every_eval_ever.

All follow from the bundle alone, so that anybody can recreate and compare them. Sources:
https://in-toto.io/attestation/test-result/v0.1; eval-result v0.1, a draft (in-toto/attestation#575); and
https://github.com/evaleval/every_eval_ever, schema 0.3.0.

The bundle's own statement, an in-toto Statement with SLSA provenance, depends only on the manifest and the parameters.
Sources: https://in-toto.io/Statement/v1 and https://slsa.dev/provenance/v1.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from math import isnan
from typing import Any

from flows.evidence.bundle import ENVELOPE, MANIFEST, PARAMS, STARTS, STATEMENT, Bundle, digest_of, parse_strict_json
from flows.evidence.signature import TIME, check_envelope
from flows.graph.lock import sha256
from stages.core.errors import UsageError
from stages.core.intervals import LEVEL
from stages.provenance import sha256_of_folder
from stages.records import Difference, Gate, Rate, RateRecord
from stages.records.provenance import Manifest, ManifestFile, Parts

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:faded:audit:v1"
BUILDER = "urn:faded:workspace:v1"
_COMPUTED_WITH = ("seed", "device", "backend", "dtype", "threads", "batch_size", "python", "platform")


def make_statement(manifest: Manifest, manifest_sha256: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """State that the audit with these parameters and inputs produced this model and this verdict.

    The manifest's hash makes the statement cover everything else.
    """
    parts = manifest["parts"]
    subject = subject_of(manifest)
    needed = [part for part in ("model", "data", "ratings", "decisions") if part != subject]
    commit, dirty = manifest["git"]["revision"], manifest["git"]["dirty"]
    revision = [{"name": "git", "digest": {"gitCommit": commit}, "annotations": {"dirty": dirty}}] if commit else []
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": entry["sha256"]}} for name, entry in model_files(manifest)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"audit": manifest["audit"], "params": _with_names(params)},
                "internalParameters": {key: manifest.get(key) for key in _COMPUTED_WITH},
                "resolvedDependencies": [*_files(parts, needed), *revision],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": manifest.get("versions") or {}},
                "byproducts": [
                    {"name": MANIFEST, "digest": {"sha256": manifest_sha256}},
                    *_files(parts, ["landscape", "plan", "control", "verdict"]),
                ],
            },
        },
    }


def _with_names(value: Any) -> Any:
    """Return a value of YAML with names for keys, as JSON has them: levels of `usage:` may be numbers."""
    if isinstance(value, Mapping):
        return {str(key): _with_names(inner) for key, inner in value.items()}
    return [_with_names(inner) for inner in value] if isinstance(value, list) else value


def subject_of(manifest: Manifest) -> str:
    """The part with the model that the verdict is about."""
    return "repaired" if manifest["parts"].get("repaired") else "model"


def model_files(manifest: Manifest) -> Iterator[tuple[str, ManifestFile]]:
    """The files of the model that the verdict is about, by their paths in its folder."""
    part = subject_of(manifest)
    for path, entry in manifest["parts"][part].items():
        yield path.partition(f"/{STARTS[part]}")[2] or path, entry


def _files(parts: Parts, names: list[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        for path, entry in (parts.get(name) or {}).items():
            yield {"name": path, "digest": {"sha256": entry["sha256"]}, "annotations": {"part": name}}


TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
EVAL_RESULT = "https://in-toto.io/attestation/eval-result/v0.1"
_EEE_SCHEMA = "0.3.0"
_MORE_IS_BETTER = ("fixed", "clean_quality")


_Measure = tuple[str, str, Rate]  # with its name for people


def shown_measures(bundle: Bundle) -> list[_Measure]:
    """The numbers about the repaired model; without a repair, about the model under test."""
    from stages.pages.words import words  # brings pandas, which takes long to import

    of = bundle.records
    if bundle.last_stage == "conclude":
        numbers = [
            (measure, one.name or words(measure), at_end_of(one))
            for measure, one in of.compare.comparison.shown_differences.items()
        ]
    else:
        landscape = of.summarize.landscape
        numbers = [("failure_rate", words("failure_rate"), landscape.overall)]
        numbers += [(f"mode.{one.id}", f"failure rate where {one.text}", one.measured) for one in landscape.modes]
    return [(measure, name, at.rate) for measure, name, at in numbers if at.value is not None]


def at_end_of(one: Difference) -> RateRecord:
    """A quantity after the repair."""
    return RateRecord(value=one.after, low=one.after_low, high=one.after_high, n=one.pairs)


def gates_of(bundle: Bundle) -> list[Gate]:
    """The gates of the verdict."""
    return (bundle.records.conclude if bundle.last_stage == "conclude" else bundle.records.report).verdict.gates


def comparator(gate: Gate) -> str:
    """The side on which a gate's whole interval has to lie."""
    return ">=" if gate.gate.endswith("min") else "<="


def statements(bundle: Bundle) -> list[dict[str, Any]]:
    """The verdict of a signed bundle as statements of in-toto; none if no gate was set, as nothing can be stated.

    Raises a UsageError if the bundle is not signed, and so nobody says when it was made.
    """
    gates = gates_of(bundle)
    if not gates:
        return []
    subject = parse_strict_json(bundle.member(STATEMENT), STATEMENT)["subject"]
    predicates = {TEST_RESULT: _test_result(bundle, gates)}
    if any(gate.passed is not None for gate in gates):
        predicates[EVAL_RESULT] = _eval_result(bundle, gates)
    return [
        {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": kind, "predicate": predicate}
        for kind, predicate in predicates.items()
    ]


def _test_result(bundle: Bundle, gates: list[Gate]) -> dict[str, Any]:
    names: dict[bool | None, list[str]] = {True: [], None: [], False: []}
    for gate in gates:
        names[gate.passed].append(f"{gate.named} {comparator(gate)} {_decimal(gate.bound)}")
    return {
        "result": {True: "PASSED", None: "WARNED", False: "FAILED"}[bundle.manifest["passed"]],
        "configuration": [{"name": PARAMS, "digest": {"sha256": sha256(bundle.member(PARAMS))}}],
        "passedTests": names[True],
        "warnedTests": names[None],  # could not be judged
        "failedTests": names[False],
    }


def _decimal(number: float) -> str:
    return format(Decimal(repr(number)), "f")


def _eval_result(bundle: Bundle, gates: list[Gate]) -> dict[str, Any]:
    version, audit = str((bundle.manifest.get("versions") or {}).get("faded", "unknown")), bundle.audit
    [data] = [entry["sha256"] for entry in bundle.manifest["parts"]["data"].values()]
    return {
        "evaluator": {"id": BUILDER},
        "evaluatedAt": signed_on(bundle).strftime(TIME),
        "suite": {"name": f"faded audit {audit}", "version": version},
        "claims": [
            {"metric": g.named, "comparator": comparator(g), "threshold": _decimal(g.bound), "passed": g.passed}
            for g in gates
            if g.passed is not None
        ],
        "sampleSize": items_of(bundle),
        "model": {"name": f"model of {audit}", "digest": model_digest(bundle)},
        "dataset": {"name": f"data/{audit}/prepare/items.parquet", "digest": {"sha256": data}},
        "assuranceLevel": "self_attested",
        "subjectProfile": "public-model",
        "evidence": [
            {"name": MANIFEST, "digest": {"sha256": digest_of(bundle.members)}, "mediaType": "application/json"}
        ],
        "harness": {"name": "faded", "version": version},
    }


def model_digest(bundle: Bundle) -> dict[str, str]:
    """The digest of the model's folder, as in-toto defines it for trees of files."""
    return {"dirHash": sha256_of_folder({name: entry["sha256"] for name, entry in model_files(bundle.manifest)})}


def items_of(bundle: Bundle) -> int:
    """The number of items that the verdict was measured on."""
    of = bundle.records
    return of.compare.comparison.items if bundle.last_stage == "conclude" else of.summarize.landscape.items


def signed_on(bundle: Bundle) -> datetime:
    """The time under the bundle's signatures, as results have none of their own. Raises a UsageError if it has none."""
    if ENVELOPE not in bundle.members:
        raise UsageError(f"{bundle.path} is not signed, so nobody says when it was made")
    when, _ = check_envelope(bundle.members[ENVELOPE], bundle.member(STATEMENT))
    return when


def every_eval_ever(bundle: Bundle) -> dict[str, Any]:
    """The numbers of a signed bundle as a record of every_eval_ever, whose consumers know neither modes nor gates.

    Raises a UsageError if the bundle is not signed, and so nobody says when it was made.
    """
    when, audit, digest = str(int(signed_on(bundle).timestamp())), bundle.audit, digest_of(bundle.members)
    prepared, manifest = bundle.records.prepare.metrics, bundle.manifest
    model, data = prepared.origins
    repaired = subject_of(manifest) == "repaired"
    config = bundle.yaml(PARAMS)["audits"][audit]
    return {
        "schema_version": _EEE_SCHEMA,
        "evaluation_id": f"faded.{audit}/{digest[:16]}/{when}",
        "evaluation_timestamp": when,
        "retrieved_timestamp": when,
        "source_metadata": {
            "source_name": f"Faded audit {audit}",
            "source_type": "evaluation_run",
            "source_organization_name": "not stated",
            "evaluator_relationship": "other",
            "additional_details": {"manifest_sha256": digest, "passed": str(manifest["passed"])},
        },
        "model_info": {
            "name": f"{model or audit}{', repaired' if repaired else ''}",
            "id": f"faded/{audit}{'-repaired' if repaired else ''}",
            "additional_details": {
                "deployment_type": "unknown",
                "model_availability": "unknown",
                **model_digest(bundle),
            },
        },
        "eval_library": {"name": "faded", "version": str((manifest.get("versions") or {}).get("faded", "unknown"))},
        "evaluation_results": [
            {
                "evaluation_result_id": f"{digest[:16]}.{measure}",
                "evaluation_name": f"faded.{audit}.{measure}",
                "source_data": {"dataset_name": data or f"items of {audit}", "source_type": "other"},
                "metric_config": _metric(measure, name, config),
                "score_details": _score(measure, rate, gates_of(bundle)),
            }
            for measure, name, rate in shown_measures(bundle)
        ],
    }


def _metric(measure: str, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    scale = {"metric_unit": "proportion", "score_type": "continuous", "min_score": 0, "max_score": 1}
    return {
        "evaluation_description": f"{name}; inputs changed along {', '.join(config['concepts'])}",
        "metric_id": f"faded.{measure}",
        "metric_name": name,
        "lower_is_better": measure not in _MORE_IS_BETTER,
        **(scale if measure != "clean_quality" else {}),  # which may have any scale
    }


def _score(measure: str, rate: Rate, gates: list[Gate]) -> dict[str, Any]:
    value, low, high, n = rate
    bounds = {
        gate.gate: f"{comparator(gate)} {_decimal(gate.bound)}: {gate.passed}"
        for gate in gates
        if gate.gate.partition(".")[0] == measure
    }
    interval = {"lower": low, "upper": high, "confidence_level": LEVEL}
    return {
        "score": value,
        "details": bounds,
        "uncertainty": {**({} if isnan(low) else {"confidence_interval": interval}), "num_samples": n},
    }
