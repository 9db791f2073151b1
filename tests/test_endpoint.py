"""A model behind HTTP: batches, retries, refusals, and whether it is still the model that was prepared."""

import contextlib
import logging
import socket
import threading
import time

import httpx
import pytest
from pydantic import ValidationError

from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import read_json
from stages.params import validation_lines
from stages.tasks import endpoint as module
from stages.tasks.endpoint import Endpoint, EndpointConfig
from stages.tasks.known_answers import ANSWERS, check_answers, keep_answers
from tests.endpoints import said, served


@contextlib.contextmanager
def trickling(start):
    """A server that sends one byte at a time, and would take ten seconds."""
    stop = threading.Event()

    def answer():
        with contextlib.suppress(OSError), listening.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(start)
            for _ in range(1000):
                if stop.wait(0.01):
                    return
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            stop.set()
            thread.join()


NUMBERS = [{"n": n} for n in range(10)]


def doubled(one):
    return {"n": 2 * one["n"]}


def endpoint(url, **changes):
    return Endpoint(EndpointConfig(endpoint=url, **{"timeout": 5, "retries": 2, **changes}))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)


def test_inputs_are_posted_in_batches_and_answers_come_in_their_order():
    def slow_at_first(request):
        time.sleep(0.05 if request == 0 else 0)

    with served(doubled, slow_at_first) as model:
        answers = endpoint(model.url, batch_size=3, concurrency=4).ask(NUMBERS)
        assert endpoint(model.url).ask([]) == []
    assert answers == [{"n": 2 * n} for n in range(10)]
    assert sorted(len(request["inputs"]) for request in model.requests) == [1, 3, 3, 3]
    assert sorted(one["n"] for one in model.inputs) == list(range(10))


def test_requests_begin_no_faster_than_the_rate(monkeypatch):
    waited = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: waited.append(seconds))
    pace, stop = module._Pace(rate=4), threading.Event()
    monkeypatch.setattr(module.time, "monotonic", lambda: 100.0)
    for _ in range(3):
        pace.wait(stop)
    assert waited == [0.25, 0.5]  # the first is sent at once


def test_what_fails_for_the_moment_is_asked_again():
    moments = [said({}, 503), said({}, 429, Retry_After="0"), (0, {}, b"")]  # the last breaks the connection
    with served(doubled, lambda request: moments[request] if request < 3 else None) as model:
        assert endpoint(model.url, retries=3).ask(NUMBERS[:2]) == [{"n": 0}, {"n": 2}]
    assert len(model.requests) == 4 and model.requests[0] == model.requests[3]


@pytest.mark.parametrize(
    ("before", "changes", "requests", "told"),
    [
        (lambda _: said({}, 429, Retry_After="7200"), {}, 1, r"to retry in 7200 s .*429 Too Many Requests"),
        (lambda _: said(b"<h1>full</h1>", 502), {}, 3, r"502 Bad Gateway \(<h1>full</h1>\), 3 time\(s\) in a row"),
        (lambda _: time.sleep(0.3), {"timeout": 0.05, "retries": 0}, 1, "ReadTimeout"),
    ],
)
def test_a_server_that_cannot_be_used_is_infrastructure(before, changes, requests, told):
    with served(doubled, before) as model, pytest.raises(InfrastructureError, match=told):
        endpoint(model.url, **changes).ask(NUMBERS[:1])
    assert len(model.requests) == requests
    with pytest.raises(InfrastructureError, match=r"the model behind http://127\.0\.0\.1.*ConnectError"):
        endpoint(model.url, retries=0).ask(NUMBERS)  # nobody is there any more


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (said({"detail": "no text"}, 422), r'rejected the request: 422 Unprocessable Entity \({"detail": "no text"}\)'),
        (said(b"", 413), r"413 .*: lower batch_size, 1"),
        (said(b"<html>"), r"no JSON .*<html>"),
        (said([1]), "found list"),
        (said({"outputs": [{}, {}]}), r"found 2 output\(s\) for 1 input\(s\)"),
        (said(b"\x1f\x8bno", Content_Encoding="gzip"), "cannot be decompressed"),
    ],
)
def test_what_is_no_answer_is_told_and_nothing_is_asked_after_it(answer, told):
    with served(doubled, lambda request: answer) as model, pytest.raises(UsageError, match=told):
        endpoint(model.url, batch_size=1, concurrency=1).ask(NUMBERS)
    assert len(model.requests) < len(NUMBERS) and model.requests.count(model.requests[0]) == 1


def test_the_key_is_sent_and_never_told(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("TINY_KEY", "s3cr3t-value")
    caplog.set_level(logging.DEBUG)
    with served(doubled, lambda request: said(b"bad key s3cr3t-value", 403) if request else None) as model:
        asked = endpoint(model.url, key_env="TINY_KEY")
        keep_answers(asked, NUMBERS[:1], tmp_path)
        with pytest.raises(UsageError, match=r"403 Forbidden \(bad key \*\*\*\): .*the key in TINY_KEY") as told:
            asked.ask(NUMBERS[:1])
    assert model.headers[0]["Authorization"] == "Bearer s3cr3t-value"
    everything = f"{told.value!r} {caplog.text} {(tmp_path / ANSWERS).read_text()} {asked.config!r}"
    assert "s3cr3t" not in everything


@pytest.mark.parametrize("key", ["", "s3cr3t\n", "s3cr3t\u2019"])
def test_a_key_that_no_header_can_hold_is_told_without_being_told(key, monkeypatch):
    monkeypatch.setenv("TINY_KEY", key)
    with pytest.raises(UsageError, match=r"prepare\.model\.key_env: .* TINY_KEY (is not set|holds a line end)") as told:
        endpoint("http://127.0.0.1:1/", key_env="TINY_KEY")
    assert "s3c" not in str(told.value)


def test_a_connection_that_breaks_does_not_tell_the_key_either(monkeypatch):
    monkeypatch.setenv("TINY_KEY", "s3cr3t-value")

    def breaks(self, *request, **named):
        raise httpx.LocalProtocolError(f"Illegal header value {self.headers['authorization']}")

    monkeypatch.setattr(httpx.AsyncClient, "stream", breaks)
    with pytest.raises(InfrastructureError, match=r"LocalProtocolError Illegal header value Bearer \*\*\*"):
        endpoint("http://127.0.0.1:1/", key_env="TINY_KEY", retries=0).ask(NUMBERS[:1])


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"endpoint": "models.example/v1"}, "expected a URL that begins with https:// or http://"),
        ({"endpoint": "https://ada:hunter2@models.example"}, "holds a user name or a password"),
        ({"endpoint": "https://ada:hun/ter2#hunter2@m.example"}, "expected a URL, found one that is not shown"),
        ({"endpoint": "m.example/v1?key=hunter2"}, "found 'm.example/v1'"),
        ({"endpoint": "https://m.example/v1?a=1&api_key=hunter2"}, "api_key in the query of https://m.example/v1"),
        ({"endpoint": "https://m.example", "key_env": "sk-hunter2"}, "name of an environment variable"),
        ({"endpoint": "https://m.example", "headers": {"X-Api-Key": "hunter2"}}, "X-Api-Key looks like a key"),
        ({"endpoint": "http://m.example", "key_env": "KEY"}, "must not travel over plain http"),
        ({"endpoint": "https://m.example", "rates": 3}, "unknown key, did you mean 'rate'?"),
    ],
)
def test_a_wrong_block_is_told_without_its_secrets(block, told):
    with pytest.raises(ValidationError) as raised:
        EndpointConfig.model_validate(block)
    (line,) = validation_lines(raised.value, EndpointConfig, "prepare.model")
    assert told in line and "hunter2" not in line


def test_a_model_that_answers_as_before_is_known_again(tmp_path):
    wobble = 0.0

    def answer(one):
        return {"scores": {"cat": 0.75 + wobble}, "image": "x" * 500}

    with served(answer) as model:
        asked = endpoint(model.url)
        keep_answers(asked, NUMBERS[:2], tmp_path)
        before = (tmp_path / ANSWERS).read_bytes()
        wobble = 1e-5  # sums are computed in another order
        check_answers(asked, tmp_path)
        keep_answers(asked, NUMBERS[:2], tmp_path)
        assert (tmp_path / ANSWERS).read_bytes() == before  # prepared again, it is the same model
        check_answers(endpoint(model.url, rate=100, timeout=7), tmp_path)  # request settings change no answer
    kept = read_json(tmp_path / ANSWERS)
    assert kept["inputs"] == NUMBERS[:2]
    assert kept["outputs"][0]["image"].startswith("500 characters, ")  # by its hash
    assert set(kept) == {"schema", "endpoint", "headers", "inputs", "outputs"}


def test_a_model_that_became_another_one_is_refused(tmp_path):
    words = "yes"
    with served(lambda one: {"summary": words}) as model:
        keep_answers(endpoint(model.url), NUMBERS[:2], tmp_path)
        words = "no"
        with pytest.raises(UsageError, match=r'"yes"} then, {"summary": "no"} now.*run prepare again'):
            check_answers(endpoint(model.url), tmp_path)
        check_answers(endpoint(model.url, deterministic=False), tmp_path)


def test_a_model_that_never_answers_twice_alike_is_its_address(tmp_path):
    asked = iter(range(100))
    with served(lambda one: {"summary": str(next(asked))}) as model:
        loose = endpoint(model.url, deterministic=False)
        keep_answers(loose, NUMBERS[:2], tmp_path)
        before = (tmp_path / ANSWERS).read_bytes()
        keep_answers(loose, NUMBERS[:2], tmp_path)
        assert (tmp_path / ANSWERS).read_bytes() == before
        check_answers(loose, tmp_path)
        with pytest.raises(UsageError, match=r"with deterministic: false, params\.yaml says true: run prepare"):
            check_answers(endpoint(model.url), tmp_path)


def test_no_more_requests_are_on_their_way_than_were_asked_for():
    under_way, most = [], []

    def counted(one):
        under_way.append(one)
        most.append(len(under_way))
        time.sleep(0.02)
        return under_way.pop()

    with served(counted) as model:
        endpoint(model.url, batch_size=1, concurrency=3).ask(NUMBERS)
    assert 1 < max(most) <= 3


@pytest.mark.parametrize("wanted", ["7", "Thu, 26 Nov 2026 00:00:07 GMT"])
def test_a_server_that_says_how_long_is_waited_for(wanted, monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 1795651200.0)  # that midnight
    held = []
    monkeypatch.setattr(module._Pace, "hold", lambda self, seconds: held.append(seconds))
    with served(doubled, lambda request: said({}, 429, Retry_After=wanted) if request == 0 else None) as model:
        assert endpoint(model.url).ask(NUMBERS[:1]) == [{"n": 0}]
    assert held == [7.0]


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nServer: x", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
def test_a_server_that_trickles_is_left_after_the_time_for_one_request(start):
    with trickling(start) as url, pytest.raises(InfrastructureError, match=r"no complete response in 0\.3 s"):
        endpoint(url, timeout=0.3, retries=0).ask(NUMBERS[:1])


def test_a_response_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 1000)
    with served(lambda one: {"n": "x" * 2000}) as model, pytest.raises(UsageError, match="more than 1,000 bytes"):
        endpoint(model.url).ask(NUMBERS[:1])


def test_a_key_goes_into_the_header_it_is_wanted_in(monkeypatch):
    monkeypatch.setenv("TINY_KEY", "abc")
    with served(doubled) as model:
        headers = {"X-Model-Version": "7"}
        endpoint(model.url, key_env="TINY_KEY", key_header="X-API-Key", headers=headers).ask(NUMBERS[:1])
    sent = {name.lower(): value for name, value in model.headers[0].items()}
    assert (sent["x-api-key"], sent["x-model-version"], "authorization" in sent) == ("abc", "7", False)


@pytest.mark.parametrize("url", ["http://localhost:80/a", "http://[::1]:8000/", "https://m.example"])
def test_a_key_may_go_to_this_machine_or_over_https(url):
    assert EndpointConfig(endpoint=url, key_env="KEY").key_env == "KEY"


@pytest.mark.parametrize(("before", "after", "same"), [(0.994999, 0.995001, True), (0.5, 0.507, False)])
def test_numbers_are_compared_as_finely_as_they_are_kept(before, after, same, tmp_path):
    score = before
    with served(lambda one: {"scores": [score, 1 - score]}) as model:
        keep_answers(endpoint(model.url), NUMBERS[:1], tmp_path)
        check_answers(endpoint(model.url), tmp_path)
        score = after
        with contextlib.nullcontext() if same else pytest.raises(UsageError, match="answers differently"):
            check_answers(endpoint(model.url), tmp_path)


def test_another_address_is_another_model(tmp_path):
    with served(doubled) as model:
        keep_answers(endpoint(model.url), NUMBERS[:2], tmp_path)
        with pytest.raises(UsageError, match=r"was prepared for .*/answer, params\.yaml names .*/other: run prepare"):
            check_answers(endpoint(model.url.replace("answer", "other")), tmp_path)
        with pytest.raises(UsageError, match=r"names .*/answer, with another query or other headers: run") as told:
            check_answers(endpoint(f"{model.url}?user=ada"), tmp_path)
        assert "ada" not in str(told.value)
