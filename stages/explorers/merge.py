"""The shares of a divided search, written by one stage each and put together by another.

Whatever order they are read in, the same bytes come out: probes are put in the order in which shares that run side
by side at the same speed would have asked them.
"""

from __future__ import annotations

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
from stages.errors import UsageError
from stages.explorers.policies import load_policy
from stages.explorers.policy import Mixture, Policy, save_policy
from stages.explorers.search import SearchResult
from stages.files import content_hash, read_json, read_table, write_json
from stages.ledger import Answer, Key
from stages.params import AuditConfig
from stages.tasks.contract import ASSETS

ROLES = ("agent", "control")
COLUMNS = ("role", "explorer", "order", "item", "repeat", "uniform", "discrepancy", "failed", "valid", "output")
RATED = ("automatic", "automatic_failed")  # where people's ratings say what a failure is
OPTIONAL = (*RATED, "group")  # the last where items belong together
CURVE_POINTS = 1000  # of a merged curve, at most
SHOWN = 10  # shares named in a message, at most
# Packages whose versions change no answer: of Faded's own code and of the items `origin` tells.
NOT_OF_ANSWERS = frozenset({"faded", "dvc", "prefect", "datasets"})


@dataclass(frozen=True)
class Part:
    """What one share found.

    Args:
        part: which share, from 1.
        probes: in the format of probes.parquet.
        metrics: role -> numbers, as of a search.
        policy: what its agent has learnt, if it learns.
        record: where it comes from, as `write_part` was given it.
    """

    part: int
    probes: pd.DataFrame
    metrics: Mapping[str, Any]
    policy: Policy | None
    record: Mapping[str, Any]


def origin(audit: AuditConfig, prepared: Path) -> dict[str, str]:
    """What all shares of one search have alike, each as a hash: shares that differ in any are not put together.

    Args:
        audit: its block of params.yaml; of that only what a share depends on counts.
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
    """Write what a share found into an empty folder, all of which discover depends on.

    Args:
        folder: where to.
        part: which share, from 1.
        result: what it found.
        record: its provenance with `origin`. What no answer depends on, the commit say, is left out: the same share
            done again is the same files.
    """
    result.probes.to_parquet(folder / "probes.parquet", index=False)
    save_policy(result.policy, folder / "policy")
    write_json(folder / "metrics.json", dict(result.metrics), schema=False)
    versions = {name: told for name, told in record["versions"].items() if name not in NOT_OF_ANSWERS}
    told = {key: value for key, value in record.items() if key != "git"}
    write_json(folder / "share.json", {**told, "versions": versions, "part": part})


def read_parts(folder: Path, shards: int, expected: Mapping[str, str], space: ConceptSpace) -> list[Part]:
    """Read the shares that are declared, and no other that may lie there.

    Args:
        folder: data/<audit>/shards.
        shards: how many are declared.
        expected: what `origin` says now.
        space: the concept space.

    Raises:
        UsageError: when one is missing, of another search, of another machine than others, or not in order.
    """
    parts = [_read(folder, part, expected, space) for part in range(1, shards + 1)]
    alike: dict[str, list[int]] = {}
    for part in parts:
        alike.setdefault(json.dumps(_machine(part.record), sort_keys=True), []).append(part.part)
    if len(alike) > 1:
        raise UsageError(_unlike(folder, alike))
    return parts


def _machine(record: Mapping[str, Any]) -> dict[str, str]:
    """What a share was searched with: the device, and versions of all that answers depend on."""
    return {"device": str(record.get("device")), **record.get("versions", {})}


def _unlike(folder: Path, alike: Mapping[str, Sequence[int]]) -> str:
    """What two kinds of machines differ in, which shares they searched, and the way out."""
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
    shown = ", ".join(map(str, parts[:SHOWN])) + (f" and {len(parts) - SHOWN:,} more" if len(parts) > SHOWN else "")
    return f"share {shown}" if len(parts) == 1 else f"shares {shown}"


def _read(folder: Path, part: int, expected: Mapping[str, str], space: ConceptSpace) -> Part:
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
    return Part(part, probes, read_json(here / "metrics.json"), load_policy(here / "policy"), record)


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


def merge(parts: Sequence[Part], space: ConceptSpace) -> SearchResult:
    """Put shares together as if one search had found it all; in whatever order they come, the result is the same.

    A probe counts once for each role, as in a search that is not divided, though shares with items of their own never
    ask the same. What the shares learnt stays as it is: the policy is their mixture.

    Raises:
        UsageError: when two shares answer the same probe differently.
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
    """Totals, and of what explorers add that which all shares say alike: there is no sum of two entropies."""
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


def answers(probes: pd.DataFrame, space: ConceptSpace) -> Iterator[tuple[Key, Answer]]:
    """What probes.parquet says, as a ledger holds it."""
    cells = space.flat(probes[space.names].to_numpy(dtype=np.int64)).tolist()
    keys = zip(probes["item"].tolist(), cells, probes["repeat"].tolist(), strict=True)
    names = ["discrepancy", "failed", "output", "valid", *(name for name in RATED if name in probes)]
    said = zip(*(probes[name].tolist() for name in names), strict=True)
    for key, answer in zip(keys, said, strict=True):
        yield Key(*key), Answer(*answer)


def remove_undeclared(folder: Path, shards: int) -> list[str]:
    """Remove shares of an earlier division, of which DVC keeps a copy; return the names of their folders.

    Discover depends on the folder as a whole, so what is left of other divisions would make it stale elsewhere.
    """
    declared = {str(part) for part in range(1, shards + 1)} if shards > 1 else set()
    numbered = [p for p in folder.glob("*") if p.is_dir() and p.name.strip(".").partition(".")[0].isdigit()]
    removed = sorted((path for path in numbered if path.name not in declared), key=lambda path: path.name)
    for path in removed:
        shutil.rmtree(path)
    return [path.name for path in removed]
