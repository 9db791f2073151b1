"""A search divided among independent explorers, each with its own items, budget and seed, and merged from their shares.

Items are divided, so no two shares can make the same probe, and each share's budget is proportional to its items. Every
pair of item and cell is then as likely to be among the control's draws as in an undivided search: within a share each
is drawn with probability budget / (items * cells), which is the same in all shares up to a remainder of less than one
probe. Such a stratified sample is at least as informative as one drawn at random (Cochran 1977, Sampling Techniques,
5.6).

Each share is written by one stage, and they are merged by another. The result does not depend on the order in which
shares are read: probes are sorted as shares that run side by side at the same speed would have made them.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.code import code_of
from stages.concepts import ConceptSpace
from stages.core.errors import UsageError, first_of
from stages.core.files import content_hash, read_json, read_table, write_json
from stages.core.ledger import Answer, Key, Ledger
from stages.explorers.model_based import Auto
from stages.explorers.policy import Mixture, Policy, load_policy, save_policy
from stages.explorers.search import SearchResult, ShowProgress, roles_of, silent, spend
from stages.params import AuditConfig, DiscoverConfig
from stages.tasks.base import LoadedTask
from stages.tasks.contract import ASSETS, Compute

STREAM = b"shards"  # separates the random draws here from those of an undivided search


@dataclass(frozen=True)
class Share:
    """The part of a search that one of several independent explorers gets.

    Args:
        part: number of the share, from 1.
        item_ids: its items, in the order of the whole search; no other share has any of them.
        budget: unique probes for its agent, and as many for its control.
        whole: unique probes of all shares for each role. `auto` chooses by it, so that all shares choose the same
            explorer, which finds more than random draws even with a share's fewer probes (docs/scaling.md).
        enumerated: whether the budget of the whole search covers all pairs, and so that of each share does.
    """

    part: int
    item_ids: list[str]
    budget: int
    whole: int
    enumerated: bool
    seed: int


def divide(item_ids: Sequence[str], n_cells: int, budget: int, shards: int, seed: int) -> list[Share]:
    """Divide items and budget among shares: sizes differ by at most one item, budgets by that item's part and a probe.

    Raises a UsageError if there are fewer items or probes than shares, or too few probes for the smallest share.

    Args:
        item_ids: the items of the whole search.
        n_cells: number of cells that occur in use.
        budget: unique probes of the whole search, for each role.
        seed: seed of the draw; other seeds divide the items differently.
    """
    n, total = len(item_ids), min(budget, len(item_ids) * n_cells)
    for what, count in (("items of the split discover", n), ("probes of discover.budget", total)):
        if count < shards:
            raise UsageError(f"discover.shards is {shards:,}, but there are {count:,} {what}: each share needs one")
    drawn = np.random.default_rng([seed, *STREAM]).permutation(n)
    ends = [n * part // shards for part in range(shards + 1)]
    spent = [total * end // n for end in ends]
    budgets = np.diff(spent).tolist()
    if min(budgets) == 0:
        raise UsageError(
            f"discover.shards is {shards:,}: of {n:,} items and a discover.budget of {total:,} probes a share would get"
            " no probe, and each needs one"
        )
    return [
        Share(
            part=part,
            item_ids=[item_ids[i] for i in sorted(drawn[ends[part - 1] : ends[part]].tolist())],
            budget=budgets[part - 1],
            whole=total,
            enumerated=budget >= n * n_cells,
            seed=int(np.random.SeedSequence([seed, *STREAM, part]).generate_state(1)[0] % (2**31)),
        )
        for part in range(1, shards + 1)
    ]


def search_share(
    task: LoadedTask,
    share: Share,
    config: DiscoverConfig,
    *,
    ledger: Ledger | None = None,
    compute: Compute | None = None,
    show: ShowProgress = silent,
) -> SearchResult:
    """Search one share with agent and control as in a whole search, independent of the other shares."""
    roles = roles_of(config, enumerated=share.enumerated)
    if isinstance(auto := roles.get("agent"), Auto):
        roles["agent"] = Auto(auto.settings, budget=share.whole)
    return spend(task, share.item_ids, roles, share.budget, seed=share.seed, ledger=ledger, compute=compute, show=show)


ROLES = ("agent", "control")
COLUMNS = ("role", "explorer", "order", "item", "repeat", "uniform", "discrepancy", "failed", "valid", "output")
RATED = ("automatic", "automatic_failed")  # if people's ratings define what a failure is
OPTIONAL = (*RATED, "group")  # the last if items belong to groups
CURVE_POINTS = 1000  # most points of a merged curve
SHOWN = 10  # most shares listed in a message
# Packages whose versions change no answer, because `origin` covers Faded's code and the items.
NOT_OF_ANSWERS = frozenset({"faded", "datasets"})


@dataclass(frozen=True)
class ShareResult:
    """The results of one share.

    Args:
        part: number of the share, from 1.
        probes: in the format of probes.parquet.
        metrics: role -> numbers, as of a search.
        policy: its agent's policy, if it learns one.
        record: its provenance, as passed to `write_part`.
    """

    part: int
    probes: pd.DataFrame
    metrics: Mapping[str, Any]
    policy: Policy | None
    record: Mapping[str, Any]


def origin(audit: AuditConfig, prepared: Path) -> dict[str, str]:
    """Hash everything that all shares of one search must have in common; shares that differ in any are not merged.

    Args:
        audit: its block of params.yaml; only the settings that a share depends on count.
        prepared: data/<audit>/prepare.
    """
    of_search = {"seed", "task", "compute", "concepts", "discrepancy", "discover"}
    settings = audit.model_dump(mode="json", include=of_search, exclude={"discover": {"microscopic"}})
    return {
        "model": content_hash([prepared / "model"]),
        "assets": content_hash([prepared / ASSETS]),
        "items": content_hash([prepared / "items.parquet"]),
        "task": content_hash([prepared / "fingerprint.json"]),
        "parameters": content_hash([], settings),
        "code": code_of(audit, "explore"),
    }


def write_part(folder: Path, part: int, result: SearchResult, record: Mapping[str, Any]) -> None:
    """Write the results of a share, all of which discover depends on, into an empty folder.

    Args:
        part: number of the share, from 1.
        record: its provenance with `origin`. Versions that no answer depends on are left out: the same share run again
            gives the same files.
    """
    result.probes.to_parquet(folder / "probes.parquet", index=False)
    save_policy(result.policy, folder / "policy")
    write_json(folder / "metrics.json", dict(result.metrics), schema=False)
    versions = {name: told for name, told in record["versions"].items() if name not in NOT_OF_ANSWERS}
    write_json(folder / "share.json", {**record, "versions": versions, "part": part})


def read_parts(folder: Path, shards: int, expected: Mapping[str, str], space: ConceptSpace) -> list[ShareResult]:
    """Read the declared shares, and ignore any others in the folder.

    Raises a UsageError if a share is missing, of another search, of another machine than others, or in a wrong place.
    """
    parts = [_read(folder, part, expected, space) for part in range(1, shards + 1)]
    alike: dict[str, list[int]] = {}
    for part in parts:
        alike.setdefault(json.dumps(_machine(part.record), sort_keys=True), []).append(part.part)
    if len(alike) > 1:
        raise UsageError(_unlike(folder, alike))
    return parts


def _machine(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what answers depend on besides the code: the device, and versions of packages."""
    return {"device": str(record.get("device")), **record.get("versions", {})}


def _unlike(folder: Path, alike: Mapping[str, Sequence[int]]) -> str:
    """Describe how two kinds of machines differ, which shares they searched, and how to fix it."""
    (one, ours), (other, theirs) = list(alike.items())[:2]
    kinds = [json.loads(kind) for kind in (one, other)]
    names = [name for name in {**kinds[0], **kinds[1]} if kinds[0].get(name) != kinds[1].get(name)]
    withs = [", ".join(f"{name} {kind.get(name, 'none')}" for name in names) for kind in kinds]
    return (
        f"{folder} has answers with {withs[0]} ({_shares(ours)}) and with {withs[1]} ({_shares(theirs)}), which do not"
        " go into one landscape: do the ones again where the others can be done, with `dvc repro --force --single-item"
        f" explore@{folder.parent.name}-N` for each such share N"
    )


def _shares(parts: Sequence[int]) -> str:
    shown = first_of([*map(str, parts)], SHOWN)
    return f"share {shown}" if len(parts) == 1 else f"shares {shown}"


def _read(folder: Path, part: int, expected: Mapping[str, str], space: ConceptSpace) -> ShareResult:
    here = folder / str(part)
    record = read_json(here / "share.json")
    found = record.get("origin", {})
    if differing := [what for what in expected if found.get(what) != expected[what]]:
        raise UsageError(
            f"{here} is of another search: its {' and '.join(differing)} differ(s) from what there is now;"
            " run that share again (`faded audit` does)"
        )
    if record.get("part") != part:
        raise UsageError(f"{here} holds share {record.get('part')}, expected {part}: it was moved or copied")
    probes = read_table(here / "probes.parquet")
    _check(here / "probes.parquet", probes, space)
    return ShareResult(part, probes, read_json(here / "metrics.json"), load_policy(here / "policy"), record)


def _check(path: Path, probes: pd.DataFrame, space: ConceptSpace) -> None:
    needed, known = {*COLUMNS, *space.names}, {*COLUMNS, *space.names, *OPTIONAL}
    if not needed <= set(probes.columns) <= known:
        raise UsageError(
            f"{path}: expected the columns {', '.join(sorted(needed))}, found {', '.join(sorted(probes.columns))}"
        )
    cells = probes[space.names].to_numpy()
    if not np.issubdtype(cells.dtype, np.integer) or ((cells < 0) | (cells >= np.array(space.sizes))).any():
        raise UsageError(f"{path} has levels that are not on the grid of {' x '.join(map(str, space.sizes))}")
    if strange := sorted(set(probes["role"].unique()) - set(ROLES)):
        raise UsageError(f"{path} has the role(s) {', '.join(strange)}, expected {' and '.join(ROLES)}")


def merge_shares(parts: Sequence[ShareResult], space: ConceptSpace) -> SearchResult:
    """Merge shares as if one search had made all probes; the result does not depend on their order.

    A probe counts once per role, as in an undivided search, although shares with separate items never make the same
    one. The policies of the shares are kept: the result is their mixture. Raises a UsageError if two shares answer the
    same probe differently.
    """
    parts = sorted(parts, key=lambda part: part.part)
    probes = pd.concat([part.probes for part in parts], ignore_index=True)
    whose = np.repeat([part.part for part in parts], [len(part.probes) for part in parts])
    role = probes["role"].to_numpy() != ROLES[0]
    rows = np.lexsort([whose, probes["order"].to_numpy(), role])
    probes, whose = probes.iloc[rows].reset_index(drop=True), whose[rows]
    same = ["role", "item", *space.names, "repeat"]
    again = probes.duplicated(same)
    if again.any():
        differing = probes[~probes.duplicated([*same, "discrepancy"])].duplicated(same)
        if differing.any():
            item = probes.loc[differing.index[differing][0], "item"]
            raise UsageError(f"two shares answer the same probe of item {item!r} differently")
        probes, whose = probes[~again].reset_index(drop=True), whose[~again.to_numpy()]
    probes["order"] = probes.groupby("role", sort=False).cumcount().astype(np.int64)
    curves, metrics, numbers = {}, {}, [part.part for part in parts]
    for name in ROLES:
        if not (mine := (probes["role"] == name).to_numpy()).any():
            continue
        failed = probes.loc[mine, "failed"].to_numpy()
        curves[name] = _curve(failed)
        metrics[name] = _metrics([part.metrics[name] for part in parts], probes[mine], space)
        metrics[name] |= {
            "shards": len(parts),
            "shard_probes": np.bincount(whose[mine], minlength=numbers[-1] + 1)[numbers].tolist(),
            "shard_failures": np.bincount(whose[mine][failed], minlength=numbers[-1] + 1)[numbers].tolist(),
        }
    policies = [part.policy for part in parts if part.policy is not None]
    return SearchResult(probes, Mixture(policies) if policies else None, curves, metrics, "agent" not in metrics)


def _curve(failed: np.ndarray) -> list[tuple[int, int]]:
    found = np.concatenate([[0], failed.cumsum()])
    at = np.unique(np.linspace(0, len(failed), CURVE_POINTS + 1).astype(np.int64))
    return list(zip(at.tolist(), found[at].tolist(), strict=True))


def _metrics(each: Sequence[Mapping[str, Any]], probes: pd.DataFrame, space: ConceptSpace) -> dict[str, Any]:
    """Sum the totals, and keep the explorers' own numbers only if all shares agree: entropies, say, have no sum."""
    failures = int(probes["failed"].sum())
    alike = {key: value for key, value in each[0].items() if all(other.get(key) == value for other in each)}
    return {
        **alike,
        "budget": sum(int(numbers["budget"]) for numbers in each),
        "probes": len(probes),
        "failures": failures,
        "failure_rate": failures / max(1, len(probes)),
        "failing_cells": len(probes.loc[probes["failed"], space.names].drop_duplicates()),
    }


def ledger_answers(probes: pd.DataFrame, space: ConceptSpace) -> Iterator[tuple[Key, Answer]]:
    """Convert probes.parquet to the keys and answers of a ledger."""
    cells = space.flat(probes[space.names].to_numpy(dtype=np.int64)).tolist()
    keys = zip(probes["item"].tolist(), cells, probes["repeat"].tolist(), strict=True)
    names = ["discrepancy", "failed", "output", "valid", *(name for name in RATED if name in probes)]
    said = zip(*(probes[name].tolist() for name in names), strict=True)
    for key, answer in zip(keys, said, strict=True):
        yield Key(*key), Answer(*answer)


def remove_undeclared(folder: Path, shards: int) -> list[str]:
    """Remove shares of an earlier division, which DVC's cache still contains; returns the names of their folders.

    Discover depends on the whole folder, so shares left from other divisions would make it stale elsewhere.
    """
    declared = {str(part) for part in range(1, shards + 1)} if shards > 1 else set()
    numbered = [p for p in folder.glob("*") if p.is_dir() and p.name.strip(".").partition(".")[0].isdigit()]
    removed = sorted((path for path in numbered if path.name not in declared), key=lambda path: path.name)
    for path in removed:
        shutil.rmtree(path)
    return [path.name for path in removed]
