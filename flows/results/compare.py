"""Two revisions of an audit, read from git and DVC, and paired; runs that differ in more than the model are refused."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flows.results import WORKSPACE
from stages.concepts import ConceptSpace
from stages.core.errors import InfrastructureError, UsageError
from stages.core.git import file_at
from stages.core.intervals import Rate, Resampler
from stages.records import Comparison as Compared
from stages.records import Landscape, Provenance, RateRecord, RepairVerdict, Verdict, audit_folder

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

_RESAMPLES = 2000
# Fields of provenance.json. Runs must agree on the first; differences in the others are reported as possible reasons.
ALIKE = ("data", "device", "backend", "dtype", "task")
TOLD = ("seed", "threads", "batch_size")
_BEFORE = {"backend": "eager"}  # of runs made before this was recorded
PACKAGES = ("torch", "numpy")


class NoResults(UsageError):
    """A revision has no results here; if they are `named` by its dvc.lock, only their bytes are missing."""

    def __init__(self, message: str, *, named: bool) -> None:
        super().__init__(message)
        self.named = named


@dataclass(frozen=True)
class PairedFailures:
    """Failures on common probes: the rates of a and b, and the mean difference (b minus a) with its 95% interval."""

    items: int
    difference: Rate
    a: float
    b: float


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a repair in one revision."""

    comparison: Compared
    verdict: RepairVerdict
    provenance: Provenance
    probes: pd.DataFrame


@dataclass(frozen=True)
class Run:
    """The results of an audit in one revision; `verdict` is on its landscape, `evaluation` is read only on request."""

    revision: str
    landscape: Landscape
    verdict: Verdict
    provenance: Provenance
    probes: pd.DataFrame
    evaluation: Evaluation | None = None
    attributes: pd.DataFrame = field(default_factory=pd.DataFrame)  # what distinguishes its items, a row per item


def read_run(revision: str, audit: str, *, repaired: bool = False) -> Run:
    """Read an audit's results at a revision (of git, or `WORKSPACE`), from git and DVC's cache.

    Raises NoResults if it has no results here; a UsageError if there is no such revision, or this version cannot read
    its results; an InfrastructureError if a file that DVC has differs from the hash in the revision's dvc.lock.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    reading = Path()
    try:
        # In a revision, DVC names files relative to git's root; .dvc may be in a folder below it.
        files = DVCFileSystem(".", rev=None if revision == WORKSPACE else revision, subrepos=True)
        here = Path.cwd().relative_to(Path(files.repo.scm.root_dir).resolve())

        def read(path: Path) -> bytes:
            nonlocal reading
            reading = path
            return path.read_bytes() if revision == WORKSPACE else _read_whole(files, here / path, revision)

        of = audit_folder(audit, read=read)
        landscape, verdict, found = of.summarize.landscape, of.report.verdict, of.discover
        by, probes, attributes, evaluation = found.provenance, found.probes, found.embedded.told_apart, None
        if repaired:
            asked = of.re_evaluate
            evaluation = Evaluation(of.compare.comparison, of.conclude.verdict, asked.provenance, asked.probes)
        return Run(revision, landscape, verdict, by, probes, evaluation, attributes)
    except FileNotFoundError:
        raise _missing(revision, audit, reading) from None
    except UsageError as error:
        raise UsageError(f"cannot read the results of {revision}: {error}") from None
    except (SCMError, DvcException) as error:
        expected = f"expected a git revision or {WORKSPACE!r}"
        raise UsageError(f"cannot read revision {revision!r}: {error}; {expected}") from None


def _read_whole(files: "DVCFileSystem", path: Path, revision: str) -> bytes:
    """Read a file of a revision and check its bytes, since DVC finds it in its cache or a remote by name alone."""
    data = bytes(files.read_bytes(path.as_posix()))
    named = files.info(path.as_posix()).get("dvc_info", {}).get("md5")  # None for files in git
    if named is not None and named != hashlib.md5(data, usedforsecurity=False).hexdigest():
        raise InfrastructureError(
            f"{path} of {revision} does not match its dvc.lock: the object in DVC's cache or remote"
            f" files/md5/{named[:2]}/{named[2:]} was changed; remove it, then `dvc fetch --all-commits`"
        )
    return data


def _missing(revision: str, audit: str, path: Path) -> NoResults:
    if revision == WORKSPACE:
        told = f"the workspace has no {path}: run `faded audit {audit}`, or `dvc pull` if dvc.lock names its results"
        return NoResults(told, named=True)
    if f"path: {path.as_posix()}\n".encode() in (file_at(revision, Path("dvc.lock")) or b""):
        told = (
            f"{revision} has no results of audit {audit!r} here: its dvc.lock names {path}, but the bytes are neither"
            " in DVC's cache of this clone nor on a remote; where they were made: `dvc push`, then here:"
            " `dvc fetch --all-commits`"
        )
        return NoResults(told, named=True)
    told = (
        f"{revision} has no results of audit {audit!r}: its dvc.lock does not name {path}; run `faded audit {audit}`"
        " there and commit dvc.lock"
    )
    return NoResults(told, named=False)


def check_alike(a: Run, b: Run, more: Sequence[str] = ()) -> None:
    """Refuse to compare runs that differ in more than the model. Raises a UsageError with every difference.

    Args:
        more: further fields of provenance.json that have to be the same.
    """
    one, other = measured_as(a), measured_as(b)
    if one["concepts"] != other["concepts"]:  # another grid has other weights, which would say nothing more
        del one["usage"]
    pairs = [(name, x, other[name]) for name, x in one.items()]
    pairs += [(name, made_with(a.provenance, name), made_with(b.provenance, name)) for name in (*ALIKE, *more)]
    if a.evaluation and b.evaluation:
        x, y = a.evaluation.provenance, b.evaluation.provenance
        pairs += [(f"re_evaluate: {name}", made_with(x, name), made_with(y, name)) for name in (*ALIKE, *more)]
    unlike = [line for name, x, y in pairs for line in _unlike(name, x, y)]
    if unlike:
        raise UsageError("\n".join([f"{a.revision} and {b.revision} are not comparable:", *unlike]))


def _unlike(name: str, a: Any, b: Any) -> Iterator[str]:
    """Name the values that differ, each by its path."""
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        for key in a:
            yield from _unlike(f"{name}.{key}", a[key], b[key])
    elif isinstance(a, dict) and isinstance(b, dict):
        yield f"  {name}: {', '.join(a)} against {', '.join(b)}"
    elif a != b:
        yield f"  {name}: {_short(a)} against {_short(b)}"


def made_with(provenance: Provenance, name: str) -> Any:
    """A field of provenance.json by its name, with the default of runs that did not record it."""
    value = getattr(provenance, name)
    if name == "device" and str(value).startswith("cpu"):
        return "cpu"  # whichever CPU, and in whichever way it rounds
    return _BEFORE.get(name) if value is None else value


def measured_as(run: Run) -> dict[str, object]:
    """What the probes of a run are, how common they are in use, and when one fails, as plain data."""
    landscape, usage = run.landscape, run.landscape.usage
    concepts = {concept.name: concept.to_json() for concept in landscape.concepts}
    return {
        "concepts": concepts,
        "usage": "uniform"
        if usage is None
        else {**usage.to_json(), "weights": dict(zip(concepts, usage.weights, strict=True))},
        "threshold": landscape.threshold,
        "ratings that define a failure": landscape.ratings.bound.to_json() if landscape.ratings else {},
    }


def differences(a: Run, b: Run) -> list[str]:
    """Further differences between two comparable runs, as sentences."""

    def told(run: Run) -> dict[str, object]:
        by = run.provenance
        return {name: getattr(by, name) for name in TOLD} | {name: by.versions.get(name) for name in PACKAGES}

    values = [(name, x, told(b)[name]) for name, x in told(a).items()]
    return [f"{name} differs: {_short(x)} against {_short(y)}" for name, x, y in values if x != y]


def paired_difference(a: pd.DataFrame, b: pd.DataFrame, space: ConceptSpace) -> PairedFailures | None:
    """Pair the control's probes by item, cell and repeat, weigh them by use, and bootstrap over items.

    The agent's probes are left out: it searches for failures, so probes that two agents share stand for nothing else.
    None if the tables share no probe.
    """
    a, b = a[a["role"] == "control"], b[b["role"] == "control"]
    keys = ["item", *space.names, "repeat"]
    one, other = (table[[*keys, "failed"]].drop_duplicates(keys) for table in (a, b))
    both = one.merge(other, on=keys, suffixes=("_a", "_b"))
    if both.empty:
        return None
    failed_a, failed_b = (both[name].to_numpy(dtype=float) for name in ("failed_a", "failed_b"))
    groups = both["item"].map(a.drop_duplicates("item").set_index("item")["group"]) if "group" in a else None
    resampler = Resampler(both["item"], _RESAMPLES, 0, groups)
    weights = space.weights(both[space.names].to_numpy(dtype=np.int64), both["item"].nunique())
    difference = resampler.mean(failed_b - failed_a, weights)
    return PairedFailures(both["item"].nunique(), difference, float(weights @ failed_a), float(weights @ failed_b))


def effect_rates(landscape: Landscape) -> dict[str, Rate]:
    """Main effects, one rate per level of each concept."""
    labels = {(c.name, i): f"{c.name} {c.label(i)}" for c in landscape.space.concepts for i in range(len(c))}
    rates = ((one, RateRecord(value=one.rate, low=one.low, high=one.high, n=one.probes)) for one in landscape.effects)
    return {labels[one.concept, one.level]: found.rate for one, found in rates}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "..."
