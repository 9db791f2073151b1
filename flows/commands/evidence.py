"""Evidence for others: bundles and their verification, export of a model, and the gate for CI."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from flows.commands import Audit, Json, Preset, command, console, errors, flag, open_workspace, say, tell, value
from flows.terminal import print_plain
from stages.core.errors import FadedError, UsageError

SigningKey = Annotated[Path | None, value("KEY.pem", "Sign with this private key (Ed25519, ECDSA or RSA).")]


@command("faded evidence mnist", "faded evidence mnist --sign key.pem")
def evidence(
    audit: Audit = None,
    preset: Preset = None,
    sign: SigningKey = None,
    no_sign: Annotated[bool, flag("--no-sign", "Do not sign it with your own key.")] = False,
) -> None:
    """Show the evidence bundle of a finished audit, and write what others' tools and people read of it beside it.

    The bundle is signed with your own key, which is created at first use. Beside a signed one are then the verdict as
    statements of in-toto (.zip.intoto.jsonl), a record of every_eval_ever (.every-eval-ever.json), and a sheet to
    print and sign (.sign-off.html).

    The passphrase of another key is prompted for, or taken from the environment variable FADED_KEY_PASSPHRASE.
    """
    here = Path.cwd()
    params, [name] = open_workspace([audit] if audit else None, False, preset)
    from flows.evidence.beside import write_beside
    from flows.evidence.bundle import read_bundle
    from flows.evidence.gate import show_bundle
    from flows.evidence.signature import read_private_key
    from flows.evidence.write import evidence_of, sign_bundle, sign_by_default, usual_key
    from flows.workspace import exclusive

    key = read_private_key(here / sign, _passphrase) if sign is not None else None
    with exclusive():
        with console.status("checking the state of the stages, and hashing new files ..."):
            path = evidence_of(params, name)
            unsigned = None if no_sign else sign_by_default(path)
        if key is not None:
            say(f"signed by key id {sign_bundle(path, key)}")
        bundle = read_bundle(path)
        show_bundle(console, bundle)
        signer = key if key is not None or no_sign else usual_key()[0]
        say(*(f"beside it: {file.name}" for file in write_beside(bundle, signer)))
    if unsigned is not None and key is None:
        print_plain(errors, f"not signed: {unsigned}", style="yellow")


def _passphrase() -> str:
    known = os.environ.get("FADED_KEY_PASSPHRASE")
    return known if known is not None else str(typer.prompt("passphrase of the key", hide_input=True, err=True))


@command(
    "faded verify EVIDENCE.zip",
    "faded verify EVIDENCE.zip --key public.pem --require-repaired --require-passed --model .",
)
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, as shown by `faded evidence`.")],
    key: Annotated[list[Path] | None, value("PUBLIC.pem", "Require a signature by one of these public keys.")] = None,
    model: Annotated[
        Path | None, value("FOLDER", "Require that this folder contains the model the verdict is about.")
    ] = None,
    require_signed: Annotated[
        bool, flag("--require-signed", "Require a signature by a key known on this machine.")
    ] = False,
    require_repaired: Annotated[
        bool, flag("--require-repaired", "Require that the verdict is about a repaired model.")
    ] = False,
    require_passed: Annotated[bool, flag("--require-passed", "Require that the verdict is a pass.")] = False,
    max_age: Annotated[float | None, value("DAYS", "Require a signature no older than this.", min=0.0)] = None,
    json: Json = False,
) -> None:
    """Check that an evidence bundle is consistent and complete, on any machine; no workspace is needed.

    Exit codes: 0 all checks hold, 1 something does not match or is missing, 2 not a valid bundle.
    Without requirements an unsigned bundle also exits with 0, and the output says that it is unsigned.
    """
    from flows.evidence.beside import check_statements
    from flows.evidence.bundle import read_bundle
    from flows.evidence.gate import show_checks
    from flows.evidence.signature import known_keys
    from flows.evidence.verify import Demands, verify_bundle

    demands = Demands(require_signed, require_repaired, require_passed, max_age)
    checks = verify_bundle(bundle, key or (), model, demands)
    checks += check_statements(read_bundle(bundle), known_keys(key or None))
    holds = all(check.holds for check in checks)
    tell(
        "verify", {"bundle": bundle, "checks": checks, "holds": holds}, lambda console, _: show_checks(console, checks)
    )
    if not holds:
        raise typer.Exit(1)


@command("faded reproduce mnist-cc2be29635524f7a.zip", "faded reproduce mnist-cc2be29635524f7a.zip --sign lab.pem")
def reproduce(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, as shown by `faded evidence`.")],
    sign: SigningKey = None,
    json: Json = False,
) -> None:
    """Run the audit of a bundle again in this workspace, compare every number, and sign what came out.

    The workspace needs the bundle's code and inputs: clone the repository at the bundle's revision, and pull its data.
    Results here are neither used nor changed; what people decided is taken from the bundle. The statement is written
    beside the bundle, in BUNDLE.intoto.jsonl: send it back, and `faded verify` shows it.

    Exit codes: 0 agrees, 1 differs by more than noise, 2 other code or inputs, 3 infrastructure.
    """
    from flows.evidence.beside import add_statements, reproduction_statement
    from flows.evidence.bundle import read_bundle
    from flows.evidence.gate import show_reproduction
    from flows.evidence.reproduce import reproduce_bundle
    from flows.evidence.signature import machine_key, read_private_key
    from flows.workspace import enter_workspace, exclusive

    path = bundle.absolute()
    # What could fail at the end is tried before hours of work.
    key = read_private_key(sign, _passphrase) if sign is not None else machine_key()
    if not os.access(path.parent, os.W_OK):
        raise UsageError(
            f"{path.parent} cannot be written to, and the statement lies beside the bundle: copy it elsewhere"
        )
    enter_workspace()
    with exclusive():
        found = reproduce_bundle(path, say)
    statement = add_statements(path, [reproduction_statement(read_bundle(path), found.reproduction)], key)
    tell("reproduce", replace(found, statement=statement), show_reproduction)
    if not found.reproduction.agrees:
        raise typer.Exit(1)


@command("faded export mnist deploy/mnist", "faded export deploy/first-audit")
def export(
    where: Annotated[
        list[str], typer.Argument(metavar="[AUDIT] FOLDER", help="A new or empty folder; the first audit by default.")
    ],
    preset: Preset = None,
    force: Annotated[bool, flag("--force", "Export even if the audit did not pass.")] = False,
    sign: Annotated[
        Path | None,
        value("KEY.pem", "Also write model.sig for tools of OpenSSF Model Signing; an EC key. Needs faded\\[signing]."),
    ] = None,
) -> None:
    """Write a folder for deployment: the repaired model, its card with the evaluation, and the evidence.

    load.py in it loads the model without Faded. An adapter (LoRA) is written as it is; its card names the base model
    it needs. Exit code 1 if the audit did not pass, or has no gates.
    """
    from flows.evidence.write import export_model
    from flows.workspace import exclusive

    *audits, folder = where
    if len(audits) > 1:
        raise UsageError(f"expected at most an audit and a folder, found {len(where)} names: {', '.join(where)}")
    target, key = Path.cwd() / folder, sign.absolute() if sign is not None else None
    params, [name] = open_workspace(audits, False, preset)
    with exclusive(), console.status("checking the state of the stages, and copying the model ..."):
        bundle = export_model(params, name, target, force=force, key=key)
    say(f"{name}: the repaired model is in {target}", f"evidence: {bundle}")


@command(
    "faded gate", "faded gate mnist --against origin/main --tolerance 0.01", "faded gate mnist --first --junit gate.xml"
)
def gate(
    audit: Audit = None,
    preset: Preset = None,
    against: Annotated[
        str | None, value("REV", "A git revision; by default the newest one whose audit passed.")
    ] = None,
    tolerance: Annotated[
        float, value("NUMBER", "Largest increase still accepted (0.02 = 2 points).", min=0.0, max=1.0)
    ] = 0.02,
    first: Annotated[
        bool, flag("--first", "If there is nothing to compare with, judge by the audit's own gates alone.")
    ] = False,
    junit: Annotated[Path | None, value("FILE", "Also write JUnit XML, with a test case for each gate.")] = None,
    json: Json = False,
) -> None:
    """For CI: fail unless the audit passed and is confirmed to be at least as good as an earlier one that passed.

    If neither of them sets gates, only the comparison counts, and the output says so. The first result has nothing to
    be compared with: commit it, or use --first.

    Exit codes: 0 at least as good, 1 worse or not confirmed, 2 stale or not comparable, 3 infrastructure.
    """
    out = junit and Path.cwd() / junit
    params, [name] = open_workspace([audit] if audit else None, False, preset)
    from flows.evidence.gate import run_gate, show_gate, write_junit
    from flows.workspace import exclusive

    try:
        with exclusive(), console.status("checking every byte and comparing ..."):
            result = run_gate(params, name, against, tolerance, first=first)
    except FadedError as error:
        if out is not None:
            write_junit(out, name, error)
        raise
    if out is not None:
        write_junit(out, name, result)
    tell("gate", result, show_gate)
    if not result.passed:
        missed = [gate.named for gate in result.now.gates if gate.passed is not True] if not result.own else []
        why = f": {', '.join(missed)}" if missed else ""
        errors.print(f"[bold red]{name}: could not confirm it is {result.claim}{escape(why)}[/]")
        raise typer.Exit(1)
