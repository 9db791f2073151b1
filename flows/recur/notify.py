"""Sends notifications about audits through Prefect's notification blocks, which keep their secrets on the server.

A Prefect variable named after the work pool names the block, so no file of the workspace contains a secret.
"""

import logging
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook  # also registers all types
from prefect.client.orchestration import SyncPrefectClient
from prefect.variables import Variable

from flows.recur.schedule import read_entries, work_pool
from flows.server import configured_api, talking_to
from stages.core.environment import WORK
from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import read_state, write_state

Event = Literal["needs decision", "gate failed", "rejected", "broken", "drift"]
Kind = Literal["slack", "webhook", "email"]

_SUBJECT: dict[Event, str] = {
    "needs decision": "needs your decision",
    "gate failed": "a gate failed",
    "rejected": "was rejected",
    "broken": "broken",
    "drift": "fails more often than before",
}
_EXPECTED: dict[Kind, list[str]] = {  # an example of each kind of address, and how they begin
    "slack": ["https://hooks.slack.com/services/T000/B000/XXX", "https://hooks.slack"],  # an incoming webhook
    "webhook": ["https://chat.example.org/hooks/XXX", "https://", "http://"],  # to which JSON is posted
    "email": [  # in Apprise's format
        "mailtos://USER:PASSWORD@smtp.example.org?from=faded@example.org&to=ada@example.org",
        "mailtos://",
        "mailto://",
    ],
}
_SENT = WORK / "notices"  # by audit, the result of the last notification


def notify(event: Event, audit: str, text: str, result: str = "") -> None:
    """Notify people if a block is set; errors are logged and otherwise ignored.

    Args:
        result: identifies the event, so that nobody is notified twice in a row of the same. Empty if every one is new.
    """
    sent = f"{event} {result}" if result else ""
    try:
        if sent and read_state(_SENT / f"{audit}.json", str) == sent:
            return
        url = configured_api()
        if url is None:  # no block either, and the query would start a server
            return
        with talking_to(url):
            if (slug := current()) is None:
                return
            _send(slug, f"faded: {audit} {_SUBJECT[event]}", text)
        if event != "drift":  # which comes beside another
            write_state(_SENT / f"{audit}.json", sent)
    except Exception as error:
        logging.getLogger(__name__).warning("nobody was notified that %s: %s (%s)", audit, event, _why(error))


def forget_notice(audit: str) -> None:
    """Forget the last notification: all is well with the audit, and the same problem is reported if it recurs."""
    (_SENT / f"{audit}.json").unlink(missing_ok=True)


def set_url(kind: Kind, url: str) -> str:
    """Save an address for notifications as a block on the server, use it from now on, and return its name there.

    Raises a UsageError if the URL does not fit its kind.
    """
    from apprise import Apprise

    pool, (example, *starts) = work_pool(read_entries()), _EXPECTED[kind]
    if not url.startswith(tuple(starts)) or (kind != "webhook" and not Apprise().add(url)):
        raise UsageError(f"--{kind}: {url.partition(':')[0]}:... is not a valid address, expected one like {example}")
    block: CustomWebhookNotificationBlock | SlackWebhook
    if kind == "webhook":
        block = CustomWebhookNotificationBlock(
            name=pool,
            url="{{url}}",
            secrets={"url": url},  # the URL is a secret: anybody who has it can post
            json_data={"text": "{{subject}}\n{{body}}", "subject": "{{subject}}", "body": "{{body}}"},
        )
        name = pool
    else:
        # Prefect has no block for mail by SMTP; this one passes every URL that is not Slack's on to Apprise.
        block = SlackWebhook(url=url)
        name = pool if kind == "slack" else f"{pool}-email"
    block.save(name, overwrite=True)
    slug = f"{block.get_block_type_slug()}/{name}"
    _use(slug)
    return slug


def set_block(slug: str | None) -> None:
    """Use a block that is already on the server ("ms-teams-webhook/ops"), or none.

    Raises a UsageError if there is no such block, or it is not a notification block.
    """
    if slug is not None:
        try:
            block: Any = Block.load(slug)
        except ValueError as error:
            raise UsageError(
                f"--block {slug!r}: {error}; expected TYPE/NAME as `prefect block ls` shows them"
            ) from None
        if not isinstance(block, NotificationBlock):
            raise UsageError(f"--block {slug!r} is not a notification block but {type(block).__name__}")
    _use(slug)


def current() -> str | None:
    """The block in use on the server of the current settings."""
    slug = Variable.get(_variable())
    return None if slug is None else str(slug)


def send_test() -> None:
    """Send a message through the block in use.

    Raises a UsageError if none is set, and an InfrastructureError if the message was refused or did not arrive.
    """
    slug = current()
    if slug is None:
        raise UsageError("no notifications are set: `faded notify --webhook URL`")
    try:
        _send(slug, "faded: test", "This is how Faded will notify you about your audits.")
    except Exception as error:
        raise InfrastructureError(f"the message through {slug} did not arrive: {_why(error)}") from None


def block_id(client: SyncPrefectClient) -> UUID | None:
    """The id of the block in use, for automations; None if there is none."""
    if (slug := current()) is None:
        return None
    kind, _, name = slug.partition("/")
    return client.read_block_document_by_name(name, kind).id


def _why(error: Exception) -> str:
    """Why a message did not arrive, without the error's text, which may contain the address, a secret."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"the server answered {error.response.status_code} {error.response.reason_phrase}"
    if isinstance(error, httpx.TransportError):
        return "the server cannot be reached"
    return str(error) if isinstance(error, UsageError) else f"{type(error).__name__}, see the address of the block"


def _variable() -> str:
    pool = work_pool(read_entries())
    return "".join(letter if letter.isalnum() else "_" for letter in pool.lower()) + "_notify"


def _use(slug: str | None) -> None:
    if slug is None:
        Variable.unset(_variable())
    else:
        Variable.set(_variable(), slug, overwrite=True)


def _send(slug: str, subject: str, text: str) -> None:
    block: Any = Block.load(slug)  # Prefect types `notify` for callers that await it, too
    with block.raise_on_failure():
        block.notify(text, subject=subject)
