"""Workers without access to the driver's files: clones that share only a DVC remote."""

import fcntl
import json
import re
import shutil
import socket
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from flows.graph import read_graph
from flows.places.machines.driver import check_machines, pack, take_back, travels
from flows.places.machines.worker import run_there
from flows.places.runners import Job
from flows.places.runners.threads import run_apart
from flows.run_stage import Shipment, ShipmentResult, StageResult
from flows.workspace import exclusive
from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import read_state, write_state
from stages.params.file import RunnerConfig
from stages.provenance import versions
from tests.clusters import clone, dvc, lock, run, s3_remote
from tests.finished import inside
from tests.servers import free_port, until
from tests.workspace import ROOT, Workspace, make_workspace


def there(worker: Workspace, **changes: Any) -> RunnerConfig:
    return RunnerConfig(kind="dask", workspace=str(worker.path), **changes)


def ship(driver: Workspace, worker: Workspace, *stages: str) -> list[tuple[Shipment, StageResult]]:
    """Bring stages up to date in a worker's clone and take them back, as a run does."""
    shipped = []
    with inside(driver):
        read_graph()  # as every run begins
        for stage in stages:
            shipment = pack(stage, there(worker))
            assert shipment is not None
            result = run_there(shipment, lambda line: None)
            assert result.made is not None
            take_back(shipment, result.made)
            shipped.append((shipment, result))
    return shipped


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Workspace:
    """A committed workspace of toys with a folder as its remote, from which machines are cloned."""
    home = tmp_path_factory.mktemp("machines")
    toys = make_workspace(home / "origin", toys=True)
    dvc(toys, "remote", "add", "--default", "shared", str(home / "remote"))
    run(toys, "git", "commit", "--quiet", "--all", "--message", "a remote")
    return toys


@pytest.fixture(scope="module")
def made(origin, tmp_path_factory) -> tuple[Workspace, Workspace, list[tuple[Shipment, StageResult]]]:
    """A driver, a worker, and the results of two stages."""
    home = tmp_path_factory.mktemp("made")
    driver, worker = clone(origin, home / "driver"), clone(origin, home / "worker")
    keys = "['remote \"keys\"']\n    url = s3://bucket\n    secret_access_key = s3cret\n"
    (driver.path / ".dvc" / "config.local").write_text(keys)
    # With a linked cache, git's own files must still be files.
    dvc(driver, "config", "--local", "cache.type", "symlink")
    return driver, worker, ship(driver, worker, "prepare@tiny", "discover@tiny")


def test_a_stage_runs_in_the_clone_and_is_the_drivers_as_if_it_had_run_there(made):
    driver, worker, shipped = made
    assert (worker.path / "executed.txt").read_text().split() == ["prepare@tiny", "discover@tiny"]
    assert not (driver.path / "executed.txt").exists()
    assert [result.outcome for _, result in shipped] == ["ran"] * 2
    with inside(driver):
        assert [stage.name for stage in read_graph() if not stage.stale] == ["prepare@tiny", "discover@tiny"]
    outputs = ("tiny/prepare/**/*", "tiny/discover/**/*")
    assert driver.digests(*outputs) == worker.digests(*outputs) != {}
    assert (driver.path / "data/tiny/discover/probes.parquet").is_symlink()
    # Nothing else of the clone is changed.
    changed = {line[3:] for line in run(worker, "git", "status", "--porcelain").splitlines()}
    assert changed - {"executed.txt", "spans.jsonl"} == {"data/tiny/code.json", "dvc.lock"}  # others than of toys


def test_what_travels_beside_the_remote_is_small_and_holds_no_secret(made):
    _, _, shipped = made
    for shipment, result in shipped:
        text = shipment.model_dump_json() + result.model_dump_json()
        assert "s3cret" not in text and len(text) < 50_000
        assert set(shipment.files) == {"params.yaml", "dvc.yaml", "faded.json"}
    sent = [entry["path"] for entry in shipped[1][0].inputs if "prepare" in entry["path"]]
    assert sent == [f"data/tiny/prepare/{name}" for name in ("model", "assets", "items.parquet", "fingerprint.json")]


def test_what_one_machine_pushed_no_other_computes(made, origin, tmp_path):
    driver, second = clone(origin, tmp_path / "driver"), clone(origin, tmp_path / "second")
    records = Path(origin.path.parent / "remote" / "runs")
    for i in range(20):  # of other audits and years: not moved
        (records / f"{i:02x}" / f"{i:064x}").mkdir(parents=True)
        (records / f"{i:02x}" / f"{i:064x}" / "0").write_text("")
    [(_, result)] = ship(driver, second, "prepare@tiny")
    assert result.outcome == "restored"
    assert not (second.path / "executed.txt").exists()
    assert lock(driver)["prepare@tiny"] == lock(made[0])["prepare@tiny"]
    assert len([path for path in (second.path / ".dvc/cache/runs").rglob("*") if path.is_file()]) == 1


def test_what_the_driver_has_already_goes_nowhere(made, tmp_path):
    driver, worker, _ = made
    driver = driver.copy(tmp_path / "driver")
    with inside(driver):
        assert pack("discover@tiny", there(worker)) is None  # it is up to date
        shutil.rmtree("data/tiny/discover")
        assert pack("discover@tiny", there(worker)) is None  # it is in DVC's run-cache
        shutil.rmtree(".dvc/cache/runs")
        assert pack("discover@tiny", there(worker)) is not None


@pytest.mark.slow
def test_a_clone_with_other_code_or_inputs_is_refused_and_what_a_stage_says_of_its_input_comes_back(origin, tmp_path):
    driver, worker = clone(origin, tmp_path / "driver"), clone(origin, tmp_path / "worker")
    driver.edit_params({"audits.tiny.seed": 99})  # not computed anywhere
    revision = run(driver, "git", "rev-parse", "--short", "HEAD").strip()

    def refused(what: str) -> None:
        told = rf"{worker.path} has other {what} than the driver: bring its clone to commit {revision}"
        with pytest.raises(InfrastructureError, match=told):
            ship(driver, worker, "prepare@tiny")

    for machine, text in ((driver, "one"), (worker, "two")):  # a link to a folder that holds something else
        (machine.path / "pictures").mkdir()
        (machine.path / "pictures/1.png").write_text(text)
        (machine.path / "data/tiny/inputs/pictures").symlink_to("../../../pictures")
    refused("bytes under data/tiny/inputs")
    (worker.path / "pictures/1.png").write_text("one")
    inputs, aside = worker.path / "data/tiny/inputs", tmp_path / "aside"
    inputs.rename(aside)
    refused("bytes under data/tiny/inputs")
    shutil.rmtree(inputs)  # which now has what faded keeps there
    aside.rename(inputs)
    (inputs / "regions.json").write_text("[ ]")
    refused("bytes under data/tiny/inputs")
    run(worker, "git", "checkout", "--quiet", "data")
    code = worker.path / "stages/prepare.py"
    code.write_text(code.read_text().replace("sleep(0.05)", "sleep(0.06)"))
    refused("code for prepare@tiny")
    assert not (worker.path / "executed.txt").exists()
    run(worker, "git", "checkout", "--quiet", "stages")
    worker.toy(prepare__tiny={"exit": 2})
    with pytest.raises(UsageError, match="prepare was told to exit with 2"):
        ship(driver, worker, "prepare@tiny")


@pytest.mark.slow
def test_a_share_of_an_earlier_search_is_taken_away(made, tmp_path):
    driver, worker, _ = made
    driver, worker = driver.copy(tmp_path / "driver"), worker.copy(tmp_path / "worker")
    share = worker.path / "data/tiny/shards/3"
    share.mkdir()
    (share / "probes.parquet").write_text("of a search in three shares")
    brought = worker.path / ".faded/machines.json"
    write_state(brought, [*(read_state(brought, list[str]) or []), "data/tiny/shards/3"])
    driver.edit_params({"audits.tiny.discover.budget": 333})
    [(_, result)] = ship(driver, worker, "discover@tiny")
    assert result.outcome == "ran"
    assert not share.exists()


def test_a_worker_may_say_where_its_clone_is_which_runs_one_stage_at_a_time(made, monkeypatch, tmp_path):
    _, worker, shipped = made
    shipment = shipped[0][0].model_copy(update={"workspace": "/nowhere"})
    for path, named in (("/nowhere", "runner.workspace"), (tmp_path, "FADED_WORKSPACE")):
        with pytest.raises(UsageError, match=rf"has no clone at {path} \(from {named}\)"):
            run_there(shipment, lambda line: None)
        monkeypatch.setenv("FADED_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("FADED_WORKSPACE", str(worker.path))
    host, said = f"{socket.gethostname()}:{worker.path}", []
    with ThreadPoolExecutor(1) as threads, (worker.path / ".faded/machines.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        future = threads.submit(run_there, shipment, said.append)
        until(lambda: bool(said))
        assert said == [f"waits for another stage in {host}"] and not future.done()
        fcntl.flock(other, fcntl.LOCK_UN)
        assert future.result(timeout=60).made.host == host


def test_another_folder_than_a_clone_of_the_workspace_is_refused_and_stays_as_it_is(made, tmp_path, monkeypatch):
    driver, _, shipped = made
    sound = shipped[0][0]
    before = (driver.path / "dvc.lock").read_bytes()
    shipment = sound.model_copy(update={"workspace": str(driver.path)})
    with inside(driver), exclusive(), pytest.raises(UsageError, match="expected a clone that is the worker's own"):
        run_there(shipment, lambda line: None)
    assert (driver.path / "dvc.lock").read_bytes() == before
    assert sound.within == "."
    below = sound.model_copy(update={"within": "audit"})
    with pytest.raises(UsageError, match=r"is not what the driver's workspace is: .*, the folder audit of its repos"):
        run_there(below, lambda line: None)
    foreign = tmp_path / "foreign"
    (foreign / ".dvc").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        (foreign / name).write_text("{}")
    monkeypatch.setenv("FADED_WORKSPACE", str(foreign))
    with pytest.raises(UsageError, match=r"from FADED_WORKSPACE\) is not what .*params.yaml, dvc.yaml and faded.json"):
        run_there(sound, lambda line: None)
    assert (foreign / "params.yaml").read_text() == (foreign / "dvc.yaml").read_text() == "{}"


def test_what_was_not_asked_for_is_not_taken(made, tmp_path):
    driver, _, shipped = made
    shipment, result = shipped[1]
    assert result.made is not None
    honest = result.made.lock

    def refused(match: str, **changes: Any) -> None:
        with inside(driver), pytest.raises(InfrastructureError, match=match):
            take_back(shipment, ShipmentResult(host="node3:/srv", lock={**honest, **changes}))

    other = [{**dep, "md5": "0" * 32} if dep["path"].endswith("items.parquet") else dep for dep in honest["deps"]]
    refused("node3:/srv has other bytes under data/tiny/prepare/items.parquet than the driver", deps=other)
    refused("another dvc.yaml", cmd="exec python -m something")
    refused("another dvc.yaml", outs=[*honest["outs"], {"path": "params.yaml", "hash": "md5", "md5": "0" * 32}])
    lost = [{**out, "md5": "1" * 32} if out["path"].endswith("probes.parquet") else out for out in honest["outs"]]
    refused("ran on node3:/srv, but the DVC remote shared lacks data/tiny/discover/probes.parquet", outs=lost)
    assert lock(driver)["discover@tiny"] == honest


def test_a_shipment_writes_within_the_workspace_only(made):
    shipment = made[2][0][0].model_dump()
    for path in ("/etc/passwd", "data/../../up", ".git/hooks/post-checkout", ".dvc/config"):
        with pytest.raises(ValidationError, match="not a path within the workspace"):
            Shipment.model_validate({**shipment, "files": {path: "x"}})


def test_what_travels_to_other_machines():
    stages = ("discover@a-b", "collect_feedback@a-b", "other/dvc.yaml:made", "x.dvc")
    assert [stage for stage in stages if travels(stage)] == ["discover@a-b"]


def test_a_remote_is_needed_and_an_unknown_one_told(origin, tmp_path):
    driver = clone(origin, tmp_path / "driver")
    with inside(driver):
        check_machines(there(driver))
        with pytest.raises(UsageError, match="no DVC remote 'sharde', found: shared, did you mean 'shared'"):
            check_machines(there(driver, remote="sharde"))
        with pytest.raises(UsageError, match=r"expected runner\.kind dask or ray, found threads"):
            check_machines(RunnerConfig(kind="threads", workspace="/srv/faded"))
        dvc(driver, "remote", "remove", "shared")
        with pytest.raises(UsageError, match=r"runner\.workspace.*share a DVC remote.*no remote specified"):
            check_machines(there(driver))


@pytest.mark.skipif(find_spec("s3fs") is None, reason="dvc[s3] is not installed")
def test_a_remote_that_is_gone_is_told_soon_and_worth_a_retry(origin, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    driver = clone(origin, tmp_path / "driver")
    s3_remote(driver, f"http://127.0.0.1:{free_port()}")
    with inside(driver), pytest.raises(InfrastructureError, match="DVC remote store: Could not connect"):
        check_machines(there(driver, remote="store"))


def test_the_container_file_copies_what_there_is_and_the_examples_can_be_read():
    text = (ROOT / "Containerfile").read_text()
    ignored = (ROOT / ".containerignore").read_text().split()
    copied = [name for words in re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.M) for name in words.split()]
    assert copied and all((ROOT / name).exists() and f"!{name}" in ignored for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} <= set(copied), "the image's package is whole"
    extras = project["project"]["optional-dependencies"]
    assert set(re.findall(r"^ARG EXTRAS=(.+)$", text, flags=re.M)[0].split(",")) < set(extras)
    page = (ROOT / "docs/scaling.md").read_text()
    kinds = [one["kind"] for one in yaml.safe_load_all(re.findall(r"```yaml\n(apiVersion.*?)```", page, flags=re.S)[0])]
    assert kinds == ["Deployment"]
    script = re.findall(r"```bash\n(.*?)```", page, flags=re.S)[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    for runner in re.findall(r"^    runner: (.+)$", page, flags=re.M):
        assert RunnerConfig.model_validate(yaml.safe_load(runner)).workspace


@pytest.mark.slow
def test_what_the_remote_holds_under_a_name_is_hashed_before_it_is_believed(made, origin, tmp_path):
    remote = Path(shutil.copytree(origin.path.parent / "remote", tmp_path / "remote"))
    driver, worker = clone(origin, tmp_path / "driver"), clone(origin, tmp_path / "worker")
    for one in (driver, worker):
        dvc(one, "remote", "modify", "--local", "shared", "url", str(remote))
    lock_before = lock(made[0])
    swapped = []

    def stored(md5: str) -> Path:
        return remote / "files/md5" / md5[:2] / md5[2:]

    for stage, path in (("prepare", "prepare/model"), ("discover", "discover/probes.parquet")):
        outputs = {out["path"]: out["md5"] for out in lock_before[f"{stage}@tiny"]["outs"]}
        there = stored(outputs[f"data/tiny/{path}"])
        if there.suffix == ".dir":
            [file] = json.loads(there.read_text())
            there = stored(file["md5"])
        swapped.append((there, there.read_bytes()))
        there.chmod(0o644)
        there.write_bytes(there.read_bytes()[:-1] + b"?")
    shipped = ship(driver, worker, "prepare@tiny", "discover@tiny")
    assert [result.outcome for _, result in shipped] == ["ran", "ran"], "what was recorded of earlier runs is not there"
    assert lock(driver) == {name: lock_before[name] for name in ("code@tiny", "prepare@tiny", "discover@tiny")}
    assert [there.read_bytes() for there, _ in swapped] == [good for _, good in swapped], "pushed anew"


def test_a_worker_with_other_packages_is_told_once_it_has_computed_something(origin, made, tmp_path):
    result = made[2][0][1]
    mine = versions()
    assert result.made is not None and result.made.versions == mine
    older = {**mine, "numpy": "1.0", "torch": mine["torch"].partition("+")[0] + "+cu1", "dvc": "1.0", "new": "1"}
    host = f"{socket.gethostname()}:{made[1].path}"
    told = [f"{host} has numpy 1.0 (here {mine['numpy']}): results are of its versions"]
    there_made = result.made.model_copy(update={"versions": older})
    for outcome, expected in (("ran", told), ("restored", [])):
        answer = result.model_copy(update={"made": there_made, "outcome": outcome})
        driver = clone(origin, tmp_path / outcome)
        said: list[str] = []
        with inside(driver):
            read_graph()  # as every run begins
            job = Job("prepare@tiny", 0, str(driver.path))
            run_apart(lambda *_, answer=answer: answer, there(made[1]), job, said.append)
        assert said[said.index(f"from {host}") + 1 :] == expected
