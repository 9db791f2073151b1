"""A summarizer behind chat completions: requests, responses of servers, and costs; nothing is paid twice."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml

from stages.tasks.known_answers import ANSWERS

pytest.importorskip("transformers")

import stages.discover
import stages.prepare
from flows.results.estimate import probes_of, requests_line
from stages.core.errors import InfrastructureError, UsageError
from stages.params import load_params
from stages.tasks import endpoint as module
from stages.tasks.account import Account, Price, RecordedAnswer
from stages.tasks.contract import Compute
from stages.tasks.language.form import GenerationConfig
from stages.tasks.load import load_task
from stages.tasks.openai_chat import ChatEndpoint
from stages.tasks.sources import parse_source, source_errors
from stages.tasks.summarization import Summarization
from stages.tasks.summarization.served import KNOWN, MODEL_LOADERS
from tests.endpoints import completion, said, served
from tests.finished import faded, inside, run_stages
from tests.news import news_audit, news_context, write_news
from tests.servers import free_port
from tests.workspace import audit_params, make_workspace

PRICE = {"prompt": 1.0, "completion": 2.0}
GENERATION = {"prompt": "Shorten this: {article}", "max_new_tokens": 30}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_news(tmp_path_factory.mktemp("texts") / "inputs")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)


def article(request):
    return request["messages"][-1]["content"].removeprefix("Shorten this: ")


def first_sentence(request):
    """Answer as a chat model that cannot read capitals."""
    text = article(request)
    return completion("No." if text.isupper() else text.split(". ")[0] + ".")


def block(url, **changes):
    return {"openai": f"{url}/v1", "model": "tiny", "timeout": 10, "retries": 2, **changes}


def source(url, **changes):
    return parse_source(block(url, **changes), MODEL_LOADERS, "prepare.model")


def endpoint(url, **changes):
    return ChatEndpoint(source(url, **changes), Account())


def asked(chat, *users):
    return chat.ask([chat.request("", user, 30) for user in users])


def test_a_request_has_one_message_and_what_settings_add_or_leave_out():
    with served(first_sentence, whole=True) as model:
        chat = endpoint(model.url, settings={"seed": None, "top_p": 0.5})
        asked(chat, "One. Two.")
        chat.ask([chat.request("Be brief.", "Three.", 5)])
    assert model.paths == ["/answer/v1/chat/completions"] * 2
    first, second = model.requests
    assert first == {
        **{"model": "tiny", "messages": [{"role": "user", "content": "One. Two."}], "temperature": 0},
        **{"max_tokens": 30, "stream": False, "top_p": 0.5},
    }
    assert second["messages"][0] == {"role": "system", "content": "Be brief."} and second["max_tokens"] == 5


@pytest.mark.parametrize(
    ("response", "text", "told"),
    [
        (said(completion(None, refusal="I cannot help.")), "I cannot help.", "1 refused"),
        (said({"error": {"message": "filtered", "code": "content_filter"}}, 400), "", "1 refused"),
        (said({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 0}}), "", "tokens, 1 empty"),
        (said(completion([{"type": "text", "text": " A "}, {"type": "image"}])), "A", "1 request(s)"),
        (said({**completion("A"), "usage": {"prompt_tokens": 0, "completion_tokens": 0}}), "A", "1 without token"),
    ],
)
def test_what_a_model_says_of_one_input_is_its_answer(response, text, told):
    with served(first_sentence, lambda number: response, whole=True) as model:
        chat = endpoint(model.url)
        (answer,) = asked(chat, "One.")
    assert answer["text"] == text and told in str(chat.account.bill)


SEED_LEFT_OUT = r"\(no seed; field seed\): a field .* can be left out.*settings: {seed: null"
# Complete responses of servers, by name and version: recorded, except Ollama's, which follows its code.
LONG = r": the request is too long, so start the server with a longer context, or lower prepare\.data\.max_words"
UNKNOWN = r": expected its base URL in openai, .* and in model a name that GET http.*/v1/models lists"
LLAMA_CPP = {
    **{"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 5031, "n_ctx": 2048},
    "message": "request (5031 tokens) exceeds the available context size (2048 tokens), try increasing it",
}
LITELLM = {
    **{"type": "invalid_request_error", "param": None, "code": "400"},
    "message": "/chat/completions: Invalid model name passed in model=tiny. Call `/v1/models` to view"
    " available models for your key.",
}
OLLAMA = {"param": None, "code": None, "message": "model 'tiny' not found", "type": "not_found_error"}


@pytest.mark.parametrize(
    ("response", "told"),
    [
        (said({"error": {"message": "no seed", "param": "seed"}}, 400), SEED_LEFT_OUT),
        (said({"detail": "Not Found"}, 404), r"expected its base URL in openai, such as http://localhost:8000/v1"),
        (said({"error": {"message": "out of credits", "code": 402}}), r"402 Payment Required \(out of credits"),
        (said({"outputs": []}), r'expected a chat completion.*found {"outputs": \[\]}'),
        pytest.param(said({"error": LLAMA_CPP}, 400), LONG, id="llama.cpp b11549, too long"),
        pytest.param(said({"error": LITELLM}, 400), UNKNOWN, id="LiteLLM 1.105.7, unknown model"),
        pytest.param(said({"error": OLLAMA}, 404), UNKNOWN, id="Ollama 0.33, unknown model"),
    ],
)
def test_what_is_no_answer_is_told_in_the_words_of_the_server_and_not_asked_again(response, told):
    with served(first_sentence, lambda _: response, whole=True) as model, pytest.raises(UsageError, match=told):
        asked(endpoint(model.url), "One.")
    assert len(model.requests) == 1


def test_what_fails_for_the_moment_is_asked_again_and_paid_once():
    busy = [
        said({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429, Retry_After="0"),
        said({"error": {"message": "upstream is down", "code": 502}}),
    ]
    with served(first_sentence, lambda number: busy[number] if number < 2 else None, whole=True) as model:
        chat = endpoint(model.url)
        assert asked(chat, "One. Two.")[0]["text"] == "One."
    assert len(model.requests) == 3 and chat.account.bill.requests == 1
    told = pytest.raises(InfrastructureError, match=r"502 Bad Gateway \(upstream is down; code 502\), 3 time")
    with served(first_sentence, lambda number: busy[1], whole=True) as model, told:
        asked(endpoint(model.url), "One.")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_cost": 1.0}, r"max_cost needs price"),
        ({"openai": "models.example"}, r"prepare\.model\.openai: expected a URL"),
    ],
)
def test_a_wrong_block_is_told_before_anything_runs(inputs, changes, told):
    with pytest.raises(UsageError, match=told):
        raise UsageError(
            "\n".join(source_errors(block("http://localhost:1", **changes), MODEL_LOADERS, "prepare.model", inputs))
        )


def build(url, folder, account=None, **changes):
    model = source(url, **changes)
    model.build(folder, folder / "model", GenerationConfig.model_validate(GENERATION), account=account)
    return model


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_model_that_became_another_one_stops_the_next_stage(tmp_path, deterministic):
    name = "tiny-1"
    with served(lambda request: {**first_sentence(request), "model": name}, whole=True) as model:
        built = build(model.url, tmp_path, deterministic=deterministic)
        name = "tiny-2"
        with pytest.raises(UsageError, match=r"tiny behind .* (answers differently|calls itself tiny-2, and tiny-1)"):
            built.load(tmp_path / "model", Compute()).summarize(["One. Two."])


def answered(text="A.", prompt=10, completion=2, finish="stop"):
    return RecordedAnswer(text=text, finish=finish, model="m", prompt_tokens=prompt, completion_tokens=completion)


def test_the_bill_outlives_a_kill_and_is_one_for_all_processes(tmp_path):
    path = tmp_path / "bill.jsonl"
    one, other = Account(path), Account(path)
    one.add("a", answered())
    with path.open("ab") as file:
        file.write(b"0123456789abcdef {cut sho")  # cut off by a kill
    other.add("b", answered("B"), Price(**PRICE))
    one.add("c", answered(prompt=None))
    for account in (one, other, Account(path)):
        bill = account.bill
        assert (bill.requests, bill.prompt, bill.completion, bill.uncounted, bill.unpriced) == (3, 20, 6, 1, 0)
        assert bill.cost == pytest.approx(14e-6)  # the first had no price
        assert account.known("b") == answered("B") and account.known("c") is not None
    assert Price(**PRICE).of(20, 6) == pytest.approx(32e-6)


@pytest.fixture
def workspace(inputs, tmp_path, monkeypatch):
    """Make a workspace with one audit of a chat model, whose stages run in this process."""
    shutil.copytree(inputs, tmp_path / "data" / "chat" / "inputs")
    monkeypatch.chdir(tmp_path)

    def write(url, **model):
        config = {"model": block(url, price=PRICE, **model), "generation": GENERATION}
        audit = news_audit(news_context(inputs, config={**news_context(inputs).config, **config}), 20)
        Path("params.yaml").write_text(yaml.safe_dump({"audits": {"chat": audit}, "repairs": {}}))

    return write


def bill():
    return Account.of("chat").bill


def cost():
    return Price(**PRICE).of(bill().prompt, bill().completion)


def texts(model):
    """Return the requested texts, without the articles by which the model is identified."""
    return [text for request in model.requests if (text := article(request)) not in KNOWN]


def test_max_cost_stops_a_stage_and_once_raised_nothing_is_paid_twice(workspace):
    with served(first_sentence, whole=True) as model:
        workspace(model.url, max_cost=0.0008)
        reached = r"max_cost: 0\.0008 is reached, the audit has cost 0\.000[89]\d* .*ask tiny behind"
        with pytest.raises(UsageError, match=reached) as told:
            stages.prepare.main("chat")
        assert "raise max_cost and run the audit again" in str(told.value) and not Path("data/chat/prepare").exists()
        stopped = len(model.requests)
        workspace(model.url, max_cost=0.0024)
        stages.prepare.main("chat")
        with pytest.raises(UsageError, match="is reached"):
            stages.discover.main("chat")
        assert len(model.requests) > stopped > len(KNOWN)
        workspace(model.url, max_cost=1.0)
        stages.prepare.main("chat")
        stages.discover.main("chat")
    assert len(texts(model)) == len(set(texts(model)))
    assert bill().requests == len(model.requests) and 0.0024 < cost() < 1
    said = [first_sentence(one)["choices"][0]["message"]["content"] for one in model.requests]
    assert bill().completion == sum(len(text.split()) for text in said)


def loaded():
    return load_task("chat", load_params().audit("chat"), Path("data/chat/prepare"))


def test_the_plan_says_tokens_and_money_before_and_after_anything_was_asked(workspace):
    def line(*kinds):
        todo = [SimpleNamespace(kind=kind, name=f"{kind}@chat", audit="chat") for kind in kinds]
        return requests_line(load_params(), SimpleNamespace(to_do=lambda names: todo), "chat")

    with served(first_sentence, whole=True) as model:
        workspace(model.url, max_cost=0.001)
        guess = line("prepare", "discover")
        probes = probes_of(load_params(), SimpleNamespace(kind="discover", name="discover@chat", audit="chat"))
        summaries = 10 + 6 + 5 + 2 * (10 + 6)  # of all splits, and two for each calibration item
        assert f"at most {summaries + 3 * len(KNOWN) + probes} requests" in guess
        assert "a guess from the length of the texts), cost about" in guess
        assert "0 of max_cost 0.001 is spent, and this may reach it" in guess
        assert model.requests == []  # a plan sends no request
        workspace(model.url, max_cost=1.0)
        stages.prepare.main("chat")
        after = line("discover")
        assert f"(by {bill().requests} so far; what was already answered" in after
        assert f"requests, {probes * bill().prompt / bill().requests:,.0f} prompt" in after
        assert f". So far: {bill()}. {cost():.2g} of max_cost 1 is spent" in after


@contextlib.contextmanager
def serving(folder, log):
    """`transformers serve` for a model folder, as a separate process; yields its base URL."""
    port = free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--device", "cpu", "--port", port]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as told, subprocess.Popen([*map(str, command)], stdout=told, stderr=told, env=env) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(240):
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health", trust_env=False).is_success:
                        break
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
            yield f"{url}/v1"
        finally:
            server.terminate()


@pytest.mark.slow
def test_an_audit_of_a_model_that_transformers_serves(tmp_path):
    """From the plan to the report. The bill must equal the counts of the server and the model's own tokenizer."""
    pytest.importorskip("openai", reason="transformers serve needs it")
    from transformers import AutoTokenizer

    replies = []

    def passed_on(request):
        reply = httpx.post(f"{url}/chat/completions", json=request, timeout=120, trust_env=False).json()
        replies.append((request, reply))
        return reply

    chat = make_workspace(tmp_path / "work", {"chat": audit_params()}, {})
    inputs = write_news(chat.path / "data" / "chat" / "inputs")
    context = news_context(inputs)
    with serving(inputs / "model", tmp_path / "server.log") as url, served(passed_on, whole=True) as model:

        def write(max_cost):
            named = {"openai": model.url, "model": str(inputs / "model"), "price": PRICE, "max_cost": max_cost}
            audit = news_audit(dataclasses.replace(context, config={**context.config, "model": named}), 20)
            chat.write_params({"audits": {"chat": audit}, "repairs": {}})

        write(0.004)
        code, plan = faded(chat, "plan", "chat")
        assert code == 0 and "a guess from the length of the texts), cost about" in plan
        with inside(chat), pytest.raises(UsageError, match=r"max_cost: 0\.004 is reached"):
            stages.prepare.main("chat")
        paid = len(replies)
        write(1.0)
        run_stages(chat, "chat")
        code, plan = faded(chat, "plan", "chat")
    bill = Account(chat.path / ".faded" / "account" / "chat.jsonl").bill
    assert 0 < paid < bill.requests == len(replies) and f"So far: {bill}" in plan
    usage = [reply["usage"] for _, reply in replies]
    assert bill.prompt == sum(one["prompt_tokens"] for one in usage)
    assert bill.completion == sum(one["completion_tokens"] for one in usage)
    tokenizer, asked = AutoTokenizer.from_pretrained(inputs / "model"), [request["messages"] for request, _ in replies]
    prompts = [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False) for one in asked]
    assert bill.prompt == sum(map(len, prompts))
    # The same weights, loaded here, give the same answers.
    local = parse_source({"transformers": "model"}, MODEL_LOADERS, "prepare.model")
    local.build(inputs, tmp_path / "local", GenerationConfig(max_new_tokens=12))
    texts_asked = [messages[-1]["content"].partition("\n\n")[2] for messages in asked]
    remote = [reply["choices"][0]["message"]["content"].strip() for _, reply in replies]
    assert local.load(tmp_path / "local", Compute()).summarize(texts_asked) == remote


@pytest.mark.parametrize(
    ("given", "posted"),
    [
        ("http://localhost:1/v1/chat/completions", "http://localhost:1/v1/chat/completions"),
        ("https://m.example/openai?api-version=1", "https://m.example/openai/chat/completions?api-version=1"),
    ],
)
def test_the_base_url_may_end_as_people_write_it(given, posted):
    chat = parse_source({"openai": given, "model": "tiny"}, MODEL_LOADERS, "prepare.model")
    assert chat.endpoint == posted and chat.told == f"tiny behind {posted.partition('/chat')[0]}"


def test_what_a_chat_model_is_sent_of_the_generation_settings(inputs):
    def errors(**changes):
        config = {**news_context(inputs).config, "model": block("http://localhost:1")}
        return Summarization.check(news_context(inputs, config={**config, "generation": GENERATION, **changes}))

    assert errors() == []
    (line,) = errors(generation={**GENERATION, "num_beams": 4})
    assert "num_beams has no effect" in line and "sent max_new_tokens, prompt, system alone" in line
    bfloat16 = news_context(inputs, config={"model": block("http://localhost:1")}, compute=Compute(dtype="bfloat16"))
    (line,) = Summarization.compute_errors(bfloat16)
    assert line == "compute.dtype: bfloat16 is not for a model behind HTTP; expected float32 or float32"


def test_a_model_that_only_thinks_is_told_before_anything_is_kept(tmp_path):
    thinks = said(completion("", "length"))
    told = r"gives an empty answer to 3 plain articles \(finish_reason: length\)\. If it reasons"
    with served(first_sentence, lambda _: thinks, whole=True) as model, pytest.raises(UsageError, match=told):
        build(model.url, tmp_path)
    assert not (tmp_path / "model" / ANSWERS).exists()


def test_answers_are_given_again_until_a_preparation_begins_afresh(tmp_path):
    def prepared(model, settings):
        account = Account(tmp_path / "bill.jsonl", settings)
        account.begin(model)
        known = account.known("a")
        account.add("a", answered(f"{model} {settings}"))
        return known and known.text

    def used():
        account = Account(tmp_path / "bill.jsonl")
        account.use()
        return account.known("a").text

    assert prepared("m", "1") is None
    assert prepared("m", "1") == "m 1"  # the first was killed
    assert used() == "m 1"
    assert prepared("m", "2") == "m 1"  # max_cost was raised
    assert used() == "m 1"
    assert prepared("m", "2") is None  # forced
    assert prepared("n", "3") is None  # another model
    assert used() == "n 3" and Account(tmp_path / "bill.jsonl").bill.requests == 5


def test_a_cost_that_nobody_can_count_is_not_promised():
    silent = {"choices": [{"message": {"content": "A gist."}}]}
    told = r"came without a count of their tokens .*remove prepare\.model\.max_cost"
    with served(lambda request: silent, whole=True) as model, pytest.raises(UsageError, match=told):
        asked(endpoint(model.url, price=PRICE, max_cost=1.0, concurrency=1), "One.", "Two.")
    assert len(model.requests) == 1


def test_a_model_that_varies_is_asked_again_by_later_stages_alone(workspace):
    with served(first_sentence, whole=True) as model:
        workspace(model.url, deterministic=False)
        stages.prepare.main("chat")
        prepared = texts(model)
        workspace(model.url, deterministic=False, max_cost=1.0)
        stages.prepare.main("chat")
        assert texts(model) == prepared
        changed = next(text for text in prepared if "  " in text)
        loaded().query([changed])
    assert texts(model) == [*prepared, changed]
