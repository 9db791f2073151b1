"""The HTTP responses of the review page: an audit's page, and pages with a message only."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib import import_module

from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup
from starlette.background import BackgroundTask

from flows.people.review.form import Fields
from flows.people.review.links import page_path
from flows.people.review.view import TEMPLATES, environment, review_view
from flows.server.security import Session
from stages.params import Params


def review_page(
    params: Params,
    audit: str,
    session: Session,
    status: int = 200,
    fields: Fields | None = None,
    problems: Sequence[str] = (),
    *,
    revise: bool = False,
) -> Response:
    """The page on which people decide on an audit, with entries so far, and why they were not saved."""
    view = review_view(
        params, audit, fields, problems=problems, revise=revise, known=session.reviewer, bound=session.bound
    )
    html = environment().get_template("review.html.j2").render(**view, path=page_path(audit), csrf=session.csrf)
    return HTMLResponse(html, status)


def message(
    status: int,
    title: str,
    said: Sequence[str],
    *,
    kicker: str = "Review",
    links: Sequence[tuple[str, str]] = (),
    typed: Sequence[tuple[str, str]] = (),
    forget: str = "",
    background: BackgroundTask | None = None,
) -> Response:
    """A page with a message. It needs nothing more from the server, which may have exited by then.

    Args:
        status: HTTP status.
        title: its title.
        said: its sentences.
        kicker: line above the title.
        links: addresses with their texts.
        typed: the reviewer's entries, to be read and copied.
        forget: name of the draft that is no longer needed.
        background: what to do after it was sent.
    """
    css, code = style(), static("recorded.js")
    html = (
        environment()
        .get_template("message.html.j2")
        .render(
            title=title, said=said, kicker=kicker, links=links, typed=typed, forget=forget,
            style=Markup(css), script=Markup(code),
        )
    )  # fmt: skip
    allowed = f"script-src {_hash(code)}; " if forget else ""
    policy = (
        f"default-src 'none'; style-src {_hash(css)}; {allowed}img-src data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )
    return HTMLResponse(html, status, {"Content-Security-Policy": policy}, background=background)


def prepare() -> None:
    """Import everything that pages need. This takes seconds, in which a running server would not respond."""
    for module in (
        "PIL.Image",
        "pyarrow.parquet",
        "stages.landscape.extremes",
        "stages.pages.examples",
        "stages.records",
        "stages.restructure",
    ):
        import_module(module)
    environment()


@cache
def style() -> str:
    """The style sheet: the report's and the review page's."""
    from stages.pages.page import TEMPLATES as REPORT_TEMPLATES

    return (REPORT_TEMPLATES / "report.css").read_text(encoding="utf-8") + static("review.css")


@cache
def script() -> str:
    """The script of the page: the report's for examples, and the review page's."""
    from stages.pages.page import TEMPLATES as REPORT_TEMPLATES

    return (REPORT_TEMPLATES / "explorer.js").read_text(encoding="utf-8") + static("review.js")


@cache
def static(name: str) -> str:
    """The text of a file that is part of every page."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode('ascii')}'"
