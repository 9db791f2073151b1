"""Two revisions of an audit side by side, on what they have in common; unlike runs are refused, with the difference."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.errors import UsageError
from stages.files import stage_dir
from stages.landscape.intervals import Rate, Resampler

WORKSPACE = "workspace"
_RESAMPLES = 2000
# Of provenance.json. Runs that differ in the first are not alike; of the others it is said, for they may explain some.
_ALIKE = ("data", "device", "dtype", "task")
_TOLD = ("seed", "threads", "batch_size")
_PACKAGES = ("torch", "numpy")


@dataclass(frozen=True)
class Row:
    """One rate in both revisions."""

    what: str
    a: Rate
    b: Rate


@dataclass(frozen=True)
class Paired:
    """The mean difference of failures (b minus a) over common control probes, with a 95% bootstrap interval."""

    items: int
    difference: Rate


@dataclass(frozen=True)
class Comparison:
    """What two revisions of an audit say."""

    audit: str
    rev_a: str
    rev_b: str
    rates: list[Row]
    paired: Paired | None
    notes: list[str]


@dataclass(frozen=True)
class Run:
    """What one revision holds of an audit."""

    revision: str
    landscape: dict[str, Any]
    provenance: dict[str, Any]
    probes: pd.DataFrame


def compare_revisions(rev_a: str, rev_b: str, audit: str) -> Comparison:
    """Compare the landscapes of an audit in two git revisions (or the workspace).

    Raises:
        UsageError: when a revision lacks the audit, or the runs are not alike.
    """
    a, b = read_run(rev_a, audit), read_run(rev_b, audit)
    check_alike(a, b)
    effects_b = _effects(b.landscape)
    rates = [Row("overall", Rate(**a.landscape["overall"]), Rate(**b.landscape["overall"]))]
    rates += [Row(what, rate, effects_b[what]) for what, rate in _effects(a.landscape).items() if what in effects_b]
    names = [concept["name"] for concept in a.landscape["concepts"]]
    return Comparison(audit, rev_a, rev_b, rates, paired_difference(a.probes, b.probes, names), differences(a, b))


def read_run(revision: str, audit: str) -> Run:
    """Read an audit's results at a revision, from git and DVC's cache."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    try:
        files = DVCFileSystem(".", rev=None if revision == WORKSPACE else revision)
        summary, discover = stage_dir(audit, "summarize"), stage_dir(audit, "discover")

        def read(path: Any) -> bytes:
            if revision == WORKSPACE:
                return bytes(path.read_bytes())
            return bytes(files.read_bytes(path.as_posix()))

        return Run(
            revision,
            json.loads(read(summary / "landscape.json")),
            json.loads(read(discover / "provenance.json")),
            pd.read_parquet(io.BytesIO(read(discover / "probes.parquet"))),
        )
    except FileNotFoundError as error:
        raise UsageError(
            f"{revision} has no results of audit {audit!r} here ({error}): they were made elsewhere;"
            " `dvc fetch --all-commits` gets them from a remote, else commit results of your own first"
        ) from None
    except (SCMError, DvcException) as error:
        expected = f"expected a git revision or {WORKSPACE!r}"
        raise UsageError(f"cannot read revision {revision!r}: {error}; {expected}") from None


def check_alike(a: Run, b: Run) -> None:
    """Refuse to compare runs that differ in more than the model.

    Raises:
        UsageError: naming every difference.
    """
    pairs = [(name, a.landscape.get(name), b.landscape.get(name)) for name in ("concepts", "threshold")]
    pairs += [(name, a.provenance.get(name), b.provenance.get(name)) for name in _ALIKE]
    unlike = [f"  {name}: {_short(x)} against {_short(y)}" for name, x, y in pairs if x != y]
    if unlike:
        what = f"{a.revision} and {b.revision} are not alike, so their rates do not compare"
        raise UsageError(f"{what}:\n" + "\n".join(unlike))


def differences(a: Run, b: Run) -> list[str]:
    """What else differs between two runs that are alike, in words."""

    def told(run: Run) -> dict[str, Any]:
        versions = run.provenance.get("versions", {})
        return {name: run.provenance.get(name) for name in _TOLD} | {name: versions.get(name) for name in _PACKAGES}

    values = [(name, x, told(b)[name]) for name, x in told(a).items()]
    return [f"{name} differs: {_short(x)} against {_short(y)}" for name, x, y in values if x != y]


def paired_difference(a: pd.DataFrame, b: pd.DataFrame, concepts: list[str]) -> Paired | None:
    """Pair the controls' probes by item, cell and repeat, and bootstrap over items.

    The agent's probes are left out: it looks for failures, so what both agents asked is no sample of the grid.
    """
    keys = ["item", *concepts, "repeat"]
    both = _controls(a, keys).merge(_controls(b, keys), on=keys, suffixes=("_a", "_b"))
    if both.empty:
        return None
    difference = (both["failed_b"].astype(float) - both["failed_a"].astype(float)).to_numpy()
    resampler = Resampler(both["item"].to_numpy(), _RESAMPLES, seed=0)
    return Paired(both["item"].nunique(), resampler.mean(difference, np.ones(len(difference))))


def _controls(probes: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    return probes.loc[probes["role"] == "control", [*keys, "failed"]].drop_duplicates(keys)


def _effects(landscape: dict[str, Any]) -> dict[str, Rate]:
    """Main effects, one rate per level of each concept."""
    space = ConceptSpace.from_json(landscape["concepts"])
    labels = {(c.name, i): f"{c.name} {c.label(i)}" for c in space.concepts for i in range(len(c))}
    return {
        labels[effect["concept"], effect["level"]]: Rate(
            effect["rate"], effect["low"], effect["high"], effect["probes"]
        )
        for effect in landscape["effects"]
    }


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "..."
