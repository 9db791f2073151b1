"""Custom workspaces: stages run from the installed package, and nothing of the user's is touched."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

import flows.workspace.new
import flows.workspace.pipeline
from flows.graph import read_graph
from flows.graph.intact import heal
from flows.workspace import enter_workspace
from flows.workspace.new import add_audit, write_workspace
from flows.workspace.pipeline import is_own, update_pipeline
from stages.core.errors import UsageError
from stages.core.files import replace_file
from stages.params import load_params
from stages.tasks.load import task_class
from tests.finished import forget
from tests.own_workspaces import add_shadows, commit, digests, git, make_audited, make_repository, toy_package
from tests.workspace import ROOT, STAGES, Workspace, audit_params, repair_params

USERS = {"stages": {"prepare": {"cmd": "echo 1 > made", "params": ["train.lr"], "outs": ["made"]}}}
INPUT = "audit/data/tiny/inputs/regions.json"
USERS["stages"]["train"] = {"cmd": "touch ran && exit 3", "deps": ["made"], "outs": [INPUT]}


@pytest.fixture
def repository(tmp_path) -> Path:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def with_pipelines(tmp_path) -> Path:
    """A repository with a DVC pipeline, and a folder `audit` with a task and folders named like the package's."""
    path = tmp_path / "pipelines"
    (path / "audit").mkdir(parents=True)
    add_shadows(path / "audit")
    git(path, "init", "--quiet", "--initial-branch=main")
    assert Workspace(path).run([sys.executable, "-m", "dvc", "init", "--quiet"]).returncode == 0
    (path / "dvc.yaml").write_text(yaml.safe_dump(USERS))
    (path / "params.yaml").write_text("train: {lr: 1}\n")
    shutil.copy(ROOT / "tests" / "planted.py", path / "audit" / "my_task.py")
    commit(path)
    return path


def test_a_git_repository_becomes_a_workspace_and_every_file_of_it_is_told(repository):
    before = digests(repository)
    written = write_workspace(repository)
    after = digests(repository)
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in after if name not in before} == {str(p.name) for p in written}
    assert "analytics = false" in (repository / ".dvc/config").read_text()
    assert git(repository, "diff", "--cached", "--name-only") == ""  # users decide what they commit
    assert write_workspace(repository) == []
    assert Workspace(repository).run(["dvc", "status"]).returncode == 0  # without an audit, too
    assert is_own(repository) and not is_own(ROOT)


def test_what_a_user_ignores_stays_and_what_git_must_know_is_not_ignored(repository):
    ignores = b"# mine\r\n*.json\r\n*.yaml\r\nsecret"
    (repository / "audit").mkdir()
    (repository / "audit" / ".gitignore").write_bytes(ignores)
    (repository / ".gitignore").write_text("data/\n")
    make_audited_at = repository / "audit"
    shutil.copy(repository / "my_task.py", make_audited_at)
    make_audited(make_audited_at)
    assert (make_audited_at / ".gitignore").read_bytes().startswith(ignores)
    (make_audited_at / "data/tiny/report").mkdir()
    for name in ("headline.json", "metrics.json", "report.html"):
        (make_audited_at / "data/tiny/report" / name).write_text("{}")
    (make_audited_at / "data/tiny/decisions/0.yaml").write_text("")
    commit(repository)
    known = set(git(make_audited_at, "ls-files").split())
    assert known >= {"params.yaml", "dvc.yaml", "faded.json", "data/tiny/shards/.gitignore"}
    assert known >= {"data/tiny/report/headline.json", "data/tiny/decisions/0.yaml"}
    assert not [name for name in known if name.startswith(".faded") or "metrics" in name or "report.html" in name]


def test_files_of_a_user_are_not_written_over(repository):
    for name, text in (("dvc.yaml", yaml.safe_dump(USERS)), ("faded.json", "[]")):
        (repository / name).write_text(text)
        before = digests(repository)
        with pytest.raises(UsageError, match=rf"{name} in .* not Faded's.*mkdir .*audit && faded init .*audit"):
            write_workspace(repository)
        assert digests(repository) == before
        (repository / name).unlink()
    (repository / ".gitignore").write_text("data/\n")
    with pytest.raises(UsageError, match=r"git ignores .*data .*where Faded keeps decisions.*faded init audit"):
        write_workspace(repository)
    assert not (repository / "dvc.yaml").exists()


def test_an_audit_is_added_beside_others_and_a_wrong_one_changes_nothing(own):
    own_path = own.path
    text = (own_path / "params.yaml").read_text()
    before = digests(own_path)
    with pytest.raises(UsageError, match="already has an audit of that name"):
        add_audit(own_path, "tiny", audit_params())
    with pytest.raises(UsageError, match=r"error\(s\) in .*/params\.yaml:\n +audits\.other\.seed"):
        add_audit(own_path, "other", audit_params(seed=-1))
    assert digests(own_path) == before
    add_audit(own_path, "other", audit_params())
    lines = (own_path / "params.yaml").read_text().splitlines()
    assert [line for line in text.splitlines() if line not in lines] == []
    assert list(load_params(own_path / "params.yaml").audits) == ["tiny", "other"]
    assert not (own_path / "data/other/decisions").exists()  # no decisions without a repair


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_nothing_that_dvc_reads_and_the_same_call_goes_on(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    real, left = replace_file, 0

    def put(path: Path, text: str) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        real(path, text)

    def make(name: str, puts: int) -> tuple[Path, bool]:
        nonlocal left
        path, left = tmp_path / name, puts
        if not path.exists():
            path.mkdir()
            git(path, "init", "--quiet")
        try:
            write_workspace(path)
            if "tiny" not in (yaml.safe_load((path / "params.yaml").read_text())["audits"]):
                add_audit(path, "tiny", audit_params(), repair_params())
        except Killed:
            return path, False
        return path, True

    monkeypatch.setattr(flows.workspace.new, "replace_file", put)
    whole = digests(make("whole", 1000)[0])
    killed = 0
    while not (made := make(f"cut{killed}", killed))[1]:
        path = made[0]
        assert not (path / "dvc.yaml").exists() or (path / "faded.json").exists()
        assert not (path / "data").exists() or yaml.safe_load((path / "params.yaml").read_text())["audits"] == {}
        assert make(path.name, 1000)[1] and digests(path) == whole
        killed += 1
    assert killed > 8  # each of .gitignore, .dvcignore, params.yaml, faded.json, dvc.yaml and an audit's files


@pytest.mark.slow
def test_an_audit_and_pipelines_and_folders_of_the_same_names_do_each_other_no_harm(with_pipelines, prefect_server):
    before = digests(with_pipelines)
    workspace = make_audited(with_pipelines / "audit")
    done = workspace.faded("audit", PYTHONPATH=str(toy_package()), PREFECT_API_URL=prefect_server)
    assert done.returncode == 0, done.stdout
    # The user's pipeline makes the audited input; that it is stale is the user's business.
    assert workspace.executed() == [f"{stage}@tiny" for stage in STAGES]
    after = digests(with_pipelines)
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in set(after) - set(before)} == {"audit"}


@pytest.mark.slow
def test_in_a_clone_of_the_workspace_dvc_alone_will_do(own):
    git(own.path.parent, "clone", "--quiet", str(own.path), "clone")
    clone = Workspace(own.path.parent / "clone")
    done = clone.run(["dvc", "repro", "discover@tiny"], PYTHONPATH=str(toy_package()))
    assert done.returncode == 0, done.stdout
    assert clone.executed() == ["prepare@tiny", "discover@tiny"]


def test_only_the_lock_file_of_the_workspace_is_healed(with_pipelines, monkeypatch, capsys):
    workspace = make_audited(with_pipelines / "audit")
    lock, users = workspace.path / "dvc.lock", with_pipelines / "dvc.lock"
    lock.write_text("schema: '2.0'\nstages: {}\n")
    commit(with_pipelines)
    for path in (lock, users):
        path.write_text("schema: '2.")
    rwlock = with_pipelines / ".dvc/tmp/rwlock"
    rwlock.parent.mkdir(exist_ok=True)
    rwlock.write_text("{")
    monkeypatch.chdir(workspace.path)
    told = heal()
    assert any("restored from git" in line for line in told)
    assert "rwlock was damaged: set aside" in capsys.readouterr().err
    assert lock.read_text() == "schema: '2.0'\nstages: {}\n" and users.read_text() == "schema: '2."
    assert not rwlock.exists()


def test_a_module_of_a_users_does_not_take_the_place_of_an_installed_one(own, monkeypatch):
    monkeypatch.chdir(own.path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    forget({"my_task"})
    cls = task_class("tiny", load_params().audit("tiny"))
    forget({"my_task"})
    assert cls.__module__ == "my_task" and sys.path[-1] == str(own.path)


def test_a_clone_is_a_workspace_as_it_is(toys):
    before = digests(toys.path)
    assert write_workspace(toys.path) == [] and digests(toys.path) == before


def test_the_workspace_is_found_from_a_folder_with_a_pipeline_of_the_users_own(own, monkeypatch):
    inner = own.path / "training"
    inner.mkdir()
    (inner / "dvc.yaml").write_text("stages: {}\n")
    (inner / "params.yaml").write_text("lr: 1\n")
    monkeypatch.chdir(inner)
    assert enter_workspace() == own.path


def test_a_share_of_a_search_belongs_to_its_audit(own, monkeypatch):
    params = own.params()
    search = {"explorer": "random", "baseline": "random", "budget": 9, "shards": 2}
    params["audits"]["big-2"] = audit_params(discover=search)
    own.write_params(params)
    monkeypatch.chdir(own.path)
    kept = (".gitignore", ".dvcignore", "shards/.gitignore", "inputs/.gitkeep")
    written = ", ".join(f"data/big-2/{name}" for name in kept)
    assert update_pipeline() == [f"faded wrote {written}", "a search is divided differently"]
    shares = [stage for stage in read_graph() if stage.kind == "explore"]
    assert [(stage.name, stage.audit) for stage in shares] == [(f"explore@big-2-{part}", "big-2") for part in (1, 2)]
