"""`faded init`: its questions and proposals, and that the result is an audit `faded plan` accepts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.prompt import Confirm, Prompt
from rich.text import Text

import flows.init.run
from flows.choosing.screen import Swept
from flows.init.answers import ask_questions
from flows.init.propose import Wanted
from stages.check import check_audits
from stages.core.errors import InfrastructureError, UsageError
from stages.params import load_params
from tests.news import articles
from tests.own_model import WEIGHTS, init, options, questions
from tests.tiny_models import tiny_causal

pytest_plugins = ("tests.own_repository",)


# Proposals


@pytest.fixture
def checked(monkeypatch) -> None:
    """Replace the sweep by the checks of `faded plan`."""

    def measure(params: Any, name: str, *_more: object) -> Swept:
        check_audits(params, [name])
        raise InfrastructureError("checked")

    monkeypatch.setattr(flows.init.run, "sweep_concepts", measure)


def test_an_audit_of_a_summarizer_is_accepted_and_an_option_names_its_column(repository, checked):
    tiny_causal(repository / "chat")
    rows = [{"article": "Short.", "boddy": text, "highlights": "A summary."} for text in articles(40)]
    (repository / "news.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"model": "chat", "data": "news.jsonl"}
    with pytest.raises(UsageError, match="--text body: the data have no such column, did you mean 'boddy'"):
        init(given=options(answers={**given, "text": "body"}))
    with pytest.raises(InfrastructureError, match="checked"):
        init(given=options(answers={**given, "text": "boddy"}))
    prepare = load_params(repository / "params.yaml").audit("news").prepare
    assert prepare["data"] == {"jsonl": "news.jsonl", "text": "boddy", "summary": "highlights"}
    assert prepare["items"] == {"discover": 13, "repair": 13, "test": 14}


# Questions


def test_without_a_terminal_a_missing_answer_names_its_option():
    with pytest.raises(UsageError, match="--model"):
        questions({}).text("model", "The model")
    with pytest.raises(UsageError, match="--name, or --yes to accept the guess: pets"):
        questions({}).text("name", "Name", "pets")
    with pytest.raises(UsageError, match="--repair or --no-repair"):
        questions({}).confirm("repair", "Repair", True)
    assert questions({}, yes=True).text("name", "Name", "pets") == "pets"
    with pytest.raises(UsageError, match="did you mean 'summarization'"):
        questions({"kind": "sumarization"}).choice("kind", "Kind", ["summarization", "text-to-image"])


def test_on_a_terminal_it_asks_again_until_the_answer_will_do_and_shows_names_as_they_are(monkeypatch):
    """A folder or a column may have a name that looks like markup."""
    typed, shown = iter(["", "nothing", "pets"]), []
    monkeypatch.setattr(
        Prompt, "ask", lambda question, **_: shown.append(Text.from_markup(question).plain) or next(typed)
    )
    monkeypatch.setattr(Confirm, "ask", lambda question, **_: bool(shown.append(Text.from_markup(question).plain)))

    def check(answer: str) -> None:
        if answer == "nothing":
            raise UsageError("there is no such file")

    assert questions({}, asks=True).text("data", "Data ([/bold], [red]a)", check=check) == "pets"
    assert questions({}, asks=True).confirm("repair", "Repair [/bold]", True) is False
    assert shown == 3 * ["Data ([/bold], [red]a)"] + ["Repair [/bold]"]


def asked(repository: Path, **given: Any) -> Wanted:
    answers = {"model": WEIGHTS, "data": "shapes", **given}
    return ask_questions(questions(answers, yes=True), repository, [], None)


def test_the_key_of_a_model_behind_a_url_is_named_and_never_written(repository, monkeypatch):
    url = {"kind": "image-classification", "model": "https://models.example.com/classify"}
    monkeypatch.setenv("MY_KEY", "secret")
    found = asked(repository, **url, **{"key-env": "MY_KEY"})
    assert found.model["key_env"] == "MY_KEY"
    assert "key_env" not in asked(repository, **url).model
    for given, said in (
        ({**url, "key-env": "NO_SUCH_KEY"}, "--key-env: the environment variable NO_SUCH_KEY is not set"),
        ({**url, "key-env": "sk-secret"}, "expected the name of an environment variable"),
        ({**url, "model": "http://models.example.com/", "key-env": "MY_KEY"}, "plain http"),
        ({"key-env": "MY_KEY"}, "behind a URL"),
        ({**url, "model": "https://ada:secret@models.example.com/"}, "--model: .*holds a user name or a password"),
    ):
        with pytest.raises(UsageError, match=said):
            asked(repository, **given)


def test_help_needs_no_heavy_library():
    """It appears at once: torch, transformers and onnx are not imported for it."""
    code = "import sys, flows.cli; print([m for m in ('torch', 'transformers', 'timm', 'onnx') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
