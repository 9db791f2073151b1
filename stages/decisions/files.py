"""Decision files: data/<audit>/decisions/<landscape hash>.yaml, and .2.yaml, .3.yaml for further ones on it.

They belong in git. Each names the hashes of those before it, so that none but the newest can be changed or taken away
unseen; the newest is pinned by git, and by the evidence of an audit (`faded evidence`).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.decisions.model import AlreadyDecided, Decision, Recorded, Via
from stages.environment import WORK
from stages.errors import UsageError
from stages.files import content_hash, read_json, stage_dir
from stages.params import DATA, Params, Strict, validation_lines
from stages.provenance import scale_of

SCHEMA = 2

D = TypeVar("D", bound=Strict)


@dataclass(frozen=True)
class Kept(Generic[D]):
    """A decision with its file and the SHA-256 of that."""

    path: Path
    sha256: str
    decision: D


@dataclass(frozen=True)
class Standing:
    """What has been decided on one landscape so far.

    Args:
        landscape: its hash.
        kept: the decisions that count, in the order they were made, see `counting`.
        needed: how many reviewers have to approve (`feedback.reviewers`).
    """

    landscape: str
    kept: tuple[Kept[Recorded], ...]
    needed: int

    @property
    def decisions(self) -> list[Recorded]:
        """The decisions that count."""
        return [kept.decision for kept in self.kept]

    @property
    def rejection(self) -> Recorded | None:
        """The first decision that says no: one is enough to end the audit."""
        return next((decision for decision in self.decisions if not decision.approve), None)

    @property
    def complete(self) -> bool:
        """Whether the pipeline can go on, or is ended."""
        return self.rejection is not None or len(self.kept) >= self.needed

    @property
    def missing(self) -> int:
        """How many more reviewers are asked."""
        return 0 if self.complete else self.needed - len(self.kept)


def decisions_dir(audit: str) -> Path:
    """Where the decisions of an audit lie."""
    return DATA / audit / "decisions"


def landscape_hash(audit: str) -> str:
    """The hash a decision is bound to: over landscape.parquet and landscape.json of the audit's summarize stage."""
    folder = stage_dir(audit, "summarize")
    files = [folder / "landscape.parquet", folder / "landscape.json"]
    for file in files:
        if not file.exists():
            raise UsageError(f"{file} is missing: there is no landscape to decide on yet, run `faded audit {audit}`")
    return content_hash(files)


def scale_hash(params: Params, audit: str) -> str:
    """Hash of what defines an audit's discrepancies, apart from what was learnt from ratings."""
    return scale_of(params.audit(audit))


def record_decision(
    params: Params,
    audit: str,
    decision: Decision,
    via: Via,
    *,
    revise: bool = False,
    seen: Sequence[str] | None = None,
) -> Kept[Recorded]:
    """Write a decision; it appears whole or not at all, and never in the place of another one.

    Args:
        params: the workspace's, for how many reviewers are asked.
        audit: whose landscape it is on.
        decision: what the person said.
        via: how it came in.
        revise: it takes the place of the reviewer's own decision on this landscape and of a time-out, or of all on it
            if there is neither.
        seen: SHA-256 of the decisions on it that the reviewer was shown; a revision takes the place of no other.

    Raises:
        UsageError: when it is for another landscape than the present one, or names modes or examples that it lacks.
        AlreadyDecided: when the landscape needs no further decision, the reviewer has made one, or a revision would
            take the place of one that was not `seen`.
    """
    check_fits(audit, decision)
    with recording(audit):
        now = standing(params, audit)
        replaced = _replaced(now, decision.reviewer) if revise else ()
        if not revise:
            _refuse_second(audit, now, decision.reviewer)
        elif seen is not None and (unseen := [kept.decision for kept in replaced if kept.sha256 not in seen]):
            raise AlreadyDecided(f"{_said(audit, unseen[-1])}, which you were not shown: look at it first", unseen[-1])
        chain = read_chain(audit)
        followed = {sha for kept in chain for sha in kept.decision.previous}
        shown = shown_examples(read_json(stage_dir(audit, "summarize") / "landscape.json")["modes"])
        about = ("mode", "item", "cell", "output", "discrepancy")
        probes = [{**e.model_dump(), **{key: shown[e.id][key] for key in about}} for e in decision.examples]
        recorded = Recorded(
            **{**decision.model_dump(), "examples": probes},
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            tool=f"faded {version('faded')}",
            via=via,
            scale=scale_hash(params, audit),
            previous=sorted(kept.sha256 for kept in chain if kept.sha256 not in followed),
            revises=[kept.sha256 for kept in replaced],
        )
        return _write(audit, recorded)


def _refuse_second(audit: str, now: Standing, reviewer: str) -> None:
    """Refuse what would overwrite somebody's word silently."""
    own = [d for d in now.decisions if same_person(d.reviewer, reviewer)]
    if not (own or now.complete):
        return
    said = (own or [now.rejection or now.decisions[-1]])[0]
    raise AlreadyDecided(
        f"{_said(audit, said)}, so a second decision is refused; to decide again on purpose say --revise, the first one"
        " stays in the record",
        said,
    )


def _said(audit: str, decision: Recorded) -> str:
    word = "approved" if decision.approve else "rejected"
    return f"{decision.reviewer} {word} landscape {decision.landscape} of {audit} at {decision.time} ({decision.via})"


def _replaced(now: Standing, reviewer: str) -> tuple[Kept[Recorded], ...]:
    # Behind a time-out stands nobody, so whoever decides after all lifts it.
    own = (k for k in now.kept if k.decision.via == "time-out" or same_person(k.decision.reviewer, reviewer))
    return tuple(own) or now.kept


def same_person(a: str, b: str) -> bool:
    """Whether two names are one reviewer's: case and spaces do not make another person."""
    return " ".join(a.split()).casefold() == " ".join(b.split()).casefold()


def _write(audit: str, recorded: Recorded) -> Kept[Recorded]:
    folder = decisions_dir(audit)
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump({"schema": SCHEMA, **recorded.model_dump(exclude_none=True)}, text)
    data = text.getvalue().encode("utf-8")
    partial = folder / f".{recorded.landscape}.{os.getpid()}-{threading.get_ident()}.partial"
    partial.write_bytes(data)
    try:
        path, number = folder / f"{recorded.landscape}.yaml", 1
        while True:
            try:
                os.link(partial, path)  # unlike a rename, refuses to take another file's place
                break
            except FileExistsError:
                number += 1
                path = folder / f"{recorded.landscape}.{number}.yaml"
    finally:
        partial.unlink()
    return Kept(path, hashlib.sha256(data).hexdigest(), recorded)


@contextmanager
def recording(audit: str) -> Iterator[None]:
    """Keep every other process and thread of the workspace from recording a decision on an audit."""
    WORK.mkdir(exist_ok=True)
    with (WORK / f"decisions-{audit}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def standing(params: Params, audit: str) -> Standing:
    """What has been decided on the audit's present landscape.

    Raises:
        UsageError: when a file is no decision, is for another landscape than its name says, or the chain is broken.
    """
    present = landscape_hash(audit)
    chain = read_chain(audit)
    for kept in chain:
        if kept.path.name.partition(".")[0] != kept.decision.landscape:
            raise UsageError(
                f"{kept.path} decides on landscape {kept.decision.landscape} (by {kept.decision.reviewer}), not on the"
                f" one in its name: look at the present one and decide again, `faded review {audit}`"
            )
    own = tuple(kept for kept in counting(chain) if kept.decision.landscape == present)
    for kept in own:
        check_fits(audit, kept.decision, kept.path)
    return Standing(present, own, params.repair(audit).feedback.reviewers)


def counting(chain: Sequence[Kept[Recorded]]) -> list[Kept[Recorded]]:
    """Those of a chain that count: the last one of each person on a landscape, unless another one revised it.

    One person may have two where files were copied, or branches of git were merged.
    """
    revised = {sha for kept in chain for sha in kept.decision.revises}
    last = [
        kept
        for i, kept in enumerate(chain)
        if not any(
            later.decision.landscape == kept.decision.landscape
            and same_person(later.decision.reviewer, kept.decision.reviewer)
            for later in chain[i + 1 :]
        )
    ]
    return [kept for kept in last if kept.sha256 not in revised]


def read_chain(audit: str) -> list[Kept[Recorded]]:
    """All decisions of an audit, each after those it follows.

    Raises:
        UsageError: when a file is no decision, or one that another follows was changed or is missing.
    """
    return order_chain([_read(path) for path in sorted(decisions_dir(audit).glob("*.yaml"))])


def order_chain(kept: Sequence[Kept[Recorded]]) -> list[Kept[Recorded]]:
    """Put decisions in their order.

    Raises:
        UsageError: when one follows a decision that is not there as it was.
    """
    ordered: list[Kept[Recorded]] = []
    left = sorted(kept, key=lambda k: (k.decision.time, k.path.name))
    while left:
        seen = {k.sha256 for k in ordered}
        following = next((k for k in left if seen.issuperset(k.decision.previous)), None)
        if following is None:
            lost = next(k for k in left)
            raise UsageError(
                f"the decisions in {lost.path.parent} were changed: {lost.path.name} (by {lost.decision.reviewer},"
                f" {lost.decision.time}) follows one that is missing or no longer as it was then; restore it from git"
            )
        ordered.append(following)
        left.remove(following)
    return ordered


def _read(path: Path) -> Kept[Recorded]:
    data = path.read_bytes()
    return Kept(path, hashlib.sha256(data).hexdigest(), parse_decision(data, path, Recorded))


def read_draft(path: Path) -> Decision:
    """Read a decision written by hand: one without time, tool and chain, which are put to it when it is recorded.

    Raises:
        UsageError: when it is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    return parse_decision(data, path, Decision)


def parse_decision(data: bytes, path: Path, model: type[D]) -> D:
    """Read the bytes of a decision file; `path` is for messages.

    Raises:
        UsageError: when they are none.
    """
    try:
        raw: dict[str, Any] = dict(YAML(typ="safe").load(data.decode("utf-8")))
        schema = raw.pop("schema", None)
    except (YAMLError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if schema != SCHEMA:
        raise UsageError(
            f"{path} has schema {schema}, this version reads {SCHEMA}"
            " (`faded review AUDIT --from FILE` records one that was written by hand)"
        )
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"{path} is no decision:\n  " + "\n  ".join(validation_lines(error, model))) from None


def check_fits(audit: str, decision: Decision, path: Path | None = None) -> None:
    """Check that a decision is about the present landscape, and says something of each of its modes.

    Raises:
        UsageError: when it is not; `path` is its file, if it has one.
    """
    present = landscape_hash(audit)
    where = str(path or decisions_dir(audit) / f"{decision.landscape}.yaml")
    if decision.landscape != present:
        raise UsageError(
            f"{where} decides on landscape {decision.landscape} (by {decision.reviewer}), but the present landscape of"
            f" {audit} is {present}: look at it and decide again, `faded review {audit}`"
        )
    modes = read_json(stage_dir(audit, "summarize") / "landscape.json")["modes"]
    known = [m["id"] for m in modes]
    unknown = [m.id for m in decision.modes if m.id not in known]
    undecided = [m for m in known if m not in {d.id for d in decision.modes}]
    if unknown or undecided:
        what = f"unknown mode(s) {', '.join(unknown)}" if unknown else f"no word on mode(s) {', '.join(undecided)}"
        raise UsageError(f"{where}: {what}; the landscape has {', '.join(known) or 'none'}")
    shown = shown_examples(modes)
    if strange := [e.id for e in decision.examples if e.id not in shown]:
        raise UsageError(f"{where}: unknown example(s) {', '.join(strange)}; the landscape has {_ranges(modes)}")


def shown_examples(modes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Examples the report shows, by their id, with the `mode` of each; none where an older version made the landscape.

    Args:
        modes: as in landscape.json.
    """
    return {e["id"]: {"mode": mode["id"], **e} for mode in modes for e in mode.get("examples", ())}


def _ranges(modes: Sequence[Mapping[str, Any]]) -> str:
    """The ids of all examples, which are numbered within their mode: "M1.1 to M1.12, M2.1 to M2.9"."""
    shown = [mode["examples"] for mode in modes if mode.get("examples")]
    return ", ".join(f"{examples[0]['id']} to {examples[-1]['id']}" for examples in shown) or "none"
