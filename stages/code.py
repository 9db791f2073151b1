"""Hash the code that each stage of an audit can reach, so that only changes to code the audit uses make it stale.

data/AUDIT/code.json contains the hashes, and DVC compares the one of each stage. faded.json contains what DVC cannot
watch: the versions and hashes of plugins and, in a user's own workspace, of the installed package. It also lists the
shares of divided searches (flows/workspace/pipeline.py).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stages.core import plugins
from stages.core.environment import die_with_parent
from stages.core.errors import UsageError, run_as_command
from stages.core.reach import Digests, Name, SourceTree

if TYPE_CHECKING:
    from stages.params import AuditConfig
    from stages.params.usage import AnyUsage

RECORD = Path("faded.json")
PACKAGE = Path(__file__).parent
GRAPH = PACKAGE / "templates" / "pipeline.yaml"  # in the repository a link to dvc.yaml, a name DVC reads everywhere
SCHEMA = 1
STAGE = "code"
CODE = Path("code.json")  # in the folder of an audit
# Code that affects no result, so changing it makes nothing stale.
PASSED_OVER = {
    "stages.core.errors": "what people are told",
    "stages.core.progress": "what people are shown",
    "stages.command": "how a stage is started",
    "stages.params.network": "whether a stage may reach other machines",
    "stages.core.processes": "who does the work, not what comes of it",
    "stages.provenance": "says where a result comes from",
    "stages.core.git": "says at which commit",
    "stages.code": "names code",
    "stages.core.reach": "names code",
    "stages.core.plugins": "finds code of others, which is named by itself",
    "stages.params.file": "reads params.yaml, whose values DVC compares",
    "stages.params.strict": "refuses what is wrong there",
    "stages.tasks.load:task_class": "finds the audit's task, which is followed by itself",
    "stages.tasks.load:task_context": "hands blocks of params.yaml to the task, whose methods have the same names",
    **{
        f"stages.core.files:{name}": "how files are written, not what they hold"
        for name in ("publishing", "scratch", "replace_file", "put_aside", "seal", "unseal", "record_probe_seconds")
    },
}
# Blocks of params.yaml: a stage depends only on the defaults of the fields it reads.
BLOCKS = ("stages.params.audit", "stages.params.repair")


def main(name: str) -> None:
    """Run the stage: write data/NAME/code.json."""
    from stages.params import DATA, load_params

    path = DATA / name / CODE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Code().written(load_params().audit(name)), encoding="utf-8")


class Code:
    """The code of an installation and the user's modules beside params.yaml; each module is read when first needed.

    Args:
        package: the folder `stages`.
        beside: the workspace's root folder.
    """

    def __init__(self, package: Path = PACKAGE, beside: Path = Path()) -> None:
        self._source = SourceTree(package, beside, PASSED_OVER, BLOCKS)
        entries = plugins.every()
        self._entries = {group: plugins.entry_points_of(group, entries) for group in plugins.GROUPS}
        self._installed = plugins.installed(entries)

    def written(self, audit: AuditConfig) -> str:
        """Return the content of code.json for an audit, given its block of params.yaml."""
        codes = {stage: self.digest(audit, stage) for stage in read_stages() if stage != STAGE}
        compute = audit.compute.model_dump(mode="json", exclude={"gpus"})
        usage = {"usage": usage_json(audit.usage), "drawn": usage_json(drawn(audit.usage))}
        return json.dumps({"schema": SCHEMA, "compute": compute, **usage, **codes}, indent=1) + "\n"

    def digest(self, audit: AuditConfig, stage: str) -> str:
        """Return one hash (16 hex digits) of the code that a stage of an audit can reach.

        It is the same if our code moves from module to module.
        """
        ours = f"{PACKAGE.name}/"
        parts = [
            # A number ("#1") counts the parts of one name in a module.
            [name.partition("#")[0] if file.startswith(ours) and file.endswith(".py") else [file, name], digest]
            for file, found in self.reached(audit, stage).items()
            for name, digest in found.items()
        ]
        return hashlib.sha256(json.dumps(sorted(parts, key=str)).encode()).hexdigest()[:16]

    def reached(self, audit: AuditConfig, stage: str) -> Digests:
        """Return the definitions a stage of an audit can reach from its module and from the names in params.yaml."""
        named = {finder: self._targets(group, names) for finder, (group, names) in _named(audit).items()}
        named["stages.tasks.load:task_context"] = [
            ("stages.tasks.load", "resolve_backend"),
            ("stages.tasks.load", "resolve_device"),
            ("stages.tasks.load", "resolve_dtype"),
        ]
        roots = [(f"{PACKAGE.name}.{stage}", "main"), (BLOCKS[0], "AuditConfig"), (BLOCKS[1], "RepairConfig")]
        # "auto" in these fields does not name an explorer.
        words = set(_words(audit.model_dump(mode="json", exclude={"compute": {"backend", "device", "dtype"}})))
        found, finders = self._source.reached(roots, words, named)
        modules = (module for finder in finders for module, _ in named[finder])
        others = plugins.distributions_of(modules, self._installed)
        return found | {f"plugin {name}": {"": version} for name, version in others.items()}

    def places(self) -> list[str]:
        """Return where modules beside params.yaml are, or could be, of which code hashed so far imports some."""
        return [str(path.absolute()) for path in self._source.places()]  # as named: a link may lead elsewhere later

    def _targets(self, group: str, names: Iterable[str]) -> list[Name]:
        entries = self._entries[group]
        values = [entries[name].value if name in entries else name for name in names]
        return [(module, name) for module, _, name in (value.partition(":") for value in values) if name]


def drawn(usage: AnyUsage) -> AnyUsage:
    """Return the part of a usage that the control's draws and the search depend on.

    They go by the number of changes, and by which levels occur, not by how common each is. So if `changes` are stated,
    other weights of levels need no new probe.
    """
    if isinstance(usage, str) or (usage.levels and usage.changes is None):
        return usage
    occurring = {name: {level: 1.0 for level, weight in of.items() if weight > 0} for name, of in usage.levels.items()}
    return usage.model_copy(update={"levels": occurring})


def usage_json(usage: AnyUsage) -> Any:
    """Return a usage as JSON, without what it was measured on. Levels are in pairs: keys of JSON are never numbers."""
    if isinstance(usage, str):
        return usage
    levels = {name: [[level, weight] for level, weight in of.items()] for name, of in usage.levels.items()}
    return usage.model_dump(mode="json", exclude={"measured", "levels"}) | {"levels": levels}


def code_of(audit: AuditConfig, stage: str) -> str:
    """Return the hash of the code that a stage of an audit can reach now."""
    return Code().digest(audit, stage)


def _named(audit: AuditConfig) -> dict[str, tuple[str, list[str]]]:
    """Map each function that looks up names of params.yaml to the group of entry points and the names it looks up."""
    from stages.concepts.grids import APPLIED_BY  # numpy is slow to import, and every command imports this module

    applied_by = [target for concept, target in APPLIED_BY.items() if concept in audit.concepts]
    return {
        "stages.tasks.load:task_class": (plugins.TASKS, [audit.task, *applied_by]),
        "stages.tasks.load:own_function": (plugins.TASKS, [name for name in (model_function(audit),) if name]),
        "stages.concepts.catalogue:with_plugins": (plugins.CONCEPTS, list(audit.concepts)),
        "stages.explorers.contract:make_explorer": (plugins.EXPLORERS, [audit.discover.explorer]),
    }


def model_function(audit: AuditConfig) -> str:
    """Return the user's own function that an audit names as its model, "my_module:predict"; "" for other models."""
    model = audit.prepare.get("model")
    name = model.get("function") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) else ""


def _words(value: Any) -> Iterator[str]:
    """Yield all strings of a block, including its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _words(inner)


def read_pipeline() -> dict[str, Any]:
    """Read the pipeline's graph."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return cast(dict[str, Any], yaml.load(GRAPH.read_text(encoding="utf-8"), Loader=loader))


def read_stages() -> dict[str, Any]:
    """Read the stages of the pipeline's graph."""
    return cast(dict[str, Any], read_pipeline()["stages"])


def installation(*, own: bool) -> dict[str, Any]:
    """Return faded.json's account of the installation; `own` workspaces run the installed package, not a clone."""
    from stages.core.files import content_hash  # numpy and pydantic are slow, and every command imports this module

    code = {"faded": version(plugins.OWN), "code": content_hash([PACKAGE])} if own else {}
    return {"schema": SCHEMA, **code, "plugins": plugins.distributions()}


def read_record(folder: Path = Path()) -> dict[str, Any]:
    """Return the content of a workspace's faded.json; empty if it is missing, damaged or of another schema."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # damaged: `faded` writes it again
        return {}
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else {}


def is_own_workspace(folder: Path = Path()) -> bool:
    """Whether the stages of a workspace run from the installed package, not from a clone."""
    return "code" in read_record(folder)


def check_code(stage: str, name: str) -> None:
    """Refuse to run a stage whose code differs from code.json: DVC would attribute its results to the recorded code.

    Raises a UsageError with what was found, what was expected, and how to fix it.
    """
    from stages.params import DATA, load_params

    audit = load_params().audit(name)
    path = DATA / name / CODE
    try:
        expected = json.loads(path.read_text(encoding="utf-8")).get(stage)
    except FileNotFoundError:
        expected = None
    except (ValueError, AttributeError):
        expected = "what is damaged"
    found = code_of(audit, stage)
    if found != expected:
        raise UsageError(
            f"{path} names {expected or 'no code'} as the code of {stage}, found {found} (faded"
            f" {version(plugins.OWN)}): run `faded plan` (or any other command), which brings the workspace up to date"
        )


if __name__ == "__main__":
    from stages.params.network import close_network

    # stages.command would check the code against code.json, which this stage writes.
    die_with_parent()
    close_network("code reads files alone")
    run_as_command(lambda: main(*sys.argv[1:]))
