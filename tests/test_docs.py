"""The documentation against the code: commands, parameters and links. `make check` builds the site."""

import ast
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from flows import reference
from stages.params import AuditConfig, RepairConfig
from tests.notebooks import NOTEBOOKS, executed, read

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
WITH_README = [*PAGES, ROOT / "README.md"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NUMBER = re.compile(r"\d[\d.]*\d%?|\d%?")


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def test_the_reference_of_commands_is_what_the_commands_say():
    page = reference.PAGE.read_text(encoding="utf-8")
    assert page == reference.page_text(page), "docs/commands.md is stale: run `python -m flows.reference`"


def test_every_command_is_in_the_table_of_docs_commands():
    head = reference.PAGE.read_text(encoding="utf-8").partition(reference.MARKER)[0]
    assert sorted(reference.linked(head)) == sorted(reference.commands())


def written_calls(text: str) -> list[list[str]]:
    """Calls of the command in code, as words: `faded review news --revise`."""
    code = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^(?: {4,}|\$ )(.+)$", text, flags=re.M)]
    code += [line for block in re.findall(r"^```.*?\n(.*?)^```", text, flags=re.M | re.S) for line in block.split("\n")]
    calls = [re.search(r"(?:^|(?<!from)[\s/=(])faded ([a-z][a-z-]*)([^#|;&]*)", line) for line in code]
    return [[call[1], *call[2].split()] for call in calls if call]


@pytest.mark.parametrize("page", WITH_README, ids=names(WITH_README))
def test_calls_of_the_command_name_commands_and_options_there_are(page):
    known = {
        name: {spelling for one in reference.parameters(command) for spelling in (*one.opts, *one.secondary_opts)}
        for name, command in reference.commands().items()
    }
    for command, *words in written_calls(page.read_text(encoding="utf-8")):
        assert command in known, f"`faded {command}` is not a command"
        options = {re.split(r"[=\]/]", word.strip("[]`.,()"))[0] for word in words if word.strip("[").startswith("--")}
        assert options - {"--help"} <= known[command], f"faded {command}"


def defaults_of(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """All keys of a configuration model, with a dot for nested ones, and their defaults."""
    keys = {}
    for name, field in model.model_fields.items():
        nested = [a for a in (field.annotation, *typing.get_args(field.annotation)) if is_model(a)]
        keys |= defaults_of(nested[0], f"{prefix}{name}.") if nested else {f"{prefix}{name}": field.get_default()}
    return keys


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@pytest.mark.parametrize(("model", "heading"), [(AuditConfig, "audits.NAME"), (RepairConfig, "repairs.NAME")])
def test_every_parameter_is_in_docs_params_with_its_default(model, heading):
    page = (ROOT / "docs" / "params.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    defaults, told = defaults_of(model), set(re.findall(r"`([a-z0-9_.-]+)`", section))
    # Gates and bounds share a row, which has only the last part of the key.
    assert [key for key in defaults if not {key, key.rpartition(".")[2]} & told] == []
    known = {".".join(key.split(".")[:n]) for key in defaults for n in (1, 2, 3)}
    for key, default in re.findall(r"^\| `([a-z_.]+)` \|.*\| ([^|]*) \|$", section, flags=re.M):
        free = key.split(".")[0] in {"prepare", "discrepancy"}  # defined by tasks
        assert free or key in known, key
        if isinstance(value := defaults.get(key), int | float | str):
            assert default in {str(value), f"`{value}`"}, key


# Wording: the table of phrases in CONTRIBUTING.md

TABLE = re.compile(r"^\| instead of \| write \|\n\|---\|---\|\n((?:\|.*\n?)+)", re.M)


def phrases() -> dict[str, str]:
    rows = TABLE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {phrase: better for found, better in cells for phrase in found.split(", ")}


def avoided(text: str) -> list[str]:
    """Each avoided phrase in a text, with its replacement."""
    words = " ".join(text.split())
    looks = {phrase: rf"(?<![a-z]){re.escape(phrase)}(?![a-z])" for phrase in phrases()}
    return [f"{phrase!r}: write {phrases()[phrase]}" for phrase in looks if re.search(looks[phrase], words, re.I)]


def messages(file: Path) -> str:
    """The strings of a module that people may see: all with a space, except docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
    return "\n\n".join(node.value for node in found if isinstance(node.value, str) and " " in node.value)


# Strings of other stages belong to the code that an audit depends on, so a new wording makes finished audits stale.
PARTS = ("flows", "stages/params", "stages/screening")
WORDED = [file for part in PARTS for file in sorted((ROOT / part).rglob("*.py"))]


def test_wording_of_pages_and_messages():
    texts = {page: TABLE.sub("", page.read_text(encoding="utf-8")) for page in [*WITH_README, ROOT / "CONTRIBUTING.md"]}
    texts |= {file: messages(file) for file in WORDED}
    told = {str(file.relative_to(ROOT)): found for file, text in texts.items() if (found := avoided(text))}
    assert told == {}


@pytest.mark.parametrize("page", WITH_README, ids=names(WITH_README))
def test_relative_links_point_to_files(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        file = (page.parent / target.partition("#")[0]).resolve()
        assert file.exists(), target
        # Files outside docs/ are not part of the site; a page names them in code instead.
        assert page.parent == ROOT or file.is_relative_to(ROOT / "docs"), f"{target} leaves docs/"


def test_the_readme_has_no_result_that_docs_results_has_not():
    told = (ROOT / "README.md").read_text(encoding="utf-8")
    table = told[told.index("| all inputs in use fail") : told.index("[Other audits")]
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    of_mnist = results[results.index("## mnist") : results.index("## fashion")]
    assert set(NUMBER.findall(table)) - set(NUMBER.findall(of_mnist)) == set()


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = [page for part in config["nav"] for pages in part.values() for page in pages]
    assert sorted(listed) == [page.name for page in PAGES]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it, except for links to pages, which `make check` checks."""
    workspace = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "mkdocs.yml", workspace)
    shutil.copytree(ROOT / "docs", workspace / "docs")
    build = [sys.executable, "-m", "zensical", "build", "--clean"]
    subprocess.run(build, cwd=workspace, check=True, capture_output=True, timeout=120)
    return workspace / "site"


def test_pages_load_nothing_from_elsewhere(site):
    loads = re.compile(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"?([^\" >]+)")
    for page in site.glob("*.html"):
        loaded = loads.findall(page.read_text(encoding="utf-8"))
        assert [url for url in loaded if "//" in url] == [], page.name


@pytest.mark.slow
def test_search_works_on_pages_read_from_disk(site, browser):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("optimal transport")
    page.get_by_text(re.compile(r"^\d+ results?$")).wait_for()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


# The map: CONTRIBUTING.md and docs/architecture.md

MAP = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"]
PATH = re.compile(r"`((?:stages|flows|tests|docs|benchmarks|\.ci)/[\w./-]*|[\w-]+\.(?:py|toml|md))`")


@pytest.mark.parametrize("page", MAP, ids=names(MAP))
def test_every_path_on_the_map_exists(page):
    paths = PATH.findall(page.read_text(encoding="utf-8"))
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_a_benchmark_that_docs_name_is_there_or_marked_as_retired(page):
    there = {path.stem for path in (ROOT / "benchmarks").iterdir()}
    named = re.findall(r"benchmarks[./]([a-z]\w+)(?:[^`]*`,\s+(\[retired\]))?", page.read_text(encoding="utf-8"))
    assert [name for name, retired in named if (name in there) == bool(retired)] == []


@pytest.mark.parametrize("folder", ["stages", "flows"])
def test_the_map_names_everything_at_the_top_of(folder):
    text = MAP[1].read_text(encoding="utf-8")
    there = [path for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    wanted = {f"`{folder}/{path.name}{'/' * path.is_dir()}`" for path in there} - {f"`{folder}/__init__.py`"}
    assert sorted(name for name in wanted if name not in text) == []


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_a_notebook_gives_the_same_numbers_when_it_runs_again(notebook):
    pytest.importorskip("nbclient")

    def told(notebook: Any) -> tuple[list[str], list[float]]:
        """The words between the numbers, and the numbers, whose last digits differ between CPUs."""
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ()) if "data" in output]
        pieces = re.split(r"(\d+(?:\.\d+)?)", " ".join("".join(output["data"]["text/plain"]) for output in outputs))
        return pieces[::2], [float(number) for number in pieces[1::2]]

    (words, numbers), (expected, committed) = told(executed(notebook)), told(read(notebook))
    # A rate of 0.575 but for its last digit is 57% or 58%.
    assert words == expected and numbers == pytest.approx(committed, rel=0.02)
