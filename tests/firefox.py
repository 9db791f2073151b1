"""The installed Firefox, driven by WebDriver BiDi, which is JSON over a web socket."""

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.sync.connection import Connection

SECONDS = 60.0  # limit for a response


class Firefox:
    """One tab of a headless Firefox."""

    def __init__(self, socket: Connection) -> None:
        self._socket, self._numbers = socket, itertools.count()
        self._call("session.new", capabilities={})
        self.tab = self._call("browsingContext.getTree")["contexts"][0]["context"]
        # Large enough that nothing has to be scrolled to.
        self._call("browsingContext.setViewport", context=self.tab, viewport={"width": 1200, "height": 9000})

    def _call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv(timeout=SECONDS))).get("id") != number:
            pass  # an event
        assert answer["type"] == "success", (method, answer)
        return answer["result"]

    def go(self, url: str) -> None:
        """Open an address."""
        self._call("browsingContext.navigate", context=self.tab, url=url, wait="complete")

    @property
    def url(self) -> str:
        """The current address."""
        return str(self._call("browsingContext.getTree", root=self.tab)["contexts"][0]["url"])

    def find(self, css: str) -> list[Any]:
        """Elements by a selector; none while a page gives way to the next."""
        locator = {"type": "css", "value": css}
        try:
            return list(self._call("browsingContext.locateNodes", context=self.tab, locator=locator)["nodes"])
        except AssertionError as error:
            if "contextNode is null" in str(error):
                return []
            raise

    def click(self, css: str) -> None:
        """Click on the first element of a selector."""
        origin = {"type": "element", "element": {"sharedId": self.find(css)[0]["sharedId"]}}
        down, up = ({"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp"))
        self._act("pointer", [{"type": "pointerMove", "x": 0, "y": 0, "origin": origin}, down, up])

    def write(self, text: str) -> None:
        """Press keys."""
        self._act("key", [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")])

    def _act(self, kind: str, actions: list[dict[str, Any]]) -> None:
        self._call("input.performActions", context=self.tab, actions=[{"type": kind, "id": kind, "actions": actions}])


@contextmanager
def firefox(profile: Path, *, javascript: bool = True) -> Iterator[Firefox]:
    """A Firefox with a fresh profile; the test skips if it is missing."""
    if (program := which("firefox-esr") or which("firefox")) is None:
        pytest.skip("no Firefox is installed")
    profile.mkdir()
    (profile / "user.js").write_text(f'user_pref("javascript.enabled", {str(javascript).lower()});\n')
    command = [program, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = (re.search(r"WebDriver BiDi listening on (ws://\S+)", line) for line in process.stderr or ())
            found = next(filter(None, lines), None)
            assert found is not None, f"Firefox ended with {process.wait(SECONDS)}"
            with connect(f"{found[1]}/session", max_size=None, proxy=None) as socket:
                yield Firefox(socket)
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
