"""Outputs of summarize besides the landscape: the policy's view, and examples of each mode, also as a file."""

from pathlib import Path

import numpy as np
import pytest

from stages.concepts import Region
from stages.core.errors import UsageError
from stages.core.intervals import Rate
from stages.explorers.policy import save_policy
from stages.landscape import estimators
from stages.landscape.confirm import Mode
from stages.landscape.show import exhibits
from stages.landscape.summary import measure_region, pick_examples, summarize
from stages.microscopic.search import measure_robustness
from stages.params import AuditConfig, DiscoverConfig, MicroscopicConfig
from stages.records import DiscoverMetrics, Landscape, ModeRecord
from stages.records.folder import Discover
from stages.records.landscape import Minimal
from stages.records.tables import Embedded, Tallies, read_exhibits, write_exhibits
from stages.tasks.base import own_attributes
from stages.tasks.contract import Exhibit
from tests.landscapes import fresh, planted, uniform
from tests.report_samples import shelf
from tests.workspace import audit_params

REGION = {"tilt": [3, 4], "fog": [3, 4]}


@pytest.fixture(scope="module")
def probed():
    task = planted(items=20)
    return task, uniform(task, 800)


def mode() -> Mode:
    return Mode("M1", Region.from_json(REGION), Rate(1, 0.9, 1, 9), 9, 1.0, 3.0, 0.16, True)


def record(task, probes, mode: Mode) -> ModeRecord:
    known = {"lift": mode.lift, "minimal": Minimal(reached=0, of=0, median_radius=None), "invalid": None}
    examples = pick_examples(task.concepts, mode, probes, 0)
    return ModeRecord(**measure_region(mode, task.concepts), **known, examples=examples)


def test_examples_lie_in_the_mode_and_are_of_different_items(probed):
    task, probes = probed
    shown = exhibits(task, [record(task, probes, mode())], 4)["M1"]
    assert [one.id for one in shown] == ["M1.1", "M1.2", "M1.3", "M1.4"]
    assert all(one.failed for one in shown), "a planted region always fails"
    captions = [one.exhibit.caption for one in shown]
    assert len(set(captions)) == 4
    for one in shown:
        assert "tilt 3" in one.exhibit.text or "tilt 4" in one.exhibit.text


def test_a_landscape_is_made_from_the_answers_of_a_model(probed, tmp_path, monkeypatch):
    task, probes = probed
    ids = task.items.table["id"].tolist()
    config = DiscoverConfig(budget=10, microscopic=MicroscopicConfig(method="none"))
    found = Discover(tmp_path / "tiny" / "discover")
    save_policy(None, found.path / "policy")
    found.probes, found.robustness = probes, measure_robustness(task, ids, config, seed=0).table
    found.embedded, found.tallies = Embedded(ids, task.embed(ids), own_attributes(task, ids)), Tallies(tallies=[])
    found.metrics = DiscoverMetrics.computed({"microscopic": {"method": "none", "items": 0}, "enumerated": False})
    monkeypatch.setitem(estimators.TREES, "max_iter", 30)  # a third of the time
    monkeypatch.setattr(task, "fails_unchanged", lambda: np.arange(20) < 15)
    audit = AuditConfig.model_validate(audit_params(seed=0, summarize={"modes": 2}))
    summary = summarize(task, found, fresh(task, 80), audit)
    known = summary.landscape
    assert known.unchanged_said == "15 of 20 unchanged items fail already, 75.0%, 95% interval 53.1% to 88.8%"
    assert Landscape.from_json(known.to_json(), "here") == known
    first = summary.landscape.modes[0]
    assert first.low > summary.landscape.overall.value
    measured = (summary.fresh["mode"] == first.id) & (summary.fresh["role"] == "measure")
    assert measured.sum() == first.probes > 0 and summary.landscape.robustness is None
    assert len(summary.cells) == task.concepts.n_cells


SHELVES = {
    "M1": shelf(
        "M1",
        [Exhibit("M1.1 - a digit", image=b"\x89PNG\r\n\x1a\n\x00\xff"), Exhibit("M1.2", image=b"1", drawn=b"2")],
        [Exhibit("M1.3 - <script>", text="new\n", original="", answers={"summary": "Ümlaut", "of what?": ""})],
    ),
    "M2": shelf("M2", [Exhibit("M2.1", words=(("a ", ""), ("red", "colour")))], []),
    "M3": [],
}


def test_examples_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "exhibits.parquet"
    write_exhibits(path, {})
    assert read_exhibits(path, "") == {}
    write_exhibits(path, SHELVES)
    shown = read_exhibits(path, str(path))
    assert list(shown) == ["M1", "M2"]
    assert [(e.id, e.failed) for e in shown["M1"]] == [("M1.1", True), ("M1.2", True), ("M1.3", False)]
    assert shown == {mode: SHELVES[mode] for mode in ("M1", "M2")}
    write_exhibits(tmp_path / "again.parquet", SHELVES)
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_what_is_no_such_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "exhibits.parquet"
    with pytest.raises(UsageError, match=r"exhibits.parquet is missing"):
        read_exhibits(path, str(path))
    path.write_text("no parquet")
    with pytest.raises(UsageError, match="cannot be read as a parquet file"):
        read_exhibits(path, str(path))
