"""The review page as a web application: routes, access control, posted forms, and the pages it answers with."""

from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from hashlib import sha256
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from markupsafe import Markup
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from flows.people.approval import decide, expire, sentence
from flows.people.draft import DraftError, Fields, decision_of, read_fields, typed
from flows.people.review.links import REPORTS, Served, page_path, report_path
from flows.people.review.view import TEMPLATES, draft_key, own_link, report_policy, review_templates, review_view
from flows.processes import aside
from flows.request import moment, read_modes
from flows.server.security import EVERY, HEADERS, MAX_BODY, Session, host_of, is_loopback, knows_host, same, same_origin
from stages.core.errors import FadedError, UsageError
from stages.decisions import AlreadyDecided, RecordedDecision, landscape_hash, listed_keys
from stages.decisions.names import same_person
from stages.pages.page import TEMPLATES as REPORT_TEMPLATES
from stages.params import Params, load_params


class Refused(Exception):
    """A request that is answered with an explanation instead of what it asked for."""

    def __init__(self, status: int, title: str, *sentences: str, **more: Any) -> None:
        super().__init__(title)
        self.status, self.title, self.sentences, self.more = status, title, sentences, more


def make_app(served: Served, pages: APIRouter | None = None) -> FastAPI:
    """The application that serves pages to browsers with a link: the review pages unless others are given."""
    app = FastAPI(title="Faded", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.served = served
    app.include_router(assets)
    app.include_router(pages or router)
    app.middleware("http")(_guard)
    for error in (Refused, HTTPException, FadedError):
        app.add_exception_handler(error, _refusal)
    return app


async def _guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    """Answer only under the server's own host name, and set the security headers of every response."""
    host = request.headers.get("host")
    here = is_loopback(host_of(host))  # all ports of this machine share this name, and its cookies
    served = _served(request)
    ours = host_of(host) == served.host if served.behind_proxy else knows_host(host, served.host)
    if ours or (here and request.scope["path"] == "/links"):
        response = await go_on(request)
    elif here:
        response = _refusal(request, _needs_link(served, 421, "AUDIT"))
    else:
        response = message(421, "Not here", ["These pages are not served at this address."])
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _served(request: Request) -> Served:
    return cast(Served, request.app.state.served)


def signed_in(request: Request) -> Session:
    """The session of the browser that asks, if it may see what it asks for."""
    audit, session = request.path_params.get("audit"), _served(request).session(request)
    if session is not None and (audit is None or session.sees(audit)):
        return session
    raise _needs_link(_served(request), 403, audit or "AUDIT")


def _needs_link(served: Served, status: int, audit: str) -> Refused:
    return Refused(
        status,
        "This page needs its link",
        "It is opened by a link that works once, so that nobody else on this machine reads or decides in your name.",
        f"Ask for one in the workspace, and open it as it is printed: {served.command.replace('AUDIT', audit)}",
    )


def _shown(request: Request, audit: str) -> str:
    if audit not in _served(request).audits:
        raise HTTPException(404)
    return audit


def _trusted(request: Request) -> None:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme != "Bearer" or not same(secret, _served(request).keys.secret):
        raise HTTPException(404)


async def _body(request: Request) -> Fields:
    """The fields of a form, unless it is too large."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise Refused(413, "Too large", f"A form may have {MAX_BODY:,} bytes. Nothing was saved.")
        return read_fields(bytes(body))
    except ClientDisconnect:  # nobody reads the response
        raise Refused(400, "Nothing was saved", "The form did not arrive completely.") from None
    except DraftError as error:
        raise Refused(400, "Nothing was saved", *error.problems) from None


SignedIn = Annotated[Session, Depends(signed_in)]
Audit = Annotated[str, Depends(_shown)]
Filled = Annotated[Fields, Depends(_body)]
router, assets = APIRouter(), APIRouter()


@router.get("/")
def start(request: Request, token: str | None = None) -> Response:
    """Show the audits whose links this browser opened: how each stands, and what waits; or redeem a token for all."""
    if token is not None:
        return enter(request, EVERY, token)
    session = signed_in(request)
    page: str = aside(
        "flows.people.review.view:first_page", [name for name in load_params().audits if session.sees(name)]
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return HTMLResponse(page, headers={"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"})


@router.get("/review/{audit}")
def look(request: Request, audit: Audit, token: str | None = None, again: str = "") -> Response:
    """Show an audit's page, or redeem a token for it."""
    if token is not None:
        return enter(request, audit, token, "?again=yes" if again == "yes" else "")
    session = signed_in(request)
    session.seen.add(audit)
    params = load_params()
    expire(params, audit)
    return review_page(params, audit, session, revise=again == "yes")


def enter(request: Request, audit: str, token: str, query: str = "") -> Response:
    """Exchange a one-time token for a session, so that the address in the browser's history is useless."""
    served = _served(request)
    # Keep an existing session, so that forms in other tabs stay valid.
    session = served.keys.redeem(token, audit, request.cookies.get(served.cookie)) or served.session(request)
    if session is None or not session.sees(audit):
        command = "faded serve --link" if audit == EVERY else served.command.replace("AUDIT", audit)
        raise Refused(
            403,
            "This link was already used",
            "Each link opens the page once, in one browser, within an hour.",
            f"Ask for another one in the workspace: {command}",
        )
    response = RedirectResponse(served.page(audit) + query, 303)
    # Not strict, as the file or message with the link is from another site. Viewing changes nothing, and forms are
    # checked separately.
    encrypted = served.url.startswith("https:")
    response.set_cookie(served.cookie, session.id, httponly=True, secure=encrypted, samesite="lax", path="/")
    return response


@router.post("/review/{audit}")
def post_decision(request: Request, audit: Audit, session: SignedIn, fields: Filled) -> Response:
    """Record the decision in a form, or show the form again with what is wrong."""
    params, landscape = load_params(), fields.get("landscape", "")
    here = [(page_path(audit), "Open the page")]
    if not same_origin(request.headers) or not same(fields.get("csrf"), session.csrf):
        told = "Nothing was saved. Open the page and decide there."
        raise Refused(403, "This form did not come from this page", told, links=here, typed=typed(fields))
    if landscape != landscape_hash(audit):
        told = (
            "You looked at an earlier one, so nothing was saved: a decision is valid only for what its reviewer has"
            " seen. Look at the current one and decide again."
        )
        links = [(page_path(audit), "The current landscape")]
        raise Refused(409, "The landscape has changed", told, links=links, typed=typed(fields))
    try:
        # The server has the keys of everybody who decides on its machine. So if decisions are signed, it accepts them
        # only on pages that were opened by a reviewer's own link.
        if not session.bound and (keys := listed_keys(params, audit)):
            raise DraftError(own_link(audit, keys))
        own = {"reviewer": session.bound} if session.bound else {}
        decision = decision_of({**fields, **own}, landscape, read_modes(audit))
        seen, revise = fields.get("seen", "").split(), fields.get("revise") == "yes"
        outcome = decide(params, audit, decision, "page", revise=revise, seen=seen)
    except DraftError as error:
        problems = [sentence(problem) for problem in error.problems]
        return review_page(params, audit, session, 400, fields, problems, revise="again" in fields)
    except AlreadyDecided as error:
        return review_page(params, audit, session, 409, fields, _already(error.said, decision.reviewer), revise=True)
    except UsageError as error:
        raise Refused(409, "Nothing was saved", str(error), typed=typed(fields)) from None
    except OSError as error:
        told = f"{error}. The page says whether your decision was recorded."
        raise Refused(503, "That did not work", told, links=here, typed=typed(fields)) from None
    session.reviewer = outcome.reviewer
    word = "approved" if outcome.approve else "rejected"
    lines = [f"{outcome.reviewer} {word} the repair of {audit}.", *outcome.next_steps, "You can close this page."]

    def answered() -> None:
        _served(request).outcomes.put(outcome)
        session.done.add(audit)  # only now, as a server that nobody else needs exits

    draft = draft_key(audit, decision.landscape, session.bound)
    return message(200, "Recorded", lines, kicker=audit, forget=draft, background=BackgroundTask(answered))


def _already(earlier: RecordedDecision, reviewer: str) -> list[str]:
    if earlier.via == "time-out":
        what = "Time ran out, which is recorded as a rejection"
    else:
        who = (
            "You" if same_person(earlier.reviewer, reviewer) else f"Somebody else decided meanwhile: {earlier.reviewer}"
        )
        what = f"{who} {'approved' if earlier.approve else 'rejected'} this on {moment(earlier.time)}"
    return [f"{what}.", "To decide anyway, tick the box above the buttons."]


@router.get("/review/{audit}/{report}")
def read_report(audit: Audit, report: str, _session: SignedIn) -> Response:
    """Show one of the audit's two reports."""
    path = report_path(audit, report) if report in REPORTS else None
    if path is None or not path.is_file():
        raise HTTPException(404)
    page = path.read_bytes()
    policy = report_policy(page[:4096].decode("utf-8", "replace"))
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})


@assets.get("/static/review.css")
def read_style() -> Response:
    """Send the style sheet."""
    return Response(style(), media_type="text/css")


@assets.get("/static/review.js")
def read_script() -> Response:
    """Send the script, which the page also works without: the report's for examples, and the review page's."""
    explorer = (REPORT_TEMPLATES / "explorer.js").read_text(encoding="utf-8")
    return Response(explorer + static("review.js"), media_type="text/javascript")


@router.get("/links", dependencies=[Depends(_trusted)])
def audits(request: Request) -> Response:
    """List the served audits, for other commands of the same user."""
    return JSONResponse({"audits": _served(request).audits})


@router.post("/links", dependencies=[Depends(_trusted)])
def make_link(request: Request, audit: str, reviewer: str = "") -> Response:
    """Create a one-time link, for other commands of the same user."""
    if audit != EVERY:
        load_params().repair(audit)
    return JSONResponse({"link": _served(request).link(audit, reviewer)})


def _refusal(_request: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        return message(error.status, error.title, error.sentences, **error.more)
    if isinstance(error, HTTPException):
        title = "There is nothing here" if error.status_code == 404 else "That does not work here"
        return message(error.status_code, title, ["This server shows only the audits it was started for."])
    return message(409 if isinstance(error, UsageError) else 503, "That does not work right now", [str(error)])


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
    html = review_templates().get_template("review.html.j2").render(**view, path=page_path(audit), csrf=session.csrf)
    return HTMLResponse(html, status)


def message(
    status: int,
    title: str,
    sentences: Sequence[str],
    *,
    kicker: str = "Review",
    links: Sequence[tuple[str, str]] = (),
    typed: Sequence[tuple[str, str]] = (),
    forget: str = "",
    background: BackgroundTask | None = None,
) -> Response:
    """A page with a message. It needs nothing more from the server, which may have exited by then.

    Args:
        kicker: line above the title.
        links: addresses with their texts.
        typed: the reviewer's entries, to be read and copied.
        forget: name of the draft that is no longer needed.
        background: what to do after it was sent.
    """
    css, code = style(), static("recorded.js")
    page = review_templates().get_template("message.html.j2")
    texts = {"title": title, "sentences": sentences, "kicker": kicker, "links": links, "typed": typed, "forget": forget}
    html = page.render(**texts, style=Markup(css), script=Markup(code))
    style_hash, script_hash = (
        f"'sha256-{b64encode(sha256(text.encode()).digest()).decode('ascii')}'" for text in (css, code)
    )
    policy = (
        f"default-src 'none'; style-src {style_hash}; {f'script-src {script_hash}; ' if forget else ''}img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(html, status, {"Content-Security-Policy": policy}, background=background)


@cache
def style() -> str:
    """The style sheet: the report's and the review page's."""
    return (REPORT_TEMPLATES / "report.css").read_text(encoding="utf-8") + static("review.css")


@cache
def static(name: str) -> str:
    """The text of a file that is part of every page."""
    return (TEMPLATES / name).read_text(encoding="utf-8")
