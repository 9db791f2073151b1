"""The review page: what it shows and saves, and that it loses and overwrites nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

import flows.request
from flows.people import approval
from flows.people.review.form import FormError, filled, read_decision, read_fields
from flows.people.review.view import how_long
from flows.request import open_request
from flows.results import TIMINGS
from stages.core.files import stage_dir, write_json, write_state
from stages.decisions import landscape_hash, read_chain
from stages.decisions.merge import merge
from stages.params import load_params
from stages.records import Example, ModeRecord
from tests.landscapes import SUSPECTED, landscape_file
from tests.review_samples import URL, Reviewer, change_landscape, form_of, make_review, reviewers, untouched


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_review(tmp_path, monkeypatch)


@pytest.fixture
def ada(place: Path) -> Reviewer:
    return reviewers()[0]


def kept() -> list[Any]:
    return [k.decision for k in read_chain("x")]


def change_params(**feedback: Any) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["repairs"]["x"]["feedback"] = feedback
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def let_it_expire() -> None:
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)
    request = open_request(load_params(), "x").model_copy(update={"expires": long_ago, "asked": long_ago})
    write_state(flows.request._path("x"), request)


def test_nothing_is_chosen_for_the_reviewer(ada: Reviewer) -> None:
    html = ada.enter()
    fields = untouched(html)
    assert " checked" not in html and not [name for name in fields if name.startswith(("action.", "severity."))]
    answer = ada.send(fields | {"decision": "approve"})
    assert answer.status_code == 400 and kept() == []
    for said in ("M1: nothing was chosen", "M2: nothing was chosen", "M3: nothing was chosen"):
        assert said in answer.text
    silent = fields | {"action.M1": "accept", "action.M2": "repair", "reason.M1": " ", "decision": "approve"}
    silent["action.M3"] = "ignore"  # needs no reason
    answer = ada.send(silent)
    assert answer.status_code == 400 and "M1: a reason is required to accept it" in answer.text and kept() == []
    assert "M2: a reason is required to repair it" in answer.text and "M3:" not in answer.text
    assert ada.send(fields | {"decision": "reject"}).status_code == 200 and kept()[0].modes == []


def test_the_form_of_a_mode_is_whole(ada: Reviewer) -> None:
    fields = untouched(ada.enter())
    assert fields["reviewer"] == "Ada Lovelace"
    assert "rating.M1.1" in fields and "bias.M3.12" not in fields, "a task without tallies has no bias to speak of"
    assert "revise" not in fields and "decision" not in fields


def test_every_number_of_a_mode_is_shown(ada: Reviewer) -> None:
    html = ada.enter()
    card = html.split('id="mode-1"')[1].split('id="mode-2"')[0]
    for said in ("typos &gt;= 15%", "55.0%", "45.0–65.0%", "110 / 200", "10.0%"):
        assert said in card, said
    assert "3 failure modes stand out." in html
    assert card.count("data:image/png") == 24 and "The model fails on 25.4% of the grid" in html
    assert '<a href="/review/x/landscape"' in html and "/review/x/repair" not in html


def test_what_is_saved_is_what_was_filled_in(ada: Reviewer) -> None:
    fields = form_of(ada.enter())
    told = {
        "action.M1": "accept", "severity.M2": "high", "reason.M2": " seen in\r\nthe field ", "rating.M2.1": "3",
        "bias.M2.1": "10", "unreadable.M1.4": "yes", "action.M3": "ignore", "reason.M3": "",
        "bias.M3.9": "1", "reviewer": "  Ada  Lovelace ", "reason": "for the release",
    }  # fmt: skip
    answer = ada.send(fields | told | {"decision": "approve"})
    assert answer.status_code == 200 and "Ada Lovelace approved the repair of x." in answer.text
    [made] = kept()
    assert (made.reviewer, made.reason, made.approve, made.via) == ("Ada Lovelace", "for the release", True, "page")
    assert [(m.id, m.action, m.severity, m.reason) for m in made.modes] == [
        ("M1", "accept", 1.0, "seen"),
        ("M2", "repair", 2.0, "seen in\nthe field"),
        ("M3", "ignore", 1.0, ""),
    ]
    assert [(e.id, e.rating, e.bias, e.corrected) for e in made.examples] == [
        ("M1.4", None, None, None),
        ("M2.1", 3, 10, None),
        ("M3.9", None, 1, None),
    ]
    assert [e.id for e in made.examples if e.unreadable] == ["M1.4"] and merge([made], []).examples[0].id == "M2.1"
    [outcome] = ada.told
    assert outcome.path == Path(f"data/x/decisions/{landscape_hash('x')}.yaml") and outcome.path.exists()
    assert str(outcome.path) in answer.text and "`faded audit x` continues from here" in answer.text


def test_a_decision_says_what_went_on(ada: Reviewer, monkeypatch: pytest.MonkeyPatch) -> None:
    woken = []
    monkeypatch.setattr(approval, "wake", lambda _params, audit: woken.append(audit) or ["flow run 7 goes on"])
    answer = ada.send(form_of(ada.enter()) | {"decision": "approve"})
    assert woken == ["x"] and "Flow run 7 goes on." in answer.text and "`faded audit x`" not in answer.text


def test_corrections_are_asked_for_where_the_repair_learns_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_review(tmp_path, monkeypatch, "texts")
    [ada] = reviewers()
    html = ada.enter()
    assert "corrected.M1.1" in form_of(html) and "What should M1.1 have been?" in html
    assert "<del>South</del> <ins>Suoth</ins>" in html and "summary of the changed text" in html
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["repairs"]["x"]["restructure"]["method"] = "other"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert "corrected.M1.1" not in form_of(ada.enter())


def test_prompts_and_drawn_pictures_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_review(tmp_path, monkeypatch, "pictures")
    html = reviewers()[0].enter()
    assert html.count("data:image/png") == 36 and '<mark class="s0" title="colour">red</mark>' in html
    assert "corrected." not in html


def test_a_stale_page_is_refused_and_what_was_typed_is_kept(ada: Reviewer) -> None:
    fields = form_of(ada.enter()) | {"decision": "approve", "reason.M2": "thought about it", "rating.M1.3": "4"}
    change_landscape()
    answer = ada.send(fields)
    assert answer.status_code == 409 and "The landscape has changed" in answer.text
    for said in ("M2 reason", "thought about it", "M1.3 quality", "Ada Lovelace", "/review/x"):
        assert said in answer.text
    assert kept() == [] and ada.told == []
    assert fields["csrf"] not in answer.text


def test_two_reviewers_at_once_do_not_overwrite_each_other(place: Path) -> None:
    ada, grace = reviewers(2)
    hers = form_of(grace.enter()) | {"reviewer": "Grace Hopper", "reason.M1": "mine", "rating.M1.2": "7"}
    assert ada.send(form_of(ada.enter()) | {"decision": "approve"}).status_code == 200
    answer = grace.send(hers | {"decision": "reject"})
    assert answer.status_code == 409
    assert "Somebody else decided meanwhile: Ada Lovelace approved this on" in answer.text
    again = form_of(answer.text)
    assert (again["reviewer"], again["reason.M1"], again["rating.M1.2"]) == ("Grace Hopper", "mine", "7")
    assert len(kept()) == 1
    assert grace.send(again | {"decision": "reject"}).status_code == 409  # still refused without the tick
    assert grace.send(again | {"decision": "reject", "revise": "yes"}).status_code == 200
    first, second = kept()
    assert (first.reviewer, second.reviewer, second.approve) == ("Ada Lovelace", "Grace Hopper", False)
    assert len(second.revises) == 1 and second.modes[0].reason == "mine"
    assert [outcome.reviewer for outcome in ada.told] == ["Ada Lovelace", "Grace Hopper"]


def test_a_name_may_have_a_comma(place: Path) -> None:
    ada, grace = reviewers(2)
    fields = form_of(grace.enter()) | {"decision": "approve", "reviewer": "Grace"}
    ada.send(form_of(ada.enter()) | {"decision": "reject", "reviewer": "Lovelace, Ada"})
    assert "meanwhile: Lovelace, Ada rejected this on" in grace.send(fields).text


def test_a_revision_takes_the_place_of_what_its_reviewer_saw_alone(place: Path) -> None:
    bob, cy = reviewers(2)
    late = form_of(bob.enter()) | {"decision": "reject", "reviewer": "Bob", "reason": "mine"}
    cy.send(form_of(cy.enter()) | {"decision": "approve", "reviewer": "Ada"})
    offered = form_of(bob.send(late).text) | {"decision": "reject", "revise": "yes"}
    assert cy.send(form_of(cy.revise()) | {"decision": "approve", "reviewer": "Cy", "revise": "yes"}).status_code == 200
    for unseen in (offered, {name: value for name, value in offered.items() if name != "seen"}):
        answer = bob.send(unseen)
        assert answer.status_code == 409 and "meanwhile: Cy approved this on" in answer.text
        assert len(kept()) == 2
    again = form_of(answer.text) | {"decision": "reject", "revise": "yes"}
    assert again["reason"] == "mine" and bob.send(again).status_code == 200
    chain = read_chain("x")
    assert [(k.decision.reviewer, k.decision.revises) for k in chain] == [
        ("Ada", []), ("Cy", [chain[0].sha256]), ("Bob", [chain[1].sha256]),
    ]  # fmt: skip


def test_nobody_starts_from_anothers_words(place: Path) -> None:
    bob, ada = reviewers(2)
    said = {"reviewer": "Bob", "reason": "for Bob", "action.M1": "ignore", "reason.M1": "why not"}
    bob.send(form_of(bob.enter()) | said | {"decision": "approve"})
    html = ada.revise()
    fields = untouched(html)
    assert (fields["reviewer"], fields["reason"], fields["reason.M1"]) == ("Ada Lovelace", "", "")
    assert "action.M1" not in fields
    assert "replaces Bob’s" in html and "why not" in html
    own = form_of(bob.revise())  # in the browser where it was made
    assert (own["reviewer"], own["reason"], own["action.M1"]) == ("Bob", "for Bob", "ignore")


def test_after_a_time_out_the_form_is_nobodys(ada: Reviewer) -> None:
    change_params(policy="wait", timeout_hours=2)
    let_it_expire()
    assert "Rejected</strong>" in ada.enter()
    html = ada.revise()
    assert "replaces the rejection by time-out" in html
    fields = form_of(html)
    assert (fields["reviewer"], fields["reason"]) == ("Ada Lovelace", "")
    assert ada.send(fields | {"decision": "approve", "revise": "yes"}).status_code == 200
    assert [(d.reviewer, d.via) for d in kept()] == [("nobody", "time-out"), ("Ada Lovelace", "page")]


def test_of_many_at_the_same_moment_one_is_recorded(place: Path) -> None:
    many = reviewers(6)
    forms = [form_of(r.enter()) | {"decision": "approve", "reviewer": f"R{n}"} for n, r in enumerate(many)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda pair: pair[0].send(pair[1]).status_code, zip(many, forms, strict=True)))
    assert sorted(answers) == [200] + [409] * 5
    [made] = kept()
    assert answers[int(made.reviewer[1:])] == 200


def test_two_reviewers_are_both_recorded_if_two_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_review(tmp_path, monkeypatch, reviewers=2)
    ada, grace = reviewers(2)
    html = grace.enter()
    assert "2 reviewers are needed, 2 more have to decide" in html and "the action that most reviewers named" in html
    assert "It starts when 1 more reviewer has approved" in html
    answer = ada.send(form_of(ada.enter()) | {"decision": "approve", "reason.M1": "only Ada says so"})
    assert "x needs 1 more reviewer" in answer.text
    seen = grace.enter()
    assert "Ada Lovelace</strong> approved" in seen and "1 more has to decide" in seen
    assert "only Ada says so" not in seen  # the next reviewer is not influenced
    html = grace.revise()
    assert "only Ada says so" not in html and untouched(html)["reason.M1"] == ""
    twice = form_of(html) | {"decision": "approve"}  # under Ada's name, from git
    answer = grace.send(twice | {"revise": "yes", "seen": ""})
    assert answer.status_code == 409 and "only Ada says so" not in answer.text
    answer = grace.send(twice)
    assert answer.status_code == 409 and "You approved this on" in answer.text and "only Ada" not in answer.text
    assert form_of(ada.revise())["reason.M1"] == "only Ada says so"  # her own, in her browser
    assert ada.send(form_of(ada.enter()) | {"decision": "approve"}).status_code == 409  # not twice by one person
    assert grace.send(form_of(seen) | {"reviewer": "Grace", "decision": "approve"}).status_code == 200
    assert [(d.reviewer, len(d.previous), d.revises) for d in kept()] == [("Ada Lovelace", 0, []), ("Grace", 1, [])]


def test_a_decided_landscape_asks_nothing_more(ada: Reviewer) -> None:
    ada.send(form_of(ada.enter()) | {"decision": "approve", "reason.M1": "seen in the field", "severity.M1": "high"})
    html = ada.enter()
    assert "on the review page" in html
    assert "<form" not in html and "No further decision is needed" in html and "seen in the field" in html
    again = ada.client.get("/review/x?again=yes").text
    assert "replaces Ada Lovelace’s; what it replaces stays in the record" in again
    fields = form_of(again)
    assert (fields["reason.M1"], fields["severity.M1"]) == ("seen in the field", "high")
    assert "revise" not in fields  # the tick is the reviewer's
    refused = ada.send(fields | {"decision": "reject"})
    assert refused.status_code == 409 and len(kept()) == 1
    assert ada.send(fields | {"decision": "reject", "revise": "yes"}).status_code == 200
    assert [d.approve for d in kept()] == [True, False]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"reviewer": "  "}, "Your name is missing"),
        ({"reviewer": None}, "Your name is missing"),
        ({"reviewer": "a" * 201}, "name has 201 characters"),
        ({"decision": None}, "Neither Approve nor Reject"),
        ({"decision": "maybe"}, "Neither Approve nor Reject"),
        ({"action.M2": None}, "M2: nothing was chosen, expected repair, accept or ignore"),
        ({"action.M2": "delete"}, "M2: &#39;delete&#39; was sent"),
        ({"severity.M1": "2.0"}, "M1: severity &#39;2.0&#39; was sent, expected low, medium, high"),
        ({"rating.M1.1": "11"}, "M1.1: quality &#39;11&#39; was sent, expected 1 to 10"),
        ({"rating.M1.1": "３"}, "M1.1: quality"),
        ({"bias.M1.1": "-1"}, "M1.1: bias &#39;-1&#39; was sent"),
        ({"bias.M1.1": "5.5"}, "M1.1: bias"),
    ],
)
def test_a_form_with_odd_fields_says_so_and_keeps_the_rest(
    ada: Reviewer, changed: dict[str, str | None], said: str
) -> None:
    fields = form_of(ada.enter()) | {"decision": "approve", "reason.M1": "kept this"} | changed
    answer = ada.send({name: value for name, value in fields.items() if value is not None})
    assert answer.status_code == 400 and said in answer.text and "Nothing was saved" in answer.text
    assert form_of(answer.text)["reason.M1"] == "kept this"
    assert kept() == [] and ada.told == []


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"a", b"a=%ff", b"a=1&a=2", b"{}", b"--x\r\n", b"=".join([b"&"] * 30_000)]
)
def test_what_is_no_form_is_refused(ada: Reviewer, body: bytes) -> None:
    ada.enter()
    headers = {"Origin": URL, "Content-Type": "application/x-www-form-urlencoded"}
    answer = ada.client.post("/review/x", content=body, headers=headers)
    assert answer.status_code in (400, 403)
    assert kept() == []


FOUND = ModeRecord.model_construct(id="M1", examples=[Example.model_construct(id="M1.1")])


def test_all_problems_are_told_at_once() -> None:
    modes = [FOUND]
    with pytest.raises(FormError) as error:
        read_decision({"rating.M1.1": "x", "landscape": "0" * 16, "decision": "approve"}, modes)
    assert len(error.value.problems) == 3
    with pytest.raises(FormError, match="landscape"):
        read_decision({"reviewer": "Ada", "action.M1": "ignore", "decision": "approve", "landscape": "?"}, modes)


def test_a_decision_fills_in_the_form_it_came_from() -> None:
    modes = [FOUND, ModeRecord.model_construct(id="M2", examples=[])]
    fields = {"reviewer": "Ada", "action.M1": "repair", "reason.M1": "seen", "severity.M1": "low"}
    fields |= {"action.M2": "ignore", "decision": "approve", "landscape": "0" * 16}
    fields |= {"corrected.M1.1": "better", "rating.M1.1": "2", "reason": "a\nb", "reason.M2": "c"}
    decision = read_decision(fields, modes)
    assert read_decision(filled(decision) | {"decision": "approve", "landscape": "0" * 16}, modes) == decision
    assert read_fields(b"a=1%0D%0A2&b=") == {"a": "1\n2", "b": ""}


def test_a_rule_that_decides_is_said(ada: Reviewer) -> None:
    change_params(policy="top-k", modes=1)
    html = ada.enter()
    assert "A rule decides for this audit" in html
    assert "set it to wait, or this is ignored" in ada.send(form_of(html) | {"decision": "approve"}).text


def test_the_deadline_is_shown_and_kept(ada: Reviewer) -> None:
    change_params(policy="wait", timeout_hours=2)
    request = open_request(load_params(), "x")
    assert f'Decide by <time datetime="{request.expires.isoformat()}"' in ada.enter()
    fields = form_of(ada.enter())
    let_it_expire()
    answer = ada.send(fields | {"decision": "approve", "reason.M1": "too late"})
    assert answer.status_code == 409 and "Time ran out, which is recorded as a rejection." in answer.text
    assert form_of(answer.text)["reason.M1"] == "too late"
    assert [d.via for d in kept()] == ["time-out"]
    assert "<form" not in ada.enter()


def test_how_long_it_takes_is_what_the_last_run_took(place: Path) -> None:
    assert "never ran here" in how_long(load_params(), "x")
    Path(".faded").mkdir(exist_ok=True)
    took = {"discover": 900, "restructure": 20, "re_evaluate": 75, "compare": 3, "conclude": 2}
    write_state(TIMINGS, {f"{kind}@x": {"seconds": seconds} for kind, seconds in took.items()})
    assert how_long(load_params(), "x") == "about 1 min 40 s (from the last run here)"


def test_a_landscape_without_modes_or_examples_can_be_decided_on(ada: Reviewer) -> None:
    (stage_dir("x", "summarize") / "exhibits.parquet").unlink()
    html = ada.enter()
    assert "No examples can be shown" in html and "rating.M1.1" not in form_of(html)
    path = stage_dir("x", "summarize") / "landscape.json"
    write_json(path, landscape_file([]))
    html = ada.enter()
    assert "No region stands out" in html
    assert ada.send(form_of(html) | {"decision": "approve"}).status_code == 200


def test_an_audit_without_a_landscape_says_so(ada: Reviewer) -> None:
    html = ada.enter()
    (stage_dir("x", "summarize") / "landscape.json").unlink()
    for answer in (ada.client.get("/review/x"), ada.send(form_of(html) | {"decision": "approve"})):
        assert answer.status_code == 409 and "there is no landscape to decide on yet" in answer.text


def test_what_is_only_suspected_cannot_be_decided_on(ada: Reviewer) -> None:
    html = ada.enter()
    assert SUSPECTED["text"] not in html and 'data-mode="M3"' in html and 'data-mode="S1"' not in html
    fields = form_of(html) | {"action.S1": "repair", "reason.S1": "seen", "decision": "approve"}
    assert ada.send(fields).status_code == 200
    assert [mode.id for mode in kept()[0].modes] == ["M1", "M2", "M3"]


def test_a_file_that_cannot_be_written_loses_nothing(ada: Reviewer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flows.people.review.app.record", full)
    answer = ada.send(form_of(ada.enter()) | {"decision": "approve", "reason.M1": "kept this"})
    assert answer.status_code == 503 and "No space left" in answer.text and "kept this" in answer.text
    assert "Nothing was saved" not in answer.text and "The page says whether your decision was recorded" in answer.text


def test_what_fails_after_it_is_recorded_does_not_make_it_unsaved(
    ada: Reviewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    fields = form_of(ada.enter()) | {"decision": "approve"}
    open_request(load_params(), "x")
    monkeypatch.setattr(approval, "close_request", full)
    answer = ada.send(fields)
    assert answer.status_code == 200 and "Recorded" in answer.text and "No space left" in answer.text
    assert len(kept()) == len(ada.told) == 1
