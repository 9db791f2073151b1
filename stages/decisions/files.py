"""Decision files: data/<audit>/decisions/<landscape hash>.yaml, and .2.yaml, .3.yaml for further ones on it.

They belong in git. Each contains the hashes of those before it, so that all but the newest are protected against
unnoticed changes and removal; the newest is pinned by git, and by the evidence of an audit (`faded evidence`).
"""

import contextlib
import hashlib
import io
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from stages.core.errors import UsageError, one_line
from stages.core.files import content_hash, decisions_lock, new_file
from stages.decisions.identity import check_keys, identity_of, sign, signed_bytes
from stages.decisions.model import AlreadyDecided, Decision, ExampleRating, RatedProbe, RecordedDecision, Via
from stages.decisions.names import look_alike, same_person
from stages.params import DATA, Params, Strict, validation_lines
from stages.provenance import scale_of
from stages.records import Example, ModeRecord, audit_folder

SCHEMA = 2
_MOST = 5_000_000  # bytes of a file; the review page accepts a fifth of that

D = TypeVar("D", bound=Strict)


@dataclass(frozen=True)
class DecisionFile:
    """A decision with its file and the file's SHA-256."""

    path: Path
    sha256: str
    decision: RecordedDecision


@dataclass(frozen=True)
class Standing:
    """The decisions on one landscape so far.

    Args:
        kept: the decisions that count, in the order they were made, see `valid_decisions`.
        needed: number of reviewers who have to approve (`feedback.reviewers`).
        problems: why other decisions on it do not count, one sentence each.
    """

    landscape: str
    kept: tuple[DecisionFile, ...]
    needed: int
    problems: tuple[str, ...] = ()

    @property
    def decisions(self) -> list[RecordedDecision]:
        """The decisions that count."""
        return [kept.decision for kept in self.kept]

    @property
    def rejection(self) -> RecordedDecision | None:
        """The first decision that rejects: one is enough to end the audit."""
        return next((decision for decision in self.decisions if not decision.approve), None)

    @property
    def complete(self) -> bool:
        """Whether the pipeline can continue, or has ended."""
        return self.rejection is not None or len(self.kept) >= self.needed

    @property
    def missing(self) -> int:
        """Number of further reviewers needed."""
        return 0 if self.complete else self.needed - len(self.kept)


def listed_keys(params: Params, audit: str) -> Mapping[str, str]:
    """Return the public keys of an audit's reviewers by name; empty if names are not verified.

    Raises a UsageError if params.yaml lists an invalid key, or names that cannot be distinguished.
    """
    keys = params.repairs[audit].feedback.keys if audit in params.repairs else {}
    check_keys(keys)
    return keys


def decisions_dir(audit: str) -> Path:
    """Return the folder of an audit's decisions."""
    return DATA / audit / "decisions"


def landscape_hash(audit: str) -> str:
    """Hash landscape.parquet and landscape.json of the audit's summarize stage, to which a decision is bound."""
    folder = audit_folder(audit).summarize
    files = [folder.where("cells"), folder.where("landscape")]
    for file in files:
        if not file.exists():
            raise UsageError(f"{file} is missing: there is no landscape to decide on yet, run `faded audit {audit}`")
    return content_hash(files)


def record_decision(
    params: Params,
    audit: str,
    decision: Decision,
    via: Via,
    *,
    revise: bool = False,
    seen: Sequence[str] | None = None,
    key: Any = None,
) -> DecisionFile:
    """Write a decision atomically, without ever replacing another one.

    Raises a UsageError if it is for another landscape than the current one, names unknown modes or examples, lacks a
    required reason, is by someone who could be mistaken for another, or is not signed with a listed key; AlreadyDecided
    if the landscape needs no further decision, the reviewer has made one, or a revision would replace one that was not
    `seen`.

    Args:
        params: the workspace's parameters, with the number of reviewers needed.
        revise: whether it replaces the reviewer's own decision on this landscape and a time-out, or all decisions on it
            if there is neither.
        seen: SHA-256 of the decisions on it that the reviewer was shown; a revision replaces no others.
        key: the reviewer's private key, if keys are listed; see `flows.people.signing`.
    """
    check_fits(audit, decision)
    check_said(decision)
    keys = listed_keys(params, audit)
    with decisions_lock(audit):
        now = standing(params, audit)
        replaced = _replaced(now, decision.reviewer) if revise else ()
        if not revise:
            _refuse_second(audit, now, decision.reviewer)
        elif seen is not None and (unseen := [kept.decision for kept in replaced if kept.sha256 not in seen]):
            raise AlreadyDecided(f"{_said(audit, unseen[-1])}, which you were not shown: look at it first", unseen[-1])
        chain = read_chain(audit)
        if via != "time-out":
            refuse_alike(decision.reviewer, chain, keys)
        followed = {sha for kept in chain for sha in kept.decision.previous}
        shown = shown_examples(_modes(audit))
        probes = [_of_probe(rated, *shown[rated.id]) for rated in decision.examples]
        recorded = RecordedDecision(
            **{**decision.model_dump(), "examples": probes},
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            tool=f"faded {version('faded')}",
            via=via,
            scale=scale_of(params.audit(audit)),
            previous=sorted(kept.sha256 for kept in chain if kept.sha256 not in followed),
            revises=[kept.sha256 for kept in replaced],
            audit=audit,
        )
        if keys and key is not None:
            recorded = sign(recorded, key)
        if (why := identity_of(recorded, keys, audit).problem) is not None:
            raise UsageError(f"nothing was recorded: {why}")
        return _write(audit, recorded)


def _of_probe(rated: ExampleRating, mode: ModeRecord, shown: Example) -> RatedProbe:
    """Combine the rating of an example with the probe it is about."""
    return RatedProbe(
        **rated.model_dump(),
        mode=mode.id,
        item=shown.item,
        cell=shown.cell,
        output=shown.output,
        discrepancy=shown.discrepancy,
    )


def refuse_alike(reviewer: str, chain: Sequence[DecisionFile], keys: Mapping[str, str]) -> None:
    """Refuse a name that people could mistake for another reviewer's.

    Raises a UsageError if it could be mistaken.

    Args:
        chain: the audit's decisions so far.
        keys: listed keys, by reviewer.
    """
    if reviewer in keys:
        return  # the name was checked when its key was listed
    if (other := look_alike(reviewer, keys)) is not None:
        raise UsageError(f"{reviewer!r} looks like {other!r}, whose key is listed: expected that name")
    decided = {kept.decision.reviewer: kept.decision for kept in chain}
    if (other := look_alike(reviewer, decided)) is not None:
        raise UsageError(
            f"{reviewer!r} looks like {other!r}, who decided before (landscape {decided[other].landscape},"
            f" {decided[other].time}): if that is you, write the name as you did then; if not, make it distinct"
        )


def _refuse_second(audit: str, now: Standing, reviewer: str) -> None:
    """Refuse a decision that would silently overrule someone's earlier one."""
    own = [d for d in now.decisions if same_person(d.reviewer, reviewer)]
    if not (own or now.complete):
        return
    said = (own or [now.rejection or now.decisions[-1]])[0]
    raise AlreadyDecided(
        f"{_said(audit, said)}, so a second decision is refused; to decide again use --revise; the first one"
        " stays in the record",
        said,
    )


def _said(audit: str, decision: RecordedDecision) -> str:
    word = "approved" if decision.approve else "rejected"
    return f"{decision.reviewer} {word} landscape {decision.landscape} of {audit} at {decision.time} ({decision.via})"


def _replaced(now: Standing, reviewer: str) -> tuple[DecisionFile, ...]:
    # A time-out is nobody's decision, so any later decision lifts it.
    own = (k for k in now.kept if k.decision.via == "time-out" or same_person(k.decision.reviewer, reviewer))
    return tuple(own) or now.kept


def _write(audit: str, recorded: RecordedDecision) -> DecisionFile:
    folder = decisions_dir(audit)
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump({"schema": SCHEMA, **recorded.model_dump(exclude_none=True)}, text)
    data = text.getvalue().encode("utf-8")
    if parse_decision(data, folder, RecordedDecision) != recorded:
        raise UsageError("the decision has characters that a file cannot keep: remove them from its reasons")
    for number in itertools.count(1):
        path = folder / (f"{recorded.landscape}.yaml" if number == 1 else f"{recorded.landscape}.{number}.yaml")
        with contextlib.suppress(FileExistsError):
            new_file(path, data)
            return DecisionFile(path, hashlib.sha256(data).hexdigest(), recorded)
    raise AssertionError


def standing(params: Params, audit: str) -> Standing:
    """Return the decisions on the audit's current landscape.

    Raises a UsageError if a file is not a decision, is for another landscape than its name, or the chain is broken.
    """
    present = landscape_hash(audit)
    chain = read_chain(audit)
    for kept in chain:
        if kept.path.name.partition(".")[0] != kept.decision.landscape:
            raise UsageError(
                f"{kept.path} decides on landscape {kept.decision.landscape} (by {kept.decision.reviewer}), not on the"
                f" one in its name: look at the current one and decide again, `faded review {audit}`"
            )
    keys = listed_keys(params, audit)
    own = tuple(kept for kept in valid_decisions(chain, keys, audit) if kept.decision.landscape == present)
    for kept in own:
        check_fits(audit, kept.decision, kept.path)
    refused = invalid_decisions(chain, keys, audit)
    problems = tuple(f"{kept.path}: {why}" for kept, why in refused if kept.decision.landscape == present)
    return Standing(present, own, params.repair(audit).feedback.reviewers, problems)


def valid_decisions(chain: Sequence[DecisionFile], keys: Mapping[str, str], audit: str) -> list[DecisionFile]:
    """Return the decisions of a chain that count: each person's last one on a landscape, unless another revised it.

    One person may have two if files were copied, or branches of git were merged.

    Args:
        chain: the decisions of one audit in order.
        keys: `repairs.AUDIT.feedback.keys`; if there are any, only decisions signed with them count.
    """
    out = {kept.path for kept, _ in invalid_decisions(chain, keys, audit)}
    valid = [kept for kept in chain if kept.path not in out]
    revised = {sha for kept in valid for sha in kept.decision.revises}
    last = [
        kept
        for i, kept in enumerate(valid)
        if not any(
            later.decision.landscape == kept.decision.landscape
            and same_person(later.decision.reviewer, kept.decision.reviewer)
            for later in valid[i + 1 :]
        )
    ]
    # Compare their content: a copy with an added line has another hash but the same signature.
    gone = {signed_bytes(kept.decision) for kept in valid if kept.sha256 in revised}
    return [kept for kept in last if signed_bytes(kept.decision) not in gone]


def invalid_decisions(
    chain: Sequence[DecisionFile], keys: Mapping[str, str], audit: str
) -> list[tuple[DecisionFile, str]]:
    """Return the decisions of a chain that do not count because of their author, and why.

    Arguments: see `valid_decisions`.
    """
    refused, known = [], list(keys)
    for kept in chain:
        why, name = identity_of(kept.decision, keys, audit).problem, kept.decision.reviewer
        if why is None and (other := look_alike(name, known)) is not None:
            why = f"the decision by {name} does not count: the name looks like {other!r}, who is another reviewer"
        if why is None:
            known.append(name)
        else:
            refused.append((kept, why))
    return refused


def read_chain(audit: str) -> list[DecisionFile]:
    """Read all decisions of an audit, each after those it follows.

    Raises a UsageError if a file is not a decision, or one that another follows was changed or is missing.
    """
    return order_chain([_read(path) for path in sorted(decisions_dir(audit).glob("*.yaml"))])


def order_chain(kept: Sequence[DecisionFile]) -> list[DecisionFile]:
    """Sort decisions into their order. Raises a UsageError if one follows a decision that is missing or was changed."""
    ordered: list[DecisionFile] = []
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


def _read(path: Path) -> DecisionFile:
    data = _bytes_of(path)
    return DecisionFile(path, hashlib.sha256(data).hexdigest(), parse_decision(data, path, RecordedDecision))


def read_draft(path: Path) -> Decision:
    """Read a decision written by hand: without time, tool and chain, which are added when it is recorded.

    Raises a UsageError if it is not a valid decision.
    """
    return parse_decision(_bytes_of(path), path, Decision)


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MOST:
        raise UsageError(f"{path} is not a valid decision: expected at most {_MOST:,} bytes")
    return data


class _WithoutAliases(Composer):
    """Refuses aliases: a few aliases of aliases would expand a small file to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            raise ComposerError(None, None, "expected no aliases", self.parser.peek_event().start_mark)
        return super().compose_node(parent, index)


def parse_decision(data: bytes, path: Path, model: type[D]) -> D:
    """Read the bytes of a decision file; `path` is for messages.

    Raises a UsageError if they are not a valid decision.
    """
    yaml = YAML(typ="safe", pure=True)  # the parser in C, if it is installed, would go past the composer
    yaml.Composer = _WithoutAliases
    try:
        raw = yaml.load(data.decode("utf-8"))
    # A scalar whose tag or form makes it a Python date or number may fail in any of these ways.
    except (YAMLError, ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        raise UsageError(f"{path} is not readable as YAML: {one_line(error)}") from None
    except RecursionError:
        raise UsageError(f"{path} is not readable as YAML: it is nested too deeply") from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise UsageError(
            f"{path} is not a valid decision: expected a mapping with schema, landscape, reviewer, approve, modes"
        )
    schema = raw.pop("schema", None)
    if schema != SCHEMA:
        raise UsageError(
            f"{path} has schema {schema}, this version reads {SCHEMA}"
            " (`faded review AUDIT --from FILE` records one that was written by hand)"
        )
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"{path} is not a valid decision:\n  " + "\n  ".join(validation_lines(error, model))) from None


def check_fits(audit: str, decision: Decision, path: Path | None = None) -> None:
    """Check that a decision is about the current landscape, and decides on each of its modes.

    Raises a UsageError if it does not; `path` is its file, if it has one.
    """
    present = landscape_hash(audit)
    where = str(path or decisions_dir(audit) / f"{decision.landscape}.yaml")
    if decision.landscape != present:
        raise UsageError(
            f"{where} decides on landscape {decision.landscape} (by {decision.reviewer}), but the current landscape of"
            f" {audit} is {present}: look at it and decide again, `faded review {audit}`"
        )
    modes = _modes(audit)
    known = [m.id for m in modes]
    unknown = [m.id for m in decision.modes if m.id not in known]
    undecided = [m for m in known if decision.approve and m not in {d.id for d in decision.modes}]
    if unknown or undecided:
        what = f"unknown mode(s) {', '.join(unknown)}" if unknown else f"no choice for mode(s) {', '.join(undecided)}"
        raise UsageError(f"{where}: {what}; the landscape has {', '.join(known) or 'none'}")
    shown = shown_examples(modes)
    if strange := [e.id for e in decision.examples if e.id not in shown]:
        # They are numbered within their mode: "M1.1 to M1.12, M2.1 to M2.9".
        ranges = ", ".join(f"{m.examples[0].id} to {m.examples[-1].id}" for m in modes if m.examples) or "none"
        raise UsageError(f"{where}: unknown example(s) {', '.join(strange)}; the landscape has {ranges}")


def check_said(decision: Decision) -> None:
    """Check that an approving reviewer gave a reason for each mode to repair or accept.

    Raises a UsageError if a reason is missing.
    """
    silent = [
        f"{mode.action} {mode.id}" for mode in decision.modes if mode.action != "ignore" and not mode.reason.strip()
    ]
    if decision.approve and silent:
        raise UsageError(f"a reason is missing for {', '.join(silent)}: a mode to repair or accept needs one")


def _modes(audit: str) -> list[ModeRecord]:
    return audit_folder(audit).summarize.landscape.modes


def shown_examples(modes: Sequence[ModeRecord]) -> dict[str, tuple[ModeRecord, Example]]:
    """Return the report's examples by id, with their modes; empty if an older version made the landscape."""
    return {example.id: (mode, example) for mode in modes for example in mode.examples}
