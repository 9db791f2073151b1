"""Kinds of items by embeddings: found equally everywhere, named if they fail, repaired and measured."""

import sys

import numpy as np
import pandas as pd
import pytest

from stages.params import load_params
from stages.records import audit_folder
from stages.tasks.attributes import Kinds
from stages.tasks.base import known_attributes
from stages.tasks.contract import TargetMode
from stages.tasks.load import load_alone
from stages.tasks.training import PairSampler
from tests.test_re_evaluate import audited, repaired

PLANTED = {"tilt": [3, 4], "secret": ["b"]}
VECTORS = np.array([[0, 0], [0.1, 0], [0.3, 0], [9, 9], [9, 9.1], [9, 9.4]], dtype=np.float32)
IDS = [f"i{k}" for k in range(6)]


def test_a_kind_is_named_by_the_item_nearest_to_its_centre():
    kinds = Kinds.of(IDS, VECTORS, ["x", "y", None, "x", None, "x"], 2)
    assert kinds.nearest == {"like item i1 (label y)": ["i1", "i0", "i2"], "like item i4": ["i4", "i3", "i5"]}
    assert kinds(np.array([[8, 7], [-5, 1]], dtype=np.float32)) == ["like item i4", "like item i1 (label y)"]
    assert (Kinds.of(IDS, VECTORS, [None] * 6, 2).centres == kinds.centres).all()


@pytest.fixture
def with_kinds(tmp_path, monkeypatch):
    """An audit of a model that fails on one kind of items if they are tilted."""
    items = {"discover": 60, "repair": 30, "test": 90}
    task, searched = "planted_kinds:PlantedKinds", {"budget": 1500, "clusters": 3}
    yield audited(tmp_path, monkeypatch, task, regions=[PLANTED], items=items, **searched)
    sys.modules.pop("planted_kinds", None)


def secrets(split: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The attributes of the items of a split, and their secret kinds."""
    task = load_alone("tiny", load_params().audit("tiny"), audit_folder("tiny").prepare.path)
    items = task.items.table.set_index("id").loc[task.items.ids(split)]
    return known_attributes(task, task.items.ids(split)), items["secret"].to_numpy()


@pytest.mark.slow
def test_from_search_to_verdict_a_kind_that_no_label_tells_is_named(with_kinds):
    records = audit_folder("tiny")
    (mode,) = records.summarize.landscape.modes
    (name,) = mode.cells.items["kind"]
    assert mode.region == {"tilt": [3, 4], "kind": [name]} and mode.text == f"kind is {name} and tilt >= 3"
    known, secret = secrets("discover")
    assert ((known["kind"] == name) == (secret == "b")).all()
    assert list(records.discover.embedded.attributes) == ["label"], "the search does not depend on kinds"
    page = (with_kinds / "data/tiny/report/report.html").read_text()
    assert "What the kinds look like" in page and page.count(f"<h3>{name}</h3>") == 1
    assert [one.id for one in records.summarize.extremes["kinds"]].count(name) == 2, "as many as examples of modes"

    known, secret = secrets("repair")
    sampler = PairSampler(records.summarize.landscape.space, [TargetMode("M1", mode.cells)], known)
    assert (secret[sampler.rows[0]] == "b").all() and len(sampler.rows[0]) == (secret == "b").sum() > 0

    rates = repaired([], control=[PLANTED])["differences"]["target_failure_rate"]
    assert rates["before"] > 0.95 and rates["after"] < 0.1
    known, secret = secrets("test")
    embedded = audit_folder("tiny").re_evaluate.embedded
    assert embedded.attributes["kind"].tolist() == known["kind"].tolist()
    assert (embedded.attributes["kind"] == name).tolist() == (secret == "b").tolist()
