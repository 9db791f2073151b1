"""Messages between the driver and a worker, besides the remote: small, plain and without secrets."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

# An output or a stage as in dvc.lock: {"path": ..., "hash": "md5", "md5": ..., "size": ...}.
Entry = dict[str, Any]


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or pure.parts[:1] in ((".git",), (".dvc",), ()):
        raise ValueError(f"{path!r} is not a path within the workspace")
    return path


InWorkspace = Annotated[str, AfterValidator(_inside)]


class Shipment(BaseModel):
    """Everything a worker needs to bring one stage up to date in its own clone.

    Args:
        stage: its name in dvc.yaml.
        files: small texts that are in no remote, by path: params.yaml, dvc.yaml, ratings.
        lock: the stage's entry in the driver's dvc.lock, None if it never ran.
        inputs: outputs of other stages that this one reads, by content.
        hashes: the driver's MD5 of everything the stage reads, by path.
        revision: the commit of the driver's clone, named in messages if a worker's differs.
        workspace: folder of the worker's clone; FADED_WORKSPACE in the worker's environment takes precedence.
        within: path of the driver's workspace in its git repository, "." for its root; None if it is not in one.
        remote: name of the DVC remote; None for the default of the worker's clone.
    """

    stage: str
    files: dict[InWorkspace, str]
    lock: Entry | None
    inputs: list[Entry]
    hashes: dict[str, str]
    revision: str | None
    workspace: str
    within: str | None
    remote: str | None


class ShipmentResult(BaseModel):
    """A worker's result for a shipment; the bytes are in the remote.

    Args:
        host: the worker's machine and clone, "node3:/srv/faded".
        lock: the stage's entry in the clone's dvc.lock.
        versions: versions of the packages there that can change a result.
    """

    host: str
    lock: Entry
    versions: dict[str, str] = {}
