"""A search divided among workers: the division, and that the whole is the sum of its shares."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.core.errors import UsageError
from stages.core.ledger import Key, Ledger
from stages.explorers.search import search
from stages.explorers.shards import (
    ShareResult,
    divide,
    ledger_answers,
    merge_shares,
    read_parts,
    search_share,
    write_part,
)
from stages.params import DiscoverConfig
from tests.test_explorers import ids, make_task

# --- the division


@pytest.mark.parametrize(
    ("items", "cells", "budget", "shards"), [(200, 2401, 4000, 4), (7, 6, 20, 3), (10, 4, 40, 3), (5, 100, 5, 5)]
)
def test_shares_divide_items_and_budget_without_rest(items: int, cells: int, budget: int, shards: int) -> None:
    names = [f"i{n}" for n in range(items)]
    shares = divide(names, cells, budget, shards, seed=3)
    given = [item for share in shares for item in share.item_ids]
    assert sorted(given) == sorted(names) and len(shares) == shards
    assert sum(share.budget for share in shares) == min(budget, items * cells)
    sizes = [len(share.item_ids) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for share in shares:
        assert abs(share.budget - min(budget, items * cells) * len(share.item_ids) / items) < 1
        assert 0 < share.budget <= len(share.item_ids) * cells  # no share has more probes than pairs
        assert share.enumerated == (budget >= items * cells) and share.whole == min(budget, items * cells)
        assert share.item_ids == [item for item in names if item in set(share.item_ids)]
    assert len({share.seed for share in shares}) == shards and divide(names, cells, budget, shards, seed=3) == shares
    if items > shards:
        other = divide(names, cells, budget, shards, seed=4)
        assert shards == 1 or [share.item_ids for share in other] != [share.item_ids for share in shares]


def test_more_shares_than_items_or_probes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"discover\.shards is 5, but there are 4 items of the split discover"):
        divide(list("abcd"), 10, 40, 5, seed=0)
    with pytest.raises(UsageError, match=r"discover\.shards is 4, but there are 3 probes of discover\.budget"):
        divide(list("abcd"), 10, 3, 4, seed=0)
    # With one item less than the last share has, a share would get none of the four probes.
    told = r"shards is 4: of 5 items and .*budget of 4 probes a share would get no probe"
    with pytest.raises(UsageError, match=told):
        divide(list("abcde"), 100, 4, 4, seed=0)


@pytest.mark.slow
def test_every_pair_is_as_likely_in_the_merged_control_as_in_one_of_the_whole() -> None:
    task = make_task(levels=2, concepts="ab", items=7)  # 7 items in 3 shares: 2, 2 and 3 of them
    shares = divide(ids(task), 4, budget=14, shards=3, seed=0)
    assert {len(share.item_ids) for share in shares} == {2, 3}
    config, runs = DiscoverConfig(explorer="random", budget=14, shards=3), 60
    drawn = np.zeros((7, 4))
    for run in range(runs):
        for share in shares:
            probes = search_share(task, replace(share, seed=1000 * run + share.part), config).probes
            control = probes[probes["role"] == "control"]
            rows = control["item"].str.removeprefix("i").astype(int).to_numpy()
            np.add.at(drawn, (rows, task.concepts.flat(control[["a", "b"]].to_numpy())), 1)
            assert control["uniform"].all()
    chance = 14 / (7 * 4)
    assert np.abs(drawn / runs - chance).max() < 4.5 * np.sqrt(chance * (1 - chance) / runs)
    for share in shares:  # two probes per item in each
        assert drawn[[int(item[1:]) for item in share.item_ids]].sum() == 2 * len(share.item_ids) * runs


@pytest.mark.slow
def test_auto_chooses_for_the_whole_and_explores_as_what_it_chose() -> None:
    task = make_task()
    config = DiscoverConfig(explorer="auto", budget=600, shards=4)
    for share in divide(ids(task), task.concepts.n_cells, 600, 4, seed=0):
        assert share.budget < 200 < share.whole
        found = search_share(task, share, config)
        assert found.metrics["agent"]["chosen"] == "model_based"
        named = search_share(task, share, DiscoverConfig(explorer="model_based", budget=600, shards=4))
        pd.testing.assert_frame_equal(found.probes, named.probes)


def found_by(task, config: DiscoverConfig, ledgers: Path | None = None) -> list[ShareResult]:
    parts = []
    for share in divide(ids(task), task.concepts.n_cells, config.budget, config.shards, seed=3):
        ledger = Ledger(None if ledgers is None else ledgers / f"{share.part}.jsonl")
        result = search_share(task, share, config, ledger=ledger)
        parts.append(ShareResult(share.part, result.probes, result.metrics, result.policy, {}))
    return parts


@pytest.fixture(scope="module")
def parts() -> list[ShareResult]:
    return found_by(make_task(), DiscoverConfig(explorer="local_search", budget=601, shards=3))


def test_what_is_merged_is_what_was_found(parts) -> None:
    space = make_task().concepts
    result = merge_shares(parts, space)
    whole = search(make_task(), ids(make_task()), DiscoverConfig(explorer="local_search", budget=601), seed=3)
    assert list(result.probes) == list(whole.probes) and result.probes.dtypes.equals(whole.probes.dtypes)
    for role, numbers in result.metrics.items():
        mine = result.probes[result.probes["role"] == role]
        assert numbers["budget"] == numbers["probes"] == len(mine) == 601 and mine["order"].tolist() == list(range(601))
        assert not mine.duplicated(["item", *space.names]).any()
        assert numbers["failures"] == mine["failed"].sum() == sum(numbers["shard_failures"])
        assert numbers["failing_cells"] == len(mine.loc[mine["failed"], space.names].drop_duplicates())
        assert sum(numbers["shard_probes"]) == 601 and numbers["shards"] == 3
        assert result.curves[role][0] == (0, 0) and result.curves[role][-1] == (601, numbers["failures"])
        # In parallel: each share has a third of the first probes.
        firsts = mine.head(30)["item"]
        shares = [set(part.probes["item"]) for part in parts]
        assert [int(firsts.isin(share).sum()) for share in shares] == [10, 10, 10]
    assert "random_probes" in whole.metrics["agent"] and result.metrics["agent"]["surrogate"] == "process"
    everything = pd.concat([part.probes for part in parts])
    key = ["role", "item", *space.names, "discrepancy"]
    found, merged = (table[key].sort_values(key, ignore_index=True) for table in (everything, result.probes))
    pd.testing.assert_frame_equal(found, merged)


def test_an_enumerated_grid_is_enumerated_in_shares() -> None:
    task = make_task(levels=3, concepts="ab", items=7)
    result = merge_shares(found_by(task, DiscoverConfig(budget=70, shards=3)), task.concepts)
    assert result.enumerated and list(result.metrics) == ["control"]
    assert len(result.probes.drop_duplicates(["item", "a", "b"])) == 63 == len(result.probes)


def test_a_share_that_was_killed_ends_as_it_would_have(parts, tmp_path) -> None:
    task, config = make_task(), DiscoverConfig(explorer="local_search", budget=601, shards=3)
    first = divide(ids(task), task.concepts.n_cells, 601, 3, seed=3)[0]

    class Killed(type(task)):
        def probe(self, *arguments, **more):
            if self.queries > 100:
                raise KeyboardInterrupt
            return super().probe(*arguments, **more)

    killed = Killed(task.items, task.concepts, task.model, 0)
    with pytest.raises(KeyboardInterrupt):
        search_share(killed, first, config, ledger=Ledger(tmp_path / "1.jsonl"))
    known = len(Ledger(tmp_path / "1.jsonl"))
    assert 0 < known < first.budget
    again, whole = make_task(), merge_shares(parts, task.concepts).probes
    pd.testing.assert_frame_equal(merge_shares(found_by(again, config, tmp_path), task.concepts).probes, whole)
    asked_once = {Key(*key) for key, _ in ledger_answers(whole, task.concepts)}
    assert again.queries == len(asked_once) - known


@pytest.fixture
def written(parts, tmp_path) -> Path:
    for part in parts:
        folder = tmp_path / "tiny" / "shards" / str(part.part)
        folder.mkdir(parents=True)
        result = merge_shares([part], make_task().concepts)
        record = {"origin": {"model": "m", "items": "i"}, "device": "cpu", "versions": {"torch": "2", "numpy": "1"}}
        write_part(folder, part.part, replace(result, probes=part.probes, policy=None), record)
    return folder.parent


def read(folder: Path) -> list[ShareResult]:
    return read_parts(folder, 3, {"model": "m", "items": "i"}, make_task().concepts)


UNLIKE = r"with device cpu \(shares 1, 3\) and with device cuda \(NVIDIA H100\) \(share 2\), which do not go"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, r"2/share\.json is missing: run the stage that writes it"),
        ({"origin": {}}, r"its model and items differ"),
        ({"device": "cuda (NVIDIA H100)"}, UNLIKE),
        (lambda at: (at / "probes.parquet").unlink(), r"2/probes\.parquet is missing"),
        (lambda at: rewrite(at, lambda t: t.drop(columns="valid")), r"expected the columns a, b, c, .*found a, b, c"),
        (lambda at: rewrite(at, lambda t: t.assign(role="judge")), r"has the role\(s\) judge, expected"),
    ],
)
def test_a_part_that_does_not_belong_is_refused(written, spoil, message: str) -> None:
    at = written / "2" / "share.json"
    if isinstance(spoil, dict):
        at.write_text(json.dumps(json.loads(at.read_text()) | spoil))
    else:
        spoil(at.parent)
    with pytest.raises(UsageError, match=message):
        read(written)


def rewrite(folder: Path, how) -> None:
    how(pd.read_parquet(folder / "probes.parquet")).to_parquet(folder / "probes.parquet", index=False)


def test_a_probe_in_two_shares_counts_once(parts) -> None:
    space = make_task().concepts
    twice = replace(parts[0], probes=pd.concat([parts[0].probes, parts[1].probes.head(5)], ignore_index=True))
    result = merge_shares([twice, *parts[1:]], space)
    assert len(result.probes) == 1202 and sum(result.metrics["agent"]["shard_probes"]) == 601
    other = parts[1].probes.head(1).assign(discrepancy=np.float32(0.123))
    lying = replace(parts[0], probes=pd.concat([parts[0].probes, other], ignore_index=True))
    with pytest.raises(UsageError, match="two shares answer the same probe of item 'i"):
        merge_shares([lying, *parts[1:]], space)


def test_the_order_of_merging_changes_no_byte(parts, tmp_path) -> None:
    written = set()
    for order in (parts, parts[::-1]):
        result = merge_shares(order, make_task().concepts)
        result.probes.to_parquet(tmp_path / "probes.parquet", index=False)
        written.add(((tmp_path / "probes.parquet").read_bytes(), json.dumps(result.metrics), str(result.curves)))
    assert len(written) == 1


def test_parts_are_read_as_they_were_written(written, parts) -> None:
    for was, now in zip(parts, read(written), strict=True):
        pd.testing.assert_frame_equal(was.probes, now.probes)
        assert now.part == was.part and now.policy is None
    shutil.copytree(written / "1", written / "4")  # from another division: not declared, so not read
    [part, *more] = read(written)
    assert len(more) == 2
    # What no answer depends on is no part of a share.
    versions = {**part.record["versions"], "faded": "0.2", "datasets": "5"}
    (again := written / "again").mkdir()
    write_part(again, 1, merge_shares([part], make_task().concepts), {**part.record, "versions": versions})
    assert (again / "share.json").read_bytes() == (written / "1" / "share.json").read_bytes()
