"""An audit with a divided search: `faded shard`, the stages, DVC's graph, and a share that is killed."""

import json
import os
import shutil
import signal
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from flows.graph import read_graph
from flows.results.estimate import estimate_cost
from flows.workspace.edit_params import with_shards
from stages import discover, explore
from stages.concepts import Concept, ConceptSpace
from stages.core.errors import UsageError
from stages.core.ledger import Ledger
from stages.explorers.shards import ledger_answers, origin
from stages.params import load_params
from tests.finished import dvc_commit, faded, inside, quick_audit, run_stages
from tests.servers import until
from tests.workspace import Workspace, make_workspace

LAYOUT = """# head
audits:
  a:
    discover: {explorer: auto, budget: 10}   # flow
    compute: {gpus: 1}
  b: &b
    discover:
      budget: 20     # block
      microscopic:
        items: 3

    summarize: {}
  c:
    <<: *b

runner: threads
"""


def test_shares_are_written_and_every_other_byte_stays() -> None:
    one = with_shards(LAYOUT, "a", 2, None)
    assert one == LAYOUT.replace("budget: 10}", "budget: 10, shards: 2}")
    assert with_shards(one, "a", 2, 3) == one.replace("gpus: 1", "gpus: 3")
    assert with_shards(one, "a", 1, None) == LAYOUT
    alone = LAYOUT.replace("  c:\n    <<: *b\n", "")
    both = with_shards(alone, "b", 1000, None)
    assert "        items: 3\n      shards: 1000\n\n    summarize" in both
    assert with_shards(both, "b", 1, None) == alone
    assert yaml.safe_load(with_shards(both, "b", 3, 2))["audits"]["b"]["compute"] == {"gpus": 2}
    assert with_shards(LAYOUT.replace("\n", "\r\n"), "a", 2, None) == one.replace("\n", "\r\n")
    told = r"write audits\.b\.discover\.shards: 2, and audits\.b\.compute\.gpus: 0 there"  # c would get it, too
    with pytest.raises(UsageError, match=told):
        with_shards(LAYOUT, "b", 2, 0)


SEARCH = {"explorer": "ppo", "baseline": "random", "budget": 319, "microscopic": {"items": 5}}  # 63 kept back


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Workspace:
    """A workspace whose audit was divided by `faded shard`, and has run up to its landscape."""
    workspace = make_workspace(tmp_path_factory.mktemp("shards"), {"tiny": quick_audit(discover=SEARCH)}, {})
    code, told = faded(workspace, "shard", "tiny", "2")
    assert code == 0 and "tiny is searched in 2 shares" in told and "128 probes: with fewer than 200" in told
    run_stages(workspace, "tiny", ["prepare"])
    run_divided(workspace, 2, "summarize", "report")
    return workspace


def run_divided(workspace: Workspace, shards: int, *behind: str) -> None:
    with inside(workspace):
        for part in range(1, shards + 1):
            explore.main("tiny", str(part))
        dvc_commit([f"explore@tiny-{part}" for part in range(1, shards + 1)])
    run_stages(workspace, "tiny", ["discover", *behind])


def stale(workspace: Workspace) -> dict[str, tuple[str, ...]]:
    """Stale stages, and why."""
    with inside(workspace):
        return {stage.name: stage.reasons for stage in read_graph() if stage.stale}


def test_a_divided_search_ends_in_one_landscape(halves) -> None:
    data = halves.path / "data" / "tiny"
    probes = pd.read_parquet(data / "discover" / "probes.parquet")
    assert probes["role"].value_counts().to_dict() == {"agent": 256, "control": 256}
    shares = [pd.read_parquet(data / "shards" / str(n) / "probes.parquet") for n in (1, 2)]
    assert not set(shares[0]["item"]) & set(shares[1]["item"]) and sum(map(len, shares)) == 512
    found = json.loads((data / "discover" / "metrics.json").read_text())
    assert found["agent"]["shards"] == 2 and found["microscopic"]["probes"] > 0
    landscape = pd.read_parquet(data / "summarize" / "landscape.parquet")
    assert landscape["policy_mean"].sum() == pytest.approx(1, abs=1e-3)  # the shares' policies, mixed
    for role in ("agent", "control"):
        curve = pd.read_csv(data / f"discover/live/plots/metrics/{role}/failures.tsv", sep="\t")
        assert curve["step"].iloc[-1] == 256 and curve["failures"].iloc[-1] == found[role]["failures"]
    assert stale(halves) == {}
    # Small steps are answered from the shares first.
    [path] = (halves.path / ".faded/scratch/tiny/discover").glob("*/ledger.jsonl")
    ledger, table = Ledger(path), pd.read_parquet(data / "discover" / "robustness.parquet")
    space = ConceptSpace((Concept("tilt", (0, 1, 2, 3)), Concept("fog", (0, 1, 2, 3))))
    assert 0 < len(ledger) < table["queries"].sum()
    assert not [key for key, _ in ledger_answers(probes, space) if key in ledger]


def test_the_plan_counts_each_probe_once(halves, tmp_path) -> None:
    workspace = halves.copy(tmp_path / "plan")
    whole = halves.path / "params.yaml"
    assert faded(workspace, "shard", "tiny", "3")[0] == 0
    with inside(workspace):
        cost = estimate_cost(load_params(), read_graph(), ["tiny"])
        by_stage = {e.stage.name: e.probes for e in cost.stages}
    searched = {"explore@tiny-1": 170, "explore@tiny-2": 170, "explore@tiny-3": 172, "discover@tiny": 159}
    assert by_stage == {**searched, "summarize@tiny": 126, "report@tiny": None}
    assert cost.probes == 2 * 319 + 159
    code, told = faded(workspace, "plan", "tiny")
    assert code == 0 and "explore@tiny-3" in told and "797 unique probes at most" in told
    assert "the 3 shares may run side by side" in told
    assert faded(workspace, "shard", "tiny", "2")[0] == 0
    assert yaml.safe_load((workspace.path / "params.yaml").read_text()) == yaml.safe_load(whole.read_text())
    assert "nothing to write" in faded(workspace, "shard", "tiny", "2")[1]


@pytest.mark.slow
def test_another_division_runs_again_and_leaves_nothing_of_the_old(halves, tmp_path, capsys) -> None:
    workspace = halves.copy(tmp_path / "other")
    assert faded(workspace, "shard", "tiny", "3")[0] == 0
    assert list(stale(workspace)) == [*(f"explore@tiny-{n}" for n in (1, 2, 3)), "discover@tiny", "report@tiny"]
    with inside(workspace), pytest.raises(UsageError, match=r"/1 is of another search: its parameters differ"):
        discover.main("tiny")
    run_divided(workspace, 3)
    assert list(stale(workspace)) == ["summarize@tiny", "report@tiny"]

    assert faded(workspace, "shard", "tiny", "2")[0] == 0
    shutil.copytree(workspace.path / "data/tiny/shards/1", workspace.path / "data/tiny/shards/.4.partial")
    run_divided(workspace, 2)
    assert "removed .4.partial, 3 from data/tiny/shards" in capsys.readouterr().out
    assert stale(workspace) == {}
    files = ("tiny/discover/probes.parquet", "tiny/shards/*/probes.parquet")
    assert halves.digests(*files) == workspace.digests(*files) and len(workspace.digests(*files)) == 3

    assert faded(workspace, "shard", "tiny", "1")[0] == 0
    run_stages(workspace, "tiny", ["discover"])
    assert [path.name for path in (workspace.path / "data/tiny/shards").iterdir()] == [".gitignore"]
    assert list(stale(workspace)) == ["summarize@tiny", "report@tiny"]


def test_shares_that_cannot_be_are_refused(halves) -> None:
    for number in ("0", "3", "one"):
        with inside(halves), pytest.raises(UsageError, match=rf"has no share {number}: .*discover\.shards is 2"):
            explore.main("tiny", number)
    before = (halves.path / "params.yaml").read_bytes()
    for audit, shards, message in (
        ("tiny", "320", "the budget of 319 probes"),
        ("tiny", "21", "discover.shards is 21, but there are 20 items of the split discover"),
        ("tini", "2", "did you mean 'tiny'"),
    ):
        code, told = faded(halves, "shard", audit, shards)
        assert code == 2 and message in told
    assert (halves.path / "params.yaml").read_bytes() == before


@pytest.mark.slow
def test_other_small_steps_cost_no_probe_and_the_same_share_makes_nothing_stale(halves, tmp_path, capsys) -> None:
    workspace = halves.copy(tmp_path / "steps")
    files = "tiny/shards/*/*"
    first = workspace.digests(files)
    assert (workspace.run(["git", "commit", "--allow-empty", "--quiet", "--message", "another"])).returncode == 0
    with inside(workspace):
        explore.main("tiny", "1")
    assert workspace.digests(files) == first and stale(workspace) == {}
    workspace.edit_params({"audits.tiny.discover.microscopic.items": 6})
    capsys.readouterr()
    ledgers = {path: path.read_bytes() for path in workspace.path.glob(".faded/scratch/tiny/explore-*/*/ledger.jsonl")}
    run_divided(workspace, 2)
    assert capsys.readouterr().out.count("resuming: ") == 2
    assert len(ledgers) == 2 and all(path.read_bytes() == ledgers[path] for path in ledgers)  # nothing was probed again
    assert workspace.digests(files).items() <= first.items()


def test_shares_are_of_this_search_only_while_nothing_they_depend_on_changes(halves, tmp_path) -> None:
    workspace = halves.copy(tmp_path / "origin")
    with inside(workspace):
        prepared = Path("data/tiny/prepare")
        before = origin(load_params().audit("tiny"), prepared)
        workspace.edit_params({"audits.tiny.summarize.modes": 3, "audits.tiny.seed": 4})
        after = origin(load_params().audit("tiny"), prepared)
        assert {what for what in before if before[what] != after[what]} == {"parameters"}
        workspace.edit_params({"audits.tiny.discover.microscopic.items": 6})
        assert origin(load_params().audit("tiny"), prepared) == after
        (prepared / "model" / "config.json").write_text("{}")
        assert origin(load_params().audit("tiny"), prepared)["model"] != after["model"]


@pytest.mark.slow
def test_a_divided_audit_resumes_after_a_share_was_killed_and_ends_alike(halves, tmp_path, prefect_server) -> None:
    """And the flow, too, at some moment of the search."""
    audit = quick_audit(discover=SEARCH)
    audit["prepare"]["delay"] = 0.15  # seconds a model call takes, so that there is a search to be killed in
    disturbed = make_workspace(tmp_path / "disturbed", {"tiny": audit}, {})
    assert faded(disturbed, "shard", "tiny", "2")[0] == 0
    process = disturbed.start("audit", PREFECT_API_URL=prefect_server)
    scratch = disturbed.path / ".faded/scratch/tiny"
    for part in ("explore-1", "explore-2"):  # side by side
        until(lambda part=part: any(path.read_bytes() for path in (scratch / part).glob("*/ledger.jsonl")))
    [ledger] = (scratch / "explore-1").glob("*/ledger.jsonl")
    stage = next(p for p in psutil.process_iter(["cmdline", "cwd"]) if is_share(p, disturbed))
    process.send_signal(signal.SIGSTOP)  # the flow does not retry before it is killed itself
    os.kill(stage.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    assert 0 < len(Ledger(ledger)) < 300
    code, told = faded(disturbed, "audit", PREFECT_API_URL=prefect_server)
    assert code == 0 and "resuming:" in told, told
    results = ("tiny/shards/*/probes.parquet", "tiny/discover/*.parquet", "tiny/discover/policy/**/*")
    results = (*results, "*/summarize/landscape.parquet")
    assert disturbed.digests(*results) == halves.digests(*results)
    assert all(halves.digests(pattern) for pattern in results)


def is_share(process: psutil.Process, workspace: Workspace) -> bool:
    command = " ".join(process.info["cmdline"] or [])
    return "-m stages.explore tiny 1" in command and process.info["cwd"] == str(workspace.path)


def test_more_shares_than_items_are_refused_as_soon_as_the_items_are_known(halves, tmp_path) -> None:
    workspace = halves.copy(tmp_path / "by hand")
    by_hand = workspace.path / "params.yaml"
    by_hand.write_text(with_shards(by_hand.read_text(), "tiny", 21, None))
    code, output = faded(workspace, "plan", "tiny")
    assert code == 2 and "discover.shards is 21, but there are 20 items of the split discover" in output
    by_hand.write_text(by_hand.read_text().replace("discover: 20", "discover: 21"))
    code, output = faded(workspace, "plan", "tiny")
    assert code == 0 and "explore@tiny-21" in output  # before prepare has written the items
