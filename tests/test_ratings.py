"""Ratings in force: the task judged by them, its ledger and landscape, the report, and params.yaml."""

import re
from typing import Any

import numpy as np
import pytest
import yaml

from flows.workspace.edit_params import with_file
from stages.core.errors import UsageError
from stages.params import RatingsConfig, load_params
from stages.ratings import RatedTask, Ratings
from tests.landscapes import planted
from tests.report_samples import FOUR, HOSTILE, WEATHER, charts, make_inputs, write_landscape
from tests.workspace import audit_params

# The task


def learnt(**changes: Any) -> Ratings:
    """A map over the whole range of the planted task: badness 0 at -0.8, 1 at 0.8."""
    nothing = {"value": 1.0, "low": 0.9, "high": 1.1}
    given = {
        "target": "quality", "scale": "s", "model": "linear", "x": [-0.8, 0.8], "y": [0.0, 1.0], "ratings": 20,
        "items": 10, "reviewers": {"Ada": 12, "<b>Ben</b>": 8}, "decisions": {}, "gain": nothing,
        "error": nothing, "constant": nothing, "points": [(-0.5, 9), (0.5, 3)],
    }  # fmt: skip
    return Ratings.model_validate({**given, **changes})


def bound(**bounds: float) -> RatingsConfig:
    return RatingsConfig(file="f", sha256="0" * 64, **bounds)


@pytest.mark.parametrize("rating", [3.5, 7])
def test_failures_are_those_whose_expected_rating_is_below_the_bound(rating):
    task, ratings = planted(), learnt()
    judged = RatedTask(task, ratings, ratings.threshold(bound(fails_below=rating)))
    rng = np.random.default_rng(1)
    items, cells = [f"i{k:03d}" for k in rng.integers(0, 40, 400)], task.concepts.sample(400, rng)
    answer, own = judged.probe(items, cells), task.probe(items, cells)
    expected = 10 - 9 * (own.discrepancy.astype(float) + 0.8) / 1.6
    assert np.array_equal(answer.failed, expected < rating)
    assert 0 < answer.failed.sum() < 400 and not np.array_equal(answer.failed, own.failed)
    assert answer.automatic is not None and np.array_equal(answer.automatic.failed, own.failed)


@pytest.mark.parametrize("concepts", [FOUR, (WEATHER,)])
def test_the_report_shows_both_measures_and_names_as_text(tmp_path, concepts):
    inputs = make_inputs(*concepts)
    table, summary = inputs["landscape"], inputs["summary"]
    inputs["landscape"] = table.assign(**{f"{name}_automatic": table[name] / 2 for name in ("rate", "low", "high")})
    share = {"value": 0.125, "low": 0.1, "high": 0.15, "n": 1200}
    own = {"threshold": 0.25, "overall": share, "effects": summary["effects"], "rank_correlation": None}
    own |= dict.fromkeys(("agree", "only_people", "only_automatic", "outside", "unfounded"), share)
    learnt_ = learnt().model_dump(exclude={"scale", "decisions"})
    said = {"statement": f"2 reviewers {HOSTILE} agree.", "reviewers": ["a", "b"]}
    said |= dict.fromkeys(("actions", "rating", "bias"))
    ratings = {**learnt_, "sha256": "0" * 64, "fails_below": 4.5, "automatic": own, "agreement": said}
    inputs["summary"] = summary | {"ratings": ratings}
    write_landscape(tmp_path / "report.html", **inputs)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    section = re.search(r'<section id="ratings">.*?</section>', page, re.DOTALL)
    assert section is not None and page.index('<a href="#ratings">') < section.start()
    assert "&lt;b&gt;Ben&lt;/b&gt;" in section[0] and "<b>Ben" not in page and "<script>alert" not in page
    assert "expected rating below 4.5" in section[0] and "12.5%" in section[0]
    assert "by Ada (12), &lt;b&gt;Ben" in section[0] and "outside the rated range" in section[0]
    assert "For 12.5% of the control&#39;s probes, no rating supports" in section[0]
    drawn = charts(section[0])
    pairs = max(1, len(concepts) * (len(concepts) - 1) // 2)
    assert len(drawn) == 2 * pairs + 1 and "From discrepancies to ratings" in drawn
    assert section[0].count("<tr>") >= 6 + sum(len(concept) for concept in concepts)
    write_landscape(tmp_path / "plain.html", **{**inputs, "landscape": table, "summary": summary})
    assert "ratings" not in re.findall(r'<section id="(\w+)"', (tmp_path / "plain.html").read_text(encoding="utf-8"))


FLOW = "audits:\n  a:\n    discrepancy: {threshold: 0.0}   # said why\n    seed: 1\nrepairs: {}\n"
BLOCK, REST = "audits:\n  a:\n    discrepancy:\n", "    seed: 1\nrepairs: {}\n"
ENTRY = {"file": "data/a/ratings.json", "sha256": "0" * 64, "fails_below": 5}
WRITTEN = "ratings: {file: data/a/ratings.json, sha256: '" + "0" * 64 + "', fails_below: 5}"
DONE = FLOW.replace("0.0}", "0.0, " + WRITTEN + "}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FLOW, DONE),
        (FLOW.replace("0.0}", "0.0, ratings: {file: x, fails_below: 3}}"), DONE),
        (
            BLOCK + "      threshold: 0.0   # why\n\n    # next\n" + REST,
            BLOCK + f"      threshold: 0.0   # why\n      {WRITTEN}\n\n    # next\n" + REST,
        ),
    ],
)
def test_params_keep_every_other_byte(text, expected):
    assert with_file(text, "a", ("discrepancy", "ratings"), ENTRY) == (expected, [])
    assert with_file(expected, "a", ("discrepancy", "ratings"), ENTRY) == (expected, [])


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ({"file": "f", "sha256": "0" * 64, "fails_below": 5, "fails_above": 5}, "expected one of fails_below"),
        ({"file": "f", "sha256": "0" * 64, "fails_blow": 5}, "did you mean 'fails_below'"),
    ],
)
def test_wrong_params_are_told(tmp_path, ratings, message):
    audit = audit_params(discrepancy={"threshold": 0.0, "ratings": ratings})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"audits": {"x": audit}, "repairs": {}}))
    with pytest.raises(UsageError, match=message):
        load_params(tmp_path / "params.yaml")
