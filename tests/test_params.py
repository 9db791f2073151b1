"""params.yaml: all errors are reported at once, with where, what was found and what was expected."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from stages.check import check_api_keys, check_audits
from stages.core.errors import Exit, UsageError
from stages.params import Params, load_params
from tests.workspace import ROOT

AUDIT = {"seed": 1, "task": "tests.planted:PlantedTask", "discrepancy": {}, "discover": {"budget": 10}, "summarize": {}}
AUDIT |= {"prepare": {"items": {"discover": 5}}, "concepts": {"a": [0, 1, 2]}}
REPAIR = {"re_evaluate": {}, "feedback": {"policy": "top-k"}, "restructure": {"method": "planted"}}
REPAIR |= {"gates": {"clean_quality": {"change_min": -0.02}}}


@pytest.fixture(autouse=True)
def repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def write(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def with_audit(**changes: object) -> dict:
    return {"audits": {"x": {**AUDIT, **changes}}, "repairs": {}}


def with_gate(measure: str, **bounds: float) -> dict:
    return {**with_audit(), "repairs": {"x": {**REPAIR, "gates": {measure: bounds}}}}


def test_the_projects_own_params_are_valid() -> None:
    params = load_params()
    assert list(params.audits) == [
        *("mnist", "fashion", "adult", "imagenet", "news", "news-quick", "questions"),
        *("images", "images-quick", "images-scenes"),
    ]
    assert list(params.repairs) == ["mnist", "fashion", "adult", "news", "images"]
    quick, news = ((a.seed, a.prepare["model"], a.discrepancy) for n, a in params.audits.items() if n[:4] == "news")
    assert quick == news


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_audit(concepts={"a": [1]}), r"concept 'a' needs 2 to 200 levels, found \[1"),
        (with_audit(concepts={"item": [0, 1]}), r"concept 'item' has the name of a column"),
        (with_audit(seed="3"), r"audits\.x\.seed: .*found '3', which YAML reads as text: write 3 without quotes"),
        (with_audit(concepts={"a": [1, 1.0000001]}), r"concept 'a' has levels that cannot be distinguished: 1"),
        (with_audit(concepts={f"c{n}": list(range(200)) for n in range(9)}), r"the grid has 2\^63 cells or more"),
        (with_gate("newly_failing", max=5), r"newly_failing: it cannot fail: max is 5, and what it judges is from 0"),
        (
            with_gate("clean_quality", minus_control_max=0, minus_control_min=0.1),
            r"it cannot pass: minus_control_min is 0\.1, not below minus_control_max, 0",
        ),
        (
            with_gate("clean_quality", minus_control_min=-0.005),
            r"repairs\.x: restructure\.control is none, .* in gates: clean_quality\.minus_control_min; expected",
        ),
        ({"audits": {"x": AUDIT, "--all": AUDIT}}, r"audits: '--all': expected a name of 1 to 64 letters"),
        ({"audits": {}, "repairs": {}}, r"audits: .*there is no audit yet; `faded init` writes one"),
        (with_gate("clean_quality"), r"repairs\.x\.gates\.clean_quality: expected at least one of max, min"),
        (with_audit(prepare={"data": {"dataset": "a"}}), r"prepare\.data\.dataset is now prepare\.data\.datasets"),
        (
            {"audits": {"x": AUDIT}, "repairs": {"x": {**REPAIR, "restructure": {"aim": "policy"}}}},
            r"repairs\.x: restructure\.aim is always modes now: remove this line",
        ),
        ("- a\n- b\n", r"expected a mapping with the keys audits and repairs, found list"),
    ],
)
def test_an_error_is_told(tmp_path: Path, data: object, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_params(write(tmp_path, data))
    assert error.value.exit_code == Exit.USAGE


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    data = with_audit(seed=-1, discover={"budget": 0}, summarize={"mode": 3})
    with pytest.raises(UsageError, match=r"^3 error\(s\)") as error:
        load_params(write(tmp_path, data))
    assert all(where in str(error.value) for where in ("x.seed", "discover.budget", "'modes'"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "nowhere.at_all:X"}, "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ({"task": "tests.planted:Missing"}, "Missing is not a valid task: it is not in"),
        ({"task": "tests.planted:Region"}, "is not a valid task: make it a subclass, `class Region"),
        (
            {"discover": {"budget": 9, "explorer": "ppo", "settings": {"n_envs": 1}}},
            r"n_envs \* n_steps must be at least 2",
        ),
    ],
)
def test_a_bad_task_is_told(tmp_path: Path, changes: dict, message: str) -> None:
    params = load_params(write(tmp_path, with_audit(**changes)))
    with pytest.raises(UsageError, match=message):
        check_audits(params, ["x"])


def test_errors_of_tasks_and_explorers_are_told_at_once(tmp_path: Path) -> None:
    agent = {"method": "rl", "settings": {"walks": 0}}
    data = with_audit(prepare={"itms": 3}, discover={"budget": 9, "explorer": "pppo", "microscopic": agent})
    data["repairs"] = {"x": {**REPAIR, "restructure": {"method": "planted", "settings": {"speed": 1}}}}
    with pytest.raises(UsageError, match=r"^4 error\(s\)") as error:
        check_audits(load_params(write(tmp_path, data)), ["x"])
    for where in ("pppo", "microscopic.settings.walks", "prepare.itms", "repairs.x.restructure.settings.speed"):
        assert where in str(error.value)


def test_a_missing_key_is_told_before_its_model_is_queried(monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"openai": "http://localhost:1/v1", "model": "tiny", "key_env": "TINY_KEY"}
    judge = {**served, "key_env": "JUDGE_KEY"}
    blocks = {"here": {"model": {"transformers": "m"}}, "there": {"model": served, "judge": judge}}
    params = Params.model_validate({"audits": {name: {**AUDIT, "prepare": blocks[name]} for name in blocks}})
    monkeypatch.delenv("TINY_KEY", raising=False)
    monkeypatch.setenv("JUDGE_KEY", "two\nlines")
    check_api_keys(params, ["here"])
    with pytest.raises(UsageError) as error:
        check_api_keys(params, params.audits)
    missing, wrong = str(error.value).splitlines()
    assert missing.startswith("audits.there.prepare.model.key_env: the environment variable TINY_KEY is not set")
    assert wrong.startswith("audits.there.prepare.judge.key_env: the environment variable JUDGE_KEY holds a line end")
    monkeypatch.setenv("TINY_KEY", "a")
    monkeypatch.setenv("JUDGE_KEY", "b")
    check_api_keys(params, params.audits)


def refused(name: str, audit: dict, *, gpus: int = 0) -> str:
    """The error for an audit of the repository's own params.yaml after a change."""
    params = load_params()
    block = params.audits[name].model_dump(exclude_none=True)
    changed = {key: {**block[key], **value} if isinstance(value, dict) else value for key, value in audit.items()}
    altered = type(params).model_validate({"audits": {name: {**block, **changed}}, "repairs": {}, "runner": "threads"})
    with pytest.raises(UsageError) as error:
        check_audits(altered, [name], gpus=lambda: gpus)
    return str(error.value)


def test_what_a_stage_would_refuse_is_refused_before_and_all_at_once() -> None:
    items = {"discover": 1_000_000, "repair": 2000, "test": 1000}
    concepts = {"rotation": [40, 20, 0], "blur": [0, 1.0]}
    told = refused("mnist", {"concepts": concepts, "prepare": {"items": items}, "compute": {"gpus": 8}})
    assert told.startswith("3 error(s)") and "expected [0, 20, 40]" in told
    assert "audits.mnist.concepts.rotation: levels run from the strongest to the weakest" in told
    assert "audits.mnist.prepare.items.discover: 1000000 items wanted, the data have 500" in told
    assert "audits.mnist.compute.gpus: 8 GPU(s) requested, this machine has 0" in told


def test_a_usage_is_read_and_one_that_is_wrong_is_one_error_that_says_where(tmp_path: Path) -> None:
    audit = yaml.safe_load((ROOT / "params.yaml").read_text())["audits"]["mnist"]

    def read(usage: object) -> Params:
        return load_params(write(tmp_path, {"audits": {"mnist": {**audit, "usage": usage}}}))

    for usage in (
        "uniform",
        {"changes": [6, 3, 1]},
        {"combinations": [{"share": 0.05, "levels": {"darkening": 0.4, "noise": 0.2}}]},
        {"levels": {"noise": {0: 1, 0.1: 1}}, "measured": {"inputs": 900, "source": "photos of May"}},
    ):
        found = read(usage).audit("mnist").usage
        assert found == usage if isinstance(usage, str) else found.model_dump(exclude_unset=True) == usage
    for usage, told in (
        ("unifrom", "usage: expected uniform, or some of changes, levels, combinations, measured; found 'unifrom'"),
        ({"level": {"rotation": {0: 1}}}, "usage.level: unknown key, did you mean 'levels'?"),
        ({"levels": {"rotation": {90: 1}}}, "usage.levels.rotation: 90 is not one of its levels: 0, 10, 20, 30, 40"),
        ({"changes": [0, 0]}, "usage.changes: expected one share above 0"),
        ({"combinations": [{"share": 0.5, "levels": {"noise": 0.7}}]}, "usage.combinations.0.levels.noise: 0.7 is not"),
    ):
        with pytest.raises(UsageError, match=r"^1 error\(s\)") as error:
            read(usage)
        assert f"audits.mnist.{told}" in str(error.value)


def test_only_discover_says_how_a_search_is_divided(tmp_path: Path) -> None:
    data = {"audits": {"x": {**AUDIT, "discover": {"budget": 10, "shards": 2}}, "y": AUDIT}}
    shares = {"x-1": {"audit": "x", "part": 1}, "x-2": {"audit": "x", "part": 2}}
    assert load_params(write(tmp_path, data)).shares == shares
    with pytest.raises(UsageError, match=r"shards is now audits\.NAME\.discover\.shards alone"):
        load_params(write(tmp_path, {**data, "shards": {}}))


def test_levels_may_run_to_both_sides_of_the_unchanged_one_or_fall() -> None:
    levels = {"rotation": [-20, 0, 10], "saturation": [1, 0.5, 0], "scale": [0.5, 1, 2]}
    told = refused("mnist", {"concepts": {**levels, "noise": [0.2, 0.1]}})
    assert told.startswith("1 error(s)") and "concepts.noise" in told


def test_items_are_counted_where_the_data_are_files() -> None:
    assert "items wanted, the data have" in refused("news", {"prepare": {"items": {"discover": 10**5, "test": 10**5}}})


def test_too_few_templates_are_refused() -> None:
    one = "a photo of a {size} {colour} {digit} {background}"
    told = refused("images", {"prepare": {"templates": [one], "items": {"discover": 9, "test": 9}}})
    assert "prepare.items.test: expected 10 or more, as each template needs an item, found 9" in told
    assert "prepare.templates: expected 15 or more, as no template is in two splits" in told and "found 1" in told


def test_weights_beyond_the_machines_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2**20))
    told = refused("images", {"seed": 8})
    assert "audits.images.prepare.model: 0.0 GiB of weights in data/images/inputs/model" in told
