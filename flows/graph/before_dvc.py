"""What is recorded before DVC is queried: the code of audits, and folders that an audit's inputs link to.

DVC would find the stage `code` stale whenever any file changed, and with it all stages after it, until it has run.
That stage is fast, so its work is done here: each data/AUDIT/code.json, and its entry in dvc.lock.

DVC hashes the content of linked files, but ignores linked folders. A hash of such a folder's content is written to a
file beside the link, which DVC does hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.workspace.pipeline import PARAMS, is_own
from stages.code import PACKAGE, STAGE, Code, model_function
from stages.core.errors import UsageError
from stages.params import DATA, load_params

if TYPE_CHECKING:
    from dvc.repo import Repo

    from stages.params import AuditConfig


def name_code(repo: Repo, root: Path, ours: str, *, looks: bool) -> None:
    """Update code.json of all audits, and their entries in dvc.lock; the caller holds DVC's lock.

    Args:
        ours: path of the workspace's dvc.yaml in the repository.
        looks: whether to leave dvc.lock unchanged.

    Raises:
        UsageError: if a file cannot be written.
    """
    stages = [stage for stage in repo.index.stages if stage.path_in_repo == ours and stage_kind(stage) == STAGE]
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
    return (":" in audit.task and not audit.task.startswith(f"{PACKAGE.name}.")) or bool(model_function(audit))


def stage_kind(stage: Any) -> str:
    """The name of a stage in dvc.yaml without its audit."""
    return str(getattr(stage, "name", "")).partition("@")[0]


NOTE = "linked-folders.json"
# Folders that DVC itself ignores, and the one that Python writes when it imports a module.
_PASSED_OVER = {".git", ".hg", ".dvc", "__pycache__"}


def note_linked_folders(repo: Repo, root: Path = Path()) -> None:
    """Update the notes of all audits.

    Raises:
        UsageError: if a linked folder cannot be read, or its note cannot be written.
    """
    for inputs in sorted(root.resolve().glob(f"{DATA}/*/inputs")):
        note = inputs / NOTE
        try:
            found = {link.relative_to(inputs).as_posix(): _held(link, repo) for link in _linked(inputs)}
            # No partial file is needed: a note truncated by a kill differs, and is written again.
            text = json.dumps(found, indent=1) + "\n" if found else ""
            if text and (not note.exists() or note.read_text(encoding="utf-8") != text):
                note.write_text(text, encoding="utf-8")
            elif not text and note.exists():  # without a note, inputs need not be writable
                note.unlink()
        except OSError as error:
            raise UsageError(
                f"{inputs} links to a folder, so its contents have to be read, and recorded in {NOTE}: {error};"
                " copy the folder into it instead, or link its files"
            ) from None


def _linked(inputs: Path) -> list[Path]:
    """Links to folders, except those behind another such link."""
    folders = (Path(here, name) for here, names, _ in os.walk(inputs) for name in names)
    return sorted(folder for folder in folders if folder.is_symlink())


def _held(link: Path, repo: Repo) -> dict[str, int | str]:
    """The number of files in a folder, and the MD5 of their paths and contents."""
    from dvc_data.hashfile.hash import hash_file
    from dvc_objects.fs.local import localfs

    files, digest = 0, hashlib.md5(usedforsecurity=False)
    for path in _files(link, frozenset()):
        _, found = hash_file(str(path), localfs, "md5", state=repo.state)
        digest.update(f"{path.relative_to(link).as_posix()}\0{found.value}\n".encode(errors="surrogateescape"))
        files += 1
    return {"files": files, "md5": digest.hexdigest()}


def _files(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """All files in a folder and below it, through links, in order; a link back to a folder above is skipped."""
    real = folder.resolve()
    if real in above:
        return
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield path
        elif path.is_dir() and path.name not in _PASSED_OVER:
            yield from _files(path, above | {real})
