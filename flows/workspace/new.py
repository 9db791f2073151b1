"""Makes a folder of any git repository a custom workspace, and adds audits to it.

The block of a new audit in params.yaml is commented as a person would write it.
"""

import contextlib
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml.comments import CommentedMap

from flows.workspace.edit_params import dumped, in_one_line, in_quotes, unshared
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
from stages.params import DATA, load_params, name_error, parse_yaml, read_bytes

_NO_AUDITS = """\
# What is audited (audits:) and what is done about it (repairs:). An audit without an entry under repairs: ends after
# its landscape. `faded init` adds audits, `faded plan` checks them.

audits: {}

repairs: {}

# Where stages run: threads of this machine, or dask or ray, here or at an address. `--runner` says otherwise for once.
runner: threads
"""
_DVC_CONFIG = f"""\
[core]
    analytics = false
[plots]
    html_template = {PLOTS.name}/page.html
"""
_COMMENT_AT = 58  # column of comments, unless the line is longer
_ABOVE = ("concepts", "discrepancy", "repair.gates")  # keys whose comment has lines of its own above them


def check_folder(folder: Path) -> None:
    """Raise the UsageErrors of `write_workspace` before anything is written."""
    if not folder.is_dir() or (has_pipeline(folder) and not is_own(folder)):
        return
    _refuse_foreign(folder)
    _git_ignores(folder, git_root(folder.resolve()))


def write_workspace(folder: Path) -> list[Path]:
    """Make a folder of a git repository a custom workspace without audits so far; return what was written.

    dvc.yaml makes it a workspace, so it is written last: a kill leaves nothing that DVC reads, and a new call resumes.
    A clone of Faded's repository is left unchanged, and so are other pipelines of the repository. Raises a UsageError
    if it is not in a git repository, has the user's own pipeline, or git ignores its data.
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
    """Add an audit to a workspace: its folders and, atomically, its blocks in params.yaml, as in `AuditDraft`.

    Raises a UsageError if the name is taken, the blocks are invalid, or params.yaml's layout cannot take them.
    """
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
    home = folder / WORK / "dvc-init"
    shutil.rmtree(home, ignore_errors=True)
    (home / PLOTS.name).mkdir(parents=True)
    shutil.copy(PLOTS / "page.html", home / PLOTS.name)
    (home / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (home / "config").write_text(_DVC_CONFIG)
    home.replace(folder / ".dvc")


@dataclass(frozen=True)
class AuditDraft:
    """An audit that is to be written: its block, as in `AuditConfig`, that of its repair, as in `RepairConfig`, if any.

    Notes are comments by key: "prepare.items", "concepts.blur", "repair.gates".
    """

    name: str
    audit: Mapping[str, Any]
    repair: Mapping[str, Any] | None
    notes: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> dict[str, str]:
        """Return its lines under `audits:` and, if there is a repair, under `repairs:`."""
        blocks = {"audits": _entry(self, self.audit, ("prepare", "concepts"), "")}
        if self.repair is not None:
            blocks["repairs"] = _entry(self, self.repair, ("gates",), "repair.")
        return blocks


def _entry(draft: AuditDraft, block: Mapping[str, Any], spread: Sequence[str], prefix: str) -> str:
    """One audit or repair: a line for each key, and a line for each nested key of the keys in `spread`."""
    entry = CommentedMap()
    for key, value in block.items():
        entry[key] = inner = _flow(value)
        if key in spread and value:
            entry[key] = inner = CommentedMap({name: _flow(one) for name, one in value.items()})
            for name in inner:
                _comment(inner, name, f"{prefix}{key}.{name}", draft, 6)
        _comment(entry, key, f"{prefix}{key}", draft, 4)
    return dumped({"": {draft.name: entry}}).partition("\n")[2]


def _comment(block: CommentedMap, key: str, path: str, draft: AuditDraft, indent: int) -> None:
    if (note := draft.notes.get(path)) is None:
        return
    if path in _ABOVE:
        block.yaml_set_comment_before_after_key(key, before=note, indent=indent)
    else:
        block.yaml_add_eol_comment(note, key, column=_COMMENT_AT)


def _flow(value: Any) -> Any:
    """A value in one line of YAML."""
    if isinstance(value, Mapping):
        return in_one_line({_flow(key): _flow(inner) for key, inner in value.items()})
    if isinstance(value, list | tuple):
        return in_one_line([_flow(inner) for inner in value])
    return in_quotes(value) if isinstance(value, str) else value


def with_draft(text: str, draft: AuditDraft) -> str:
    """The text of params.yaml with an audit and its repair, in place of those of that name; other lines stay.

    Raises a UsageError if the file's layout does not allow this.
    """
    expected, after, lines = yaml.safe_load(text) or {}, text, draft.text()
    for key, block in (("audits", draft.audit), ("repairs", draft.repair)):
        others = {name: one for name, one in (expected.get(key) or {}).items() if name != draft.name}
        if draft.name in (expected.get(key) or {}):
            after, expected[key] = _without(after, key, draft.name), others
        if block is not None:
            after, expected[key] = _inserted(after, key, lines[key]), {**others, draft.name: unshared(block)}
    with contextlib.suppress(yaml.YAMLError):
        if yaml.safe_load(after) == expected:
            return after
    raise UsageError(
        f"params.yaml is laid out so that nothing can be added without touching more of it; write there yourself"
        f"\n\naudits:\n{lines['audits']}\nrepairs:\n{lines.get('repairs', '  {}')}"
    )


def _pair(node: Any, key: str) -> tuple[Any, Any] | None:
    """The nodes of a key and its value in a mapping; None if there are none."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((name, value) for name, value in pairs if name.value == key), None)


def _without(text: str, key: str, name: str) -> str:
    """The text without an entry of the mapping under a top-level key, and without the blank line before it."""
    top = _pair(yaml.compose(text), key)
    if top is None or (found := _pair(top[1], name)) is None:
        return text
    start, end = text.rfind("\n", 0, found[0].start_mark.index) + 1, _line_end(text, _last(found[1]))
    head = text[:start].removesuffix("\n") if text[:start].endswith("\n\n") else text[:start]
    if len(top[1].value) == 1:
        at = top[0].end_mark.index
        head = f"{head[: at + 1]} {{}}{head[at + 1 :]}"
    return head + text[end:]


def _inserted(text: str, key: str, lines: str) -> str:
    """The text with lines added at the end of the mapping under a top-level key, which may be missing, empty or {}."""
    found = _pair(yaml.compose(text), key)
    if found is None:
        return f"{text.rstrip()}\n\n{key}:\n{lines}" if text.strip() else f"{key}:\n{lines}"
    name, value = found
    if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
        end = _line_end(text, _last(value))
        gap = "" if text[:end].endswith("\n") else "\n"
        return f"{text[:end]}{gap}\n{lines}{text[end:]}"
    # {} or nothing: keep the comment behind it.
    start = name.end_mark.index + 1
    stop = value.end_mark.index if isinstance(value, yaml.MappingNode) else start
    end = _line_end(text, stop)
    return f"{text[:start]}{text[stop:end].rstrip(chr(10))}\n{lines}{text[end:]}"


def _last(node: Any) -> int:
    """Where a node's content ends; the end mark of a block is after the comments that follow."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    return _last(node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1])


def _line_end(text: str, index: int) -> int:
    return text.find("\n", index) + 1 or len(text)
