"""Who made a decision: forged files, copied or altered signatures and similar names count for nobody."""

import base64
import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from stages import collect_feedback
from stages.core.errors import FadedError, UsageError
from stages.core.files import write_json
from stages.decisions import Decision, RecordedDecision, landscape_hash, record_decision, standing
from stages.decisions.files import SCHEMA, parse_decision
from stages.decisions.identity import check_keys, identity_of, key_id_of, public_line, read_public, sign, signed_bytes
from stages.decisions.names import clean_name, look_alike, same_person
from stages.params import Params
from stages.records import audit_folder
from tests.landscapes import landscape_file
from tests.workspace import audit_params, repair_params

KEYS = {name: Ed25519PrivateKey.generate() for name in ("Ada", "Bob", "Eve")}
LISTED = {name: public_line(KEYS[name]) for name in ("Ada", "Bob")}
MODES = [{"id": "M1", "text": "a >= 1", "region": {"a": [1]}}]
File = dict[str, Any]


@pytest.fixture(autouse=True)
def landscape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which two people are asked about the landscape of audit "x"."""
    monkeypatch.chdir(tmp_path)
    for audit in ("x", "other"):
        folder = Path(f"data/{audit}/summarize")
        folder.mkdir(parents=True)
        pd.DataFrame({"a": [0]}).to_parquet(folder / "landscape.parquet")
        write_json(folder / "landscape.json", landscape_file(MODES))
    return Path("data/x/summarize/landscape.json")


def params(keys: dict[str, str] = LISTED, reviewers: int = 2) -> Params:
    repair = repair_params(feedback={"policy": "wait", "reviewers": reviewers, "keys": keys})
    audits, repairs = (dict.fromkeys(("x", "other"), block) for block in (audit_params(), repair))
    return Params.model_validate({"audits": audits, "repairs": repairs})


def record(
    name: str, audit: str = "x", *, approve: bool = True, keys: dict[str, str] = LISTED, revise: bool = False
) -> Path:
    words = [{"id": "M1", "action": "repair", "reason": f"{name} saw it"}]
    made = Decision(landscape=landscape_hash(audit), reviewer=name, approve=approve, modes=words)
    key = KEYS[name] if keys else None
    return record_decision(params(keys), audit, made, "command", key=key, revise=revise).path


def count(keys: dict[str, str] = LISTED) -> tuple[list[str], str]:
    """Who counts, and why the pipeline does not continue; it must not."""
    with pytest.raises(FadedError) as stopped:
        collect_feedback.by_person("x", standing(params(keys), "x"), audit_folder("x").summarize.landscape.modes)
    assert stopped.value.exit_code != 0
    return [d.reviewer for d in standing(params(keys), "x").decisions], str(stopped.value)


def as_yaml(file: File) -> str:
    """As Faded writes it: to PyYAML a key of digits and an e is text, to YAML 1.2 a number."""
    text = io.StringIO()
    YAML().dump(file, text)
    return text.getvalue()


def edit(path: Path, change: Callable[[File], object]) -> None:
    file = yaml.safe_load(path.read_text())
    change(file)
    path.write_text(as_yaml(file))


def by_hand(**changes: Any) -> Path:
    """A second decision file, hand-written from Ada's."""
    path = Path(f"data/x/decisions/{landscape_hash('x')}.yaml")
    file = yaml.safe_load(path.read_text()) | changes
    path.with_suffix(".2.yaml").write_text(as_yaml(file))
    return path.with_suffix(".2.yaml")


def resigned(file: File, key: Ed25519PrivateKey, key_id: str | None = None, data: bytes | None = None) -> None:
    """Sign a file with another key, or sign other bytes."""
    bare = RecordedDecision.model_validate({k: v for k, v in file.items() if k not in ("schema", "signature")})
    value = base64.b64encode(key.sign(data if data is not None else signed_bytes(bare))).decode()
    file["signature"] = {"key": key_id or key_id_of(public_line(key)), "value": value}


def without_domain(file: File) -> None:
    bare = RecordedDecision.model_validate({k: v for k, v in file.items() if k not in ("schema", "signature")})
    resigned(file, KEYS["Bob"], data=signed_bytes(bare).partition(b"\n")[2])


NOT_AS_SIGNED = "does not hold: the decision was changed after it was signed"
ALTERED: dict[str, tuple[Callable[[File], object], str]] = {
    "signature stripped": (lambda f: f.pop("signature"), "it is not signed, expected a signature by a listed reviewer"),
    "reason edited": (lambda f: f.update(reason="all good"), NOT_AS_SIGNED),
    "rejection turned into an approval": (lambda f: f.update(approve=not f["approve"]), NOT_AS_SIGNED),
    "action edited": (lambda f: f["modes"][0].update(action="accept"), NOT_AS_SIGNED),
    "parent dropped": (lambda f: f.update(previous=[]), NOT_AS_SIGNED),
    "takes another's place": (lambda f: f.update(revises=list(f["previous"])), NOT_AS_SIGNED),
    "parent made up": (lambda f: f.update(previous=["0" * 64]), "follows one that is missing or no longer as it was"),
    "name of the other": (lambda f: f.update(reviewer="Ada"), "expected that of Ada"),
    "name not listed": (lambda f: f.update(reviewer="Eve"), "no key of Eve is listed"),
    "other case": (lambda f: f.update(reviewer="BOB"), "no key of BOB is listed"),
    "zero width": (lambda f: f.update(reviewer="B\u200bob"), "cannot have U+200B ZERO WIDTH SPACE"),
    "foreign key": (lambda f: resigned(f, KEYS["Eve"]), "expected that of Bob"),
    "foreign key, listed id": (lambda f: resigned(f, KEYS["Eve"], key_id_of(LISTED["Bob"])), NOT_AS_SIGNED),
    "signed for another purpose": (without_domain, NOT_AS_SIGNED),
    "signature of nothing": (lambda f: f["signature"].update(value="A" * 86 + "=="), NOT_AS_SIGNED),
    "signature cut": (lambda f: f["signature"].update(value="AAAA"), "is not a valid decision"),
    "audit edited": (lambda f: f.update(audit="other"), "it is one of audit 'other', expected one of 'x'"),
    "audit dropped": (lambda f: f.pop("audit"), "its signature names no audit"),
    "landscape edited": (lambda f: f.update(landscape="0" * 16), "not on the one in its name"),
    "called a time-out": (lambda f: f.update(via="time-out"), "a time-out is a rejection by 'nobody'"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", ALTERED)
def test_a_signed_decision_that_was_altered_does_not_count(forgery: str) -> None:
    record("Ada")
    path = record("Bob")
    assert [d.reviewer for d in standing(params(), "x").decisions] == ["Ada", "Bob"]
    change, told = ALTERED[forgery]
    edit(path, change)
    if told.startswith(("cannot", "is not a valid", "not on", "follows")):
        with pytest.raises(UsageError) as refused:  # the file is invalid, and the message names it
            standing(params(), "x")
        assert told in str(refused.value) and path.name in str(refused.value)
        return
    who, why = count()
    assert who == ["Ada"] and told in why and str(path) in why


def test_a_decision_on_another_landscape_or_audit_is_not_replayed(landscape: Path) -> None:
    old = record("Bob")
    elsewhere = record("Bob", "other")
    assert landscape_hash("other") == landscape_hash("x")
    write_json(landscape, landscape_file(MODES, items=1))
    record("Ada")
    there = old.with_name(f"{landscape_hash('x')}.2.yaml")
    shutil.copy(old, there)
    with pytest.raises(UsageError, match="not on the one in its name"):
        standing(params(), "x")
    edit(there, lambda f: f.update(landscape=landscape_hash("x")))
    assert count()[0] == ["Ada"] and NOT_AS_SIGNED in count()[1]

    there.unlink()
    write_json(landscape, landscape_file(MODES))
    old.unlink()
    shutil.rmtree(old.parent)
    record("Ada")
    shutil.copy(elsewhere, elsewhere.parents[2] / "x/decisions" / elsewhere.with_suffix(".2.yaml").name)
    assert count()[0] == ["Ada"] and "it is one of audit 'other', expected one of 'x'" in count()[1]


def test_a_forged_revision_lifts_no_rejection() -> None:
    path = record("Ada", approve=False)
    unsigned = yaml.safe_load(path.read_text()) | {"approve": True, "reviewer": "Bob"}
    kept = standing(params(), "x").kept
    unsigned |= {"previous": [kept[0].sha256], "revises": [kept[0].sha256]}
    del unsigned["signature"]
    path.with_suffix(".2.yaml").write_text(as_yaml(unsigned))
    assert count()[0] == ["Ada"] and "Ada rejected" in count()[1]
    late = unsigned | {"approve": False, "reviewer": "nobody", "via": "time-out"}  # needs no signature
    path.with_suffix(".2.yaml").write_text(as_yaml(late))
    assert count()[0] == ["Ada"] and "takes nobody's place" in standing(params(), "x").problems[0]


def test_a_copy_of_a_decision_that_was_revised_does_not_count_again() -> None:
    first = record("Ada")
    record("Bob", revise=True)
    assert count()[0] == ["Bob"]
    first.with_suffix(".7.yaml").write_text(first.read_text() + "\n")  # other bytes, the same signature
    assert count()[0] == ["Bob"]


def test_one_key_counts_once_and_a_reviewer_who_was_removed_not_at_all() -> None:
    path = record("Ada")
    shutil.copy(path, path.with_suffix(".2.yaml"))
    assert count()[0] == ["Ada"]
    path.with_suffix(".2.yaml").unlink()
    record("Bob")
    who, why = count({"Ada": LISTED["Ada"]})
    assert who == ["Ada"] and "no key of Bob is listed (reviewers with keys: Ada)" in why
    assert "reviewers with keys: none" in count({})[1]  # nor does its signature become a typed name
    one = {"Ada": LISTED["Ada"], "Bob": LISTED["Ada"]}
    assert identity_of(standing(params(), "x").decisions[0], one, "x").problem is not None
    with pytest.raises(UsageError, match="'Bob' has the same key as another reviewer"):
        check_keys(one)


def test_listed_reviewers_can_be_told_apart() -> None:
    for names in (
        ("Ada", "ADA"),
        ("Ada", "Áda"),
        ("Bob", "Воb"),
        ("Amo", "Arno"),
        ("A\u0000da",),
        ("nobody",),
        (" Ada",),
    ):
        with pytest.raises(UsageError, match=r"expected|mixes scripts"):
            check_keys({name: public_line(Ed25519PrivateKey.generate()) for name in names})


def test_a_decision_that_would_not_count_is_not_recorded() -> None:
    for name, key, told in (("Ada", None, "it is not signed"), ("Ada", "Bob", "expected that of Ada"),
                            ("Eve", "Eve", "no key of Eve is listed"), ("Àda", "Ada", "looks like 'Ada', whose key is"),
                            ("nobody", "Ada", "expected a person")):  # fmt: skip
        made = Decision(landscape=landscape_hash("x"), reviewer=name, approve=False, modes=[])
        with pytest.raises(UsageError, match=told):
            record_decision(params(), "x", made, "command", key=KEYS.get(str(key)))
    assert not Path("data/x/decisions").exists()
    record("Ada", keys={})
    made = Decision(landscape=landscape_hash("x"), reviewer="Аԁа", approve=False, modes=[])
    with pytest.raises(UsageError, match=r"looks like 'Ada', who decided before \(landscape .*write the name as you"):
        record_decision(params({}), "x", made, "page")


TYPED = {
    "zero width": ("A\u200bda", "cannot have U+200B ZERO WIDTH SPACE"),
    "NUL": ("A\x00da", "cannot have U+0000"),
    "newline": ("Ada\nB", "cannot have U+000A"),
    "private": ("Ada\ue000", "cannot have U+E000"),
    "variation selector": ("Ada\ufe0f", "cannot have U+FE0F VARIATION SELECTOR-16"),
    "filler": ("Ada \u3164", "cannot have U+3164 HANGUL FILLER"),
    "line separator": ("Ada\u2028B", "cannot have U+2028 LINE SEPARATOR"),
    "mixed scripts": ("Аda", "mixes scripts within a word"),
    "nothing to read": ("...", "has neither a letter nor a digit"),
    "nothing": (" ", "needs the reviewer's name"),
    "too long": ("A" * 201, "expected at most 200"),
    "whole word": ("Аԁа", "the name looks like 'Ada'"),
    "accent": ("Adà", "the name looks like 'Ada'"),
    "combining mark": ("Ad\u0323a", "the name looks like 'Ada'"),
    "punctuation": ("Ada.", "the name looks like 'Ada'"),
    "case": ("ADA", ""),
    "full width": ("Ａｄａ", ""),
    "spaces": ("  Ada\u3000", ""),
    "nobody": ("nobody", "expected a person"),
}


@pytest.mark.parametrize("name", TYPED)
def test_a_typed_name_that_is_not_another_persons_does_not_count_as_one(name: str) -> None:
    record("Ada", keys={})
    typed, told = TYPED[name]
    path = by_hand(reviewer=typed, time="2099-01-01T00:00:00Z")
    try:
        who, why = count({})
    except UsageError as refused:
        assert str(path) in str(refused) and told and told in str(refused)
    else:
        assert len(who) == 1 and same_person(who[0], "Ada") and told in why


SIGNED = sign(
    RecordedDecision(
        landscape="0" * 16, reviewer="Ada", approve=True, reason="seen", time="2026-11-26T02:31:07Z", tool="faded",
        modes=[{"id": "M1", "action": "repair", "severity": 2.0, "reason": "seen"}], via="page", scale="s",
        previous=["a" * 64], audit="x",
    ),
    KEYS["Ada"],
)  # fmt: skip
AS_FILE: File = {"schema": SCHEMA, **SIGNED.model_dump(mode="json", exclude_none=True)}
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def read(data: bytes) -> RecordedDecision | None:
    """The decision in a file of these bytes; None if it is refused, with a message about one file."""
    try:
        return parse_decision(data, Path("d.yaml"), RecordedDecision)
    except UsageError as refused:
        assert "d.yaml" in str(refused)
        return None


@settings(deadline=None)
@given(st.text() | st.text(alphabet="Adа\u0301\u200b .-\u3164１", max_size=8))
def test_any_name_is_refused_or_comes_back_the_same(text: str) -> None:
    try:
        name = clean_name(text)
    except UsageError as refused:
        assert str(refused).isprintable() or "\n" not in str(refused)
        return
    assert clean_name(name) == name and name.isprintable() and same_person(name, text.strip())
    assert look_alike(name, [name]) is None


@settings(deadline=None)
@given(st.sampled_from(sorted(AS_FILE)) | st.text(max_size=8), anything)
def test_any_change_of_a_signed_decision_shows(key: str, value: Any) -> None:
    changed = copy.deepcopy(AS_FILE) | {key: value}
    found = read(json.dumps(changed).encode("utf-8"))
    assert found is None or found == SIGNED or identity_of(found, LISTED, "x").problem is not None


ODD = (b"", b"null", b"[" * 2000, b"a: &a [*a]", b"a: &a [x, x]\nb: &b [*a, *a]", b"1: 2", b"{[a]: b}", b"!!float oops",
       b"!!python/object/apply:os.system ['true']", b"a: 2026-13-45", b"\xff", b"\x00", b"? : :", b"schema: 2",
       b"!!binary 0", b"!!set {a}", b"%YAML 9.9\n---\na", b"a: 1\na: 2", b"--- 1\n--- 2", b"<<: {a: 2}")  # fmt: skip


def test_odd_files_are_refused_in_words() -> None:
    assert [data for data in ODD if read(data) is not None] == []


def test_different_people_have_different_names() -> None:
    people = ["Ada Lovelace", "Ida Lovelace", "Grace Hopper", "李明", "李娜", "サトウ健", "आदित्य", "आदिती", "Zoë",
              "Søren", "José Núñez", "O'Brien", "Анна", "Ольга", "محمد", "Jean-Luc", "R2"]  # fmt: skip
    for i, name in enumerate(people):
        assert clean_name(f" {name} ") == name and look_alike(name, people[:i] + people[i + 1 :]) is None


def test_the_plan_says_what_vouches_for_each_name() -> None:
    record("Ada")
    record("Bob")
    plan = collect_feedback.by_person("x", standing(params(), "x"), audit_folder("x").summarize.landscape.modes)
    ids = {name: key_id_of(LISTED[name]) for name in LISTED}
    assert [who.to_json() for who in plan.reviewers] == [{"name": name, "key": ids[name]} for name in ("Ada", "Bob")]
    assert plan.by == f"Ada (signed by key {ids['Ada']}), Bob (signed by key {ids['Bob']})"
    shutil.rmtree("data/x/decisions")
    record("Ada", keys={})
    plan = collect_feedback.by_person("x", standing(params({}, 1), "x"), audit_folder("x").summarize.landscape.modes)
    assert plan.statement == "decided by Ada (name typed, not verified)"
    assert [who.to_json() for who in plan.reviewers] == [{"name": "Ada", "key": None}]


def test_public_keys_are_read_in_either_spelling() -> None:
    pem = KEYS["Ada"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    assert read_public(pem) == read_public(f"{LISTED['Ada']} ada@host\n") == LISTED["Ada"]
    for text in ("", "ssh-ed25519", "ssh-ed25519 AAAA", pem[:40], "\udcff", "-----BEGIN PUBLIC KEY-----\nAAAA\n"):
        with pytest.raises(UsageError, match="is not a valid public key"):
            read_public(text)


@settings(deadline=None)
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "replace")), st.integers(0, 2000))
def test_any_bytes_are_a_decision_or_refused(junk: bytes, at: int) -> None:
    whole = yaml.safe_dump(AS_FILE).encode()
    for data in (junk, whole[:at] + junk + whole[at:], whole[:at] + junk + whole[at + len(junk) :]):
        found = read(data)
        assert found is None or found == SIGNED or identity_of(found, LISTED, "x").problem is not None


def test_what_cannot_be_a_file_is_told() -> None:
    folder = Path("data/x/decisions")
    (folder / "a.yaml").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"a\.yaml cannot be read: Is a directory"):
        standing(params(), "x")
    (folder / "a.yaml").rmdir()
    (folder / "a.yaml").write_bytes(b"#" * 5_000_001)
    with pytest.raises(UsageError, match="expected at most 5,000,000 bytes"):
        standing(params(), "x")
