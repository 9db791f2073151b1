"""Runs the audit of a bundle again, from this workspace's code and inputs and the bundle's parameters.

The stages run in a scratch folder that looks like the workspace and has none of its results, caches or answered probes,
so everything is computed. What people decided is not: the plan is the bundle's, which `faded verify` checks against
their decisions.

The numbers of both results are compared, each within the noise with which it was measured: its 95% interval, or for a
distance the measured noise floor. Two measurements agree if the interval of their difference contains 0 (Zou and Donner
2008, as in `faded gate`), widened so that all numbers together agree with 95% if nothing but chance differs
(Bonferroni).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import hypot
from pathlib import Path
from statistics import NormalDist
from typing import Any

from flows.evidence.beside import Reproduction
from flows.evidence.bundle import LOCK, PARAMS, Bundle, digest_of, read_bundle, stages_until
from flows.evidence.signature import TIME
from flows.evidence.write import problems_of
from flows.graph.lock import digests_of, files_below
from flows.workspace import stage_environment
from stages.code import CODE, Code
from stages.core.environment import WORK
from stages.core.errors import Exit, InfrastructureError, UsageError, escape_controls
from stages.core.intervals import LEVEL
from stages.params import DATA, Params, load_params
from stages.records import audit_folder

_RESULTS = (
    *("summarize/landscape.json", "report/verdict.json"),
    *("compare/comparison.json", "conclude/verdict.json"),
)
_DECIDED = "collect_feedback"
_NOT_SHARED = {DATA.name, WORK.name, PARAMS, LOCK}
_TAIL = 15  # lines of a stage's output shown with an error
_MOST_NAMED = 50  # deviations in the statement
_MACHINE = ("platform", "python", "device", "backend", "dtype", "versions", "plugins")
_WITH_PLAIN_BOUNDS = ("value", "rate", "change")  # their interval is `low` and `high`; that of x is x_low and x_high
_FOUND = (".modes[", ".failures_moved.regions[")  # what one result has and the other has not is a difference by itself


@dataclass(frozen=True)
class Reproduced:
    """A bundle's audit, run again: the numbers that are not the same, and the folder of results that do not agree."""

    bundle: Path
    reproduction: Reproduction
    deviations: Sequence[Deviation]
    results: Path | None
    statement: Path | None = None


def reproduce_bundle(path: Path, say: Callable[[str], None]) -> Reproduced:
    """Run a bundle's audit again, and compare the results with the bundle's; `say` gets each line that stages print.

    The current folder is the workspace. A killed run resumes after the last stage that it finished. Raises a UsageError
    if the bundle does not hold, or code or inputs here are not those it names; an InfrastructureError if a stage fails.
    """
    if problems := problems_of(path):
        raise UsageError(f"{path} does not hold, so there is nothing to reproduce: {problems[0]}")
    bundle = read_bundle(path)
    scratch = WORK / "reproduce" / digest_of(bundle.members)[:16]
    home, last = scratch / DATA / bundle.audit, bundle.last_stage
    if (home / last / "provenance.json").exists():  # of a run that ended: what it found must not count twice
        shutil.rmtree(scratch)
    _check_inputs(bundle)
    params = _lay_out(bundle, scratch)
    _check_code(bundle, params, home)
    ran = _run_stages(bundle, params, scratch, say)
    again = _documents(bundle, lambda name: (scratch / name).read_bytes())
    likeness = compare_results(_documents(bundle, bundle.member), again)
    found = _predicate(bundle, ran, likeness, scratch)
    if found.agrees:
        shutil.rmtree(scratch)
    return Reproduced(path, found, likeness.deviations, None if found.agrees else home)


def _check_inputs(bundle: Bundle) -> None:
    named = bundle.manifest["parts"].get("inputs", {})
    for file in files_below(DATA / bundle.audit / "inputs"):
        if file.as_posix() not in named and not file.name.startswith("."):
            raise UsageError(
                f"{file} is not one of the inputs of the bundle's audit: remove it, or use a clone without it"
            )
    for name, entry in named.items():
        if not Path(name).is_file():
            raise UsageError(f"{name} is missing here, and the bundle's audit read it: `dvc pull`, or copy it here")
        if (found := digests_of(Path(name)).md5) != entry["md5"]:
            raise UsageError(f"{name} is not what the bundle's audit read: expected MD5 {entry['md5']}, found {found}")


def _lay_out(bundle: Bundle, scratch: Path) -> Params:
    """Make a folder with links to the workspace's files, and with the bundle's parameters and decisions."""
    home = scratch / DATA / bundle.audit
    home.mkdir(parents=True, exist_ok=True)
    own = {*stages_until("conclude"), "shards", "decisions", "evidence", CODE.name}
    for folder, to, left_out in (
        (Path(), scratch, _NOT_SHARED),
        (DATA, scratch / DATA, {bundle.audit}),
        (DATA / bundle.audit, home, own),
    ):
        for entry in folder.iterdir() if folder.is_dir() else ():
            link = to / entry.name
            if entry.name not in left_out and not entry.name.startswith(".") and not link.is_symlink():
                link.symlink_to(entry.absolute())
    (home / "shards").mkdir(exist_ok=True)
    given = {PARAMS: bundle.member(PARAMS), **bundle.decisions}
    if bundle.ratings in bundle.members:
        given[bundle.ratings] = bundle.member(bundle.ratings)
    for name, data in given.items():
        file = scratch / name
        file.unlink(missing_ok=True)  # never write through a link
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
    return load_params(scratch / PARAMS)


def _check_code(bundle: Bundle, params: Params, home: Path) -> None:
    """Refuse code that is not the bundle's, by the hash of what each stage can reach."""
    written = Code().written(params.audit(bundle.audit))
    (home / CODE).write_text(written, encoding="utf-8")
    here, stages = json.loads(written), bundle.yaml(LOCK)["stages"]
    other = []
    for kind in stages_until(bundle.last_stage):
        named = stages[f"{kind}@{bundle.audit}"].get("params", {}).get((DATA / bundle.audit / CODE).as_posix(), {})
        if kind != _DECIDED and named.get(kind) != here[kind]:
            other.append(kind)
    if other:
        git = bundle.manifest["git"]
        where = f"expected that of revision {git['revision'] or 'unknown'}" + (
            ", with changes that were not committed" if git["dirty"] else ""
        )
        raise UsageError(
            f"the code of {', '.join(other)} here is not what the bundle's audit ran, {where}: reproduce it in a clone"
            " at that revision, with the same version of faded and of plugins"
        )


def _run_stages(bundle: Bundle, params: Params, scratch: Path, say: Callable[[str], None]) -> list[str]:
    """Run what has not run yet; return the stages that were computed here."""
    audit, ran = bundle.audit, []
    home = scratch / DATA / audit
    people = audit in params.repairs and params.repair(audit).feedback.policy == "wait"
    for kind in stages_until(bundle.last_stage):
        if kind == _DECIDED and people:
            folder = home / kind
            folder.mkdir(exist_ok=True)
            for name, data in bundle.members.items():
                if name.startswith(f"{DATA / audit / kind}/"):
                    (scratch / name).write_bytes(data)
            say(f"{kind}: taken from the bundle, as people decided")
            continue
        ran.append(kind)
        if kind == "discover":
            for share in params.shares.values():
                if not (home / "shards" / str(share["part"]) / "provenance.json").exists():
                    _run("explore", [audit, str(share["part"])], scratch, say)
        if not (home / kind / "provenance.json").exists():
            _run(kind, [audit], scratch, say)
    return ran


def _run(kind: str, arguments: list[str], scratch: Path, say: Callable[[str], None]) -> None:
    say(f"{kind}: starts")
    lines: deque[str] = deque(maxlen=_TAIL)
    command = [sys.executable, "-m", f"stages.{kind}", *arguments]
    with subprocess.Popen(
        command, cwd=scratch, env=stage_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(escape_controls(line.rstrip()))
            say(f"  {lines[-1]}")
    if process.returncode:
        error = UsageError if process.returncode == Exit.USAGE else InfrastructureError
        raise error(f"{kind} exited with {process.returncode}:\n" + "\n".join(f"  {line}" for line in lines))


def _documents(bundle: Bundle, read: Callable[[str], bytes]) -> dict[str, Any]:
    names = {name: f"{DATA / bundle.audit}/{name}" for name in _RESULTS}
    return {short: json.loads(read(name)) for short, name in names.items() if name in bundle.members}


def _predicate(bundle: Bundle, ran: list[str], likeness: Likeness, scratch: Path) -> Reproduction:
    same: dict[str, bool] = {}
    for kind in ran:
        for name, entry in bundle.below(f"{DATA / bundle.audit / kind}").items():
            # Provenance says where the stage ran, so it may differ.
            if name != "provenance.json" and "sha256" in entry:
                file = scratch / DATA / bundle.audit / kind / name
                same[f"{kind}/{name}"] = file.is_file() and digests_of(file).sha256 == entry["sha256"]
    others = [name for name, equal in same.items() if not equal]
    beyond = [deviation_text(one) for one in likeness.beyond]
    more = [f"and {len(beyond) - _MOST_NAMED} more"] if len(beyond) > _MOST_NAMED else []
    made = audit_folder(bundle.audit, scratch).stages[bundle.last_stage].provenance.to_json()
    return Reproduction(
        reproduced_on=datetime.now(UTC).strftime(TIME),
        stages=ran,
        agrees=not beyond,
        files=len(same),
        other_files=others[:_MOST_NAMED],
        judged=likeness.judged,
        equal=likeness.equal,
        within_noise=len(likeness.deviations) - len(beyond),
        beyond_noise=beyond[:_MOST_NAMED] + more,
        rest=likeness.rest,
        machine={key: made[key] for key in _MACHINE if key in made},
    )


def deviation_text(deviation: Deviation) -> str:
    """A deviation in words."""
    ours, theirs = (
        "nothing" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x)
        for x in (deviation.ours, deviation.theirs)
    )
    noise = "" if deviation.noise is None else f", which may differ by {deviation.noise:.2g}"
    return f"{deviation.where}: {ours} in the bundle, {theirs} here{noise}"


_Number = tuple[Any, tuple[float, float] | None]  # a value, and between which bounds chance may move it, if measured


@dataclass(frozen=True)
class Deviation:
    """A value that is not the same in both results, `ours` in the bundle; None where one of them lacks it.

    `noise` is by how much the two may differ in this direction; `beyond`: they differ by more.
    """

    where: str
    ours: Any
    theirs: Any
    noise: float | None
    beyond: bool


@dataclass(frozen=True)
class Likeness:
    """How two results compare.

    Judged are values with a known noise, and those that have to be equal: verdicts, and which failure modes were found.
    Those that are not equal are deviations. The rest are others that differ: counts, losses, texts.
    """

    judged: int
    equal: int
    deviations: Sequence[Deviation]
    rest: int

    @property
    def beyond(self) -> list[Deviation]:
        """What no noise explains."""
        return [one for one in self.deviations if one.beyond]


def compare_results(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Likeness:
    """Compare two results, each a document of plain data by file name."""
    a, b = dict(_numbers(ours)), dict(_numbers(theirs))
    # By how much to widen 95% intervals so that all of them hold together.
    normal, tail = NormalDist(), (1 - LEVEL) / 2
    measured = max(sum(bounds is not None for _, bounds in a.values()), 1)
    wider = normal.inv_cdf(1 - tail / measured) / normal.inv_cdf(1 - tail)
    judged = equal = rest = 0
    deviations = []
    for where in dict.fromkeys([*a, *b]):
        both = [of[where] for of in (a, b) if where in of]
        alone, known = len(both) == 1, all(bounds is not None for _, bounds in both)
        strict = where.endswith(".passed") or (alone and known and any(part in where for part in _FOUND))
        if not strict and (alone or not known):
            rest += alone or both[0] != both[1]
            continue
        judged += 1
        values: list[Any] = [of[where][0] if where in of else None for of in (a, b)]
        x, y = values
        if x == y and not alone:
            equal += 1
        else:
            noise = None if strict else wider * _noise(*both)
            deviations.append(Deviation(where, x, y, noise, noise is None or abs(x - y) > noise))
    return Likeness(judged, equal, deviations, rest)


def _noise(one: _Number, other: _Number) -> float:
    """The half-width of the interval of a difference, on the side towards 0."""
    (lower, above), (upper, below) = sorted((one, other), key=lambda number: number[0])
    assert above is not None and below is not None
    return hypot(above[1] - lower, upper - below[0])


def _numbers(value: Any, where: str = "") -> Iterator[tuple[str, _Number]]:
    """All leaves of a document but the bounds of intervals, by their places."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{where}.{key}" if where else str(key)
            if isinstance(inner, Mapping | list):
                yield from _numbers(inner, place)
            elif not key.endswith(("_low", "_high")) and key not in ("low", "high"):
                yield place, (inner, _bounds(value, key))
    elif isinstance(value, list):
        names = [_name(inner) for inner in value]
        if not all(names) or len(set(names)) < len(names):
            names = [str(i) for i in range(len(value))]
        for name, inner in zip(names, value, strict=True):
            yield from _numbers(inner, f"{where}[{name}]")
    else:
        yield where, (value, None)


def _name(entry: Any) -> str:
    """What a list's entry is about, by which two lists are aligned: a mode's id says only its place."""
    if not isinstance(entry, Mapping):
        return ""
    named = (entry.get(key) for key in ("gate", "text", "attribute", "concept", "label", "value"))
    return " ".join(name for name in named if isinstance(name, str))


def _bounds(of: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    if not isinstance(of[key], int | float):
        return None
    floor = of.get("noise_floor")
    if isinstance(floor, Mapping) and isinstance(of[key], float):
        most = floor.get("max") if key == "distance" else (floor.get(key) or {}).get("max") if key in floor else None
        if isinstance(most, int | float):
            return of[key] - most, of[key] + most
    names = ("low", "high") if key in _WITH_PLAIN_BOUNDS else (f"{key}_low", f"{key}_high")
    low, high = (of.get(name) for name in names)
    return (low, high) if isinstance(low, int | float) and isinstance(high, int | float) else None
