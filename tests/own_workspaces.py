"""A custom workspace in a git repository, and the package whose stages it runs.

That package is a copy of this repository's with toy stages, first on the path; tests/test_wheel.py tests the real one.
"""

import atexit
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from flows.workspace.new import add_audit, write_workspace
from tests.workspace import ROOT, STAGES, Workspace, audit_params, repair_params

SHADOWS = "raise SystemExit('a folder of the user took the place of the package')\n"


@cache
def toy_package() -> Path:
    """A folder for PYTHONPATH with a copy of the package that has toy stages."""
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
    """Add a user's folders with the names of the package's."""
    for name in ("stages", "flows"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(SHADOWS)


def make_repository(path: Path) -> Path:
    """A user's git repository, with their own task and folders with the names of the package's."""
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    add_shadows(path)
    shutil.copy(ROOT / "tests" / "planted.py", path / "my_task.py")
    commit(path)
    return path


def make_audited(folder: Path) -> Workspace:
    """Make a folder a workspace with one audit and its repair, "tiny"."""
    write_workspace(folder)
    add_audit(folder, "tiny", audit_params(task="my_task:PlantedTask"), repair_params())
    (folder / "data/tiny/inputs/regions.json").write_text("[]")
    return Workspace(folder)


def digests(folder: Path) -> dict[str, bytes]:
    """The content of the files in a folder, except those of git, DVC and Faded's own state."""
    names = {path: path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()}
    left_out = {".git", "tmp", "cache", ".faded"}
    found = {"/".join(parts): path.read_bytes() for path, parts in names.items() if not left_out & {*parts}}
    assert found
    return found
