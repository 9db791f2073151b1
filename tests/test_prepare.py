"""The stages prepare and restructure as commands, and the data file of the repository."""

import hashlib
import json
from functools import partial

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import stages.prepare
import stages.restructure
from stages.code import main as name_code
from stages.core.errors import run_as_command
from stages.core.files import write_json
from tests.images import image_context, write_images
from tests.workspace import FEW_PAIRS, ROOT, Workspace, audit_params, repair_params


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an audit of striped squares and its repair."""
    context, task = image_context(tmp_path), "stages.tasks.classification:ImageClassification"
    audit = audit_params(task=task, prepare=context.config, concepts=context.concepts)
    settings = {"epochs": 1, "batch_size": 30, "replay": 0.5}
    restructure = {"method": "all-layers", "control": "as_used", "harm": FEW_PAIRS, "settings": settings}
    repairs = {"stripes": repair_params(restructure=restructure)}
    Workspace(tmp_path).write_params({"audits": {"stripes": audit}, "repairs": repairs})
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    write_images(tmp_path / "data" / "stripes" / "inputs" / "images.parquet")
    monkeypatch.chdir(tmp_path)
    name_code("stripes")  # as before any other stage
    return tmp_path


def write_plan(place, action="repair"):
    mode = {"id": "M1", "text": "turned", "region": {"rotation": [2], "darkening": [1, 2]}, "action": action}
    mode |= {"severity": 1.0, "reason": "seen"}
    plan = {"landscape": "abc", "decided_by": "human", "statement": "decided by Ada", "reviewer": "Ada"}
    plan |= {"reason": "it matters", "modes": [mode]}
    write_json(place / "data" / "stripes" / "collect_feedback" / "plan.json", plan)


def test_prepare_and_restructure(place, capsys):
    out = place / "data" / "stripes"
    stages.prepare.main("stripes")
    records = {f"{name}.json" for name in ("fingerprint", "metrics", "provenance")}
    assert {p.name for p in (out / "prepare").iterdir()} == {"model", "assets", "items.parquet", *records}
    write_plan(place)
    stages.restructure.main("stripes")
    for model in ("repaired", "control"):
        files = {p.name for p in (out / "restructure" / "models" / model).iterdir()}
        assert files == {"faded.json", "model.safetensors", "README.md", "load.py"}
    steps = pd.read_csv(out / "restructure" / "curve.csv")["step"]
    assert list(steps) == list(range(1, 15)), "a fifth of the repair items is held out"
    metrics = json.loads((out / "restructure" / "metrics.json").read_text())
    assert metrics["repaired"]["steps"] == metrics["control"]["steps"] == 14
    assert "Ada" in (out / "restructure" / "models" / "repaired" / "README.md").read_text()

    write_plan(place, action="accept")
    stages.restructure.main("stripes")
    assert "the model is not changed" in capsys.readouterr().out
    kept, before = (out / f"{folder}/model.safetensors" for folder in ("restructure/models/repaired", "prepare/model"))
    assert kept.read_bytes() == before.read_bytes()


def test_bad_input_ends_with_2_and_leaves_nothing(place, capsys):
    (place / "data" / "stripes" / "inputs" / "images.parquet").write_bytes(b"junk")
    with pytest.raises(SystemExit) as ended:
        run_as_command(partial(stages.prepare.main, "stripes"))  # as `python -m stages.prepare stripes` does
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in told
    assert told.splitlines()[-1].startswith("error: prepare.data.parquet:")
    assert not (place / "data" / "stripes" / "prepare").exists()


def test_the_mnist_file_is_what_its_readme_says():
    path = ROOT / "data" / "mnist" / "inputs" / "mnist.parquet"
    frame = pq.read_table(path).to_pandas()
    assert frame["id"].is_unique
    assert (frame.groupby(["split", "label"]).size().unstack().nunique(axis=1) == 1).all()  # equally for every digit
    assert hashlib.sha256(path.read_bytes()).hexdigest() in (ROOT / "data" / "README.md").read_text()
    test = frame["split"].isin(["trial", "test"])
    assert (frame["id"].str.partition("-")[0] == np.where(test, "test", "train")).all()
