"""The real server of llama.cpp: an audit with a judge, a server that dies, and the requests it rejects."""

import json
import sys

import httpx
import pytest

pytest.importorskip("transformers")

from stages.core.errors import Exit, UsageError
from stages.tasks.account import Account
from stages.tasks.openai_chat import ChatConfig, ChatEndpoint
from tests.endpoints import served
from tests.finished import faded, run_stages
from tests.llama_cpp import llama_cpp, missing
from tests.servers import free_port
from tests.test_judge import lines
from tests.tiny_models import tiny_embedder
from tests.workspace import audit_params, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() != "", reason=missing())]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with llama_cpp(tmp_path_factory.mktemp("llama") / "log", context=512) as (url, _):
        yield url


def ask(url, *said, tokens=12, **changes):
    chat = ChatEndpoint(ChatConfig.model_validate({"openai": url, "model": "smollm2", **changes}), Account())
    return chat.ask([chat.request("", one, tokens) for one in said]), chat.account.bill


def test_answers_end_where_they_are_told_to_and_every_token_is_counted(server):
    answers, bill = ask(server, *(f"Name {n} fruits." for n in range(2, 10)))
    assert all(answer["text"] for answer in answers) and bill.requests == 8 and not bill.uncounted
    (cut,), bill = ask(server, "Name two fruits.", tokens=1)
    assert cut["finish"] == "length" and bill.cut == bill.completion == 1
    (ended,), _ = ask(server, "Name two fruits.", settings={"stop": ["e"]})
    assert ended["finish"] == "stop" and "e" not in ended["text"]


def test_a_question_that_does_not_fit_is_told_as_such(server):
    with pytest.raises(UsageError, match=r"400 Bad Request \(.*context size.*\): the request is too long, so start"):
        ask(server, "word " * 600)


def test_an_audit_that_its_server_dies_under_is_finished_and_nothing_is_asked_twice(tmp_path):
    """For model and judge. The bill must equal the counts that the server reports, and those of its tokenizer."""
    port, replies = free_port(), []

    def passed_on(request):
        if len(replies) >= 24:
            first.kill()
        reply = httpx.post(f"{url}/chat/completions", json=request, timeout=120, trust_env=False).json()
        replies.append((request, reply["usage"]))
        return reply

    here = make_workspace(tmp_path / "work", {"q": audit_params()}, {})
    folder = here.path / "data/q/inputs"
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines()))
    tiny_embedder(folder / "embedder")
    with llama_cpp(tmp_path / "log", port=port) as (url, first), served(passed_on, whole=True) as model:
        named = {"openai": model.url, "retries": 1}
        judge = {**named, "model": "judge", "answers": 8, "max_new_tokens": 8, "accept_uncalibrated": True}
        audit = audit_params(
            task="chat",
            compute={"device": "cpu", "threads": 1, "batch_size": 8, "gpus": 0},
            prepare={
                "model": {**named, "model": "smollm2"},
                "judge": judge,
                "data": {"jsonl": "questions.jsonl"},
                "items": {"discover": 6},
                "generation": {"max_new_tokens": 8},
                "embedder": {"transformers": "embedder"},
            },
            concepts={"letter_case": ["as_is", "upper"], "politeness": ["neutral", "polite", "rude"]},
            discrepancy={"measure": "contains", "near": [1, 1], "validity": -1},
            discover={"explorer": "random", "baseline": "random", "budget": 12, "microscopic": {"method": "none"}},
        )
        here.write_params({"audits": {"q": audit}, "repairs": {}})
        assert faded(here, "plan", "q")[0] == 0
        stopped = here.run([sys.executable, "-m", "stages.prepare", "q"])
        assert stopped.returncode == Exit.UNAVAILABLE and "cannot be used" in stopped.stdout, stopped.stdout
        assert "What it answered so far is kept" in stopped.stdout
        paid = len(replies)
        with llama_cpp(tmp_path / "log", port=port):
            run_stages(here, "q")
            counted = [_tokens(url, request["messages"]) for request, _ in replies]
    bills = [Account(here.path / f".faded/account/{name}.jsonl").bill for name in ("q", "q.judge")]
    assert 0 < paid < sum(bill.requests for bill in bills) == len(replies)
    assert sum(bill.prompt for bill in bills) == sum(usage["prompt_tokens"] for _, usage in replies) == sum(counted)
    assert sum(bill.completion for bill in bills) == sum(usage["completion_tokens"] for _, usage in replies)
    asked = [json.dumps(request) for request, _ in replies]
    repeated = {one for one in asked[paid:] if one in asked[:paid]}
    assert len(repeated) <= 6, "by three the model is known again, by three the judge"
    assert (here.path / "data/q/report/report.html").exists()


def _tokens(url, messages):
    """Count the tokens of messages with the server's tokenizer."""
    root = url.removesuffix("/v1")
    with httpx.Client(trust_env=False) as client:
        prompt = client.post(f"{root}/apply-template", json={"messages": messages}).json()["prompt"]
        said = {"content": prompt, "add_special": True, "parse_special": True}
        return len(client.post(f"{root}/tokenize", json=said).json()["tokens"])
