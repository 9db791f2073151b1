"""Client for models behind HTTP: post batches of inputs, and return the answers in order. Weights are not accessible.

    POST {"inputs": [{...}, ...]}  ->  {"outputs": [{...}, ...]}, one object for each input

The task defines the contents of the objects. `known_answers` checks that the model is still the one that was prepared.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import ipaddress
import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import Field, field_validator, model_validator

from stages.core.errors import UnavailableError, UsageError
from stages.params import Strict

if TYPE_CHECKING:
    import httpx

LARGEST = 256 * 2**20  # bytes of one response; a thousand pictures of 256 KB
PATIENCE = 600.0  # seconds a server may ask to wait
FIRST_PAUSE, SLOWEST = 0.5, 60.0  # seconds between two tries, increasing, unless the server sets them
QUOTED = 200  # maximum number of characters quoted from a server
_TEXT = re.compile(r"[!-~]([ -~]*[!-~])?")  # valid and unambiguous in an HTTP header
_SECRET = re.compile(r"authorization|cookie|key|token|secret|password", re.IGNORECASE)
_TRY_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class EndpointConfig(Strict):
    """Address and request settings of a model. The key is in the environment, never in a file."""

    endpoint: str = Field(description="URL: https, or plain http, which must not carry a key to another machine")
    key_env: str | None = Field(None, description="environment variable with the key")
    key_header: str = Field(
        "Authorization", pattern=r"^[\w-]+$", description="that carries the key; Authorization says Bearer before it"
    )
    headers: dict[str, str] = Field({}, description="further headers; do not put secrets here")
    batch_size: int = Field(16, ge=1, le=4096, description="inputs of a request")
    concurrency: int = Field(2, ge=1, le=64, description="requests on their way at once")
    rate: float | None = Field(None, gt=0, description="requests a second at most")
    timeout: float = Field(60.0, gt=0, description="seconds for one request")
    retries: int = Field(
        6, ge=0, le=20, description="retries after the first try, at increasing intervals; 6 take half a minute"
    )
    deterministic: bool = Field(True, description="false: the same input may be answered otherwise tomorrow")

    @field_validator("endpoint")
    @classmethod
    def _is_a_url(cls, endpoint: str) -> str:
        import httpx

        try:
            url = httpx.URL(endpoint)
        except httpx.InvalidURL:
            raise ValueError(f"expected a URL, found {_found(endpoint)}") from None
        if url.userinfo:  # not quoted: it may be a secret
            raise ValueError("the URL holds a user name or a password, and a key belongs into the variable of key_env")
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"expected a URL that begins with https:// or http://, found {_found(endpoint)}")
        for name in url.params:
            if _SECRET.search(name):
                raise ValueError(
                    f"{name} in the query of {safe_url(endpoint)} looks like a key, which belongs into the variable"
                    " that key_env names"
                )
        return endpoint

    @field_validator("key_env")
    @classmethod
    def _is_a_name(cls, key_env: str | None) -> str | None:
        if key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", key_env):  # not quoted: it may be the key
            raise ValueError("expected the name of an environment variable in capitals (MY_MODEL_KEY), not the key")
        return key_env

    @field_validator("headers")
    @classmethod
    def _hold_no_secret(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if _SECRET.search(name):
                raise ValueError(f"{name} looks like a key, which belongs into the variable that key_env names")
            if not re.fullmatch(r"[\w-]+", name, re.ASCII) or not _TEXT.fullmatch(value):
                raise ValueError(f"{name!r} or its value holds characters that HTTP does not allow")
        return headers

    @model_validator(mode="after")
    def _key_is_not_overheard(self) -> EndpointConfig:
        if self.key_env and self.endpoint.lower().startswith("http://") and not self.local:
            raise ValueError("a key must not travel over plain http to another machine: expected https in endpoint")
        return self

    @property
    def local(self) -> bool:
        """Whether the endpoint is on this machine."""
        import httpx

        host = httpx.URL(self.endpoint).host
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def told(self) -> str:
        """Description for messages: the address."""
        return f"the model behind {safe_url(self.endpoint)}"

    def key(self) -> str:
        """Return the key from the environment, "" if none is sent; only stages that query the model need it.

        Raises a UsageError if it is not set, or contains characters that a header cannot have.
        """
        if self.key_env is None:
            return ""
        key = os.environ.get(self.key_env)
        if not key:
            raise UsageError(
                f"prepare.model.key_env: the environment variable {self.key_env} is not set; it holds the model's key"
            )
        if not _TEXT.fullmatch(key):  # not quoted, and not sent: the HTTP client's error would quote it
            raise UsageError(
                f"prepare.model.key_env: the environment variable {self.key_env} holds a line end, a space at an end or"
                " another character that a key in a header cannot have; set it to the key alone"
            )
        return key


def safe_url(endpoint: str) -> str:
    """Return a URL that is safe to display: without query and fragment, which may contain a secret."""
    return re.split(r"[?#]", endpoint, maxsplit=1)[0]


def _found(endpoint: str) -> str:
    """Describe an invalid URL for a message."""
    return "one that is not shown, for it may hold a password" if "@" in endpoint else repr(safe_url(endpoint))


class Endpoint:
    """A model behind HTTP; safe to share between threads.

    Raises a UsageError if the key is not in the environment, or is not valid.
    """

    def __init__(self, config: EndpointConfig) -> None:
        import httpx

        self.config = config
        self.name = config.told
        self._key = config.key()
        bearer = "Bearer " if config.key_header.lower() == "authorization" else ""
        self._loop = _loop()
        self._client = httpx.AsyncClient(
            headers={**config.headers, **({config.key_header: bearer + self._key} if self._key else {})},
            timeout=config.timeout,
            limits=httpx.Limits(max_connections=config.concurrency),
            follow_redirects=False,
            trust_env=not config.local,  # a proxy cannot reach this machine
        )
        self._pace = _Pace(config.rate)

    def ask(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Query the model on n inputs; temporary errors are retried.

        Raises a UsageError if the model rejects a request, or its answer is not valid; an UnavailableError if it cannot
        be reached, or fails repeatedly.

        Args:
            inputs: n objects of plain data. Each answer must depend on its input alone.

        Returns:
            n objects, in order.
        """
        size = self.config.batch_size
        batches = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        stop = threading.Event()
        with ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="endpoint") as pool:
            asked = [pool.submit(self._answer, batch, stop) for batch in batches]
            try:
                done, _ = wait(asked, return_when=FIRST_EXCEPTION)
                for finished in done:
                    finished.result()  # an error here ends the others
                return [answer for finished in asked for answer in finished.result()]
            finally:
                stop.set()
                for waiting in asked:
                    waiting.cancel()

    def _answer(self, batch: Sequence[Mapping[str, Any]], stop: threading.Event) -> list[dict[str, Any]]:
        import httpx

        body = json.dumps({"inputs": [dict(one) for one in batch]}, ensure_ascii=False, allow_nan=False).encode()
        reason = ""
        for tried in range(self.config.retries + 1):
            self._pace.wait(stop)
            if stop.is_set():
                return []
            try:
                status, headers, content = asyncio.run_coroutine_threadsafe(self._post(body), self._loop).result()
            except httpx.TransportError as error:
                reason, pause = self.quoted(f"{type(error).__name__} {error}"), None
            else:
                if status == HTTPStatus.OK:
                    return self._read(content, len(batch))
                if status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _TRY_AGAIN:
                    self._refused(status, headers, content)
                reason, pause = f"it answers {self._said(status, content)}", _retry_after(headers)
                if pause is not None and pause > PATIENCE:
                    raise UnavailableError(
                        f"{self.name} asks to retry in {pause:.0f} s ({reason}); run the stage again then"
                    )
            if tried == self.config.retries:
                break
            if pause:
                self._pace.hold(pause)  # all requests, not only this one
            else:
                # Partly random, so that requests that failed together are not retried together.
                stop.wait(min(SLOWEST, FIRST_PAUSE * 2**tried) * random.uniform(0.5, 1))
        raise UnavailableError(
            f"{self.name} cannot be used: {reason}, {self.config.retries + 1} time(s) in a row. What it answered so far"
            " is kept: run the stage again when it is back"
            + ("" if self.config.rate else "; if there were too many requests, set rate")
        )

    async def _post(self, body: bytes) -> tuple[int, httpx.Headers, bytes]:
        """Send one request and end it after `timeout`: the timeout of httpx starts again with every byte received.

        Raises a UsageError if the response is larger than `LARGEST`, or cannot be decompressed.
        """
        import httpx

        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        content = bytearray()
        try:
            async with (
                asyncio.timeout(self.config.timeout),
                self._client.stream("POST", self.config.endpoint, content=body, headers=headers) as response,
            ):
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > LARGEST:
                        raise UsageError(f"{self.name}: a response has more than {LARGEST:,} bytes; lower batch_size")
                return response.status_code, response.headers, bytes(content)
        except TimeoutError:
            raise httpx.ReadTimeout(f"no complete response in {self.config.timeout:g} s") from None
        except httpx.DecodingError as error:
            raise UsageError(f"{self.name}: its response cannot be decompressed: {self.quoted(str(error))}") from None

    def _read(self, content: bytes, n: int) -> list[dict[str, Any]]:
        try:
            answer = json.loads(content, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            self._wrong(f"no JSON ({error}): {self.quoted(content)}")
        if not isinstance(answer, dict) or not isinstance(answer.get("outputs"), list):
            found = f"the keys {', '.join(answer) or 'none'}" if isinstance(answer, dict) else type(answer).__name__
            self._wrong(self.quoted(found))
        outputs: list[Any] = answer["outputs"]
        if len(outputs) != n:
            self._wrong(f"{len(outputs)} output(s) for {n} input(s)")
        if odd := next((type(one).__name__ for one in outputs if not isinstance(one, dict)), ""):
            self._wrong(f"outputs that are {odd}")
        return outputs

    def _wrong(self, found: str) -> NoReturn:
        raise UsageError(f'{self.name}: expected {{"outputs": [{{...}}, ...]}}, one for each input; found {found}')

    def _refused(self, status: int, headers: httpx.Headers, content: bytes) -> NoReturn:
        said = self._said(status, content)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            key = self.config.key_env
            hint = (
                f"it rejected the key in {key}"
                if key
                else "name the environment variable with the key: prepare.model.key_env, for `faded init` --key-env"
            )
            raise UsageError(f"{self.name} answers {said}: {hint}")
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise UsageError(f"{self.name} answers {said}: lower batch_size, {self.config.batch_size}")
        if target := headers.get("location"):
            where = self.quoted(target.partition("?")[0])
            raise UsageError(f"{self.name} redirects to {where}; that is not followed: use that URL, if you trust it")
        raise UsageError(f"{self.name} rejected the request: {said}")

    def _said(self, status: int, content: bytes) -> str:
        import httpx

        quoted = self.quoted(content)
        return f"{status} {httpx.codes.get_reason_phrase(status)}".strip() + (f" ({quoted})" if quoted else "")

    def quoted(self, said: str | bytes) -> str:
        """Return the beginning of a server's text in one printable line, without the key, which a server may echo."""
        text = said if isinstance(said, str) else said.decode(errors="replace")
        text = text.replace(self._key, "***") if self._key else text
        line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * QUOTED]).split())
        return line[:QUOTED] + ("..." if len(line) > QUOTED else "")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop for requests to all models, in its own thread: there a request can be ended at any time."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="endpoint", daemon=True).start()
    return loop


class _Pace:
    """Limits requests of all threads to `rate` per second."""

    def __init__(self, rate: float | None) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap if self._gap else self._next
        if start > now:
            stop.wait(start - now)

    def hold(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def _retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds a server asks to wait, given as a number or a date."""
    said = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", said):
        return float(said)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number")
