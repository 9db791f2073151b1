"""The review page: what it shows and saves, and that it loses and overwrites nothing."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import flows.request
from flows.people import approval
from flows.request import open_request
from stages.core.files import write_state
from stages.decisions import landscape_hash, read_chain
from stages.decisions.merge import merge_decisions
from stages.params import load_params
from tests.landscapes import SUSPECTED
from tests.review_samples import change_landscape, change_params, form_of, kept, make_review, reviewers, untouched
from tests.workspace import ROOT


def let_it_expire() -> None:
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)
    request = open_request(load_params(), "x").model_copy(update={"expires": long_ago, "asked": long_ago})
    write_state(flows.request._path("x"), request)


def test_nothing_is_chosen_for_the_reviewer(ada):
    html = ada.enter()
    fields = untouched(html)
    assert " checked" not in html and not [name for name in fields if name.startswith(("action.", "severity."))]
    assert not {"revise", "decision", "bias.M3.12"} & set(fields)  # a task without tallies has no bias to rate
    assert (fields["reviewer"], fields["rating.M1.1"]) == ("Ada Lovelace", "")
    silent = fields | {"action.M1": "accept", "action.M2": "repair", "reason.M1": " ", "action.M3": "ignore"}
    for given, problem in (
        (fields, "M1, M2, M3: nothing was chosen, expected repair, accept or ignore."),
        (silent, "M1, M2: a reason is required to repair or accept a mode"),
    ):
        answer = ada.send(given | {"decision": "approve"})
        assert answer.status_code == 400 and problem in answer.text and kept() == []
    assert ada.send(fields | {"decision": "reject"}).status_code == 200 and kept()[0].modes == []


def test_what_is_saved_is_what_was_filled_in(ada):
    entries = {
        "action.M1": "accept", "severity.M2": "high", "reason.M2": " seen in\r\nthe field ", "rating.M2.1": "3",
        "bias.M2.1": "10", "unreadable.M1.4": "yes", "action.M3": "ignore", "reason.M3": "",
        "bias.M3.9": "1", "reviewer": "  Ada  Lovelace ", "reason": "for the release",
        "action.S1": "repair", "reason.S1": "seen",  # what is only suspected cannot be decided on
    }  # fmt: skip
    html = ada.enter()
    assert SUSPECTED["text"] not in html and 'data-mode="S1"' not in html
    answer = ada.send(form_of(html) | entries | {"decision": "approve"})
    assert answer.status_code == 200 and "Ada Lovelace approved the repair of x." in answer.text
    [made] = kept()
    assert (made.reviewer, made.reason, made.approve, made.via) == ("Ada Lovelace", "for the release", True, "page")
    first, *modes = [(m.id, m.action, m.severity, m.reason) for m in made.modes]
    assert first == ("M1", "accept", 1.0, "seen")
    assert modes == [("M2", "repair", 2.0, "seen in\nthe field"), ("M3", "ignore", 1.0, "")]
    first, *rated = [(e.id, e.rating, e.bias, e.corrected, e.unreadable) for e in made.examples]
    assert first == ("M1.4", None, None, None, True)
    assert rated == [("M2.1", 3, 10, None, None), ("M3.9", None, 1, None, None)]
    assert merge_decisions([made], []).examples[0].id == "M2.1"
    assert len(ada.reported) == 1
    path = Path(f"data/x/decisions/{landscape_hash('x')}.yaml")
    assert path.exists() and str(path) in answer.text and "`faded audit x` continues from here" in answer.text


@pytest.mark.slow
def test_pages_and_decisions_import_nothing_that_takes_a_servers_memory_for_weeks(ada):
    script = """
import re, sys
from fastapi.testclient import TestClient
from flows.people.review.app import make_app
from flows.people.review.links import Served
from flows.server.security import EVERY

served = Served(["x"], "", "faded.localhost", "http://faded.localhost:8711", "faded")
client = TestClient(make_app(served), base_url=served.url)
assert "/review/x" in client.get(served.link(EVERY)).text
answer = client.get(served.link("x"))
assert answer.status_code == 200, answer.text
html = answer.text
fields = dict(re.findall(r'name="(csrf|landscape)" value="(.*?)"', html))
fields |= {"reviewer": "Ada", "reason": "no", "decision": "reject"}
answer = client.post("/review/x", data=fields, headers={"Origin": served.url})
assert answer.status_code == 200, answer.text
heavy = {"pandas", "pyarrow", "scipy", "PIL", "torch", "dvc"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert [made.reason for made in kept()] == ["no"]


def test_a_stale_page_is_refused_and_what_was_typed_is_kept(ada):
    fields = form_of(ada.enter()) | {"decision": "approve", "reason.M2": "thought about it", "rating.M1.3": "4"}
    change_landscape()
    answer = ada.send(fields)
    assert answer.status_code == 409 and "The landscape has changed" in answer.text
    for text in ("M2 reason", "thought about it", "M1.3 quality", "Ada Lovelace", "/review/x"):
        assert text in answer.text
    assert kept() == ada.reported == [] and fields["csrf"] not in answer.text


def test_a_revision_replaces_what_its_reviewer_saw_alone(place):
    bob, cy = reviewers(2)
    late = form_of(bob.enter()) | {"decision": "reject", "reviewer": "Bob", "reason": "mine", "rating.M1.2": "7"}
    cy.send(form_of(cy.enter()) | {"decision": "approve", "reviewer": "Lovelace, Ada"})
    answer = bob.send(late)
    assert answer.status_code == 409 and "meanwhile: Lovelace, Ada approved this on" in answer.text
    offered = form_of(answer.text) | {"decision": "reject"}
    assert (offered["reviewer"], offered["reason"], offered["rating.M1.2"]) == ("Bob", "mine", "7")
    assert bob.send(offered).status_code == 409  # still refused without the tick
    assert cy.send(form_of(cy.revise()) | {"decision": "approve", "reviewer": "Cy", "revise": "yes"}).status_code == 200
    for unseen in (offered, {name: value for name, value in offered.items() if name != "seen"}):
        answer = bob.send(unseen | {"revise": "yes"})
        assert answer.status_code == 409 and "meanwhile: Cy approved this on" in answer.text
        assert len(kept()) == 2
    assert bob.send(form_of(answer.text) | {"decision": "reject", "revise": "yes"}).status_code == 200
    chain = read_chain("x")
    assert [k.decision.reviewer for k in chain] == ["Lovelace, Ada", "Cy", "Bob"]
    assert [k.decision.revises for k in chain] == [[], [chain[0].sha256], [chain[1].sha256]]
    assert [outcome.reviewer for outcome in bob.reported] == ["Lovelace, Ada", "Cy", "Bob"]


def test_two_reviewers_are_both_recorded_if_two_are_asked(tmp_path, monkeypatch):
    make_review(tmp_path, monkeypatch, reviewers=2)
    ada, grace = reviewers(2)
    html = grace.enter()
    assert "2 reviewers are needed, 2 more have to decide" in html and "the action that most reviewers named" in html
    assert "It starts when 1 more reviewer has approved" in html
    answer = ada.send(form_of(ada.enter()) | {"decision": "approve", "reason.M1": "only Ada says so"})
    assert "x needs 1 more reviewer" in answer.text
    seen, html = grace.enter(), grace.revise()
    assert "Ada Lovelace</strong> approved" in seen and "1 more has to decide" in seen
    assert "only Ada says so" not in seen + html and untouched(html)["reason.M1"] == ""  # nobody is influenced
    twice = form_of(html) | {"decision": "approve"}  # under Ada's name, from git
    for more in ({"revise": "yes", "seen": ""}, {}):
        answer = grace.send(twice | more)
        assert answer.status_code == 409 and "only Ada says so" not in answer.text
    assert "You approved this on" in answer.text
    assert form_of(ada.revise())["reason.M1"] == "only Ada says so"  # her own, in her browser
    assert ada.send(form_of(ada.enter()) | {"decision": "approve"}).status_code == 409  # not twice by one person
    assert grace.send(form_of(seen) | {"reviewer": "Grace", "decision": "approve"}).status_code == 200
    assert [(d.reviewer, len(d.previous), d.revises) for d in kept()] == [("Ada Lovelace", 0, []), ("Grace", 1, [])]


def test_a_decided_landscape_asks_nothing_more(ada):
    ada.send(form_of(ada.enter()) | {"decision": "approve", "reason.M1": "seen in the field", "severity.M1": "high"})
    html = ada.enter()
    assert "on the review page" in html
    assert "<form" not in html and "No further decision is needed" in html and "seen in the field" in html
    again = ada.client.get("/review/x?again=yes").text
    assert "replaces Ada Lovelace’s; what it replaces stays in the record" in again
    fields = form_of(again)
    assert (fields["reason.M1"], fields["severity.M1"]) == ("seen in the field", "high")
    assert "revise" not in fields and 'name="revise" value="yes" required' in again  # the tick is the reviewer's
    assert ada.send(fields | {"decision": "reject", "revise": "yes"}).status_code == 200
    assert [d.approve for d in kept()] == [True, False]


def test_a_form_with_odd_fields_says_so_and_keeps_the_rest(ada):
    fields = form_of(ada.enter()) | {"decision": "approve", "reason.M1": "kept this"}
    for changed, problem in (
        ({"reviewer": "  "}, "A decision needs the reviewer&#39;s name, found none."),
        ({"reviewer": "a" * 201}, "name has 201 characters"),
        ({"decision": "maybe"}, "Neither approve nor reject was chosen."),
        ({"action.M2": "delete"}, "odes.1.action: Input should be &#39;repair&#39;, &#39;accept&#39; or &#39;ignore"),
        ({"rating.M1.1": "11"}, "xamples.0.rating: Input should be a valid integer, found &#39;11&#39;"),
        ({"bias.M1.1": "-1"}, "xamples.0.bias"),
    ):
        answer = ada.send(fields | changed)
        assert answer.status_code == 400 and problem in answer.text and "Nothing was saved" in answer.text
        assert 'id="problems" autofocus' in answer.text  # where the reviewer looks
        assert form_of(answer.text)["reason.M1"] == "kept this"
        assert kept() == ada.reported == []


def test_after_the_deadline_the_form_is_nobodys(ada):
    change_params(policy="wait", timeout_hours=2)
    request = open_request(load_params(), "x")
    html = ada.enter()
    assert f'Decide by <time datetime="{request.expires.isoformat()}"' in html
    let_it_expire()
    answer = ada.send(form_of(html) | {"decision": "approve", "reason.M1": "too late"})
    assert answer.status_code == 409 and "Time ran out, which is recorded as a rejection." in answer.text
    assert form_of(answer.text)["reason.M1"] == "too late"
    html = ada.enter()
    assert "Rejected</strong>" in html and "<form" not in html
    html = ada.revise()
    fields = form_of(html)
    assert "replaces the rejection by time-out" in html
    assert (fields["reviewer"], fields["reason"]) == ("Ada Lovelace", "")
    assert ada.send(fields | {"decision": "approve", "revise": "yes"}).status_code == 200
    assert [(d.reviewer, d.via) for d in kept()] == [("nobody", "time-out"), ("Ada Lovelace", "page")]


def full(*_args: object, **_kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_that_cannot_be_written_loses_nothing(ada, monkeypatch):
    monkeypatch.setattr("flows.people.review.app.decide", full)
    answer = ada.send(form_of(ada.enter()) | {"decision": "approve", "reason.M1": "kept this"})
    assert answer.status_code == 503 and "No space left" in answer.text and "kept this" in answer.text
    assert "Nothing was saved" not in answer.text and "The page says whether your decision was recorded" in answer.text


def test_what_comes_after_it_is_recorded_is_shown_and_cannot_make_it_unsaved(ada, monkeypatch):
    fields = form_of(ada.enter()) | {"decision": "approve"}
    open_request(load_params(), "x")
    monkeypatch.setattr(approval, "close_request", full)
    answer = ada.send(fields)
    assert answer.status_code == 200 and "Recorded" in answer.text and "No space left" in answer.text
    assert len(kept()) == len(ada.reported) == 1
    monkeypatch.setattr(approval, "wake", lambda *_: ["flow run 7 goes on"])
    answer = ada.send(form_of(ada.revise()) | {"decision": "approve", "revise": "yes"})
    assert "Flow run 7 goes on." in answer.text and "`faded audit x`" not in answer.text
