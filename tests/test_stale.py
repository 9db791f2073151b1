"""What a changed file makes stale: the audits that use it, and nothing else.

Two oracles are independent of the analysis in `stages.core.reach`: files edited by hand, each with the stages it has to
make stale, and the code that really runs in an audit.
"""

import ast
import json
import shutil
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stages.code import BLOCKS, PASSED_OVER, Code, read_stages
from stages.core.reach import SourceTree
from stages.params import AuditConfig, load_params
from tests.workspace import ROOT, audit_params, make_workspace, repair_params

KINDS = [stage for stage in read_stages() if stage != "code"]
DEFAULT = {name: load_params(ROOT / "params.yaml").audit(name) for name in ("mnist", "news", "images")}
AUDITS = {**DEFAULT, "ppo": AuditConfig.model_validate(audit_params())}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the product's files, which tests edit."""
    path = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "stages", path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "planted.py", path / "planted.py")
    return path


def digests(code: Code, audits: Iterable[str] = AUDITS) -> dict[str, str]:
    return {f"{kind}@{name}": code.digest(AUDITS[name], kind) for name in audits for kind in KINDS}


@cache
def as_it_was(tree: Path) -> tuple[Code, dict[str, str]]:
    code = Code(tree / "stages", tree)
    return code, digests(code)


def changed(tree: Path, texts: dict[str, str], audits: Iterable[str] = AUDITS) -> set[str]:
    """The stages of audits that become stale if files have other texts."""
    (code, before), files = as_it_was(tree), {tree / path: text for path, text in texts.items()}
    modules = code._source._modules  # reuses the other modules as read
    read = {name: module for name, module in modules.items() if module is not None and module.path in files}
    old = {file: file.read_text(encoding="utf-8") for file in files}
    try:
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
        for name in read:
            del modules[name]
        after = digests(code, audits)
    finally:
        for file, text in old.items():
            file.write_text(text, encoding="utf-8")
        modules.update(read)
    return {stage for stage in after if before[stage] != after[stage]}


def spoilt(tree: Path, *paths: str) -> set[str]:
    """The stages that become stale if functions of these files return something else."""
    texts = {path: (tree / path).read_text(encoding="utf-8") for path in paths}
    return changed(tree, {path: text.replace("return ", "return 1 and ") + "\n" for path, text in texts.items()})


def edited(tree: Path, path: str, old: str, new: str, audits: Iterable[str] = AUDITS) -> set[str]:
    text = (tree / path).read_text(encoding="utf-8")
    assert old in text, f"{path} has no {old!r} any more"
    return changed(tree, {path: text.replace(old, new)}, audits)


def audits_of(stages: set[str]) -> set[str]:
    return {stage.partition("@")[2] for stage in stages}


def kinds_of(stages: set[str]) -> set[str]:
    return {stage.partition("@")[0] for stage in stages}


class _Commented(ast.NodeTransformer):
    """Changes docstrings, annotations and error messages; rewriting the tree also changes lines and comments."""

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                node.value = ast.Constant("Another docstring.")
            case ast.arg(annotation=ast.expr()):
                node.annotation = ast.Constant("Another")
            case ast.Raise(exc=ast.Call(args=[_, *_]) as call):
                call.args = [ast.Constant("other words")]
        return node


@pytest.mark.slow
def test_what_changes_no_result_makes_nothing_stale(tree: Path) -> None:
    """Changed in all files at once: comments, lines, docstrings, annotations of arguments and error messages."""
    _, before = as_it_was(tree)
    kept = {file: file.read_bytes() for file in tree.rglob("*.py")}
    try:
        for file, text in kept.items():
            file.write_text(ast.unparse(_Commented().visit(ast.parse(text))) + "\n# a comment\n", encoding="utf-8")
        assert digests(Code(tree / "stages", tree)) == before
    finally:
        for file, text in kept.items():
            file.write_bytes(text)


def test_code_that_moves_to_another_module_makes_nothing_stale(tree: Path) -> None:
    _, before = as_it_was(tree)
    kept = {file: file.read_text(encoding="utf-8") for file in tree.rglob("*.py")}
    gone, new = tree / "stages/landscape/extremes.py", tree / "stages/landscape/outermost.py"
    try:
        for file, text in kept.items():
            file.write_text(text.replace("stages.landscape.extremes", "stages.landscape.outermost"), encoding="utf-8")
        gone.rename(new)
        assert digests(Code(tree / "stages", tree)) == before
    finally:
        new.unlink()
        for file, text in kept.items():
            file.write_text(text, encoding="utf-8")


def test_what_only_reports_guards_or_serves_commands_and_an_explorer_of_others_make_nothing_stale(tree: Path) -> None:
    guards = ("core/errors", "core/progress", "command", "params/network", "provenance", "params/strict")
    others = ("explorers/rivals", "screening/sweep", "usage/estimate")
    assert spoilt(tree, *(f"stages/{name}.py" for name in (*guards, *others))) == set()


def test_an_explorer_makes_stale_what_searches_with_it(tree: Path) -> None:
    assert audits_of(edited(tree, "stages/explorers/agents.py", "gamma=0.0", "gamma=0.5")) == {"ppo"}
    assert edited(tree, "stages/explorers/rivals.py", "import optuna", "import optuna as optuna") == set()
    auto = edited(tree, "stages/explorers/model_based.py", "FEW = 200", "FEW = 201")
    assert audits_of({stage for stage in auto if stage.startswith("discover")}) == {*DEFAULT}
    assert not {"prepare", "collect_feedback", "restructure"} & kinds_of(auto)


def test_a_concept_makes_stale_what_has_it(tree: Path) -> None:
    images = "stages/concepts/images.py"
    assert audits_of(edited(tree, images, "images.mul_(1 - levels)", "images.mul_(2 - levels)")) == {"mnist"}
    assert edited(tree, images, "images.add_(levels)", "images.add_(2 * levels)") == set()  # no audit brightens
    letters = "stages/concepts/texts/letters.py"
    assert audits_of(edited(tree, letters, "def slips(", "def slips(_=0, /, ")) == {"news"}
    assert edited(tree, "stages/concepts/texts/data/synonyms.tsv", "\t", "  ") == set()


def test_a_task_makes_stale_its_own_audits_and_a_repair_no_search(tree: Path) -> None:
    for folder, audit in (("classification", "mnist"), ("summarization", "news"), ("text_to_image", "images")):
        stale = spoilt(tree, f"stages/tasks/{folder}/repair.py")
        assert audits_of(stale) == {audit} and "restructure" in kinds_of(stale), (folder, stale)
        assert not {"explore", "discover", "summarize", "collect_feedback"} & kinds_of(stale), stale


def test_of_a_users_module_everything_counts(tree: Path) -> None:
    task = (tree / "planted.py").read_text()
    (tree / "helper.py").write_text("X = 1\n")
    stale = changed(tree, {"planted.py": "import helper\n" + task})
    assert audits_of(stale) == {"ppo"} and "collect_feedback@ppo" not in stale
    found, _ = SourceTree(tree / "stages", tree).reached([("planted", "PlantedTask")], (), {})
    assert "*" not in found["planted.py"] and "helper.py" not in found
    (tree / "planted.py").write_text("import helper\n" + task)
    found, _ = SourceTree(tree / "stages", tree).reached([("planted", "PlantedTask")], (), {})
    assert [*found["helper.py"]] == ["X"]
    (tree / "planted.py").write_text(task)


def test_the_module_of_a_stage_makes_that_stage_alone_stale(tree: Path) -> None:
    for kind in KINDS:
        assert edited(tree, f"stages/{kind}.py", "def main(", "@id\ndef main(", ["ppo"]) == {f"{kind}@ppo"}


# The code that really runs

RUN = """
import json, sys, threading
from pathlib import Path

ran = set()


def note(frame, event, argument):
    code = frame.f_code
    is_class = "__qualname__" in code.co_names  # its statement, which runs wherever its module is imported
    if event == "call" and "/stages/" in code.co_filename and not is_class:
        ran.add((code.co_filename, code.co_qualname))


stage, name, out = sys.argv[1:]
sys.argv = [f"{stage}.py", name]
sys.path.insert(0, ".")
import importlib

main = importlib.import_module(f"stages.{stage}").main
threading.setprofile(note)
sys.setprofile(note)
main(name)
sys.setprofile(None)
Path(out).write_text(json.dumps(sorted(ran)))
"""


@pytest.mark.slow
def test_whatever_runs_is_counted_or_declared(tmp_path: Path) -> None:
    search: dict[str, Any] = {"explorer": "ppo", "baseline": "random", "budget": 200}
    audit, repair = audit_params(discover=search), repair_params()
    workspace = make_workspace(tmp_path / "w", {"tiny": audit}, {"tiny": repair})
    (workspace.path / "run.py").write_text(RUN)
    code = Code(workspace.path / "stages", workspace.path)
    config = AuditConfig.model_validate(audit)
    missed: dict[str, list[str]] = {}
    for stage in (kind for kind in KINDS if kind != "explore"):
        done = workspace.run([sys.executable, "run.py", stage, "tiny", "ran.json"])
        assert done.returncode == 0, done.stdout
        found = code.reached(config, stage)
        for file, name in json.loads((workspace.path / "ran.json").read_text()):
            path = "stages/" + file.rpartition("/stages/")[2]
            if not _is_counted(path, name, found.get(path, {})):
                missed.setdefault(stage, []).append(f"{path}: {name}")
    assert missed == {}


# Functions that run for something that changes no result, which the analysis itself skips.
FOR_NO_RESULT = {
    "stages.core.files": {"write_json", "content_hash", "_files", "checksum", "locked"},  # provenance, scratch
    "stages.core.environment": {"is_alike"},  # provenance
    "stages.tasks.load": {"_target", "_imported", "_find_modules_of_users"},  # task_class, task_context
    "stages.params.audit": {"_numbers_error", "levels_error"},  # checks of params.yaml
    "stages.params.slices": {"unknown_attributes"},  # checks of params.yaml
    "stages.params.usage": {"usage_error", "_errors", "_levels_error"},  # checks of params.yaml
    "stages.landscape.slices": {"worst_slice"},  # a line that summarize prints
    "stages.records.slices": {"others_than"},  # part of that line
    "stages.report": {"verdict_line"},
}


def _is_counted(path: str, name: str, found: dict[str, str]) -> bool:
    module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    first, *rest = name.removesuffix("<module>").split(".")
    if not first or {module, f"{module}:{first}"} & PASSED_OVER.keys() or first in FOR_NO_RESULT.get(module, ()):
        return True
    if not path.endswith(".py"):  # a template, which counts as a whole
        return "" in found
    if module in BLOCKS and rest and rest[0] in _checks(path):
        return True
    if first.startswith("<"):  # a comprehension at module level
        return True
    # A member of a class counts by itself, or with its class.
    return f"{first}.{rest[0]}" in found or first in found if rest else first in found


@cache
def _checks(path: str) -> set[str]:
    """The functions of a file that pydantic calls to check a block of params.yaml."""
    return {
        node.name
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef) and any("_validator" in ast.unparse(d) for d in node.decorator_list)
    }


def test_a_page_or_an_estimate_makes_no_search_stale(tree: Path) -> None:
    stale = spoilt(tree, "stages/pages/page.py", "stages/pages/templates/report.css", "stages/landscape/modes.py")
    assert not {"prepare", "explore", "discover"} & kinds_of(stale), stale


def test_modules_of_the_same_text_lead_each_to_its_own(tmp_path: Path) -> None:
    package = tmp_path / "stages"
    package.mkdir()
    for name in ("one", "other"):
        (package / f"{name}.py").write_text("def first():\n    return second()\n\n\ndef second():\n    return 1\n")
    found, _ = SourceTree(package, tmp_path).reached([("stages.one", "first"), ("stages.other", "first")], (), {})
    both = {"first", "second"}
    assert {path: {*parts} for path, parts in found.items()} == {"stages/one.py": both, "stages/other.py": both}
