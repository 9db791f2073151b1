"""Makes a folder of any git repository a custom workspace, and adds audits to it."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.workspace.block import AuditDraft, with_draft
from flows.workspace.pipeline import (
    DVC_YAML,
    PARAMS,
    PLOTS,
    folders_of,
    has_pipeline,
    installation_record,
    is_own,
    pipeline,
    plot_templates,
    text_of,
)
from stages.code import RECORD, read_record
from stages.core.environment import WORK
from stages.core.errors import UsageError
from stages.core.files import replace_file
from stages.core.git import git, git_root
from stages.params import DATA

_NO_AUDITS = """\
# What is audited (audits:) and what is done about it (repairs:). An audit without an entry under repairs: ends after
# its landscape. `faded init` adds audits, `faded plan` checks them.

audits: {}

repairs: {}

# Where stages run: threads of this machine, or dask or ray, here or at an address. `--runner` says otherwise for once.
runner: threads
"""


def check_folder(folder: Path) -> None:
    """Refuse what `write_workspace` refuses, before anything is written.

    Raises:
        UsageError: if the folder has the user's own pipeline, or git ignores its data.
    """
    if not folder.is_dir() or (has_pipeline(folder) and not is_own(folder)):
        return
    _refuse_foreign(folder)
    _git_ignores(folder, git_root(folder.resolve()))


def write_workspace(folder: Path) -> list[Path]:
    """Make a folder of a git repository a custom workspace without audits so far; return what was written.

    dvc.yaml makes it a workspace, so it is written last: a kill leaves nothing that DVC reads, and a new call resumes.
    A clone of Faded's repository is left unchanged, and so are other pipelines of the repository.

    Raises:
        UsageError: if it is not in a git repository, has the user's own pipeline, or git ignores its data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root = git_root(folder.resolve())
    if has_pipeline(folder) and not is_own(folder):
        return []  # a clone
    _refuse_foreign(folder)
    written = [path for path in (folder / ".gitignore", folder / ".dvcignore") if _put_lines(path, folder, root)]
    above = [here for here in (folder.resolve(), *folder.resolve().parents) if here.is_relative_to(root)]
    if not any((here / ".dvc").is_dir() for here in above):
        _make_dvc(folder)
        written.append(folder / ".dvc")
    for path, text in (
        (folder / PARAMS, _NO_AUDITS),
        (folder / RECORD, installation_record(folder, own=True)),
        (folder / DVC_YAML, pipeline()),
        *plot_templates(folder).items(),
    ):
        if not path.exists():
            replace_file(path, text)
            written += [path] if path.parent == folder else []
    return written


def add_folders(folder: Path, name: str, *, repair: bool) -> None:
    """Create the folders of an audit, with the files that keep them in git and its outputs out of it."""
    for path, text in folders_of(folder, name, repair=repair).items():
        replace_file(path, text)


def add_audit(folder: Path, name: str, audit: Mapping[str, Any], repair: Mapping[str, Any] | None = None) -> None:
    """Add an audit to a workspace: its folders and, atomically, its blocks in params.yaml.

    Args:
        audit: its block, as in `AuditConfig`.
        repair: the block of its repair, as in `RepairConfig`; None for no repair.

    Raises:
        UsageError: if the name is taken, the blocks are invalid, or params.yaml's layout cannot take them.
    """
    from stages.params import load_params, name_error, parse_yaml, read_bytes

    path, partial = folder / PARAMS, folder / f".{PARAMS}.new"
    text = text_of(path)
    if error := name_error(name):
        raise UsageError(f"audits.{name}: {error}")
    raw = parse_yaml(read_bytes(path), str(path))
    if isinstance(raw, dict) and name in (raw.get("audits") or {}):
        raise UsageError(f"audits.{name}: {path} already has an audit of that name")
    text = with_draft(text, AuditDraft(name, audit, repair))
    try:
        replace_file(partial, text)
        load_params(partial)
    except UsageError as error:
        raise UsageError(str(error).replace(str(partial), str(path))) from None
    finally:
        partial.unlink(missing_ok=True)
    add_folders(folder, name, repair=repair is not None)
    replace_file(path, text)


def _refuse_foreign(folder: Path) -> None:
    """Refuse to overwrite files that are not Faded's."""
    params = text_of(folder / PARAMS)
    foreign = {
        DVC_YAML: (folder / DVC_YAML).exists() and not is_own(folder),
        PARAMS: (folder / PARAMS).exists() and not any(line.startswith("audits:") for line in params.splitlines()),
        RECORD: (folder / RECORD).exists() and not read_record(folder),
    }
    if names := [str(name) for name, there in foreign.items() if there]:
        audit = shlex.quote(str(folder / "audit"))
        are, stay = ("is", "stays as it is") if len(names) == 1 else ("are", "stay as they are")
        raise UsageError(
            f"{' and '.join(names)} in {folder.resolve()} {are} not Faded's, and {stay}: make a folder for audits"
            f" beside it, `mkdir {audit} && faded init {audit}`"
        )


def _put_lines(path: Path, folder: Path, root: Path) -> bool:
    """Append the missing lines to .gitignore or .dvcignore; return whether there were any."""
    lines = _git_ignores(folder, root) if path.name == ".gitignore" else [f"/{WORK}"]
    text = text_of(path)
    missing = [line for line in lines if line not in text.splitlines()]
    if missing:
        gap = "\n" if text and not text.endswith("\n") else ""
        why = "# Files that `faded` keeps for itself, and files that it keeps in git."
        replace_file(path, text + gap + "\n".join([why, *missing, ""]))
    return bool(missing)


def _git_ignores(folder: Path, root: Path) -> list[str]:
    """Lines of .gitignore: DVC refuses pipelines that git ignores, and results are recorded in git."""
    names = [str(PARAMS), str(DVC_YAML), "dvc.lock", str(RECORD)]
    lines = [f"/{WORK}/", *(f"!/{name}" for name in names if _ignored(folder, name))]
    if _ignored(folder, f"{DATA}/audit/decisions"):
        if folder.resolve() == root or (folder / DATA).exists():
            data = folder / DATA
            raise UsageError(
                f"git ignores {data} (`git check-ignore -v {shlex.quote(f'{data}/audit')}` says why), where Faded"
                " keeps decisions and metrics for git: make another folder for audits, `mkdir audit && faded init"
                " audit`"
            )
        lines.append(f"!/{DATA}/")
    return lines


def _ignored(folder: Path, name: str) -> bool:
    return git("check-ignore", "--quiet", "--no-index", name, folder=folder) is not None


def _make_dvc(folder: Path) -> None:
    """Create .dvc as `dvc init --subdir` does, but atomically, without analytics, and without touching git's index."""
    from dvc.config import Config
    from dvc.repo import Repo

    home = folder / WORK / "dvc-init"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    git("init", "--quiet", folder=home)
    logging.getLogger("dvc").setLevel(logging.ERROR)  # its messages would repeat Faded's own
    Repo.init(str(home)).close()
    with Config(str(home / ".dvc")).edit("repo") as config:
        config["core"]["analytics"] = "false"  # as `dvc config` writes it
        config["plots"]["html_template"] = f"{PLOTS.name}/page.html"
    (home / ".dvc" / PLOTS.name).mkdir(exist_ok=True)
    shutil.copy(PLOTS / "page.html", home / ".dvc" / PLOTS.name)
    shutil.rmtree(home / ".dvc" / "tmp", ignore_errors=True)
    (home / ".dvc").replace(folder / ".dvc")
    shutil.rmtree(home)
