"""The pipeline of a workspace of one's own, made from the one graph: its code is the installed package's.

What other distributions add is a dependency in a clone, too; so there faded.json is kept up to date by the same code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.code import RECORD, STAGE, installed, read_pipeline, read_record
from stages.environment import WORK
from stages.errors import UsageError
from stages.files import locked, replace_file
from stages.git import git
from stages.params import DATA, load_params

DVC_YAML, PARAMS = Path("dvc.yaml"), Path("params.yaml")
PLOTS = Path(__file__).parent / "plots"  # how DVC draws, and the page it draws on
HEADER = """\
# Written by `faded`, which rewrites it when another version of it is installed: do not edit it.
# What is audited is in params.yaml; which code the stages run, and in how many shares they search, is in faded.json.
"""
# Of an audit's folder: DVC keeps the bytes of outputs, git keeps dvc.lock, headlines and decisions.
_GIT_IGNORES = """\
/*/*
!/inputs/*
!/decisions/*
!/shards/.gitignore
/decisions/.*.partial
!/*/headline.json
"""
# A decision that is being written, and what keeps the folder of shards in git: no stage depends on either.
_DVC_IGNORES = """\
/decisions/.*.partial
/shards/.gitignore
"""
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_WIDTH = 1000  # longer than any line: YAML folds none


def pipeline() -> str:
    """The dvc.yaml of a workspace of one's own.

    Stages run the installed package whatever folders lie beside them (`python -P`). `code` depends on what faded.json
    says of it in place of its files.
    """
    graph = read_pipeline()
    stages = graph["stages"]
    for stage in stages.values():
        body = stage["do"]
        body["cmd"] = body["cmd"].replace("exec python -m ", "exec python -P -m ")
    code = stages[STAGE]["do"]
    del code["deps"]
    code["params"] = [{RECORD.name: ["code", "plugins"]}, *code["params"][1:]]
    text = yaml.dump(graph, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=_WIDTH)
    return HEADER + str(text)


def is_own(folder: Path = Path()) -> bool:
    """Whether `faded` wrote the dvc.yaml of a workspace, so that its stages run from the installed package."""
    return text_of(folder / DVC_YAML).startswith(HEADER.partition("\n")[0])


def outdated(folder: Path = Path()) -> bool:
    """Whether faded.json, or in a workspace of one's own dvc.yaml or what goes with it, is of another version."""
    return bool(_wanted(folder))


def make_folders(folder: Path = Path()) -> list[str]:
    """Make what audits lack that were written to params.yaml by hand; an audit that runs is not disturbed by it.

    Returns:
        What was written, in one line for people; nothing if nothing was.
    """
    if not _is_workspace(folder) or not _for_audits(folder):
        return []
    with locked(folder / WORK / "folders.lock"):
        missing = _for_audits(folder)
        for path, text in missing.items():
            replace_file(path, text)
    return [_wrote(path.relative_to(folder) for path in missing)] if missing else []


def bring_up_to_date(folder: Path = Path()) -> list[str]:
    """Write what is outdated anew, and make folders; the workspace has to be held.

    That is faded.json, and in a workspace of one's own dvc.yaml and its templates.

    Returns:
        What changed, in a line or two for people; nothing if nothing did.
    """
    made = make_folders(folder)
    wanted = _wanted(folder)
    if not wanted:
        return made
    before, released = read_record(folder), _released(folder)
    # faded.json last: until it is written stages refuse to run, whatever dvc.yaml says already.
    for path, text in wanted.items():
        replace_file(path, text)
    return [*made, *released, _told(before, read_record(folder), [path.relative_to(folder) for path in wanted])]


def folders_of(folder: Path, name: str, *, repair: bool, own: bool = True) -> dict[Path, str]:
    """Files that keep the folders of an audit in git and its outputs out of it, those that are missing.

    Args:
        folder: the workspace.
        name: of the audit.
        repair: whether its failures are repaired, on which people may decide.
        own: whether it is a workspace of one's own; a clone says at its top what git and DVC ignore.

    Returns:
        Their texts.
    """
    home = folder / DATA / name
    files = {home / ".gitignore": _GIT_IGNORES, home / ".dvcignore": _DVC_IGNORES} if own else {}
    files[home / "shards" / ".gitignore"] = "*\n!.gitignore\n"
    keeps = ["inputs", *(["decisions"] if repair else [])]
    files |= {home / kind / ".gitkeep": "" for kind in keeps if not (home / kind).is_dir()}
    return {path: text for path, text in files.items() if not path.exists()}


def dvc_root(workspace: Path = Path()) -> Path:
    """The folder of .dvc: the workspace, or one above it in a repository that has pipelines of its own."""
    here = workspace.resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def plot_templates(folder: Path) -> dict[Path, str]:
    """Files by which DVC draws the plots of dvc.yaml, and their texts; none where .dvc lies in a folder above."""
    there = folder / ".dvc" / PLOTS.name
    sources = sorted(PLOTS.glob("*.json")) if there.parent.is_dir() else []
    return {there / path.name: path.read_text(encoding="utf-8") for path in sources}


def record(folder: Path, *, own: bool) -> str:
    """The faded.json of the installed package, with the shares of divided searches, which DVC cannot count itself.

    Args:
        folder: the workspace.
        own: whether it is one of one's own.
    """
    try:
        shares: Any = load_params(folder / PARAMS).shares
    except UsageError:
        shares = read_record(folder).get("shards", {})  # whoever reads params.yaml tells what is wrong
    return json.dumps({**installed(own=own), "shards": shares}, indent=1) + "\n"


def with_lines(text: str, lines: Iterable[str], why: str) -> str:
    """The text of a file of ignores with what it lacks of these lines at its end.

    Args:
        text: as it is.
        lines: what it has to have.
        why: the comment before them.
    """
    missing = [line for line in lines if line not in text.splitlines()]
    gap = "\n" if text and not text.endswith("\n") else ""
    return text + gap + "\n".join([f"# {why}", *missing, ""]) if missing else text


def text_of(path: Path) -> str:
    """The text of a file, "" if it is missing; whatever it holds, `put` gives the same bytes back.

    Raises:
        UsageError: when it is not a file, or may not be read.
    """
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
    except (IsADirectoryError, PermissionError) as error:
        raise UsageError(f"{path} cannot be read: {str(error.strerror).lower()}") from None


def _wanted(folder: Path) -> dict[Path, str]:
    """Files that are not as they should be, with what should be in them; faded.json last."""
    own = is_own(folder)
    if not _is_workspace(folder):
        return {}
    files = {**plot_templates(folder), folder / DVC_YAML: pipeline()} if own else {}
    files[folder / RECORD] = record(folder, own=own)
    return {path: text for path, text in files.items() if text_of(path) != text or not path.exists()}


def _released(folder: Path) -> list[str]:
    """Have DVC keep what earlier versions had git keep, which DVC refuses otherwise; what was done, for people."""
    tracked = (
        (git("ls-files", "--", f"{DATA}/*/*/metrics.json", folder=folder) or "").splitlines() if is_own(folder) else []
    )
    if not tracked:
        return []
    for path in (folder / DATA).glob("*/.gitignore"):
        if "!/*/metrics.json\n" in (text := text_of(path)):
            replace_file(path, text.replace("!/*/metrics.json\n", "!/*/headline.json\n", 1))
    # Last: while git has them, whoever goes on after a kill does all of it.
    git("rm", "--cached", "--quiet", "--", *tracked, folder=folder)
    return [
        "faded took data/*/*/metrics.json out of git's index, as DVC keeps these now: commit that, and headline.json"
    ]


def _is_workspace(folder: Path) -> bool:
    """Whether stages there depend on faded.json: in a workspace of one's own, and in a clone."""
    return RECORD.name in text_of(folder / DVC_YAML)


def _for_audits(folder: Path) -> dict[Path, str]:
    """What audits lack that were written to params.yaml by hand."""
    try:
        params = load_params(folder / PARAMS)
    except UsageError:
        return {}  # whoever reads it tells what is wrong; until then nothing is made
    files: dict[Path, str] = {}
    own = is_own(folder)
    for name in params.audits:
        files |= folders_of(folder, name, repair=name in params.repairs, own=own)
    return files


def _told(before: Mapping[str, Any], now: Mapping[str, Any], written: Iterable[Path]) -> str:
    parts = []
    old, new = before.get("faded"), now.get("faded")
    if old != new:
        parts.append(f"faded {new}" if old is None else f"faded {old} -> {new}")
    elif before.get("code") != now.get("code"):
        parts.append(f"faded {new} with other code")
    was, are = (record["plugins"] if isinstance(record.get("plugins"), dict) else {} for record in (before, now))
    for name in sorted({*was, *are}):
        if was.get(name) != are.get(name):
            parts.append(f"plugin {name}: {was.get(name, 'none')} -> {are.get(name, 'none')}")
    if "shards" in before and before["shards"] != now.get("shards"):
        parts.append("a search is divided differently")
    return "; ".join(parts) or _wrote(written)


def _wrote(paths: Iterable[Path]) -> str:
    return f"faded wrote {', '.join(map(str, paths))}"
