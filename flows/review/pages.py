"""The pages as responses: that of an audit, and those of words alone."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib import import_module

from fastapi.responses import HTMLResponse, Response
from markupsafe import Markup
from starlette.background import BackgroundTask

from flows.review.form import Fields
from flows.review.links import page_path
from flows.review.view import TEMPLATES, environment, review_view
from flows.security import Session
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
    """The page on which an audit is decided; with what was filled in, and why it was not saved."""
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
    """A page of words that needs nothing more from the server, which may be gone by then.

    Args:
        status: of HTTP.
        title: what it is about.
        said: its sentences.
        kicker: above the title.
        links: addresses with their texts.
        typed: what the reviewer filled in, to be read and copied.
        forget: name of the draft that is no longer needed.
        background: what to do when it was sent.
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
    """Import all that pages are made of: it takes seconds, in which a server that is running would answer nobody."""
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
    """The style sheet: the report's and ours."""
    from stages.pages.page import TEMPLATES as REPORT_TEMPLATES

    return (REPORT_TEMPLATES / "report.css").read_text(encoding="utf-8") + static("review.css")


@cache
def script() -> str:
    """The script of the page: the report's for examples, and ours."""
    from stages.pages.page import TEMPLATES as REPORT_TEMPLATES

    return (REPORT_TEMPLATES / "explorer.js").read_text(encoding="utf-8") + static("review.js")


@cache
def static(name: str) -> str:
    """A file that is part of every page."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode('ascii')}'"
