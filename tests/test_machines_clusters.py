"""Whole audits on machines that share an S3-compatible remote on loopback and a Dask or Ray cluster."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.clusters import Cluster, answers, clone, dvc, lock, run, s3_remote
from tests.finished import run_toys
from tests.servers import free_port, until
from tests.test_kill import all_gone, running
from tests.test_runners import clusters
from tests.workspace import STAGES, Workspace, audit_params, make_workspace

RUNNERS = clusters(pytest.mark.nightly)


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


def at_work(worker: Workspace) -> bool:
    record = worker.path / "executed.txt"
    return record.exists() and "discover@tiny" in record.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS)
def test_two_machines_of_which_one_is_killed_come_to_what_one_comes_to(kind, s3, prefect_server, tmp_path):
    """Nothing is computed twice, except the stage that was running there."""
    audits = {"tiny": audit_params(), "other": audit_params()}
    origin = make_workspace(tmp_path / "origin", audits, {}, toys=True)
    s3_remote(origin, s3)
    dvc(origin, "remote", "modify", "store", "url", f"s3://bucket/{kind}")
    origin.write_params({**origin.params(), "runner": {"kind": kind, "workspace": "/told/by/the/environment"}})
    run(origin, "git", "commit", "--quiet", "--all", "--message", "machines")
    driver, alone, *workers = (clone(origin, tmp_path / name) for name in ("driver", "alone", "one", "two"))
    run_toys(alone)
    cluster = Cluster(kind, tmp_path)
    try:
        for worker in workers:
            cluster.add(worker)
            worker.toy(discover__tiny={"until": "go"})
        address = f"{cluster.kind}={cluster.address}"
        process = driver.start("audit", "--all", "--runner", address, PREFECT_API_URL=prefect_server)
        log = driver.path / ".faded-test.log"
        until(lambda: any(at_work(worker) for worker in workers) or process.poll() is not None, log=log)
        dying = next(i for i, worker in enumerate(workers) if at_work(worker))
        stage = running("-m stages.discover", workers[dying])
        cluster.lose(dying)
        assert all_gone([stage])  # no orphan keeps running
        (workers[1 - dying].path / "go").touch()
        assert process.wait(timeout=300) == 0, log.read_text()
    finally:
        cluster.end()
    outputs = tuple(f"*/{kind}/**/*" for kind in STAGES)
    assert driver.digests(*outputs) == alone.digests(*outputs)
    assert lock(driver) == lock(alone) and len(lock(alone)) == 10  # including the stages `code`
    elsewhere = [worker.executed() for worker in workers]
    assert driver.executed() == [] and all(elsewhere)  # both worked
    assert sorted([*elsewhere[0], *elsewhere[1]]) == sorted([*alone.executed(), "discover@tiny"])
    for worker in workers:
        assert f"from {socket.gethostname()}:{worker.path}" in log.read_text()
