"""Writes the bundle of a finished audit, and exports the repaired model with its card and this evidence."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from flows.evidence.bundle import (
    ENVELOPE,
    LARGEST,
    LOCK,
    MADE,
    MANIFEST,
    PARAMS,
    SCHEMA,
    STATEMENT,
    WHOLE,
    bundle_part,
    digest_of,
    dump_json,
    dump_yaml,
    md5,
    ratings_member,
    read_bundle,
    stages_until,
    zip_members,
)
from flows.evidence.formats import make_statement
from flows.evidence.signature import machine_key, make_envelope
from flows.evidence.verify import BUNDLE_IN_EXPORT, CARD, SIGNATURE, check_model, check_seals, verify_bundle
from flows.graph import read_graph
from flows.graph.intact import DamagedError, check_intact
from flows.graph.lock import Hashes, files_below, locked_stages, sha256, signature_of
from flows.request import GATED, current_standing, decided_so_far, how_to_decide
from flows.results import NO_GATES, LastVerdict, gate_word, last_stage, read_verdict
from stages.code import CODE, RECORD, is_own_workspace
from stages.core.environment import WORK
from stages.core.errors import DecisionNeeded, Exit, FadedError, InfrastructureError, RejectedError, UsageError
from stages.core.files import read_state, replace_file, stage_dir, write_state
from stages.core.git import git
from stages.decisions import decisions_dir, landscape_hash
from stages.decisions.must_pass import MUST_PASS
from stages.params import DATA, Params
from stages.records import audit_folder
from stages.records.provenance import Manifest, ManifestFile, Parts, Revision

NO_SIGN = "FADED_NO_SIGN"


def bundles_dir(audit: str) -> Path:
    """The folder of an audit's bundles, one for each result."""
    return DATA / audit / "evidence"


def why_unfinished(params: Params, audit: str) -> FadedError | None:
    """Why the audit has no current verdict, according to DVC: stale stages, or a person; None if it has one."""
    stale = read_graph().to_do([audit])
    if not stale and (stage_dir(audit, last_stage(params, audit)) / "verdict.json").exists():
        return None
    if stale and stale[0].kind == GATED and (now := current_standing(params, audit)) is not None:
        if now.rejection is not None:
            again = f"no repair was made; to decide again: `faded review {audit} --revise`"
            return RejectedError(f"the landscape of {audit} was {decided_so_far(now)}, so {again}")
        if not now.complete:
            return DecisionNeeded(how_to_decide(audit))
    names = ", ".join(stage.name for stage in stale)
    what = f"{names} {'is' if len(stale) == 1 else 'are'} stale or never ran" if stale else "no verdict"
    return UsageError(f"audit {audit!r} is not finished ({what}): run `faded audit {audit}` first")


def write_bundle(params: Params, audit: str) -> Path | None:
    """Write the evidence of a finished audit to data/<audit>/evidence; equal results give equal files.

    None if there is no current verdict, or something changed meanwhile. The bundle appears whole or not at all, and is
    written again only if it is missing or damaged. DVC is queried only if a file that the audit read or wrote has
    changed, so that repeated calls cost next to nothing. Raises a UsageError if the ratings file in force is not the
    one that params.yaml names.
    """
    record = WORK / "evidence" / f"{audit}.json"
    before, known = _state(params, audit), read_state(record, dict[str, str]) or {}
    if before is not None and known.get("state") == before and _is_intact(path := Path(known["bundle"])):
        return path
    if why_unfinished(params, audit) is not None:
        return None
    if (now := _state(params, audit)) != before:  # the first query of DVC writes code records
        before = now
        if why_unfinished(params, audit) is not None:
            return None
    members = _collect(params, audit)
    if before is None or _state(params, audit) != before:
        return None
    path = bundles_dir(audit) / f"{audit}-{digest_of(members)[:16]}.zip"
    if not _is_intact(path):
        replace_file(path, zip_members(members))
    write_state(record, {"state": before, "bundle": path.as_posix()})
    return path


def _is_intact(path: Path) -> bool:
    """Whether a bundle exists and matches the hash in its name, which covers the manifest and so everything else."""
    try:
        bundle = read_bundle(path)
    except UsageError:
        return False
    named = path.stem.endswith(digest_of(bundle.members)[:16])
    return named and all(check.holds for check in check_seals(bundle))


def sign_bundle(path: Path, private_key: Any) -> str:
    """Add a signature of the statement to a bundle, beside those of other keys; return the key's id.

    Raises a UsageError if the bundle does not hold, as nobody should vouch for it then.
    """
    if problems := problems_of(path):
        more = f" (and {len(problems) - 1} more: `faded verify {path}`)" if problems[1:] else ""
        raise UsageError(f"{path} is not signed, because it is not consistent: {problems[0]}{more}")
    members = dict(read_bundle(path).members)
    envelope, key_id = make_envelope(members[STATEMENT], private_key, members.get(ENVELOPE))
    replace_file(path, zip_members({**members, ENVELOPE: dump_json(envelope)}))
    return key_id


def sign_by_default(path: Path) -> str | None:
    """Sign a bundle with this user's own key, unless it is signed; return why it is not then, as by FADED_NO_SIGN.

    Raises a UsageError if the bundle does not hold.
    """
    if ENVELOPE in read_bundle(path).members:
        return None
    key, why = usual_key()
    if key is not None:
        sign_bundle(path, key)
    return why


def usual_key() -> tuple[Any, str | None]:
    """Return the user's own key; None with the reason, if there is none or it must not sign."""
    if os.environ.get(NO_SIGN):
        return None, f"{NO_SIGN} is set"
    try:
        return machine_key(), None
    except FadedError as error:
        return None, str(error)


def _lock(params: Params, audit: str) -> dict[str, Any]:
    """The entries of the audit's stages in dvc.lock, in the order of the pipeline."""
    stages = locked_stages()
    names = [f"{kind}@{audit}" for kind in stages_until(last_stage(params, audit))]
    return {name: stages[name] for name in names if name in stages}


def _state(params: Params, audit: str) -> str | None:
    """A hash of names, sizes and times of all that the audit's stages read and wrote; None if something is missing."""
    lock = _lock(params, audit)
    known = {str(RECORD)} if RECORD.exists() else set()
    names = {PARAMS, "dvc.yaml", LOCK, *known, *(io["path"] for s in lock.values() for io in (*s["deps"], *s["outs"]))}
    if (ratings := params.audit(audit).ratings) is not None:
        names.add(ratings.file)
    paths = [Path(name) for name in sorted(names)]
    if not lock or not all(path.exists() for path in paths):
        return None
    try:
        files = [file for path in paths for file in files_below(path)]
    except OSError:  # something was deleted meanwhile
        return None
    # Importing code that stages depend on writes to __pycache__.
    return signature_of(file for file in files if "__pycache__" not in file.parts)[0]


def _collect(params: Params, audit: str) -> dict[str, bytes]:
    hashes, lock = Hashes(), _lock(params, audit)
    raw = yaml.safe_load(Path(PARAMS).read_text(encoding="utf-8"))
    kinds = ("audits", "repairs") if audit in params.repairs else ("audits",)  # a params.yaml may lack `repairs:`
    block = {kind: {audit: raw[kind][audit]} for kind in kinds}
    members = {PARAMS: dump_yaml(block), LOCK: dump_yaml({"schema": "2.0", "stages": lock})}
    if (ratings := params.audit(audit).ratings) is not None:
        from stages.ratings import read_ratings

        read_ratings(audit, params.audit(audit))  # checks it: DVC tracks only its hash in the parameters
        members[ratings_member(audit)] = Path(ratings.file).read_bytes()
    files = _files(audit, lock)
    members |= {name: Path(name).read_bytes() for name in files if _is_whole(Path(name), audit)}
    last = last_stage(params, audit)
    parts: Parts = {}
    for name in dict.fromkeys([*members, *files]):
        parts.setdefault(bundle_part(name, audit, last), {})[name] = _entry(name, members.get(name), hashes)

    here = audit_folder(audit)
    judged = here.conclude if audit in params.repairs else here.report
    made = judged.provenance
    # What stages name in provenance.json by content hash.
    hashed = {
        "model": here.prepare.path / "model",
        "data": here.prepare.path / "items.parquet",
        "plan": here.collect_feedback.where("plan"),
        "repaired": here.restructure.path / "models",
    }
    manifest = {
        "schema": SCHEMA,
        "audit": audit,
        "passed": judged.verdict.passed,
        "landscape": landscape_hash(audit),
        "hashes": {name: hashes.content(path) for name, path in hashed.items() if path.exists()},
        **{key: getattr(made, key) for key in MADE},
        "git": _revision(audit),
        "parts": parts,
    }
    hashes.save()
    members[MANIFEST] = dump_json(manifest)
    members[STATEMENT] = dump_json(make_statement(cast(Manifest, manifest), digest_of(members), block))
    return members


def _revision(audit: str) -> Revision:
    """The last commit that changed the audit's code or parameters, and whether they differ from it.

    Commits of results count for nothing, so that the same result has the same bundle after them.
    """
    # In a user's own workspace, folders of these names are the user's.
    cloned = () if is_own_workspace() else ("stages", "flows", "pyproject.toml")
    named = (PARAMS, "dvc.yaml", str(RECORD), *cloned, str(DATA / audit / CODE))
    watched = [path for path in named if Path(path).exists()]
    revision = git("log", "-1", "--format=%H", "--", *watched)
    if not revision:
        return Revision(revision=None, dirty=None)
    return Revision(revision=revision, dirty=bool(git("status", "--porcelain", "--", *watched)))


def _files(audit: str, lock: Mapping[str, Any]) -> list[str]:
    """All files that stages read or wrote, and decisions, except those that DVC ignores."""
    from dvc.repo import Repo
    from dvc_objects.fs.local import localfs

    paths = {io["path"] for stage in lock.values() for io in (*stage["deps"], *stage["outs"])}
    own = {path for path in paths if path.startswith(f"{DATA / audit}/")} | {str(decisions_dir(audit))}
    with Repo() as repo:
        tops = [top for path in own if (top := Path(repo.root_dir, path)).exists()]
        found = [f for top in tops for f in (repo.dvcignore.find(localfs, str(top)) if top.is_dir() else [top])]
        return sorted({Path(file).relative_to(repo.root_dir).as_posix() for file in found})


def _is_whole(path: Path, audit: str) -> bool:
    if path.parent == decisions_dir(audit):
        return path.suffix == ".yaml" or path.name == MUST_PASS
    whole = path.parent.parent == DATA / audit and path.name in WHOLE.get(path.parent.name, ())
    return whole and (path.suffix != ".html" or path.stat().st_size <= LARGEST)


def _entry(name: str, data: bytes | None, hashes: Hashes) -> ManifestFile:
    """The manifest's entry of a member, or of a file that is not one."""
    if data is not None:
        return {"size": len(data), "md5": md5(data), "sha256": sha256(data), "whole": True}
    path = Path(name)
    size, path_md5 = path.stat().st_size, hashes.md5(path)
    if path.relative_to(DATA).parts[1] in ("inputs", "decisions"):  # nothing could check their SHA-256
        return {"size": size, "md5": path_md5, "whole": False}
    return {"size": size, "md5": path_md5, "sha256": hashes.sha256(path), "whole": False}


def keep_evidence(params: Params, audit: str) -> tuple[Path | None, str | None]:
    """Write and sign the evidence of a finished audit; return its path, and what is missing or failed."""
    try:
        bundle = write_bundle(params, audit)
        unsigned = sign_by_default(bundle) if bundle is not None else None
        return bundle, f"the evidence of {audit} is not signed: {unsigned}" if unsigned else None
    except Exception as error:
        return None, f"no evidence was written for {audit}: {type(error).__name__}: {error}"


def evidence_of(params: Params, audit: str) -> Path:
    """The bundle of a finished audit, written if it is missing.

    Raises what `why_unfinished` says if the audit is not finished, and a DamagedError if outputs differ from what its
    stages wrote.
    """
    params.audit(audit)
    read_graph()  # records custom tasks' code, which no file that DVC watches covers
    check_intact(audit)
    if (path := write_bundle(params, audit)) is None:
        raise why_unfinished(params, audit) or UsageError(f"audit {audit!r} changed meanwhile: try again")
    return path


def proven_evidence(params: Params, audit: str) -> Path:
    """The bundle of a finished audit after all the checks of `faded verify`, signed if possible.

    Raises what `evidence_of` does, and a DamagedError if the bundle does not hold.
    """
    path = evidence_of(params, audit)
    if problems := problems_of(path):
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise DamagedError(f"the evidence of {audit!r} does not hold: {problems[0]}{more}; `faded verify {path}`")
    sign_by_default(path)
    return path


def problems_of(path: Path) -> list[str]:
    """All that `faded verify` would report of a bundle without demands, each with the name of its check."""
    return [f"{check.name}: {problem}" for check in verify_bundle(path) for problem in check.problems]


class NotPassedError(FadedError, RuntimeError):
    """The verdict forbids the request: a result, not a usage error."""

    exit_code = Exit.GATE_FAILED


def export_model(params: Params, audit: str, folder: Path, *, force: bool = False, key: Path | None = None) -> Path:
    """Write the repaired model of a finished audit to a folder, which appears whole or not at all; return its bundle.

    An adapter is exported as an adapter; its card names the base it needs. Raises a UsageError if the folder is not
    empty, the audit has no repair, or it is not finished; a NotPassedError if it did not pass, without `force`; an
    InfrastructureError if outputs differ from what stages wrote, or the evidence does not hold.
    """
    params.repair(audit)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder: expected a new or empty one")
    bundle = proven_evidence(params, audit)
    verdict = read_verdict(params, audit)
    if verdict.passed is not True and not force:
        raise NotPassedError(f"{_refusal(verdict)}; to export it anyway: --force")
    scratch = folder.absolute().with_name(f".{folder.absolute().name}.partial")
    partial = scratch / folder.absolute().name  # the name that its signature states
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        # Bytes only, as DVC's files are read-only or links into its cache.
        repaired = stage_dir(audit, "restructure") / "models" / "repaired"
        shutil.copytree(repaired, partial, copy_function=shutil.copyfile)
        shutil.copyfile(stage_dir(audit, "conclude") / "model_card.md", partial / CARD)
        shutil.copyfile(bundle, partial / BUNDLE_IN_EXPORT)
        if problems := check_model(read_bundle(bundle), partial).problems:
            raise InfrastructureError(f"the copy is not the model that was audited: {problems[0]}")
        if key is not None:
            sign_model(partial, key)
        partial.replace(folder.absolute())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return bundle


def sign_model(folder: Path, key: Path) -> None:
    """Sign all files of a folder as the OpenSSF Model Signing specification says, in `model.sig`.

    Raises a UsageError if the library is missing, or the key is not one that the specification allows.
    """
    try:
        from model_signing import hashing, signing
    except ImportError as error:
        raise UsageError(f"{error}: to sign a model, install faded[signing]") from None
    try:
        files = hashing.Config().set_ignored_paths(paths=[signature := folder / SIGNATURE])
        signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(files).sign(folder, signature)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        wanted = "an unencrypted private key (PEM) on the curve P-256, P-384 or P-521"
        raise UsageError(f"{key} cannot sign a model, expected {wanted}: {error}") from None


def _refusal(verdict: LastVerdict) -> str:
    if verdict.word == NO_GATES:
        return (
            f"{verdict.audit}: {NO_GATES}, so nothing says that its model is good enough:"
            f" set repairs.{verdict.audit}.gates in params.yaml"
        )
    gates = [f"{gate.named}: {gate_word(gate.passed)}" for gate in verdict.gates if gate.passed is not True]
    return f"{verdict.audit}: {verdict.word} ({', '.join(gates)}), so its model must not be deployed, as its card says"
