"""Records the code of audits before DVC is queried, so that a changed comment makes no stage stale.

DVC would find the stage `code` stale whenever any file changed, and with it all stages after it, until it has run.
That stage is fast, so its work is done here: each data/AUDIT/code.json, and its entry in dvc.lock.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.workspace.pipeline import PARAMS, is_own
from stages.code import PACKAGE, STAGE, Code, own_function
from stages.errors import UsageError
from stages.params import load_params

if TYPE_CHECKING:
    from dvc.repo import Repo

    from stages.params import AuditConfig


def name_code(repo: Repo, root: Path, ours: str, *, looks: bool) -> None:
    """Update code.json of all audits, and their entries in dvc.lock; the caller holds DVC's lock.

    Args:
        repo: DVC's repository.
        root: the workspace's root folder.
        ours: path of the workspace's dvc.yaml in the repository.
        looks: whether to leave dvc.lock unchanged.

    Raises:
        UsageError: if a file cannot be written.
    """
    stages = [stage for stage in repo.index.stages if stage.path_in_repo == ours and kind_of(stage) == STAGE]
    params, code, named = load_params(root / PARAMS), None, []
    try:
        for stage in stages:
            audit, path = params.audit(str(stage.name).partition("@")[2]), Path(stage.outs[0].fs_path)
            if not stage.status() and not is_of_user(audit):
                continue
            code = code or code_in(root)
            text = code.written(audit)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            if not looks and stage.status():
                stage.save(run_cache=False)
                named.append(stage)
        if named:  # all at once, as dvc.lock is read and written as a whole
            named[0].dvcfile.dump_stages(named, update_pipeline=False)
    except OSError as error:
        raise UsageError(f"{path} names the code of its audit, and cannot be updated: {error}") from None


def code_in(root: Path) -> Code:
    """The code that a workspace's stages run: the installed package, or the clone's own if it is a clone of Faded."""
    return Code(PACKAGE if is_own(root) else root / PACKAGE.name, root)


def is_of_user(audit: AuditConfig) -> bool:
    """Whether the task or the model of an audit is in a user's module, whose files DVC does not watch."""
    return (":" in audit.task and not audit.task.startswith(f"{PACKAGE.name}.")) or bool(own_function(audit))


def kind_of(stage: Any) -> str:
    """The name of a stage in dvc.yaml without its audit."""
    return str(getattr(stage, "name", "")).partition("@")[0]
