"""A model behind HTTP on this machine, which answers as a test wants it and records the requests."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Mapping[str, str], bytes]


def said(content: Any, status: int = 200, **headers: str) -> Answer:
    """A response: plain data as JSON, or bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


class Responder(BaseHTTPRequestHandler):
    """Keeps no log of its requests."""

    def respond(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Answer requests to a free port of this machine; yields the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Served:
    """Requests to a served model.

    Args:
        url: its URL.
        requests: bodies of all requests, in the order of arrival.
        headers: headers of all requests.
        paths: paths of all requests.
    """

    url: str
    requests: list[Any] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> list[Any]:
        return [one for request in self.requests for one in request["inputs"]]


def completion(text: Any, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion with this text, one token per word, after a prompt of ten tokens."""
    usage = {"prompt_tokens": 10, "completion_tokens": len(str(text or "").split())}
    said = {"role": "assistant", "content": text, **message}
    return {"model": "tiny-1", "choices": [{"index": 0, "message": said, "finish_reason": finish}], "usage": usage}


@contextlib.contextmanager
def served(
    answer: Callable[[dict[str, Any]], Any],
    before: Callable[[int], Answer | None] = lambda request: None,
    *,
    whole: bool = False,
    models: Sequence[str] = (),
    key: str = "",
) -> Iterator[Served]:
    """Serve a model on a free port of this machine.

    Args:
        answer: returns the output for an input.
        before: returns the response for the number of a request, from 0; None to respond with outputs.
        whole: whether `answer` takes a whole request and returns the response, as for chat completions.
        models: names at GET /models.
        key: a key without which every request is refused.
    """
    lock = threading.Lock()
    refused = None if not key else said({"error": {"message": "invalid key"}}, 401)

    class Handler(Responder):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or a body waits 40 ms for the headers to be acknowledged

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(model.requests)
                model.requests.append(body)
                model.headers.append(dict(self.headers.items()))
                model.paths.append(self.path)
            self._respond(before(number) or self._of(body))

        def do_GET(self) -> None:
            lists = models and self.path.endswith("/models")
            self._respond(said({"data": [{"id": name} for name in models]}) if lists else said({}, 404))

        def _of(self, body: Any) -> Answer:
            return said(answer(body) if whole else {"outputs": [answer(one) for one in body["inputs"]]})

        def _respond(self, given: Answer) -> None:
            if refused is not None and self.headers["Authorization"] != f"Bearer {key}":
                given = refused
            status, headers, content = given
            if status == 0:  # the server dies
                self.close_connection = True
                return
            self.respond(status, {**headers, "Content-Length": str(len(content))}, content)

    with listening(Handler) as port:
        model = Served(f"http://127.0.0.1:{port}/answer")
        yield model
