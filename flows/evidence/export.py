"""Exports a folder for deployment: the repaired model, its card with the evaluation, and the evidence."""

import shutil
from pathlib import Path

from flows.evidence.bundle import read_bundle
from flows.evidence.verify import BUNDLE_IN_EXPORT, CARD, SIGNATURE, check_model
from flows.evidence.write import proven_evidence
from flows.results import NO_GATES, LastVerdict, gate_word, read_verdict
from stages.core.errors import Exit, FadedError, InfrastructureError, UsageError
from stages.core.files import stage_dir
from stages.params import Params


class NotPassedError(FadedError, RuntimeError):
    """The verdict forbids the request: a result, not a usage error."""

    exit_code = Exit.GATE_FAILED


def export_model(params: Params, audit: str, folder: Path, *, force: bool = False, key: Path | None = None) -> Path:
    """Write the repaired model of a finished audit to a folder, which appears whole or not at all.

    An adapter is exported as an adapter; its card names the base it needs. Returns the bundle that was put beside it.

    Args:
        force: export it also if it did not pass: a gate failed, could not be judged, or none is set.
        key: a private key that signs the folder for tools of others, see `sign_model`.

    Raises:
        UsageError: if the folder is not empty, the audit has no repair, or it is not finished.
        NotPassedError: if it did not pass.
        InfrastructureError: if outputs differ from what stages wrote, or the evidence does not hold.
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

    Raises:
        UsageError: if the library is missing, or the key is not one that the specification allows.
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
    gates = [f"{gate.named} ({gate_word(gate.passed)})" for gate in verdict.gates if gate.passed is not True]
    what = f"{verdict.audit}: {verdict.word}, so its model must not be deployed, as its card also says"
    return f"{what}; passed? {', '.join(gates)}"
