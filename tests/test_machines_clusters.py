"""Whole audits on machines that share an S3-compatible remote on loopback and a Dask or Ray cluster."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest

from tests.clusters import Cluster, answers, clone, dvc, lock, run, s3_remote, until
from tests.finished import SEARCH, quick_audit
from tests.servers import free_port
from tests.test_kill import all_gone, running
from tests.workspace import STAGES, Workspace, make_workspace, repair_params

KINDS = ("prepare", "discover", "summarize", "report")
TRAVELLERS = (*KINDS, "restructure", "re_evaluate", "compare", "conclude")
RUNNERS = [
    pytest.param(
        "dask", marks=pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")
    ),
    pytest.param(
        "ray", marks=(pytest.mark.nightly, pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"))
    ),
]


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[str]:
    """An S3-compatible server on loopback with a bucket; yields its URL."""
    pytest.importorskip("moto", reason="moto is not installed (extra: dev)")
    pytest.importorskip("s3fs", reason="dvc[s3] is not installed")
    import boto3

    url = f"http://127.0.0.1:{(port := free_port())}"
    with (tmp_path_factory.mktemp("s3") / "log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: answers(port))
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # for workers and driver as well
                patch.setenv(name, "testing")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            boto3.client("s3", endpoint_url=url).create_bucket(Bucket="bucket")
            yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture
def machines(s3, tmp_path) -> Iterator[Callable[[Workspace, str], tuple[Workspace, list[Workspace], Cluster]]]:
    """A function that turns a workspace into a driver and two workers, which share their own remote on S3."""
    clusters = []

    def make(origin: Workspace, kind: str) -> tuple[Workspace, list[Workspace], Cluster]:
        s3_remote(origin, s3)
        dvc(origin, "remote", "modify", "store", "url", f"s3://bucket/{tmp_path.name}")
        origin.write_params({**origin.params(), "runner": {"kind": kind, "workspace": "/told/by/the/environment"}})
        run(origin, "git", "commit", "--quiet", "--all", "--message", "machines")
        driver, *workers = (clone(origin, tmp_path / name) for name in ("driver", "one", "two"))
        clusters.append(cluster := Cluster(kind, tmp_path))
        for worker in workers:
            cluster.add(worker)
        return driver, workers, cluster

    yield make
    for cluster in clusters:
        cluster.end()


def audited(driver: Workspace, cluster: Cluster, server: str) -> str:
    done = driver.faded("audit", "--all", "--runner", f"{cluster.kind}={cluster.address}", PREFECT_API_URL=server)
    assert done.returncode == 0, done.stdout
    return done.stdout


def stages_run_in(workspace: Workspace) -> set[str]:
    return {path.stem for path in (workspace.path / ".faded/logs").glob("*.log")}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed")
def test_two_machines_come_to_what_one_comes_to(machines, prefect_server, tmp_path):
    audits = {"tiny": quick_audit(discover={**SEARCH, "explorer": "ppo"}), "other": quick_audit()}
    origin = make_workspace(tmp_path / "origin", audits, {"tiny": repair_params()})
    driver, workers, cluster = machines(origin, "dask")
    alone = clone(origin, tmp_path / "alone")
    told = audited(driver, cluster, prefect_server)
    done = alone.faded("audit", "--all", "--runner", "threads", PREFECT_API_URL=prefect_server)
    assert done.returncode == 0, done.stdout
    assert lock(driver) == lock(alone)
    assert len(lock(alone)) == 15  # including the stages `code`
    outputs = tuple(f"*/{kind}/**/*" for kind in STAGES)
    assert driver.digests(*outputs) == alone.digests(*outputs)
    elsewhere = [stages_run_in(worker) for worker in workers]
    assert all(elsewhere)  # both worked
    expected = {f"{kind}@tiny" for kind in TRAVELLERS} | {f"{kind}@other" for kind in KINDS}
    assert set.union(*elsewhere) == expected
    assert stages_run_in(driver) == {"collect_feedback@tiny"}
    for worker in workers:
        assert f"from {socket.gethostname()}:{worker.path}" in told
    assert f"report: {driver.path}/data/tiny/conclude/report.html" in told


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS)
def test_a_machine_that_is_killed_is_made_up_for_and_nothing_is_computed_again(
    kind, machines, prefect_server, tmp_path
):
    driver, workers, cluster = machines(make_workspace(tmp_path / "origin", toys=True), kind)
    for worker in workers:
        worker.toy(discover__tiny={"until": "go"})
    process = driver.start(
        "audit", "--all", "--runner", f"{cluster.kind}={cluster.address}", PREFECT_API_URL=prefect_server
    )
    log = driver.path / ".faded-test.log"
    until(lambda: any(at_work(worker) for worker in workers) or process.poll() is not None, log=log)
    dying = next(i for i, worker in enumerate(workers) if at_work(worker))
    stage = running("-m stages.discover", workers[dying])
    cluster.lose(dying)
    assert all_gone([stage])  # no orphan keeps running
    (workers[1 - dying].path / "go").touch()
    assert process.wait(timeout=300) == 0, log.read_text()
    executed = [stage for workspace in (driver, *workers) for stage in workspace.executed()]
    assert sorted(executed) == sorted(
        [*(f"{kind}@tiny" for kind in (*TRAVELLERS, "collect_feedback")), "discover@tiny"]
    )


def at_work(worker: Workspace) -> bool:
    record = worker.path / "executed.txt"
    return record.exists() and "discover@tiny" in record.read_text()
