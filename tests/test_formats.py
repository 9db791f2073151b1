"""What others' tools and people read of a bundle: statements of in-toto, every_eval_ever, and the sign-off sheet."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pypdf
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as Result
from in_toto_attestation.v1 import resource_descriptor_pb2, statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

from flows.evidence.beside import PROVISIONS, add_statements, beside, provision_of, sign_off_sheet, write_beside
from flows.evidence.bundle import ENVELOPE, Bundle, read_bundle
from flows.evidence.formats import EVAL_RESULT, TEST_RESULT, every_eval_ever, model_digest, statements
from flows.evidence.signature import machine_key, read_envelope
from flows.evidence.write import sign_by_default
from tests.bundles import DATA, PLAN, bundle_of, edited, written
from tests.finished import faded, inside
from tests.workspace import ROOT


@pytest.fixture(scope="module", params=["tiny", "other"])
def bundle(request, workspace) -> Bundle:
    path = bundle_of(workspace, request.param)
    with inside(workspace):
        assert sign_by_default(path) is None
    return read_bundle(path)


def changed(bundle: Bundle, name: str, change) -> Bundle:
    return Bundle(bundle.path, {**bundle.members, name: edited(bundle.members[name], change)}, bundle.manifest)


def test_the_command_writes_all_formats_and_verify_shows_the_statements(workspace):
    code, told = faded(workspace, "evidence", "tiny")
    path = bundle_of(workspace)
    files = [beside(path), *(path.with_name(path.stem + end) for end in (".every-eval-ever.json", ".sign-off.html"))]
    assert code == 0 and all(file.is_file() and file.name in told for file in files)
    before = [file.read_bytes() for file in files]
    assert faded(workspace, "evidence", "tiny")[0] == 0 and [file.read_bytes() for file in files] == before
    code, told = faded(workspace, "verify", path)
    assert code == 0 and "test result" in told and "evaluation result" in told


def test_a_statement_is_signed_once_by_each_key(bundle, tmp_path):
    path = Path(shutil.copy(bundle.path, tmp_path))
    for key in (ec := [generate_private_key(SECP256R1()) for _ in range(2)]) * 2:
        add_statements(path, statements(bundle), key)
    assert len(beside(path).read_bytes().splitlines()) == 2 * len(ec)


def test_an_unsigned_bundle_has_only_the_sheet_which_says_so(bundle, tmp_path):
    members = {name: data for name, data in bundle.members.items() if name != ENVELOPE}
    path = written(tmp_path / "unsigned.zip", members)
    assert [file.name for file in write_beside(read_bundle(path), machine_key())] == ["unsigned.sign-off.html"]
    assert "UNSIGNED" in (tmp_path / "unsigned.sign-off.html").read_text()


def test_statements_are_valid_by_the_bindings_of_in_toto(bundle):
    made = {one["predicateType"]: one for one in statements(bundle)}
    assert list(made) == [TEST_RESULT, EVAL_RESULT]
    signed = json.loads(read_envelope(bundle.members[ENVELOPE]).payload)
    for one in (*made.values(), signed):
        statement = ParseDict(one, statement_pb2.Statement())
        Statement.copy_from_pb(statement).validate()
    ParseDict(signed["predicate"], Provenance(), ignore_unknown_fields=True)  # the time is a field of ours
    test = ParseDict(made[TEST_RESULT]["predicate"], Result())
    assert test.result == "PASSED" and len(test.passed_tests) > 0 and not test.failed_tests
    predicate = made[EVAL_RESULT]["predicate"]
    for one in (predicate["model"], predicate["dataset"], *predicate["evidence"]):
        ResourceDescriptor.copy_from_pb(ParseDict(one, resource_descriptor_pb2.ResourceDescriptor())).validate()
        assert one["digest"]
    assert [claim["passed"] for claim in predicate["claims"]] == [True] * len(test.passed_tests)
    assert all(isinstance(claim["threshold"], str) for claim in predicate["claims"])
    assert {claim["comparator"] for claim in predicate["claims"]} <= {"<=", ">="}


def test_gates_that_failed_or_were_not_judged_are_told_apart(bundle):
    name = f"{DATA}/conclude/verdict.json" if bundle.audit == "tiny" else "data/other/report/verdict.json"

    def fail(verdict):
        verdict["gates"] = [{**verdict["gates"][0], "passed": passed} for passed in (False, None)]

    failed = changed(bundle, name, fail)
    object.__setattr__(failed, "manifest", {**bundle.manifest, "passed": False})
    test, evaluation = (one["predicate"] for one in statements(failed))
    assert test["result"] == "FAILED" and len(test["failedTests"]) == len(test["warnedTests"]) == 1
    assert [claim["passed"] for claim in evaluation["claims"]] == [False]
    assert statements(changed(bundle, name, lambda it: it.update(gates=[]))) == []


def test_the_models_digest_is_what_the_command_in_the_specification_prints(workspace, bundle):
    folder = "restructure/models/repaired" if bundle.audit == "tiny" else "prepare/model"
    command = "find . -type f | cut -c3- | LC_ALL=C sort | xargs -r sha256sum | sha256sum | cut -f1 -d' '"
    here = workspace.path / "data" / bundle.audit / folder
    done = subprocess.run(command, shell=True, cwd=here, capture_output=True, text=True, check=True)
    assert model_digest(bundle) == {"dirHash": done.stdout.strip()}


def test_the_record_matches_the_schema_of_every_eval_ever(bundle):
    schema = json.loads((ROOT / "tests/every_eval_ever.schema.json").read_text())
    record = every_eval_ever(bundle)
    jsonschema.Draft7Validator(schema).validate(record)
    assert record["schema_version"] == schema["version"]
    scores = {one["evaluation_result_id"].partition(".")[2]: one for one in record["evaluation_results"]}
    of = bundle.records
    if bundle.audit == "tiny":
        expected = of.compare.comparison.differences["failure_rate"].after
        assert scores["clean_quality"]["metric_config"]["lower_is_better"] is False
    else:
        expected = of.summarize.landscape.overall.value
        assert "mode.M1" in scores
    assert scores["failure_rate"]["score_details"]["score"] == expected
    assert scores["failure_rate"]["metric_config"]["lower_is_better"] is True


def test_the_sheet_has_every_number_with_its_provisions_and_who_decided(bundle):
    page = sign_off_sheet(bundle, {})
    assert "Art. 9(8), Annex IV(4)" in page and "MEASURE 1.1, MANAGE 1.1" in page
    assert "a key not known here" in page and "Art. 15(5)" in page
    unshown = bundle.records.report.verdict.unshown
    assert unshown and f"at most {unshown.at_most:.1%}" in page
    if bundle.audit == "tiny":
        assert "Ada (name typed, not verified)" in page and "Art. 9(5)" in page
    else:
        assert "nobody: the audit ends with its landscape" in page
    assert list(PROVISIONS)[-1] == "" and provision_of("anything")[0]


def test_text_of_others_has_no_effect_in_the_sheet(bundle):
    hostile = "<script>alert(1)</script>"

    def attack(landscape):
        landscape["modes"][0]["text"] = hostile
        landscape["concepts"][0]["name"] = hostile

    name = f"data/{bundle.audit}/summarize/landscape.json"
    page = sign_off_sheet(changed(bundle, name, attack), dict.fromkeys([""], hostile))
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_sheet_prints_on_two_pages_whatever_there_is_to_say(bundle, browser):
    def more(content):
        content["modes"] = [{**content["modes"][0], "text": "fog >= 2 and tilt >= 2 and " * 9}] * 30
        for mode in content["modes"]:
            mode["reason"] = "it matters very much " * 20

    def concerns(verdict):
        verdict["concerns"] = ["the worst mode may fail more often than its bound " * 9] * 9
        verdict["gates"] *= 30

    full = changed(bundle, f"data/{bundle.audit}/{bundle.last_stage}/verdict.json", concerns)
    if bundle.audit == "tiny":
        full = changed(full, PLAN, more)
    page = browser.new_page()
    for one in (bundle, full):
        page.set_content(sign_off_sheet(one, {}))
        pages = pypdf.PdfReader(io.BytesIO(page.pdf(prefer_css_page_size=True))).pages
        assert len(pages) == 2
        assert "What was measured" in pages[0].extract_text() and "signature" in pages[1].extract_text()
