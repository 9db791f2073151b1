"""Notifications, through Prefect's own blocks, to servers on loopback."""

import contextlib
import json
import queue
import socket
from collections.abc import Iterator

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.recur.deploy import make_automations
from flows.recur.notify import block_id, current, forget_notice, notify, send_test, set_block, set_url
from flows.recur.schedule import add_missing
from flows.serve import RECORDS
from flows.server import HOME, OwnServer
from flows.server.security import authorization
from stages.core.errors import InfrastructureError, UsageError
from stages.params import load_params
from tests.servers import Came, http_server
from tests.shared import spare_migrations

SECRET = "s3cr3t-t0ken"


@pytest.fixture
def here(toys, monkeypatch, prefect_server) -> Iterator[None]:
    monkeypatch.chdir(toys.path)
    add_missing(load_params())
    yield
    set_block(None)


@pytest.fixture
def hook() -> Iterator[tuple[str, queue.Queue[Came]]]:
    """A server that records what is posted: its URL, and the requests."""
    with http_server(lambda path: (403 if "refused" in path else 200, {}, b"")) as (port, came):
        yield f"http://127.0.0.1:{port}", came


def test_a_webhook_is_told(here, hook):
    url, came = hook
    assert set_url("webhook", f"{url}/{SECRET}") == "custom-webhook/faded" == current()
    notify("needs decision", "tiny", "look at http://127.0.0.1:8711/review/tiny")
    message = came.get(timeout=30)
    content = json.loads(message.body)
    assert message.path == f"/{SECRET}" and content["subject"] == "faded: tiny needs your decision"
    assert content["body"] == "look at http://127.0.0.1:8711/review/tiny"
    assert content["text"] == f"{content['subject']}\n{content['body']}"
    send_test()
    assert "faded: test" in came.get(timeout=30).body


def test_one_result_is_told_once_until_another_came_between(here, hook):
    url, came = hook
    notify("gate failed", "tiny", "nobody is set", "result 1")
    set_url("webhook", f"{url}/refused")
    notify("gate failed", "tiny", "not taken", "result 1")
    set_url("webhook", url)
    for told, send in (
        (True, lambda: notify("gate failed", "tiny", "first", "result 1")),  # nobody was notified yet
        (False, lambda: notify("gate failed", "tiny", "again", "result 1")),
        (True, lambda: notify("gate failed", "other", "of another audit", "result 1")),
        (True, lambda: notify("gate failed", "tiny", "another", "result 2")),
        (True, lambda: notify("broken", "tiny", "new each time")),
        (True, lambda: notify("broken", "tiny", "new each time")),
        (True, lambda: notify("gate failed", "tiny", "as before", "result 2")),
        (True, lambda: (forget_notice("tiny"), notify("gate failed", "tiny", "after a pass", "result 2"))),
    ):
        while not came.empty():
            came.get()
        send()
        assert came.empty() is not told  # the response arrives before `notify` returns


@pytest.mark.slow
def test_the_server_of_a_command_keeps_addresses_from_files_and_other_sites_from_its_api(toys, hook, monkeypatch):
    monkeypatch.chdir(toys.path)
    spare_migrations(toys.path)
    add_missing(load_params())
    url, came = hook
    with contextlib.closing(OwnServer(0, RECORDS)) as server:
        with pytest.raises(OSError, match="in use"):  # held from the start, not only once the server runs
            socket.create_server(("127.0.0.1", server.port))
        server.start()
        server.wait()
        with server.clients():
            set_url("webhook", f"{url}/{SECRET}")
            notify("needs decision", "tiny", "look")
        assert came.get(timeout=30).path == f"/{SECRET}"  # so it is stored somewhere

        assert httpx.get(f"{server.api}/health").status_code == 401
        shown = {"Authorization": authorization(server.credential)}
        assert httpx.get(f"{server.api}/health", headers=shown).status_code == 200
        assert httpx.get(f"{server.api}/health", headers={**shown, "Host": "example.org"}).status_code == 401
        # And somebody who made a browser send it would lack the token for changes.
        assert httpx.post(f"{server.api}/flow_runs/filter", json={}, headers=shown).status_code == 403
    files = [path for path in toys.path.rglob("*") if path.is_file()]
    assert HOME / "prefect.db" in [path.relative_to(toys.path) for path in files]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert HOME.stat().st_mode & 0o077 == 0  # the key that encrypts the address is beside it


def test_the_server_shows_nobody_the_address_and_automations_use_the_block_while_it_is_set(here, hook):
    set_url("webhook", f"{hook[0]}/{SECRET}")
    set_url("slack", f"https://hooks.slack.com/services/T00000000/B00000000/{'x' * 24}")
    assert current() == "slack-webhook/faded"
    with get_client(sync_client=True) as client:
        for kind in ("custom-webhook", "slack-webhook"):
            document = client.read_block_document_by_name("faded", kind, include_secrets=False)
            assert SECRET not in str(document.data) and "xxxxxx" not in str(document.data)
        block = block_id(client)
        set_block(None)
        assert block is not None and block_id(client) is None
    names = {block: [automation.name for automation in make_automations("faded", [], block)] for block in (block, None)}
    assert names == {block: ["faded: tell of dead runs", "faded: tell of late runs"], None: []}


def test_one_that_fails_costs_an_audit_nothing_and_a_test_tells_of_it_without_the_address(here, hook, caplog):
    url, came = hook
    notify("broken", "tiny", "nobody is set")
    assert came.empty() and not caplog.records
    set_url("webhook", f"{url}/refused-{SECRET}")
    notify("broken", "tiny", "not taken")
    assert "nobody was notified that tiny: broken (the server answered 403 Forbidden)" in caplog.text
    assert SECRET not in caplog.text
    with pytest.raises(InfrastructureError, match="did not arrive: the server answered 403 Forbidden") as told:
        send_test()
    assert SECRET not in str(told.value)
    set_url("webhook", "http://127.0.0.1:9/nobody")
    with pytest.raises(InfrastructureError, match="cannot be reached"):
        send_test()


def test_without_any_server_nobody_is_asked(toys, monkeypatch):
    monkeypatch.chdir(toys.path)
    monkeypatch.setattr("flows.recur.notify.current", lambda: pytest.fail("asked"))
    monkeypatch.setattr("flows.server.served_api", lambda: None)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        notify("broken", "tiny", "nobody")


def test_addresses_of_another_kind_are_refused_without_being_shown(here):
    assert set_url("email", "mailto://127.0.0.1?from=a@example.org&to=b@example.org") == "slack-webhook/faded-email"
    set_block(None)
    for kind, url in (("slack", f"https://example.org/{SECRET}"), ("email", f"smtp:{SECRET}"), ("webhook", "x:y")):
        with pytest.raises(UsageError, match=f"--{kind}: .* is not a valid address, expected one like ") as told:
            set_url(kind, url)
        assert SECRET not in str(told.value)
    with pytest.raises(UsageError, match=r"--block 'slack-webhook/nobody': .*expected TYPE/NAME"):
        set_block("slack-webhook/nobody")
    with pytest.raises(UsageError, match="no notifications are set"):
        send_test()
