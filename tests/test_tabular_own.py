"""A user's own model of a table: a function, a skops file, an ONNX file; rows with text, gaps and dates."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from stages.code import code_of
from stages.core.errors import UsageError
from stages.params.audit import AuditConfig
from stages.tasks.contract import Compute, TaskContext
from stages.tasks.tabular import TabularClassification
from stages.tasks.tabular.init import RowsInit
from tests.finished import faded
from tests.workspace import Workspace, make_workspace

DATA = {"csv": "customers.csv", "target": "churn", "dates": ["since"]}
ITEMS = {"discover": 150, "repair": 20, "test": 30}
CONCEPTS = {"noise": [0, 0.5], "swaps": [0, 0.5, 1], "date_shift": [0, 40], "missing": [0, 0.5]}


def customers(n: int, seed: int) -> pd.DataFrame:
    """Customers who stay or leave, with text, gaps, dates and yes or no."""
    rng = np.random.default_rng(seed)
    since = pd.Timestamp("2015-01-01") + pd.to_timedelta(rng.integers(0, 3000, n), unit="D")
    table = pd.DataFrame(
        {
            "age": rng.integers(18, 90, n),
            "region": rng.choice(["north", "south", "east", "west"], n),
            "income": rng.normal(30, 10, n).round(1),
            "tenure": rng.integers(0, 20, n),
            "plan": rng.choice(["basic", "plus"], n),
            "member": rng.random(n) < 0.5,
            "since": since.strftime("%Y-%m-%d"),
        }
    )
    score = (table["income"] - 30) / 10 + (table["tenure"] - 10) / 6 + 0.8 * (table["plan"] == "plus") - 0.4
    table["churn"] = np.where(score > 0, "stays", "leaves")
    table.loc[rng.random(n) < 0.05, "income"] = np.nan
    table.loc[rng.random(n) < 0.05, "plan"] = None
    return table


def context(inputs: Path, model: dict[str, Any], data: dict[str, Any] = DATA, **concepts: Any) -> TaskContext:
    config = {"model": model, "data": data, "items": ITEMS}
    return TaskContext("rows", 7, config, concepts or CONCEPTS, {"threshold": 0}, inputs, Compute(threads=1))


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of params.yaml with the table in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    customers(200, 1).to_csv(tmp_path / "customers.csv", index=False)
    return tmp_path


def function(beside: Path, name: str, code: str) -> dict[str, Any]:
    """A module with the function `predict`; modules have different names, as Python keeps what it has imported."""
    (beside / f"{name}.py").write_text(f"import numpy as np\nimport pandas as pd\n\ndef predict(rows):\n    {code}\n")
    return {"function": f"{name}:predict"}


def prepared(context: TaskContext, out: Path) -> TabularClassification:
    out.mkdir()
    TabularClassification.prepare(context, out)
    return TabularClassification.load(context, out)


def test_a_function_gets_rows_with_the_columns_and_types_of_the_file(beside: Path) -> None:
    code = "rows.to_parquet('seen.parquet'); return np.where(rows['tenure'] > 9, 'stays', 'leaves')"
    noise = {"noise": [0, 0.5], "swaps": [0, 1], "date_shift": [0, 40]}
    task = prepared(context(beside, function(beside, "typed", code), **noise), beside / "out")
    ids = task.items.ids("discover")
    task.probe(ids, np.tile([1, 1, 1], (len(ids), 1)))
    seen = pd.read_parquet("seen.parquet")
    told = pd.read_csv("customers.csv", parse_dates=["since"]).drop(columns="churn")
    assert seen.dtypes.to_dict() == told.dtypes.to_dict()
    before = task.rows.iloc[: len(ids)].reset_index(drop=True)
    assert (seen["age"] != before["age"]).mean() > 0.9  # whole numbers, changed by noise
    assert (seen["since"] == before["since"] + pd.Timedelta("40D")).all()
    assert (seen["region"] != before["region"]).all()  # another value of its column
    assert set(seen["region"]) == set(before["region"])
    gappy = ["plan", "income"]
    assert seen[gappy].isna().equals(before[gappy].isna())  # gaps stay gaps


def test_the_neutral_cell_changes_nothing_and_missing_leaves_gaps_in_any_column(beside: Path) -> None:
    model = function(beside, "gapless", "return np.where(rows['tenure'] > 9, 'stays', 'leaves')")
    task = prepared(context(beside, model), beside / "out")
    ids = task.items.ids("discover")
    at, same = task.changed(ids, np.zeros((len(ids), 4), dtype=int))
    pd.testing.assert_frame_equal(same, task.rows.iloc[at].reset_index(drop=True))
    _, gaps = task.changed(ids, np.tile([0, 0, 0, 1], (len(ids), 1)))
    assert (gaps.isna().mean() > 0.35).all()
    assert gaps.isna().sum(axis=1).between(3, 6).all()  # half of seven, besides those that are missing anyway
    alone = [task.changed([item], np.array([[1, 1, 1, 1]]))[1] for item in ids[:20]]
    together = task.changed(ids[:20], np.tile([1, 1, 1, 1], (20, 1)))[1]
    pd.testing.assert_frame_equal(pd.concat(alone, ignore_index=True), together)


def test_labels_have_no_probability_and_an_answer_that_is_no_class_is_a_failure(beside: Path) -> None:
    code = "return np.where(rows['age'].isna(), 'unknown', np.where(rows['tenure'] > 9, 'stays', 'leaves'))"
    task = prepared(context(beside, function(beside, "labels", code), missing=[0, 1]), beside / "out")
    ids = task.items.ids("discover")
    assert set(task.probe(ids, np.zeros((len(ids), 1), dtype=int)).outputs) == {"stays", "leaves"}
    lost = task.probe(ids, np.ones((len(ids), 1), dtype=int))
    assert set(lost.outputs) == {"no valid answer"} and lost.failed.all()


def test_probabilities_need_names_of_their_classes_in_their_order(beside: Path) -> None:
    code = "stays = np.clip(rows['tenure'] / 20, 0.1, 0.9); return np.column_stack([stays, 1 - stays])"
    model = function(beside, "shares", code)
    with pytest.raises(UsageError, match=r"name its 2 classes in their order, classes: \[leaves, stays\]"):
        prepared(context(beside, model), beside / "unnamed")
    task = prepared(context(beside, {**model, "classes": ["stays", "leaves"]}), beside / "named")
    ids = task.items.ids("discover")
    assert all(output.endswith("%)") for output in task.probe(ids, np.zeros((len(ids), 4), dtype=int)).outputs)
    told = r"in this order \d+% of 200 unchanged rows are right, .*: classes: \[stays, leaves\]"
    with pytest.raises(UsageError, match=told):
        prepared(context(beside, {**model, "classes": ["leaves", "stays"]}), beside / "reversed")
    assert task.clean_quality("discover").values.mean() > 0.6


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("bad_column", "return rows['incme'] > 3", r"was given 200 rows with age \(int64\), .* KeyError: 'incme'"),
        ("bad_nan", "return np.where(rows['age'] > 30, np.nan, 0.5)[:, None] * np.ones(2)", "no valid answer to"),
        ("bad_sum", "return np.full((len(rows), 2), 0.9)", "expected probabilities from 0 to 1 that add up to 1"),
        ("bad_label", "return np.full(len(rows), 'no')", r"expected one of .*; found 'no' for a row with age \d+, "),
    ],
)
def test_wrong_answers_to_unchanged_rows_are_told_at_once(beside: Path, name: str, code: str, said: str) -> None:
    model = function(beside, name, code) | {"classes": ["leaves", "stays"]}
    with pytest.raises(UsageError, match=said):
        prepared(context(beside, model), beside / "out")


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ({"function": "nowhere:predict"}, DATA, "no module nowhere for nowhere:predict, expected nowhere.py beside"),
        ({"function": "json:loads"}, {**DATA, "dates": ["snce"]}, "no such column, did you mean 'since'"),
        ({"function": "json:loads"}, {**DATA, "dates": ["region"]}, "region: expected dates of one format"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(beside: Path, model: dict, data: dict, said: str) -> None:
    assert said in "\n".join(TabularClassification.check(context(beside, model, data)))


def test_a_change_of_the_function_changes_the_code_of_stages_that_call_it(beside: Path) -> None:
    model = function(beside, "hashed", "return helper(rows)")
    block = {"seed": 1, "task": "tabular-classification", "prepare": {"model": model}, "concepts": {"noise": [0, 1]}}
    audit = AuditConfig.model_validate({**block, "discover": {"budget": 100}, "discrepancy": {}, "summarize": {}})
    stages = ("prepare", "discover", "report")

    def codes(helper: str) -> list[str]:
        (beside / "helpers.py").write_text(f"def helper(rows):\n    {helper}\n")
        (beside / "hashed.py").write_text("from helpers import helper\n\ndef predict(rows):\n    return helper(rows)\n")
        return [code_of(audit, stage) for stage in stages]

    one, same, other = codes("return rows"), codes("return rows  # all"), codes("return rows[:1]")
    assert one == same and [a == b for a, b in zip(one, other, strict=True)] == [False, False, True]


def pipeline() -> Any:
    """A pipeline of scikit-learn, fitted on customers of which the audit sees none."""
    table = customers(400, 2)
    features = make_column_transformer(
        (SimpleImputer(), ["age", "income", "tenure"]), (OneHotEncoder(handle_unknown="ignore"), ["region", "plan"])
    )
    return make_pipeline(features, LogisticRegression(max_iter=1000)).fit(table.drop(columns="churn"), table["churn"])


def test_a_pipeline_in_a_skops_file_answers_as_it_did(beside: Path) -> None:
    skops = pytest.importorskip("skops.io", reason="skops is not installed: pip install 'faded[tables]'")
    model = pipeline()
    skops.dump(model, beside / "model.skops")
    types = skops.get_untrusted_types(file=beside / "model.skops")
    with pytest.raises(UsageError, match=r"add trusted: \[numpy.dtype"):
        prepared(context(beside, {"skops": "model.skops"}), beside / "untrusted")
    task = prepared(context(beside, {"skops": "model.skops", "trusted": types}), beside / "out")
    assert task.clean_quality("discover").values.mean() > 0.85
    rows = task.rows.iloc[:5]
    assert np.allclose(np.exp(task.model.log_odds(rows))[:, :2], model.predict_proba(rows))
    (beside / "customers.csv").write_text((beside / "customers.csv").read_text().replace("tenure", "years", 1))
    with pytest.raises(UsageError, match=r"takes the column\(s\) tenure, which the data do not have"):
        prepared(context(beside, {"skops": "model.skops", "trusted": types}), beside / "renamed")


def test_a_skops_file_with_code_of_its_own_is_refused(beside: Path) -> None:
    skops = pytest.importorskip("skops.io", reason="skops is not installed: pip install 'faded[tables]'")
    skops.dump(FunctionTransformer(customers), beside / "model.skops")
    with pytest.raises(UsageError, match=r"model.skops has tests.test_tabular_own.customers, not of scikit-learn"):
        prepared(context(beside, {"skops": "model.skops"}), beside / "out")


def write_onnx(path: Path) -> None:
    """A model of tenure and plan, whose probability of staying is sigmoid(tenure - 10 + bonus of the plan)."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'faded[onnx]'")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'faded[tables]'")
    from onnx import TensorProto, helper

    bonus = {"keys_strings": ["plus"], "values_floats": [1.0], "default_float": 0.0}
    nodes = [
        helper.make_node("LabelEncoder", ["plan"], ["bonus"], domain="ai.onnx.ml", **bonus),
        helper.make_node("Sum", ["tenure", "bonus", "shift"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["stays"]),
        helper.make_node("Sub", ["one", "stays"], ["leaves"]),
        helper.make_node("Concat", ["stays", "leaves"], ["probabilities"], axis=1),
    ]
    columns = (("tenure", TensorProto.FLOAT), ("plan", TensorProto.STRING))
    inputs = [helper.make_tensor_value_info(name, kind, [None, 1]) for name, kind in columns]
    fixed = [helper.make_tensor(name, TensorProto.FLOAT, [1], [n]) for name, n in (("shift", -10.0), ("one", 1.0))]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph(nodes, "rows", inputs, outputs, fixed)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))


def test_an_onnx_file_gets_each_column_by_its_name(beside: Path) -> None:
    write_onnx(beside / "model.onnx")
    task = prepared(context(beside, {"onnx": "model.onnx", "classes": ["stays", "leaves"]}), beside / "out")
    rows = task.rows.iloc[:50]
    logit = rows["tenure"] - 10 + (rows["plan"] == "plus")
    assert np.allclose(np.exp(task.model.log_odds(rows))[:, 0], 1 / (1 + np.exp(-logit)), atol=1e-5)
    with pytest.raises(UsageError, match="name its 2 classes in their order"):
        prepared(context(beside, {"onnx": "model.onnx"}), beside / "unnamed")


def init(here: Workspace, *options: str) -> tuple[int, str, dict[str, Any]]:
    """Run `faded init` on the table; return its exit code, its output, and `audits:` of params.yaml."""
    command = ["init", "--data", "customers.csv", "--target", "churn", "--name", "mine", "--budget", "200", "--yes"]
    code, told = faded(here, *command, *options)
    return code, told, here.params()["audits"]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(sys, "path", [*sys.path])
    customers(200, 1).to_csv(tmp_path / "customers.csv", index=False)
    return make_workspace(tmp_path, {}, {})


def test_init_names_a_function_that_is_not_there_before_it_writes_anything(empty: Workspace) -> None:
    module = function(empty.path, "by_tenure", "return rows")["function"].partition(":")[0]
    code, told, audits = init(empty, "--model", f"{module}:nobody")
    assert code == 2 and "--model: nobody is not in" in told and not audits and not (empty.path / "data/mine").exists()


def test_init_names_rows_and_columns_of_which_nothing_is_known(tmp_path: Path) -> None:
    rows = customers(200, 1).assign(notes=np.nan)
    rows.loc[:2, "churn"] = np.nan
    rows.to_csv(tmp_path / "rows.csv", index=False)
    ask: Any = SimpleNamespace(text=lambda *_: "churn", said=lambda _: None)
    seen = RowsInit().data(tmp_path / "rows.csv", "rows.csv", ask)
    assert seen.said.endswith("; 3 without churn are left out; nothing is known of notes")


def test_init_refuses_to_take_many_numbers_for_classes(tmp_path: Path) -> None:
    pd.DataFrame({"age": range(66), "churn": ["yes", "no"] * 33}).to_csv(tmp_path / "rows.csv", index=False)
    ask: Any = SimpleNamespace(text=lambda *_: "age", said=lambda _: None)
    with pytest.raises(UsageError, match="66 different numbers"):
        RowsInit().data(tmp_path / "rows.csv", "rows.csv", ask)


@pytest.mark.slow
def test_init_writes_the_block_of_a_function_or_a_file_and_says_what_the_columns_are(empty: Workspace) -> None:
    model = function(empty.path, "by_tenure", "return np.where(rows['tenure'] > 9, 'stays', 'leaves')")
    code, told, audits = init(empty, "--model", model["function"])
    assert code == 0, told
    assert "3 measurements (age, income, tenure), 3 categories (region, plan, member), 1 date (since)" in told
    assert (audits["mine"]["prepare"]["model"], audits["mine"]["prepare"]["data"]) == (model, DATA)
    assert {"noise", "swaps", "date_shift"} <= set(audits["mine"]["concepts"])
    write_onnx(empty.path / "model.onnx")
    code, told, audits = init(empty, "--name", "file", "--model", "model.onnx", "--classes", "stays,leaves")
    assert code == 0, told
    assert audits["file"]["prepare"]["model"] == {"onnx": "model.onnx", "classes": ["stays", "leaves"]}
    code, told, _ = init(empty, "--name", "other", "--model", "nowhere:predict")
    assert code == 2 and "--model: no module nowhere" in told
