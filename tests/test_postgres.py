"""PostgreSQL as Prefect's database: audits, schedules and their history survive a restart."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.recur.schedule import add_missing
from stages.params import load_params
from tests.servers import client_of, free_port
from tests.test_serve import Served
from tests.workspace import STAGES

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARIES, reason="no PostgreSQL here (/usr/lib/postgresql/*/bin)"),
    pytest.mark.skipif(os.geteuid() == 0 and shutil.which("runuser") is None, reason="PostgreSQL refuses root"),
]


def as_postgres(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of PostgreSQL, which refuses to run as root."""
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    program = str(BINARIES[-1].with_name(command[0]))
    done = subprocess.run(
        [*user, program, *command[1:]], cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def database() -> Iterator[str]:
    """A temporary cluster on loopback, and the URL of an empty database in it."""
    folder = Path(tempfile.mkdtemp(prefix="faded-pg-"))  # short, as a socket's path is limited
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data, port = str(folder / "data"), free_port()
    as_postgres("initdb", "--pgdata", data, "--auth", "trust", "--username", "faded", "--no-sync")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    # A log file keeps the server from holding our pipe open.
    as_postgres("pg_ctl", "--pgdata", data, "--wait", "--options", options, "--log", str(folder / "log"), "start")
    try:
        as_postgres("createdb", "--host", "127.0.0.1", "--port", str(port), "--username", "faded", "prefect")
        yield f"postgresql+asyncpg://faded@127.0.0.1:{port}/prefect"
    finally:
        as_postgres("pg_ctl", "--pgdata", data, "--mode", "immediate", "stop")
        shutil.rmtree(folder)


def test_an_audit_through_it_and_schedules_over_a_restart(database, toys, monkeypatch):
    monkeypatch.chdir(toys.path)
    add_missing(load_params())
    assert toys.faded("schedule", "tiny", "--cron", "0 3 * * 1").returncode == 0
    env = {"PREFECT_API_DATABASE_CONNECTION_URL": database}
    with Served(toys, **env) as served:
        run = served.run()
        assert served.ended(run).name == "Completed" and toys.executed() == [f"{stage}@tiny" for stage in STAGES]
        with client_of(served.api) as client:
            before = client.read_deployment_by_name("audit/tiny")
        served.process.terminate()
        assert served.process.wait(timeout=60) == 0

    with Served(toys, **env) as served:
        with client_of(served.api) as client:
            after = client.read_deployment_by_name("audit/tiny")
            assert (after.id, [schedule.active for schedule in after.schedules]) == (before.id, [True])
            assert client.read_flow_run(run).state.is_completed()
        assert not (toys.path / ".faded/prefect/prefect.db").exists()
        assert served.ended(served.run()).message.startswith("nothing changed")
