"""Workspaces of one's own: no clone, stages run from the installed package, and nothing of a user's is touched.

The package is a copy of this repository's, put before it on the path, whose stages are toys; tests/test_wheel.py has
the real thing.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import yaml

import flows.new_workspace
import flows.pipeline
from flows.graph import read_graph
from flows.heal import heal
from flows.new_workspace import add_audit, add_folders, write_workspace
from flows.pipeline import bring_up_to_date, is_own, make_folders, outdated, pipeline
from flows.workspace import enter_workspace, running_audit
from stages import plugins
from stages.code import check_installed, code_hashes, read_record, read_stages
from stages.errors import InfrastructureError, UsageError
from stages.params import load_params, task_class
from tests.workspace import ROOT, STAGES, Workspace, audit_params, repair_params

SHADOWS = "raise SystemExit('a folder of the user took the place of the package')\n"
USERS = {"stages": {"prepare": {"cmd": "echo 1 > made", "params": ["train.lr"], "outs": ["made"]}}}
USERS["stages"]["train"] = {
    "cmd": "touch ran && exit 3",
    "deps": ["made"],
    "outs": ["audit/data/tiny/inputs/regions.json"],
}


@cache
def toy_package() -> Path:
    """A folder for PYTHONPATH with a copy of the package, whose stages are toys."""
    home = Path(mkdtemp(prefix="faded-package-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in ("flows", "stages"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for stage in STAGES:
        shutil.copy(ROOT / "tests" / "toy_stage.py", home / "stages" / f"{stage}.py")
    return home


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Ada Tester", "-c", "user.email=ada@example.org")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")


def add_shadows(folder: Path) -> None:
    """Folders of a user that are called like the package's."""
    for name in ("stages", "flows"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(SHADOWS)


@pytest.fixture
def repository(tmp_path) -> Path:
    """A git repository of a user, with a task of their own and folders that are called like the package's."""
    path = tmp_path / "repository"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    add_shadows(path)
    shutil.copy(ROOT / "tests" / "planted.py", path / "my_task.py")
    commit(path)
    return path


def make_audited(folder: Path) -> Workspace:
    """Make a folder a workspace with one audit and its repair, "tiny"."""
    write_workspace(folder)
    add_audit(folder, "tiny", audit_params(task="my_task:PlantedTask", code="my_task.py"), repair_params())
    (folder / "data/tiny/inputs/regions.json").write_text("[]")
    return Workspace(folder)


@pytest.fixture
def own(repository) -> Workspace:
    workspace = make_audited(repository)
    commit(repository)
    return workspace


@pytest.fixture
def with_pipelines(tmp_path) -> Path:
    """A repository with a DVC pipeline at its root, and a folder `audit` with a task and folders like the package's."""
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


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder that packages are installed to."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    yield path
    for name in [name for name in sys.modules if name.startswith("faded_")]:
        del sys.modules[name]


def install(site: Path, name: str, entries: str, group: str = plugins.TASKS, *, listed: bool = True) -> Path:
    """Install a distribution with one module, as pip does; for development where it lists no files."""
    module = site / f"{name.replace('-', '_')}.py"
    module.write_text("from tests.planted import PlantedTask\n\nclass Plugged(PlantedTask):\n    pass\n")
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")
    files = [info / "METADATA", info / "entry_points.txt", *([module] if listed else [])]
    (info / "RECORD").write_text("".join(f"{file.relative_to(site)},,\n" for file in files))
    return module


def digests(folder: Path) -> dict[str, bytes]:
    """What the files of a folder hold, without what git, DVC and Faded keep for themselves."""
    names = {path: path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()}
    left_out = {".git", "tmp", "cache", ".faded"}
    found = {"/".join(parts): path.read_bytes() for path, parts in names.items() if not left_out & {*parts}}
    assert found
    return found


# What is written


def test_a_git_repository_becomes_a_workspace_and_every_file_of_it_is_told(repository):
    before = digests(repository)
    written = write_workspace(repository)
    after = digests(repository)
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in after if name not in before} == {str(p.name) for p in written}
    assert "analytics = false" in (repository / ".dvc/config").read_text()
    assert git(repository, "diff", "--cached", "--name-only") == ""  # what is committed is the user's to say
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
    (make_audited_at / "data/tiny/prepare").mkdir()
    (make_audited_at / "data/tiny/prepare/metrics.json").write_text("{}")
    (make_audited_at / "data/tiny/prepare/items.parquet").write_text("")
    (make_audited_at / "data/tiny/decisions/0.yaml").write_text("")
    commit(repository)
    known = set(git(make_audited_at, "ls-files").split())
    assert known >= {"params.yaml", "dvc.yaml", "faded.json", "data/tiny/shards/.gitignore"}
    assert known >= {"data/tiny/prepare/metrics.json", "data/tiny/decisions/0.yaml"}
    assert not [name for name in known if name.startswith(".faded") or "parquet" in name]


def test_a_repository_that_ignores_data_is_told_to_take_another_folder(repository):
    (repository / ".gitignore").write_text("data/\n")
    with pytest.raises(UsageError, match=r"git ignores .*data .*where Faded keeps decisions.*faded init audit"):
        write_workspace(repository)
    assert not (repository / "dvc.yaml").exists()


@pytest.mark.parametrize(
    ("name", "text"), [("dvc.yaml", yaml.safe_dump(USERS)), ("params.yaml", "train: {lr: 1}\n"), ("faded.json", "[]")]
)
def test_files_of_a_user_are_not_written_over(repository, name, text):
    (repository / name).write_text(text)
    before = digests(repository)
    with pytest.raises(UsageError, match=rf"{name} in .* not Faded's.*mkdir .*audit && faded init .*audit"):
        write_workspace(repository)
    assert digests(repository) == before


def test_outside_a_git_repository_nothing_is_written(tmp_path):
    with pytest.raises(UsageError, match="is in no git repository"):
        write_workspace(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_clone_is_a_workspace_as_it_is(toys):
    before = digests(toys.path)
    assert write_workspace(toys.path) == []
    assert digests(toys.path) == before


def test_an_audit_is_added_beside_others_and_a_wrong_one_changes_nothing(own):
    own_path = own.path
    text = (own_path / "params.yaml").read_text()
    before = digests(own_path)
    with pytest.raises(UsageError, match="has an audit of that name already"):
        add_audit(own_path, "tiny", audit_params())
    with pytest.raises(UsageError, match=r"error\(s\) in .*/params\.yaml:\n +audits\.other\.seed"):
        add_audit(own_path, "other", audit_params(seed=-1))
    assert digests(own_path) == before
    add_audit(own_path, "other", audit_params())
    lines = (own_path / "params.yaml").read_text().splitlines()
    assert [line for line in text.splitlines() if line not in lines] == []
    assert list(load_params(own_path / "params.yaml").audits) == ["tiny", "other"]
    assert not (own_path / "data/other/decisions").exists()  # nothing is decided where nothing is repaired


def test_a_kill_at_any_moment_leaves_nothing_that_dvc_reads_and_the_same_call_goes_on(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    real, left = flows.pipeline.put, 0

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

    monkeypatch.setattr(flows.new_workspace, "put", put)
    whole = digests(make("whole", 1000)[0])
    killed = 0
    while not (made := make(f"cut{killed}", killed))[1]:
        path = made[0]
        assert not (path / "dvc.yaml").exists() or (path / "faded.json").exists()
        assert not (path / "data").exists() or yaml.safe_load((path / "params.yaml").read_text())["audits"] == {}
        assert make(path.name, 1000)[1]
        assert digests(path) == whole
        killed += 1
    assert killed > 8  # each of .gitignore, .dvcignore, params.yaml, faded.json, dvc.yaml and an audit's files


# What runs


@pytest.mark.slow
def test_an_audit_beside_pipelines_and_folders_of_the_same_names_harms_none_and_is_harmed_by_none(with_pipelines):
    before = digests(with_pipelines)
    workspace = make_audited(with_pipelines / "audit")
    done = workspace.faded("audit", PYTHONPATH=str(toy_package()))
    assert done.returncode == 0, done.stdout
    # The user's pipeline makes what is audited; that it is stale is the user's affair.
    assert workspace.executed() == [f"{stage}@tiny" for stage in STAGES]
    after = digests(with_pipelines)
    assert {name: after[name] for name in before} == before
    assert {Path(name).parts[0] for name in set(after) - set(before)} == {"audit"}


def test_stages_of_other_pipelines_are_no_part_of_the_graph(with_pipelines, monkeypatch):
    workspace = make_audited(with_pipelines / "audit")
    monkeypatch.chdir(workspace.path)
    assert [stage.name for stage in read_graph()] == [f"{stage}@tiny" for stage in STAGES]


def test_in_a_clone_of_the_workspace_dvc_alone_will_do(own):
    git(own.path.parent, "clone", "--quiet", str(own.path), "clone")
    clone = Workspace(own.path.parent / "clone")
    done = clone.run(["dvc", "repro", "discover@tiny"], PYTHONPATH=str(toy_package()))
    assert done.returncode == 0, done.stdout
    assert clone.executed() == ["prepare@tiny", "discover@tiny"]


def test_the_workspace_is_found_from_a_folder_with_a_pipeline_of_the_users_own(own, monkeypatch):
    inner = own.path / "training"
    inner.mkdir()
    (inner / "dvc.yaml").write_text("stages: {}\n")
    (inner / "params.yaml").write_text("lr: 1\n")
    monkeypatch.chdir(inner)
    assert enter_workspace() == own.path


def test_only_the_lock_file_of_the_workspace_is_healed(with_pipelines, monkeypatch):
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
    assert any("restored from git" in line for line in told) and any("list of locked files" in line for line in told)
    assert lock.read_text() == "schema: '2.0'\nstages: {}\n"
    assert users.read_text() == "schema: '2."
    assert not rwlock.exists()


def test_a_share_of_a_search_belongs_to_its_audit(own, monkeypatch):
    params = own.params()
    params["audits"]["big-2"] = audit_params(
        discover={"explorer": "random", "control": "random", "budget": 9, "shards": 2}
    )
    params["shards"] = {f"big-2-{n}": {"audit": "big-2", "part": n, "gpus": 0} for n in (1, 2)}
    own.write_params(params)
    monkeypatch.chdir(own.path)
    kept = (".gitignore", ".dvcignore", "shards/.gitignore", "inputs/.gitkeep")
    assert bring_up_to_date() == [f"faded wrote {', '.join(f'data/big-2/{name}' for name in kept)}"]
    shares = [stage for stage in read_graph() if stage.kind == "explore"]
    assert [(stage.name, stage.audit) for stage in shares] == [
        ("explore@big-2-1", "big-2"),
        ("explore@big-2-2", "big-2"),
    ]


# What an upgrade does


def test_the_pipeline_names_code_by_faded_json_and_is_else_the_one_graph():
    derived, original = yaml.safe_load(pipeline())["stages"], read_stages()
    assert list(derived) == list(original)
    for name, stage in derived.items():
        body, source = stage["do"], original[name]["do"]
        assert body["cmd"] == source["cmd"].replace("exec python -m", "exec python -P -m") != source["cmd"]
        code = [dep for dep in source["deps"] if dep not in body["deps"]]
        assert code and all(dep.startswith("stages/") and (ROOT / dep).exists() for dep in code)
        assert f"code.{name}" in body["params"][0]["faded.json"]
        kept = ("outs", "metrics", "plots", "meta", "desc")
        assert {key: body.get(key) for key in kept} == {key: source.get(key) for key in kept}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("stages/collect_feedback.py", {"collect_feedback"}),
        ("stages/landscape/new_module.py", {"summarize", "re_evaluate"}),
        ("stages/tasks/new_module.py", {"prepare"}),
        ("stages/ledger.py", {"explore", "discover", "summarize", "re_evaluate"}),
        ("stages/params/file.py", set(read_stages())),
        ("flows/graph.py", set()),
        ("stages/concepts/__pycache__/x.pyc", set()),
    ],
)
def test_a_changed_file_of_the_package_changes_what_depends_on_it_and_nothing_else(tmp_path, file, stages):
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    before = code_hashes(package=tmp_path / "stages")
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as changed:
        changed.write("\n")
    after = code_hashes(package=tmp_path / "stages")
    assert {name for name in after if after[name] != before[name]} == stages


def test_after_an_upgrade_the_next_command_says_what_changed_and_only_that_is_stale(own, tmp_path):
    package = tmp_path / "package"
    shutil.copytree(toy_package(), package)
    path = {"PYTHONPATH": str(package)}
    enter = "from flows.workspace import enter_workspace; enter_workspace()"
    assert own.run([sys.executable, "-P", "-c", enter], **path).returncode == 0
    assert own.run(["dvc", "repro", "summarize@tiny"], **path).returncode == 0
    assert len(own.executed()) == 3
    with (package / "stages" / "landscape" / "measures.py").open("a") as changed:
        changed.write("# another\n")
    done = own.faded("status", **path)
    assert "faded 0.1.0: summarize, re_evaluate changed" in done.stdout
    modified = [line.split()[0] for line in done.stdout.splitlines() if " modified" in line]
    assert modified == ["summarize@tiny"], done.stdout


def test_a_stage_refuses_to_run_with_other_code_than_the_workspace_was_written_for(own):
    record = read_record(own.path)
    command = [sys.executable, "-P", "-m", "stages.collect_feedback", "tiny"]
    for changes, told in (
        ({"faded": "0.0.9"}, "written by faded 0.0.9, installed is"),
        ({}, "installed is 0.1.0 with other code for collect_feedback"),
    ):
        code = {**record["code"], "collect_feedback": "0" * 16}
        (own.path / "faded.json").write_text(json.dumps({**record, "code": code, **changes}))
        done = own.run(command)
        assert done.returncode == 2
        assert told in done.stdout and "run `faded plan`" in done.stdout, done.stdout
    assert bring_up_to_date(own.path) == ["faded 0.1.0: collect_feedback changed"]
    done = own.run(command)  # it now fails for want of a landscape, and not for its code
    assert "landscape" in done.stdout and "installed" not in done.stdout, done.stdout


def test_what_was_changed_by_hand_is_written_anew(own, monkeypatch):
    monkeypatch.chdir(own.path)
    assert not outdated()
    graph, record = Path("dvc.yaml").read_bytes(), Path("faded.json").read_bytes()
    Path("dvc.yaml").write_bytes(graph + b"# by hand\n")
    Path("faded.json").write_text("{")
    assert outdated() and len(bring_up_to_date()) == 1
    assert (Path("dvc.yaml").read_bytes(), Path("faded.json").read_bytes()) == (graph, record)


def test_an_audit_that_was_written_by_hand_gets_its_folders_and_its_code_may_be_compiled(own, monkeypatch):
    params = own.params()
    code = own.path / "tasks_of_mine"
    code.mkdir()
    (code / "__init__.py").write_text("")
    shutil.copy(own.path / "my_task.py", code / "task.py")
    params["audits"]["mine"] = audit_params(task="tasks_of_mine.task:PlantedTask", code="tasks_of_mine")
    own.write_params(params)
    monkeypatch.chdir(own.path)
    assert len(make_folders()) == 1 and make_folders() == [] and not outdated()
    assert (own.path / "data/mine/inputs").is_dir() and (own.path / "data/mine/shards").is_dir()
    (own.path / "data/mine/inputs/regions.json").write_text("[]")
    assert own.run(["dvc", "repro", "prepare@mine"], PYTHONPATH=str(toy_package())).returncode != 2
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "task.pyc").write_bytes(b"compiled")
    stage = read_graph().stages["prepare@mine"]
    assert not any("tasks_of_mine" in reason for reason in stage.reasons), stage.reasons


HOLD = """
import sys
from flows.workspace import exclusive

with exclusive():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def running(workspace: Workspace) -> Iterator[None]:
    """Another process audits there."""
    command = [sys.executable, "-P", "-c", HOLD]
    with subprocess.Popen(command, cwd=workspace.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield
        process.communicate()
    assert process.returncode == 0


def test_while_an_audit_runs_another_may_be_written_by_hand_and_looked_at(own, monkeypatch, capsys):
    monkeypatch.chdir(own.path)
    with running(own):
        params = own.params()
        params["audits"]["mine"] = params["audits"]["tiny"]
        own.write_params(params)
        enter_workspace()
        assert "faded wrote data/mine/.gitignore" in capsys.readouterr().err
        assert running_audit() is not None and (own.path / "data/mine/inputs").is_dir()
        Path("faded.json").write_text("{}")  # as another version has it
        with pytest.raises(InfrastructureError, match="another audit runs in"):
            enter_workspace()
    enter_workspace()
    assert not outdated()


def test_a_module_of_a_users_does_not_take_the_place_of_an_installed_one(own, monkeypatch):
    monkeypatch.chdir(own.path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    cls = task_class("tiny", load_params().audit("tiny"))
    assert cls.__module__ == "my_task" and sys.path[-1] == str(own.path)


# What other distributions add


def test_tasks_of_other_distributions_are_found_by_name(site, own, monkeypatch):
    install(site, "faded-x-ray", "x-ray = faded_x_ray:Plugged")
    assert {"image-classification", "summarization", "text-to-image", "x-ray"} <= {*plugins.load(plugins.TASKS)}
    monkeypatch.chdir(own.path)
    audit = load_params().audit("tiny")
    # Nothing under `code:` holds it; its distribution is a dependency by itself.
    assert task_class("tiny", audit.model_copy(update={"task": "x-ray"})).__name__ == "Plugged"
    with pytest.raises(UsageError, match=r"no installed task, found: .*x-ray.*, did you mean 'x-ray'"):
        task_class("tiny", audit.model_copy(update={"task": "xray"}))


def test_one_name_in_two_distributions_is_an_error_that_names_both(site):
    install(site, "faded-one", "same = faded_one:Plugged")
    install(site, "faded-two", "same = faded_two:Plugged")
    with pytest.raises(UsageError, match=r"'same' .*faded-(one|two) .* and faded-(one|two) .*uninstall one"):
        plugins.load(plugins.TASKS)


@pytest.mark.parametrize("listed", [True, False], ids=["installed", "for development"])
def test_what_a_distribution_adds_is_known_by_version_and_content(site, listed):
    module = install(site, "faded-x-ray", "x-ray = faded_x_ray:Plugged", listed=listed)
    (before,) = plugins.distributions().items()
    assert before[0] == "faded-x-ray" and before[1].startswith("1.0 ")
    assert plugins.holds(module.resolve()) and not plugins.holds((ROOT / "tests" / "planted.py").resolve())
    (site / "__pycache__").mkdir(exist_ok=True)
    assert plugins.distributions() == dict([before])
    module.write_text(module.read_text() + "# another\n")
    (changed,) = plugins.distributions().values()
    assert changed != before[1]
    module.unlink()
    if listed:  # the list of its files outlives them
        (gone,) = plugins.distributions().values()
        assert gone not in (before[1], changed)


@pytest.fixture(params=["clone", pytest.param("own", marks=pytest.mark.slow)])
def either(request) -> Iterator[Workspace]:
    yield request.getfixturevalue("toys" if request.param == "clone" else "own")


def test_another_plugin_is_told_and_makes_stages_stale_in_a_clone_too(either, site, monkeypatch):
    monkeypatch.chdir(either.path)
    bring_up_to_date()
    done = either.run(["dvc", "repro", "summarize@tiny"], PYTHONPATH=str(toy_package()))
    assert done.returncode == 0, done.stdout
    fresh = {"prepare@tiny", "discover@tiny", "summarize@tiny"}
    assert not [stage for stage in read_graph() if stage.stale and stage.name in fresh]
    install(site, "faded-x-ray", "x-ray = faded_x_ray:Plugged", plugins.EXPLORERS)
    with pytest.raises(UsageError, match=r"names the plugins none, installed are faded-x-ray 1\.0 .*run `faded plan`"):
        check_installed("discover")
    (told,) = bring_up_to_date()
    assert told.startswith("plugin faded-x-ray: none -> 1.0 ")
    assert {stage.name for stage in read_graph() if stage.stale and "plugins modified" in stage.reasons} == fresh
    check_installed("discover")


def test_the_clone_says_that_it_has_no_plugins():
    assert json.loads((ROOT / "faded.json").read_text()) == {"schema": 1, "plugins": {}}
    reads = {name for name, stage in read_stages().items() if {"faded.json": ["plugins"]} in stage["do"]["params"]}
    assert reads == {"prepare", "explore", "discover", "summarize", "restructure", "re_evaluate"}


def test_folders_are_made_once(own):
    (own.path / "data/tiny/inputs/.gitkeep").unlink()
    before = digests(own.path)
    add_folders(own.path, "tiny", repair=True)
    assert digests(own.path) == before
