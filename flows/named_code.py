"""Name the code of audits before DVC is asked, so that a changed comment shows no stage as stale.

DVC would find the stage `code` stale whenever any file changed, and take all stages behind it for stale until that has
run. It takes a moment, so it is done here: each data/AUDIT/code.json, and what dvc.lock says of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.pipeline import PARAMS, is_own
from stages.code import PACKAGE, STAGE, Code
from stages.errors import UsageError
from stages.params import load_params

if TYPE_CHECKING:
    from dvc.repo import Repo


def name_code(repo: Repo, root: Path, ours: str, *, looks: bool) -> None:
    """Bring code.json of all audits up to date, and their entries in dvc.lock; DVC's lock is held.

    Args:
        repo: DVC's.
        root: the workspace.
        ours: the path of the workspace's dvc.yaml in it.
        looks: dvc.lock stays as it is.

    Raises:
        UsageError: when one cannot be written.
    """
    stages = [stage for stage in repo.index.stages if stage.path_in_repo == ours and kind_of(stage) == STAGE]
    params, code, named = load_params(root / PARAMS), None, []
    try:
        for stage in stages:
            audit, path = params.audit(str(stage.name).partition("@")[2]), Path(stage.outs[0].fs_path)
            if not stage.status() and not is_of_user(audit.task):
                continue
            code = code or code_in(root)
            text = code.written(audit)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            if not looks and stage.status():
                stage.save(run_cache=False)
                named.append(stage)
        if named:  # all at once: each time dvc.lock is read and written as a whole
            named[0].dvcfile.dump_stages(named, update_pipeline=False)
    except OSError as error:
        raise UsageError(f"{path} names the code of its audit, and cannot be updated: {error}") from None


def code_in(root: Path) -> Code:
    """The code that stages of a workspace run: what is installed, or in a clone of the repository that of the clone."""
    return Code(PACKAGE if is_own(root) else root / PACKAGE.name, root)


def is_of_user(task: str) -> bool:
    """Whether a task of params.yaml is in a module of a user's, which is none of the files that DVC watches."""
    return ":" in task and not task.startswith(f"{PACKAGE.name}.")


def kind_of(stage: Any) -> str:
    """The name of a stage in dvc.yaml without its audit."""
    return str(getattr(stage, "name", "")).partition("@")[0]
