"""Schedule audits, serve them, and send notifications."""

import sys
from typing import Annotated

import typer

from flows.commands import command, console, flag, open_workspace, say, value
from stages.core.errors import UsageError

_URL = "Use - to read the address from standard input and keep it out of the shell history."


@command(
    'faded schedule mnist --cron "0 3 * * 1" --timezone Europe/Berlin', "faded schedule mnist --off", "faded schedule"
)
def schedule(
    audit: Annotated[
        str | None, typer.Argument(metavar="[AUDIT]", help="Name of an audit in params.yaml; without, all are listed.")
    ] = None,
    cron: Annotated[str | None, value("CRON", "Minute, hour, day of month, month, day of week.")] = None,
    timezone: Annotated[
        str | None, value("ZONE", "Time zone of the schedule.", show_default="unchanged, or UTC")
    ] = None,
    off: Annotated[bool, flag("--off", "Turn the schedule off; it is kept for later.")] = False,
) -> None:
    """Schedule an audit, or list what is scheduled: next start, last result, and what each audit waits for.

    A schedule is written to prefect.yaml, and applied at once if a server is running. Audits start while `faded serve`
    runs, or a Prefect worker of yours.
    """
    from flows.recur.schedule import EXAMPLE, FILE, set_schedule

    if audit is None:
        if cron is not None or timezone is not None or off:
            raise UsageError(f"which audit? `faded schedule AUDIT` with --cron or --off; {EXAMPLE}")
        _list_schedules()
        return
    params, [name] = open_workspace([audit], False)
    if (cron is None) != off:
        raise UsageError(f"use either --cron or --off; for --cron, {EXAMPLE}")
    entry = set_schedule(params, name, cron, timezone)
    start = entry.next_start()
    when = "its schedule is off" if start is None else f"it starts next on {start:%a %Y-%m-%d at %H:%M %Z}"
    say(f"{name}: {when}, written to {FILE}")
    _apply()


@command("faded serve")
def serve(
    port: Annotated[
        int | None,
        value("N", "Port of the built-in Prefect server.", min=1, max=65535, show_default="the last one, else 4200"),
    ] = None,
    review: Annotated[bool, flag("--review/--no-review", "Also serve the review pages.")] = True,
    link: Annotated[bool, flag("--link", "Print one-time links to the pages of the running one.")] = False,
) -> None:
    """Run scheduled audits until Ctrl-C: scheduler, worker, and the pages of runs and reviews.

    Run it in a terminal that stays open, or as a system service. Uses the Prefect server at PREFECT_API_URL if set;
    otherwise starts its own, reachable from this machine only. Audits run one at a time.
    """
    params, _ = open_workspace(None, True)
    # Only here, as what imports Prefect needs the environment of the workspace.
    from flows.recur.schedule import FILE, add_missing
    from flows.serve import serve as run
    from flows.serve import show_links

    if link:
        say(*show_links())
        return
    if not FILE.exists():
        added = ", ".join(add_missing(params))
        say(f"{FILE} was written, schedules off: {added}")
    run(params, console, port=port, review=review)


@command("faded notify --slack https://hooks.slack.com/services/T000/B000/XXX --test", "faded notify --email - --test")
def notify(
    slack: Annotated[str | None, value("URL", f"A Slack webhook. {_URL}")] = None,
    webhook: Annotated[str | None, value("URL", f"A webhook that accepts JSON (text, subject, body). {_URL}")] = None,
    email: Annotated[str | None, value("URL", f"mailtos://USER:PASSWORD@SERVER?from=...&to=... {_URL}")] = None,
    block: Annotated[str | None, value("TYPE/NAME", "A notification block that you made in Prefect.")] = None,
    off: Annotated[bool, flag("--off", "Turn notifications off.")] = False,
    test: Annotated[bool, flag("--test", "Send a test message now, and show whether it arrived.")] = False,
) -> None:
    """Configure notifications: when an audit needs a decision, fails a gate, breaks, or does not start.

    The address is stored as a block on the Prefect server, never in a file of the workspace. Without options, shows
    the current setting.
    """
    open_workspace(None, True)
    from flows.recur.deploy import refresh_automations
    from flows.recur.notify import current, send_test, set_block, set_url
    from flows.serve import RECORDS
    from flows.server import start_prefect_api

    given = {"slack": slack, "webhook": webhook, "email": email}
    chosen = {kind: url for kind, url in given.items() if url is not None}
    if len(chosen) + (block is not None) + off > 1:
        raise UsageError("give one at a time: --slack, --webhook, --email, --block or --off")
    urls = {kind: sys.stdin.readline().strip() if url == "-" else url for kind, url in chosen.items()}
    with console.status("waiting for the Prefect server ..."), start_prefect_api(RECORDS)():
        for kind, url in urls.items():
            set_url(kind, url)  # type: ignore[arg-type]
        if block is not None or off:
            set_block(block)
        used = current()
        if chosen or block is not None or off:
            refresh_automations()
        if test:
            send_test()
    console.print(f"notifications go to {used or 'nobody'}" + ("; the test message was accepted" if test else ""))


def _list_schedules() -> None:
    params, _ = open_workspace(None, True)
    from flows.recur.deploy import overview, show_schedules
    from flows.recur.schedule import FILE, read_entries
    from flows.server import configured_api, responds

    with console.status("asking for the last runs ..."):
        entries = read_entries()
        api = configured_api()
        rows = overview(params, entries, api if api is not None and responds(api) else None)
    if rows:
        show_schedules(console, rows)
    else:
        say(f"no audit is in {FILE} yet: `faded schedule AUDIT --cron ...`")


def _apply() -> None:
    """Apply prefect.yaml if a server is running, or print that none is."""
    from flows.recur.deploy import apply
    from flows.recur.schedule import read_entries
    from flows.server import configured_api, responds, talking_to

    api = configured_api()
    if api is None or not responds(api):
        where = "no Prefect server is running for this workspace" if api is None else f"{api} does not answer"
        say(f"{where}: `faded serve` applies it when it starts")
        return
    with console.status("applying it to the Prefect server ..."), talking_to(api):
        lines = apply(read_entries())
    say(*lines, f"applied to {api}")
