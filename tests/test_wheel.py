"""The wheel, installed into an environment without access to this repository."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from stages.core.files import content_hash
from tests.own_workspaces import git
from tests.workspace import ROOT, audit_params, repair_params

pytestmark = pytest.mark.slow

SEARCH = {"explorer": "random", "baseline": "random", "budget": 160, "microscopic": {"method": "none"}}
MAKE = """
import json, sys
from pathlib import Path
from flows.workspace.new import add_audit, write_workspace

write_workspace(Path())
add_audit(Path(), "tiny", *json.loads(sys.argv[1]))
"""


def done(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The files that the wheel is built from, without an earlier build's, which would end up in this one."""
    source = tmp_path_factory.mktemp("source") / "faded"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "dvc.yaml"):
        shutil.copy(ROOT / name, source / name)
    for name in ("faded", "flows", "stages"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "benchmarks"):  # must not be in it
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    """The wheel as in a release: built from the source distribution, in its own environment."""
    out = tmp_path_factory.mktemp("dist")
    done(sys.executable, "-m", "build", "--outdir", str(out), str(source))
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module", params=["dependencies of this one", pytest.param("its own", marks=pytest.mark.nightly)])
def environment(wheel, request, tmp_path_factory) -> Path:
    """A fresh environment with the wheel; installing what image classifiers need as well takes minutes."""
    path = tmp_path_factory.mktemp("fresh") / "env"
    alone = request.param == "its own"
    install = ["install", "--quiet", *([f"{wheel}[image]"] if alone else ["--no-deps", str(wheel)])]
    done(sys.executable, "-m", "venv", str(path))
    done(str(path / "bin" / "python"), "-m", "pip", *install)
    if not alone:
        (packages,) = path.glob("lib/python*/site-packages")
        here = [entry for entry in sys.path if entry.endswith("site-packages")]
        (packages / "dependencies.pth").write_text("\n".join(here))
    return path


def run(environment: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment; the PATH has only the environment and the system."""
    env = {"PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder.parent)}
    env |= {"COLUMNS": "160", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    whole = [str(environment / "bin" / command[0]), *command[1:]]
    return subprocess.run(whole, cwd=folder, env=env, check=False, timeout=900, **streams)


def test_the_wheel_holds_all_of_the_package_and_nothing_else(source, wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for name in ("faded", "flows", "stages") for path in (source / name).rglob("*") if path.is_file()]
    assert inside == {str(path.relative_to(source)) for path in files}
    assert {*(f"{name}/py.typed" for name in ("faded", "flows", "stages")), "flows/workspace/plots/page.html"} <= inside
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("stages/templates/pipeline.yaml") == (source / "dvc.yaml").read_bytes()


def test_an_audit_runs_in_any_git_repository_from_the_installed_wheel(source, environment, tmp_path):
    repository = tmp_path / "repository"
    workspace = repository / "audit"
    workspace.mkdir(parents=True)
    for name in ("stages", "flows"):
        (workspace / name).mkdir()
        (workspace / name / "__init__.py").write_text("raise SystemExit('not the package')\n")
    shutil.copy(ROOT / "tests" / "planted.py", workspace / "my_task.py")
    git(repository, "init", "--quiet", "--initial-branch=main")  # without a commit, as no stage needs one
    audit = audit_params(task="my_task:PlantedTask", discover=SEARCH)
    made = run(environment, workspace, "python", "-P", "-c", MAKE, json.dumps([audit, repair_params()]))
    assert made.returncode == 0, made.stdout
    (workspace / "data/tiny/inputs/regions.json").write_text("[]")
    for command in ("plan", "audit", "status"):
        done = run(environment, workspace, "faded", command)
        assert done.returncode == 0, done.stdout
    assert "pass" in done.stdout and "stale" not in done.stdout, done.stdout
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "done")
    done = run(environment, workspace, "faded", "compare", "HEAD", "workspace")
    assert done.returncode == 0 and "no difference shown" in done.stdout, done.stdout

    # The stages ran exactly the code that was built.
    assert json.loads((workspace / "faded.json").read_text())["code"] == content_hash([source / "stages"])
    where = run(environment, workspace, "python", "-P", "-c", "import stages; print(stages.__file__)")
    assert where.stdout.strip().startswith(str(environment)), where.stdout


def test_a_built_in_task_is_found_by_its_name(environment, tmp_path):
    show = "from stages.core import plugins as p; print(*sorted(p.entry_points_of(p.TASKS)), p.distributions())"
    done = run(environment, tmp_path, "python", "-P", "-c", show)
    assert done.stdout == "chat image-classification summarization tabular-classification text-to-image {}\n"
