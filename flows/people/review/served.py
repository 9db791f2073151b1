"""State that the routes of the review page share; created before them, see `flows/people/review/server.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flows.people.review.links import page_path
from flows.server.security import Keys, Session

if TYPE_CHECKING:
    from fastapi import Request

    from flows.people.review.recording import Outcome


class Served:
    """State that the routes share.

    Args:
        audits: audits that are shown; holders of the secret may add more.
        host: the only host name under which the pages are shown.
        url: address of the pages.
        behind_proxy: whether they are reached through a proxy, and only under its name.
        cookie: name of the session's cookie; browsers share cookies between all ports of a host.
        told: called with each decision after its response was sent.
    """

    def __init__(
        self,
        audits: Sequence[str],
        host: str,
        url: str,
        cookie: str,
        told: Callable[[Outcome], None],
        *,
        behind_proxy: bool = False,
    ) -> None:
        self.keys, self.behind_proxy = Keys(), behind_proxy
        self.audits, self.host, self.url, self.cookie, self.told = list(audits), host, url, cookie, told

    def link(self, audit: str, reviewer: str = "") -> str:
        """An address that opens an audit's page once, in the name of this reviewer if one is given.

        The audit is served from then on.
        """
        if audit not in self.audits:
            self.audits.append(audit)
        return f"{self.url}{page_path(audit)}?token={self.keys.make_token(audit, reviewer)}"

    def session(self, request: Request) -> Session | None:
        """The session that a request belongs to."""
        return self.keys.session(request.cookies.get(self.cookie))
