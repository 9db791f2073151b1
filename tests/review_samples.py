"""Workspaces with a landscape to review, without running an audit: digits, texts, or pictures drawn by a model."""

import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import yaml
from fastapi.testclient import TestClient
from rich.console import Console

from flows.people.approval import DecisionOutcome
from flows.people.review.app import make_app
from flows.people.review.links import Served, report_path
from flows.people.review.terminal import review_landscape
from stages.core.files import stage_dir, write_json
from stages.decisions import RecordedDecision, read_chain
from stages.params import load_params
from stages.records.tables import ShownExample, write_exhibits
from stages.tasks.contract import Exhibit
from tests.landscapes import SUSPECTED, landscape_file
from tests.picture_samples import exhibit as drawn
from tests.report_samples import HOSTILE, picture, shelf
from tests.text_samples import text_exhibits
from tests.workspace import audit_params, call, repair_params

HOST = f"faded-{32 * '0'}.localhost"  # host of the pages
URL = f"http://{HOST}:8711"
TASK = """
from tests.planted import PlantedTask


class Learner(PlantedTask):
    learns_from_examples = ("planted",)
"""
REPORT = """<!doctype html>
<meta http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;; style-src 'unsafe-inline'">
<title>report</title><p>the whole landscape</p>"""
CONCEPTS = [
    {"name": name, "levels": [0, 1, 2, 3], "unit": "", "ordered": True, "neutral": 0} for name in ("tilt", "fog")
]
TEXTS = ("typos >= 15%", "letter case = upper and nouns dropped >= 50%", "nouns dropped = 100%")


def exhibits(kind: str, hostile: bool = False) -> list[Exhibit]:
    """Twelve examples: "digits", "texts" or "pictures"."""
    said = HOSTILE if hostile else "label 3, predicted 8 (71%)"
    if kind == "texts":
        return text_exhibits(hostile)
    if kind == "pictures":
        return [drawn(k, said) for k in range(12)]
    return [Exhibit(said, image=picture(k)) for k in range(12)]


def make_review(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "digits", *, hostile: bool = False, **feedback: Any
) -> Path:
    """Make `path` the current workspace, with an audit "x" of three modes and a suspected region."""
    (path / "review_task.py").write_text(TASK)
    monkeypatch.chdir(path)
    monkeypatch.syspath_prepend(path)
    monkeypatch.delitem(sys.modules, "review_task", raising=False)
    monkeypatch.setattr("flows.people.review.view.git_user", lambda: "Ada Lovelace")
    for module in ("app", "view"):
        monkeypatch.setattr(f"flows.people.review.{module}.aside", call)
    audit = audit_params(task="review_task:Learner")
    repair = repair_params(feedback={"policy": "wait", **feedback})
    params = {"audits": {"x": audit, "other": audit}, "repairs": {"x": repair, "other": repair}}
    (path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (path / "dvc.yaml").write_text("stages: {}\n")
    folder = stage_dir("x", "summarize")
    folder.mkdir(parents=True)
    pd.DataFrame({"tilt": [0]}).to_parquet(folder / "landscape.parquet")
    shown = exhibits(kind, hostile)
    galleries, modes = {}, []
    for n, text in enumerate(TEXTS, 1):
        ids = [f"M{n}.{k}" for k in range(1, len(shown) + 1)]
        captions = [f"{i} - {e.caption.partition(' - ')[2] or e.caption}" for i, e in zip(ids, shown, strict=True)]
        named = [replace(e, caption=caption) for e, caption in zip(shown, captions, strict=True)]
        galleries[f"M{n}"] = shelf(f"M{n}", named[:7], named[7:])
        same = {"item": "discover-0001", "output": "said"}
        examples = [
            {**same, "id": i, "cell": [n, k % 4], "failed": k < 7, "discrepancy": 0.1 * k} for k, i in enumerate(ids)
        ]
        rate = 0.7 - 0.15 * n
        numbers = {"rate": rate, "low": rate - 0.1, "high": rate + 0.1, "probes": 200, "failures": round(200 * rate)}
        numbers |= {"lift": 2.0, "share": 0.1}
        named_ = {"id": f"M{n}", "text": HOSTILE if hostile else text, "region": {"tilt": [n]}}
        modes.append({**named_, **numbers, "examples": examples})
    write_exhibits(folder / "exhibits.parquet", galleries)
    overall = {"value": 0.254, "low": 0.241, "high": 0.268, "n": 2000}
    unchanged = [ShownExample("discover-0001", False, shown[0])]
    write_exhibits(folder / "extremes.parquet", {"unchanged": unchanged})
    known = landscape_file(modes, overall=overall, suspected=[SUSPECTED], concepts=CONCEPTS)
    write_json(folder / "landscape.json", known)
    page = report_path("x", "landscape")
    page.parent.mkdir()
    page.write_text(REPORT)
    return path


def kept(audit: str = "x") -> list[RecordedDecision]:
    """The decisions on an audit."""
    return [k.decision for k in read_chain(audit)]


def change_params(**feedback: Any) -> None:
    """Change the feedback settings of the audit."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["repairs"]["x"]["feedback"] = feedback
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def also_review(audit: str = "other") -> None:
    """Give another audit the same landscape."""
    shutil.copytree(stage_dir("x", "summarize"), stage_dir(audit, "summarize"))


def change_landscape() -> None:
    """Change the audit's landscape."""
    pd.DataFrame({"tilt": [1]}).to_parquet(stage_dir("x", "summarize") / "landscape.parquet")


class _Form(HTMLParser):
    """The fields of a page's form with the values a browser would send."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self._name, self._text, self._chosen = "", "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if tag == "input" and (given.get("type") not in ("radio", "checkbox") or "checked" in given):
            self.fields[given["name"]] = given.get("value", "")
        elif tag in ("select", "textarea") and "name" in given:
            self._name, self._text = given["name"], ""
            self.fields[self._name] = ""
        elif tag == "option":
            self._text, self._chosen = "", "selected" in given

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self.fields[self._name] = self._text
        elif tag == "option" and self._chosen:
            self.fields[self._name], self._chosen = self._text, False


class Loopback(httpx.HTTPTransport):
    """Connects to this machine for every host, as browsers do for names under localhost, unlike some resolvers."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to this machine, with its original Host."""
        url = request.url.copy_with(host="127.0.0.1")
        return super().handle_request(
            httpx.Request(request.method, url, headers=request.headers, stream=request.stream)
        )


def untouched(html: str) -> dict[str, str]:
    """The fields that a browser would send if a page's form were submitted unchanged, without the button."""
    parser = _Form()
    parser.feed(html)
    return parser.fields


def form_of(html: str) -> dict[str, str]:
    """The same, with `repair` and a reason for every mode that has no choice yet."""
    fields = untouched(html)
    for card in html.split(' data-mode="')[1:]:
        name = card.partition('"')[0]
        if f"reason.{name}" in fields:
            fields.setdefault(f"action.{name}", "repair")
            fields[f"reason.{name}"] = fields[f"reason.{name}"] or "seen"
    return fields


@dataclass
class Reviewer:
    """A browser without a screen, and the server that answers it."""

    client: TestClient
    served: Served

    @property
    def reported(self) -> list[DecisionOutcome]:
        """The decisions that the server reported."""
        return list(self.served.outcomes.queue)

    def enter(self, audit: str = "x", again: str = "") -> str:
        """Open the page by a new link."""
        answer = self.client.get(self.served.link(audit) + again, follow_redirects=True)
        assert answer.status_code == 200, answer.text
        return answer.text

    def revise(self) -> str:
        """Open the page to decide again."""
        return self.enter(again="&again=yes")

    def send(self, fields: dict[str, str], audit: str = "x", **headers: str) -> httpx.Response:
        """Press a button of the page."""
        return self.client.post(f"/review/{audit}", data=fields, headers={"Origin": URL, **headers})


def reviewers(n: int = 1, **more: Any) -> list[Reviewer]:
    """Browsers that share one server."""
    served = Served(["x"], URL, HOST, URL, "faded-review-8711")
    app = make_app(served)
    return [Reviewer(TestClient(app, base_url=URL, follow_redirects=False, **more), served) for _ in range(n)]


def answered(*answers: str) -> Callable[..., str]:
    """A stand-in for `input`, at which these answers are typed; then the input ends."""
    left = list(answers)

    def answer(*_args: str) -> str:
        if not left:
            raise EOFError
        return left.pop(0)

    return answer


def review(monkeypatch: pytest.MonkeyPatch, *answers: str, revise: bool = False, reviewer: str | None = None) -> str:
    """The output if the questions are answered like this; all answers must be used up."""
    out, typed = io.StringIO(), answered(*answers)
    monkeypatch.setattr("builtins.input", typed)
    review_landscape(load_params(), "x", Console(file=out, width=200), revise, reviewer)
    with pytest.raises(EOFError):
        typed()
    return out.getvalue()
