"""Access control of Faded's Prefect servers: nothing is answered without the server's credential.

Every user of the machine can connect to loopback, and Prefect's API can start processes. Programs send the credential
in a header. A browser signs in by a one-time link and then sends the cookie it received. Cookies ignore ports, so this
one is accepted only under a host name that no other server has (`new_host`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.websockets import WebSocket

from flows.server.security import Keys, Session, authorization, same, same_origin

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LINKS, OPEN = "/faded/links", "/faded/open"  # where commands request a one-time link, and its target
_COOKIE = "faded-prefect"
_PAGES = "prefect"  # purpose of the links
_LOOPBACK = ("127.0.0.1", "localhost")
_CHANGES_NOTHING = ("GET", "HEAD", "OPTIONS")
_SIGN_IN = """\
<!doctype html><html lang="en"><meta charset="utf-8"><title>Sign in</title>
<body style="font: 1rem/1.5 sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem">
<h1>These pages need a link</h1>
<p>They are opened by a link that works once, so that nobody else on this machine can start audits as you. In the
workspace, run <code>faded serve --link</code> and open what it prints in this browser. Then load this page again.</p>
"""


class Guard:
    """An ASGI application that passes on requests with the credential or from a signed-in browser.

    Args:
        app: the application behind it.
        credential: the server's credential.
        host: the host name under which browsers see its pages; None if it has none, and no cookie is accepted.
    """

    def __init__(self, app: ASGIApp, credential: str, host: str | None = None) -> None:
        self._app, self._authorization, self._host = app, authorization(credential), host
        self._keys = Keys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (answer := self._answer(HTTPConnection(scope))) is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await answer(scope, receive, send)
        else:
            # Before it is accepted, so that the handshake fails.
            await WebSocket(scope, receive, send).send_denial_response(answer)

    def _answer(self, asked: HTTPConnection) -> Response | None:
        """The answer to a request about sign-in or one that is refused; None if it is passed on."""
        host = asked.headers.get("host", "")
        name = host.rpartition(":")[0] or host
        program = name in (*_LOOPBACK, self._host) and same(asked.headers.get("authorization"), self._authorization)
        path, method = asked.scope["path"], asked.scope.get("method", "websocket")
        if self._host is not None and program and (method, path) == ("POST", LINKS):
            port = host.removeprefix(name)
            return JSONResponse({"link": f"http://{self._host}{port}{OPEN}?token={self._keys.make_token(_PAGES)}"})
        if program:
            return None
        if name == self._host:
            cookie = asked.cookies.get(_COOKIE)
            if (method, path) == ("GET", OPEN):
                session = self._keys.redeem(asked.query_params.get("token", ""), _PAGES, cookie)
                return self._opened(session or self._keys.session(cookie))
            # Browsers send the cookie with every request to this host, whichever site caused the request.
            ours = method in _CHANGES_NOTHING or same_origin(asked.headers)
            if ours and self._keys.session(cookie) is not None:
                return None
        return _refusal(asked.headers)

    def _opened(self, session: Session | None) -> Response:
        if session is None:
            return _refusal(Headers({"accept": "text/html"}))
        response = RedirectResponse("/", 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        # Not strict, as links in messages lead here from other sites. Requests that change anything have their origin
        # checked.
        response.set_cookie(_COOKIE, session.id, httponly=True, samesite="lax", path="/")
        return response


def _refusal(headers: Headers) -> Response:
    if "text/html" in headers.get("accept", ""):
        return HTMLResponse(_SIGN_IN, 401, {"Cache-Control": "no-store"})
    return JSONResponse({"exception_message": "Unauthorized"}, 401, {"Cache-Control": "no-store"})
