"""The Prefect servers that Faded starts: access, the runs of its worker, and what happens when they die."""

import contextlib
import http.client
import io
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from flows.recur.deploy import apply
from flows.recur.schedule import add_missing, read_entries
from flows.server import RECORD, OwnServer, prefect_link, responds, served_api, talking_to
from flows.server.security import authorization, client_settings, new_credential
from flows.server.tables import make_tables
from stages.params import load_params
from tests.servers import long_lived_server
from tests.shared import prefect_home, spare_migrations
from tests.workspace import ROOT, Workspace

NOBODY = 65534
COMMAND = {"command": "touch marker"}


@pytest.fixture(scope="module")
def place(_new_toys, tmp_path_factory) -> Iterator[Workspace]:
    toys = _new_toys.copy(tmp_path_factory.mktemp("served") / "toys")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(toys.path)
        spare_migrations(toys.path)
        add_missing(load_params())
        yield toys


@pytest.fixture(scope="module")
def server(place) -> Iterator[OwnServer]:
    """Its server, run as by `faded serve`, with its deployments."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}), long_lived_server(0) as own, own.clients():
        apply(read_entries())
        yield own


def as_nobody(ask: list[tuple[str, str, dict[str, str]]], port: int) -> list[int]:
    """Status of each request (method, path, headers) for another user of this machine."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.setuid(NOBODY)
        said = []
        for method, path, headers in ask:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request(method, path, headers=headers)
            said.append(connection.getresponse().status)
            connection.close()
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        text = answers.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(text)


def test_tables_are_made_in_another_process_once_for_each_version_of_prefect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home, code, runs = tmp_path / ".faded/prefect", 1, []

    def upgrade(command, **_):
        runs.append(command)
        (home / "prefect.db").unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database, database:
            database.execute("CREATE TABLE alembic_version AS SELECT 'newest' AS version_num")
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", upgrade)
    home.mkdir(parents=True)
    ours, log = f"sqlite+aiosqlite:///{home}/prefect.db", io.StringIO()
    with contextlib.closing(OwnServer(0)) as server:
        assert not server._tables_ready("postgresql://elsewhere/prefect", log), "somebody else's database"
        assert not runs
        assert not server._tables_ready(ours, log), "the upgrade failed, so the server has to say why"
        code = 0
        assert server._tables_ready(ours, log) and server._tables_ready(ours, log)
        assert len(runs) == 2, "a finished database needs nothing"
        (home / "made-by").write_text("2.0")
        assert server._tables_ready(ours, log)
        (home / "prefect.db").write_text("no database")
        assert server._tables_ready(ours, log)
    assert ["flows.server.tables" in command for command in runs] == [True, False, False, False], "the rest upgrades"
    assert len(runs) == 4 and (home / "made-by").read_text() == version("prefect")


@pytest.mark.slow
def test_a_new_database_is_as_prefect_makes_it(tmp_path):
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    subprocess.run(command, env={**os.environ, "PREFECT_HOME": str(tmp_path)}, stdout=subprocess.DEVNULL, check=True)

    def read(database: Path) -> tuple[dict[str, list[str]], list[str]]:
        """The lines of its definitions, as the order of a table's constraints varies, and its version."""
        with contextlib.closing(sqlite3.connect(database)) as connection:
            rows = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()
            lines = {name: sorted(re.split(r",\s*|\n", sql or "")) for name, sql in rows}
            return lines, connection.execute("SELECT * FROM alembic_version").fetchall()

    assert read(prefect_home() / "prefect.db") == read(tmp_path / "prefect.db")


def test_a_database_that_cannot_be_made_is_left_to_prefect(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("alembic.script.ScriptDirectory.from_config", lambda _: 1 / 0)
    assert not make_tables(tmp_path / "prefect.db") and "ZeroDivisionError" in capsys.readouterr().err
    assert not (tmp_path / "prefect.db").exists()


@pytest.mark.slow
def test_prefect_does_not_know_of_the_credential_and_a_new_workspace_gets_its_database(tmp_path):
    script = """if True:
        from flows.server import app
        app()
        from prefect.settings import get_current_settings
        assert get_current_settings().server.api.auth_string is None"""
    home = tmp_path / ".faded/prefect"
    home.mkdir(parents=True)
    env = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_API_AUTH_STRING": "secret"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0 and (home / "prefect.db").exists(), done.stderr.decode()


@pytest.mark.slow
def test_another_user_gets_no_answer_but_401_from_any_route(server):
    shown = {"Authorization": authorization(server.credential)}
    base = server.api.removesuffix("/api")
    described = httpx.get(f"{server.api}/openapi.json", headers=shown, timeout=60).json()["paths"]
    routes = [(method.upper(), path) for path, methods in described.items() for method in methods]
    assert len(routes) > 150
    pages = httpx.get(base, headers={**shown, "Accept": "text/html"}, follow_redirects=True)
    assert pages.status_code == 200 and "<script" in pages.text
    static = [word.strip("\"'") for word in pages.text.replace(">", " ").split() if "/assets/" in word]
    routes += [("GET", "/" + word.partition("/")[2].strip("\"'")) for word in static]
    others = ("/", "/docs", "/openapi.json", "/api/docs", "/api/openapi.json", "/api/health", "/api/ready",
              "/api/csrf-token?client=x", "/ui-settings", "/runs", "/faded/open", "/faded/open?token=x")  # fmt: skip
    routes += [("GET", path) for path in others] + [("POST", "/faded/links"), ("OPTIONS", "/api/flow_runs/")]
    sockets = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "prefect"}  # fmt: skip
    ask: list[tuple[str, str, dict[str, str]]] = [(method, path, {}) for method, path in routes]
    for path in ("/api/events/in", "/api/events/out", "/api/logs/out", "/api/task_runs/subscriptions/scheduled"):
        ask.append(("GET", path, sockets))
    host = f"{server.host}:{server.port}"
    ask += [("GET", "/api/health", headers) for headers in (
        {"Host": host}, {"Host": "example.org"}, {"Host": host, "Cookie": "faded-prefect=x"},
        {"Authorization": authorization("faded:x")}, {"Authorization": "Bearer x"}, {"Authorization": ""},
    )]  # fmt: skip
    told = as_nobody(ask, server.port)
    assert {one: code for one, code in zip(map(str, ask), told, strict=True) if code != 401} == {}


@pytest.mark.slow
def test_the_credential_is_in_no_command_line_no_log_and_no_file_that_others_read(server, place):
    process = psutil.Process(json.loads(RECORD.read_text())["pid"])
    assert server.credential not in " ".join(process.cmdline()) and RECORD.stat().st_mode & 0o077 == 0
    holding = [path for path in Path(".faded").rglob("*") if path.is_file() and server.credential in
               path.read_bytes().decode("latin-1")]  # fmt: skip
    assert holding == [RECORD]


@pytest.mark.slow
def test_a_credential_is_the_users_own_or_new_and_is_shown_to_its_server_alone(server):
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING, get_current_settings, temporary_settings

    assert served_api() == server.api and responds(server.api)
    for api, credential in ((server.api, authorization(server.credential)), ("http://127.0.0.1:9/api", "")):
        with talking_to(api):  # the second is where a server of this workspace may have been once
            assert str(get_current_settings().client.custom_headers["Authorization"]) == credential
    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: "ada:secret"}):
        assert new_credential() == "ada:secret"
    assert new_credential() != new_credential()
    assert "PREFECT_API_AUTH_STRING" not in map(str, client_settings("http://127.0.0.1:4200/api"))


@pytest.mark.slow
def test_the_documented_commands_call_the_api(server, place):
    page = (ROOT / "docs/schedule.md").read_text()
    commands = page[page.index("    record=") : page.index("The worker runs only")].replace("prefect flow-run ls", "")
    done = subprocess.run(["bash", "-ec", commands], capture_output=True, text=True, check=True)
    assert isinstance(json.loads(done.stdout), list)


@pytest.mark.slow
def test_a_run_that_is_taken_is_started_as_prefect_yaml_says(server, place):
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    from flows.worker import claim

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("audit/tiny")
        run = client.create_flow_run_from_deployment(deployment.id)
        taken = claim(client, "faded")
        assert taken is not None
        command, environment = taken
        assert command == ["python", "-P", "-m", "flows.start.engine"]
        assert environment["PREFECT__FLOW_ENTRYPOINT"] == "flows.audit.audit"
        assert environment["PREFECT__FLOW_RUN_ID"] == str(run.id)
        assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert client.read_flow_run(run.id).state.is_pending()
        # Another of the same audit waits for it.
        client.create_flow_run_from_deployment(deployment.id)
        assert claim(client, "faded") is None
        for one in client.read_flow_runs():
            client.set_flow_run_state(one.id, Cancelled(), force=True)


@pytest.mark.slow
def test_a_worker_refuses_what_is_not_the_deployments_own(server, place):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    from flows.worker import claim

    step = {"prefect.deployments.steps.run_shell_script": {"script": "touch marker"}}
    with get_client(sync_client=True) as client:
        for old in client.read_flow_runs():
            client.delete_flow_run(old.id)
        deployment = client.read_deployment_by_name("audit/tiny")

        def refusal(**run: Any) -> str:
            created = client.create_flow_run_from_deployment(deployment.id, **run)
            assert claim(client, "faded") is None
            state = client.read_flow_run(created.id).state
            assert state.is_failed(), run
            return state.message

        for change in (
            {"job_variables": COMMAND},
            {"job_variables": {"env": {"PYTHONSTARTUP": "x.py"}}},
            {"parameters": {"runner": "dask=tcp://127.0.0.1:9"}},
        ):
            told = refusal(**change)
            assert "refused: " in told and "prefect.yaml says" in told
        # The deployment itself is changed on the server.
        for change in ({"job_variables": COMMAND}, {"pull_steps": [step]}, {"entrypoint": "evil.py:flow"}):
            before = {name: getattr(deployment, name) for name in change}
            client.update_deployment(deployment.id, DeploymentUpdate(**change))
            assert "refused: " in refusal(), change
            client.update_deployment(deployment.id, DeploymentUpdate(**before))


def test_parameters_that_were_changed_since_are_refused_by_the_run_itself(monkeypatch):
    from flows.start.engine import ALLOWED, foreign_parameters

    assert foreign_parameters(audits=["tiny"], runner="dask=tcp://127.0.0.1:9") is None  # set by another worker
    monkeypatch.setenv(ALLOWED, json.dumps([{"audits": ["tiny"]}]))
    assert foreign_parameters(audits=["tiny"], runner=None) is None
    assert "refused" in str(foreign_parameters(audits=["tiny"], runner="dask=tcp://127.0.0.1:9"))


def kill_server(toys: Workspace, process: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(process.pid).children():
        if "flows.server:app" in child.cmdline():
            child.kill()


@pytest.mark.slow
def test_an_audit_whose_server_dies_goes_on_with_another_and_ends_in_one_line_if_all_do(toys):
    from tests.test_kill import running

    toys.toy(discover__tiny={"sleep": 600})
    process = toys.start("audit")
    running("-m stages.discover", toys)
    while process.poll() is None:
        kill_server(toys, process)
        try:
            process.wait(0.3)
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 3
    last = (toys.path / ".faded-test.log").read_text().splitlines()[-1]
    assert last.startswith("error: the local Prefect server died 3 times in a row")
    toys.toy(discover__tiny={"sleep": 5})
    process = toys.start("audit")
    running("-m stages.discover", toys)
    kill_server(toys, process)
    assert process.wait(timeout=300) == 0
    ran = toys.executed()
    assert (ran.count("prepare@tiny"), ran.count("re_evaluate@tiny")) == (1, 1)
    assert "Traceback" not in (toys.path / ".faded-test.log").read_text()


# Last: a browser's event loop runs in this thread until the module ends.
SOCKET = """() => new Promise(done => {
    const socket = new WebSocket(`ws://${location.host}/api/events/out`, "prefect")
    socket.onopen = () => socket.send(JSON.stringify({type: "auth", token: null}))
    socket.onmessage = message => done(message.data)
    socket.onerror = () => done("refused")
})"""


@pytest.fixture(scope="module")
def run(server) -> str:
    """The name of a flow run, made before there is a browser, whose event loop conflicts with Prefect's."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.create_flow_run_from_deployment(client.read_deployment_by_name("audit/tiny").id).name


@pytest.mark.slow
def test_pages_open_by_a_link_that_works_once_under_a_name_of_their_own(server, run, browser):
    base = f"http://{server.host}:{server.port}"
    context = browser.new_context()
    page = context.new_page()
    assert page.goto(f"{base}/runs").status == 401 and "faded serve --link" in page.content()
    link = prefect_link()
    assert page.evaluate(SOCKET) == "refused"
    failed: list[str] = []
    page.on("response", lambda r: failed.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.goto(link)
    page.goto(f"{base}/runs")
    page.get_by_text(run).first.wait_for(timeout=60_000)
    assert page.evaluate(SOCKET) == '{"type":"auth_success"}' and failed == []
    [cookie] = [one for one in context.cookies() if one["httpOnly"]]  # scripts of Prefect's pages set others
    assert (cookie["domain"], cookie["sameSite"]) == (server.host, "Lax")
    # The same by address: the cookie counts only under its own host name, and not for pages of others.
    sent = {"Cookie": f"{cookie['name']}={cookie['value']}"}
    for host, code in ((server.host, 200), ("127.0.0.1", 401), ("localhost", 401)):
        answer = httpx.get(f"{server.api}/health", headers={**sent, "Host": f"{host}:{server.port}"})
        assert answer.status_code == code, host
    for origin, code in ((base, 403), (f"{base}9", 401), ("null", 401)):  # 403: Prefect's own token is missing
        asked = {**sent, "Host": f"{server.host}:{server.port}", "Origin": origin}
        assert httpx.post(f"{server.api}/flow_runs/filter", json={}, headers=asked).status_code == code
    stranger = browser.new_context().new_page()
    assert stranger.goto(link).status == 401  # it worked once
    assert stranger.goto(f"{base}/api/health").status == 401
    context.close()


@pytest.mark.slow
def test_nobody_else_gets_the_port_on_the_other_loopback_address_where_browsers_look_too(server):
    with socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no ::1")
    with socket.socket(socket.AF_INET6) as other, pytest.raises(OSError, match="in use"):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("::1", server.port))
