"""The pipeline of a custom workspace, generated from the one graph; its stages run the installed package.

In a clone of Faded, stages also depend on plugins, so faded.json is kept up to date there as well.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.code import RECORD, STAGE, installation, read_pipeline, read_record
from stages.core.environment import WORK
from stages.core.errors import UsageError
from stages.core.files import locked, replace_file
from stages.core.git import git
from stages.params import DATA, load_params

DVC_YAML, PARAMS = Path("dvc.yaml"), Path("params.yaml")
PLOTS = Path(__file__).parent / "plots"  # DVC's plot templates and the page for them
HEADER = """\
# Written by `faded`, which rewrites it when another version of it is installed: do not edit it.
# What is audited is in params.yaml; which code the stages run, and in how many shares they search, is in faded.json.
"""
# In an audit's folder, DVC keeps the bytes of outputs; git keeps dvc.lock, headlines and decisions.
_GIT_IGNORES = """\
/*/*
!/inputs/*
!/decisions/*
!/shards/.gitignore
/decisions/.*.partial
!/*/headline.json
"""
# A decision that is being written, and the file that keeps the folder of shares in git: no stage depends on either.
_DVC_IGNORES = """\
/decisions/.*.partial
/shards/.gitignore
"""
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_WIDTH = 1000  # longer than any line, so that YAML folds none


def pipeline() -> str:
    """The dvc.yaml of a custom workspace.

    Stages run the installed package whatever folders are beside them (`python -P`). The stage `code` depends on the
    record of code in faded.json instead of on files.
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
    """Whether `faded` wrote the workspace's dvc.yaml, so that its stages run from the installed package."""
    return text_of(folder / DVC_YAML).startswith(HEADER.partition("\n")[0])


def make_folders() -> list[str]:
    """Create missing folders of audits that people wrote to params.yaml; return a line about them if there were any."""
    if not has_pipeline(Path()) or not _for_audits():
        return []
    with locked(WORK / "folders.lock"):
        missing = _for_audits()
        for path, text in missing.items():
            replace_file(path, text)
    return [_wrote(missing)] if missing else []


def update_pipeline() -> list[str]:
    """Rewrite outdated files, and create folders; return lines for people about what changed.

    These are faded.json and, in a custom workspace, dvc.yaml and its templates. The caller holds the workspace's lock.
    """
    made, wanted = make_folders(), outdated()
    if not wanted:
        return made
    before, released = read_record(Path()), _released()
    # faded.json last: until it is written, stages refuse to run, whatever dvc.yaml already contains.
    for path, text in wanted.items():
        replace_file(path, text)
    return [*made, *released, _told(before, read_record(Path()), wanted)]


def folders_of(folder: Path, name: str, *, repair: bool, own: bool = True) -> dict[Path, str]:
    """The missing files that keep the folders of an audit in git and its outputs out of it.

    Unless it is a custom workspace (`own`), the root folder has the ignore files for all audits.
    """
    home = folder / DATA / name
    files = {home / ".gitignore": _GIT_IGNORES, home / ".dvcignore": _DVC_IGNORES} if own else {}
    files[home / "shards" / ".gitignore"] = "*\n!.gitignore\n"
    keeps = ["inputs", *(["decisions"] if repair else [])]
    files |= {home / kind / ".gitkeep": "" for kind in keeps if not (home / kind).is_dir()}
    return {path: text for path, text in files.items() if not path.exists()}


def dvc_root(workspace: Path = Path()) -> Path:
    """The folder of .dvc: the workspace, or a folder above it in a repository with its own pipelines."""
    here = workspace.resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def plot_templates(folder: Path) -> dict[Path, str]:
    """Templates for DVC's plots of dvc.yaml, and their texts; empty if .dvc is in a folder above."""
    there = folder / ".dvc" / PLOTS.name
    sources = sorted(PLOTS.glob("*.json")) if there.parent.is_dir() else []
    return {there / path.name: path.read_text(encoding="utf-8") for path in sources}


def installation_record(folder: Path, *, own: bool) -> str:
    """The faded.json of the installed package, with the shares of divided searches, which DVC cannot count itself."""
    try:
        shares: Any = load_params(folder / PARAMS).shares
    except UsageError:
        shares = read_record(folder).get("shards", {})  # reading params.yaml reports what is wrong
    return json.dumps({**installation(own=own), "shards": shares}, indent=1) + "\n"


def remove_path(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def text_of(path: Path) -> str:
    """The text of a file, "" if it is missing; any bytes survive reading and writing with `replace_file`.

    Raises a UsageError if it is not a file, or not readable.
    """
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
    except (IsADirectoryError, PermissionError) as error:
        raise UsageError(f"{path} cannot be read: {str(error.strerror).lower()}") from None


def outdated() -> dict[Path, str]:
    """Files of another version, with their new text: in a custom workspace dvc.yaml and templates; last faded.json."""
    own, here = is_own(), Path()
    if not has_pipeline(here):
        return {}
    files = {**plot_templates(here), DVC_YAML: pipeline()} if own else {}
    files[RECORD] = installation_record(here, own=own)
    return {path: text for path, text in files.items() if text_of(path) != text or not path.exists()}


def _released() -> list[str]:
    """Make DVC keep the metrics that earlier versions kept in git, as DVC refuses them otherwise; a line for people."""
    tracked = (git("ls-files", "--", f"{DATA}/*/*/metrics.json") or "").splitlines() if is_own() else []
    if not tracked:
        return []
    for path in DATA.glob("*/.gitignore"):
        if "!/*/metrics.json\n" in (text := text_of(path)):
            replace_file(path, text.replace("!/*/metrics.json\n", "!/*/headline.json\n", 1))
    # Last: after a kill, the next call does all of this as long as git has these files.
    git("rm", "--cached", "--quiet", "--", *tracked)
    return [
        "faded took data/*/*/metrics.json out of git's index, as DVC keeps these now: commit that, and headline.json"
    ]


def has_pipeline(folder: Path) -> bool:
    """Whether stages there depend on faded.json: in a custom workspace, and in a clone."""
    return RECORD.name in text_of(folder / DVC_YAML)


def _for_audits() -> dict[Path, str]:
    """Missing files of audits that were written to params.yaml by hand."""
    try:
        params = load_params(PARAMS)
    except UsageError:
        return {}  # reading params.yaml reports what is wrong; until then nothing is created
    own = is_own()
    each = (folders_of(Path(), name, repair=name in params.repairs, own=own) for name in params.audits)
    return {path: text for files in each for path, text in files.items()}


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
