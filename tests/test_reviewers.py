"""Reviewers with keys: `faded reviewers`, decisions signed with the reviewer's key, and links for one reviewer."""

import json
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from flows.cli import app
from flows.people.approval import key_name
from flows.request import how_to_decide
from flows.workspace.edit_params import with_keys
from stages.core.errors import FadedError, UsageError
from stages.core.files import read_json, stage_dir, write_json
from stages.core.keys import key_path
from stages.decisions import listed_keys, standing
from stages.decisions.identity import key_id_of, public_line
from stages.params import load_params
from tests.review_samples import form_of, kept, make_review, review, reviewers, untouched

ALL = ("--repair", "M1,M2,M3=seen")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A landscape of audit "x" that waits for two people, without keys."""
    monkeypatch.setenv("FADED_KEYS", str(tmp_path / "keys"))
    folder = tmp_path / "ws"
    folder.mkdir()
    make_review(folder, monkeypatch, reviewers=2)
    params = json.loads(json.dumps(yaml.safe_load((folder / "params.yaml").read_text())))  # no shared objects
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    summary = stage_dir("x", "summarize") / "landscape.json"
    plain = {"levels": list(range(12)), "unit": "", "ordered": True, "neutral": 0}
    concepts = [{"name": name, **plain} for name in ("tilt", "fog")]
    write_json(summary, {**read_json(summary), "concepts": concepts})
    monkeypatch.setattr("flows.people.approval.git_user", lambda: "Ada Lovelace")
    return folder


def faded(*arguments: str) -> tuple[int, str]:
    """Run `faded ARGUMENTS...` in this process; return its exit code and output."""
    done = CliRunner().invoke(app, arguments)
    if isinstance(done.exception, FadedError):
        return int(done.exception.exit_code), str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, " ".join(done.output.split())


def keys(audit: str = "x") -> dict[str, str]:
    return dict(listed_keys(load_params(), audit))


def test_without_keys_names_are_typed_and_it_says_so():
    assert faded("reviewers", "list") == (0, "no keys are listed: names of reviewers are not verified")
    code, told = faded("approve", "x", *ALL)
    assert code == 0 and "Ada Lovelace (name typed, not verified)." in told
    assert kept()[0].signature is None and not key_path(key_name("Ada Lovelace")).exists()


def test_a_reviewer_is_added_listed_and_removed(tmp_path):
    before = Path("params.yaml").read_bytes()
    code, told = faded("reviewers", "add", " Ada  Lovelace")
    assert code == 0 and "Ada Lovelace decides on x, other with key" in told and "Commit params.yaml" in told
    assert "x asks 2 reviewers and lists 1 of them: add the others." in told
    assert list(keys()) == list(keys("other")) == ["Ada Lovelace"]
    key = key_path(key_name("Ada Lovelace"))
    assert key.stat().st_mode & 0o777 == 0o600 and str(key) in told and not key.is_relative_to(Path.cwd())
    bob = public_line(Ed25519PrivateKey.generate())
    (tmp_path / "bob.pub").write_text(f"{bob} bob@elsewhere\n")
    code, told = faded("reviewers", "add", "Bob", "--public-key", str(tmp_path / "bob.pub"), "--audit", "x")
    assert code == 0 and key_id_of(bob) in told and list(keys()) == ["Ada Lovelace", "Bob"]
    assert list(keys("other")) == ["Ada Lovelace"] and not key_path(key_name("Bob")).exists()
    code, told = faded("reviewers", "list")
    assert code == 0 and f"Bob: key {key_id_of(bob)}, x {bob}" in told
    assert f"Ada Lovelace: key {key_id_of(keys()['Ada Lovelace'])}, private key here, x, other" in told
    assert faded("reviewers", "remove", "Bob")[0] == 0 and list(keys()) == ["Ada Lovelace"]
    code, told = faded("reviewers", "remove", "Ada Lovelace")
    assert code == 0 and "names of its reviewers are not verified" in told
    assert yaml.safe_load(Path("params.yaml").read_bytes()) == yaml.safe_load(before)
    assert key.exists()  # it may be needed again, and is the user's


def test_what_cannot_be_listed_is_refused_and_changes_nothing():
    faded("reviewers", "add", "Ada Lovelace")
    before = Path("params.yaml").read_bytes()
    for given, message in (
        (["add"], "needs the NAME of a reviewer"),
        (["add", "Bob", "--public-key", "nowhere.pub"], "expected a file or a line `ssh-ed25519 AAAA...`"),
        (["add", "ada lovelace"], "lists a key of 'Ada Lovelace' already"),
        (["add", "Bob", "--public-key", keys()["Ada Lovelace"]], "has the same key as another reviewer"),
        (["add", "nobody"], "cannot be told from 'nobody'"),
        (["remove", "Bob"], "no key of 'Bob' is listed for x, other, found: Ada Lovelace"),
    ):
        code, told = faded("reviewers", *given)
        assert code == 2 and message in told and Path("params.yaml").read_bytes() == before


def test_who_has_the_key_signs_and_nobody_else_decides():
    faded("reviewers", "add", "Ada Lovelace")
    bob = public_line(Ed25519PrivateKey.generate())
    faded("reviewers", "add", "Bob", "--public-key", bob)
    ada = key_id_of(keys()["Ada Lovelace"])
    code, told = faded("approve", "x", *ALL, "--reviewer", "ada lovelace")  # the listed spelling is recorded
    assert code == 0 and f"Ada Lovelace (signed by key {ada})." in told
    assert kept()[0].reviewer == "Ada Lovelace" and kept()[0].signature.key == ada
    code, told = faded("approve", "x", *ALL, "--reviewer", "Bob")
    assert code == 2 and "the private key of 'Bob' is not on this machine" in told
    code, told = faded("approve", "x", *ALL, "--reviewer", "Carol")
    assert code == 2 and "no key of 'Carol' is listed" in told and "faded reviewers add 'Carol'" in told
    code, told = faded("review", "x", "--link", "--reviewer", "Carol")
    assert code == 2 and "no key of 'Carol' is listed" in told
    key_path(key_name("Ada Lovelace")).rename(key_path(key_name("Bob")))
    code, told = faded("reject", "x", "--reason", "no", "--reviewer", "Bob")
    assert code == 2 and f"the key of 'Bob' on this machine is {ada}, params.yaml lists {key_id_of(bob)}" in told
    assert len(kept()) == 1


def test_what_was_typed_before_there_were_keys_no_longer_counts():
    faded("approve", "x", *ALL)
    faded("reviewers", "add", "Ada Lovelace")
    now = standing(load_params(), "x")
    assert now.kept == () and "it is not signed, expected a signature by a listed reviewer" in now.problems[0]
    assert how_to_decide("x").startswith(f"x waits for a decision on its landscape ({now.problems[0]}): `faded review")
    assert faded("approve", "x", *ALL)[0] == 0
    assert [d.signature is not None for d in standing(load_params(), "x").decisions] == [True]


def test_each_reviewer_has_a_link_of_their_own():
    for name in ("Ada Lovelace", "Bob"):
        faded("reviewers", "add", name)
    [someone] = reviewers()
    html = someone.enter()
    assert "needs a link of their own: faded review x --link --reviewer NAME" in html
    answer = someone.send(form_of(html) | {"decision": "approve"})
    assert answer.status_code == 400 and "needs a link of their own" in answer.text and kept() == []

    for name in ("Ada Lovelace", "Bob"):  # in one browser after the other
        someone.client.get(someone.served.link("x", name), follow_redirects=True)
        html = someone.client.get("/review/x").text
        assert untouched(html)["reviewer"] == name and "readonly" in html
        answer = someone.send(form_of(html) | {"decision": "approve", "reviewer": "Ada Lovelace"})
        assert answer.status_code == 200 and f"{name} approved the repair" in answer.text
    assert [(d.reviewer, d.signature.key) for d in kept()] == [(name, key_id_of(line)) for name, line in keys().items()]
    assert standing(load_params(), "x").complete
    assert f"signed (key <code>{key_id_of(keys()['Bob'])}</code>)" in someone.client.get("/review/x").text


def test_the_terminal_asks_for_a_name_until_it_is_one_unless_it_is_known(monkeypatch):
    told = review(monkeypatch, *("ignore", "", "n") * 3, "A\u200bda", "Ada", "", "y", "y")
    assert "cannot have U+200B ZERO WIDTH SPACE" in told and kept()[0].reviewer == "Ada"
    faded("reviewers", "add", "Ada Lovelace")
    answers = ["", "repair", "", "", "seen", "n", "accept", "rare", "n", "", "ignore", "", "n", "for now", "", "y", "y"]
    review(monkeypatch, *answers, reviewer="Ada Lovelace")
    made = kept()[-1]
    assert [(m.action, m.reason) for m in made.modes] == [("repair", "seen"), ("accept", "rare"), ("ignore", "")]
    assert made.approve and made.signature is not None and made.reason == "for now"


BLOCK = """# who is asked
repairs:
  x:
    feedback:   # of x
      policy: wait
      reviewers: 2
    gates: {}   # none
  y: {gpus: 0, feedback: &f {policy: wait}}   # flow
  z: {gpus: 0, feedback: *f}
"""


def test_keys_are_edited_and_no_other_byte():
    one, two = (public_line(Ed25519PrivateKey.generate()) for _ in range(2))
    wanted = {"Ada: L., é": one, "yes": two}
    text = with_keys(BLOCK, {"x": wanted, "y": wanted, "z": wanted})
    repairs = yaml.safe_load(text)["repairs"]
    assert [repairs[audit]["feedback"]["keys"] for audit in "xyz"] == [wanted] * 3
    assert set(BLOCK.splitlines()) - set(text.splitlines()) == {BLOCK.splitlines()[7]}  # the mapping that got the keys
    assert with_keys(text, {"x": {}, "y": {}, "z": {}}) == BLOCK
    less = with_keys(text, {"x": {"yes": two}})
    assert yaml.safe_load(less)["repairs"]["x"]["feedback"]["keys"] == {"yes": two}
    more = yaml.safe_load(with_keys(less, {"x": {"yes": two, "Zoë": one}}))
    assert more["repairs"]["x"]["feedback"]["keys"]["Zoë"] == one
    assert with_keys(BLOCK.replace("\n", "\r\n"), {"x": wanted}).count("\r\n") == BLOCK.count("\n") + 3
    with pytest.raises(UsageError, match=r"other audits that share it; write there:\n  repairs.y.feedback.keys: \{"):
        with_keys(BLOCK, {"y": {"yes": two}})


def test_a_link_of_ones_own_does_not_open_anothers_session():
    [browser] = reviewers()
    browser.client.get(browser.served.link("x", "Ada"), follow_redirects=True)
    hers = untouched(browser.client.get("/review/x").text)
    browser.client.get(browser.served.link("x", "Bob"), follow_redirects=True)
    assert untouched(browser.client.get("/review/x").text)["reviewer"] == "Bob"
    answer = browser.send(form_of(browser.client.get("/review/x").text) | {"csrf": hers["csrf"], "decision": "reject"})
    assert answer.status_code == 403 and kept() == []
    browser.client.get(browser.served.link("x"), follow_redirects=True)  # a link for anybody keeps the open session
    assert untouched(browser.client.get("/review/x").text)["reviewer"] == "Bob"
