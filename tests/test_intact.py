"""Poisoned outputs: if any output of a finished audit has other bytes, it is named and nothing is concluded."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.exceptions import CheckoutError
from dvc.repo import Repo

from flows.graph.intact import DamagedError, check_intact, check_recorded, find_damage, mend, stages_of
from flows.graph.lock import CACHE, Hashes, read_lock
from stages.core.errors import Exit, UsageError
from tests.finished import dvc_commit, faded, finished_audits, finished_toys, inside
from tests.workspace import ROOT, STAGES, Workspace

GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
IN_GIT = ("headline.json",)
OUTPUTS = [
    (next(iter(out)) if isinstance(out, dict) else out).replace("${key}", "tiny")
    for kind in STAGES
    for group in ("outs", "metrics", "plots")
    for out in GRAPH[kind]["do"].get(group, [])
    if out != "data/${key}/prepare/assets"  # the planted task has none
]
RECORD = "data/tiny/conclude/provenance.json"  # the only output of a toy with unique bytes
WEIGHTS, VERDICT = "data/tiny/restructure/models", "data/tiny/conclude/verdict.json"
PROBES = "data/tiny/discover/probes.parquet"
COMMANDS = (("export", "tiny", "deploy"), ("gate", "tiny", "--against", "first"), ("evidence", "tiny"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """A finished audit and its remote, which has all outputs."""
    home = tmp_path_factory.mktemp("intact")
    workspace = finished_audits().copy(home / "ws")
    with inside(workspace), Repo() as repo, repo.config.edit() as config:
        config["remote"]["shared"] = {"url": str(home / "remote")}
        config["core"]["remote"] = "shared"
    with inside(workspace), Repo() as repo:
        repo.push()
        check_intact("tiny")
    return workspace


@pytest.fixture
def here(workspace) -> Iterator[Workspace]:
    with inside(workspace):
        yield workspace


def a_file(output: str) -> Path:
    path = Path(output)
    return path if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())[0]


def object_of(output: str, home: Path = Path(".dvc/cache")) -> Path:
    """The object of an output; for a folder, that of its list."""
    stages = read_lock(Path("dvc.lock").read_bytes()).values()
    [md5] = [out["md5"] for stage in stages for out in stage["outs"] if out["path"] == output]
    return home / "files/md5" / md5[:2] / md5[2:]


def flip(path: Path) -> Callable[[], None]:
    """Flip one bit without changing size, times and inode; return a function that undoes it."""
    stat, before = path.stat(), path.read_bytes()

    def write(data: bytes) -> None:
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.write(data)
        path.chmod(stat.st_mode)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    write(before[:-1] + bytes([before[-1] ^ 1]))
    after = path.stat()
    assert [after.st_size, after.st_mtime_ns, after.st_ino] == [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return lambda: write(before)


@pytest.mark.parametrize("where", ["workspace", "cache"])
def test_each_swapped_output_is_told_by_its_name(here, where):
    swapped = {output: a_file(output) if where == "workspace" else object_of(output) for output in OUTPUTS}
    undo = [flip(path) for path in dict.fromkeys(swapped.values())]
    try:
        found = [damage for damage in find_damage(stages_of(["tiny"])) if damage.where == where]
        for output, path in swapped.items():
            assert any(one.path.absolute() == path.absolute() and output in str(one) for one in found), output
        with pytest.raises(DamagedError, match=r"`faded audit tiny` restores"):
            check_intact("tiny")
    finally:
        for one in undo:
            one()
    check_intact("tiny")


def test_no_command_concludes_anything_from_a_swapped_output(workspace):
    for command, output in zip(COMMANDS, (WEIGHTS, VERDICT, PROBES), strict=True):
        with inside(workspace):
            undo = flip(a_file(output))
        code, told = faded(workspace, *command)
        with inside(workspace):
            assert code == Exit.INFRASTRUCTURE and str(a_file(output)) in told, told
            assert not Path("deploy").exists()
            undo()
    with inside(workspace):
        check_intact("tiny")


def pulled(workspace: Workspace, target: Path, output: str) -> tuple[Workspace, Path]:
    """A copy pulled from its remote, in which one object was swapped, and the file of that object."""
    copy = workspace.copy(target / "ws")
    shutil.copytree(workspace.path.parent / "remote", target / "remote")
    with inside(copy):
        file = a_file(output)
        with Repo() as repo, repo.config.edit() as config:
            config["remote"]["shared"]["url"] = str(target / "remote")
        found = find_object(file, target / "remote")
        found.chmod(0o644)
        found.write_bytes(b"\0" + found.read_bytes()[1:])
        shutil.rmtree(".dvc/cache")
        for kind in STAGES:
            for path in Path("data/tiny", kind).glob("*"):
                if path.name not in IN_GIT:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        with Repo() as repo, contextlib.suppress(CheckoutError):  # for objects that DVC itself refuses
            repo.pull([f"{kind}@tiny" for kind in STAGES])
    return copy, file


def find_object(file: Path, remote: Path) -> Path:
    md5 = Hashes().md5(file)
    return remote / "files/md5" / md5[:2] / md5[2:]


def of_a_remote() -> Iterator[Any]:
    """The objects of a remote, except the weights and the probes marked nightly."""
    for output in OUTPUTS:
        if not output.endswith(IN_GIT):
            yield pytest.param(output, marks=() if output in (WEIGHTS, PROBES) else pytest.mark.nightly)


@pytest.mark.slow
@pytest.mark.parametrize("output", of_a_remote())
def test_what_a_remote_holds_under_a_name_is_not_believed(workspace, tmp_path, output):
    copy, file = pulled(workspace, tmp_path, output)
    arrived = (copy.path / file).exists()  # DVC itself hashes single files, but none in a folder
    code, told = faded(copy, *COMMANDS[OUTPUTS.index(output) % len(COMMANDS)])
    # Exit code 2 if nothing arrived, as stages are stale then.
    assert code in ((Exit.INFRASTRUCTURE,) if arrived else (Exit.USAGE, Exit.INFRASTRUCTURE)), told
    assert str(file) in told or not arrived, told
    if not arrived:
        return
    with inside(copy):
        mended = mend(stages_of(["tiny"]))
        # Under one output's name, as others may have the same bytes.
        assert any(line.endswith(": removed") for line in mended)
        assert not [damage for damage in find_damage(stages_of(["tiny"])) if damage.where == "cache"]


def rewrite_probes(change: Callable[[Path], object]) -> Path:
    probes, record = Path(PROBES), Path("data/tiny/discover/provenance.json")
    change(probes)
    text = json.loads(record.read_text())
    text["wrote"]["probes.parquet"] = Hashes().sha256(probes)
    record.write_text(json.dumps(text))
    return probes


def test_other_bytes_than_the_next_stage_read_are_told_though_dvc_and_their_own_stage_agree(workspace, tmp_path):
    copy = workspace.copy(tmp_path / "ws")
    with inside(copy):
        probes = rewrite_probes(flip)
        dvc_commit(["discover@tiny", "summarize@tiny"])
        [damage] = find_damage(stages_of(["tiny"]))
        assert (damage.stage, damage.path) == ("summarize@tiny", probes)
    with inside(workspace.copy(tmp_path / "stripped")):
        record = Path("data/tiny/summarize/provenance.json")
        record.write_text(json.dumps({**json.loads(record.read_text()), "read": {}}))
        dvc_commit(["summarize@tiny"])
        with pytest.raises(DamagedError, match=r"summarize/provenance\.json does not name"):
            check_intact("tiny")


def test_a_dependency_that_a_stage_does_not_record_is_refused_and_leaves_no_record_of_the_run(workspace, tmp_path):
    """The folder of the last record of a run is removed with it, as DVC fails on an empty one."""
    copy = workspace.copy(tmp_path / "ws")
    with inside(copy):
        check_recorded("conclude@tiny")
        path = Path("dvc.yaml")
        names = ("compare/landscapes.parquet", "summarize/fresh.parquet")
        known, more = (f"        - data/${{key}}/{name}\n" for name in names)
        path.write_text(path.read_text().replace(f"{known}      params", f"{known}{more}      params"))
        dvc_commit(["conclude@tiny"])
        with Repo() as repo, repo.lock:
            [stage] = repo.stage.collect("conclude@tiny")
            repo.stage_cache.save(stage)
        told = r"conclude@tiny depend on data/tiny/summarize/fresh\.parquet, which .*conclude/provenance\.json does not"
        with pytest.raises(UsageError, match=told):
            check_recorded("conclude@tiny")
        assert mend(["conclude@tiny"]) and all(any(folder.iterdir()) for folder in Path(".dvc/cache/runs").glob("*/*"))


def test_every_stage_names_what_it_read_and_wrote(here):
    for kind in STAGES:
        record = json.loads(Path("data/tiny", kind, "provenance.json").read_text())
        deps = [dep.removeprefix("data/${key}/") for dep in GRAPH[kind]["do"]["deps"] if dep.startswith("data/${key}/")]
        assert set(record["read"]) == {*deps} - {"inputs", "decisions", "shards"}
        assert set(record["wrote"]) == {p.name for p in Path("data/tiny", kind).iterdir()} - {"provenance.json"}


def test_a_list_of_files_that_is_not_dvcs_names_nothing_outside_the_cache(workspace, tmp_path):
    copy = workspace.copy(tmp_path / "ws")
    precious = tmp_path / "precious"
    precious.write_text("x")
    with inside(copy):
        with Path(".dvcignore").open("a") as ignored:
            ignored.write("\n.DS_Store\n")
        (Path(WEIGHTS) / ".DS_Store").write_text("")  # which is no damage
        assert not [damage for damage in find_damage(stages_of(["tiny"])) if damage.where != "record"]
        (Path(WEIGHTS) / ".DS_Store").unlink()
        listing = object_of(WEIGHTS)
        listing.chmod(0o644)
        outside = {"../../x": f"/{precious}", "y": "../../../../params.yaml"}
        listing.write_text(json.dumps([{"md5": md5, "relpath": path} for path, md5 in outside.items()]))
        mend(stages_of(["tiny"]))
        assert precious.exists() and Path("params.yaml").exists()
        check_intact("tiny")
        assert object_of(WEIGHTS).exists(), "what was right in the workspace was put back into the cache"


def test_hashes_are_remembered_until_anything_about_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights"
    file.write_bytes(b"good")
    monkeypatch.setattr("flows.graph.lock.SETTLED_NS", 0)
    good, read = Hashes(), []
    before = good.of(file)
    good.save()
    assert CACHE.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr("flows.graph.lock.digests_of", lambda path: read.append(path) or before)
    assert Hashes().of(file) == before and read == []
    flip(file)
    Hashes().of(file)
    assert read == [file]
    CACHE.write_text(CACHE.read_text().replace(before.md5, "0" * 32))
    file.touch()
    assert Hashes().of(file) == before, "a damaged cache is an empty one"


def forge_run() -> None:
    """Edit the record in DVC's run-cache of the stage that concludes, and let DVC have no other."""
    good, forged = object_of(VERDICT), Path(VERDICT).read_bytes().replace(b"said by", b"said BY")
    name = hashlib.md5(forged, usedforsecurity=False).hexdigest()
    kept = good.parents[1] / name[:2] / name[2:]
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(forged)
    for run in [file for file in Path(".dvc/cache/runs").rglob("*") if file.is_file() and VERDICT in file.read_text()]:
        run.chmod(0o644)
        run.write_text(run.read_text().replace(good.parent.name + good.name, name))
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    del lock["stages"]["conclude@tiny"]
    Path("dvc.lock").write_text(yaml.safe_dump(lock))


@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=pytest.mark.slow) for place in ("committed", "both", "runs")]
)
def test_an_audit_restores_or_recomputes_what_was_swapped(prefect_server, tmp_path, place):
    copy = finished_toys().copy(tmp_path / "ws")
    good = copy.digests("tiny/*/*", "tiny/*/*/*")
    with inside(copy):
        if place == "committed":
            Path(VERDICT).write_text(Path(VERDICT).read_text().replace("said by", "said BY"))
            dvc_commit(["conclude@tiny"])
        elif place == "both":  # as after `dvc pull`
            flip(object_of(RECORD))
            Path(RECORD).unlink()
        else:
            forge_run()
    code, told = faded(copy, "audit")
    assert code == 0, told
    assert copy.digests("tiny/*/*", "tiny/*/*/*") == good
    assert copy.executed() == ([] if place == "committed" else ["conclude@tiny"]), told
    with inside(copy):
        check_intact("tiny")


def test_results_of_another_run_are_told_from_tampering(workspace, tmp_path):
    own = workspace.copy(tmp_path / "ws")
    with inside(own):
        file, other = Path(VERDICT), Path(VERDICT).read_bytes().replace(b"true", b"false")
        file.unlink()
        file.write_bytes(other)
        with pytest.raises(DamagedError, match="is not what conclude@tiny wrote"):
            check_intact("tiny")
        name = hashlib.md5(other, usedforsecurity=False).hexdigest()
        kept = Path(".dvc/cache/files/md5", name[:2], name[2:])
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(other)  # as an experiment leaves it
        with pytest.raises(DamagedError, match="run `dvc checkout`"):
            check_intact("tiny")
        assert own.run(["dvc", "checkout", "--quiet"]).returncode == 0
        check_intact("tiny")


def test_the_file_that_names_the_code_is_written_again_without_a_word(workspace, tmp_path):
    copy = workspace.copy(tmp_path / "ws")
    with inside(copy):
        code = Path("data/tiny/code.json")
        code.write_text(code.read_text().replace('"report": "', '"report": "0'))
        assert find_damage(stages_of(["tiny"])) and mend(stages_of(["tiny"])) == []


@pytest.mark.slow
def test_a_verdict_that_was_edited_and_committed_is_told_and_recomputed(workspace, tmp_path):
    copy = workspace.copy(tmp_path / "ws")
    with inside(copy):
        Path(VERDICT).write_text(Path(VERDICT).read_text().replace("target", "TARGET", 1))
        dvc_commit(["conclude@tiny"])
        with pytest.raises(DamagedError, match=rf"{VERDICT} holds other bytes than .*conclude/provenance\.json names"):
            check_intact("tiny")
        [told] = mend(stages_of(["tiny"]))
        assert told.endswith("conclude@tiny is restored or run again") and "conclude@tiny" not in stages_of(["tiny"])
    assert faded(copy, "export", "tiny", "deploy")[0] == Exit.USAGE, "stale"


@pytest.mark.slow
def test_a_stage_that_is_stale_contradicts_nobody(workspace, tmp_path):
    copy = workspace.copy(tmp_path / "ws")
    with inside(copy):
        rewrite_probes(lambda file: file.write_bytes(file.read_bytes() + b" "))  # as after another run of discover
        dvc_commit(["discover@tiny"])
        check_intact("tiny")
    assert faded(copy, "gate", "tiny", "--against", "first")[0] == Exit.USAGE, "summarize is stale"
